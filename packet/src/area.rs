//! The memory area that all frames of a switch live in.
//!
//! One anonymous mapping, cut into chunks of 4 KiB and, behind them, chunks of 68 KiB (17 small ones in a row)
//! for GSO and jumbo frames. AF_XDP ports register the whole area, so an address in it means the same to all.
//!
//! Chunks that no [`FramePool`](crate::FramePool) holds wait in a depot of magazines, 64 small chunks or 8 large
//! ones each: workers trade whole magazines, so the shared queue is touched once in 64 frames. Any thread may do
//! so. Large chunks are few (a hundred by default), and what one worker keeps for itself another cannot have.
//!
//! Capacity is fixed when the area is made. When it is used up an allocation fails and the caller drops.
//!
//! INVARIANT: every chunk number has one owner: the depot, a pool, a frame, or a port that lent it to the
//! kernel. That is what makes a `Frame`'s slice exclusive.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;

use crate::frame::Frame;

/// Bytes of a small chunk: a page, which is all that AF_XDP takes.
pub const CHUNK_LEN: usize = 4096;
/// Bytes of a large chunk: room for 64 KiB of packet, headers and headroom.
pub const LARGE_CHUNK_LEN: usize = 17 * CHUNK_LEN;

/// Which of the two kinds a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// [`CHUNK_LEN`] bytes.
    Small,
    /// [`LARGE_CHUNK_LEN`] bytes.
    Large,
}

/// Chunks that change hands together.
#[derive(Clone)]
pub(crate) struct Magazine {
    len: usize,
    chunks: [u32; Magazine::CAPACITY],
}

impl Magazine {
    pub(crate) const CAPACITY: usize = 64;

    /// Returns how many chunks of `kind` change hands together.
    pub(crate) const fn size(kind: ChunkKind) -> usize {
        match kind {
            ChunkKind::Small => Self::CAPACITY,
            ChunkKind::Large => Self::CAPACITY / 8,
        }
    }

    pub(crate) fn fill(kind: ChunkKind, chunks: impl Iterator<Item = u32>) -> Self {
        let mut magazine = Self { len: 0, chunks: [0; Self::CAPACITY] };
        for chunk in chunks.take(Self::size(kind)) {
            magazine.chunks[magazine.len] = chunk;
            magazine.len += 1;
        }
        magazine
    }

    pub(crate) fn chunks(&self) -> &[u32] {
        &self.chunks[..self.len]
    }
}

/// Where chunks of one kind wait.
struct Depot {
    kind: ChunkKind,
    magazines: ArrayQueue<Magazine>,
    /// Partly filled magazines that found the queue full; only pools that go away get here.
    rest: Mutex<Vec<u32>>,
    free: AtomicUsize,
    total: usize,
}

impl Depot {
    fn new(kind: ChunkKind, first: u32, step: u32, total: usize) -> Self {
        let depot = Self {
            kind,
            magazines: ArrayQueue::new(total / Magazine::size(kind) + 64),
            rest: Mutex::new(Vec::new()),
            free: AtomicUsize::new(0),
            total,
        };
        let mut pages =
            (0..total).map(|n| first + u32::try_from(n).expect("Area::new checked the size") * step);
        loop {
            let magazine = Magazine::fill(kind, &mut pages);
            if magazine.len == 0 {
                return depot;
            }
            depot.put(magazine);
        }
    }

    fn put(&self, magazine: Magazine) {
        self.free.fetch_add(magazine.len, Ordering::Relaxed);
        if let Err(magazine) = self.magazines.push(magazine) {
            self.rest.lock().unwrap_or_else(|e| e.into_inner()).extend_from_slice(magazine.chunks());
        }
    }

    fn take(&self) -> Option<Magazine> {
        let magazine = self.magazines.pop().or_else(|| {
            let mut rest = self.rest.lock().unwrap_or_else(|e| e.into_inner());
            let from = rest.len().saturating_sub(Magazine::size(self.kind));
            (!rest.is_empty()).then(|| Magazine::fill(self.kind, rest.drain(from..)))
        })?;
        self.free.fetch_sub(magazine.len, Ordering::Relaxed);
        Some(magazine)
    }
}

/// The mapping and its free chunks. Shared by everything that touches frames.
pub struct Area {
    base: NonNull<u8>,
    len: usize,
    small_bytes: usize,
    small: Depot,
    large: Depot,
}

// SAFETY: the mapping is plain memory that stays where it is until `drop`; who may touch which part of it is
// decided by chunk ownership (module header), and the depots are themselves shared safely.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// Maps an area of `small` 4 KiB chunks and `large` 68 KiB chunks. Pages are taken when first touched.
    ///
    /// # Errors
    /// What `mmap` says; `InvalidInput` when the area would be empty or beyond 2^32 pages.
    pub fn new(small: usize, large: usize) -> io::Result<Arc<Self>> {
        let len = small
            .checked_mul(CHUNK_LEN)
            .and_then(|s| large.checked_mul(LARGE_CHUNK_LEN).and_then(|l| s.checked_add(l)))
            .filter(|len| *len > 0 && len / CHUNK_LEN <= u32::MAX as usize)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let small_pages = u32::try_from(small).map_err(|_| io::ErrorKind::InvalidInput)?;
        let step = u32::try_from(LARGE_CHUNK_LEN / CHUNK_LEN).expect("17");
        Ok(Arc::new(Self {
            base,
            len,
            small_bytes: small * CHUNK_LEN,
            small: Depot::new(ChunkKind::Small, 0, 1, small),
            large: Depot::new(ChunkKind::Large, small_pages, step, large),
        }))
    }

    /// Returns the first byte of the mapping, for `XDP_UMEM_REG`.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Returns the bytes of the mapping, a multiple of [`CHUNK_LEN`].
    pub fn len(&self) -> usize {
        self.len
    }

    /// Says whether the area has no bytes; never true.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns how many chunks of `kind` there are.
    pub fn total(&self, kind: ChunkKind) -> usize {
        self.depot(kind).total
    }

    /// Returns how many chunks of `kind` wait in the depot, outside every pool. A snapshot: other threads
    /// trade at the same time.
    pub fn free(&self, kind: ChunkKind) -> usize {
        self.depot(kind).free.load(Ordering::Relaxed)
    }

    /// Returns which kind of chunk the byte at `offset` belongs to, and the offset of that chunk.
    ///
    /// # Panics
    /// When `offset` is outside the area.
    #[inline]
    pub fn chunk_of(&self, offset: usize) -> (ChunkKind, usize) {
        assert!(offset < self.len, "offset {offset} is outside the area of {} bytes", self.len);
        if offset < self.small_bytes {
            (ChunkKind::Small, offset & !(CHUNK_LEN - 1))
        } else {
            let n = (offset - self.small_bytes) / LARGE_CHUNK_LEN;
            (ChunkKind::Large, self.small_bytes + n * LARGE_CHUNK_LEN)
        }
    }

    /// Gives a frame's chunk up to the caller, who lends it to the kernel, and returns the offset of the
    /// frame's first byte in the area.
    #[inline]
    pub fn lend(&self, frame: Frame) -> usize {
        let offset = frame.address() - self.base.as_ptr() as usize;
        debug_assert!(offset < self.len, "the frame is of another area");
        frame.forget();
        offset
    }

    /// Makes a frame of `len` bytes from a chunk that the kernel gave back, the reverse of [`Area::lend`].
    ///
    /// # Safety
    /// The chunk around `offset` must have been lent (by [`Area::lend`]) and be given back since, so that
    /// nothing else refers to it.
    ///
    /// # Panics
    /// When the bytes leave the chunk: a kernel that says so would be broken.
    #[inline]
    pub unsafe fn reclaim(&self, offset: usize, len: usize) -> Frame {
        let (kind, chunk) = self.chunk_of(offset);
        let start = offset - chunk;
        let capacity = if kind == ChunkKind::Small { CHUNK_LEN } else { LARGE_CHUNK_LEN };
        assert!(start + len <= capacity, "frame of {len} bytes at {offset} leaves its chunk");
        let page = u32::try_from(chunk / CHUNK_LEN).expect("Area::new checked the size");
        // SAFETY: the caller vouches for the chunk, and the bounds were checked above.
        unsafe { self.frame(page, kind, start, len) }
    }

    /// Makes the frame of chunk number `page`.
    ///
    /// # Safety
    /// The caller owns the chunk, and `start + len` is within it.
    #[inline]
    pub(crate) unsafe fn frame(&self, page: u32, kind: ChunkKind, start: usize, len: usize) -> Frame {
        debug_assert!((page as usize) * CHUNK_LEN < self.len);
        // SAFETY: `page` is a chunk of this area, so the result is inside the mapping.
        let chunk = unsafe { self.base.add(page as usize * CHUNK_LEN) };
        // SAFETY: passed on from the caller.
        unsafe { Frame::from_chunk(chunk, page, kind, start, len) }
    }

    pub(crate) fn put(&self, kind: ChunkKind, magazine: Magazine) {
        self.depot(kind).put(magazine);
    }

    pub(crate) fn take(&self, kind: ChunkKind) -> Option<Magazine> {
        self.depot(kind).take()
    }

    fn depot(&self, kind: ChunkKind) -> &Depot {
        match kind {
            ChunkKind::Small => &self.small,
            ChunkKind::Large => &self.large,
        }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        let home = [ChunkKind::Small, ChunkKind::Large].into_iter().all(|k| self.free(k) == self.total(k));
        if !home {
            // A frame or the kernel still refers to a chunk: keep the mapping rather than pull it away.
            return;
        }
        // SAFETY: the mapping is ours, and every chunk is in the depot, so no frame refers to it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl std::fmt::Debug for Area {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Area")
            .field("small", &self.total(ChunkKind::Small))
            .field("large", &self.total(ChunkKind::Large))
            .field("free_small", &self.free(ChunkKind::Small))
            .field("free_large", &self.free(ChunkKind::Large))
            .finish_non_exhaustive()
    }
}
