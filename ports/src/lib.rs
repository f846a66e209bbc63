//! Ports: where frames enter and leave the switch.
//!
//! A [`Port`] is one queue of an attachment point, owned by one worker. `open` makes all queues of a device;
//! `receive` and `transmit` move frames and never block; `stats` tells what happened. A device that vanishes
//! is a state ([`Health::Gone`]), not an error and never a panic.
//!
//! The enum is the whole list of port kinds; each kind is a file (or folder) of its own. What a device cannot
//! do (finish a checksum, cut a large frame) the port does before it transmits, with [`packet`]'s help; what it
//! can do is left to it.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use packet::{Area, Frame, FramePool, FrameQueue};

pub mod afxdp;
pub mod bare;
mod bpf;
pub mod ethtool;
pub mod finish;
mod join;
mod landing;
pub mod memory;
pub mod pcap;
pub mod steer;
mod sys;
pub mod tap;
pub mod veth;
pub mod vnet;

/// What to open. Device names are looked up in the network namespace of the calling thread.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The port's name, for errors.
    pub name: String,
    /// What kind of port.
    pub kind: Kind,
}

/// The kinds of port, with what each needs to know.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A tap device; created when there is none of that name.
    Tap {
        /// Name of the tap device.
        device: String,
        /// Number of queues, at least 1.
        queues: u16,
        /// The device stays when its last file descriptor is closed.
        persist: bool,
    },
    /// One end of a veth pair, read and written by packet sockets.
    Veth {
        /// Name of our end.
        device: String,
    },
    /// AF_XDP sockets on all queues of a device.
    Afxdp {
        /// Name of the device: our end of a veth pair, or a NIC.
        device: String,
        /// How to attach and bind.
        options: afxdp::Options,
    },
    /// Queues in memory, for tests and benchmarks.
    Memory {
        /// The switch's side of the pair.
        end: memory::End,
    },
    /// Frames read from one capture file, and written to another.
    Pcap {
        /// Capture (pcap or pcapng) that is received, once, as fast as it is asked for.
        input: Option<PathBuf>,
        /// Capture (pcapng) that transmitted frames are appended to.
        output: Option<PathBuf>,
    },
}

/// What `open` made.
#[derive(Debug)]
pub struct Opened {
    /// One port a queue, in the order of the queues.
    pub queues: Vec<Port>,
    /// How the device is used, for `vsctl port show`: `vnet_hdr,tso4,tso6,uso`, `xdp-native,copy`.
    pub mode: String,
    /// Why a better mode was not taken, one sentence each.
    pub notes: Vec<String>,
}

/// A port could not be opened or used: which port, which operation, and why.
#[derive(Debug, thiserror::Error)]
#[error("port '{port}': cannot {operation}: {source}")]
pub struct Error {
    /// The port's name.
    pub port: String,
    /// What was tried, in the infinitive, with the device it was tried on.
    pub operation: String,
    /// What the kernel said.
    pub source: io::Error,
}

/// Whether a port can move frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Frames move.
    Up,
    /// The device is there and administratively or by its carrier down; it may come back.
    Down,
    /// The device is gone for good. The owner closes the port.
    Gone,
}

/// What a port has counted since it was opened. Frames, unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Handed to the switch.
    pub rx_frames: u64,
    /// Handed to the switch, in bytes.
    pub rx_bytes: u64,
    /// Came in and could not be accepted: truncated, larger than a chunk, bad `virtio_net_hdr`.
    pub rx_errors: u64,
    /// The kernel dropped them before we could read them (ring or socket buffer full, no chunk in the fill ring).
    pub rx_kernel_drops: u64,
    /// No free chunk in the pool when one was needed.
    pub rx_no_memory: u64,
    /// Taken from the queue and handed to the device.
    pub tx_frames: u64,
    /// Handed to the device, in bytes.
    pub tx_bytes: u64,
    /// Taken from the queue and refused by the device, or not to be finished in software; dropped.
    pub tx_errors: u64,
    /// Large frames cut in software before they were handed to the device.
    pub tx_segmented: u64,
    /// Packets that were handed to the device as parts of a larger one.
    pub tx_joined: u64,
    /// Checksums finished in software before the frame was handed to the device.
    pub tx_checksummed: u64,
    /// System calls that moved or announced frames.
    pub syscalls: u64,
    /// Chunks lent to the kernel right now (AF_XDP: fill, receive and transmit rings).
    pub lent_chunks: u64,
}

/// One queue of an attachment point. See the module header.
#[derive(Debug)]
pub enum Port {
    /// A tap queue.
    Tap(tap::Tap),
    /// A packet socket on a veth end.
    Veth(veth::Veth),
    /// An AF_XDP socket.
    Afxdp(Box<afxdp::Afxdp>),
    /// Queues in memory.
    Memory(memory::Memory),
    /// Capture files.
    Pcap(Box<pcap::Pcap>),
}

impl Port {
    /// Opens all queues of the port that `spec` describes.
    ///
    /// # Errors
    /// Names the port, the operation and the kernel's reason; nothing is left open.
    pub fn open(spec: Spec, area: &Arc<Area>) -> Result<Opened, Error> {
        match spec.kind {
            Kind::Tap { device, queues, persist } => tap::open(&spec.name, &device, queues, persist),
            Kind::Veth { device } => veth::open(&spec.name, &device),
            Kind::Afxdp { device, options } => afxdp::open(&spec.name, &device, options, area),
            Kind::Memory { end } => memory::open(&spec.name, end),
            Kind::Pcap { input, output } => pcap::open(&spec.name, input.as_deref(), output.as_deref()),
        }
    }

    /// Moves at most `budget` received frames out of the port and returns how many.
    ///
    /// Never blocks; returns 0 when nothing is waiting. Each frame passed to `sink` is owned by the caller
    /// from then on. A frame that the port cannot accept goes back to `pool` and is counted in
    /// `stats().rx_errors`. An AF_XDP port also refills its fill ring and collects completions here.
    #[inline]
    pub fn receive(&mut self, pool: &mut FramePool, budget: usize, sink: impl FnMut(Frame)) -> usize {
        match self {
            Port::Tap(port) => port.receive(pool, budget, sink),
            Port::Veth(port) => port.receive(pool, budget, sink),
            Port::Afxdp(port) => port.receive(pool, budget, sink),
            Port::Memory(port) => port.receive(pool, budget, sink),
            Port::Pcap(port) => port.receive(pool, budget, sink),
        }
    }

    /// Hands frames from the front of `queue` to the device until the queue is empty or the device is full.
    ///
    /// Frames left in `queue` were not taken; the next turn tries again. Frames whose transmission has
    /// completed return to `pool` here. To be called every turn for a port that `wants_turn`, even with an
    /// empty queue: AF_XDP must be kicked until its ring is empty.
    #[inline]
    pub fn transmit(&mut self, queue: &mut FrameQueue, pool: &mut FramePool) {
        match self {
            Port::Tap(port) => port.transmit(queue, pool),
            Port::Veth(port) => port.transmit(queue, pool),
            Port::Afxdp(port) => port.transmit(queue, pool),
            Port::Memory(port) => port.transmit(queue, pool),
            Port::Pcap(port) => port.transmit(queue, pool),
        }
    }

    /// Says whether the port must be visited even if nothing is queued for it: descriptors wait in a ring in
    /// memory, or a transmission is not finished. Costs no system call.
    pub fn wants_turn(&mut self) -> bool {
        match self {
            Port::Tap(port) => port.wants_turn(),
            Port::Veth(port) => port.wants_turn(),
            Port::Afxdp(port) => port.wants_turn(),
            Port::Memory(port) => port.wants_turn(),
            Port::Pcap(port) => port.wants_turn(),
        }
    }

    /// Returns the descriptor that becomes readable when frames wait, or `None` for ports that only
    /// `wants_turn` tells about.
    pub fn fd(&self) -> Option<RawFd> {
        match self {
            Port::Tap(port) => Some(port.fd()),
            Port::Veth(port) => Some(port.fd()),
            Port::Afxdp(port) => Some(port.fd()),
            Port::Memory(_) | Port::Pcap(_) => None,
        }
    }

    /// Returns the same descriptor as [`Port::fd`], tied to the port's life, for safe `epoll` calls.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the port owns the descriptor and keeps it open as long as it lives, and the result borrows
        // the port.
        self.fd().map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Returns whether frames can move, as far as the last system call told.
    pub fn health(&self) -> Health {
        match self {
            Port::Tap(port) => port.health(),
            Port::Veth(port) => port.health(),
            Port::Afxdp(port) => port.health(),
            Port::Memory(port) => port.health(),
            Port::Pcap(_) => Health::Up,
        }
    }

    /// Returns what the port has counted. Reads the kernel's own counters too: not for every turn.
    pub fn stats(&self) -> Stats {
        match self {
            Port::Tap(port) => port.stats(),
            Port::Veth(port) => port.stats(),
            Port::Afxdp(port) => port.stats(),
            Port::Memory(port) => port.stats(),
            Port::Pcap(port) => port.stats(),
        }
    }

    /// Closes the port and gives every chunk it lent to the kernel back to `pool`.
    pub fn close(self, pool: &mut FramePool) {
        match self {
            Port::Tap(port) => port.close(pool),
            Port::Veth(port) => port.close(pool),
            Port::Pcap(port) => port.close(pool),
            Port::Afxdp(port) => port.close(pool),
            Port::Memory(port) => port.close(pool),
        }
    }
}
