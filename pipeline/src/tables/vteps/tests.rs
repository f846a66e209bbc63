use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const NETWORKS: u16 = 3;

fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

fn address(n: u8) -> Address {
    if n.is_multiple_of(2) {
        Address::v4([192, 0, 2, n])
    } else {
        Address::v6([0x20, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n])
    }
}

fn of(table: &Vteps, network: u16) -> Vec<VtepId> {
    let mut all = Vec::new();
    table.for_each_of(NetworkId(network), |id| all.push(id));
    all
}

#[test]
fn a_fixed_endpoint_is_of_every_network_or_of_one() {
    let table = Vteps::new(8, NETWORKS.into(), [1, 2]);
    let all = table.fix(VtepKey { network: None, address: address(1) }, at(1)).expect("room");
    let one = table.fix(VtepKey { network: Some(NetworkId(1)), address: address(2) }, at(1)).expect("room");
    assert_eq!((of(&table, 0), of(&table, 1)), (vec![all], vec![all, one]));
    assert_eq!(table.find(NetworkId(0), address(1)), Some(all));
    assert_eq!(table.find(NetworkId(0), address(2)), None);
    assert_eq!(table.find(NetworkId(1), address(2)), Some(one));
    assert_eq!(table.fix(VtepKey { network: None, address: address(1) }, at(9)), Some(all), "set again");
    assert_eq!(table.get(one).map(|vtep| vtep.key.address), Some(address(2)));
}

#[test]
fn a_network_learns_up_to_its_limit_and_what_is_unused_goes() {
    let table = Vteps::new(8, NETWORKS.into(), [1, 2]);
    let network = NetworkId(2);
    let a = table.learn(network, address(1), 2, at(1)).expect("the first");
    let b = table.learn(network, address(2), 2, at(1)).expect("the second");
    assert_eq!((table.learn(network, address(3), 2, at(1)), table.refused()), (None, 1));
    assert_eq!(table.learn(network, address(2), 2, at(1)), Some(b), "known");
    assert_eq!(table.learn(NetworkId(0), address(1), 0, at(1)), None, "it may not learn");
    table.expire(at(61), 100, |id| id == a);
    assert_eq!(of(&table, 2), [a, b]);
    let epoch = table.epoch();
    table.expire(at(62), 100, |id| id == a);
    assert_eq!((of(&table, 2), table.find(network, address(2))), (vec![a], None));
    assert_ne!(table.epoch(), epoch);
    assert!(table.learn(network, address(3), 2, at(62)).is_some());
}

#[test]
fn a_fixed_endpoint_takes_the_place_of_learned_ones() {
    let table = Vteps::new(8, NETWORKS.into(), [1, 2]);
    for network in 0..NETWORKS {
        table.learn(NetworkId(network), address(1), 2, at(1)).expect("room");
    }
    let fixed = table.fix(VtepKey { network: None, address: address(1) }, at(2)).expect("room");
    for network in 0..NETWORKS {
        assert_eq!(of(&table, network), [fixed]);
        assert_eq!(table.learn(NetworkId(network), address(1), 1, at(3)), Some(fixed), "nothing to learn");
        assert!(table.learn(NetworkId(network), address(2), 1, at(3)).is_some(), "the count went down");
    }
}

#[test]
fn a_number_rests_before_another_endpoint_gets_it() {
    let table = Vteps::new(2, 1, [1, 2]);
    let key = |n| VtepKey { network: None, address: address(n) };
    let a = table.fix(key(1), at(1)).expect("room");
    table.fix(key(2), at(1)).expect("room");
    assert!(table.remove(a, at(2)));
    assert!(!table.remove(a, at(2)));
    assert_eq!(table.fix(key(3), at(11)), None);
    assert_eq!(table.fix(key(3), at(12)), Some(a));
}

#[test]
fn a_table_for_none_refuses() {
    let table = Vteps::new(0, 1, [1, 2]);
    assert_eq!(table.fix(VtepKey { network: None, address: address(1) }, at(1)), None);
    assert_eq!(table.learn(NetworkId(0), address(1), 9, at(1)), None);
    table.expire(at(1), 9, |_| true);
}

proptest! {
    #[test]
    fn equals_a_map(steps in prop::collection::vec((0u8..5, 0u8..12, 0..NETWORKS), 0..300), capacity in 1usize..20) {
        let table = Vteps::new(capacity, NETWORKS.into(), [3, 4]);
        let mut model = BTreeMap::<VtepKey, VtepKind>::new();
        let mut seconds = 0;
        for (what, n, network) in steps {
            seconds += 20; // Whatever went has rested.
            let (now, address) = (at(seconds), address(n));
            let own = VtepKey { network: Some(NetworkId(network)), address };
            let every = VtepKey { network: None, address };
            match what {
                0 | 1 => {
                    let key = if what == 0 { own } else { every };
                    if model.get(&key) != Some(&VtepKind::Fixed) {
                        model.retain(|other, kind| *kind == VtepKind::Fixed || other.address != address
                            || key.network.is_some() && other.network != key.network);
                        // A number that just went rests, so a full table refuses.
                        let fixed = table.fix(key, now);
                        if fixed.is_some() {
                            model.insert(key, VtepKind::Fixed);
                        } else {
                            prop_assert!(model.len() + 2 * usize::from(NETWORKS) >= capacity);
                        }
                    }
                }
                2 | 3 => {
                    let learned = model.iter().filter(|(key, kind)| **kind == VtepKind::Learned && key.network == own.network).count();
                    let known = model.contains_key(&own) || model.contains_key(&every);
                    let id = table.learn(NetworkId(network), address, 3, now);
                    let expected = known || learned < 3 && model.len() < capacity;
                    prop_assert_eq!(id.is_some(), expected);
                    if !known && expected {
                        model.insert(own, VtepKind::Learned);
                    }
                }
                _ => {
                    let id = table.find(NetworkId(network), address);
                    let key = if model.contains_key(&every) { every } else { own };
                    prop_assert_eq!(id.is_some(), model.remove(&key).is_some());
                    if let Some(id) = id {
                        prop_assert!(table.remove(id, now));
                    }
                }
            }
            let mut all = BTreeMap::new();
            table.for_each(|vtep| { all.insert(vtep.key, vtep.kind); });
            prop_assert_eq!(&all, &model);
            for network in 0..NETWORKS {
                let wanted = model.keys().filter(|key| key.network.is_none_or(|other| other.0 == network)).count();
                prop_assert_eq!(of(&table, network).len(), wanted);
            }
        }
    }
}
