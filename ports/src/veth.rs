//! A port on our end of a veth pair, read and written by a packet socket.
//!
//! `PACKET_VNET_HDR` passes large frames and partial checksums both ways, so bulk TCP crosses as it crosses a
//! kernel bridge; `PACKET_AUXDATA` brings the VLAN tag that the kernel keeps beside the packet, and it is put
//! back where it belongs. Frames travel up to 64 a system call (`batch`), small packets of one connection in a row
//! as one (`join`), and small ones are not copied on arrival (`landing`).
//!
//! The socket sees a frame before the host's stack, which sees it too: the device must live where nobody
//! listens (a namespace of the switch's own with a drop at tc ingress). It does not see what it sent itself.
//!
//! The pair survives when the port is closed, so an established connection outlives a restart.
//!
//! Limits: one queue; a packet of a tunnel other than UDP (GRE, IPIP) that its sender left to be cut is lost,
//! because the 10-byte header cannot tell of it (`rx_errors`).

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use packet::{Frame, FramePool, FrameQueue};

use crate::finish::{Can, Next, Pieces};
use crate::{Error, Health, Opened, Port, Stats, sys, vnet};
use batch::{Received, Receiver, Sender};

mod batch;

/// Bytes of socket buffer asked for; the kernel doubles it. What does not fit is `rx_kernel_drops`. Room for a
/// hundred large frames, the 6 MiB that one TCP connection sends ahead by default, or ten thousand small ones;
/// more would only make a flood wait longer, and is memory that a thousand ports could take at once.
const RECEIVE_BUFFER: libc::c_int = 4 << 20;
const SEND_BUFFER: libc::c_int = 4 << 20;
/// Asking costs three system calls, and a worker wants to know every turn: once in this many is enough.
const ASK_EVERY: u8 = 16;
/// What the kernel does with a frame that we send, whatever the far end's offloads are.
const CAN: Can =
    Can { checksum: true, tso4: true, tso6: true, uso: true, tunnel: false, tunnel_checksum: false };

/// A packet socket on one device. See the module header.
#[derive(Debug)]
pub struct Veth {
    device: Device,
    receiver: Receiver,
    pieces: Pieces,
}

/// What transmitting needs, apart from the pieces that may be what is transmitted.
#[derive(Debug)]
struct Device {
    socket: OwnedFd,
    sender: Sender,
    can: Can,
    health: Cell<Health>,
    /// Calls of `health` since the kernel was last asked, while the device is down.
    unasked: Cell<u8>,
    stats: Stats,
    /// `PACKET_STATISTICS` starts again at zero each time it is read.
    kernel_drops: Cell<u64>,
}

/// Opens a packet socket on `device`.
///
/// # Errors
/// The operation that the kernel refused.
pub fn open(port: &str, device: &str) -> Result<Opened, Error> {
    let mut notes = Vec::new();
    let failed =
        |operation: String| move |source: io::Error| Error { port: port.to_owned(), operation, source };
    let index = sys::device_index(device).map_err(failed(format!("find device {device}")))?;
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // Protocol 0: nothing is received before the options are set and the socket is bound.
    let socket = sys::socket(libc::AF_PACKET, kind, 0)
        .map_err(failed(format!("open a packet socket for {device}")))?;
    let option = |name, value, what: &str| {
        sys::set_option(socket.as_fd(), libc::SOL_PACKET, name, value)
            .map_err(failed(format!("set {what} for {device}")))
    };
    option(libc::PACKET_VNET_HDR, 1, "PACKET_VNET_HDR")?;
    option(libc::PACKET_AUXDATA, 1, "PACKET_AUXDATA")?;
    option(libc::PACKET_IGNORE_OUTGOING, 1, "PACKET_IGNORE_OUTGOING")?;
    // Not PACKET_QDISC_BYPASS: the kernel then drops what it would have to cut for a device whose offloads are
    // off (`__dev_direct_xmit`), and a veth end has no queueing discipline to go around: 64-byte frames cost the
    // same with and without it (tests/speed.rs).
    for (forced, plain, bytes) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER),
    ] {
        if sys::set_option(socket.as_fd(), libc::SOL_SOCKET, forced, bytes).is_err() {
            // Without CAP_NET_ADMIN the system's limit holds; the port works, and drops earlier.
            sys::set_option(socket.as_fd(), libc::SOL_SOCKET, plain, bytes)
                .map_err(failed(format!("set the socket buffer for {device}")))?;
            notes.push(
                "the socket buffer has the system's limit, not ours: CAP_NET_ADMIN is missing".to_owned(),
            );
        }
    }
    bind(&socket, index).map_err(failed(format!("bind to {device}")))?;
    let device = Device {
        socket,
        sender: Sender::new(),
        can: CAN,
        // Until the first packet or question says otherwise.
        health: Cell::new(Health::Down),
        unasked: Cell::new(0),
        stats: Stats::default(),
        kernel_drops: Cell::new(0),
    };
    let veth = Veth { device, receiver: Receiver::new(), pieces: Pieces::default() };
    let mode = "af_packet,vnet_hdr,tso4,tso6,uso".to_owned();
    Ok(Opened { queues: vec![Port::Veth(veth)], mode, notes })
}

fn bind(socket: &OwnedFd, index: libc::c_int) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: 17,                   // AF_PACKET
        sll_protocol: 0x0003_u16.to_be(), // ETH_P_ALL
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = sys::socklen::<libc::sockaddr_ll>();
    // SAFETY: the address is `len` bytes at a valid place.
    sys::check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(())
}

impl Veth {
    /// See [`Port::receive`].
    #[inline]
    pub fn receive(&mut self, pool: &mut FramePool, budget: usize, mut sink: impl FnMut(Frame)) -> usize {
        let (mut done, mut bytes) = (0, 0);
        while done < budget && bytes < batch::TURN_BYTES {
            let device = &mut self.device;
            let stats = &mut device.stats;
            stats.syscalls += 1;
            let mut accepted = 0;
            let result =
                self.receiver.receive(device.socket.as_fd(), pool, budget - done, |received, pool| {
                    if let Some(frame) = accept(received, stats, pool) {
                        accepted += 1;
                        stats.rx_frames += 1;
                        stats.rx_bytes += frame.len() as u64;
                        bytes += frame.len();
                        sink(frame);
                    }
                });
            done += accepted;
            match result {
                Ok((received, more)) => {
                    if received > 0 {
                        device.health.set(Health::Up);
                    }
                    if !more {
                        break;
                    }
                }
                Err(error) => {
                    if !device.failed_to_receive(&error) {
                        break;
                    }
                }
            }
        }
        done
    }

    /// See [`Port::transmit`].
    #[inline]
    pub fn transmit(&mut self, queue: &mut FrameQueue, pool: &mut FramePool) {
        loop {
            if !self.pieces.is_empty() && self.device.transmit(self.pieces.queue(), pool).is_some() {
                return;
            }
            match self.device.transmit(queue, pool) {
                Some(Next::Cut) => {
                    let Some(frame) = queue.pop() else { return };
                    self.pieces.cut(frame, &self.device.can, pool, &mut self.device.stats);
                }
                _ => return,
            }
        }
    }

    /// See [`Port::wants_turn`].
    pub fn wants_turn(&mut self) -> bool {
        !self.pieces.is_empty()
    }

    /// See [`Port::fd`].
    pub fn fd(&self) -> RawFd {
        self.device.socket.as_raw_fd()
    }

    /// See [`Port::health`]. Asks the kernel, now and then, when the last it said was that the device is down:
    /// nothing tells when it is up again, or gone.
    pub fn health(&self) -> Health {
        if self.device.health.get() == Health::Down {
            let unasked = self.device.unasked.get();
            self.device.unasked.set((unasked + 1) % ASK_EVERY);
            if unasked == 0 {
                self.device.health.set(self.device.look());
            }
        }
        self.device.health.get()
    }

    /// See [`Port::stats`]. Looks at the device, too: without a carrier (the far end is down) the kernel takes
    /// frames and drops them, and no call that moves frames ever says so.
    pub fn stats(&self) -> Stats {
        self.device.health.set(self.device.look());
        Stats { rx_kernel_drops: self.device.kernel_drops(), ..self.device.stats }
    }

    /// See [`Port::close`]. The pair stays.
    pub fn close(mut self, pool: &mut FramePool) {
        self.pieces.clear(pool);
    }
}

impl Device {
    /// Counts what an error of `recvmmsg` means, and says whether to go on.
    #[cold]
    fn failed_to_receive(&mut self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => false,
            // A large frame of a kind that the header has no word for; the kernel has dropped it.
            Some(libc::EINVAL) => {
                self.stats.rx_errors += 1;
                true
            }
            Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => {
                self.health.set(self.look());
                false
            }
            None if error.kind() == io::ErrorKind::OutOfMemory => {
                self.stats.rx_no_memory += 1;
                false
            }
            _ => {
                self.stats.rx_errors += 1;
                false
            }
        }
    }

    /// Sends frames of `queue` until it is empty (`None`), or the device is full (`Next::Send`), or the first
    /// frame must be cut (`Next::Cut`).
    #[inline]
    fn transmit(&mut self, queue: &mut FrameQueue, pool: &mut FramePool) -> Option<Next> {
        while !queue.is_empty() {
            let mut ready = 0;
            let mut next = Next::Send;
            for frame in queue.iter_mut().take(batch::SLOTS) {
                next = self.can.prepare(frame, &mut self.stats);
                if next != Next::Send {
                    break;
                }
                ready += 1;
            }
            if ready > 0 {
                if !self.send(queue, ready, pool) {
                    return Some(Next::Send);
                }
            } else if next == Next::Cut {
                return Some(Next::Cut);
            } else if let Some(frame) = queue.pop() {
                self.stats.tx_errors += 1;
                pool.free(frame);
            }
        }
        None
    }

    /// Sends the first `ready` frames of `queue`, as many as the kernel takes, and says whether it may take more.
    #[inline]
    fn send(&mut self, queue: &mut FrameQueue, ready: usize, pool: &mut FramePool) -> bool {
        self.stats.syscalls += 1;
        match self.sender.send(self.socket.as_fd(), &self.can, queue, ready) {
            Ok((sent, joined)) => {
                self.stats.tx_joined += joined as u64;
                for frame in queue.drain(sent) {
                    self.stats.tx_frames += 1;
                    self.stats.tx_bytes += frame.len() as u64;
                    pool.free(frame);
                }
                true
            }
            Err((error, first)) => self.failed_to_send(&error, first, queue, pool),
        }
    }

    /// Does with the `first` frames of `queue`, one or joined ones, what an error of `sendmmsg` means, and says whether to
    /// go on.
    #[cold]
    fn failed_to_send(
        &mut self,
        error: &io::Error,
        first: usize,
        queue: &mut FrameQueue,
        pool: &mut FramePool,
    ) -> bool {
        let dropped = match error.raw_os_error() {
            // The socket's send buffer is full: the frames wait.
            Some(libc::EAGAIN | libc::EINTR) => return false,
            Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => {
                self.health.set(self.look());
                // None of them can leave, and they would be stale when the device comes back.
                queue.len()
            }
            // ENOBUFS: the kernel took the frame and dropped it (no carrier, or the device's queue is full).
            // Anything else is about this frame: longer than the MTU, shorter than an Ethernet header.
            _ => first,
        };
        if error.raw_os_error() == Some(libc::ENOBUFS) && self.health.get() == Health::Up {
            self.health.set(self.look());
        }
        self.stats.tx_errors += dropped as u64;
        for frame in queue.drain(dropped.min(queue.len())) {
            pool.free(frame);
        }
        true
    }

    /// Asks the kernel what has become of the device.
    fn look(&self) -> Health {
        match self.index().and_then(|index| self.flags(index)) {
            Ok(flags) if flags & (libc::IFF_UP | libc::IFF_RUNNING) == libc::IFF_UP | libc::IFF_RUNNING => {
                Health::Up
            }
            Ok(_) => Health::Down,
            Err(_) => Health::Gone,
        }
    }

    /// Returns the index that the socket is bound to; the kernel makes it -1 when the device goes.
    fn index(&self) -> io::Result<libc::c_int> {
        let mut len = sys::socklen::<libc::sockaddr_ll>();
        // SAFETY: integers and an array of them, for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let fd = self.socket.as_raw_fd();
        // SAFETY: the address has `len` bytes to be written.
        sys::check(unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut len) })?;
        if address.sll_ifindex > 0 {
            Ok(address.sll_ifindex)
        } else {
            Err(io::Error::from_raw_os_error(libc::ENODEV))
        }
    }

    /// Returns the flags of the device, looked up in the namespace of the socket.
    fn flags(&self, index: libc::c_int) -> io::Result<libc::c_int> {
        let mut request = sys::ifreq("x")?;
        request.ifr_ifru.ifru_ifindex = index;
        // SAFETY: SIOCGIFNAME reads the index and writes the name within `request`.
        sys::check(unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCGIFNAME, &raw mut request) })?;
        // SAFETY: SIOCGIFFLAGS reads the name and writes the flags within `request`.
        sys::check(unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
        // SAFETY: the kernel has just written the flags.
        Ok(libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
    }

    /// Returns how many frames the socket had no room for since it was opened.
    fn kernel_drops(&self) -> u64 {
        let mut new = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut len = sys::socklen::<libc::tpacket_stats>();
        let fd = self.socket.as_raw_fd();
        // SAFETY: `new` has `len` bytes to be written.
        let result = sys::check(unsafe {
            libc::getsockopt(
                fd,
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut new).cast(),
                &raw mut len,
            )
        });
        if result.is_ok() {
            self.kernel_drops.set(self.kernel_drops.get() + u64::from(new.tp_drops));
        }
        self.kernel_drops.get()
    }
}

/// Makes a frame of what was received; `None`, counted, when it cannot be accepted.
#[inline]
fn accept(received: Received, stats: &mut Stats, pool: &mut FramePool) -> Option<Frame> {
    let (landed, tag) = match received {
        Received::Whole(landed, tag) => (landed, tag),
        Received::Truncated(starved) => {
            let counter = if starved { &mut stats.rx_no_memory } else { &mut stats.rx_errors };
            *counter += 1;
            return None;
        }
    };
    let mut frame = landed.frame;
    let decoded = vnet::decode(&landed.header[..vnet::LEN], &mut frame).is_ok();
    if decoded && tag.is_none_or(|tag| insert_tag(&mut frame, tag)) {
        return Some(frame);
    }
    stats.rx_errors += 1;
    pool.free(frame);
    None
}

/// Puts a VLAN tag behind the MAC addresses; `false` when there is no room.
fn insert_tag(frame: &mut Frame, (tpid, tci): (u16, u16)) -> bool {
    const MACS: usize = 12;
    if frame.len() < MACS || frame.prepend(4).is_none() {
        return false;
    }
    let bytes = frame.bytes_mut();
    bytes.copy_within(4..4 + MACS, 0);
    bytes[MACS..MACS + 2].copy_from_slice(&tpid.to_be_bytes());
    bytes[MACS + 2..MACS + 4].copy_from_slice(&tci.to_be_bytes());
    true
}
