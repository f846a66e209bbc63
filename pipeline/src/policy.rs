//! The policy classifier: which rule decides about the first packet of a connection.
//!
//! Every question has five properties: who it is from, the source address, who it is to, the destination address, and
//! the service. For each property the rules are known that agree with each value of it, as a *row* of bits, one for a
//! rule, in the order in which rules are asked. The rule that decides is the first bit that all rows share
//! (Lakshman and Stiliadis, SIGCOMM 1998). So the cost depends on the number of rules, weakly, and not at all on
//! the traffic: nothing is cached, so nothing that is sent can fill a cache.
//!
//! ```text
//! from identity | source prefixes  \
//! to identity   | dest. prefixes    AND -> first bit -> rule
//! service                          /
//! ```
//!
//! Rows share what they have in common ([`rows`]); pages without a bit are skipped. A rule that holds both ways has
//! two bits, side by side.
//!
//! Immutable, part of the snapshot: a change makes a new set. Meant for some ten thousand rules; a row costs one
//! number for each 512 bits, so a hundred thousand rules with as many different prefixes take some 100 MB.

mod build;
mod rows;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use packet::{NetworkId, PortId, Prefix, Tuple};

use crate::fib::{Fib, NONE, Ranges};
use crate::snapshot::MAX_PORTS;
use rows::Rows;

/// Who a packet is from or for: ports have their number, others a number above. Rows are indexed by it, so it stays
/// below 4096 and the number of networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(pub u32);

impl Identity {
    /// Returns the identity of what is attached to a port.
    #[inline]
    pub const fn port(port: PortId) -> Self {
        Self(port.0 as u32)
    }

    /// Returns the identity of an address of `network` that belongs to no known port. The outside is the uplink
    /// network, the host is the host network.
    #[inline]
    pub const fn network(network: NetworkId) -> Self {
        Self(FIRST_NETWORK + network.0 as u32)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "4096")]
const FIRST_NETWORK: u32 = MAX_PORTS as u32;

/// One side of a rule: what a network, a label selector or a CIDR was resolved to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Everybody.
    Any,
    /// One of these; nobody when there is none.
    Identities(Vec<Identity>),
    /// Whoever has an address in one of these; nobody when there is none.
    Prefixes(Vec<Prefix>),
}

/// What a rule is about: protocols, destination ports, kinds of ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Everything.
    Any,
    /// One protocol.
    Protocol(u8),
    /// Destination ports `first` to `last` of a protocol that has ports.
    Ports {
        /// TCP, UDP, SCTP, ...; never ICMP.
        protocol: u8,
        /// The first port.
        first: u16,
        /// The last port, which is in it.
        last: u16,
    },
    /// ICMP messages.
    Icmp {
        /// Of ICMPv6.
        v6: bool,
        /// Their type; `None` is any.
        kind: Option<u8>,
        /// Their code; `None` is any.
        code: Option<u8>,
    },
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is opened.
    Allow,
    /// Its first packet is dropped.
    Deny,
    /// Its first packet is dropped, and the sender is told.
    Reject,
}

/// A policy rule, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What users see.
    pub name: Arc<str>,
    /// Smaller is asked first. Among equals deny and reject come before allow, then the order decides.
    pub priority: u32,
    /// Who opens the connection.
    pub from: Peer,
    /// Who it is opened to.
    pub to: Peer,
    /// What it is for; a rule without services matches nothing.
    pub services: Vec<Service>,
    /// What becomes of it.
    pub action: Action,
    /// Whether a match is logged.
    pub log: bool,
    /// Whether it also matches with `from` and `to` exchanged. The services stay those of the destination.
    pub both_ways: bool,
}

/// What is asked about the first packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who it is from.
    pub from: Identity,
    /// Who it is for.
    pub to: Identity,
    /// Its addresses, protocol and ports.
    pub tuple: Tuple,
    /// The type and code of an ICMP message.
    pub icmp: Option<(u8, u8)>,
}

/// An immutable set of rules. See the module header.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    rules: Vec<Rule>,
    /// The rule that each bit stands for.
    bits: Box<[u32]>,
    rows: Rows,
    from: Side,
    to: Side,
    /// Rows by protocol, and port or ICMP type and code: see [`service_key`].
    services: Ranges<u32>,
    /// Whether a rule names no identity.
    concerns_all: bool,
}

/// How often each rule of a set decided, all workers together. Only new connections count, so that a shared
/// number costs nothing that matters.
#[derive(Debug, Default)]
pub struct Hits(Box<[AtomicU64]>);

impl Hits {
    /// Makes the counters of `new`; rules that `old` has too, by name, go on counting from `before`.
    pub fn carried(before: &Hits, old: &PolicySet, new: &PolicySet) -> Self {
        let known: hashbrown::HashMap<&str, u64> =
            old.rules().iter().zip(&before.0).map(|(rule, hits)| (&*rule.name, hits.load(Relaxed))).collect();
        let count = |rule: &Rule| AtomicU64::new(known.get(&*rule.name).copied().unwrap_or(0));
        Self(new.rules().iter().map(count).collect())
    }

    /// Counts decisions of rule `number`.
    pub(crate) fn count(&self, number: u32, decisions: u64) {
        if let Some(hits) = self.0.get(number as usize) {
            hits.fetch_add(decisions, Relaxed);
        }
    }

    /// Returns how often rule `number` decided.
    pub fn of(&self, number: u32) -> u64 {
        self.0.get(number as usize).map_or(0, |hits| hits.load(Relaxed))
    }
}

/// What is asked about one side of a connection.
#[derive(Clone, Debug, Default)]
struct Side {
    /// Rows by identity, those of rules for anybody included.
    identities: Box<[u32]>,
    /// The row of all other identities.
    others: u32,
    /// Rows by address; [`NONE`] is [`Rows::EMPTY`].
    prefixes: Fib,
}

impl Side {
    #[inline]
    fn of(&self, identity: Identity) -> u32 {
        self.identities.get(identity.0 as usize).copied().unwrap_or(self.others)
    }
}

impl PolicySet {
    /// Makes the set; a rule's number is its index in `rules`.
    pub fn new(rules: Vec<Rule>) -> Self {
        build::build(rules)
    }

    /// Returns the number of the rule that decides, or `None` when none matches.
    pub fn decide(&self, question: &Question) -> Option<u32> {
        let Question { from, to, tuple, icmp } = question;
        let prefix = |side: &Side, address| side.prefixes.lookup(address).unwrap_or(Rows::EMPTY);
        let service = match self.services.value(service_key(tuple, *icmp)) {
            NONE => return None,
            row => row,
        };
        let bit = self.rows.first_common(
            [self.from.of(*from), prefix(&self.from, tuple.source)],
            [self.to.of(*to), prefix(&self.to, tuple.destination)],
            service,
        )?;
        self.bits.get(bit).copied()
    }

    /// Returns a rule.
    ///
    /// # Panics
    /// When there is no rule of that number.
    pub fn rule(&self, number: u32) -> &Rule {
        &self.rules[number as usize]
    }

    /// Returns all rules, in the order of their numbers.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Says whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Says whether a rule may match because of this identity: it names it, or it names nobody (both of its sides
    /// are `Any` or prefixes). When neither side of a connection is of concern, no rule matches it.
    #[inline]
    pub fn concerns(&self, identity: Identity) -> bool {
        self.concerns_all || [&self.from, &self.to].iter().any(|side| side.of(identity) != side.others)
    }

    /// Returns how many bytes the rows take, the rules themselves and the look-up by address and port aside.
    pub fn memory(&self) -> usize {
        self.rows.memory()
    }
}

/// The protocol numbers of ICMP for IPv4 and IPv6.
const ICMP: [u8; 2] = [1, 58];

/// Says that the lower 16 bits of a service's key are known; an ICMP message may come without type and code.
const DETAIL_KNOWN: u32 = 1 << 16;
/// The bits below the protocol in a service's key.
const PROTOCOL_SHIFT: u32 = 17;

/// Returns what services are looked up by: the protocol and its destination port, or ICMP type and code.
#[inline]
fn service_key(tuple: &Tuple, icmp: Option<(u8, u8)>) -> u32 {
    let detail = if ICMP.contains(&tuple.protocol) {
        icmp.map(|(kind, code)| u16::from_be_bytes([kind, code]))
    } else {
        Some(tuple.destination_port)
    };
    u32::from(tuple.protocol) << PROTOCOL_SHIFT | detail.map_or(0, |detail| DETAIL_KNOWN | u32::from(detail))
}
