//! The learning bridge: who gets which frame.

use std::time::Duration;

use packet::build::eth;
use packet::{MacAddr, PortId};
use pipeline::tables::{Limits, StationKey};
use pipeline::{DropReason, Event, NetworkInfo};
use tests::Lab;

const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);

fn frame(from: MacAddr, to: MacAddr) -> Vec<u8> {
    eth(from, to).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).udp(1, 2).data(b"hello, world").bytes()
}

#[test]
fn unknown_unicast_is_flooded_and_the_answer_is_not() {
    let mut lab = Lab::new(&["a", "b", "c"]);
    lab.send("a", frame(A, B));
    lab.receive("b", frame(A, B));
    lab.receive("c", frame(A, B));
    lab.changed(&["port.a.rx +1", "port.b.tx +1", "port.c.tx +1", "created +1", "fdb +1"]);

    lab.send("b", frame(B, A));
    lab.receive("a", frame(B, A));
    lab.changed(&["port.b.rx +1", "port.a.tx +1", "fdb +1"]);
}

#[test]
fn a_known_pair_is_decided_from_the_cache() {
    let mut lab = Lab::new(&["a", "b", "c"]);
    for _ in 0..3 {
        lab.send("a", frame(A, B));
        lab.send("b", frame(B, A));
        lab.receive("a", frame(B, A));
        lab.receive("b", frame(A, B));
    }
    lab.receive("c", frame(A, B));
    let ledger = &lab.tables.counters(0).ledger;
    // The first of each walks; so does A's second, since its first was flooded and nothing kept.
    assert_eq!((ledger.cache_hits.get(), ledger.cache_misses.get()), (3, 3));
}

#[test]
fn broadcast_reaches_the_network_and_no_other() {
    let mut lab = Lab::new(&["a", "b"]);
    lab.network("other", NetworkInfo::new());
    lab.port("c", "other", |_| {});
    lab.send("a", frame(A, MacAddr::BROADCAST));
    lab.receive("b", frame(A, MacAddr::BROADCAST));
    lab.silent("c");
    lab.changed(&["port.a.rx +1", "port.b.tx +1", "fdb +1"]);
}

/// Found by fuzzing: while each network counted its generations by itself, those of two could be equal.
#[test]
fn a_port_that_changes_its_network_takes_no_decision_along() {
    for changes in 0..8 {
        let mut lab = Lab::new(&["a", "b"]);
        for _ in 0..2 {
            lab.send("a", frame(A, B));
            lab.send("b", frame(B, A));
            lab.receive("a", frame(B, A));
            lab.receive("b", frame(A, B));
        }
        for _ in 0..=changes {
            lab.network("other", NetworkInfo::new());
        }
        lab.port("a", "other", |_| {});
        lab.send("a", frame(A, B));
        lab.silent("b");
    }
}

#[test]
fn a_station_is_not_followed_into_another_network() {
    let mut lab = Lab::new(&["a", "b"]);
    lab.network("other", NetworkInfo::new());
    lab.send("a", frame(A, B));
    lab.receive("b", frame(A, B));
    lab.port("a", "other", |_| {});
    lab.send("b", frame(B, A));
    lab.silent("a");
    assert_eq!(lab.dropped(DropReason::NoListener), 1);
}

#[test]
fn the_same_station_may_live_in_two_networks() {
    let mut lab = Lab::new(&["a", "b"]);
    lab.network("other", NetworkInfo::new());
    lab.port("c", "other", |_| {});
    lab.port("d", "other", |_| {});
    for _ in 0..2 {
        lab.send("a", frame(A, B));
        lab.send("b", frame(B, A));
        lab.send("c", frame(A, B));
        lab.send("d", frame(B, A));
        lab.receive("a", frame(B, A));
        lab.receive("b", frame(A, B));
        lab.receive("c", frame(B, A));
        lab.receive("d", frame(A, B));
    }
    assert!(lab.event().is_none(), "nobody moved");
}

#[test]
fn a_station_that_moves_is_followed_at_once_even_out_of_the_cache() {
    let mut lab = Lab::new(&["a", "b", "c"]);
    for _ in 0..3 {
        lab.send("a", frame(A, B));
        lab.send("b", frame(B, A));
        lab.take("a");
        lab.take("b");
        lab.take("c");
    }
    lab.send("c", frame(B, A));
    lab.receive("a", frame(B, A));
    lab.send("a", frame(A, B));
    lab.receive("c", frame(A, B));
    lab.silent("b");
    let Some(Event::StationMoved { station, from, to, held: false }) = lab.event() else { panic!("a move") };
    assert_eq!((station.mac, from, to), (B, lab.id("b"), lab.id("c")));

    // Back again: what was cached of its first life at b must not hide the move.
    lab.send("b", frame(B, A));
    lab.receive("a", frame(B, A));
    lab.send("a", frame(A, B));
    lab.receive("b", frame(A, B));
}

#[test]
fn a_silent_station_ages_and_one_that_sends_does_not() {
    let mut lab = Lab::new(&["a", "b", "c"]);
    lab.send("a", frame(A, MacAddr::BROADCAST));
    lab.send("b", frame(B, A));
    for _ in 0..40 {
        lab.wait(Duration::from_secs(20));
        lab.send("b", frame(B, A));
        lab.send("a", frame(A, B));
        let now = lab.now();
        assert_eq!(lab.tables.fdb.sweep(now, usize::MAX, |_| Some(Duration::from_secs(300))), 0);
    }
    lab.wait(Duration::from_secs(301));
    let now = lab.now();
    assert_eq!(lab.tables.fdb.sweep(now, usize::MAX, |_| Some(Duration::from_secs(300))), 2);
    while lab.take("a").is_some() || lab.take("b").is_some() || lab.take("c").is_some() {}
    lab.send("a", frame(A, B));
    lab.receive("b", frame(A, B));
    lab.receive("c", frame(A, B));
}

#[test]
fn a_frame_for_its_own_port_dies_there() {
    let mut lab = Lab::new(&["a", "b"]);
    lab.send("a", frame(A, MacAddr::BROADCAST));
    lab.take("b");
    lab.send("a", frame(B, A));
    assert_eq!(lab.dropped(DropReason::SamePort), 1);
}

#[test]
fn alone_in_a_network_there_is_no_listener() {
    let mut lab = Lab::new(&["a"]);
    lab.send("a", frame(A, MacAddr::BROADCAST));
    lab.changed(&["port.a.rx +1", "port.a.drop.no_listener +1", "fdb +1"]);
}

#[test]
fn isolated_ports_reach_others_but_not_one_another() {
    let mut lab = Lab::new(&["a", "b", "open"]);
    lab.port("a", "net", |port| port.isolated = true);
    lab.port("b", "net", |port| port.isolated = true);
    lab.send("b", frame(B, MacAddr::BROADCAST));
    lab.receive("open", frame(B, MacAddr::BROADCAST));
    lab.silent("a");
    for _ in 0..2 {
        lab.send("a", frame(A, B));
    }
    lab.silent("b");
    assert_eq!(lab.dropped(DropReason::Isolated), 2);
    lab.send("open", frame(MacAddr::local(7), B));
    lab.receive("b", frame(MacAddr::local(7), B));
}

#[test]
fn link_local_protocols_end_at_the_bridge() {
    let mut lab = Lab::new(&["a", "b"]);
    for last in 0..16 {
        lab.send("a", frame(A, MacAddr([1, 0x80, 0xc2, 0, 0, last])));
    }
    lab.silent("b");
    lab.changed(&["port.a.rx +16", "port.a.drop.reserved +16"]);
    lab.send("a", frame(A, MacAddr([1, 0x80, 0xc2, 0, 0, 0x10])));
    assert!(lab.take("b").is_some());
}

#[test]
fn noise_of_any_length_is_counted() {
    let mut lab = Lab::new(&["a", "b"]);
    for len in 0..70 {
        lab.send("a", vec![0; len]);
    }
    lab.changed(&["port.a.rx +70", "port.a.drop.malformed +70"]);
}

#[test]
fn a_packet_longer_than_the_output_mtu_is_named() {
    let mut lab = Lab::new(&["a", "b"]);
    lab.port("b", "net", |port| port.mtu = 1280);
    lab.send("b", frame(B, A));
    lab.take("a");
    let packet = |len: usize| eth(A, B).raw(0x0800, &vec![7; len]).bytes();
    for _ in 0..2 {
        lab.send("a", packet(1280));
        lab.receive("b", packet(1280));
        lab.send("a", packet(1281));
    }
    lab.silent("b");
    assert_eq!(lab.dropped(DropReason::Mtu), 2);
}

#[test]
fn a_port_that_is_down_neither_sends_nor_gets() {
    let mut lab = Lab::new(&["a", "b"]);
    for _ in 0..2 {
        lab.send("a", frame(A, B));
        lab.send("b", frame(B, A));
    }
    lab.port("b", "net", |port| port.up = false);
    while lab.take("a").is_some() || lab.take("b").is_some() {}
    lab.send("a", frame(A, B));
    lab.send("b", frame(B, A));
    lab.silent("a");
    lab.silent("b");
    assert_eq!(lab.dropped(DropReason::PortDown), 2);
}

#[test]
fn a_full_queue_is_tx_full() {
    let mut lab = Lab::new(&["a", "b"]);
    lab.send("b", frame(B, A));
    lab.take("a");
    lab.limit_queue("b", 100);
    let (a, bytes) = (lab.id("a"), frame(A, B));
    let frames: Vec<_> = (0..256).map(|_| (a, lab.pool.alloc_from(&bytes).expect("a chunk"))).collect();
    lab.send_batch(frames);
    assert_eq!(lab.dropped(DropReason::TxFull), 156);
    assert_eq!(std::iter::from_fn(|| lab.take("b")).count(), 100);
}

#[test]
fn the_storm_limit_counts_only_what_is_flooded() {
    let mut lab = Lab::new(&["a", "b"]);
    lab.port("a", "net", |port| port.storm = Some(100));
    lab.send("b", frame(B, A));
    lab.take("a");
    for _ in 0..1000 {
        lab.send("a", frame(A, B));
        lab.send("a", frame(A, MacAddr::BROADCAST));
    }
    // A burst of a tenth of a second.
    assert_eq!(lab.dropped(DropReason::Storm), 990);
    lab.wait(Duration::from_secs(1));
    lab.send("a", frame(A, MacAddr::BROADCAST));
    assert_eq!(lab.dropped(DropReason::Storm), 990);
    assert_eq!(std::iter::from_fn(|| lab.take("b")).count(), 1011);
}

#[test]
fn a_million_invented_sources_harm_nobody_else() {
    let mut lab = Lab::with_limits(Limits {
        ports: 8,
        networks: 2,
        stations: 4096,
        flows: 8192,
        workers: 1,
        ..Limits::default()
    });
    lab.network("net", NetworkInfo::new());
    for port in ["victim", "attacker", "other"] {
        lab.port(port, "net", |port| port.stations = 1024);
    }
    lab.send("victim", frame(A, MacAddr::BROADCAST));
    lab.send("other", frame(B, A));
    for n in 0..1_000_000u64 {
        lab.send("attacker", frame(MacAddr::local(1 << 32 | n), A));
    }
    while lab.take("victim").is_some() || lab.take("attacker").is_some() || lab.take("other").is_some() {}
    assert_eq!(lab.tables.fdb.learned_by(lab.id("attacker")), 1024);
    lab.send("other", frame(B, A));
    lab.receive("victim", frame(B, A));
    lab.silent("attacker");
}

#[test]
fn a_network_that_changed_decides_anew_and_others_do_not() {
    let mut lab = Lab::new(&["a", "b"]);
    lab.network("other", NetworkInfo::new());
    lab.port("c", "other", |_| {});
    lab.port("d", "other", |_| {});
    for _ in 0..2 {
        lab.send("a", frame(A, B));
        lab.send("b", frame(B, A));
        lab.send("c", frame(A, B));
        lab.send("d", frame(B, A));
    }
    lab.port("e", "other", |_| {});
    let misses = |lab: &Lab| lab.tables.counters(0).ledger.cache_misses.get();
    let before = misses(&lab);
    lab.send("a", frame(A, B));
    assert_eq!(misses(&lab), before, "net did not change");
    lab.send("c", frame(A, B));
    assert_eq!(misses(&lab), before + 1);
    for port in ["a", "b", "c", "d"] {
        while lab.take(port).is_some() {}
    }
}

#[test]
fn a_fixed_station_cannot_be_taken_over() {
    let mut lab = Lab::new(&["a", "b", "c"]);
    let key = StationKey { network: Default::default(), vlan: Default::default(), mac: B };
    assert!(lab.tables.fdb.fix(key, lab.id("b"), lab.now()));
    lab.send("c", frame(B, A));
    lab.silent("a");
    assert_eq!(lab.dropped(DropReason::Spoof), 1);
    lab.send("a", frame(A, B));
    lab.receive("b", frame(A, B));
    lab.silent("c");
    assert_eq!(lab.tables.fdb.find(key).map(|found| found.port), Some(PortId(1)));
}
