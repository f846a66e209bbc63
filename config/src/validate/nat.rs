//! `[[floating_ip]]`, `[[publish]]`, `[[egress]]`: outside addresses, and whose they are.
//!
//! A port that is not there is not wrong: the object is pending. What the port's addresses decide is checked when
//! it is there.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::network::special;
use super::{At, Checker};
use crate::document::{Document, Object, Port};
use crate::nat::{Listen, Publish};
use crate::services::L4Protocol;

pub(super) fn check(checker: &mut Checker<'_>) {
    let document = checker.document;
    let ports: HashMap<&str, &Port> = document.ports.iter().map(|port| (port.name.as_str(), port)).collect();
    floating_ips(checker, document, &ports);
    egresses(checker, document, &ports);
    checker.unique_objects(&document.publishes, "name", "a unique name");
    for (index, publish) in document.publishes.iter().enumerate() {
        published(checker, &At::item("publish", index), publish, &ports);
    }
    let floating = document.floating_ips.iter().map(|floating| floating.address).collect();
    clashes(checker, &document.publishes, &floating);
}

/// Says why nobody outside can have `address`, when that is so.
fn not_outside(document: &Document, address: IpAddr) -> Option<String> {
    if let Some(what) = special(&IpNet::from(address)) {
        return Some(format!("{address} {what}"));
    }
    let inside = |network: &&crate::document::Network| network.subnet_of(address).is_some();
    let network = document.networks.iter().find(inside)?;
    Some(format!("{address} is inside: a subnet of network '{}' holds it", network.name))
}

fn floating_ips(checker: &mut Checker<'_>, document: &Document, ports: &HashMap<&str, &Port>) {
    checker.unique_objects(&document.floating_ips, "address", "each address once");
    for (index, floating) in document.floating_ips.iter().enumerate() {
        let at = At::item("floating_ip", index);
        let address = floating.address;
        if let Some(why) = not_outside(document, address) {
            checker.wrong(&at.key("address"), why);
        } else if document.uplink.addresses.iter().any(|net| net.addr() == address) {
            checker.wrong(&at.key("address"), format!("{address} is an address of the [uplink] itself"));
        }
        checker.name(&at.key("port"), &floating.port);
        if let Some(to) = floating.to.filter(|to| to.is_ipv4() != address.is_ipv4()) {
            checker.wrong(&at.key("to"), format!("{to} is not of the family of {address}"));
            continue;
        }
        let Some(port) = ports.get(floating.port.as_str()) else { continue };
        match floating.to {
            Some(to) if !port.addresses.contains(&to) => {
                checker.wrong_but(
                    &at.key("to"),
                    format!("{to} is no address of port '{}'", port.name),
                    addresses(port),
                );
            }
            None if floating.inside(port).is_none() => {
                let message = format!("port '{}' has no address of the family of {address}", port.name);
                checker.wrong_but(&at.key("port"), message, addresses(port));
            }
            _ => {}
        }
    }
}

fn egresses(checker: &mut Checker<'_>, document: &Document, ports: &HashMap<&str, &Port>) {
    checker.unique_objects(&document.egresses, "port", "one egress a port, with an address of each family");
    let floating: HashMap<IpAddr, &str> =
        document.floating_ips.iter().map(|f| (f.address, f.port.as_str())).collect();
    for (index, egress) in document.egresses.iter().enumerate() {
        let at = At::item("egress", index);
        checker.name(&at.key("port"), &egress.port);
        if egress.address.is_empty() {
            checker.wrong(&at.key("address"), "there is no address");
        }
        for (index, address) in egress.address.iter().enumerate() {
            let at =
                if egress.address.len() == 1 { at.key("address") } else { at.key("address").index(index) };
            if egress.address[..index].iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                checker.wrong(&at, format!("{address} is the second of its family"));
            } else if let Some(why) = not_outside(document, *address) {
                checker.wrong(&at, why);
            } else if let Some(owner) = floating.get(address).filter(|owner| **owner != egress.port) {
                let allowed = "an address that is no other port's floating IP".to_owned();
                checker.wrong_but(
                    &at,
                    format!("{address} is a floating IP of port '{owner}'"),
                    Some(allowed),
                );
            } else if let Some(port) = ports.get(egress.port.as_str())
                && !port.addresses.is_empty()
                && port.addresses.iter().all(|own| own.is_ipv4() != address.is_ipv4())
            {
                let message = format!("port '{}' has no address of the family of {address}", port.name);
                checker.wrong_but(&at, message, addresses(port));
            }
        }
        if egress.ports.first == 0 {
            checker.wrong(&at.key("ports"), format!("{} does not fit", egress.ports));
        }
    }
}

fn published(checker: &mut Checker<'_>, at: &At, publish: &Publish, ports: &HashMap<&str, &Port>) {
    if let Some(name) = &publish.name {
        checker.name(&at.key("name"), name);
    }
    let (listen, to) = (publish.listen, &publish.to);
    if listen.address.is_some_and(|address| address.is_multicast()) {
        checker.wrong(&at.key("listen"), format!("'{listen}' is not an address of one station"));
    }
    if listen.ports.count() != to.ports.count() {
        let message =
            format!("'{to}' has {} L4 ports, and '{listen}' has {}", to.ports.count(), listen.ports.count());
        checker.wrong_but(&at.key("to"), message, Some(format!("{} L4 ports", listen.ports.count())));
    }
    let family = listen.address.map(|address| address.is_ipv4());
    if let Some((family, inside)) = family.zip(to.address)
        && family != inside.is_ipv4()
    {
        checker.wrong_but(
            &at.key("to"),
            format!("{inside} is not of the family of '{listen}'"),
            Some("both of one family".to_owned()),
        );
    } else if let Some(port) = ports.get(to.port.as_str()) {
        match to.address {
            Some(inside) if !port.addresses.contains(&inside) => {
                let message = format!("{inside} is no address of port '{}'", port.name);
                checker.wrong_but(&at.key("to"), message, addresses(port));
            }
            None if [true, false]
                .into_iter()
                .filter(|v4| family.is_none_or(|family| family == *v4))
                .all(|v4| publish.inside(port, v4).is_none()) =>
            {
                let message = format!("port '{}' has no address that '{listen}' could lead to", port.name);
                checker.wrong_but(&at.key("to"), message, addresses(port));
            }
            _ => {}
        }
    }
    checker.prefixes(&at.key("allow_from"), &publish.allow_from);
}

/// Reports published ports that one packet could be for: the later one in the file, naming the other.
fn clashes(checker: &mut Checker<'_>, publishes: &[Publish], floating: &HashSet<IpAddr>) {
    // All addresses of the host are not those that float.
    let apart = |a: Listen, b: Listen| {
        let floats = |listen: Listen| listen.address.is_some_and(|address| floating.contains(&address));
        floats(a) != floats(b)
    };
    // By first L4 port: only neighbours in this order can overlap, but for the wide ranges that go on.
    let mut order: Vec<(L4Protocol, Listen, usize)> = publishes
        .iter()
        .enumerate()
        .filter(|(_, publish)| !publish.listen.is_random())
        .map(|(index, publish)| (publish.listen.protocol, publish.listen, index))
        .collect();
    order.sort_by_key(|(protocol, listen, index)| (*protocol, listen.ports, *index));
    let mut open: Vec<(Listen, usize)> = Vec::new();
    for (_, listen, index) in order {
        open.retain(|(other, _)| other.protocol == listen.protocol && other.ports.last >= listen.ports.first);
        if let Some((_, other)) =
            open.iter().find(|(other, _)| other.overlaps(listen) && !apart(*other, listen))
        {
            let (later, earlier) = if index > *other { (index, *other) } else { (*other, index) };
            let earlier = &publishes[earlier];
            // Neutral: in a tree that did not come from a file, the later one need not be the newer.
            let message = format!(
                "'{}' overlaps '{}' of publish '{}', which leads to '{}'",
                publishes[later].listen,
                earlier.listen,
                earlier.name(),
                earlier.to
            );
            let allowed = "another address, L4 port or protocol; 0 is an L4 port that is free".to_owned();
            checker.wrong_but(&At::item("publish", later).key("listen"), message, Some(allowed));
        }
        open.push((listen, index));
    }
}

/// Spells the addresses of a port, for what is allowed.
fn addresses(port: &Port) -> Option<String> {
    if port.addresses.is_empty() {
        return Some(format!("a port with addresses, and '{}' has none", port.name));
    }
    Some(port.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}
