//! The bridge against its model, over random histories of frames, moves, time and configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use packet::build::eth;
use packet::{MacAddr, VlanId};
use pipeline::{NetworkInfo, VlanMode};
use proptest::prelude::*;
use tests::Lab;
use tests::model::{Frame, Model, Port};

const PORTS: u16 = 6;
const STATIONS: u64 = 12;
const AGEING: u64 = 300;

#[derive(Clone, Debug)]
enum Op {
    Send { from: u16, frame: Frame },
    Change { port: u16, to: Port },
    Remove { port: u16 },
    Wait { seconds: u64 },
    Sweep,
}

fn frame() -> impl Strategy<Value = Frame> {
    let tag = prop_oneof![4 => Just(None), 1 => Just(Some(0)), 2 => (10..13u16).prop_map(Some)];
    let destination = prop_oneof![6 => (0..STATIONS).prop_map(Some), 1 => Just(None)];
    let len =
        prop_oneof![8 => Just(100usize), 1 => Just(1280), 1 => Just(1281), 1 => Just(1500), 1 => Just(1501)];
    (0..STATIONS, destination, tag, len).prop_map(|(source, destination, tag, len)| Frame {
        source,
        destination,
        tag,
        len,
    })
}

fn port() -> impl Strategy<Value = Port> {
    let vlans = prop_oneof![
        3 => Just((Some(0), BTreeSet::new())),
        2 => (10..13u16).prop_map(|vlan| (Some(vlan), BTreeSet::new())),
        2 => (prop::option::of(10..13u16), prop::collection::btree_set(10..13u16, 0..3)),
    ];
    let mtu = prop_oneof![3 => Just(1500), 1 => Just(1280)];
    (0..2u16, prop::bool::weighted(0.9), prop::bool::weighted(0.2), vlans, mtu).prop_map(
        |(network, up, isolated, (untagged, mut tagged), mtu)| {
            // A trunk's native VLAN is untagged there, whatever else the trunk allows.
            tagged.retain(|vlan| Some(*vlan) != untagged);
            Port { network, up, isolated, untagged, tagged, mtu }
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        40 => (0..PORTS, frame()).prop_map(|(from, frame)| Op::Send { from, frame }),
        3 => (0..PORTS, port()).prop_map(|(port, to)| Op::Change { port, to }),
        1 => (0..PORTS).prop_map(|port| Op::Remove { port }),
        4 => (1..200u64).prop_map(|seconds| Op::Wait { seconds }),
        2 => Just(Op::Sweep),
    ]
}

fn mac(station: u64) -> MacAddr {
    MacAddr::local(station)
}

fn bytes(frame: &Frame, tag: Option<u16>) -> Vec<u8> {
    let mut ethernet = eth(mac(frame.source), frame.destination.map_or(MacAddr::BROADCAST, mac));
    if let Some(tag) = tag {
        ethernet = ethernet.vlan(VlanId(tag));
    }
    ethernet.raw(0x88b5, &vec![0x5a; frame.len]).bytes()
}

fn vlan_mode(port: &Port) -> VlanMode {
    match (port.untagged, port.tagged.is_empty()) {
        (Some(vlan), true) => VlanMode::Access(VlanId(vlan)),
        (native, _) => VlanMode::Trunk {
            allowed: Box::new(port.tagged.iter().map(|vlan| VlanId(*vlan)).collect()),
            native: native.map(VlanId),
        },
    }
}

/// The switch and its model, side by side.
struct Pair {
    lab: Lab,
    model: Model,
    seconds: u64,
}

impl Pair {
    fn new() -> Self {
        let mut lab = Lab::empty();
        for network in ["0", "1"] {
            lab.network(network, NetworkInfo { ageing: Duration::from_secs(AGEING), ..NetworkInfo::new() });
        }
        let mut pair = Self { lab, model: Model::default(), seconds: 1 };
        for port in 0..PORTS {
            let to = Port {
                network: port % 2,
                up: true,
                isolated: false,
                untagged: Some(0),
                tagged: BTreeSet::new(),
                mtu: 1500,
            };
            pair.change(port, to);
        }
        pair
    }

    fn change(&mut self, port: u16, to: Port) {
        // As the manager does it: a port that leaves its network takes its stations along.
        if self.model.ports.get(&port).is_some_and(|old| old.network != to.network) {
            self.flush(port);
        }
        self.lab.port(&port.to_string(), &to.network.to_string(), |info| {
            info.up = to.up;
            info.isolated = to.isolated;
            info.vlan = vlan_mode(&to);
            info.mtu = u32::try_from(to.mtu).expect("small");
        });
        self.model.ports.insert(port, to);
    }

    fn flush(&mut self, port: u16) {
        let id = self.lab.id(&port.to_string());
        self.lab.tables.fdb.remove(|station| station.port == id);
        self.model.flush(port);
    }

    fn apply(&mut self, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Send { from, frame } => {
                // A second a frame: no station moves more often than it may.
                self.wait(1);
                let expected = self.model.send(from, frame, self.seconds);
                let expected: BTreeMap<u16, Vec<u8>> = expected
                    .into_iter()
                    .map(|(to, tag)| {
                        // A tag that only carries a priority stays one where the VLAN is untagged.
                        (to, bytes(&frame, tag))
                    })
                    .collect();
                self.lab.send(&from.to_string(), bytes(&frame, frame.tag));
                let mut received = BTreeMap::new();
                for port in 0..PORTS {
                    while let Some(bytes) = self.lab.take(&port.to_string()) {
                        prop_assert!(received.insert(port, bytes).is_none(), "one copy a port");
                    }
                }
                prop_assert_eq!(received.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
                prop_assert_eq!(received, expected);
            }
            Op::Change { port, to } => self.change(port, to),
            Op::Remove { port } => {
                self.lab.remove_port(&port.to_string());
                self.flush(port);
                self.model.ports.remove(&port);
            }
            Op::Wait { seconds } => self.wait(seconds),
            Op::Sweep => self.sweep(),
        }
        Ok(())
    }

    fn wait(&mut self, seconds: u64) {
        self.lab.wait(Duration::from_secs(seconds));
        self.seconds += seconds;
    }

    /// The table may know a station for an eighth of the ageing time less than the model: within that margin
    /// neither is wrong, so the sweep lets go only of what is clearly too old, and so does the model.
    fn sweep(&mut self) {
        let now = self.lab.now();
        let stale: BTreeSet<_> = self
            .lab
            .tables
            .fdb
            .list()
            .into_iter()
            .filter(|station| now.since(station.seen) > Duration::from_secs(AGEING))
            .map(|station| (station.key.network.0, station.key.vlan.0, station.key.mac))
            .collect();
        self.lab.tables.fdb.sweep(now, usize::MAX, |_| Some(Duration::from_secs(AGEING)));
        self.model.forget(self.seconds, AGEING, |network, vlan, station| {
            stale.contains(&(network, vlan, mac(station)))
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_switch_does_what_its_model_does(ops in prop::collection::vec(op(), 1..300)) {
        let mut pair = Pair::new();
        for op in ops {
            pair.apply(op)?;
        }
    }
}
