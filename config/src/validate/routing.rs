//! `[uplink]` and `[[route]]`: devices, addresses, next hops.

use std::net::IpAddr;

use ipnet::IpNet;

use super::network::special;
use super::port::is_ifname;
use super::{At, Checker};
use crate::document::Network;
use crate::routing::{Route, RouteKind, RouteTo, UplinkDevice};

/// Devices of the uplink.
const DEVICES_MAX: usize = 8;
/// Addresses of the uplink; each pair of them is compared.
const ADDRESSES_MAX: usize = 16;
/// Next hops of a route; each pair of them is compared.
const HOPS_MAX: usize = 64;
/// L4 ports without which masquerading makes no sense.
const LEAST_PORTS: u32 = 64;

pub(super) fn check(checker: &mut Checker<'_>) {
    uplink(checker);
    let document = checker.document;
    checker.unique_objects(&document.routes, "to", "one route a network and destination");
    for (index, route) in document.routes.iter().enumerate() {
        let at = At::item("route", index);
        if let RouteTo::Prefix(net) = route.to {
            checker.host_bits(&at.key("to"), &net);
        }
        match document.network(&route.network) {
            Some(network) => hops(checker, &at.key("via"), route, network),
            None => {
                let known = document.networks.iter().map(|network| network.name.as_str());
                checker.dangling(&at.key("network"), "network", &route.network, known);
            }
        }
    }
}

fn uplink(checker: &mut Checker<'_>) {
    let uplink = &checker.document.uplink;
    let at = |key| At::of("uplink", key);
    if let UplinkDevice::Names(names) = &uplink.device {
        let device = at("device");
        if names.is_empty() {
            checker.wrong_but(&device, "an empty list names no device", Some("\"none\" for none".to_owned()));
        }
        checker.few(&device, names, DEVICES_MAX);
        for (index, name) in names.iter().take(DEVICES_MAX).enumerate() {
            // One that stands alone is not in a list.
            let at = if names.len() == 1 { device.clone() } else { device.index(index) };
            if !is_ifname(name) || name.starts_with("vsw") {
                checker.wrong(&at, format!("'{name}' is no name of a device outside"));
            } else if names.len() > 1 && matches!(name.as_str(), "auto" | "none") {
                checker.wrong(&at, format!("\"{name}\" stands alone"));
            } else if names[..index].contains(name) {
                checker.wrong(&at, format!("'{name}' is given twice"));
            }
        }
    } else if uplink.dedicated {
        let allowed = "false, or the name of a device in `device`".to_owned();
        checker.wrong_but(&at("dedicated"), "no device is named", Some(allowed));
    }
    for (key, is_given) in
        [("addresses", !uplink.addresses.is_empty()), ("gateway", !uplink.gateway.is_empty())]
    {
        if is_given && !uplink.dedicated {
            let allowed = "none: a shared device has the host's; or dedicated = true".to_owned();
            checker.wrong_but(&at(key), "the device is shared with the host", Some(allowed));
        } else if is_given && uplink.device.names().len() > 1 {
            let allowed = "none: each device has its own; or one device".to_owned();
            checker.wrong_but(&at(key), "several devices are named", Some(allowed));
        }
    }
    checker.few(&at("addresses"), &uplink.addresses, ADDRESSES_MAX);
    for (index, net) in uplink.addresses.iter().take(ADDRESSES_MAX).enumerate() {
        let at = at("addresses").index(index);
        if let Some(what) = special(&IpNet::from(net.addr())) {
            checker.wrong(&at, format!("{} {what}", net.addr()));
        } else if uplink.addresses[..index].iter().any(|other| other.addr() == net.addr()) {
            checker.wrong(&at, format!("{} is given twice", net.addr()));
        }
    }
    let count = uplink.gateway.len();
    for (index, gateway) in uplink.gateway.iter().enumerate() {
        let at = if count == 1 { at("gateway") } else { at("gateway").index(index) };
        let own = uplink.addresses.iter().filter(|net| net.addr().is_ipv4() == gateway.is_ipv4());
        if uplink.gateway[..index].iter().any(|other| other.is_ipv4() == gateway.is_ipv4()) {
            checker.wrong(&at, format!("{gateway} is the second of its family"));
        } else if own.clone().any(|net| net.addr() == *gateway) {
            checker.wrong(&at, format!("{gateway} is the switch's own address"));
        } else if !is_link_local(*gateway)
            && own.clone().count() > 0
            && !own.clone().any(|n| n.contains(gateway))
        {
            checker.wrong(&at, format!("{gateway} is in no subnet of the uplink's addresses"));
        }
    }
    if uplink.ports.first < 1024 || uplink.ports.count() < LEAST_PORTS {
        checker.wrong(&at("ports"), format!("{} does not fit", uplink.ports));
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn hops(checker: &mut Checker<'_>, at: &At, route: &Route, network: &Network) {
    if route.kind != RouteKind::Unicast {
        if !route.via.is_empty() {
            let message = format!("a route of kind \"{}\" has no next hops", route.kind);
            checker.wrong_but(at, message, Some("via, or such a kind".to_owned()));
        }
        return;
    }
    if route.via.is_empty() {
        checker.wrong_but(at, "there is no next hop", Some("via, or another kind".to_owned()));
    }
    if !checker.few(at, &route.via, HOPS_MAX) {
        return;
    }
    let uplink = &checker.document.uplink;
    let gateways = network.gateway_addresses();
    for (index, hop) in route.via.iter().enumerate() {
        let at = if route.via.len() == 1 { at.clone() } else { at.index(index) };
        if let RouteTo::Prefix(net) = route.to
            && net.addr().is_ipv4() != hop.is_ipv4()
        {
            checker.wrong(&at, format!("{hop} is not of the family of {net}"));
        } else if route.via[..index].contains(hop) {
            checker.wrong(&at, format!("{hop} is given twice"));
        } else if gateways.contains(hop) {
            checker.wrong(&at, format!("{hop} is the switch's own address in network '{}'", network.name));
        } else if network.subnet_of(*hop).is_none() {
            // Outside then, where the devices' own addresses are for the daemon to know.
            let known = !uplink.addresses.is_empty();
            let outside = uplink.device != UplinkDevice::None
                && (!known || uplink.addresses.iter().any(|net| net.contains(hop)));
            if network.internal || !outside {
                let message = format!("{hop} is in no subnet of network '{}' and not outside", network.name);
                checker.wrong(&at, message);
            }
        }
    }
}
