//! Where a packet from a device lands before its length is known.
//!
//! Most packets are small, some are 64 KiB, and nothing tells which is next. So a device reads into two pieces
//! of memory: a small chunk, and behind it a large chunk from the place on where the small one ends. A packet
//! that fits the small chunk stays there uncopied and the large chunk waits for the next. Of a longer one only
//! the head, [`SPLIT`] bytes, is copied in front of its tail in the large chunk: every frame is contiguous, and
//! 64 KiB cost a copy of 2.
//!
//! ```text
//! small chunk   [virtio_net_hdr| SPLIT bytes | left free ]
//! large chunk                  [ left free   | the rest, if there is one ]
//! ```
//!
//! Chunks are taken from the pool for one call and given back after it: an idle port holds none.

use packet::area::ChunkKind;
use packet::pool::{LARGE_ROOM, SMALL_ROOM};
use packet::{Frame, FramePool};

use crate::vnet;

/// Bytes of a packet that fit the small chunk. PERF: all of its room would do; what is here is copied once more
/// for each large frame, and an ordinary packet has 1514 bytes.
pub(crate) const SPLIT: usize = 2048;
const _: () = assert!(SPLIT <= SMALL_ROOM);

/// Memory for one packet of unknown length. Without a large chunk (the area has no more) only small packets
/// can land; a longer one is cut off, and the device says so.
#[derive(Debug)]
pub(crate) struct Landing {
    small: Frame,
    large: Option<Frame>,
}

/// A packet that has landed, with the header that came before it.
pub(crate) struct Landed {
    pub(crate) frame: Frame,
    pub(crate) header: [u8; vnet::TUNNEL_LEN],
}

impl Landing {
    /// Takes chunks from `pool`; `None` when there is no small one.
    #[inline]
    pub(crate) fn take(pool: &mut FramePool) -> Option<Self> {
        let mut small = pool.alloc_kind(ChunkKind::Small)?;
        small.set_len(SPLIT);
        let mut large = pool.alloc_kind(ChunkKind::Large);
        if let Some(large) = &mut large {
            large.set_len(LARGE_ROOM);
        }
        Some(Self { small, large })
    }

    /// Returns the two pieces as the kernel wants them, `header_len` bytes for the header first. They are valid
    /// as long as `self` is neither moved into a frame nor given back; it may change its own place.
    #[inline]
    pub(crate) fn iovecs(&mut self, header_len: usize) -> [libc::iovec; 2] {
        let head = self.small.with_headroom(header_len);
        let head = libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: head.len() };
        let tail = self.large.as_mut().map_or(&mut [][..], |large| &mut large.bytes_mut()[SPLIT..]);
        [head, libc::iovec { iov_base: tail.as_mut_ptr().cast(), iov_len: tail.len() }]
    }

    /// Says whether a packet of any length fits.
    pub(crate) fn takes_large(&self) -> bool {
        self.large.is_some()
    }

    /// Returns the packet of `len` bytes that has landed behind a header of `header_len`, and gives the chunk
    /// that it did not need back to `pool`.
    #[inline]
    pub(crate) fn land(mut self, header_len: usize, len: usize, pool: &mut FramePool) -> Landed {
        let mut header = [0; vnet::TUNNEL_LEN];
        header[..header_len].copy_from_slice(&self.small.with_headroom(header_len)[..header_len]);
        let frame = match self.large {
            Some(mut large) if len > SPLIT => {
                large.bytes_mut()[..SPLIT].copy_from_slice(self.small.bytes());
                large.set_len(len);
                pool.free(self.small);
                large
            }
            large => {
                if let Some(large) = large {
                    pool.free(large);
                }
                self.small.set_len(len);
                self.small
            }
        };
        Landed { frame, header }
    }

    /// Gives both chunks back.
    #[inline]
    pub(crate) fn give_back(self, pool: &mut FramePool) {
        pool.free(self.small);
        if let Some(large) = self.large {
            pool.free(large);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use packet::Area;
    use std::sync::Arc;

    /// Plays the kernel: writes header and packet over the pieces.
    fn scatter(pieces: [libc::iovec; 2], bytes: &[u8]) {
        let at = bytes.len().min(pieces[0].iov_len);
        for (piece, bytes) in pieces.iter().zip([&bytes[..at], &bytes[at..]]) {
            assert!(bytes.len() <= piece.iov_len);
            // SAFETY: the piece is memory of a landing that the test owns, and long enough.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), piece.iov_base.cast(), bytes.len()) };
        }
    }

    #[test]
    fn packets_of_every_length_are_contiguous_and_whole() {
        let area = Area::new(256, 8).expect("a small area");
        let mut pool = FramePool::new(Arc::clone(&area));
        for len in [0, 1, 60, SPLIT - 1, SPLIT, SPLIT + 1, 9014, 65_549, LARGE_ROOM] {
            let bytes: Vec<u8> = (0..10 + len).map(|n| u8::try_from(n % 251).expect("small")).collect();
            let mut landing = Landing::take(&mut pool).expect("chunks");
            scatter(landing.iovecs(10), &bytes);
            let landed = landing.land(10, len, &mut pool);
            assert_eq!(landed.header[..10], bytes[..10]);
            assert_eq!(landed.frame.bytes(), &bytes[10..]);
            assert_eq!(landed.frame.kind() == ChunkKind::Large, len > SPLIT);
            pool.free(landed.frame);
        }
        drop(pool);
        assert_eq!((area.free(ChunkKind::Small), area.free(ChunkKind::Large)), (256, 8));
    }

    #[test]
    fn without_large_chunks_small_packets_still_land() {
        let area = Area::new(64, 0).expect("a small area");
        let mut pool = FramePool::new(area);
        let mut landing = Landing::take(&mut pool).expect("a small chunk");
        assert!(!landing.takes_large());
        assert_eq!(landing.iovecs(10)[1].iov_len, 0);
        landing.give_back(&mut pool);
    }
}
