//! Plugging a port in: its device, and the queues on it.
//!
//! What is configured becomes what [`crate::devices`] is asked for. The same configuration gives the same names
//! and addresses in every run, so a device that an earlier daemon made is found and adopted.

use std::sync::Arc;

use config::{Network, Port, PortKind};
use ipnet::IpNet;
use packet::{Area, MacAddr};
use ports::ethtool::Offload;
use ports::{Kind, Opened, Spec};
use serde::{Deserialize, Serialize};

use crate::compile::{made_mac, mtu};
use crate::devices::{self, Device, Devices, FarEnd, TapSpec, VethSpec, near_name};

/// What was made for a port, to be remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugged {
    /// The device.
    pub device: Device,
    /// What its far end was set to.
    pub far: FarEnd,
    /// The kind that was taken.
    pub kind: PortKind,
    /// Its queues.
    pub queues: u16,
}

/// A port could not be plugged in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device.
    #[error("port '{port}': {source}")]
    Device {
        /// The port's name.
        port: String,
        /// What is wrong with it.
        source: devices::Error,
    },
    /// The queues on it.
    #[error(transparent)]
    Port(#[from] ports::Error),
}

impl From<devices::Error> for Error {
    fn from(source: devices::Error) -> Self {
        Error::Device { port: String::new(), source }
    }
}

impl Error {
    fn of(self, name: &str) -> Self {
        match self {
            Error::Device { source, .. } => Error::Device { port: name.to_owned(), source },
            other => other,
        }
    }

    /// Says whether the namespace of the port is not there: it may come yet.
    pub fn is_missing_namespace(&self) -> bool {
        matches!(self, Error::Device { source: devices::Error::NamespaceNotFound { .. }, .. })
    }
}

/// Returns the kind that is taken for what is configured.
pub fn kind(port: &Port) -> PortKind {
    match port.kind {
        PortKind::Auto => PortKind::Veth,
        kind => kind,
    }
}

/// Returns the MAC of the far end: as given, or made from the port's name. In a network of several hosts, where ports of
/// different hosts may be called alike, its first address is part of it, which is nobody else's.
pub fn far_mac(port: &Port, network: &Network) -> MacAddr {
    let made = || match port.addresses.first() {
        Some(address) if network.vni.is_some() => made_mac("port", &format!("{} {address}", port.name)),
        _ => made_mac("port", &port.name),
    };
    port.mac.unwrap_or_else(made)
}

/// Returns how the far end is to look.
pub fn far_end(port: &Port, network: &Network) -> FarEnd {
    let prefixed = |address: &std::net::IpAddr| {
        let subnet = network.subnet_of(*address)?;
        IpNet::new(*address, subnet.prefix_len()).ok()
    };
    let addresses: Vec<IpNet> = port.addresses.iter().filter_map(prefixed).collect();
    let mut gateways: Vec<std::net::IpAddr> = Vec::new();
    // A gateway is of use only to who has an address next to it; the first of a family is the default.
    for gateway in network.gateway_addresses() {
        if addresses.iter().any(|a| a.contains(&gateway))
            && !gateways.iter().any(|g| g.is_ipv4() == gateway.is_ipv4())
            && port.netns.is_some()
        {
            gateways.push(gateway);
        }
    }
    FarEnd {
        ifname: port.interface_name(),
        mac: far_mac(port, network),
        mtu: u32::from(mtu(port, network)),
        addresses,
        gateways,
        routes: Vec::new(),
        accept_ra: false,
    }
}

/// Returns where the far end goes, for [`crate::devices::Namespace::resolve`].
fn netns(port: &Port) -> String {
    match &port.netns {
        Some(netns) => netns.path().display().to_string(),
        // The daemon's own, which plays the host.
        None => "/proc/self/ns/net".to_owned(),
    }
}

/// Makes or adopts the port's device and opens its queues. `before` is what was made for it earlier, `fill` the
/// chunks that an AF_XDP socket keeps.
///
/// # Errors
/// Names the port, the object and the reason; a device that was made on the way is removed.
pub async fn plug(
    devices: &Devices,
    area: &Arc<Area>,
    port: &Port,
    network: &Network,
    before: Option<&Plugged>,
    fill: u32,
) -> Result<(Plugged, Opened), Error> {
    plug_kind(devices, area, port, network, before, fill).await.map_err(|error| error.of(&port.name))
}

async fn plug_kind(
    devices: &Devices,
    area: &Arc<Area>,
    port: &Port,
    network: &Network,
    before: Option<&Plugged>,
    fill: u32,
) -> Result<(Plugged, Opened), Error> {
    let far = far_end(port, network);
    let kind = kind(port);
    let previous = before.map(|before| before.far.clone());
    let area = Arc::clone(area);
    let name = port.name.clone();
    let (device, opened) = if kind == PortKind::Tap {
        let spec = TapSpec { port: name.clone(), netns: netns(port), far: far.clone(), previous };
        let queues = port.queues;
        let open = move |device: &str| {
            let kind = Kind::Tap { device: device.to_owned(), queues, persist: true };
            ports::Port::open(Spec { name, kind }, &area).map_err(Error::from)
        };
        devices.create_tap(spec, open).await?
    } else {
        let device = devices.create_veth(veth(port, far.clone(), previous)).await?;
        let (near, afxdp) = (device.near.clone(), kind == PortKind::Afxdp);
        if afxdp && let Err(error) = devices.set_offload(device.clone(), Offload::TxVlan, false).await {
            tracing::warn!(port = port.name, %error, "VLAN tags of the container may get lost");
        }
        let queues = u32::from(port.queues);
        let open = move || {
            let kind = if afxdp {
                let mut options = ports::afxdp::Options { queues: Some(queues), ..Default::default() };
                options.fill = options.fill.min(fill);
                // The depth follows the load, and not all ports are busy at once.
                options.fill_limit = options.fill_limit.min(fill * 2);
                Kind::Afxdp { device: near, options }
            } else {
                Kind::Veth { device: near }
            };
            ports::Port::open(Spec { name, kind }, &area)
        };
        match devices.run(open).await? {
            Ok(opened) => (device, opened),
            Err(error) => {
                if !device.adopted
                    && let Err(error) = devices.remove(device).await
                {
                    tracing::warn!(port = port.name, %error, "a device that was made in vain stays");
                }
                return Err(error.into());
            }
        }
    };
    Ok((Plugged { device, far, kind, queues: port.queues }, opened))
}

/// Sets the far end of a device that is in use to what is configured now.
///
/// # Errors
/// Names the port, the object and the reason.
pub async fn adjust(
    devices: &Devices,
    port: &Port,
    network: &Network,
    before: &Plugged,
) -> Result<Plugged, Error> {
    let far = far_end(port, network);
    let previous = Some(before.far.clone());
    let device = if before.kind == PortKind::Tap {
        let spec = TapSpec { port: port.name.clone(), netns: netns(port), far: far.clone(), previous };
        // Its queues are open already.
        let device = devices.create_tap(spec, |_| Ok::<_, devices::Error>(())).await;
        device.map(|(device, ())| device)
    } else {
        devices.create_veth(veth(port, far.clone(), previous)).await
    };
    let device = device.map_err(|error| Error::from(error).of(&port.name))?;
    Ok(Plugged { device, far, ..before.clone() })
}

fn veth(port: &Port, far: FarEnd, previous: Option<FarEnd>) -> VethSpec {
    VethSpec {
        port: port.name.clone(),
        netns: netns(port),
        near_mac: made_mac("near", &near_name(&port.name)),
        queues: port.queues,
        drop_ingress: true,
        far,
        previous,
    }
}

/// Says whether going from `old` to `new` takes a new device, not only other settings of the one there is.
pub fn needs_new_device(old: &Port, new: &Port) -> bool {
    kind(old) != kind(new)
        || old.netns != new.netns
        || old.interface_name() != new.interface_name()
        || old.queues != new.queues
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        let subnets = ["10.1.0.0/24", "fd00:1::/64"];
        Network {
            subnets: subnets.iter().map(|s| s.parse().expect("a subnet")).collect(),
            ..Network::new("n")
        }
    }

    #[test]
    fn the_far_end_has_prefixes_and_one_gateway_a_family() {
        let port = Port {
            addresses: vec!["10.1.0.9".parse().expect("an address")],
            netns: Some("c".parse().expect("a name")),
            ..Port::new("c", "n")
        };
        let far = far_end(&port, &network());
        assert_eq!(far.addresses, ["10.1.0.9/24".parse().expect("a prefix")]);
        assert_eq!(far.gateways, ["10.1.0.1".parse::<std::net::IpAddr>().expect("an address")]);
        assert_eq!((far.ifname.as_str(), far.mtu, far.mac), ("eth0", 1500, made_mac("port", "c")));
    }

    #[test]
    fn ports_of_the_same_name_on_two_hosts_have_different_macs() {
        let port = |address: &str| Port {
            addresses: vec![address.parse().expect("an address")],
            ..Port::new("web", "n")
        };
        let (a, b) = (port("10.1.0.9"), port("10.1.0.10"));
        let shared = Network { vni: Some(101), ..network() };
        assert_ne!(far_mac(&a, &shared), far_mac(&b, &shared));
        assert_eq!(far_mac(&a, &network()), far_mac(&b, &network()));
    }

    #[test]
    fn the_host_gets_no_default_route() {
        let port = Port { addresses: vec!["10.1.0.9".parse().expect("an address")], ..Port::new("h", "n") };
        assert!(far_end(&port, &network()).gateways.is_empty());
    }

    #[test]
    fn only_what_a_device_is_made_of_takes_a_new_one() {
        let old = Port::new("p", "n");
        let softer = Port { mtu: Some(1400), isolated: true, vlan: Some(5), ..old.clone() };
        assert!(!needs_new_device(&old, &softer));
        assert!(!needs_new_device(&old, &Port { kind: PortKind::Veth, ..old.clone() }));
        assert!(needs_new_device(&old, &Port { kind: PortKind::Afxdp, ..old.clone() }));
        assert!(needs_new_device(&old, &Port { netns: Some("x".parse().expect("a name")), ..old.clone() }));
    }
}
