//! The pieces of one datagram: which were seen, and whether they fit together.

use packet::PortId;

use super::{FragmentDrop, FragmentKey, List};

/// Fragments of one datagram. 64 KiB over a path of 1280 bytes needs 52.
const PIECES: usize = 64;

/// How a datagram stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// There is none.
    #[default]
    None,
    /// Pieces are missing.
    Open,
    /// All pieces were seen.
    Whole,
    /// No more of it passes.
    Refused(FragmentDrop),
}

/// One datagram. Kept in place, as it is large.
#[derive(Clone, Debug)]
pub(super) struct Datagram {
    pub(super) key: FragmentKey,
    /// The port that the fragment seen first came from.
    pub(super) from: PortId,
    pub(super) state: State,
    /// The ports, once the first fragment was seen.
    pub(super) ports: Option<(u16, u16)>,
    /// The frames that wait.
    pub(super) held: List,
    /// The length, once the last fragment was seen.
    len: Option<u16>,
    /// Bytes in the pieces.
    bytes: u16,
    count: usize,
    /// Where each piece begins and ends.
    pieces: [(u16, u16); PIECES],
}

impl Default for Datagram {
    fn default() -> Self {
        let nowhere = packet::Address::UNSPECIFIED;
        let network = packet::NetworkId(0);
        Self {
            key: FragmentKey { network, source: nowhere, destination: nowhere, protocol: 0, id: 0 },
            from: PortId(0),
            state: State::None,
            ports: None,
            held: List::default(),
            len: None,
            bytes: 0,
            count: 0,
            pieces: [(0, 0); PIECES],
        }
    }
}

impl Datagram {
    /// Begins another datagram here; no frames wait.
    pub(super) fn begin(&mut self, key: FragmentKey, from: PortId) {
        self.key = key;
        self.from = from;
        self.state = State::Open;
        self.ports = None;
        self.len = None;
        self.bytes = 0;
        self.count = 0;
    }

    /// Says whether exactly this piece was seen.
    pub(super) fn has(&self, start: u16, end: u16) -> bool {
        self.pieces[..self.count].contains(&(start, end))
    }

    /// Adds a piece, which is not empty.
    ///
    /// # Errors
    /// When it does not fit with the others. All but a duplicate refuse the datagram.
    pub(super) fn add(&mut self, start: u16, end: u16, more: bool) -> Result<(), FragmentDrop> {
        if let State::Refused(why) = self.state {
            return Err(why);
        }
        if self.has(start, end) {
            return Err(FragmentDrop::Duplicate);
        }
        let pieces = &self.pieces[..self.count];
        let len = if more { self.len } else { Some(end) };
        let beyond = |(_, other): &(u16, u16)| len.is_some_and(|len| *other > len);
        let clash = pieces.iter().any(|piece| piece.0 < end && start < piece.1 || beyond(piece))
            || beyond(&(start, end))
            // A second end.
            || !more && self.len.is_some();
        if clash {
            return Err(self.refuse(FragmentDrop::Overlap));
        }
        let Some(place) = self.pieces.get_mut(self.count) else {
            return Err(self.refuse(FragmentDrop::TooMany));
        };
        *place = (start, end);
        self.count += 1;
        self.len = len;
        // Pieces do not overlap, so their sum is at most the length.
        self.bytes += end - start;
        if self.len == Some(self.bytes) {
            self.state = State::Whole;
        }
        Ok(())
    }

    fn refuse(&mut self, why: FragmentDrop) -> FragmentDrop {
        self.state = State::Refused(why);
        why
    }
}
