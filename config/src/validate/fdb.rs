//! `[[fdb]]`: stations that are given.

use std::collections::{HashMap, HashSet};

use packet::MacAddr;

use super::{At, Checker};
use crate::document::Port;

pub(super) fn check(checker: &mut Checker<'_>) {
    let document = checker.document;
    let ports: HashMap<&str, &Port> = document.ports.iter().map(|port| (port.name.as_str(), port)).collect();
    let owners: HashMap<(&str, MacAddr), &str> = document
        .ports
        .iter()
        .filter_map(|port| Some(((port.network.as_str(), port.mac?), port.name.as_str())))
        .collect();
    let limit = document.limits.stations;
    if let Some(over) = usize::try_from(limit).ok().filter(|limit| document.fdb.len() > *limit) {
        let message = format!("there are {} [[fdb]], and [limits] stations is {limit}", document.fdb.len());
        checker.wrong_but(&At::item("fdb", over), message, Some(format!("at most {limit}")));
        return;
    }
    let mut seen = HashSet::new();
    for (index, entry) in document.fdb.iter().enumerate() {
        let at = At::item("fdb", index);
        if !entry.mac.is_station() {
            checker.wrong(&at.key("mac"), format!("{} is no address of one station", entry.mac));
        }
        if document.network(&entry.network).is_none() {
            let known = document.networks.iter().map(|network| network.name.as_str());
            checker.dangling(&at.key("network"), "network", &entry.network, known);
            continue;
        }
        checker.vlan(&at.key("vlan"), entry.vlan);
        let vlan = match ports.get(entry.port.as_str()) {
            None => {
                let inside = document.ports.iter().filter(|port| port.network == entry.network);
                checker.dangling(&at.key("port"), "port", &entry.port, inside.map(|port| port.name.as_str()));
                continue;
            }
            Some(port) if port.network != entry.network => {
                let message = format!("port '{}' is in network '{}'", port.name, port.network);
                checker.wrong(&at.key("port"), message);
                continue;
            }
            Some(port) => {
                if let Some(vlan) =
                    entry.vlan.filter(|vlan| (1..=4094).contains(vlan) && !carries(port, *vlan))
                {
                    checker
                        .wrong(&at.key("vlan"), format!("port '{}' does not carry VLAN {vlan}", port.name));
                }
                if entry.vlan.is_none() && !port.trunk.is_empty() && port.native.is_none() {
                    let message = format!("port '{}' is a trunk, so the entry needs a vlan", port.name);
                    checker.wrong(&at.key("vlan"), message);
                }
                entry.vlan.or(port.vlan).or(port.native)
            }
        };
        if !seen.insert((&entry.network, vlan, entry.mac)) {
            let message = format!("{} is given twice", entry.mac);
            checker.wrong_but(
                &at.key("mac"),
                message,
                Some("one entry a network, VLAN and station".to_owned()),
            );
        }
        let owner = owners.get(&(entry.network.as_str(), entry.mac)).filter(|owner| **owner != entry.port);
        if let Some(owner) = owner {
            let message = format!("{} is the address of port '{}'", entry.mac, owner);
            checker.wrong_but(&at.key("mac"), message, Some("a station that is no port's".to_owned()));
        }
    }
}

/// Says whether frames of `vlan` pass the port.
fn carries(port: &Port, vlan: u16) -> bool {
    port.vlan == Some(vlan)
        || port.native == Some(vlan)
        || port.trunk.iter().any(|range| range.contains(vlan))
}
