//! `vsctl host`: how the host, the outside and the networks reach one another.

use clap::{Args, Subcommand};
use config::UplinkDevice;
use config::api::{HostView, UplinkDeviceView, route};

use crate::Context;
use crate::output::{Table, join, pairs};

/// Shows how the host, the outside and the networks reach one another.
#[derive(Debug, Subcommand)]
pub(crate) enum Host {
    Show(Show),
}

/// Shows the host's addresses, the networks that it is joined to, and the devices that lead outside.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl host show")]
pub(crate) struct Show {}

impl Host {
    /// Asks and shows.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self::Show(_) = self;
        context.show(&context.client.get(route::HOST).await?, details)
    }
}

fn details(host: &HostView) -> String {
    let config = &host.uplink.config;
    let device = match &config.device {
        UplinkDevice::Auto => "auto".to_owned(),
        UplinkDevice::None => "none".to_owned(),
        UplinkDevice::Names(names) => join(names),
    };
    let text = pairs(&[
        ("host device", if host.device.is_empty() { String::new() } else { state(&host.device, host.up) }),
        ("host addresses", join(&host.addresses)),
        ("joined networks", join(&host.networks)),
        ("notes", host.notes.join("\n")),
        ("uplink", format!("{device}, {}, L4 ports {}", config.mode, config.ports)),
    ]);
    format!("{text}\n{}", devices(&host.uplink.devices))
}

fn state(name: &str, up: bool) -> String {
    if up { name.to_owned() } else { format!("{name}, DOWN") }
}

fn devices(devices: &[UplinkDeviceView]) -> String {
    let mut table = Table::new(&["UPLINK", "STATE", "MODE", "MAC", ">MTU", "ADDRESSES", "GATEWAYS", "NOTES"]);
    for device in devices {
        table.row([
            device.name.clone(),
            if device.up { "up" } else { "DOWN" }.to_owned(),
            device.mode.clone(),
            device.mac.map_or_else(String::new, |mac| mac.to_string()),
            device.mtu.to_string(),
            join(&device.addresses),
            join(&device.gateways),
            device.notes.join("; "),
        ]);
    }
    table.or("No device leads outside: the switch is an island.")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_way_outside_is_a_line_a_device() {
        let mut host: HostView = serde_json::from_value(json!({
            "device": "vsw-host", "up": true, "addresses": ["192.0.2.2"], "networks": ["front"],
            "uplink": {"config": {}, "devices": [{"name": "eth0", "up": true, "mode": "steer", "mac": "02:00:00:00:00:01",
                       "mtu": 1500, "addresses": ["192.0.2.2"], "gateways": ["192.0.2.1"]}]},
        }))
        .expect("a host as the daemon sends it");
        let text = details(&host);
        assert!(text.contains("host device      vsw-host\n"), "{text}");
        assert!(text.contains("uplink           auto, steer, L4 ports 49152-65535\n"), "{text}");
        assert!(
            text.ends_with(
                "UPLINK  STATE  MODE   MAC                 MTU  ADDRESSES  GATEWAYS   NOTES\n\
                 eth0    up     steer  02:00:00:00:00:01  1500  192.0.2.2  192.0.2.1  -\n"
            ),
            "{text}"
        );
        host.uplink.devices.clear();
        assert!(details(&host).ends_with("the switch is an island.\n"));
    }
}
