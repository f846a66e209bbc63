//! The table against a scan of all prefixes, and its cost.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "random bits and figures")]

use std::hint::black_box;
use std::time::Instant;

use proptest::prelude::*;

use super::*;

/// Scans all routes: the longest prefix, and of equals the last.
fn scan(routes: &[(Prefix, u32)], address: Address) -> Option<u32> {
    let matching = routes.iter().filter(|(prefix, _)| prefix.contains(address));
    matching.max_by_key(|(prefix, _)| prefix.len()).map(|(_, target)| *target)
}

fn fib(routes: &[(Prefix, u32)]) -> Fib {
    let mut builder = Fib::builder();
    for (prefix, target) in routes {
        builder.insert(*prefix, *target);
    }
    builder.build()
}

fn prefix(address: Address, len: u8) -> Prefix {
    Prefix::new(address, len).expect("a good length")
}

/// Addresses of both families whose bits are mostly shared, so that prefixes nest.
fn addresses() -> impl Strategy<Value = Address> {
    let bits = || (any::<u128>(), any::<u128>(), any::<u128>());
    prop_oneof![
        bits().prop_map(|(a, b, c)| Address::v4(((a & b & c) as u32).to_be_bytes())),
        bits().prop_map(|(a, b, c)| Address::v4(((a | b | c) as u32).to_be_bytes())),
        bits().prop_map(|(a, b, c)| Address::v6((a & b & c).to_be_bytes())),
        (any::<u64>(), 0..3u64).prop_map(|(low, high)| {
            Address::v6((u128::from(high) << 64 | u128::from(low & 0x8000_0000_0000_000f)).to_be_bytes())
        }),
    ]
}

fn routes(count: usize) -> impl Strategy<Value = Vec<(Prefix, u32)>> {
    let route = (addresses(), 0..=128u8, 0..50u32).prop_map(|(address, len, target)| {
        let len = if address.is_v4() { len / 4 } else { len };
        (prefix(address, len), target)
    });
    proptest::collection::vec(route, 0..count)
}

/// Both ends of the prefix and what lies just outside.
fn edges(prefix: Prefix) -> [Address; 4] {
    let first = prefix.address().to_bits();
    let len = u32::from(prefix.len()) + if prefix.is_v4() { 96 } else { 0 };
    let last = first | u128::MAX.checked_shr(len).unwrap_or(0);
    [first, last, first.wrapping_sub(1), last.wrapping_add(1)].map(Address::from_bits)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_longest_prefix_is_found(
        routes in prop_oneof![routes(12), routes(200)],
        asked in proptest::collection::vec(addresses(), 100),
    ) {
        let fib = fib(&routes);
        let edges = routes.iter().flat_map(|(prefix, _)| edges(*prefix));
        for address in asked.into_iter().chain(edges) {
            prop_assert_eq!(fib.lookup(address), scan(&routes, address), "{}", address);
        }
    }
}

#[test]
fn an_empty_table_has_no_route_and_takes_nothing() {
    let fib = Fib::builder().build();
    assert_eq!(fib.lookup(Address::v4([1, 2, 3, 4])), None);
    assert_eq!(fib.lookup(Address::UNSPECIFIED), None);
    assert_eq!(fib.memory(), 0);
}

#[test]
fn a_default_route_is_of_its_family_only() {
    let fib = fib(&[(Prefix::ALL_V6, 7)]);
    assert_eq!(fib.lookup(Address::from_bits(u128::MAX)), Some(7));
    assert_eq!(fib.lookup(Address::v4([1, 2, 3, 4])), None);
}

#[test]
fn a_networks_few_routes_take_a_few_hundred_bytes() {
    let (v4, v6) = (Address::v4([10, 1, 2, 1]), Address::from_bits(0xfd00_0001 << 96 | 1));
    let fib = fib(&[
        (Prefix::ALL_V4, 0),
        (prefix(v4, 24), 1),
        (Prefix::host(v4), 2),
        (Prefix::ALL_V6, 0),
        (prefix(v6, 64), 1),
        (Prefix::host(v6), 2),
    ]);
    assert_eq!(fib.lookup(v6), Some(2));
    assert!(fib.memory() + size_of::<Fib>() < 512, "{}", fib.memory());
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn address(&mut self, v6: bool) -> Address {
        let (high, low) = (self.next(), self.next());
        match v6 {
            // 2000::/3, as the routes of the Internet are.
            true => Address::from_bits(1 << 125 | u128::from(high) << 64 >> 3 | u128::from(low)),
            false => Address::v4((low as u32).to_be_bytes()),
        }
    }
}

/// Returns the nanoseconds of one of `count`, of ten rounds the best: others use the machine too.
fn best(count: usize, mut round: impl FnMut()) -> f64 {
    let mut time = || {
        let start = Instant::now();
        round();
        start.elapsed().as_secs_f64()
    };
    (0..10).map(|_| time()).fold(f64::MAX, f64::min) * 1e9 / count as f64
}

/// `cargo test --release -p pipeline fib -- --ignored --nocapture`
#[test]
#[ignore = "prints figures"]
fn clocks() {
    for (v6, count) in [false, true].into_iter().flat_map(|v6| [10, 1000, 1_000_000].map(|n| (v6, n))) {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let routes: Vec<_> = (0..count)
            .map(|n| {
                let len = 24 - (random.next() % 9).saturating_sub(5) as u8 * 2 + random.next() as u8 % 2;
                (prefix(random.address(v6), if v6 { len * 2 } else { len }), n)
            })
            .collect();
        let start = Instant::now();
        let fib = fib(&routes);
        let built = start.elapsed();
        // Half at random, half within routes: with few routes, nearly all others end in the first compare.
        let asked: Vec<_> = (0..1 << 20)
            .map(|n| match n % 2 {
                0 => random.address(v6),
                _ => Address::from_bits(
                    routes[random.next() as usize % routes.len()].0.address().to_bits() | u128::from(n as u8),
                ),
            })
            .collect();
        let (mut found, mut last) = (0, 0);
        let one = best(asked.len(), || {
            found = asked.iter().filter(|address| black_box(fib.lookup(**address)).is_some()).count();
        });
        // Each waits for the one before, as in a walk.
        let chained = best(asked.len(), || {
            for address in &asked {
                let bit = u128::from(last & 1) << if v6 { 80 } else { 8 };
                let address = Address::from_bits(address.to_bits() ^ bit);
                last = black_box(fib.lookup(address).unwrap_or(0));
            }
        });
        println!(
            "{} {count:>8} routes: {one:.1} ns, one after the other {chained:.1} ns a look-up, \
             {} bytes, built in {built:?}, {found} found",
            if v6 { "IPv6" } else { "IPv4" },
            fib.memory(),
        );
    }
}
