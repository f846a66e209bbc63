//! Which chunks of the area this port has lent to the kernel.
//!
//! One byte a page of the area, and a count. It makes the return of a chunk checkable (an address that was
//! not lent, or not from that ring, is refused instead of believed) and the end of a port exact: when the
//! socket is closed, what is still marked is ours again, whichever ring it was in, and also if the kernel
//! consumed a descriptor without ever completing it.
//!
//! Capacity: all pages of the area. Owned by the port's worker.

use packet::area::{Area, CHUNK_LEN, ChunkKind};
use packet::{Frame, FramePool};

/// The mark of a chunk in the fill or receive ring. Other marks count descriptors in the transmit and completion
/// rings: a large chunk leaves as up to [`MAX_PIECES`] of them.
const RECEIVING: u8 = u8::MAX;

/// The most descriptors that one chunk may leave as.
pub(super) const MAX_PIECES: usize = 64;

/// The marks, by the page that a chunk starts at.
#[derive(Debug)]
pub(super) struct Ledger {
    marks: Box<[u8]>,
    lent: u32,
}

/// What a completion means for its chunk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Completed {
    /// All of it is ours again.
    Whole,
    /// Other descriptors of the same chunk are still out.
    Part,
    /// It was not out.
    Stray,
}

impl Ledger {
    pub(super) fn new(area: &Area) -> Self {
        Self { marks: vec![0; area.len() / CHUNK_LEN].into_boxed_slice(), lent: 0 }
    }

    /// Returns how many chunks are lent.
    #[inline]
    pub(super) fn lent(&self) -> u32 {
        self.lent
    }

    /// Notes that the chunk that starts at `chunk` goes into the fill ring.
    #[inline]
    pub(super) fn lend_to_receive(&mut self, chunk: usize) {
        self.mark(chunk, RECEIVING);
    }

    /// Notes that the chunk that starts at `chunk` goes into the transmit ring as `pieces` descriptors.
    #[inline]
    pub(super) fn lend_to_transmit(&mut self, chunk: usize, pieces: usize) {
        debug_assert!((1..=MAX_PIECES).contains(&pieces));
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_PIECES")]
        self.mark(chunk, pieces as u8);
    }

    fn mark(&mut self, chunk: usize, mark: u8) {
        let page = &mut self.marks[chunk / CHUNK_LEN];
        debug_assert_eq!(*page, 0, "the chunk is lent already");
        *page = mark;
        self.lent += 1;
    }

    /// Takes the chunk back from the receive ring; false when it had not been lent to it.
    #[inline]
    #[must_use = "a chunk that was not lent is not ours to use"]
    pub(super) fn received(&mut self, chunk: usize) -> bool {
        let page = &mut self.marks[chunk / CHUNK_LEN];
        if *page != RECEIVING {
            return false;
        }
        *page = 0;
        self.lent -= 1;
        true
    }

    /// Takes one descriptor of the chunk back from the completion ring.
    #[inline]
    pub(super) fn completed(&mut self, chunk: usize) -> Completed {
        let page = &mut self.marks[chunk / CHUNK_LEN];
        match *page {
            0 | RECEIVING => Completed::Stray,
            1 => {
                *page = 0;
                self.lent -= 1;
                Completed::Whole
            }
            _ => {
                *page -= 1;
                Completed::Part
            }
        }
    }

    /// Gives every lent chunk back.
    ///
    /// # Safety
    /// The kernel no longer refers to any of them: the socket is closed.
    pub(super) unsafe fn reclaim_all(&mut self, area: &Area, pool: &mut FramePool) {
        for (page, mark) in self.marks.iter_mut().enumerate() {
            if *mark == 0 {
                continue;
            }
            *mark = 0;
            self.lent -= 1;
            // SAFETY: the mark says that we lent the chunk, and the caller that the kernel let go of it.
            let frame: Frame = unsafe { area.reclaim(page * CHUNK_LEN, 0) };
            pool.free(frame);
        }
        debug_assert_eq!(self.lent, 0, "the count follows the marks");
    }
}

/// Returns the chunk that the byte at `offset` is in, or `None` when the offset is outside the area.
#[inline]
pub(super) fn chunk_at(area: &Area, offset: usize) -> Option<(ChunkKind, usize)> {
    (offset < area.len()).then(|| area.chunk_of(offset))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn ledger() -> (Arc<Area>, FramePool, Ledger) {
        let area = Area::new(8, 1).expect("a small area");
        let ledger = Ledger::new(&area);
        (Arc::clone(&area), FramePool::new(area), ledger)
    }

    #[test]
    fn a_chunk_comes_back_only_from_where_it_went() {
        let (_area, _pool, mut ledger) = ledger();
        ledger.lend_to_receive(CHUNK_LEN);
        ledger.lend_to_transmit(2 * CHUNK_LEN, 1);
        assert_eq!(ledger.completed(CHUNK_LEN), Completed::Stray);
        assert!(!ledger.received(2 * CHUNK_LEN));
        assert!(!ledger.received(0));
        assert_eq!(ledger.lent(), 2);
        assert!(ledger.received(CHUNK_LEN));
        assert!(!ledger.received(CHUNK_LEN));
        assert_eq!(ledger.completed(2 * CHUNK_LEN), Completed::Whole);
        assert_eq!(ledger.completed(2 * CHUNK_LEN), Completed::Stray);
        assert_eq!(ledger.lent(), 0);
    }

    #[test]
    fn a_large_chunk_is_back_after_its_last_descriptor() {
        let (_area, _pool, mut ledger) = ledger();
        ledger.lend_to_transmit(8 * CHUNK_LEN, 3);
        assert_eq!(ledger.completed(8 * CHUNK_LEN), Completed::Part);
        assert_eq!(ledger.completed(8 * CHUNK_LEN), Completed::Part);
        assert_eq!(ledger.lent(), 1);
        assert_eq!(ledger.completed(8 * CHUNK_LEN), Completed::Whole);
        assert_eq!(ledger.lent(), 0);
    }

    #[test]
    fn what_is_left_comes_home_at_the_end() {
        let (area, mut pool, mut ledger) = ledger();
        let mut lend = |kind| area.lend(pool.alloc_kind(kind).expect("a chunk"));
        let [a, b, c] = [lend(ChunkKind::Small), lend(ChunkKind::Small), lend(ChunkKind::Large)];
        ledger.lend_to_receive(area.chunk_of(a).1);
        ledger.lend_to_transmit(area.chunk_of(b).1, 1);
        ledger.lend_to_transmit(area.chunk_of(c).1, 5);
        // SAFETY: no kernel has seen these chunks.
        unsafe { ledger.reclaim_all(&area, &mut pool) };
        drop(pool);
        assert_eq!(ledger.lent(), 0);
        assert_eq!((area.free(ChunkKind::Small), area.free(ChunkKind::Large)), (8, 1));
    }
}
