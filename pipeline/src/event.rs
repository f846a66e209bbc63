//! What the pipeline tells the manager.
//!
//! Events wait in a bounded queue of the worker's pipeline; when it is full they are counted and lost, so a
//! manager that is slow costs news, never packets.

use std::collections::VecDeque;

use packet::{Address, NetworkId, PortId, Tuple};

use crate::tables::StationKey;

/// Something that the manager may act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A learned station moved from one port to another.
    StationMoved {
        /// The station.
        station: StationKey,
        /// Where it was.
        from: PortId,
        /// Where it is now; or where it was seen, when it moves too often to be followed.
        to: PortId,
        /// It moves too often and stays where it was.
        held: bool,
    },
    /// The host's kernel is to find out who has an address: packets wait for it.
    Resolve {
        /// The device's port.
        port: PortId,
        /// The address.
        address: Address,
    },
    /// A policy that is to be logged decided about a new connection.
    Policy {
        /// The rule's number.
        rule: u32,
        /// The port that the connection came by.
        from: PortId,
        /// The connection.
        tuple: Tuple,
    },
    /// A router on the way to another host cannot pass on packets that are longer than this.
    PathMtu {
        /// The other host's endpoint.
        to: Address,
        /// Bytes of the longest outer IP packet.
        mtu: u32,
    },
    /// A loop probe came back: the two ports are wired together outside the switch.
    LoopSeen {
        /// The network of the probe.
        network: NetworkId,
        /// The port that it was sent by.
        sent_by: PortId,
        /// The port that it came in by.
        seen_at: PortId,
    },
}

/// The bounded queue of events.
#[derive(Debug)]
pub(crate) struct Events(VecDeque<Event>);

impl Events {
    const CAPACITY: usize = 256;

    pub(crate) fn new() -> Self {
        Self(VecDeque::with_capacity(Self::CAPACITY))
    }

    /// Adds an event and says whether there was room.
    pub(crate) fn push(&mut self, event: Event) -> bool {
        let room = self.0.len() < Self::CAPACITY;
        if room {
            self.0.push_back(event);
        }
        room
    }

    pub(crate) fn pop(&mut self) -> Option<Event> {
        self.0.pop_front()
    }
}
