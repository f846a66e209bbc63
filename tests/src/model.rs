//! A model of the bridge: a dull twin that decides one frame at a time from plain maps.
//!
//! It knows learning, ageing, station moves, isolation, VLANs, limits of MTU, and nothing of caches, versions or
//! generations. `tests/model.rs` compares it with the pipeline over random histories.

use std::collections::{BTreeMap, BTreeSet};

/// A port of the model.
#[derive(Clone, Debug)]
pub struct Port {
    /// The network it is in.
    pub network: u16,
    /// Frames may enter and leave.
    pub up: bool,
    /// Isolated from other isolated ports.
    pub isolated: bool,
    /// The VLAN of untagged frames; `None` on a trunk without a native one.
    pub untagged: Option<u16>,
    /// VLANs carried tagged.
    pub tagged: BTreeSet<u16>,
    /// Longest payload.
    pub mtu: usize,
}

/// A frame of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frame {
    /// Number of the source station.
    pub source: u64,
    /// Number of the destination station; `None`: broadcast.
    pub destination: Option<u64>,
    /// The tag it has.
    pub tag: Option<u16>,
    /// Bytes behind the Ethernet header and tag.
    pub len: usize,
}

/// The dull switch.
#[derive(Debug, Default)]
pub struct Model {
    /// Its ports.
    pub ports: BTreeMap<u16, Port>,
    /// (network, VLAN, station) to (port, last seen in seconds).
    stations: BTreeMap<(u16, u16, u64), (u16, u64)>,
}

impl Model {
    /// Decides a frame: returns which ports it leaves by, and with which tag.
    pub fn send(&mut self, from: u16, frame: Frame, now: u64) -> BTreeSet<(u16, Option<u16>)> {
        let Some(port) = self.ports.get(&from).filter(|port| port.up).cloned() else {
            return BTreeSet::new();
        };
        let vlan = match frame.tag.filter(|tag| *tag != 0) {
            None => port.untagged,
            Some(tag) => port.tagged.contains(&tag).then_some(tag),
        };
        let Some(vlan) = vlan else { return BTreeSet::new() };
        let fits = |to: &Port| to.up && frame.len <= to.mtu && to.carries(vlan);
        let known = frame.destination.and_then(|mac| self.stations.get(&(port.network, vlan, mac)).copied());
        let targets: Vec<u16> = match known {
            Some((to, _)) => vec![to],
            None => {
                self.ports.iter().filter(|(_, to)| to.network == port.network).map(|(id, _)| *id).collect()
            }
        };
        let result: BTreeSet<_> = targets
            .into_iter()
            .filter(|id| *id != from)
            .filter_map(|id| self.ports.get(&id).map(|to| (id, to)))
            .filter(|(_, to)| fits(to) && !(port.isolated && to.isolated))
            .map(|(id, to)| (id, if to.untagged == Some(vlan) { None } else { Some(vlan) }))
            .collect();
        // A frame that is dropped teaches nothing.
        if !result.is_empty() || known.is_none() {
            self.stations.insert((port.network, vlan, frame.source), (from, now));
        }
        result
    }

    /// Forgets the stations that `stale` names (by network, VLAN and number), and expects of each that it was silent for
    /// longer than seven eighths of `limit` seconds, and of all others that they were not longer than `limit`.
    pub fn forget(&mut self, now: u64, limit: u64, stale: impl Fn(u16, u16, u64) -> bool) {
        self.stations.retain(|(network, vlan, station), (_, seen)| {
            let silent = now - *seen;
            let gone = stale(*network, *vlan, *station);
            assert!(!gone || silent > limit * 7 / 8, "station {station} went after {silent} s");
            assert!(gone || silent <= limit, "station {station} is there after {silent} s");
            !gone
        });
    }

    /// Forgets the stations behind a port.
    pub fn flush(&mut self, port: u16) {
        self.stations.retain(|_, (at, _)| *at != port);
    }
}

impl Port {
    fn carries(&self, vlan: u16) -> bool {
        self.untagged == Some(vlan) || self.tagged.contains(&vlan)
    }
}
