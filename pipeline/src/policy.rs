//! The policy classifier: which rule decides about the first packet of a connection.

use std::sync::Arc;

use packet::{NetworkId, PortId, Prefix, Tuple};

use crate::snapshot::MAX_PORTS;

/// Who a packet is from or for: ports have their number, others a number above.
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
}

impl PolicySet {
    /// Makes the set; a rule's number is its index in `rules`.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// Returns the number of the rule that decides, or `None` when none matches.
    pub fn decide(&self, question: &Question) -> Option<u32> {
        let matching = self.rules.iter().enumerate().filter(|(_, rule)| rule.matches(question));
        let first = matching.min_by_key(|(n, rule)| (rule.priority, rule.action == Action::Allow, *n));
        first.and_then(|(n, _)| u32::try_from(n).ok())
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
        self.rules.iter().any(|rule| {
            let names = |peer: &Peer| matches!(peer, Peer::Identities(named) if named.contains(&identity));
            let unnamed = |peer: &Peer| !matches!(peer, Peer::Identities(_));
            names(&rule.from) || names(&rule.to) || unnamed(&rule.from) && unnamed(&rule.to)
        })
    }
}

impl Rule {
    /// Says whether the rule matches. [`PolicySet::decide`] finds the same answer faster.
    pub fn matches(&self, question: &Question) -> bool {
        let Question { from, to, tuple, .. } = question;
        let source = |peer: &Peer| peer.matches(*from, tuple.source);
        let destination = |peer: &Peer| peer.matches(*to, tuple.destination);
        let ways = source(&self.from) && destination(&self.to)
            || self.both_ways && source(&self.to) && destination(&self.from);
        ways && self.services.iter().any(|service| service.matches(question))
    }
}

impl Peer {
    fn matches(&self, identity: Identity, address: packet::Address) -> bool {
        match self {
            Peer::Any => true,
            Peer::Identities(identities) => identities.contains(&identity),
            Peer::Prefixes(prefixes) => prefixes.iter().any(|prefix| prefix.contains(address)),
        }
    }
}

impl Service {
    fn matches(self, question: &Question) -> bool {
        let Tuple { protocol: of, destination_port: port, .. } = question.tuple;
        match self {
            Service::Any => true,
            Service::Protocol(protocol) => of == protocol,
            Service::Ports { protocol, first, last } => {
                of == protocol && !ICMP.contains(&of) && (first..=last).contains(&port)
            }
            Service::Icmp { v6, kind, code } => {
                let has = |want: Option<u8>, is: Option<u8>| want.is_none() || want == is;
                of == ICMP[usize::from(v6)]
                    && has(kind, question.icmp.map(|(kind, _)| kind))
                    && has(code, question.icmp.map(|(_, code)| code))
            }
        }
    }
}

/// The protocol numbers of ICMP for IPv4 and IPv6.
const ICMP: [u8; 2] = [1, 58];
