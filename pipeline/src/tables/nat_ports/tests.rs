//! Requirements of RFC 4787, 5382 and 5508 on mappings, exhaustion, and a dull twin.

use std::collections::{HashMap, HashSet};

use packet::header::protocol::{ICMP, SCTP, TCP, UDP};
use proptest::prelude::*;

use super::*;

const GRE: u8 = 47;
const EXTERNAL: Address = Address::v4([203, 0, 113, 2]);
const SERVER: (Address, u16) = (Address::v4([198, 51, 100, 7]), 443);

fn pool(first: u16, last: u16) -> Pool {
    Pool { address: EXTERNAL, first, last }
}

fn inside(host: u8, port: u16) -> Inside {
    Inside { network: NetworkId(1), address: Address::v4([10, 1, 0, host]), port }
}

fn ports(capacity: usize) -> NatPorts {
    NatPorts::new(capacity, [0x0123_4567_89ab_cdef, 0xfeed_face_dead_beef])
}

/// Looks and takes.
fn take(ports: &NatPorts, pool: Pool, who: &Inside, protocol: u8) -> Option<(u16, PortLease)> {
    let candidate = ports.candidate(pool, who, protocol, SERVER, 0)?;
    Some((candidate.port, ports.take(pool, who, protocol, candidate)?))
}

#[test]
fn an_endpoint_keeps_its_external_port_for_all_destinations() {
    // RFC 4787 REQ-1, RFC 5382 REQ-1, RFC 5508 REQ-1.
    for protocol in [TCP, UDP, SCTP, ICMP] {
        let ports = ports(100);
        let (pool, who) = (pool(40_000, 40_009), inside(1, 5000));
        let (port, first) = take(&ports, pool, &who, protocol).expect("free");
        let elsewhere = (Address::v4([192, 0, 2, 1]), 53);
        let candidate = ports.candidate(pool, &who, protocol, elsewhere, 0).expect("known");
        assert_eq!((candidate.port, candidate.shared), (port, false));
        let second = ports.take(pool, &who, protocol, candidate).expect("known");
        assert_eq!(ports.usage(pool, protocol).used, 1, "one port for both");
        ports.give_back(first);
        assert_eq!(take(&ports, pool, &who, protocol).expect("known").0, port, "while one of them lives");
        ports.give_back(second);
        assert_eq!(ports.usage(pool, protocol).used, 1);
    }
}

#[test]
fn a_source_port_is_kept_when_it_lies_in_the_pool_and_is_free() {
    let ports = ports(100);
    let pool = pool(1024, 65_535);
    let (port, lease) = take(&ports, pool, &inside(1, 5000), UDP).expect("free");
    assert_eq!(port, 5000);
    let (other, _) = take(&ports, pool, &inside(2, 5000), UDP).expect("others are free");
    assert!(other != 5000 && other >= 1024);
    let (low, _) = take(&ports, pool, &inside(3, 80), UDP).expect("free");
    assert!(low >= 1024);
    ports.give_back(lease);
    assert_eq!(take(&ports, pool, &inside(4, 5000), UDP).expect("free again").0, 5000);
}

#[test]
fn protocols_addresses_and_networks_are_spaces_of_their_own() {
    let ports = ports(100);
    let one = pool(40_000, 40_000);
    for protocol in [TCP, UDP, SCTP, ICMP] {
        assert_eq!(take(&ports, one, &inside(1, 5000), protocol).expect("free").0, 40_000);
        assert!(take(&ports, one, &inside(2, 5000), protocol).is_none() || protocol == TCP);
    }
    let elsewhere = Pool { address: Address::v4([203, 0, 113, 3]), ..one };
    take(&ports, elsewhere, &inside(1, 5000), UDP).expect("another address");
    let namesake = Inside { network: NetworkId(2), ..inside(1, 5000) };
    assert!(take(&ports, one, &namesake, UDP).is_none(), "the same address in another network is another");
    assert!(ports.candidate(one, &inside(1, 0), GRE, SERVER, 0).is_none());
    assert!(ports.candidate(pool(9, 8), &inside(1, 0), UDP, SERVER, 0).is_none(), "an empty pool");
}

#[test]
fn of_two_who_look_only_one_takes() {
    let ports = ports(100);
    let pool = pool(1024, 65_535);
    let candidate = |who: &Inside| ports.candidate(pool, who, UDP, SERVER, 0).expect("free");
    let (one, two) = (inside(1, 5000), inside(2, 5000));
    let (first, second) = (candidate(&one), candidate(&two));
    assert_eq!(first.port, second.port);
    ports.take(pool, &one, UDP, first).expect("first");
    assert_eq!(ports.take(pool, &two, UDP, second), None);
    assert_ne!(candidate(&two).port, 5000, "looking again helps");
    // Two workers begin the first two connections of one endpoint.
    let (three, four) = (inside(3, 80), inside(3, 80));
    let (mine, theirs) = (candidate(&three), Candidate { port: 7777, ..candidate(&four) });
    ports.take(pool, &three, UDP, mine).expect("first");
    assert_eq!(ports.take(pool, &four, UDP, theirs), None, "it would have two ports");
}

#[test]
fn exhaustion_is_seen_and_ends() {
    let ports = ports(1000);
    let pool = pool(40_000, 40_099);
    let mut leases = Vec::new();
    for n in 0..100 {
        leases.push(take(&ports, pool, &inside(1, n), UDP).expect("the whole pool can be used").1);
    }
    assert_eq!(ports.candidate(pool, &inside(2, 1), UDP, SERVER, 0), None);
    ports.count_refused(pool, UDP);
    assert_eq!(ports.usage(pool, UDP), PoolUsage { used: 100, total: 100, refused: 1 });
    ports.give_back(leases.swap_remove(50));
    assert!(take(&ports, pool, &inside(2, 1), UDP).is_some());
}

#[test]
fn tcp_shares_ports_of_a_pool_that_is_nearly_used_up_between_destinations() {
    // RFC 5382, REQ-7 forbids overlap for one destination only through the connection table: here it says `shared`.
    let ports = ports(1000);
    let pool = pool(40_000, 40_009);
    for n in 0..10 {
        let candidate = ports.candidate(pool, &inside(1, n), TCP, SERVER, 0).expect("free");
        assert!(!candidate.shared);
        ports.take(pool, &inside(1, n), TCP, candidate).expect("free");
    }
    let who = inside(2, 1);
    let tried: HashSet<u16> = (0..10)
        .map(|attempt| ports.candidate(pool, &who, TCP, SERVER, attempt).expect("shared"))
        .inspect(|candidate| assert!(candidate.shared))
        .map(|candidate| candidate.port)
        .collect();
    assert_eq!(tried.len(), 10, "every attempt tries another");
    let candidate = ports.candidate(pool, &who, TCP, SERVER, 3).expect("shared");
    let lease = ports.take(pool, &who, TCP, candidate).expect("shared");
    assert_eq!(ports.usage(pool, TCP).used, 10);
    let again = ports.candidate(pool, &who, TCP, SERVER, 1).expect("a second one, where the first is taken");
    assert!(again.second && again.shared);
    ports.take(pool, &who, TCP, again).expect("shared");
    ports.give_back(lease);
    assert_eq!(ports.usage(pool, TCP).used, 10, "its first owner still has it");
}

#[test]
fn two_hosts_open_sixty_thousand_connections_to_one_destination() {
    for protocol in [TCP, UDP] {
        let ports = ports(65_536);
        let pool = pool(1024, 65_535);
        let mut used = HashSet::new();
        for n in 0..30_000u16 {
            for host in 1..=2 {
                let who = inside(host, 30_000 + n);
                let candidate = ports.candidate(pool, &who, protocol, SERVER, 0).expect("free");
                assert!(!candidate.shared && used.insert(candidate.port), "{n}");
                ports.take(pool, &who, protocol, candidate).expect("nobody is faster");
            }
        }
        assert_eq!(ports.usage(pool, protocol), PoolUsage { used: 60_000, total: 64_512, refused: 0 });
    }
}

#[test]
fn a_full_table_refuses() {
    let ports = ports(4);
    let pool = pool(1024, 65_535);
    let leases: Vec<_> =
        (0..4).map(|n| take(&ports, pool, &inside(1, 2000 + n), UDP).expect("room").1).collect();
    assert!(take(&ports, pool, &inside(1, 3000), UDP).is_none());
    ports.give_back(leases[2]);
    assert!(take(&ports, pool, &inside(1, 3000), UDP).is_some());
}

#[test]
fn two_threads_never_get_one_port() {
    let ports = ports(4096);
    let pool = pool(40_000, 40_199);
    let taken: [AtomicU32; 200] = std::array::from_fn(|_| 0.into());
    std::thread::scope(|scope| {
        for host in 1..=2 {
            let (ports, taken) = (&ports, &taken);
            scope.spawn(move || {
                let mut held = Vec::new();
                for n in 0..40_000u32 {
                    let who = inside(host, u16::try_from(n % 5000).expect("small"));
                    if let Some((port, lease)) = take(ports, pool, &who, UDP) {
                        held.push((port, lease));
                        let before = taken[usize::from(port - 40_000)].swap(host.into(), Ordering::SeqCst);
                        assert_eq!(before, 0, "port {port}");
                    }
                    if held.len() > 90 {
                        let (port, lease) = held.swap_remove(n as usize % 90);
                        taken[usize::from(port - 40_000)].store(0, Ordering::SeqCst);
                        ports.give_back(lease);
                    }
                }
                for (port, lease) in held {
                    taken[usize::from(port - 40_000)].store(0, Ordering::SeqCst);
                    ports.give_back(lease);
                }
            });
        }
    });
    assert_eq!(ports.usage(pool, UDP).used, 0);
}

proptest! {
    #[test]
    fn equals_a_map(ops in prop::collection::vec((0u8..3, 0u16..8, any::<bool>(), 0usize..30), 1..150)) {
        let ports = ports(64);
        let pool = pool(4, 11);
        let mut model: HashMap<(Inside, u8), (u16, usize)> = HashMap::new();
        let mut leases = Vec::new();
        for (host, port, tcp, give) in ops {
            let (who, protocol) = (inside(host, port), if tcp { SCTP } else { UDP });
            if give < leases.len() {
                let (key, lease) = leases.swap_remove(give);
                ports.give_back(lease);
                let count = model.get_mut(&key).expect("held");
                count.1 -= 1;
                if count.1 == 0 { model.remove(&key); }
            } else {
                let used: HashSet<u16> = model.iter().filter(|((_, p), _)| *p == protocol).map(|(_, (port, _))| *port).collect();
                let candidate = ports.candidate(pool, &who, protocol, SERVER, 0);
                match model.get_mut(&(who, protocol)) {
                    Some((port, count)) => {
                        prop_assert_eq!(candidate.map(|c| c.port), Some(*port));
                        *count += 1;
                    }
                    None if used.len() == 8 => {
                        prop_assert_eq!(candidate, None);
                        continue;
                    }
                    None => {
                        let chosen = candidate.expect("some are free").port;
                        prop_assert!(!used.contains(&chosen) && (4..=11).contains(&chosen));
                        prop_assert!(chosen == port || used.contains(&port) || port < 4);
                        model.insert((who, protocol), (chosen, 1));
                    }
                }
                let lease = ports.take(pool, &who, protocol, candidate.expect("checked"));
                leases.push(((who, protocol), lease.expect("nobody is faster")));
            }
            for protocol in [SCTP, UDP] {
                let used = model.keys().filter(|(_, p)| *p == protocol).count();
                prop_assert_eq!(ports.usage(pool, protocol).used as usize, used);
            }
        }
    }
}

#[test]
fn after_a_restart_the_same_port_is_taken_and_no_other() {
    let (before, after) = (ports(100), ports(100));
    let (pool, who, other) = (pool(40_000, 40_009), inside(1, 5000), inside(2, 5000));
    for protocol in [TCP, UDP] {
        let (port, _) = take(&before, pool, &who, protocol).expect("free");
        let first = after.take_again(pool, &who, protocol, port).expect("nobody has it");
        let second = after.take_again(pool, &who, protocol, port).expect("a second connection");
        assert_eq!(first, second, "one mapping, two leases");
        assert_eq!(take(&after, pool, &who, protocol).map(|taken| taken.0), Some(port));
        // TCP may have shared it; UDP never does.
        assert_eq!(after.take_again(pool, &other, protocol, port).is_some(), protocol == TCP);
        assert_eq!(after.take_again(pool, &who, protocol, 50_000), None, "not of the pool");
    }
    assert_eq!(after.take_again(pool, &who, GRE, 40_000), None);
}
