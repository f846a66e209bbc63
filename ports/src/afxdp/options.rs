//! What can be chosen about an AF_XDP port.

use std::io;
use std::path::PathBuf;

use packet::MacAddr;

/// What the XDP program does with frames of a queue that has no socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unclaimed {
    /// Drops them: nothing of a container's gets past the switch.
    #[default]
    Drop,
    /// Leaves them to the host's stack, for a device that is shared with it.
    Pass,
}

/// Where the XDP program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// In the driver where it can, else in the stack.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the stack: works on any device and is slower.
    Generic,
}

/// Who moves the bytes between device and frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyMode {
    /// The device where its driver can, else the kernel.
    #[default]
    Auto,
    /// The kernel, by a copy.
    Copy,
    /// The device, or not at all.
    ZeroCopy,
}

/// Busy polling of the device by our system calls (`SO_PREFER_BUSY_POLL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyPoll {
    /// How long a call polls (`SO_BUSY_POLL`).
    pub microseconds: u32,
    /// How many packets it takes at most (`SO_BUSY_POLL_BUDGET`).
    pub budget: u32,
}

/// A device of the host: the XDP program takes only what is the switch's. It is pinned, so what is the switch's is dropped
/// while nobody has the port open; [`crate::steer`] has the rules, and takes the program away again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steer {
    /// The directory of [`crate::steer::Steering::open`].
    pub pins: PathBuf,
    /// The device's hardware address.
    pub mac: MacAddr,
    /// Nothing is the host's: takes everything.
    pub dedicated: bool,
}

/// How to attach and bind. The default suits a container's veth end.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the XDP program runs.
    pub attach: Attach,
    /// Who moves the bytes.
    pub copy: CopyMode,
    /// What happens to frames of queues that are not opened.
    pub unclaimed: Unclaimed,
    /// For a device of the host; `unclaimed` then has no meaning. Needs Linux 5.18.
    pub steer: Option<Steer>,
    /// How many queues to open, from queue 0; all of the device when `None`.
    pub queues: Option<u32>,
    /// Slots of the fill, receive and transmit rings; a power of two.
    pub ring: u32,
    /// Chunks that wait in the kernel for frames to come while little comes: the longest burst that an idle
    /// port takes while the worker is elsewhere.
    pub fill: u32,
    /// The same while much comes, at most `ring`.
    pub fill_limit: u32,
    /// Chunks that may be on their way out, at most twice `ring`.
    pub in_flight: u32,
    /// Packets the kernel sends in one system call, at most `ring`.
    pub budget: u32,
    /// Accept frames of more than a page, where the kernel can (6.6).
    pub fragments: bool,
    /// Leave partial checksums to the receiver or its device, where the kernel can (6.8).
    pub tx_checksum: bool,
    /// Cut the memory into pages for the kernel in copy mode, too, as zero copy needs it.
    pub aligned: bool,
    /// Busy polling; off by default, because on a veth it gains nothing.
    pub busy_poll: Option<BusyPoll>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            attach: Attach::default(),
            copy: CopyMode::default(),
            unclaimed: Unclaimed::default(),
            steer: None,
            queues: None,
            ring: 2048,
            fill: 512,
            fill_limit: 2048,
            in_flight: 2048,
            budget: 256,
            fragments: true,
            tx_checksum: true,
            aligned: false,
            busy_poll: None,
        }
    }
}

impl Options {
    /// Slots of the completion ring: all that may be in flight.
    pub(super) fn completion_ring(&self) -> u32 {
        self.ring * 2
    }

    pub(super) fn check(&self) -> io::Result<()> {
        let complaint = if !self.ring.is_power_of_two() || !(64..=32768).contains(&self.ring) {
            "the ring size must be a power of two from 64 to 32768"
        } else if self.fill == 0 || !(self.fill..=self.ring).contains(&self.fill_limit) {
            "the fill depth must be at least 1 and at most its limit, and that at most the ring size"
        } else if !(1..=self.ring * 2).contains(&self.in_flight) {
            "the chunks in flight must be from 1 to twice the ring size"
        } else if self.budget == 0 {
            "the transmit budget must be at least 1"
        } else if self.queues == Some(0) {
            "at least one queue must be opened"
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, complaint))
    }
}
