//! AF_XDP ports: one socket a queue of a device, for packet rate and latency.
//!
//! Every socket registers the whole frame [`Area`], so a frame that came in by one AF_XDP port leaves by another
//! as a descriptor, uncopied. The kernel copies once on each side (`copy` mode, all that a veth has), or not at
//! all (`zerocopy`, for NICs that can).
//!
//! AF_XDP has no checksum state and no large frames of its own. A received frame's checksum is
//! [`Checksum::Unknown`] until somebody needs to know; a partial one is left to the receiver by transmit
//! metadata where the kernel has it (6.8), else finished here. Large (GSO) frames are cut here. A frame beyond a
//! page is several descriptors: gathered by one copy when it comes in, uncopied when it leaves.
//!
//! VLAN tags are in the frame, both ways, if the far end of a veth pair has `Offload::TxVlan` switched off
//! ([`crate::ethtool`]): else the kernel keeps them in metadata that XDP does not see. Our own end's settings make
//! no difference.
//!
//! Chunks: the kernel holds those in the fill and receive rings (`fill` many) and those in flight
//! (`in_flight` at most); the [`ledger`] knows each, so that a port that dies gives them all back. Registering
//! makes the whole area resident.
//!
//! A port belongs to one worker. Nothing allocates after [`open`], and no call blocks but the closing one.

use std::cell::Cell;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::sync::Arc;

use packet::area::ChunkKind;
use packet::checksum;
use packet::pool::SMALL_ROOM;
use packet::segment::{Finish, segment};
use packet::{Area, Checksum, Frame, FramePool, FrameQueue};

use crate::{Health, Stats};

mod bpf;
mod depth;
mod device;
mod large;
mod ledger;
mod open;
mod options;
mod ring;
mod socket;

use depth::Depth;
use ledger::{Completed, Ledger, MAX_PIECES, chunk_at};
use socket::{METADATA_LEN, Socket};

pub use open::open;
pub use options::{Attach, BusyPoll, CopyMode, Options, Unclaimed};

/// A frame of one descriptor may become this many: what a socket buffer holds (`MAX_SKB_FRAGS`).
const MAX_FRAGMENTS: usize = 17;
const _: () = assert!(MAX_FRAGMENTS <= MAX_PIECES);

/// An Ethernet header: the kernel takes nothing shorter.
const MIN_FRAME_LEN: usize = 14;

/// Chunks go into the fill ring this many at a time, so that the ring's index is not written for each.
const REFILL: u32 = 16;

/// After so many kicks in a row that failed for no known reason, the port is taken for dead.
const PATIENCE: u32 = 1000;

/// `XDP_TXMD_FLAGS_CHECKSUM`, the first word of `struct xsk_tx_metadata`.
const METADATA_CHECKSUM: u64 = libc::XDP_TXMD_FLAGS_CHECKSUM as u64;

/// One queue of an AF_XDP port. See the module header.
///
/// Dropping it closes it, too; [`Afxdp::close`] puts the chunks into a pool of the caller's instead of the
/// area's depot.
#[derive(Debug)]
pub struct Afxdp {
    area: Arc<Area>,
    /// INVARIANT: not used after `end`, which `open` tells.
    socket: ManuallyDrop<Socket>,
    open: bool,
    ledger: Ledger,
    /// Chunks in the fill and receive rings, and how many there should be.
    receiving: u32,
    depth: Depth,
    /// Chunks in the transmit and completion rings, and on their way between them.
    in_flight: u32,
    /// Segments of the large frame that was taken last, before they fit into the transmit ring.
    staged: FrameQueue,
    health: Cell<Health>,
    /// Kicks in a row that failed for no known reason.
    unexplained: u32,
    counters: Stats,
    settings: Settings,
    /// Detaches the program when the last queue is gone.
    _link: Arc<bpf::Link>,
}

/// What `open` found out and fixed for one queue.
#[derive(Clone, Debug)]
struct Settings {
    options: Options,
    binding: socket::Binding,
    zero_copy: bool,
    /// The MTU, in generic mode, where the sender's large frames arrive uncut and unmarked: anything longer
    /// is taken for one.
    uncut: Option<usize>,
}

impl Afxdp {
    /// See [`Port::receive`].
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

    /// Takes back the chunks of what was sent.
    #[inline]
    fn collect(&mut self, pool: &mut FramePool) {
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

    /// See [`Port::transmit`].
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

    /// Draws the conclusion about the device's health from what a system call said.
    #[inline]
    fn judge(&mut self, result: io::Result<()>) {
        let health = health_after(result.map_err(|e| e.raw_os_error().unwrap_or(0)));
        match health {
            Some(health) => {
                self.unexplained = 0;
                self.health.set(health);
            }
            None => {
                self.unexplained += 1;
                if self.unexplained > PATIENCE {
                    self.health.set(Health::Gone);
                }
            }
        }
    }

    /// See [`Port::wants_turn`].
    #[inline]
    pub fn wants_turn(&mut self) -> bool {
        if self.socket.rx.available() > 0 || self.receiving == 0 {
            return true;
        }
        if self.health.get() != Health::Up {
            return false;
        }
        if self.in_flight == 0 {
            return !self.staged.is_empty();
        }
        let unsent = self.socket.tx.memory().needs_wakeup() && self.socket.tx.pending() > 0;
        unsent || self.socket.completion.available() > 0
    }

    /// See [`Port::fd`].
    pub fn fd(&self) -> RawFd {
        self.socket.fd()
    }

    /// See [`Port::health`].
    pub fn health(&self) -> Health {
        self.health.get()
    }

    /// See [`Port::stats`]. Also finds out how the device is, which an idle port would not notice.
    pub fn stats(&self) -> Stats {
        let mut stats = self.counters;
        stats.lent_chunks = u64::from(self.ledger.lent());
        if let Some(kernel) = self.socket.statistics() {
            // An empty fill ring is counted in `rx_dropped` as well.
            stats.rx_kernel_drops = kernel.rx_dropped + kernel.rx_ring_full;
            stats.tx_errors += kernel.tx_invalid_descs;
        }
        if self.health.get() != Health::Gone {
            let found = health_after(self.socket.poke().map_err(|e| e.raw_os_error().unwrap_or(0)));
            found.into_iter().for_each(|health| self.health.set(health));
        }
        stats
    }

    /// See [`Port::close`]. Takes milliseconds, because the kernel waits until no CPU uses the socket.
    pub fn close(mut self, pool: &mut FramePool) {
        self.end(pool);
    }

    fn end(&mut self, pool: &mut FramePool) {
        if !std::mem::replace(&mut self.open, false) {
            return;
        }
        while let Some(frame) = self.staged.pop() {
            pool.free(frame);
        }
        // SAFETY: `open` was true, so the socket is there, and it is false from now on.
        unsafe { ManuallyDrop::drop(&mut self.socket) };
        if self.settings.zero_copy && !open::wait_until_free(&self.area, &self.settings) {
            // The device may still write to the chunks; better lost than written to.
            return;
        }
        // SAFETY: closing waited until the kernel had stopped to use the socket for receiving, and what it
        // sends it has copied; with zero copy the queue is known to be free.
        unsafe { self.ledger.reclaim_all(&self.area, pool) };
    }
}

impl Drop for Afxdp {
    fn drop(&mut self) {
        if self.open {
            let mut pool = FramePool::new(Arc::clone(&self.area));
            self.end(&mut pool);
        }
    }
}

/// Returns what the result of a send or receive call (an `errno`) says about the device; `None` for an error that
/// it should not have made.
fn health_after(result: Result<(), i32>) -> Option<Health> {
    match result {
        Ok(()) => Some(Health::Up),
        // More to send than one call does, the receiver's queue full, no memory just now, interrupted.
        Err(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::ENOMEM | libc::EINTR) => Some(Health::Up),
        Err(libc::ENETDOWN) => Some(Health::Down),
        Err(libc::ENXIO | libc::ENODEV | libc::EBADF) => Some(Health::Gone),
        Err(_) => None,
    }
}
