//! A network as a routing domain: where a packet that is in it goes next.
//!
//! The routes of a domain lead to next hops in the same network; what leads into another network is the same for
//! all and in the [`Router`](super::Router). So a route of the host that changes touches the uplink's domain
//! and no other.

use packet::{Address, PortId, Prefix, Tuple};

use crate::fib::Fib;

/// What the network is to the switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DomainKind {
    /// A configured network, with ports that the switch knows.
    #[default]
    Inside,
    /// The outside, by way of the host's devices, whose addresses it shares.
    Uplink,
    /// The host itself, behind its tap.
    Host,
}

/// A neighbour that packets are given to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hop {
    /// The port that it is behind, where the route says so (on the uplink: the device).
    pub port: Option<PortId>,
    /// The neighbour; [`Address::UNSPECIFIED`]: the destination itself, which is on the link.
    pub via: Address,
    /// The address that the host would send from; [`Address::UNSPECIFIED`] inside.
    pub source: Address,
}

/// What a route does with packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// It gives them to one of these, the same for all packets of a connection. Never empty.
    Hops(Vec<Hop>),
    /// They are for the gateway itself.
    Local,
    /// It drops them without a word.
    Blackhole,
    /// It drops them and says that the destination cannot be reached.
    Unreachable,
    /// It drops them and says that they are not allowed.
    Prohibit,
}

impl Route {
    /// Chooses a next hop: the same for all packets of a connection, and most connections keep theirs when others
    /// come and go (rendezvous hashing). `None` for a route that leads nowhere.
    pub fn choose(&self, tuple: &Tuple) -> Option<Hop> {
        match self {
            Route::Hops(hops) => match &**hops {
                // PERF: most routes have one, and weighing costs some 200 instructions.
                [hop] => Some(*hop),
                hops => hops.iter().copied().max_by_key(|hop| weight(hop, tuple)),
            },
            _ => None,
        }
    }
}

fn weight(hop: &Hop, tuple: &Tuple) -> u64 {
    let ports = u64::from(tuple.source_port) << 32 | u64::from(tuple.destination_port) << 16;
    let start = ports | u64::from(tuple.protocol) | hop.port.map_or(0, |port| u64::from(port.0)) << 48;
    let words = [tuple.source, tuple.destination, hop.via].map(Address::to_bits);
    words.iter().fold(start, |hash, word| mix(mix(hash, high(*word)), low(*word)))
}

/// One round of a multiplicative hash: it has to spread, not to keep a secret.
fn mix(hash: u64, word: u64) -> u64 {
    let product = u128::from(hash ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
    high(product) ^ low(product)
}

#[expect(clippy::cast_possible_truncation, reason = "the half that is asked for")]
fn low(word: u128) -> u64 {
    word as u64
}

fn high(word: u128) -> u64 {
    (word >> 64) as u64
}

/// What a domain is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainSpec {
    /// What the network is to the switch.
    pub kind: DomainKind,
    /// Its routes; of two with the same prefix the later counts.
    pub routes: Vec<(Prefix, Route)>,
    /// Packets that leave by the uplink get an address of the host; without, they keep theirs and the outside
    /// must know a way back.
    pub masquerade: bool,
    /// Nothing leaves by the uplink or to the host.
    pub internal: bool,
    /// The host is reached from here and reaches it.
    pub host: bool,
    /// Packets between stations of the network are tracked too: a policy is about them, or they may belong to a
    /// translated connection.
    pub tracked: bool,
}

/// The routing part of a network. See the module header.
#[derive(Debug)]
pub struct Domain {
    spec: DomainSpec,
    fib: Fib,
}

impl Domain {
    /// Builds the look-up structure of `spec`.
    pub fn new(spec: DomainSpec) -> Self {
        let mut fib = Fib::builder();
        for (n, (prefix, _)) in spec.routes.iter().enumerate() {
            fib.insert(*prefix, u32::try_from(n).expect("far fewer routes than 2^32"));
        }
        Self { fib: fib.build(), spec }
    }

    /// Returns what it was made from.
    pub fn spec(&self) -> &DomainSpec {
        &self.spec
    }

    /// Returns the longest prefix that `destination` is in, and its route.
    pub fn lookup(&self, destination: Address) -> Option<(Prefix, &Route)> {
        let n = self.fib.lookup(destination)?;
        self.spec.routes.get(n as usize).map(|(prefix, route)| (*prefix, route))
    }
}

impl PartialEq for Domain {
    fn eq(&self, other: &Self) -> bool {
        self.spec == other.spec
    }
}

impl Eq for Domain {}
