//! `vsctl network`: the layer-2 networks.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use config::Mtu;
use config::api::{NetworkView, route};
use ipnet::IpNet;

use crate::Context;
use crate::output::{Table, join, pairs, yes_no};
use crate::settings::{Patch, Setting};

/// Adds, removes, changes and shows networks.
#[derive(Debug, Subcommand)]
pub(crate) enum Network {
    Add(Add),
    Rm(Rm),
    Set(Set),
    List(List),
    Show(Show),
}

/// Makes a network.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl network add front --subnet 10.1.0.0/24 --subnet fd00:1::/64")]
pub(crate) struct Add {
    /// Its name, unique among networks
    name: String,
    #[command(flatten)]
    settings: Settings,
}

/// Removes a network; refused while ports are attached to it.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl network rm front")]
pub(crate) struct Rm {
    /// The network
    name: String,
}

/// Changes a network while it runs; what is not given stays, and `default` takes a value back.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl network set front --storm 1000 --isolated=false")]
pub(crate) struct Set {
    /// The network
    name: String,
    #[command(flatten)]
    settings: Settings,
}

/// Lists the networks.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl network list")]
pub(crate) struct List {}

/// Shows everything about a network.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl network show front")]
pub(crate) struct Show {
    /// The network
    name: String,
}

/// The keys of a network.
#[derive(Args, Debug)]
struct Settings {
    /// An address range; may be given several times
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    subnet: Vec<Setting<IpNet>>,
    /// The switch's own address in a subnet [default: the first of each]; may be given several times
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    gateway: Vec<Setting<IpAddr>>,
    /// Its identifier in the tunnels to other hosts
    #[arg(long)]
    vni: Option<Setting<u32>>,
    /// The UDP port of its tunnels [default: `[overlay] port`]
    #[arg(long, value_name = "PORT")]
    vxlan_port: Option<Setting<u16>>,
    /// Ports of this network never reach one another
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    isolated: Option<Setting<bool>>,
    /// The largest IP packet, in bytes, or `auto`
    #[arg(long, value_name = "BYTES")]
    mtu: Option<Setting<Mtu>>,
    /// How many stations may be learned
    #[arg(long, value_name = "COUNT")]
    stations: Option<Setting<u32>>,
    /// Seconds after which a silent station is forgotten
    #[arg(long, value_name = "SECONDS")]
    ageing: Option<Setting<u32>>,
    /// Broadcast, multicast and unknown-unicast frames a second that a port may send
    #[arg(long, value_name = "FRAMES")]
    storm: Option<Setting<u32>>,
    /// Answer ARP and ND requests for addresses that the switch knows [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    arp_proxy: Option<Setting<bool>>,
    /// Connections to the outside come from an address of the uplink [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    masquerade: Option<Setting<bool>>,
    /// Nothing goes outside or to the host, and nothing comes from there
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    internal: Option<Setting<bool>>,
    /// The host and the ports reach one another [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    host: Option<Setting<bool>>,
}

impl Settings {
    fn patch(&self) -> Patch {
        let mut patch = Patch::default();
        patch.list("subnets", &self.subnet);
        patch.list("gateways", &self.gateway);
        patch.one("vni", self.vni.as_ref());
        patch.one("vxlan_port", self.vxlan_port.as_ref());
        patch.one("isolated", self.isolated.as_ref());
        patch.one("mtu", self.mtu.as_ref());
        patch.one("stations", self.stations.as_ref());
        patch.one("ageing", self.ageing.as_ref());
        patch.one("storm", self.storm.as_ref());
        patch.one("arp_proxy", self.arp_proxy.as_ref());
        patch.one("masquerade", self.masquerade.as_ref());
        patch.one("internal", self.internal.as_ref());
        patch.one("host", self.host.as_ref());
        patch
    }
}

impl Network {
    /// Does what was asked for.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = &context.client;
        match self {
            Self::Add(add) => {
                let mut patch = add.settings.patch();
                patch.drop_defaults();
                patch.set("name", &add.name);
                let answer = client.post(route::NETWORKS, &patch.into_value()).await?;
                context.done(&answer, &format!("network {} added", add.name))
            }
            Self::Rm(rm) => {
                let answer = client.delete(&route::with_name(route::NETWORK, &rm.name)).await?;
                context.done(&answer, &format!("network {} removed", rm.name))
            }
            Self::Set(set) => {
                let patch = set.settings.patch();
                patch.must_say_something()?;
                let path = route::with_name(route::NETWORK, &set.name);
                let answer = client.patch(&path, &patch.into_value()).await?;
                context.done(&answer, &format!("network {} changed", set.name))
            }
            Self::List(_) => context.show(&client.get(route::NETWORKS).await?, list),
            Self::Show(show) => {
                context.show(&client.get(&route::with_name(route::NETWORK, &show.name)).await?, details)
            }
        }
    }
}

fn list(networks: &Vec<NetworkView>) -> String {
    let mut table =
        Table::new(&["NETWORK", "SUBNETS", "GATEWAYS", ">VNI", ">PORTS", ">STATIONS", ">MTU", "OWNER"]);
    for network in networks {
        table.row([
            network.config.name.clone(),
            join(&network.config.subnets),
            join(&network.gateways),
            network.config.vni.map_or_else(String::new, |vni| vni.to_string()),
            network.ports.len().to_string(),
            network.stations.to_string(),
            network.mtu.to_string(),
            network.owner.to_string(),
        ]);
    }
    table.or("No networks. `vsctl network add NAME` makes one.")
}

fn details(network: &NetworkView) -> String {
    let config = &network.config;
    let or = |number: Option<u32>, none: &str| number.map_or_else(|| none.to_owned(), |n| n.to_string());
    pairs(&[
        ("network", config.name.clone()),
        ("owner", network.owner.to_string()),
        ("subnets", join(&config.subnets)),
        ("gateways", join(&network.gateways)),
        ("isolated", yes_no(config.isolated)),
        ("outside", outside(config)),
        ("host", if config.joins_host() { "reached" } else { "not reached" }.to_owned()),
        ("vni", or(config.vni, "none, stays on this host")),
        ("mtu", mtu(network)),
        ("arp proxy", yes_no(config.arp_proxy)),
        ("storm limit", or(config.storm, "none")),
        ("ageing", format!("{} s", config.ageing)),
        (
            "stations",
            format!("{} known, limit {}", network.stations, or(config.stations, "[limits] stations")),
        ),
        ("ports", join(&network.ports)),
    ])
}

/// Returns the largest packet, and where that is from.
fn mtu(network: &NetworkView) -> String {
    match network.config.mtu {
        Mtu::Bytes(bytes) => bytes.to_string(),
        Mtu::Auto if network.config.vni.is_some() => format!("{}, as the uplink has it", network.mtu),
        Mtu::Auto => network.mtu.to_string(),
    }
}

/// Returns how the network reaches the outside.
fn outside(config: &config::Network) -> String {
    match (config.internal, config.masquerade) {
        (true, _) => "not reached: internal",
        (false, true) => "masqueraded",
        (false, false) => "routed, with its own addresses",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view() -> NetworkView {
        serde_json::from_value(json!({
            "config": {"name": "front", "subnets": ["10.1.0.0/24", "fd00:1::/64"], "storm": 1000},
            "owner": "file", "gateways": ["10.1.0.1", "fd00:1::1"], "ports": ["a", "b"], "stations": 3, "mtu": 1500,
        }))
        .expect("a network as the daemon sends it")
    }

    #[test]
    fn list_shows_a_line_a_network() {
        let text = list(&vec![view()]);
        assert_eq!(
            text,
            "NETWORK  SUBNETS                  GATEWAYS            VNI  PORTS  STATIONS   MTU  OWNER\n\
             front    10.1.0.0/24 fd00:1::/64  10.1.0.1 fd00:1::1    -      2         3  1500  file\n"
        );
        assert!(list(&Vec::new()).starts_with("No networks."));
    }

    #[test]
    fn details_show_what_is_configured_and_what_is_known() {
        let text = details(&view());
        assert!(text.contains("storm limit  1000\n"), "{text}");
        assert!(text.contains("outside      masqueraded\nhost         reached\n"), "{text}");
        assert!(text.contains("stations     3 known, limit [limits] stations\n"), "{text}");
        assert!(text.contains("ports        a b\n"), "{text}");
    }
}
