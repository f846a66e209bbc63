//! A port on a tap device, one queue a port.
//!
//! With `IFF_VNET_HDR` the kernel hands large frames and partial checksums through whole, both ways, and with
//! Linux 6.17 those inside UDP tunnels too; older kernels take over less, which is probed when the device is
//! opened, and what is missing is done in software (`finish`). A tap moves one frame a system call: the kernel
//! has no batch for it, but small packets of one connection in a row are written as one (`join`). Small frames are not
//! copied on arrival (`landing`).
//!
//! The device is made in (or, when persistent, found in) the namespace of the thread that opens it, and may be
//! moved afterwards: the descriptor stays with it. A persistent device outlives the port and is opened again
//! under its name.
//!
//! Limits: what the device's own queue drops (1000 frames by default) is counted by the device only.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use packet::{Frame, FramePool, FrameQueue};

use crate::finish::{Can, Next, Pieces};
use crate::join::{self, Head};
use crate::landing::Landing;
use crate::{Error, Health, Opened, Port, Stats, sys, vnet};

// Linux uapi/linux/if_tun.h, 6.17; libc does not have them yet.
const TUN_F_UDP_TUNNEL_GSO: libc::c_uint = 0x080;
const TUN_F_UDP_TUNNEL_GSO_CSUM: libc::c_uint = 0x100;

const TSO: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
const USO: libc::c_uint = TSO | libc::TUN_F_USO4 | libc::TUN_F_USO6;
const TUNNEL: libc::c_uint = USO | TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM;

/// What is asked for, best first: offloads, bytes of the header, how it is called, and since when it is there.
const OFFERS: [(libc::c_uint, usize, &str, &str); 4] = [
    (TUNNEL, vnet::TUNNEL_LEN, "vnet_hdr,tso4,tso6,uso,tunnel", "UDP tunnel offload needs Linux 6.17"),
    (USO, vnet::LEN, "vnet_hdr,tso4,tso6,uso", "UDP segmentation offload needs Linux 6.2"),
    (TSO, vnet::LEN, "vnet_hdr,tso4,tso6", "the kernel takes over no TCP segmentation"),
    (0, vnet::LEN, "vnet_hdr", "the kernel takes over nothing"),
];

/// After this many bytes the queue has had its turn, whatever its budget of frames: 256 large frames would hold
/// up the other ports for 5 ms, and push each other out of the second-level cache before they are sent. PERF:
/// tests/speed.rs, 358 ns/KiB without a limit, 331 with this one, 333 for a bare loop.
const TURN_BYTES: usize = 256 << 10;

/// One queue of a tap device. See the module header.
#[derive(Debug)]
pub struct Tap {
    device: Device,
    header_len: usize,
    pieces: Pieces,
}

/// What transmitting needs, apart from the pieces that may be what is transmitted.
#[derive(Debug)]
struct Device {
    file: OwnedFd,
    header_len: usize,
    can: Can,
    head: Head,
    health: Cell<Health>,
    stats: Stats,
}

/// Opens `queues` queues of the tap `device`, which is made when there is none of that name.
///
/// # Errors
/// The operation that the kernel refused; `EBUSY` when somebody else has the device open.
pub fn open(port: &str, device: &str, queues: u16, persist: bool) -> Result<Opened, Error> {
    let failed =
        |operation: String| move |source: io::Error| Error { port: port.to_owned(), operation, source };
    let mut notes = Vec::new();
    let attach = format!("attach to tap {device}");
    let mut multi = queues > 1;
    let first = match queue(device, multi) {
        // A device that is there has the other kind of queues.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            multi = !multi;
            queue(device, multi)
        }
        other => other,
    }
    .map_err(failed(attach.clone()))?;
    let mut files = vec![first];
    if queues > 1 && !multi {
        notes.push(format!("tap {device} was made with one queue, and has one until it is deleted"));
    } else {
        for _ in 1..queues {
            files.push(queue(device, multi).map_err(failed(attach.clone()))?);
        }
    }
    let file = files[0].as_fd();
    let (offloads, header_len, mode) =
        negotiate(file, &mut notes).map_err(failed(format!("agree on offloads with tap {device}")))?;
    // SAFETY: TUNSETPERSIST takes its argument by value.
    sys::check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persist)) })
        .map_err(failed(format!("make tap {device} {}", if persist { "persistent" } else { "transient" })))?;
    let has = |bits: libc::c_uint| offloads & bits == bits;
    let can = Can {
        checksum: has(libc::TUN_F_CSUM),
        tso4: has(libc::TUN_F_TSO4),
        tso6: has(libc::TUN_F_TSO6),
        uso: has(libc::TUN_F_USO4 | libc::TUN_F_USO6),
        tunnel: has(TUN_F_UDP_TUNNEL_GSO),
        tunnel_checksum: has(TUN_F_UDP_TUNNEL_GSO_CSUM),
    };
    let queues = files.into_iter().map(|file| {
        let health = Cell::new(Health::Down);
        let device = Device { file, header_len, can, head: Head::default(), health, stats: Stats::default() };
        Port::Tap(Tap { device, header_len, pieces: Pieces::default() })
    });
    Ok(Opened { queues: queues.collect(), mode: mode.to_owned(), notes })
}

/// Opens one queue of `device`.
fn queue(device: &str, multi: bool) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the path is a C string.
    let file = sys::own(unsafe { libc::open(c"/dev/net/tun".as_ptr(), flags) })?;
    let mut request = sys::ifreq(device)?;
    let multi = if multi { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("below 2^15");
    // SAFETY: TUNSETIFF reads and writes within `request`.
    sys::check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(file)
}

/// Settles with the kernel what it takes over, the most that it knows.
fn negotiate(
    file: BorrowedFd<'_>,
    notes: &mut Vec<String>,
) -> io::Result<(libc::c_uint, usize, &'static str)> {
    let mut last = Ok(());
    for (offloads, header_len, mode, missing) in OFFERS {
        let len = libc::c_int::try_from(header_len).expect("24");
        // SAFETY: TUNSETVNETHDRSZ reads one integer.
        sys::check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })?;
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let result =
            unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) };
        last = sys::check(result).map(drop);
        if last.is_ok() {
            return Ok((offloads, header_len, mode));
        }
        notes.push(missing.to_owned());
    }
    last.map(|()| (0, vnet::LEN, "vnet_hdr"))
}

impl Tap {
    /// See [`Port::receive`].
    #[inline]
    pub fn receive(&mut self, pool: &mut FramePool, budget: usize, mut sink: impl FnMut(Frame)) -> usize {
        let mut done = 0;
        let mut bytes = 0;
        let mut landing: Option<Landing> = None;
        while done < budget && bytes < TURN_BYTES {
            let Some(mut place) = landing.take().or_else(|| Landing::take(pool)) else {
                self.device.stats.rx_no_memory += 1;
                break;
            };
            match self.device.read(&mut place) {
                Ok(Some(len)) => {
                    bytes += len;
                    let landed = place.land(self.header_len, len, pool);
                    let mut frame = landed.frame;
                    if vnet::decode(&landed.header[..self.header_len], &mut frame).is_err() {
                        self.device.stats.rx_errors += 1;
                        pool.free(frame);
                        continue;
                    }
                    self.device.stats.rx_frames += 1;
                    self.device.stats.rx_bytes += frame.len() as u64;
                    done += 1;
                    sink(frame);
                }
                Ok(None) => {
                    let stats = &mut self.device.stats;
                    let counter =
                        if place.takes_large() { &mut stats.rx_errors } else { &mut stats.rx_no_memory };
                    *counter += 1;
                    place.give_back(pool);
                }
                Err(error) => {
                    let more = self.device.failed_to_receive(&error);
                    landing = Some(place);
                    if !more {
                        break;
                    }
                }
            }
        }
        if let Some(place) = landing {
            place.give_back(pool);
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
        self.device.file.as_raw_fd()
    }

    /// See [`Port::health`]. Asks the kernel when the last it said was that the device is down.
    pub fn health(&self) -> Health {
        if self.device.health.get() == Health::Down {
            self.device.health.set(self.device.look());
        }
        self.device.health.get()
    }

    /// See [`Port::stats`].
    pub fn stats(&self) -> Stats {
        self.device.stats
    }

    /// See [`Port::close`]. A persistent device stays.
    pub fn close(mut self, pool: &mut FramePool) {
        self.pieces.clear(pool);
    }
}

impl Device {
    /// Reads one packet into `place` and returns its length; `None` when it did not fit.
    #[inline]
    fn read(&mut self, place: &mut Landing) -> io::Result<Option<usize>> {
        let pieces = place.iovecs(self.header_len);
        self.stats.syscalls += 1;
        // SAFETY: both pieces are memory of the landing, which is ours.
        let count = sys::check(unsafe { libc::readv(self.file.as_raw_fd(), pieces.as_ptr(), 2) })?;
        self.health.set(Health::Up);
        // The kernel cuts off silently; exactly full is as good as cut off, and never a real length.
        let room = pieces[0].iov_len + pieces[1].iov_len;
        Ok((count < room).then_some(count).and_then(|count| count.checked_sub(self.header_len)))
    }

    /// Counts what an error of a read means, and says whether to go on.
    #[cold]
    fn failed_to_receive(&mut self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => false,
            // A large frame of a kind that the header has no word for; the kernel has dropped it.
            Some(libc::EINVAL) => {
                self.stats.rx_errors += 1;
                true
            }
            Some(libc::EBADFD | libc::ENODEV) => {
                self.health.set(Health::Gone);
                false
            }
            Some(libc::EIO | libc::EFAULT) => {
                self.health.set(self.look());
                false
            }
            _ => {
                self.stats.rx_errors += 1;
                false
            }
        }
    }

    /// Writes frames of `queue` until it is empty (`None`), or the device is full (`Next::Send`), or the first
    /// frame must be cut (`Next::Cut`).
    #[inline]
    fn transmit(&mut self, queue: &mut FrameQueue, pool: &mut FramePool) -> Option<Next> {
        // So many in front are prepared.
        let mut ready = 0;
        while !queue.is_empty() {
            if ready == 0 {
                let mut next = Next::Send;
                for frame in queue.iter_mut().take(join::MOST) {
                    next = self.can.prepare(frame, &mut self.stats);
                    if next != Next::Send {
                        break;
                    }
                    ready += 1;
                }
                if ready == 0 && next == Next::Cut {
                    return Some(Next::Cut);
                }
                if ready == 0 {
                    self.stats.tx_errors += 1;
                    queue.drain(1).for_each(|frame| pool.free(frame));
                    continue;
                }
            }
            let count = join::count(&self.can, queue.iter().take(ready));
            let written = if count == 1 {
                queue.iter_mut().next().map_or(Ok(0), |frame| self.write(frame))
            } else {
                self.write_joined(queue.iter_mut().take(count))
            };
            match written {
                Ok(_) => {
                    self.stats.tx_joined += if count > 1 { count as u64 } else { 0 };
                    for frame in queue.drain(count) {
                        self.stats.tx_frames += 1;
                        self.stats.tx_bytes += frame.len() as u64;
                        pool.free(frame);
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::EINTR) => return Some(Next::Send),
                    _ => self.failed_to_send(&error, count, queue, pool),
                },
            }
            ready -= count;
        }
        None
    }

    /// Writes frames as one.
    fn write_joined<'a>(&mut self, frames: impl Iterator<Item = &'a mut Frame>) -> io::Result<usize> {
        let mut pieces = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 1 + join::MOST];
        let mut count: libc::c_int = 1;
        for (frame, piece) in frames.zip(&mut pieces[1..]) {
            if count == 1 {
                self.head.start(self.header_len, frame);
            }
            let start = self.head.add(frame);
            let bytes = &mut frame.bytes_mut()[start..];
            *piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            count += 1;
        }
        let head = self.head.finish();
        pieces[0] = libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: head.len() };
        self.stats.syscalls += 1;
        // SAFETY: the first `count` pieces are slices.
        sys::check(unsafe { libc::writev(self.file.as_raw_fd(), pieces.as_ptr(), count) })
    }

    #[inline]
    fn write(&mut self, frame: &mut Frame) -> io::Result<usize> {
        let len = self.header_len;
        let mut header = [0; vnet::TUNNEL_LEN];
        vnet::encode(frame, &mut header[..len]);
        self.stats.syscalls += 1;
        if frame.headroom() >= len {
            let bytes = frame.with_headroom(len);
            bytes[..len].copy_from_slice(&header[..len]);
            // SAFETY: the bytes are a slice.
            return sys::check(unsafe {
                libc::write(self.file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len())
            });
        }
        let bytes = frame.bytes_mut();
        let pieces = [
            libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: len },
            libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() },
        ];
        // SAFETY: both pieces are slices.
        sys::check(unsafe { libc::writev(self.file.as_raw_fd(), pieces.as_ptr(), 2) })
    }

    /// Counts what an error of a write of the first `count` frames means, and drops them.
    #[cold]
    fn failed_to_send(
        &mut self,
        error: &io::Error,
        count: usize,
        queue: &mut FrameQueue,
        pool: &mut FramePool,
    ) {
        let health = match error.raw_os_error() {
            Some(libc::EIO) => Some(Health::Down),
            Some(libc::EBADFD | libc::ENODEV) => Some(Health::Gone),
            // About this frame: no memory for it, or the kernel finds the header wrong.
            _ => None,
        };
        // Of a device that is down none can leave, and they would be stale when it comes back.
        let count = if health.is_some() { queue.len() } else { count };
        if let Some(health) = health {
            self.health.set(health);
        }
        self.stats.tx_errors += count as u64;
        queue.drain(count).for_each(|frame| pool.free(frame));
    }

    /// Asks the kernel what has become of the device.
    fn look(&self) -> Health {
        let mut poll = libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: one `pollfd`, and no time to wait.
        match sys::check(unsafe { libc::poll(&raw mut poll, 1, 0) }) {
            Ok(_) if poll.revents & (libc::POLLERR | libc::POLLNVAL) != 0 => Health::Gone,
            // Writable means up: `tun_chr_poll` looks at both.
            Ok(_) if poll.revents & libc::POLLOUT != 0 => Health::Up,
            _ => Health::Down,
        }
    }
}
