//! A walk through the stages: what they see, what they decide, what shall follow.
//!
//! A stage changes nothing. It reads the [`Packet`] and the [`View`], writes its decision into the [`Walk`],
//! and says by its [`Step`] whether the next stage shall be asked. What shall change in the world (a station
//! learned, a token taken) is an [`Effect`]: the pipeline carries the effects out at the end, or prints them.

use std::sync::Arc;

use packet::header::{ethertype, protocol};
use packet::{Address, Frame, Instant, MacAddr, NetworkId, PortId, Tuple, VlanId, VtepId};

use crate::answer::{Problem, RouterAdvert};
use crate::drop_reason::DropReason;
use crate::flow_cache::{StationRef, TagAction, Transform};
use crate::headers::Headers;
use crate::rewrite::Embedded;
use crate::snapshot::{DomainKind, HandBack, NetworkInfo, PortInfo, Snapshot};
use crate::tables::connections::{ConnectionId, Found as Connection};
use crate::tables::nat_ports::Candidate;
use crate::tables::{Adjacency, NeighborKey, Pool, StationKey, Tables, Target};
use crate::trace::Trace;

/// A frame under decision, and what every stage wants to know of it.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The frame from its Ethernet header on; at least 14 bytes.
    pub bytes: &'a [u8],
    /// The port it came in by.
    pub from: PortId,
    /// Longest packet it puts on the wire, Ethernet header and tag included.
    pub wire_len: usize,
    /// It is cut into several on the wire.
    pub is_large: bool,
    /// When the port is a tunnel, the endpoint that it came from.
    pub vtep: Option<VtepId>,
}

impl<'a> Packet<'a> {
    /// Returns the view of a frame, or `None` when it is shorter than an Ethernet header or its tag.
    pub fn new(frame: &'a Frame, from: PortId) -> Option<Self> {
        let bytes = frame.bytes();
        let packet =
            Self { bytes, from, wire_len: frame.wire_len(), is_large: frame.is_gso(), vtep: frame.vtep() };
        (bytes.len() >= 14 && (bytes.len() >= 18 || !packet.is_tagged())).then_some(packet)
    }

    /// Returns the destination MAC.
    pub fn destination(&self) -> MacAddr {
        self.mac(0)
    }

    /// Returns the source MAC.
    pub fn source(&self) -> MacAddr {
        self.mac(6)
    }

    /// Says whether the frame has an 802.1Q tag.
    pub fn is_tagged(&self) -> bool {
        self.word(12) == ethertype::VLAN
    }

    /// Returns the VLAN of the frame's tag; a tag with VLAN 0 is returned as such.
    pub fn tag(&self) -> Option<VlanId> {
        self.is_tagged().then(|| VlanId(self.word(14) & 0x0fff))
    }

    /// Returns the type of the payload, behind the tag when there is one.
    pub fn ethertype(&self) -> u16 {
        self.word(self.payload_offset() - 2)
    }

    /// Returns the bytes behind the Ethernet header and tag.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.payload_offset()..]
    }

    /// Returns where the payload begins: 14 or 18.
    pub fn payload_offset(&self) -> usize {
        if self.is_tagged() { 18 } else { 14 }
    }

    /// Returns what decides whether and how the frame fits a port.
    pub fn shape(&self) -> Shape {
        Shape { packet_len: self.wire_len.saturating_sub(self.payload_offset()), tag: self.tag() }
    }

    fn mac(&self, at: usize) -> MacAddr {
        let mut mac = [0; 6];
        mac.copy_from_slice(&self.bytes[at..at + 6]);
        MacAddr(mac)
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }
}

/// What decides whether and how a frame fits a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Longest packet on the wire, without Ethernet header and tag.
    pub packet_len: usize,
    /// The VLAN of its tag.
    pub tag: Option<VlanId>,
}

/// All that a stage may look at, besides the packet.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The configuration.
    pub snapshot: &'a Snapshot,
    /// What workers share: the FDB, meters.
    pub tables: &'a Tables,
    /// The port that the packet came in by.
    pub port: &'a PortInfo,
    /// Its network.
    pub network: &'a NetworkInfo,
    /// The time of this turn.
    pub now: Instant,
}

impl<'a> View<'a> {
    /// Returns what the stages may look at for a packet from a port; `None` when that is down or gone.
    pub fn of(snapshot: &'a Snapshot, tables: &'a Tables, from: PortId, now: Instant) -> Option<Self> {
        let port = snapshot.port(from).filter(|port| port.up)?;
        let network = snapshot.network(port.network)?;
        Some(Self { snapshot, tables, port, network, now })
    }

    /// Returns the router's MAC on the port that the packet came in by.
    pub fn router_mac(&self) -> MacAddr {
        let gateway = self.network.gateway.as_ref().map(|gateway| gateway.mac);
        self.port.router_mac.or(gateway).unwrap_or_default()
    }

    /// Returns the address from which the sender of a packet is told about it: the gateway's; on the uplink the one that
    /// the host would use.
    pub fn own_address(&self, headers: Option<&Headers>) -> Address {
        let Some(headers) = headers else { return Address::UNSPECIFIED };
        let domain = self.network.domain.as_ref().filter(|domain| domain.spec().kind == DomainKind::Uplink);
        let way_back = domain.and_then(|domain| domain.lookup(headers.tuple.source));
        let hop = way_back.and_then(|(_, route)| route.choose(&headers.tuple.inverted()));
        let own = self.snapshot.own_address(self.port.network, headers.v6);
        hop.map(|hop| hop.source).or(own).unwrap_or(Address::UNSPECIFIED)
    }
}

/// What a stage says about going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next stage shall look at the packet.
    Next,
    /// The decision is made.
    Done,
    /// The packet dies.
    Drop(DropReason),
    /// A connection ended by what was found: the walk begins anew without it.
    Again,
}

/// What shall happen to the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// No stage has decided yet.
    Pending,
    /// It goes to one port.
    Forward {
        /// Where to and how.
        transform: Transform,
        /// The station it goes to.
        station: StationRef,
    },
    /// A copy goes to every other port of the network and VLAN.
    Flood,
    /// It becomes its own answer and goes back.
    Answer(Answer),
    /// It is routed to a neighbour.
    Route {
        /// The neighbour's place in the table.
        adjacency: Adjacency,
        /// Where the neighbour is.
        target: Target,
        /// What happens to the VLAN tag.
        tag: TagAction,
        /// It has to be cut into fragments for this MTU.
        cut_to: Option<u32>,
    },
    /// It waits until its neighbour is known.
    Hold(NeighborKey),
    /// It dies, and its sender is told.
    Refuse(DropReason, Answer),
    /// It goes on to the host's own stack, as it came: by the port that its port names for that.
    HandBack,
    /// It ends here as meant.
    Consume,
    /// It ends here as meant: the router of another host looks for an address, which is to be found out among the stations
    /// of this one.
    Seek(NeighborKey),
}

/// An answer that the switch gives itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To an ARP request: the target is at this MAC.
    Arp(MacAddr),
    /// To a neighbour solicitation: the target is at this MAC, and is a router or not.
    NeighborAdvert {
        /// The target's MAC.
        mac: MacAddr,
        /// The target is the gateway.
        router: bool,
    },
    /// To an ICMP echo request: the reply, from this MAC and the address that was asked.
    Echo(MacAddr),
    /// To a packet that goes no further: an ICMP error about it.
    Problem {
        /// Why it goes no further.
        problem: Problem,
        /// The gateway's address, of the packet's family.
        from: Address,
        /// The gateway's MAC.
        mac: MacAddr,
    },
    /// To a TCP segment: the reset that its receiver would send, from this MAC.
    Reset(MacAddr),
    /// To a router solicitation: what the gateway offers.
    RouterAdvert {
        /// The gateway's MAC.
        mac: MacAddr,
        /// What it says.
        advert: RouterAdvert,
    },
}

/// What shall change in the world if the packet is not dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The source is to be learned, or noted as alive.
    Learn(StationKey),
    /// A flooded frame takes a token of the port's storm limit.
    StormToken {
        /// Frames a second.
        rate: u32,
    },
    /// Somebody said who has an address.
    Meet {
        /// The address, in its network.
        neighbor: NeighborKey,
        /// The MAC that has it.
        mac: MacAddr,
        /// He asked us for one of ours, and so will be sent something.
        asks: bool,
    },
    /// The way to another host takes outer packets of so many bytes at most.
    PathMtu {
        /// Its endpoint.
        to: Address,
        /// Bytes of an IP packet.
        mtu: u32,
    },
}

/// The connection that a packet belongs to.
#[derive(Clone, Copy, Debug, Default)]
pub enum Lookup {
    /// Connections do not concern it.
    #[default]
    Untracked,
    /// It is the first of a new one.
    New,
    /// It belongs to this one. `holds`: under the present configuration too, which was looked at before.
    Known {
        /// The connection, and the packet's direction in it.
        found: Connection,
        /// Its decisions need no second look.
        holds: bool,
    },
    /// It is an ICMP error about a packet of this one, which went in this direction.
    Related {
        /// The connection, and the direction of the packet that the error quotes.
        found: Connection,
        /// The quoted packet.
        embedded: Embedded,
    },
}

/// Whose fate the routing stages decide: the first packet of the connection, whichever packet they are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject {
    /// The network that it is in.
    pub network: NetworkId,
    /// The port it came by.
    pub from: PortId,
    /// Where from, where to.
    pub tuple: Tuple,
}

/// Where the subject really goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Destination {
    /// The network of the destination; `None` until `route` has found it.
    pub network: Option<NetworkId>,
    /// Its address.
    pub address: Address,
    /// Its port.
    pub port: u16,
    /// Number of the translation that led there.
    pub translation: Option<u32>,
}

/// What the subject leaves as.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeavesAs {
    /// The source address.
    pub address: Address,
    /// The source port.
    pub port: u16,
    /// The port that has to be taken for it.
    pub wanted: Option<(Pool, Candidate)>,
}

/// What the stages have decided so far. Each field is written by the stage that it names, and read by later ones.
#[derive(Debug)]
pub struct Walk {
    /// The network the packet is in.
    pub network: NetworkId,
    /// The packet's IP and transport headers; `None` when it is not IP, or malformed IP that is only bridged.
    pub headers: Option<Headers>,
    /// The VLAN it is in. Written by `guard`.
    pub vlan: VlanId,
    /// Its source, as far as it is known to be where it came from. Written by `learn`.
    pub source: Option<StationRef>,
    /// It is for the router's MAC. Written by `bridge`.
    pub routed: bool,
    /// The connection it belongs to. Written by `connection`.
    pub connection: Lookup,
    /// Whose fate the next stages decide. Written by `connection`.
    pub subject: Subject,
    /// A connection that ends whatever happens to the packet. Written by `connection`, `policy` and `forward`.
    pub ended: Option<ConnectionId>,
    /// Where the subject really goes. Written by `dnat`, completed by `route`.
    pub destination: Destination,
    /// The rule that let the subject pass. Written by `policy`.
    pub rule: Option<u32>,
    /// The rule or published port that the packet dies by. Written by `dnat` and `policy`.
    pub because: Option<Arc<str>>,
    /// What the subject leaves as. Written by `snat`.
    pub leaves_as: LeavesAs,
    /// What the packet becomes. Written by `forward`.
    pub becomes: Tuple,
    /// The network that it leaves in. Written by `forward`.
    pub leaves_in: NetworkId,
    /// Its fate. Written by `proxy`, `bridge` or `neighbor`, completed by `output`.
    pub decision: Decision,
    /// How often a port that was wanted had just been taken by another worker, or an answer's key was in use.
    pub attempt: u32,
    pub(crate) effects: [Option<Effect>; 4],
    pub(crate) trace: Option<Box<Trace>>,
}

impl Walk {
    /// Starts a walk in `network`.
    #[inline]
    pub fn new(network: NetworkId, headers: Option<Headers>) -> Self {
        Self {
            network,
            headers,
            vlan: VlanId::UNTAGGED,
            source: None,
            routed: false,
            connection: Lookup::Untracked,
            subject: Subject::default(),
            ended: None,
            destination: Destination::default(),
            rule: None,
            because: None,
            leaves_as: LeavesAs::default(),
            becomes: Tuple::default(),
            leaves_in: network,
            decision: Decision::Pending,
            attempt: 0,
            effects: [None; 4],
            trace: None,
        }
    }

    /// Forgets all decisions, but for the connection that has ended, and goes on with this attempt.
    pub(crate) fn begin_again(&mut self, attempt: u32) {
        *self = Self { attempt, ended: self.ended, ..Self::new(self.network, self.headers) };
    }

    /// Has every stage say what it did.
    #[must_use]
    pub fn traced(mut self) -> Self {
        self.trace = Some(Box::default());
        self
    }

    /// Returns what the stages said, when they were asked to.
    pub fn take_trace(&mut self) -> Option<Trace> {
        self.trace.take().map(|trace| *trace)
    }

    /// Says that `stage` has its turn.
    #[inline(always)]
    pub(crate) fn enter(&mut self, stage: &'static str) {
        #[cold]
        fn say(trace: &mut Trace, stage: &'static str) {
            trace.enter(stage);
        }
        if let Some(trace) = &mut self.trace {
            say(trace, stage);
        }
    }

    /// Says something about the decision of the present stage. Outside a trace the closure is not called.
    #[inline(always)]
    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        #[cold]
        fn say(trace: &mut Trace, text: impl FnOnce() -> String) {
            trace.note(text());
        }
        if let Some(trace) = &mut self.trace {
            say(trace, text);
        }
    }

    /// Says whether connections, routes and policies decide about the packet.
    pub fn is_tracked(&self) -> bool {
        !matches!(self.connection, Lookup::Untracked)
    }

    /// Says whether the stages between `connection` and `forward` have something to decide.
    pub fn is_undecided(&self) -> bool {
        matches!(self.connection, Lookup::New | Lookup::Known { holds: false, .. })
    }

    /// The packet dies, and its sender is told why; a TCP segment that is not welcome is reset. A connection that it
    /// belongs to ends, unless only this packet is wrong.
    pub fn refuse(&mut self, view: &View<'_>, reason: DropReason, problem: Problem) -> Step {
        let mac = view.router_mac();
        let is_tcp = self.headers.is_some_and(|headers| headers.protocol == protocol::TCP);
        let answer = match problem {
            Problem::AdminProhibited | Problem::PortUnreachable if is_tcp => Answer::Reset(mac),
            problem => Answer::Problem { problem, from: view.own_address(self.headers.as_ref()), mac },
        };
        if !matches!(reason, DropReason::Ttl | DropReason::Mtu) {
            self.end_known();
        }
        self.decision = Decision::Refuse(reason, answer);
        Step::Done
    }

    /// The packet came from outside and is not the switch's: the host's stack gets it, where that has a part in the
    /// device.
    pub fn hand_back(&mut self, view: &View<'_>) -> Step {
        if view.port.hand_back == HandBack::Nowhere {
            self.note(|| "nothing of ours, and the host has no part in the device".to_owned());
            return Step::Drop(DropReason::NoListener);
        }
        self.note(|| "nothing of ours: the host's stack gets it".to_owned());
        self.decision = Decision::HandBack;
        Step::Done
    }

    /// The connection that the packet belongs to ends.
    pub fn end_known(&mut self) {
        if let Lookup::Known { found, .. } = self.connection {
            self.ended = Some(found.id);
        }
    }

    /// Adds an effect. There is room for one of each kind and more.
    pub fn then(&mut self, effect: Effect) {
        let place = self.effects.iter_mut().find(|place| place.is_none());
        *place.expect("each stage adds one effect at most") = Some(effect);
    }

    /// Returns the effects, in the order they were added.
    pub fn effects(&self) -> impl Iterator<Item = Effect> {
        self.effects.iter().map_while(|effect| *effect)
    }
}
