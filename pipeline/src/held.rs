//! Frames that wait for their next hop's MAC.
//!
//! The first packets to a neighbour that nobody has heard of wait here while it is asked for (RFC 1122, 2.3.2.2: at
//! least one, the latest). When it answers they walk once more; when it does not, they are dropped and their
//! senders told. Bounded: a few for each neighbour, so that one that is away costs the others nothing.

use std::time::Duration;

use packet::{Frame, Instant, PortId};

use crate::flow_cache::Transform;
use crate::tables::NeighborKey;

/// How many frames wait in all.
const CAPACITY: usize = 256;
/// How many of them for one neighbour; Linux keeps 101 of 2 KiB, and three round trips of a handshake need fewer.
const PER_NEIGHBOR: usize = 16;
/// How long a frame waits: three questions, a second apart (RFC 4861, 10).
const PATIENCE: Duration = Duration::from_millis(3500);

/// One frame that waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Whom it waits for.
    pub(crate) neighbor: NeighborKey,
    /// The frame, as it came.
    pub(crate) frame: Frame,
    /// The port it came by.
    pub(crate) from: PortId,
    /// It is decided: it only has to be packed for this tunnel and endpoint. Else it walks once more.
    pub(crate) to: Option<Transform>,
    since: Instant,
}

/// The frames that wait. See the module header.
#[derive(Debug)]
pub(crate) struct Held(Vec<Waiting>);

impl Held {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(CAPACITY))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps a frame.
    ///
    /// # Errors
    /// The frame, when there is no room.
    pub(crate) fn push(
        &mut self,
        neighbor: NeighborKey,
        frame: Frame,
        from: PortId,
        to: Option<Transform>,
        now: Instant,
    ) -> Result<(), Frame> {
        let same = self.0.iter().filter(|waiting| waiting.neighbor == neighbor).count();
        if same >= PER_NEIGHBOR || self.0.len() == CAPACITY {
            return Err(frame);
        }
        self.0.push(Waiting { neighbor, frame, from, to, since: now });
        Ok(())
    }

    /// Takes the first frame, in the order they came, whose neighbour is known or will not be; says which.
    pub(crate) fn take(
        &mut self,
        now: Instant,
        mut is_known: impl FnMut(&NeighborKey) -> bool,
    ) -> Option<(Waiting, bool)> {
        let found = self.0.iter().enumerate().find_map(|(n, waiting)| {
            let known = is_known(&waiting.neighbor);
            (known || now.since(waiting.since) > PATIENCE).then_some((n, known))
        });
        found.map(|(n, known)| (self.0.remove(n), known))
    }

    /// Says for whom frames wait, each once for every frame.
    pub(crate) fn neighbors(&self) -> impl Iterator<Item = NeighborKey> {
        self.0.iter().map(|waiting| waiting.neighbor)
    }
}
