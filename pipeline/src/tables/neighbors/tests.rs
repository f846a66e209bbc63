//! Neighbours against a dull twin, their timers, and who makes room.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;

const SEED: [u64; 2] = [0x1234_5678_9abc_def1, 0x0fed_cba9_8765_4321];

fn neighbors(capacity: usize) -> Neighbors {
    Neighbors::new(capacity, 8, SEED)
}

fn key(network: u16, n: u32) -> NeighborKey {
    NeighborKey { network: NetworkId(network), port: None, address: Address::v4(n.to_be_bytes()) }
}

fn mac(n: u32) -> MacAddr {
    MacAddr::local(n.into())
}

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

fn expire(neighbors: &Neighbors, now: Instant) -> Vec<(NeighborKey, Option<Target>)> {
    let mut asked = Vec::new();
    neighbors.expire(now, usize::MAX, &mut |key, target| asked.push((key, target)));
    asked
}

fn list(neighbors: &Neighbors) -> BTreeMap<NeighborKey, Neighbor> {
    let mut list = BTreeMap::new();
    neighbors.for_each(|neighbor| assert!(list.insert(neighbor.key, *neighbor).is_none()));
    list
}

#[test]
fn a_word_tells_mac_port_and_whether_it_is_valid() {
    let target = Target { mac: MacAddr([0x02, 1, 2, 3, 4, 0xff]), port: PortId(4095), vtep: None };
    assert_eq!(Target::from_word(target.to_word()), Some(target));
    assert_eq!(Target::from_word(0), None);
}

#[test]
fn a_neighbour_is_asked_for_three_times_a_second_apart_and_then_left_alone() {
    let table = neighbors(16);
    let ask = |millis| table.resolve(key(0, 7), at(millis)).map(|(_, ask)| ask);
    assert_eq!(ask(10_000), Ok(Ask::Now));
    assert_eq!(ask(10_999), Ok(Ask::Wait));
    assert_eq!(ask(11_000), Ok(Ask::Now));
    assert_eq!(ask(12_500), Ok(Ask::Now));
    assert_eq!(ask(13_400), Ok(Ask::Wait));
    assert_eq!(ask(13_500), Ok(Ask::Failed));
    assert_eq!(ask(18_499), Ok(Ask::Failed));
    assert_eq!(ask(18_500), Ok(Ask::Now));
    assert_eq!(table.find(key(0, 7)).map(|(_, target)| target), Some(None));
}

#[test]
fn requests_are_repeated_without_packets_and_a_failed_neighbour_is_forgotten() {
    let table = neighbors(16);
    table.resolve(key(0, 7), at(1000)).expect("room");
    assert_eq!(expire(&table, at(1500)), []);
    assert_eq!(expire(&table, at(2000)), [(key(0, 7), None)]);
    assert_eq!(expire(&table, at(3000)), [(key(0, 7), None)]);
    assert_eq!(expire(&table, at(4000)), []);
    assert_eq!(list(&table)[&key(0, 7)].state, NeighborState::Failed);
    expire(&table, at(9000));
    assert_eq!(table.find(key(0, 7)), None);
}

#[test]
fn an_answer_completes_and_a_move_changes_the_word_in_place() {
    let table = neighbors(16);
    let (place, _) = table.resolve(key(0, 7), at(1000)).expect("room");
    assert_eq!(table.target(place), None);
    assert_eq!(table.set(key(0, 7), mac(1), PortId(3), Kind::Learned, at(1100)), Some(place));
    assert_eq!(table.target(place), Some(Target { mac: mac(1), port: PortId(3), vtep: None }));
    table.set(key(0, 7), mac(2), PortId(4), Kind::Learned, at(1200));
    assert_eq!(
        table.find(key(0, 7)),
        Some((place, Some(Target { mac: mac(2), port: PortId(4), vtep: None })))
    );
    assert_eq!(table.resolve(key(0, 7), at(1300)), Ok((place, Ask::Known)));
}

#[test]
fn nothing_unsolicited_is_learned_and_a_fixed_neighbour_stays() {
    let table = neighbors(16);
    let set = |n, kind| table.set(key(0, n), mac(n + 10), PortId(1), kind, at(1000));
    assert_eq!(set(1, Kind::Learned), None);
    assert!(set(2, Kind::Asker).is_some());
    assert!(set(3, Kind::Fixed).is_some());
    assert_eq!(table.set(key(0, 3), mac(66), PortId(6), Kind::Asker, at(1001)), None);
    assert_eq!(table.set(key(0, 2), MacAddr::BROADCAST, PortId(6), Kind::Learned, at(1001)), None);
    expire(&table, at(100_000_000));
    assert_eq!(table.find(key(0, 3)).and_then(|(_, target)| target).map(|target| target.mac), Some(mac(13)));
    assert_eq!(list(&table).len(), 1);
}

#[test]
fn next_hops_of_two_devices_may_have_one_address() {
    let table = neighbors(16);
    let on = |port| NeighborKey { port: Some(PortId(port)), ..key(0, 1) };
    table.set(on(0), mac(1), PortId(0), Kind::Asker, at(1));
    assert_eq!(table.find(on(1)), None);
    assert_eq!(table.find(key(0, 1)), None);
}

#[test]
fn a_stale_neighbour_is_asked_where_it_was_if_it_is_used() {
    let table = neighbors(16);
    let place = table.set(key(0, 7), mac(1), PortId(3), Kind::Asker, at(0)).expect("room");
    table.set(key(0, 8), mac(2), PortId(3), Kind::Asker, at(0));
    table.mark_used(place.slot);
    let target = Target { mac: mac(1), port: PortId(3), vtep: None };
    assert_eq!(expire(&table, at(299_999)), []);
    assert_eq!(expire(&table, at(300_000)), [(key(0, 7), Some(target))]);
    assert_eq!(table.find(key(0, 8)), None, "not used");
    assert_eq!(table.target(place), Some(target), "used while it is asked");
    table.set(key(0, 7), mac(1), PortId(3), Kind::Learned, at(300_500));
    assert_eq!(expire(&table, at(302_000)), []);
    table.mark_used(place.slot);
    for millis in [601_000, 602_000, 603_000] {
        assert_eq!(expire(&table, at(millis)).len(), 1);
    }
    expire(&table, at(604_000));
    assert_eq!((table.find(key(0, 7)), table.target(place)), (None, None));
}

#[test]
fn a_slot_that_had_a_target_rests() {
    let table = Neighbors::new(4, 1, SEED);
    let slot = |n, millis| table.set(key(0, n), mac(n), PortId(0), Kind::Fixed, at(millis)).map(|a| a.slot);
    let first = slot(1, 0).expect("room");
    assert!(table.remove(key(0, 1), at(1000)));
    // Five slots: four others, and none is left.
    let others: Vec<_> = (2..6).map(|n| slot(n, 1001).expect("room")).collect();
    assert!(!others.contains(&first));
    assert!(table.remove(key(0, 5), at(1001)));
    assert_eq!(slot(6, 10_999), None);
    assert_eq!(slot(6, 11_000), Some(first));
}

#[test]
fn a_scan_displaces_only_what_it_asked_for() {
    let table = neighbors(64);
    for n in 0..30 {
        assert!(table.set(key(1, n), mac(n), PortId(1), Kind::Fixed, at(0)).is_some());
    }
    for n in 100..110 {
        table.set(key(0, n), mac(n), PortId(2), Kind::Asker, at(0)).expect("room");
        table.set(key(2, n), mac(n), PortId(2), Kind::Asker, at(0)).expect("room");
    }
    for n in 1000..50_000 {
        assert_eq!(table.resolve(key(0, n), at(n.into())).map(|(_, ask)| ask), Ok(Ask::Now));
    }
    let list = list(&table);
    assert_eq!(list.keys().filter(|key| key.network == NetworkId(0)).count(), 64 / 4);
    assert_eq!(list.values().filter(|neighbor| neighbor.target.is_some()).count(), 30 + 20);
    assert!(list.contains_key(&key(0, 49_999)) && !list.contains_key(&key(0, 49_990)));
    assert!(table.resolve(key(2, 7), at(60_000)).is_ok());
}

#[test]
fn a_network_whose_neighbours_come_and_go_leaves_slots_to_others() {
    let table = neighbors(64);
    for n in 0..1000 {
        table.set(key(0, n), mac(n), PortId(1), Kind::Asker, at(1));
        table.remove(key(0, n), at(1));
    }
    assert!(table.resolve(key(0, 1), at(9000)).is_err(), "its share rests");
    assert!(table.resolve(key(1, 1), at(9000)).is_ok());
    assert!(table.resolve(key(0, 1), at(10_001)).is_ok());
}

#[test]
fn when_all_is_full_the_network_with_most_makes_room() {
    let table = neighbors(64);
    for n in 0..64 {
        let network = if n < 16 { 0 } else { [1, 2, 3, 4][n as usize % 4] };
        table.set(key(network, n), mac(n), PortId(1), Kind::Asker, at(n.into())).expect("room");
    }
    assert_eq!(list(&table).len(), 64);
    assert!(table.set(key(7, 1), mac(1), PortId(1), Kind::Asker, at(100)).is_some());
    assert!(table.set(key(7, 2), mac(1), PortId(1), Kind::Fixed, at(100)).is_some());
    assert_eq!(list(&table).len(), 64, "two made room");
    assert!(table.resolve(key(99, 1), at(100)).is_err(), "no such network");
}

#[derive(Clone, Debug)]
enum Step {
    Resolve(NeighborKey),
    Set(NeighborKey, u32, Kind),
    Remove(NeighborKey),
    Wait(u64),
    Expire,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || (0..2u16, 0..12u32).prop_map(|(network, n)| key(network, n));
    let kind = prop_oneof![Just(Kind::Fixed), Just(Kind::Learned), Just(Kind::Learned), Just(Kind::Asker)];
    let step = prop_oneof![
        4 => key().prop_map(Step::Resolve),
        4 => (key(), 1..100u32, kind).prop_map(|(key, mac, kind)| Step::Set(key, mac, kind)),
        1 => key().prop_map(Step::Remove),
        2 => prop_oneof![0..3000u64, Just(400_000)].prop_map(Step::Wait),
        2 => Just(Step::Expire),
    ];
    proptest::collection::vec(step, 0..200)
}

/// What the twin knows of a neighbour.
#[derive(Clone, Copy)]
struct Known {
    mac: Option<u32>,
    fixed: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// A map, from which only time may remove what is not fixed.
    #[test]
    fn what_was_set_is_found(steps in steps()) {
        let table = neighbors(4096);
        let mut twin: BTreeMap<NeighborKey, Known> = BTreeMap::new();
        let mut now = 1000;
        for step in steps {
            match step {
                Step::Resolve(key) => {
                    let (_, ask) = table.resolve(key, at(now)).expect("room");
                    let known = twin.entry(key).or_insert(Known { mac: None, fixed: false });
                    prop_assert_eq!(ask == Ask::Known, known.mac.is_some());
                }
                Step::Set(key, n, kind) => {
                    let known = twin.get(&key).copied();
                    let may = match kind {
                        Kind::Fixed => true,
                        Kind::Learned => known.is_some_and(|known| !known.fixed),
                        Kind::Asker => known.is_none_or(|known| !known.fixed),
                    };
                    prop_assert_eq!(table.set(key, mac(n), PortId(1), kind, at(now)).is_some(), may);
                    if may {
                        twin.insert(key, Known { mac: Some(n), fixed: kind == Kind::Fixed });
                    }
                }
                Step::Remove(key) => {
                    prop_assert_eq!(table.remove(key, at(now)), twin.remove(&key).is_some());
                }
                Step::Wait(millis) => now += millis,
                Step::Expire => {
                    expire(&table, at(now));
                    twin.retain(|key, known| known.fixed || table.find(*key).is_some());
                }
            }
            let list = list(&table);
            prop_assert!(list.keys().eq(twin.keys()));
            for (key, known) in &twin {
                let (place, target) = table.find(*key).expect("listed");
                prop_assert_eq!(target.map(|target| target.mac), known.mac.map(mac));
                prop_assert_eq!(list[key].adjacency, place);
                prop_assert_eq!(list[key].state == NeighborState::Fixed, known.fixed);
            }
        }
    }

    /// A small table under pressure keeps its limits, and what it lists can be found.
    #[test]
    fn limits_hold_and_the_index_agrees(steps in steps(), capacity in 4..24usize) {
        let table = neighbors(capacity);
        let mut now = 1000;
        for step in steps {
            match step {
                Step::Resolve(key) => drop(table.resolve(key, at(now))),
                Step::Set(key, n, kind) => drop(table.set(key, mac(n), PortId(1), kind, at(now))),
                Step::Remove(key) => drop(table.remove(key, at(now))),
                Step::Wait(millis) => now += millis,
                Step::Expire => drop(expire(&table, at(now))),
            }
            let list = list(&table);
            prop_assert!(list.len() <= capacity);
            for network in 0..2 {
                let own = list.values().filter(|neighbor| {
                    neighbor.key.network.0 == network && neighbor.state != NeighborState::Fixed
                });
                // A fixed neighbour of the same key may have become a learned one, never the other way round.
                prop_assert!(own.count() <= capacity / 4);
            }
            for (key, neighbor) in &list {
                prop_assert_eq!(table.find(*key), Some((neighbor.adjacency, neighbor.target)));
            }
            let valid = table.words().iter().filter(|word| word.load(Ordering::Relaxed) != 0).count();
            prop_assert_eq!(valid, list.values().filter(|neighbor| neighbor.target.is_some()).count());
        }
    }
}

/// Slots go from neighbour to neighbour while others look them up: whoever finds a target finds its own.
#[test]
fn readers_never_see_the_target_of_another_key() {
    let table = Neighbors::new(4, 1, SEED);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut n = 0;
                while !done.load(Ordering::Relaxed) {
                    n = (n + 1) % 8;
                    if let Some((_, Some(target))) = table.find(key(0, n)) {
                        assert_eq!(target.mac, mac(n));
                    }
                }
            });
        }
        for round in 0..100_000u32 {
            let (n, now) = (round % 8, at(u64::from(round) * 20_000));
            table.resolve(key(0, n), now).expect("room");
            table.set(key(0, n), mac(n), PortId(1), Kind::Learned, now);
            table.remove(key(0, n), now);
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// `cargo test --release -p pipeline neighbors -- --ignored --nocapture`
#[test]
#[ignore = "prints figures"]
fn clocks() {
    let table = Neighbors::new(16_384, 8, SEED);
    for n in 0..16_000 {
        table.set(key(1, n), mac(n), PortId(1), Kind::Fixed, at(0)).expect("room");
    }
    let time = |what: &str, mut each: Box<dyn FnMut(u32) + '_>| {
        let start = std::time::Instant::now();
        (0..1_000_000).for_each(&mut each);
        println!("{what}: {} ns", start.elapsed().as_nanos() / 1_000_000);
    };
    time("find one of 16000", Box::new(|n| assert!(table.find(key(1, n * 7919 % 16_000)).is_some())));
    time("find the gateway", Box::new(|_| assert!(table.find(key(1, 1)).is_some())));
    time("scan", Box::new(|n| assert!(table.resolve(key(0, n), at(n.into())).is_ok())));
}
