//! `[[port]]`: names, the far end, addresses, VLANs.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use packet::MacAddr;

use super::network::{IPV4_MTU, IPV6_MTU, list, overlap, unusable};
use super::{At, Checker};
use crate::document::{Network, Port, PortKind};
use crate::values::Netns;

/// Bytes of the longest name of an interface (`IFNAMSIZ` without the final zero, linux/if.h).
const IFNAME_MAX: usize = 15;
/// Addresses of a port.
const ADDRESSES_MAX: usize = 64;
/// Items of a trunk's list; each pair of them is compared.
const RANGES_MAX: usize = 256;
/// The largest MTU that is tried over AF_XDP: three chunks of the area, with room to spare.
const AFXDP_MTU: u16 = 9216;

pub(super) fn check(checker: &mut Checker<'_>) {
    let ports = &checker.document.ports;
    checker.unique("port", ports.iter().map(|port| port.name.as_str()));
    let mut taken = Taken::default();
    for (index, port) in ports.iter().enumerate() {
        let at = At::item("port", index);
        checker.name(&at.key("name"), &port.name);
        match checker.document.network(&port.network) {
            Some(network) => {
                addresses(checker, &at, port, network, &mut taken);
            }
            None => {
                let known = checker.document.networks.iter().map(|network| network.name.as_str());
                checker.dangling(&at.key("network"), "network", &port.network, known);
            }
        }
        far_end(checker, &at, port, &mut taken);
        vlans(checker, &at, port);
        checker.stations(&at.key("stations"), port.stations);
        checker.storm(&at.key("storm"), port.storm);
        checker.connections(&at.key("quota"), port.quota);
        checker.connections(&at.key("half_open"), port.half_open);
        labels(checker, &at.key("labels"), port);
    }
    crossed(checker);
}

/// What earlier ports have, and which port has it.
#[derive(Default)]
struct Taken<'d> {
    addresses: HashMap<(&'d str, IpAddr), &'d str>,
    macs: HashMap<(&'d str, MacAddr), &'d str>,
    interfaces: HashMap<(Option<&'d Netns>, String), &'d str>,
}

fn addresses<'d>(
    checker: &mut Checker<'d>,
    at: &At,
    port: &'d Port,
    network: &'d Network,
    taken: &mut Taken<'d>,
) {
    let gateways = network.gateway_addresses();
    checker.few(&at.key("addresses"), &port.addresses, ADDRESSES_MAX);
    for (index, address) in port.addresses.iter().take(ADDRESSES_MAX).enumerate() {
        let at = at.key("addresses").index(index);
        let Some(subnet) = network.subnet_of(*address) else {
            let message = format!("{address} is in no subnet of network '{}'", network.name);
            checker.wrong_but(&at, message, list(network));
            continue;
        };
        if let Some(why) = unusable(*address, &subnet) {
            checker.wrong(&at, why);
        } else if gateways.contains(address) {
            checker.wrong(&at, format!("{address} is the gateway of network '{}'", network.name));
        }
        if let Some(other) = taken.addresses.insert((&network.name, *address), &port.name) {
            checker.wrong(&at, format!("{address} is taken by port '{other}'"));
        }
    }
    if let Some(mac) = port.mac {
        let at = at.key("mac");
        if !mac.is_station() {
            checker.wrong(&at, format!("{mac} is no address of one station"));
        } else if let Some(other) = taken.macs.insert((&network.name, mac), &port.name) {
            checker.wrong(&at, format!("{mac} is taken by port '{other}' in network '{}'", network.name));
        }
    }
}

fn far_end<'d>(checker: &mut Checker<'d>, at: &At, port: &'d Port, taken: &mut Taken<'d>) {
    let name = port.interface_name();
    let at_name = at.key(if port.ifname.is_some() { "ifname" } else { "name" });
    if port.ifname.is_some() && !is_ifname(&name) {
        checker.wrong(&at_name, format!("'{}' is no name of an interface", name));
    } else if port.netns.is_none() && !name.starts_with("vsw") {
        // Files that keep udev and NetworkManager off the switch's devices go by this prefix.
        let message =
            format!("'{name}' would be in the host's namespace, where the switch's devices are named vsw*");
        checker.wrong_but(&at_name, message, Some("a name that begins with vsw, or a netns".to_owned()));
    } else if let Some(other) = taken.interfaces.insert((port.netns.as_ref(), name.clone()), &port.name) {
        let place = port.netns.as_ref().map_or_else(|| "the host".to_owned(), |n| format!("namespace '{n}'"));
        let message = format!("interface '{name}' of {place} is taken by port '{other}'");
        checker.wrong_but(&at_name, message, Some("another ifname".to_owned()));
    }
    if let Some(netns @ (Netns::Name(_) | Netns::Path(_))) = &port.netns
        && netns.to_string().parse().as_ref() != Ok(netns)
    {
        checker.wrong(&at.key("netns"), format!("'{netns}' is no namespace"));
    }
    if let Some(mtu) = port.mtu {
        let least = if port.addresses.iter().any(IpAddr::is_ipv6) { IPV6_MTU } else { IPV4_MTU };
        let most = if port.kind == PortKind::Afxdp { AFXDP_MTU } else { u16::MAX };
        checker.range(&at.key("mtu"), mtu, least..=most);
    } else if let Some(network) = checker.document.network(&port.network)
        && port.kind == PortKind::Afxdp
        && network.mtu.bytes() > AFXDP_MTU
    {
        let message =
            format!("network '{}' has an MTU of {}, too large for afxdp", network.name, network.mtu);
        checker.wrong_but(
            &at.key("kind"),
            message,
            Some(format!("veth or tap, or an mtu up to {AFXDP_MTU}")),
        );
    }
    let most = if matches!(port.kind, PortKind::Tap | PortKind::Afxdp) { 16 } else { 1 };
    if port.queues == 0 || port.queues > most {
        checker.wrong(&at.key("queues"), format!("{} does not fit kind \"{}\"", port.queues, port.kind));
    }
}

pub(super) fn is_ifname(name: &str) -> bool {
    (1..=IFNAME_MAX).contains(&name.len())
        && !matches!(name, "." | ".." | "all" | "default" | "lo")
        && !name.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%'))
}

fn vlans(checker: &mut Checker<'_>, at: &At, port: &Port) {
    checker.vlan(&at.key("vlan"), port.vlan);
    checker.vlan(&at.key("native"), port.native);
    if port.vlan.is_some() && !port.trunk.is_empty() {
        checker.wrong_but(&at.key("trunk"), "is given together with vlan", Some("one of the two".to_owned()));
    }
    if port.native.is_some() && port.trunk.is_empty() {
        let allowed = "native together with trunk, or vlan alone".to_owned();
        checker.wrong_but(&at.key("native"), "is given without trunk", Some(allowed));
    }
    if !checker.few(&at.key("trunk"), &port.trunk, RANGES_MAX) {
        return;
    }
    for (index, range) in port.trunk.iter().enumerate() {
        let at = at.key("trunk").index(index);
        if !(1 <= range.first && range.first <= range.last && range.last <= 4094) {
            checker.wrong(&at, format!("{range} is no range of VLANs"));
        } else if let Some(other) =
            port.trunk[..index].iter().find(|other| other.first <= range.last && range.first <= other.last)
        {
            checker.wrong(&at, format!("{range} overlaps {other}"));
        }
    }
}

fn labels(checker: &mut Checker<'_>, at: &At, port: &Port) {
    if port.labels.len() > 32 {
        checker.wrong(at, format!("{} labels are too many", port.labels.len()));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    for (key, value) in &port.labels {
        if !(1..=63).contains(&key.len()) || !key.chars().all(good) {
            checker.wrong(&at.key(key), format!("'{}' is no key of a label", key));
        } else if value.len() > 255 || value.chars().any(char::is_control) {
            checker.wrong(&at.key(key), "the value is too long or has control characters");
        }
    }
}

/// Reports a namespace that joins two networks whose subnets overlap: it could not tell their stations apart.
fn crossed(checker: &mut Checker<'_>) {
    let mut joined: HashMap<Option<&Netns>, Vec<(usize, &str, IpNet)>> = HashMap::new();
    for (index, port) in checker.document.ports.iter().enumerate() {
        let Some(network) = checker.document.network(&port.network) else { continue };
        for address in &port.addresses {
            let Some(subnet) = network.subnet_of(*address) else { continue };
            let others = joined.entry(port.netns.as_ref()).or_default();
            let clash = others.iter().find(|(_, other, net)| *other != network.name && overlap(net, &subnet));
            if let Some((first, other, net)) = clash {
                let message = format!(
                    "{subnet} of network '{}' overlaps {net} of network '{other}', which port '{}' joins in the same namespace",
                    network.name, checker.document.ports[*first].name
                );
                let allowed = "networks whose subnets do not overlap".to_owned();
                checker.wrong_but(&At::item("port", index).key("network"), message, Some(allowed));
                break;
            }
            if !others.iter().any(|(_, other, net)| *other == network.name && *net == subnet) {
                others.push((index, &network.name, subnet));
            }
        }
    }
}
