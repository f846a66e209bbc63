//! What a station is to the FDB: its name, its place, and what learning says about it.

use packet::{Instant, MacAddr, NetworkId, PortId, VlanId, VtepId};

use crate::flow_cache::StationRef;

/// What a station is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StationKey {
    /// The network.
    pub network: NetworkId,
    /// The VLAN within it.
    pub vlan: VlanId,
    /// The address.
    pub mac: MacAddr,
}

/// Where a station or a neighbour is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The port it is behind.
    pub port: PortId,
    /// When that is a tunnel: the endpoint it is behind.
    pub vtep: Option<VtepId>,
}

impl From<PortId> for At {
    fn from(port: PortId) -> Self {
        Self { port, vtep: None }
    }
}

/// How a station came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StationKind {
    /// From the source of a frame; ages and moves.
    Learned,
    /// Set by the manager or the user; stays until it is removed.
    Fixed,
}

/// A station as [`super::Fdb::list`] tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Station {
    /// What it is known by.
    pub key: StationKey,
    /// The port it is behind.
    pub port: PortId,
    /// When that is a tunnel: the endpoint it is behind.
    pub vtep: Option<VtepId>,
    /// How it came to be known.
    pub kind: StationKind,
    /// When a frame of it was last walked; up to an eighth of the ageing time behind.
    pub seen: Instant,
    /// How often it moved.
    pub moves: u32,
}

impl Station {
    pub(super) fn at(&self) -> At {
        At { port: self.port, vtep: self.vtep }
    }
}

/// What a look-up finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The port the station is behind.
    pub port: PortId,
    /// When that is a tunnel: the endpoint it is behind.
    pub vtep: Option<VtepId>,
    /// How it came to be known.
    pub kind: StationKind,
    /// Its place and version, for a cached decision.
    pub station: StationRef,
}

/// How many stations may be learned.
#[derive(Clone, Copy, Debug)]
pub struct LearnLimits {
    /// Behind the port.
    pub port: u32,
    /// In the network.
    pub network: u32,
}

/// What learning did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// It was known there, and is alive.
    Known(StationRef),
    /// It is new.
    New(StationRef),
    /// It was at `from` and is now at the given place.
    Moved {
        /// The new place and version.
        station: StationRef,
        /// Where it was.
        from: At,
    },
    /// It stays elsewhere: it is fixed there, or it moves too often.
    Held(At),
    /// A limit or the capacity is reached.
    Full,
}
