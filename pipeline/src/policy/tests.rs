//! The classifier against a scan of all rules, and its cost.

#![allow(clippy::cast_possible_truncation, reason = "random numbers and figures")]

use std::hint::black_box;
use std::time::Instant;

use packet::Address;
use proptest::prelude::*;

use super::*;

/// The dull twin: asks every rule.
fn scan(rules: &[Rule], question: &Question) -> Option<u32> {
    let matching = (0u32..).zip(rules).filter(|(_, rule)| rule_matches(rule, question));
    matching.min_by_key(|(n, rule)| (rule.priority, rule.action == Action::Allow, *n)).map(|(n, _)| n)
}

fn rule_matches(rule: &Rule, question: &Question) -> bool {
    let Question { from, to, tuple, .. } = question;
    let source = |peer: &Peer| peer_matches(peer, *from, tuple.source);
    let destination = |peer: &Peer| peer_matches(peer, *to, tuple.destination);
    let ways = source(&rule.from) && destination(&rule.to)
        || rule.both_ways && source(&rule.to) && destination(&rule.from);
    ways && rule.services.iter().any(|service| service_matches(*service, question))
}

fn peer_matches(peer: &Peer, identity: Identity, address: Address) -> bool {
    match peer {
        Peer::Any => true,
        Peer::Identities(identities) => identities.contains(&identity),
        Peer::Prefixes(prefixes) => prefixes.iter().any(|prefix| prefix.contains(address)),
    }
}

fn service_matches(service: Service, question: &Question) -> bool {
    let Tuple { protocol: of, destination_port: port, .. } = question.tuple;
    match service {
        Service::Any => true,
        Service::Protocol(protocol) => of == protocol,
        Service::Ports { protocol, first, last } => {
            of == protocol && of != 1 && of != 58 && first <= port && port <= last
        }
        Service::Icmp { v6, kind, code } => {
            let has = |want: Option<u8>, is: Option<u8>| want.is_none() || want == is;
            of == if v6 { 58 } else { 1 }
                && has(kind, question.icmp.map(|(kind, _)| kind))
                && has(code, question.icmp.map(|(_, code)| code))
        }
    }
}

fn rule(from: Peer, to: Peer, services: Vec<Service>, action: Action) -> Rule {
    Rule { name: "a rule".into(), priority: 100, from, to, services, action, log: false, both_ways: false }
}

fn tcp(port: u16) -> Service {
    Service::Ports { protocol: 6, first: port, last: port }
}

fn question(from: u32, to: u32, port: u16) -> Question {
    let tuple = Tuple {
        source: Address::v4([10, 0, 0, 1]),
        destination: Address::v4([10, 0, 1, 1]),
        source_port: 40_000,
        destination_port: port,
        protocol: 6,
    };
    Question { from: Identity(from), to: Identity(to), tuple, icmp: None }
}

fn only(identity: u32) -> Peer {
    Peer::Identities(vec![Identity(identity)])
}

#[test]
fn nothing_decides_where_there_are_no_rules() {
    let set = PolicySet::new(Vec::new());
    assert!(set.is_empty());
    assert_eq!(set.decide(&question(1, 2, 80)), None);
    assert!(!set.concerns(Identity(1)));
}

#[test]
fn a_smaller_priority_is_asked_first_and_deny_before_allow() {
    let allow = rule(Peer::Any, Peer::Any, vec![Service::Any], Action::Allow);
    let deny = rule(Peer::Any, Peer::Any, vec![tcp(22)], Action::Deny);
    let set = PolicySet::new(vec![allow.clone(), deny.clone()]);
    assert_eq!(set.decide(&question(1, 2, 22)), Some(1));
    assert_eq!(set.decide(&question(1, 2, 23)), Some(0));
    let set = PolicySet::new(vec![Rule { priority: 99, ..allow }, deny]);
    assert_eq!(set.decide(&question(1, 2, 22)), Some(0));
}

#[test]
fn a_rule_holds_one_way_unless_it_says_both() {
    let one = rule(only(1), only(2), vec![tcp(80)], Action::Allow);
    let set = PolicySet::new(vec![one.clone()]);
    assert_eq!(set.decide(&question(1, 2, 80)), Some(0));
    assert_eq!(set.decide(&question(2, 1, 80)), None);
    let set = PolicySet::new(vec![Rule { both_ways: true, ..one }]);
    assert_eq!(set.decide(&question(2, 1, 80)), Some(0));
    assert_eq!(set.decide(&question(2, 1, 81)), None);
    assert_eq!(set.decide(&question(1, 1, 80)), None);
}

#[test]
fn echo_is_told_from_other_messages_and_from_an_unknown_one() {
    let echo = Service::Icmp { v6: false, kind: Some(8), code: None };
    let set = PolicySet::new(vec![rule(Peer::Any, Peer::Any, vec![echo], Action::Allow)]);
    let mut asked = question(1, 2, 8 << 8);
    asked.tuple.protocol = 1;
    assert_eq!(set.decide(&asked), None, "the identifier is no type");
    assert_eq!(set.decide(&Question { icmp: Some((8, 0)), ..asked }), Some(0));
    assert_eq!(set.decide(&Question { icmp: Some((13, 0)), ..asked }), None);
}

#[test]
fn who_is_named_is_of_concern() {
    let set = PolicySet::new(vec![rule(only(5), Peer::Any, vec![tcp(80)], Action::Allow)]);
    assert!(set.concerns(Identity(5)) && !set.concerns(Identity(4)) && !set.concerns(Identity(1 << 30)));
    let everybody = Peer::Prefixes(vec![Prefix::ALL_V4]);
    let set = PolicySet::new(vec![rule(Peer::Any, everybody, vec![tcp(80)], Action::Allow)]);
    assert!(set.concerns(Identity(4)));
}

fn addresses() -> impl Strategy<Value = Address> {
    prop_oneof![
        (0..4u8, 0..4u8).prop_map(|(a, b)| Address::v4([10, 0, a, b])),
        (0..3u8, 0..3u8).prop_map(|(a, b)| {
            let mut octets = [0xfd, 0, 0, 0, 0, 0, 0, a, 0, 0, 0, 0, 0, 0, 0, b];
            octets[8] = a ^ b;
            Address::v6(octets)
        }),
    ]
}

fn peers() -> impl Strategy<Value = Peer> {
    let prefix = (addresses(), prop_oneof![Just(0u8), 20..=32u8, 50..=128u8]).prop_map(|(address, len)| {
        let len = if address.is_v4() { len.min(32) } else { len };
        Prefix::new(address, len).expect("a good length")
    });
    prop_oneof![
        Just(Peer::Any),
        proptest::collection::vec((0..6u32).prop_map(Identity), 0..4).prop_map(Peer::Identities),
        proptest::collection::vec(prefix, 0..4).prop_map(Peer::Prefixes),
    ]
}

/// Protocols: two of ICMP, two with ports, one without.
fn protocols() -> impl Strategy<Value = u8> {
    prop_oneof![Just(1u8), Just(58), Just(6), Just(17), Just(47)]
}

fn services() -> impl Strategy<Value = Service> {
    let small = || proptest::option::of(0..4u8);
    prop_oneof![
        1 => Just(Service::Any),
        1 => protocols().prop_map(Service::Protocol),
        4 => (protocols(), 0..8u16, 0..8u16)
            .prop_map(|(protocol, first, last)| Service::Ports { protocol, first, last }),
        1 => Just(Service::Ports { protocol: 6, first: 3, last: u16::MAX }),
        3 => (any::<bool>(), small(), small()).prop_map(|(v6, kind, code)| Service::Icmp { v6, kind, code }),
    ]
}

fn rules(count: usize) -> impl Strategy<Value = Vec<Rule>> {
    let parts = (
        (0..3u32, peers(), peers()),
        proptest::collection::vec(services(), 0..3),
        prop_oneof![Just(Action::Allow), Just(Action::Deny), Just(Action::Reject)],
        any::<bool>(),
    );
    let rules = parts.prop_map(|((priority, from, to), services, action, both_ways)| Rule {
        priority,
        both_ways,
        ..rule(from, to, services, action)
    });
    proptest::collection::vec(rules, 0..count)
}

fn questions() -> impl Strategy<Value = Question> {
    let tuple = (addresses(), addresses(), protocols(), prop_oneof![0..9u16, Just(u16::MAX)]);
    let icmp = proptest::option::of((0..5u8, 0..5u8));
    (0..7u32, 0..7u32, tuple, icmp).prop_map(|(from, to, (source, destination, protocol, port), icmp)| {
        let tuple = Tuple { source, destination, protocol, source_port: 7, destination_port: port };
        Question { from: Identity(from), to: Identity(to), tuple, icmp }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_first_rule_that_matches_decides(
        // Above 512 bits rows have several pages.
        rules in prop_oneof![6 => rules(20), 1 => rules(1200)],
        asked in proptest::collection::vec(questions(), 200),
    ) {
        let set = PolicySet::new(rules.clone());
        for question in asked {
            let decided = set.decide(&question);
            prop_assert_eq!(decided, scan(&rules, &question), "{:?}", question);
            if decided.is_some() {
                prop_assert!(set.concerns(question.from) || set.concerns(question.to), "{:?}", question);
            }
        }
    }
}

#[test]
fn a_bit_beyond_the_first_summary_word_is_found() {
    // 64 pages of 512 bits are one word of a summary.
    let count = 40_000;
    let rules = (0..count)
        .map(|n| rule(only(n % 7), only(n % 11), vec![tcp((n % 60_000) as u16)], Action::Allow))
        .collect::<Vec<_>>();
    let set = PolicySet::new(rules);
    for n in [0u32, 1, 511, 512, 32_767, 32_768, 39_999] {
        assert_eq!(set.decide(&question(n % 7, n % 11, n as u16)), Some(n));
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as u32 % limit
    }
}

/// Rules between groups of 20 of 1000 ports.
fn by_group(n: u32, random: &mut Random) -> Rule {
    let mut group = || {
        let group = random.below(50);
        Peer::Identities((group * 20..group * 20 + 20).map(Identity).collect())
    };
    let (from, to) = (group(), group());
    rule(from, to, vec![tcp((n % 1000) as u16)], Action::Allow)
}

/// Rules with a prefix of their own on each side.
fn by_prefix(n: u32, random: &mut Random) -> Rule {
    let mut prefix = |len| {
        let host = random.below(1 << 16).to_be_bytes();
        Peer::Prefixes(vec![Prefix::new(Address::v4([10, 0, host[2], host[3]]), len).expect("a prefix")])
    };
    let (from, to) = (prefix(20 + (n % 13) as u8), prefix(20 + (n % 11) as u8));
    rule(from, to, vec![tcp((n % 1000) as u16)], Action::Allow)
}

/// Rules of which each question meets half on either side and none on both: no page can be skipped.
fn to_no_avail(n: u32, _: &mut Random) -> Rule {
    let (from, to) =
        if n.is_multiple_of(2) { (Prefix::ALL_V4, Prefix::ALL_V6) } else { (Prefix::ALL_V6, Prefix::ALL_V4) };
    rule(Peer::Prefixes(vec![from]), Peer::Prefixes(vec![to]), vec![Service::Any], Action::Deny)
}

/// Rules with wide ranges of ports, each another.
fn by_wide_range(_: u32, random: &mut Random) -> Rule {
    let (a, b) = (random.below(65_536) as u16, random.below(65_536) as u16);
    let service = Service::Ports { protocol: 6, first: a.min(b), last: a.max(b) };
    rule(only(random.below(1000)), only(random.below(1000)), vec![service], Action::Allow)
}

/// `cargo test --release -p pipeline policy -- --ignored --nocapture`
#[test]
#[ignore = "prints figures"]
fn clocks() {
    type Make = fn(u32, &mut Random) -> Rule;
    let makes: [(&str, Make); 4] = [
        ("groups", by_group),
        ("prefixes", by_prefix),
        ("in vain", to_no_avail),
        ("wide ranges", by_wide_range),
    ];
    for (name, make) in makes {
        for count in [10, 1000, 10_000] {
            let mut random = Random(0x9e37_79b9_7f4a_7c15);
            let rules: Vec<_> =
                (0..count).map(|n| Rule { both_ways: true, ..make(n, &mut random) }).collect();
            let start = Instant::now();
            let set = PolicySet::new(rules);
            let built = start.elapsed();
            let asked: Vec<_> = (0..1 << 16)
                .map(|_| {
                    let mut host = || random.below(1 << 16).to_be_bytes();
                    let (a, b) = (host(), host());
                    let mut question =
                        question(random.below(1000), random.below(1000), random.below(1000) as u16);
                    question.tuple.source = Address::v4([10, 0, a[2], a[3]]);
                    question.tuple.destination = Address::v4([10, 0, b[2], b[3]]);
                    question
                })
                .collect();
            let mut found = 0;
            let mut round = || {
                let start = Instant::now();
                found = asked.iter().filter(|question| black_box(set.decide(question)).is_some()).count();
                start.elapsed().as_secs_f64() * 1e9 / asked.len() as f64
            };
            // Of ten rounds the best: others use the machine too.
            let each = (0..10).map(|_| round()).fold(f64::MAX, f64::min);
            println!(
                "{name:>12} {count:>6} rules: {each:.1} ns a question, {} KiB of rows, built in {built:?}, \
                 {found} found",
                set.memory() / 1024
            );
        }
    }
}
