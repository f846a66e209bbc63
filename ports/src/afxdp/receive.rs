//! The receiving half of an AF_XDP port: receive ring to frames, chunks to fill ring.
//!
//! A frame of one descriptor is handed on in the chunk that the kernel wrote it to. One of several is gathered
//! into a large chunk by a copy, because a [`Frame`] is contiguous.

use packet::area::ChunkKind;
use packet::{Checksum, Frame, FramePool, prefetch};

use super::ledger::chunk_at;
use super::socket::Socket;
use super::{Afxdp, MIN_FRAME_LEN, large, open};

/// Chunks go into the fill ring this many at a time, so that the ring's index is not written for each.
const REFILL: u32 = 16;

impl Afxdp {
    /// See [`Port::receive`](crate::Port::receive).
    #[inline]
    pub fn receive(&mut self, pool: &mut FramePool, budget: usize, mut sink: impl FnMut(Frame)) -> usize {
        self.collect(pool);
        let mut waiting = self.socket.rx.refresh();
        if waiting > 0 {
            self.depth.note(waiting);
        }
        let mut count = 0;
        while count < budget && waiting > 0 {
            let first = self.socket.rx.peek(0);
            let descriptors = if first.options & libc::XDP_PKT_CONTD == 0 {
                1
            } else {
                // The kernel publishes whole packets; should it not, the rest comes later.
                let Some(descriptors) = self.packet_len(waiting) else { break };
                descriptors
            };
            waiting -= descriptors;
            let frame = if descriptors == 1 { self.pop() } else { self.gather(pool, descriptors) };
            let Some(frame) = frame.and_then(|frame| self.accept(frame, pool)) else { continue };
            self.counters.rx_frames += 1;
            self.counters.rx_bytes += frame.len() as u64;
            sink(frame);
            count += 1;
        }
        self.socket.rx.release();
        self.refill(pool);
        count
    }

    /// Returns how many of the `waiting` descriptors the first packet has, or `None` when its last is missing.
    fn packet_len(&self, waiting: u32) -> Option<u32> {
        (0..waiting)
            .find(|ahead| self.socket.rx.peek(*ahead).options & libc::XDP_PKT_CONTD == 0)
            .map(|last| last + 1)
    }

    /// Takes the next descriptor's chunk out of the receive ring. `None` for one that was never lent.
    #[inline]
    fn pop(&mut self) -> Option<Frame> {
        let descriptor = self.socket.rx.pop();
        let offset = self.socket.offset(descriptor.addr);
        let lent = chunk_at(&self.area, offset).is_some_and(|(_, chunk)| self.ledger.received(chunk));
        if !lent {
            self.counters.rx_errors += 1;
            return None;
        }
        self.receiving -= 1;
        // SAFETY: the chunk was lent by `refill`, as the ledger has just confirmed, and the kernel has given it
        // back by its descriptor in the receive ring.
        Some(unsafe { self.area.reclaim(offset, descriptor.len as usize) })
    }

    /// Copies a packet of several descriptors into one chunk.
    fn gather(&mut self, pool: &mut FramePool, descriptors: u32) -> Option<Frame> {
        let len: usize = (0..descriptors).map(|ahead| self.socket.rx.peek(ahead).len as usize).sum();
        let mut whole = pool.alloc(len);
        if whole.is_none() {
            let too_long = len > packet::pool::LARGE_ROOM;
            let counter =
                if too_long { &mut self.counters.rx_errors } else { &mut self.counters.rx_no_memory };
            *counter += 1;
        }
        let mut at = 0;
        for _ in 0..descriptors {
            let Some(part) = self.pop() else {
                // Its bytes are missing: the packet is no longer one.
                whole.take().into_iter().for_each(|frame| pool.free(frame));
                continue;
            };
            if let Some(frame) = &mut whole {
                frame.set_len(at + part.len());
                frame.bytes_mut()[at..].copy_from_slice(part.bytes());
                at += part.len();
            }
            pool.free(part);
        }
        whole
    }

    /// Notes what is known of a frame that came in whole. `None` when it is none that we can pass on.
    #[inline]
    fn accept(&mut self, mut frame: Frame, pool: &mut FramePool) -> Option<Frame> {
        frame.set_checksum(Checksum::Unknown);
        let uncut = self.settings.uncut.filter(|mtu| frame.len() > mtu + open::LINK_HEADERS);
        if frame.len() < MIN_FRAME_LEN || uncut.is_some_and(|mtu| !large::mark(&mut frame, mtu)) {
            self.counters.rx_errors += 1;
            pool.free(frame);
            return None;
        }
        // The kernel wrote the headers on another processor. They come close while the rest of the batch is
        // received, and are there when the batch is parsed.
        frame.bytes().first().into_iter().for_each(prefetch);
        Some(frame)
    }

    /// Lends chunks to the fill ring until as many are out as should be.
    #[inline]
    fn refill(&mut self, pool: &mut FramePool) {
        let wanted = self.depth.get().saturating_sub(self.receiving);
        if wanted < REFILL && self.receiving > REFILL {
            return;
        }
        let room = self.socket.fill.room(wanted).min(wanted);
        for _ in 0..room {
            let Some(frame) = pool.alloc_kind(ChunkKind::Small) else {
                self.counters.rx_no_memory += 1;
                break;
            };
            let offset = self.area.lend(frame);
            self.ledger.lend_to_receive(self.area.chunk_of(offset).1);
            self.receiving += 1;
            self.socket.fill.push(Socket::fill_address(offset));
        }
        self.socket.fill.publish();
        if self.socket.fill.memory().needs_wakeup() {
            self.counters.syscalls += 1;
            let result = self.socket.poke();
            self.judge(result);
        }
    }
}
