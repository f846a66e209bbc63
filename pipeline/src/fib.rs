//! The forwarding information base of a network: longest-prefix match for IPv4 and IPv6.
//!
//! Routes are flattened when the table is built: where the best route changes, a *step* begins, and a look-up is
//! the search for the last step at or before an address ([`Ranges`]). Steps are sorted, so up to 32 of them are
//! found by halving; above that an index over the upper bits says between which few to halve. Steps of IPv6
//! are split: one table for the upper 64 bits, where nearly all routes end, and one table for each upper half within
//! which there are longer prefixes.
//!
//! Chosen over a trie because there are hundreds of networks with three routes each, and one with perhaps a million:
//! a network costs 112 bytes and 8 (IPv4) or 16 (IPv6) for each step, of which a route makes two at most, and
//! nothing has to be walked bit by bit. A million scattered routes take 16 MB (IPv4) or 33 MB (IPv6), and a look-up
//! in them about one access to memory; a DIR-24-8 table takes 64 MiB for each network, and a poptrie, with a node of 24
//! bytes for nearly every such route, more than this. What is given up is updating in place: a change builds the table
//! again, which takes 0.1 s (IPv4) or 0.3 s (IPv6) for a million routes.
//!
//! Immutable, part of the snapshot. Capacity: as many routes as are inserted; targets are 24 bits. A lower table costs
//! another 100 bytes, so the worst case is one longer prefix in each /64.

mod ranges;
#[cfg(test)]
mod tests;

use packet::{Address, Prefix};

pub(crate) use ranges::{Key, NONE, Ranges, Span, Steps};
use ranges::{Step, flatten};

/// An immutable set of routes. See the module header.
#[derive(Clone, Debug, Default)]
pub struct Fib {
    v4: Ranges<u32>,
    /// By the upper half of the address: a target, or [`LOWER`] and the number of a table in `lower`.
    v6: Ranges<u64>,
    lower: Box<[Ranges<u64>]>,
}

/// Marks a value of the upper table that is the number of a lower one.
const LOWER: u32 = 1 << 31;

/// Collects the routes of a [`Fib`].
#[derive(Clone, Debug, Default)]
pub struct FibBuilder {
    v4: Vec<Span<u32>>,
    v6: Vec<Span<u128>>,
}

impl Fib {
    /// The largest target a route may have.
    pub const MAX_TARGET: u32 = (1 << 24) - 1;

    /// Returns a builder without routes.
    pub fn builder() -> FibBuilder {
        FibBuilder::default()
    }

    /// Makes a table of what begins where; a value of [`NONE`] is no route.
    pub(crate) fn from_steps(v4: Steps<u32>, v6: &Steps<u128>) -> Self {
        let (v6, lower) = split(v6);
        Self { v4: Ranges::new(v4), v6: Ranges::new(v6), lower }
    }

    /// Returns the target of the longest prefix that `address` is in.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "halves of an address")]
    pub fn lookup(&self, address: Address) -> Option<u32> {
        let target = if address.is_v4() {
            self.v4.value(u32::from_be_bytes(address.octets_v4()))
        } else {
            let bits = address.to_bits();
            match self.v6.value((bits >> 64) as u64) {
                number if number & LOWER != 0 => {
                    self.lower.get((number & !LOWER) as usize)?.value(bits as u64)
                }
                target => target,
            }
        };
        (target != NONE).then_some(target)
    }

    /// Returns how many bytes the table takes, its own fields aside.
    pub fn memory(&self) -> usize {
        let lower = self.lower.iter().map(|lower| size_of_val(lower) + lower.memory());
        self.v4.memory() + self.v6.memory() + lower.sum::<usize>()
    }
}

/// Splits the steps of whole addresses into those of their upper halves, and those within one upper half.
#[expect(clippy::cast_possible_truncation, reason = "halves of an address")]
fn split(steps: &Steps<u128>) -> (Steps<u64>, Box<[Ranges<u64>]>) {
    let mut upper = Steps::default();
    let mut lower = Vec::new();
    let mut before = NONE;
    for group in steps.chunk_by(|a, b| a.first >> 64 == b.first >> 64) {
        let half = (group[0].first >> 64) as u64;
        let last = group[group.len() - 1].value;
        if let [Step { first, value }] = group
            && *first as u64 == 0
        {
            upper.push(half, *value);
        } else {
            let mut within = Steps::default();
            within.push(0, before);
            for step in group {
                within.push(step.first as u64, step.value);
            }
            let number = u32::try_from(lower.len()).expect("fewer routes than 2^31");
            lower.push(Ranges::new(within));
            upper.push(half, LOWER | number);
            if let Some(next) = half.checked_add(1) {
                upper.push(next, last);
            }
        }
        before = last;
    }
    (upper, lower.into())
}

impl FibBuilder {
    /// Adds a route. Of two with the same prefix, the one inserted last is used.
    ///
    /// # Panics
    /// When the target is beyond [`Fib::MAX_TARGET`].
    pub fn insert(&mut self, prefix: Prefix, target: u32) -> &mut Self {
        assert!(target <= Fib::MAX_TARGET, "route targets end at {}", Fib::MAX_TARGET);
        if prefix.is_v4() {
            self.v4.push(prefix_span_v4(prefix, target));
        } else {
            self.v6.push(prefix_span_v6(prefix, target));
        }
        self
    }

    /// Makes the table.
    pub fn build(self) -> Fib {
        Fib::from_steps(flatten(self.v4), &flatten(self.v6))
    }
}

/// Returns the addresses of an IPv4 prefix.
pub(crate) fn prefix_span_v4(prefix: Prefix, value: u32) -> Span<u32> {
    let first = u32::from_be_bytes(prefix.address().octets_v4());
    Span { first, last: first | u32::MAX.checked_shr(prefix.len().into()).unwrap_or(0), value }
}

/// Returns the addresses of an IPv6 prefix. Those of IPv4 may be among them: they are looked up elsewhere.
pub(crate) fn prefix_span_v6(prefix: Prefix, value: u32) -> Span<u128> {
    let first = prefix.address().to_bits();
    Span { first, last: first | u128::MAX.checked_shr(prefix.len().into()).unwrap_or(0), value }
}
