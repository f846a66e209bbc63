//! The bare loop over two packet sockets, and the plain packet socket it is made of.
//!
//! `recvmmsg` fills a [`Packets`], `sendmmsg` of the other socket empties it: with `PACKET_VNET_HDR` the header
//! that the kernel wrote before each packet is handed back as it came, so a GSO frame crosses whole and its
//! checksum stays partial. The generator uses the same socket without the header.
//!
//! A packet socket gives a VLAN tag aside (`PACKET_AUXDATA`); it is not put back in here.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicBool;

use super::{Totals, Wait, check, index_of, run, set_option};

/// Frames that one system call moves. PERF: `vspktgen loop`: 32 costs 3 % at 64 bytes, 128 gains nothing.
const BATCH: usize = 64;
/// Room for a 64 KiB packet, its Ethernet header and the `virtio_net_hdr`.
const ROOM: usize = 65536 + 64;
/// What the kernel may keep for us before it drops.
const SOCKET_BUFFER: i32 = 16 << 20;

/// Buffers for as many frames as one system call moves.
#[derive(Debug)]
pub struct Packets {
    bytes: Vec<u8>,
    iovecs: Vec<libc::iovec>,
    messages: Vec<libc::mmsghdr>,
    room: usize,
    count: usize,
}

// SAFETY: the pointers in `iovecs` and `messages` point into the other vectors of the same value, which move
// with it and are never reallocated.
unsafe impl Send for Packets {}

impl Packets {
    /// Makes buffers for `capacity` frames of `room` bytes each.
    pub fn new(capacity: usize, room: usize) -> Self {
        let mut bytes = vec![0_u8; capacity * room];
        let mut iovecs: Vec<_> = bytes
            .chunks_exact_mut(room)
            .map(|chunk| libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: room })
            .collect();
        let messages = iovecs
            .iter_mut()
            .map(|iovec| {
                // SAFETY: all zeroes is a valid `mmsghdr`: no name, no buffers, no control data.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_iov = iovec;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        Self { bytes, iovecs, messages, room, count: 0 }
    }

    /// Returns the frames.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let lens = self.iovecs[..self.count].iter().map(|iovec| iovec.iov_len);
        self.bytes.chunks_exact(self.room).zip(lens).map(|(bytes, len)| &bytes[..len])
    }

    /// Returns the frames, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let lens = self.iovecs[..self.count].iter().map(|iovec| iovec.iov_len);
        self.bytes.chunks_exact_mut(self.room).zip(lens).map(|(bytes, len)| &mut bytes[..len])
    }

    /// Returns how many frames there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Says whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a frame of `len` bytes for the caller to fill; `None` when there is no room for it.
    pub fn push(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.count == self.iovecs.len() || len > self.room {
            return None;
        }
        let start = self.count * self.room;
        self.iovecs[self.count].iov_len = len;
        self.count += 1;
        Some(&mut self.bytes[start..start + len])
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.count = 0;
    }
}

/// A packet socket on one device that never blocks and does not see what it sent itself.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Opens a packet socket on `device`; with `vnet_hdr`, each packet has a `virtio_net_hdr` before it.
    ///
    /// # Errors
    /// What the kernel says: no such device, no `CAP_NET_RAW`.
    pub fn open(device: &str, vnet_hdr: bool) -> io::Result<Self> {
        let index = index_of(device)?;
        // SAFETY: no pointers.
        let fd = check(unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        })?;
        // SAFETY: a new descriptor that nobody else knows.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let raw = fd.as_raw_fd();
        if vnet_hdr {
            set_option(raw, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1_i32)?;
        }
        set_option(raw, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
        set_option(raw, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1_i32)?;
        // Best effort: without CAP_NET_ADMIN the limits of the system hold.
        let _ = set_option(raw, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &SOCKET_BUFFER);
        let _ = set_option(raw, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SOCKET_BUFFER);
        // SAFETY: all zeroes is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).expect("17");
        address.sll_protocol = u16::try_from(libc::ETH_P_ALL).expect("3").to_be();
        address.sll_ifindex = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
        let len = libc::socklen_t::try_from(size_of_val(&address)).expect("20");
        // SAFETY: `address` lives through the call and `len` is its size.
        check(unsafe { libc::bind(raw, (&raw const address).cast(), len) })?;
        Ok(Self { fd })
    }

    /// Replaces what is in `packets` by what waits in the socket and returns how many that are.
    ///
    /// # Errors
    /// What the kernel says; nothing waiting and a device that is down are no errors.
    pub fn receive(&self, packets: &mut Packets) -> io::Result<usize> {
        for iovec in &mut packets.iovecs[..packets.count] {
            iovec.iov_len = packets.room;
        }
        packets.count = 0;
        let capacity = u32::try_from(packets.messages.len()).expect("a batch is small");
        let messages = packets.messages.as_mut_ptr();
        // SAFETY: the messages point to buffers that live as long as `packets`, with their lengths.
        let count = unsafe {
            libc::recvmmsg(self.raw(), messages, capacity, libc::MSG_DONTWAIT, std::ptr::null_mut())
        };
        let count = match check(count) {
            Ok(count) => usize::try_from(count).expect("checked"),
            // A device that is down says so once and may come up again.
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENETDOWN) => 0,
                _ => return Err(error),
            },
        };
        for (iovec, message) in packets.iovecs.iter_mut().zip(&packets.messages[..count]) {
            iovec.iov_len = message.msg_len as usize;
        }
        packets.count = count;
        Ok(count)
    }

    /// Sends the frames in `packets` from number `first` on and returns how many the device took. Those
    /// behind them, if any, were not tried; the first of them was refused.
    ///
    /// # Errors
    /// What the kernel says; a full device is no error.
    pub fn send(&self, packets: &mut Packets, first: usize) -> io::Result<usize> {
        let messages = &mut packets.messages[first..packets.count];
        let count = u32::try_from(messages.len()).expect("a batch is small");
        // SAFETY: the messages point to buffers that live as long as `packets`, with their lengths.
        let sent = unsafe { libc::sendmmsg(self.raw(), messages.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
        match check(sent) {
            Ok(sent) => Ok(usize::try_from(sent).expect("checked")),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENETDOWN) => Ok(0),
                _ => Err(error),
            },
        }
    }

    /// Returns how many frames the kernel has dropped since the last call because the socket was full.
    pub fn take_drops(&self) -> u64 {
        // SAFETY: all zeroes is a valid value.
        let mut stats: libc::tpacket_stats = unsafe { std::mem::zeroed() };
        let mut len = libc::socklen_t::try_from(size_of_val(&stats)).expect("8");
        let (level, name) = (libc::SOL_PACKET, libc::PACKET_STATISTICS);
        // SAFETY: `stats` lives through the call and `len` is its size.
        unsafe { libc::getsockopt(self.raw(), level, name, (&raw mut stats).cast(), &raw mut len) };
        u64::from(stats.tp_drops)
    }

    /// Returns the descriptor, to wait on.
    pub fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Copies frames between two devices until `stop` is set.
///
/// # Errors
/// What the kernel says when a socket is opened or a device goes.
pub fn forward(devices: [&str; 2], wait: Wait, stop: &AtomicBool, totals: &mut Totals) -> io::Result<()> {
    let a = Socket::open(devices[0], true)?;
    let b = Socket::open(devices[1], true)?;
    let mut packets = Packets::new(BATCH, ROOM);
    run(stop, wait, [a.raw(), b.raw()], totals, |totals| {
        Ok(copy(&a, &b, &mut packets, totals)? | copy(&b, &a, &mut packets, totals)?)
    })
}

fn copy(from: &Socket, to: &Socket, packets: &mut Packets, totals: &mut Totals) -> io::Result<bool> {
    let received = from.receive(packets)?;
    let mut done = 0;
    while done < received {
        let sent = to.send(packets, done)?;
        totals.frames += sent as u64;
        totals.bytes += packets.iovecs[done..done + sent].iter().map(|v| v.iov_len as u64).sum::<u64>();
        done += sent;
        if sent == 0 {
            totals.refused += 1;
            done += 1;
        }
    }
    Ok(received > 0)
}
