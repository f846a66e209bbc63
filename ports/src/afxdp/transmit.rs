//! The transmitting half of an AF_XDP port: frames to transmit ring, and their chunks back by the completion ring.
//!
//! What the device cannot do is done here first: large frames are cut, checksums that nobody else will finish
//! are completed. A frame leaves in its own chunk, in one descriptor or, beyond a page, in several in a row.
//!
//! In copy mode the kernel sends only when told, a bounded number of packets each time: so there is a system
//! call every turn until the ring is empty. That the receiver has no room, or that more is left to send, is no
//! error.

use packet::area::ChunkKind;
use packet::checksum;
use packet::pool::SMALL_ROOM;
use packet::segment::{Finish, segment};
use packet::{Checksum, Frame, FramePool, FrameQueue};

use super::ledger::{Completed, MAX_PIECES, chunk_at};
use super::socket::METADATA_LEN;
use super::{Afxdp, MIN_FRAME_LEN};
use crate::Health;

/// A frame of one descriptor may become this many: what a socket buffer holds (`MAX_SKB_FRAGS`).
const MAX_FRAGMENTS: usize = 17;
const _: () = assert!(MAX_FRAGMENTS <= MAX_PIECES);

/// `XDP_TXMD_FLAGS_CHECKSUM`, the first word of `struct xsk_tx_metadata`.
const METADATA_CHECKSUM: u64 = libc::XDP_TXMD_FLAGS_CHECKSUM as u64;

impl Afxdp {
    /// Takes back the chunks of what was sent.
    #[inline]
    pub(super) fn collect(&mut self, pool: &mut FramePool) {
        if self.in_flight == 0 {
            return;
        }
        let done = self.socket.completion.refresh();
        if done == 0 {
            return;
        }
        for _ in 0..done {
            let address = self.socket.completion.pop();
            let offset = self.socket.offset(address);
            let Some((_, chunk)) = chunk_at(&self.area, offset) else { continue };
            if self.ledger.completed(chunk) == Completed::Whole {
                self.in_flight -= 1;
                // SAFETY: the chunk was lent by `push`, as the ledger has just confirmed, and the kernel has
                // completed the last of its descriptors.
                pool.free(unsafe { self.area.reclaim(chunk, 0) });
            }
        }
        self.socket.completion.release();
    }

    /// See [`Port::transmit`](crate::Port::transmit).
    #[inline]
    pub fn transmit(&mut self, queue: &mut FrameQueue, pool: &mut FramePool) {
        self.collect(pool);
        let idle = queue.is_empty() && self.staged.is_empty();
        if !idle && self.health.get() != Health::Up {
            self.counters.syscalls += 1;
            let result = self.socket.poke();
            self.judge(result);
        }
        if self.health.get() == Health::Up {
            while let Some((frame, segment)) = self.next(queue) {
                let len = frame.len() as u64;
                let sent = if frame.is_gso() { self.cut(frame, pool) } else { self.send(frame, pool) };
                if !sent {
                    self.counters.tx_errors += 1;
                } else if !segment {
                    self.counters.tx_frames += 1;
                    self.counters.tx_bytes += len;
                }
            }
            self.socket.tx.publish();
        }
        self.kick();
    }

    /// Takes the next frame to send, when it fits into the transmit ring and under the cap now. Says whether it
    /// is a segment of a frame that was taken before.
    #[inline]
    fn next(&mut self, queue: &mut FrameQueue) -> Option<(Frame, bool)> {
        // Segments first, else they would be overtaken by a later frame of their flow.
        let staged = !self.staged.is_empty();
        let len = if staged { self.staged.front() } else { queue.front() }?.wire_len();
        // As many pieces as there can be: in the aligned layout a first one ends with its page.
        let room = SMALL_ROOM - METADATA_LEN;
        #[expect(clippy::cast_possible_truncation, reason = "a frame has at most 68 KiB")]
        let pieces = if len <= room { 2 } else { len.div_ceil(room) as u32 + 1 };
        if self.in_flight >= self.settings.options.in_flight || self.socket.tx.room(pieces) < pieces {
            return None;
        }
        let frame = if staged { self.staged.pop() } else { queue.pop() };
        frame.map(|frame| (frame, staged))
    }

    /// Cuts a large frame into segments, which are sent next. False when it cannot be cut.
    fn cut(&mut self, frame: Frame, pool: &mut FramePool) -> bool {
        debug_assert!(self.staged.is_empty(), "segments are sent before the next frame is taken");
        let finish = if self.socket.layout.metadata > 0 { Finish::Later } else { Finish::Now };
        let staged = &mut self.staged;
        let result = segment(frame, pool, finish, |segment| {
            staged.push(segment).expect("the queue takes as many as a frame may become");
        });
        self.counters.tx_segmented += u64::from(result.is_ok());
        result.is_ok()
    }

    /// Finishes the frame as far as the device does not, and puts it into the transmit ring. False when it
    /// cannot be sent; its chunk is back in `pool` then.
    #[inline]
    fn send(&mut self, mut frame: Frame, pool: &mut FramePool) -> bool {
        if frame.len() < MIN_FRAME_LEN {
            pool.free(frame);
            return false;
        }
        let first = self.socket.layout.piece(self.offset_of(&frame), frame.len());
        let Ok(options) = self.finish(&mut frame, first) else {
            pool.free(frame);
            return false;
        };
        match self.push(frame, options) {
            Ok(()) => true,
            Err(frame) => self.scatter(frame, pool),
        }
    }

    #[inline]
    fn offset_of(&self, frame: &Frame) -> usize {
        frame.address() - self.area.base().as_ptr() as usize
    }

    /// Resolves the checksum and leaves a partial one to the receiver, or completes it. Returns the options of
    /// the first descriptor, whose length is `first`.
    #[inline]
    fn finish(&mut self, frame: &mut Frame, first: usize) -> Result<u32, checksum::Unfinishable> {
        checksum::resolve(frame);
        let Checksum::Partial { start, offset } = frame.checksum() else { return Ok(0) };
        let inside = usize::from(start) + usize::from(offset) + 2 <= first;
        // A descriptor that the kernel finds wrong would stop the ring for ever.
        if self.socket.layout.metadata == 0 || frame.headroom() < METADATA_LEN || !inside {
            checksum::complete(frame)?;
            self.counters.tx_checksummed += 1;
            return Ok(0);
        }
        let metadata = &mut frame.with_headroom(METADATA_LEN)[..METADATA_LEN];
        metadata[..8].copy_from_slice(&METADATA_CHECKSUM.to_ne_bytes());
        metadata[8..10].copy_from_slice(&start.to_ne_bytes());
        metadata[10..12].copy_from_slice(&offset.to_ne_bytes());
        metadata[12..].fill(0);
        Ok(libc::XDP_TX_METADATA)
    }

    /// Lends a frame's chunk to the transmit ring, in as many descriptors as it takes. Gives the frame back when
    /// the layout does not allow that.
    #[inline]
    fn push(&mut self, frame: Frame, options: u32) -> Result<(), Frame> {
        let len = frame.len();
        let start = self.offset_of(&frame);
        let mut pieces = [0u32; MAX_FRAGMENTS];
        let mut count = 0;
        let mut at = 0;
        while at < len {
            let piece = self.socket.layout.piece(start + at, len - at);
            if piece == 0 || count == MAX_FRAGMENTS || (count == 1 && !self.socket.fragments) {
                return Err(frame);
            }
            #[expect(clippy::cast_possible_truncation, reason = "at most a page")]
            let piece32 = piece as u32;
            pieces[count] = piece32;
            count += 1;
            at += piece;
        }
        let offset = self.area.lend(frame);
        self.ledger.lend_to_transmit(self.area.chunk_of(offset).1, count);
        self.in_flight += 1;
        let mut address = offset as u64;
        for (n, piece) in pieces[..count].iter().enumerate() {
            let first = if n == 0 { options } else { 0 };
            let more = if n + 1 < count { libc::XDP_PKT_CONTD } else { 0 };
            self.socket.tx.push(libc::xdp_desc { addr: address, len: *piece, options: first | more });
            address += u64::from(*piece);
        }
        Ok(())
    }

    /// Sends a copy in small chunks: for frames that have less headroom than transmit metadata needs or that
    /// continue at the start of a page, in the aligned layout. False when it cannot be sent.
    fn scatter(&mut self, frame: Frame, pool: &mut FramePool) -> bool {
        let count = frame.len().div_ceil(SMALL_ROOM);
        let possible = count <= if self.socket.fragments { MAX_FRAGMENTS } else { 1 };
        let mut frame = frame;
        self.counters.tx_checksummed += u64::from(frame.checksum() != Checksum::Complete);
        if !possible || checksum::complete(&mut frame).is_err() || !pool.reserve(ChunkKind::Small, count) {
            pool.free(frame);
            return false;
        }
        for (n, bytes) in frame.bytes().chunks(SMALL_ROOM).enumerate() {
            let part = pool.alloc_from(bytes).expect("as many chunks were reserved");
            let offset = self.area.lend(part);
            self.ledger.lend_to_transmit(self.area.chunk_of(offset).1, 1);
            self.in_flight += 1;
            let more = if n + 1 < count { libc::XDP_PKT_CONTD } else { 0 };
            let len = u32::try_from(bytes.len()).expect("less than a page");
            self.socket.tx.push(libc::xdp_desc { addr: offset as u64, len, options: more });
        }
        pool.free(frame);
        true
    }

    /// Has the kernel send, as long as anything is left to send: in copy mode it does nothing by itself, and
    /// each call sends a bounded number of packets only.
    #[inline]
    fn kick(&mut self) {
        if self.in_flight == 0 || !self.socket.tx.memory().needs_wakeup() {
            return;
        }
        let before = self.socket.tx.pending();
        if before == 0 {
            return;
        }
        self.counters.syscalls += 1;
        let result = self.socket.kick();
        self.judge(result);
        if self.unexplained > 0 && self.socket.tx.pending() < before {
            self.unexplained = 0;
        }
    }
}
