//! Virtual reassembly: gives the later fragments of a datagram the ports of the first.

use packet::{Address, Frame, Instant, NetworkId, PortId};

/// What the fragments of a datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// The network they came from.
    pub network: NetworkId,
    /// Where the datagram comes from.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// Its protocol.
    pub protocol: u8,
    /// Its identification: 16 bits for IPv4, 32 for IPv6.
    pub id: u32,
}

/// One fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where its payload belongs in the datagram's, in bytes.
    pub offset: u32,
    /// Bytes of its payload.
    pub len: u32,
    /// Whether more fragments follow.
    pub more: bool,
    /// The L4 ports of a first fragment (`offset` 0): source, destination; zeros for a protocol without. `None`
    /// when the L4 header is not all there.
    pub ports: Option<(u16, u16)>,
}

/// What becomes of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// The first: decide it, then [`release`](Fragments::release) what waits for it.
    First {
        /// How many fragments wait.
        held: usize,
    },
    /// A later one: it goes the way of the first, whose L4 ports (source, destination) these are.
    Follows((u16, u16)),
    /// A later one that came before the first: [`hold`](Fragments::hold) it.
    Hold,
    /// Drop it.
    Drop(FragmentDrop),
}

/// Why a fragment is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FragmentDrop {
    /// It overlaps another of its datagram, or one did: none of it passes any more (RFC 8200, 4.5; RFC 5722).
    Overlap,
    /// It came before.
    Duplicate,
    /// Its datagram has too many fragments.
    TooMany,
    /// It is so short that it hides the ports or TCP flags (RFC 1858, RFC 3128), or no multiple of 8 bytes.
    Tiny,
    /// It ends beyond the 65 535 bytes of the longest datagram.
    TooLong,
}

/// One worker's datagrams in pieces. See the module header.
#[derive(Debug)]
pub struct Fragments {}

impl Fragments {
    /// Makes an empty table for `capacity` datagrams at a time.
    pub fn new(_capacity: usize, _seed: [u64; 2]) -> Self {
        Self {}
    }

    /// Notes a fragment that came from `from`, and says what becomes of it.
    pub fn see(&mut self, _key: FragmentKey, _from: PortId, _piece: Piece, _now: Instant) -> Sighting {
        Sighting::Drop(FragmentDrop::TooMany)
    }

    /// Keeps a fragment that [`see`](Fragments::see) said to hold.
    ///
    /// # Errors
    /// The frame, when there is no room or nothing to wait for.
    pub fn hold(&mut self, _key: FragmentKey, frame: Frame, _from: PortId) -> Result<(), Frame> {
        Err(frame)
    }

    /// Takes the next fragment that waited for the first one of its datagram, in order of arrival. It has been seen,
    /// and goes the way of the first.
    pub fn release(&mut self, _key: FragmentKey) -> Option<(Frame, PortId)> {
        None
    }

    /// Forgets datagrams whose time is over and hands the frames of those that will not pass to `dropped`.
    pub fn expire(&mut self, _now: Instant, _dropped: &mut impl FnMut(Frame, PortId)) {}

    /// Forgets everything, and hands all frames to `dropped`.
    pub fn clear(&mut self, _dropped: &mut impl FnMut(Frame, PortId)) {}

    /// Returns how many frames wait.
    pub fn held_frames(&self) -> usize {
        0
    }
}
