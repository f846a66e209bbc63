//! AF_XDP ports: one socket a queue of a device, for packet rate and latency.
//!
//! Every socket registers the whole frame [`Area`], so a frame that came in by one AF_XDP port leaves by another
//! as a descriptor, uncopied. The kernel copies once on each side (`copy` mode, all that a veth has), or not at
//! all (`zerocopy`, for NICs that can).
//!
//! AF_XDP has no checksum state and no large frames of its own. A received frame's checksum is
//! [`Checksum::Unknown`](packet::Checksum::Unknown) until somebody needs to know; a partial one is left to the receiver by transmit
//! metadata where the kernel has it (6.8), else finished here. Large (GSO) frames are cut here. A frame beyond a
//! page is several descriptors: gathered by one copy when it comes in, uncopied when it leaves.
//!
//! VLAN tags are in the frame, both ways, if the far end of a veth pair has `Offload::TxVlan` switched off
//! ([`crate::ethtool`]): else the kernel keeps them in metadata that XDP does not see. Our own end's settings make
//! no difference.
//!
//! Chunks: the kernel holds those in the fill and receive rings (`fill` many) and those in flight
//! (`in_flight` at most); a ledger knows each, so that a port that dies gives them all back. Registering
//! makes the whole area resident.
//!
//! A port belongs to one worker. Nothing allocates after [`open()`], and no call blocks but the closing one.

use std::cell::Cell;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::sync::Arc;

use packet::{Area, FramePool, FrameQueue};

use crate::{Health, Stats};

mod bpf;
mod depth;
mod device;
mod large;
mod ledger;
mod open;
mod options;
mod receive;
mod ring;
mod socket;
mod transmit;

use depth::Depth;
use ledger::Ledger;
use socket::Socket;

pub use device::queues;
pub use open::open;
pub use options::{Attach, BusyPoll, CopyMode, Options, Steer, Unclaimed};

/// An Ethernet header: the kernel takes nothing shorter.
const MIN_FRAME_LEN: usize = 14;

/// After so many kicks in a row that failed for no known reason, the port is taken for dead.
const PATIENCE: u32 = 1000;

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

    /// See [`Port::wants_turn`](crate::Port::wants_turn).
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

    /// See [`Port::fd`](crate::Port::fd).
    pub fn fd(&self) -> RawFd {
        self.socket.fd()
    }

    /// See [`Port::health`](crate::Port::health).
    pub fn health(&self) -> Health {
        self.health.get()
    }

    /// See [`Port::stats`](crate::Port::stats). Also finds out how the device is, which an idle port would not notice.
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

    /// See [`Port::close`](crate::Port::close). Takes milliseconds, because the kernel waits until no CPU uses the socket.
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
