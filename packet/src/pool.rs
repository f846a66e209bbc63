//! A worker's own stock of free chunks.
//!
//! Last in, first out, so that the chunk handed out is the one still in cache. Chunks are traded with the
//! area's depot a magazine at a time. One thread owns a pool; nothing here allocates after `new`.

use std::sync::Arc;

use crate::area::{Area, CHUNK_LEN, ChunkKind, LARGE_CHUNK_LEN, Magazine};
use crate::frame::{Frame, HEADROOM};

/// Chunks start at one of eight cache lines, else all headers of a batch would fight for one set of the
/// first-level cache (chunks are a page apart). PERF: benches/l2.
const COLOURS: u32 = 8;
const COLOUR_STEP: usize = 64;

/// The longest packet that a small chunk surely takes.
pub const SMALL_ROOM: usize = CHUNK_LEN - HEADROOM - (COLOURS as usize - 1) * COLOUR_STEP;
/// The longest packet that a large chunk surely takes.
pub const LARGE_ROOM: usize = LARGE_CHUNK_LEN - HEADROOM;

/// So many free chunks of a kind make a pool give one magazine back. Of large chunks it keeps few: a worker that
/// only transmits what others received must not end up with all of them.
const fn full(kind: ChunkKind) -> usize {
    match kind {
        ChunkKind::Small => 4 * Magazine::size(kind),
        ChunkKind::Large => 2 * Magazine::size(kind),
    }
}

/// The most chunks that [`FramePool::reserve`] sets aside: what a 64 KiB frame needs in segments of 64 bytes.
pub const MAX_RESERVE: usize = 1024;

/// Free chunks of one worker, and the area they come from.
#[derive(Debug)]
pub struct FramePool {
    area: Arc<Area>,
    small: Vec<u32>,
    large: Vec<u32>,
}

impl FramePool {
    /// Makes an empty pool; it draws from `area` when first asked.
    pub fn new(area: Arc<Area>) -> Self {
        let room = || Vec::with_capacity(full(ChunkKind::Small).max(MAX_RESERVE) + Magazine::CAPACITY);
        Self { area, small: room(), large: room() }
    }

    /// Returns the area that the chunks come from.
    pub fn area(&self) -> &Arc<Area> {
        &self.area
    }

    /// Returns an empty frame with room for `len` bytes and [`HEADROOM`] before them, or `None` when the area
    /// is used up or no chunk is that large.
    #[inline]
    pub fn alloc(&mut self, len: usize) -> Option<Frame> {
        if len <= SMALL_ROOM {
            self.alloc_kind(ChunkKind::Small)
        } else if len <= LARGE_ROOM {
            self.alloc_kind(ChunkKind::Large)
        } else {
            None
        }
    }

    /// Returns an empty frame of the given kind, or `None` when the area has no more.
    #[inline]
    pub fn alloc_kind(&mut self, kind: ChunkKind) -> Option<Frame> {
        let stock = match kind {
            ChunkKind::Small => &mut self.small,
            ChunkKind::Large => &mut self.large,
        };
        let page = match stock.pop() {
            Some(page) => page,
            None => {
                let magazine = self.area.take(kind)?;
                stock.extend_from_slice(magazine.chunks());
                stock.pop()?
            }
        };
        let start = match kind {
            ChunkKind::Small => HEADROOM + (page % COLOURS) as usize * COLOUR_STEP,
            ChunkKind::Large => HEADROOM,
        };
        // SAFETY: the chunk was in our stock, so it is ours, and `start` is within it.
        Some(unsafe { self.area.frame(page, kind, start, 0) })
    }

    /// Returns a frame that holds `bytes`, or `None` when there is no chunk for them.
    pub fn alloc_from(&mut self, bytes: &[u8]) -> Option<Frame> {
        let mut frame = self.alloc(bytes.len())?;
        frame.set_len(bytes.len());
        frame.bytes_mut().copy_from_slice(bytes);
        Some(frame)
    }

    /// Returns a copy of `frame`, offload state included, or `None` when there is no chunk for it.
    pub fn copy(&mut self, frame: &Frame) -> Option<Frame> {
        let mut copy = self.alloc_from(frame.bytes())?;
        copy.copy_offload(frame);
        Some(copy)
    }

    /// Takes a frame's chunk back.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        let kind = frame.kind();
        let page = frame.page();
        frame.forget();
        let stock = match kind {
            ChunkKind::Small => &mut self.small,
            ChunkKind::Large => &mut self.large,
        };
        stock.push(page);
        if stock.len() >= full(kind) {
            let from = stock.len() - Magazine::size(kind);
            self.area.put(kind, Magazine::fill(kind, stock.drain(from..)));
        }
    }

    /// Makes sure that the next `count` allocations of `kind` succeed: whoever must do all or nothing asks
    /// first. `false` when the area has not that many left, or `count` is above [`MAX_RESERVE`].
    pub fn reserve(&mut self, kind: ChunkKind, count: usize) -> bool {
        let stock = match kind {
            ChunkKind::Small => &mut self.small,
            ChunkKind::Large => &mut self.large,
        };
        while stock.len() < count && count <= MAX_RESERVE {
            let Some(magazine) = self.area.take(kind) else { break };
            stock.extend_from_slice(magazine.chunks());
        }
        let reserved = stock.len() >= count;
        while !reserved && stock.len() >= full(kind) {
            let from = stock.len() - Magazine::size(kind);
            self.area.put(kind, Magazine::fill(kind, stock.drain(from..)));
        }
        reserved
    }

    /// Returns how many chunks of `kind` the pool holds itself.
    pub fn held(&self, kind: ChunkKind) -> usize {
        match kind {
            ChunkKind::Small => self.small.len(),
            ChunkKind::Large => self.large.len(),
        }
    }

    /// Gives every chunk back to the area.
    pub fn flush(&mut self) {
        for kind in [ChunkKind::Small, ChunkKind::Large] {
            let stock = match kind {
                ChunkKind::Small => &mut self.small,
                ChunkKind::Large => &mut self.large,
            };
            while !stock.is_empty() {
                let from = stock.len().saturating_sub(Magazine::size(kind));
                self.area.put(kind, Magazine::fill(kind, stock.drain(from..)));
            }
        }
    }
}

impl Drop for FramePool {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::VtepId;
    use crate::offload::{Checksum, Gso, GsoKind, Tunnel};

    #[test]
    fn chunks_come_home() {
        let area = Area::new(300, 10).expect("a small area");
        let mut pool = FramePool::new(Arc::clone(&area));
        let frames: Vec<_> = std::iter::from_fn(|| pool.alloc(100)).collect();
        assert_eq!(frames.len(), 300);
        let large: Vec<_> = std::iter::from_fn(|| pool.alloc(60_000)).collect();
        assert_eq!(large.len(), 10);
        for frame in frames.into_iter().chain(large) {
            pool.free(frame);
        }
        drop(pool);
        assert_eq!(area.free(ChunkKind::Small), 300);
        assert_eq!(area.free(ChunkKind::Large), 10);
    }

    #[test]
    fn reserved_chunks_are_there_and_a_refusal_hoards_none() {
        let area = Area::new(700, 1).expect("a small area");
        let mut pool = FramePool::new(Arc::clone(&area));
        assert!(!pool.reserve(ChunkKind::Small, 701));
        assert!(!pool.reserve(ChunkKind::Small, MAX_RESERVE + 1));
        assert!(pool.held(ChunkKind::Small) < full(ChunkKind::Small));
        assert!(pool.reserve(ChunkKind::Small, 600));
        assert!(pool.held(ChunkKind::Small) >= 600);
        let mut other = FramePool::new(Arc::clone(&area));
        while let Some(frame) = other.alloc(1) {
            area.lend(frame);
        }
        let frames: Vec<_> = (0..600).map(|_| pool.alloc(1).expect("reserved")).collect();
        for frame in frames {
            pool.free(frame);
        }
        assert!(pool.held(ChunkKind::Small) < full(ChunkKind::Small));
    }

    #[test]
    fn a_pool_that_only_frees_passes_large_chunks_on() {
        let area = Area::new(64, 100).expect("a small area");
        let (mut receiver, mut transmitter) =
            (FramePool::new(Arc::clone(&area)), FramePool::new(Arc::clone(&area)));
        for _ in 0..10_000 {
            transmitter.free(receiver.alloc(60_000).expect("a chunk that came back"));
        }
        assert!(transmitter.held(ChunkKind::Large) < 16);
    }

    #[test]
    fn a_copy_has_its_own_bytes_and_the_same_offload_state() {
        let area = Area::new(64, 1).expect("a small area");
        let mut pool = FramePool::new(area);
        let mut frame = pool.alloc_from(b"hello, world").expect("a chunk");
        frame.set_checksum(Checksum::Partial { start: 3, offset: 2 });
        let mut copy = pool.copy(&frame).expect("a chunk");
        copy.bytes_mut()[0] = b'j';
        assert_eq!(frame.bytes(), b"hello, world");
        assert_eq!(copy.bytes(), b"jello, world");
        assert_eq!(copy.checksum(), frame.checksum());
        pool.free(frame);
        pool.free(copy);
    }

    #[test]
    fn prepend_and_trim_move_the_offload_state_along() {
        let area = Area::new(64, 1).expect("a small area");
        let mut pool = FramePool::new(area);
        let mut frame = pool.alloc_from(&[7; 40]).expect("a chunk");
        frame.set_checksum(Checksum::Partial { start: 34, offset: 16 });
        frame.prepend(4).expect("headroom").fill(1);
        assert_eq!(frame.checksum(), Checksum::Partial { start: 38, offset: 16 });
        assert_eq!(frame.len(), 44);
        frame.trim_front(4).expect("long enough");
        assert_eq!(frame.bytes(), [7; 40]);
        assert_eq!(frame.checksum(), Checksum::Partial { start: 34, offset: 16 });
        pool.free(frame);
    }

    #[test]
    fn the_endpoint_that_a_frame_came_from_travels_with_it() {
        let area = Area::new(64, 1).expect("a small area");
        let mut pool = FramePool::new(area);
        let vtep = VtepId::new(VtepId::MAX);
        let mut frame = pool.alloc_from(&[7; 200]).expect("a chunk");
        assert_eq!((frame.vtep(), VtepId::new(0), VtepId::new(VtepId::MAX + 1)), (None, None, None));
        frame.set_vtep(vtep);
        let gso = Gso { kind: GsoKind::Tcp4, size: 50, header_len: 54, ecn: true, tunnel: None };
        frame.set_gso(Some(gso));
        frame.trim_front(4).expect("long enough");
        assert_eq!((frame.vtep(), frame.gso()), (vtep, Some(Gso { header_len: 50, ..gso })));
        let copy = pool.copy(&frame).expect("a chunk");
        assert_eq!((copy.vtep(), copy.gso()), (vtep, frame.gso()));
        frame.set_gso(None);
        assert_eq!(frame.vtep(), vtep);
        let tunnel = Some(Tunnel { outer_l4: 34, inner_l3: 64, outer_checksum: false });
        frame.set_gso(Some(Gso { tunnel, ..gso }));
        frame.set_vtep(vtep);
        assert_eq!((frame.vtep(), frame.gso()), (None, Some(Gso { tunnel, ..gso })));
        pool.free(frame);
        pool.free(copy);
    }

    #[test]
    fn a_lent_chunk_can_be_reclaimed() {
        let area = Area::new(64, 2).expect("a small area");
        let mut pool = FramePool::new(Arc::clone(&area));
        for len in [60, 60_000] {
            let mut frame = pool.alloc(len).expect("a chunk");
            frame.set_len(len);
            frame.bytes_mut().fill(9);
            let offset = area.lend(frame);
            // SAFETY: lent in the line above.
            let frame = unsafe { area.reclaim(offset, len) };
            assert!(frame.bytes().iter().all(|b| *b == 9));
            pool.free(frame);
        }
    }
}
