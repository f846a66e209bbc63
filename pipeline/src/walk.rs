//! A walk through the stages: what they see, what they decide, what shall follow.
//!
//! A stage changes nothing. It reads the [`Packet`] and the [`View`], writes its decision into the [`Walk`],
//! and says by its [`Step`] whether the next stage shall be asked. What shall change in the world (a station
//! learned, a token taken) is an [`Effect`]: the pipeline carries the effects out at the end, or prints them.

use packet::header::ethertype;
use packet::{Address, Frame, Instant, MacAddr, NetworkId, PortId, VlanId};

use crate::answer::{Problem, RouterAdvert};
use crate::drop_reason::DropReason;
use crate::flow_cache::{StationRef, Transform};
use crate::snapshot::{NetworkInfo, PortInfo, Snapshot};
use crate::tables::{StationKey, Tables};

/// A frame under decision, and what every stage wants to know of it.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The frame from its Ethernet header on; at least 14 bytes.
    pub bytes: &'a [u8],
    /// The port it came in by.
    pub from: PortId,
    /// Longest packet it puts on the wire, Ethernet header and tag included.
    pub wire_len: usize,
}

impl<'a> Packet<'a> {
    /// Returns the view of a frame, or `None` when it is shorter than an Ethernet header or its tag.
    pub fn new(frame: &'a Frame, from: PortId) -> Option<Self> {
        let bytes = frame.bytes();
        let packet = Self { bytes, from, wire_len: frame.wire_len() };
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

/// What a stage says about going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next stage shall look at the packet.
    Next,
    /// The decision is made.
    Done,
    /// The packet dies.
    Drop(DropReason),
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
}

/// What the stages have decided so far.
#[derive(Debug)]
pub struct Walk {
    /// The network the packet is in.
    pub network: NetworkId,
    /// The VLAN it is in. Written by `guard`.
    pub vlan: VlanId,
    /// Its source, as far as it is known to be where it came from. Written by `learn`.
    pub source: Option<StationRef>,
    /// Its fate. Written by `proxy` or `bridge`, completed by `output`.
    pub decision: Decision,
    effects: [Option<Effect>; 4],
}

impl Walk {
    /// Starts a walk in `network`.
    pub fn new(network: NetworkId) -> Self {
        Self {
            network,
            vlan: VlanId::UNTAGGED,
            source: None,
            decision: Decision::Pending,
            effects: [None; 4],
        }
    }

    /// Adds an effect. There is room for one of each kind and more.
    pub fn then(&mut self, effect: Effect) {
        let place = self.effects.iter_mut().find(|place| place.is_none());
        *place.expect("each stage adds one effect at most") = Some(effect);
    }

    /// Returns the effects, in the order they were added.
    pub fn effects(&self) -> impl Iterator<Item = Effect> + use<> {
        self.effects.into_iter().flatten()
    }
}
