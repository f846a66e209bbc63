//! `[[network]]`: names, subnets, gateways.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{At, Checker};
use crate::document::Network;
use crate::values::Mtu;

/// The smallest MTU of IPv4 (RFC 791, 3.2: every module forwards 68 bytes without fragmentation).
pub(super) const IPV4_MTU: u16 = 68;
/// The smallest MTU of IPv6 (RFC 8200, 5).
pub(super) const IPV6_MTU: u16 = 1280;

/// Subnets of a network; each pair of them is compared.
const SUBNETS_MAX: usize = 64;

pub(super) fn check(checker: &mut Checker<'_>) {
    let networks = &checker.document.networks;
    checker.unique("network", networks.iter().map(|network| network.name.as_str()));
    for (index, network) in networks.iter().enumerate() {
        let at = At::item("network", index);
        checker.name(&at.key("name"), &network.name);
        subnets(checker, &at.key("subnets"), network);
        gateways(checker, &at.key("gateways"), network);
        if let Mtu::Bytes(mtu) = network.mtu {
            let ipv6 = network.subnets.iter().any(|subnet| matches!(subnet, IpNet::V6(_)));
            checker.range(&at.key("mtu"), mtu, if ipv6 { IPV6_MTU } else { IPV4_MTU }..=u16::MAX);
        }
        checker.stations(&at.key("stations"), network.stations);
        checker.range(&at.key("ageing"), network.ageing, 1..=1_000_000);
        checker.storm(&at.key("storm"), network.storm);
    }
}

fn subnets(checker: &mut Checker<'_>, at: &At, network: &Network) {
    if !checker.few(at, &network.subnets, SUBNETS_MAX) {
        return;
    }
    for (index, subnet) in network.subnets.iter().enumerate() {
        let at = at.index(index);
        let longest = if subnet.addr().is_ipv4() { 30 } else { 126 };
        if subnet.trunc() != *subnet {
            let message = format!("{subnet} has host bits set");
            checker.wrong_but(&at, message, Some(subnet.trunc().to_string()));
        } else if subnet.prefix_len() > longest {
            checker.wrong(&at, format!("{subnet} has no room for a gateway and a port"));
        } else if let Some(what) = special(subnet) {
            checker.wrong(&at, format!("{subnet} {what}"));
        }
        if let Some(other) = network.subnets[..index].iter().find(|other| overlap(subnet, other)) {
            checker.wrong(&at, format!("{subnet} overlaps {other}"));
        }
    }
}

/// Says why no station can have an address of `subnet`, when that is so (RFC 6890).
pub(super) fn special(subnet: &IpNet) -> Option<&'static str> {
    let list: [(&str, &str); 6] = [
        ("0.0.0.0/8", "is 'this network'"),
        ("127.0.0.0/8", "is for loopback"),
        ("224.0.0.0/3", "is multicast or reserved"),
        ("::/8", "is reserved, or for loopback and mapped addresses"),
        ("fe80::/10", "is link-local, which stations give themselves"),
        ("ff00::/8", "is multicast"),
    ];
    let net = |text: &str| text.parse::<IpNet>().expect("a constant");
    list.into_iter().find(|(range, _)| overlap(subnet, &net(range))).map(|(_, what)| what)
}

pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Says why no station can have `address`, which is in `subnet`, when that is so.
pub(super) fn unusable(address: IpAddr, subnet: &IpNet) -> Option<String> {
    if address == subnet.network() {
        return Some(format!("{address} is the address of the subnet {subnet} itself"));
    }
    (subnet.addr().is_ipv4() && address == subnet.broadcast())
        .then(|| format!("{address} is the broadcast address of {subnet}"))
}

fn gateways(checker: &mut Checker<'_>, at: &At, network: &Network) {
    let Some(gateways) = network.gateways.as_ref().filter(|_| network.subnets.len() <= SUBNETS_MAX) else {
        return;
    };
    if !checker.few(at, gateways, SUBNETS_MAX) {
        return;
    }
    for (index, gateway) in gateways.iter().enumerate() {
        let at = at.index(index);
        let Some(subnet) = network.subnet_of(*gateway) else {
            checker.wrong_but(&at, format!("{gateway} is in no subnet of the network"), list(network));
            continue;
        };
        if let Some(why) = unusable(*gateway, &subnet) {
            checker.wrong(&at, why);
        }
        if let Some(other) = gateways[..index].iter().find(|other| subnet.contains(*other)) {
            checker.wrong(&at, format!("{subnet} has the gateway {other} already"));
        }
    }
}

/// Spells the subnets of a network, for what is allowed.
pub(super) fn list(network: &Network) -> Option<String> {
    if network.subnets.is_empty() {
        return Some("nothing, the network has no subnets".to_owned());
    }
    let subnets: Vec<String> = network.subnets.iter().map(IpNet::to_string).collect();
    Some(format!("addresses of {}", subnets.join(", ")))
}
