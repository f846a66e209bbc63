//! The FDB against a dull twin, and its limits.

use std::collections::BTreeMap;

use proptest::prelude::*;

use packet::{MacAddr, VlanId};

use super::*;

const NO_LIMIT: LearnLimits = LearnLimits { port: u32::MAX, network: u32::MAX };

fn key(network: u16, n: u64) -> StationKey {
    StationKey { network: NetworkId(network), vlan: VlanId(0), mac: MacAddr::local(n) }
}

fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

fn fdb(stations: usize) -> Fdb {
    Fdb::new(stations, 4, 8, [0x1234_5678_9abc_def1, 0x0fed_cba9_8765_4321])
}

#[test]
fn a_station_that_comes_by_another_endpoint_has_moved() {
    let fdb = fdb(64);
    let [a, b] = [1, 2].map(|n| At { port: PortId(9), vtep: VtepId::new(n) });
    let Learned::New(before) = fdb.learn(key(0, 7), a, NO_LIMIT, at(1)) else { panic!("new") };
    let endpoint = |station: StationRef| fdb.vteps()[station.slot as usize].load(Ordering::Acquire);
    assert_eq!((endpoint(before), fdb.find(key(0, 7)).and_then(|found| found.vtep)), (1, a.vtep));
    assert_eq!(fdb.learn(key(0, 7), a, NO_LIMIT, at(2)), Learned::Known(before));
    // The port has as many as it may have, and none more by this.
    let limits = LearnLimits { port: 1, ..NO_LIMIT };
    let moved = fdb.learn(key(0, 7), b, limits, at(3));
    let Learned::Moved { station, from } = moved else { panic!("{moved:?}") };
    assert_eq!((from, endpoint(station), station.version), (a, 2, before.version + 1));
    let behind = |at: At| at.vtep.map(|vtep| fdb.learned_behind(vtep));
    assert_eq!((behind(a), behind(b), fdb.learned_by(PortId(9))), (Some(0), Some(1), 1));
    assert!(fdb.fix(key(0, 7), b, at(4)));
    assert_eq!(fdb.learn(key(0, 7), a, NO_LIMIT, at(5)), Learned::Held(b), "another endpoint owns it");
    assert_eq!(fdb.remove(|station| station.vtep == b.vtep), 1);
    assert_eq!((behind(b), endpoint(station)), (Some(0), 0));
}

#[test]
fn a_station_is_found_where_it_was_learned() {
    let fdb = fdb(100);
    assert!(matches!(fdb.learn(key(1, 7), PortId(3), NO_LIMIT, at(1)), Learned::New(_)));
    assert_eq!(fdb.find(key(1, 7)).map(|found| found.port), Some(PortId(3)));
    assert_eq!(fdb.find(key(2, 7)), None, "networks do not share stations");
}

#[test]
fn a_move_outdates_what_was_decided() {
    let fdb = fdb(100);
    let Learned::New(before) = fdb.learn(key(0, 7), PortId(3), NO_LIMIT, at(1)) else { panic!("new") };
    let moved = fdb.learn(key(0, 7), PortId(4), NO_LIMIT, at(2));
    let Learned::Moved { station, from: At { port: PortId(3), vtep: None } } = moved else {
        panic!("{moved:?}")
    };
    assert_eq!(station.slot, before.slot);
    assert_ne!(station.version, before.version);
}

#[test]
fn a_station_that_moves_too_often_is_held() {
    let fdb = fdb(100);
    fdb.learn(key(0, 7), PortId(0), NO_LIMIT, at(1));
    let moved =
        |n: u16| matches!(fdb.learn(key(0, 7), PortId(n % 2), NO_LIMIT, at(2)), Learned::Moved { .. });
    assert_eq!((1..=20).filter(|n| moved(*n)).count(), MOVES_A_SECOND as usize);
    let later = fdb.learn(key(0, 7), PortId(0), NO_LIMIT, at(9));
    assert!(matches!(later, Learned::Moved { .. }), "{later:?}");
}

#[test]
fn a_fixed_station_neither_moves_nor_ages() {
    let fdb = fdb(100);
    assert!(fdb.fix(key(0, 7), PortId(3), at(0)));
    assert_eq!(fdb.learn(key(0, 7), PortId(4), NO_LIMIT, at(1)), Learned::Held(PortId(3).into()));
    assert_eq!(fdb.sweep(at(100_000), usize::MAX, |_| Some(Duration::from_secs(1))), 0);
    assert_eq!(fdb.remove(|station| station.port == PortId(3)), 1);
    assert_eq!(fdb.find(key(0, 7)), None);
}

#[test]
fn stations_age_by_their_networks_time() {
    let fdb = fdb(100);
    fdb.learn(key(0, 1), PortId(0), NO_LIMIT, at(0));
    fdb.learn(key(1, 2), PortId(0), NO_LIMIT, at(0));
    let ageing = |network: NetworkId| Some(Duration::from_secs(if network.0 == 0 { 10 } else { 300 }));
    assert_eq!(fdb.sweep(at(11), usize::MAX, ageing), 1);
    assert!(fdb.find(key(0, 1)).is_none() && fdb.find(key(1, 2)).is_some());
    assert_eq!(fdb.learned_by(PortId(0)), 1);
}

#[test]
fn a_port_that_invents_sources_evicts_nobody_else() {
    let fdb = fdb(1000);
    for n in 0..300 {
        fdb.learn(key(0, n), PortId(1), NO_LIMIT, at(1));
    }
    let limits = LearnLimits { port: 400, network: u32::MAX };
    for n in 0..100_000 {
        fdb.learn(key(0, 1_000_000 + n), PortId(2), limits, at(2));
    }
    assert_eq!(fdb.learned_by(PortId(2)), 400);
    assert!((0..300).all(|n| fdb.find(key(0, n)).is_some()));
    assert!(fdb.refused() >= 99_000);
}

#[test]
fn a_full_table_takes_from_the_port_with_the_most() {
    let fdb = fdb(256);
    for n in 0..100_000 {
        fdb.learn(key(0, n), PortId(1), NO_LIMIT, at(1));
    }
    let before = fdb.learned_by(PortId(1));
    for n in 0..50 {
        let learned = fdb.learn(key(1, n), PortId(2), NO_LIMIT, at(2));
        assert!(matches!(learned, Learned::New(_)), "{learned:?}");
    }
    assert_eq!(fdb.learned_by(PortId(2)), 50);
    assert_eq!(fdb.learned_by(PortId(1)), before - 50);
    assert_eq!(fdb.evicted(), 50);
}

#[derive(Clone, Debug)]
enum Op {
    Learn { mac: u64, port: u16 },
    Fix { mac: u64, port: u16 },
    RemovePort { port: u16 },
    Sweep,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..40u64, 0..4u16).prop_map(|(mac, port)| Op::Learn { mac, port }),
        1 => (0..40u64, 0..4u16).prop_map(|(mac, port)| Op::Fix { mac, port }),
        1 => (0..4u16).prop_map(|port| Op::RemovePort { port }),
        1 => Just(Op::Sweep),
    ]
}

proptest! {
    #[test]
    fn it_answers_like_a_map(ops in prop::collection::vec(op(), 0..400)) {
        let fdb = fdb(200);
        let mut twin: BTreeMap<u64, (u16, bool, u64)> = BTreeMap::new();
        for (now, op) in ops.into_iter().enumerate() {
            // Ten seconds a step, so that no station is held for moving often.
            let now = 10 * now as u64;
            match op {
                Op::Learn { mac, port } => {
                    fdb.learn(key(0, mac), PortId(port), NO_LIMIT, at(now));
                    let entry = twin.entry(mac).or_insert((port, false, now));
                    if !entry.1 {
                        entry.0 = port;
                    }
                    if entry.0 == port {
                        entry.2 = now;
                    }
                }
                Op::Fix { mac, port } => {
                    prop_assert!(fdb.fix(key(0, mac), PortId(port), at(now)));
                    twin.insert(mac, (port, true, now));
                }
                Op::RemovePort { port } => {
                    fdb.remove(|station| station.port == PortId(port));
                    twin.retain(|_, entry| entry.0 != port);
                }
                Op::Sweep => {
                    fdb.sweep(at(now), usize::MAX, |_| Some(Duration::from_secs(300)));
                    twin.retain(|_, entry| entry.1 || now - entry.2 <= 300);
                }
            }
            for mac in 0..40 {
                let found = fdb.find(key(0, mac)).map(|found| found.port.0);
                prop_assert_eq!(found, twin.get(&mac).map(|entry| entry.0));
            }
            for port in 0..4 {
                let learned = twin.values().filter(|entry| entry.0 == port && !entry.1).count();
                prop_assert_eq!(fdb.learned_by(PortId(port)) as usize, learned);
            }
        }
    }
}
