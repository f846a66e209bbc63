//! An AF_XDP socket: the area registered as its UMEM, its four rings, and the system calls that move it on.
//!
//! The order of the calls is the kernel's: register, size the rings, map them, bind. Every socket registers the
//! whole area for itself, so that none depends on another one's device. Registering pins the area: all its
//! pages become resident, and the kernel takes about 128 bytes a chunk for each socket.
//!
//! Two ways to cut the area up ([`Layout`]). In copy mode the UMEM is "unaligned": a descriptor may begin
//! anywhere, so a received frame may start at one of eight cache lines like any other frame of the pool, and a
//! large chunk leaves as pieces with the room that transmit metadata wants before each. Zero copy gets
//! the aligned one, because drivers take unaligned chunks across pages only from huge pages.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use packet::Area;
use packet::area::CHUNK_LEN;
use packet::frame::HEADROOM;
use packet::pool::SMALL_ROOM;

use super::ring::{Consumer, Mapped, Place, Producer};
use super::{BusyPoll, Options};

/// The kernel leaves as much before every received frame (`XDP_PACKET_HEADROOM`).
pub(super) const RECEIVE_HEADROOM: usize = HEADROOM;
/// Bytes of `struct xsk_tx_metadata`.
pub(super) const METADATA_LEN: usize = 24;

const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
const SO_BUSY_POLL_BUDGET: libc::c_int = 70;

/// In unaligned mode an address has its offset in the upper 16 bits.
const OFFSET_SHIFT: u32 = 48;

/// How the area is cut up for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Descriptors may begin anywhere in the area.
    pub(super) unaligned: bool,
    /// Bytes of a chunk as the kernel knows it.
    pub(super) chunk: usize,
    /// Bytes before every transmit descriptor that belong to it.
    pub(super) metadata: usize,
}

impl Layout {
    fn new(unaligned: bool, metadata: bool) -> Self {
        Self {
            unaligned,
            // An unaligned chunk ends where the shortest of the pool's frames ends.
            chunk: if unaligned { RECEIVE_HEADROOM + SMALL_ROOM } else { CHUNK_LEN },
            metadata: if metadata { METADATA_LEN } else { 0 },
        }
    }

    /// Returns the bytes of the first descriptor of a frame that begins at `offset` and has `len` bytes; 0 when
    /// none can begin there.
    #[inline]
    pub(super) fn piece(&self, offset: usize, len: usize) -> usize {
        let room = if self.unaligned {
            self.chunk - self.metadata
        } else {
            let within = offset % CHUNK_LEN;
            if within < self.metadata { 0 } else { CHUNK_LEN - within }
        };
        room.min(len)
    }
}

/// What `bind` is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    pub(super) interface: u32,
    pub(super) queue: u32,
    pub(super) zero_copy: bool,
    pub(super) fragments: bool,
}

/// A bound socket.
#[derive(Debug)]
pub(super) struct Socket {
    // The rings come before the descriptor: they hold the socket, and the queue is free when both are gone.
    pub(super) rx: Consumer<Mapped<libc::xdp_desc>>,
    pub(super) tx: Producer<Mapped<libc::xdp_desc>>,
    pub(super) fill: Producer<Mapped<u64>>,
    pub(super) completion: Consumer<Mapped<u64>>,
    pub(super) layout: Layout,
    pub(super) fragments: bool,
    fd: OwnedFd,
}

impl Socket {
    /// Makes a socket over `area` and binds it.
    ///
    /// # Errors
    /// The operation that failed, and what the kernel said: `EBUSY` when the queue has a socket,
    /// `EOPNOTSUPP` when the driver cannot, `ENOBUFS` when the memory-lock limit is too small.
    pub(super) fn open(
        area: &Area,
        options: &Options,
        binding: Binding,
    ) -> Result<Self, (&'static str, io::Error)> {
        let step = |operation| move |error| (operation, error);
        // SAFETY: plain system call, no memory involved.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(("open an AF_XDP socket", io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let raw = fd.as_raw_fd();

        let unaligned = !binding.zero_copy && !options.aligned;
        let layout =
            register(raw, area, unaligned, options.tx_checksum).map_err(step("register the frame memory"))?;
        // The completion ring takes all that may be in flight: transmit ring and packets on their way.
        let sizes = [
            (libc::XDP_UMEM_FILL_RING, options.ring),
            (libc::XDP_UMEM_COMPLETION_RING, options.completion_ring()),
            (libc::XDP_RX_RING, options.ring),
            (libc::XDP_TX_RING, options.ring),
        ];
        for (ring, size) in sizes {
            set(raw, libc::SOL_XDP, ring, &size).map_err(step("size the rings"))?;
        }
        // The default is 32 packets a system call; kernels before 6.17 have no such option. It follows the size
        // of the ring, which is its limit.
        let _ = set(raw, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &options.budget.min(options.ring));
        // Packets on their way count against the send buffer, and a full one stops the ring. A page and the
        // socket buffer itself each; the cap on chunks in flight is ours to enforce. Refused without privilege.
        let buffer = options.in_flight.saturating_mul(8192).min(1 << 30);
        let _ = set(raw, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &buffer);
        if let Some(BusyPoll { microseconds, budget }) = options.busy_poll {
            set(raw, libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, &1u32).map_err(step("prefer busy polling"))?;
            set(raw, libc::SOL_SOCKET, libc::SO_BUSY_POLL, &microseconds)
                .map_err(step("set busy polling"))?;
            set(raw, libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, &budget).map_err(step("set busy polling"))?;
        }

        let offsets = offsets(raw).map_err(step("ask for the rings"))?;
        let place = |at: libc::xdp_ring_offset, page_offset: u64| Place {
            page_offset: libc::off_t::try_from(page_offset).unwrap_or(libc::off_t::MAX),
            producer: at.producer,
            consumer: at.consumer,
            flags: at.flags,
            slots: at.desc,
        };
        let map = step("map the rings");
        let rx = Mapped::new(raw, place(offsets.rx, libc::XDP_PGOFF_RX_RING.cast_unsigned()), options.ring)
            .map_err(map)?;
        let tx = Mapped::new(raw, place(offsets.tx, libc::XDP_PGOFF_TX_RING.cast_unsigned()), options.ring)
            .map_err(map)?;
        let fill =
            Mapped::new(raw, place(offsets.fr, libc::XDP_UMEM_PGOFF_FILL_RING), options.ring).map_err(map)?;
        let completion = Mapped::new(
            raw,
            place(offsets.cr, libc::XDP_UMEM_PGOFF_COMPLETION_RING),
            options.completion_ring(),
        )
        .map_err(map)?;

        bind(raw, binding).map_err(step("bind"))?;
        Ok(Self {
            rx: Consumer::new(rx, options.ring),
            tx: Producer::new(tx, options.ring),
            fill: Producer::new(fill, options.ring),
            completion: Consumer::new(completion, options.completion_ring()),
            layout,
            fragments: binding.fragments,
            fd,
        })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Returns the fill-ring address for a chunk whose frame would begin at `offset`.
    #[inline]
    pub(super) fn fill_address(offset: usize) -> u64 {
        (offset - RECEIVE_HEADROOM) as u64
    }

    /// Returns the offset in the area of what a descriptor or completion of the kernel's refers to.
    #[inline]
    pub(super) fn offset(&self, address: u64) -> usize {
        let offset = if self.layout.unaligned {
            (address & ((1 << OFFSET_SHIFT) - 1)) + (address >> OFFSET_SHIFT)
        } else {
            address
        };
        usize::try_from(offset).unwrap_or(usize::MAX)
    }

    /// Has the kernel send from the transmit ring.
    ///
    /// # Errors
    /// What the kernel says; `EAGAIN` when there is more to send.
    #[inline]
    pub(super) fn kick(&self) -> io::Result<()> {
        // SAFETY: the call has no buffer and no address.
        let sent =
            unsafe { libc::sendto(self.fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Wakes a driver that waits for the fill ring; does nothing else, and so also tells how the device is.
    ///
    /// # Errors
    /// `ENETDOWN` when the device is down, `ENXIO` when it is gone.
    pub(super) fn poke(&self) -> io::Result<()> {
        // SAFETY: the call has no buffer and no address.
        let result = unsafe {
            libc::recvfrom(
                self.fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Returns the kernel's own counters.
    pub(super) fn statistics(&self) -> Option<libc::xdp_statistics> {
        let zero = libc::xdp_statistics {
            rx_dropped: 0,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: 0,
            rx_fill_ring_empty_descs: 0,
            tx_ring_empty_descs: 0,
        };
        get(self.fd(), libc::XDP_STATISTICS, zero).ok()
    }

    /// Says whether the driver reads and writes the area itself.
    pub(super) fn is_zero_copy(&self) -> bool {
        get(self.fd(), libc::XDP_OPTIONS, libc::xdp_options { flags: 0 })
            .is_ok_and(|options| options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }
}

/// Registers the area, with transmit metadata when wanted and known to the kernel (6.8).
fn register(fd: RawFd, area: &Area, unaligned: bool, metadata: bool) -> io::Result<Layout> {
    let attempt = |layout: Layout| {
        let mut flags = 0;
        if layout.unaligned {
            flags |= libc::XDP_UMEM_UNALIGNED_CHUNK_FLAG;
        }
        if layout.metadata > 0 {
            flags |= libc::XDP_UMEM_TX_METADATA_LEN;
        }
        let narrow = |value: usize| u32::try_from(value).expect("at most a page");
        let registration = libc::xdp_umem_reg {
            addr: area.base().as_ptr() as u64,
            len: area.len() as u64,
            chunk_size: narrow(layout.chunk),
            headroom: 0,
            flags,
            tx_metadata_len: narrow(layout.metadata),
        };
        set(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration).map(|()| layout)
    };
    match attempt(Layout::new(unaligned, metadata)) {
        Err(e) if metadata && e.raw_os_error() == Some(libc::EINVAL) => {
            attempt(Layout::new(unaligned, false))
        }
        result => result,
    }
}

fn bind(fd: RawFd, binding: Binding) -> io::Result<()> {
    let mut flags = libc::XDP_USE_NEED_WAKEUP;
    flags |= if binding.zero_copy { libc::XDP_ZEROCOPY } else { libc::XDP_COPY };
    if binding.fragments {
        flags |= libc::XDP_USE_SG;
    }
    let address = libc::sockaddr_xdp {
        sxdp_family: u16::try_from(libc::AF_XDP).expect("44"),
        sxdp_flags: flags,
        sxdp_ifindex: binding.interface,
        sxdp_queue_id: binding.queue,
        sxdp_shared_umem_fd: 0,
    };
    let len = libc::socklen_t::try_from(size_of_val(&address)).expect("16");
    // SAFETY: the address is a `sockaddr_xdp` of the length given, and outlives the call.
    let result = unsafe { libc::bind(fd, (&raw const address).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn offsets(fd: RawFd) -> io::Result<libc::xdp_mmap_offsets> {
    let ring = || libc::xdp_ring_offset { producer: 0, consumer: 0, desc: 0, flags: 0 };
    let zero = libc::xdp_mmap_offsets { rx: ring(), tx: ring(), fr: ring(), cr: ring() };
    get(fd, libc::XDP_MMAP_OFFSETS, zero)
}

fn set<T>(fd: RawFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).expect("an option is small");
    // SAFETY: the kernel reads `len` bytes at `value`, which is as long.
    let result = unsafe { libc::setsockopt(fd, level, option, std::ptr::from_ref(value).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn get<T>(fd: RawFd, option: libc::c_int, mut value: T) -> io::Result<T> {
    let mut len = libc::socklen_t::try_from(size_of::<T>()).expect("an option is small");
    // SAFETY: the kernel writes at most `len` bytes at `value`, which is as long and made of integers.
    let result = unsafe {
        libc::getsockopt(fd, libc::SOL_XDP, option, std::ptr::from_mut(&mut value).cast(), &raw mut len)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(layout: Layout, mut offset: usize, mut len: usize) -> Vec<usize> {
        let mut pieces = Vec::new();
        while len > 0 {
            let piece = layout.piece(offset, len);
            pieces.push(piece);
            if piece == 0 {
                break;
            }
            offset += piece;
            len -= piece;
        }
        pieces
    }

    #[test]
    fn aligned_descriptors_end_with_their_chunk() {
        let layout = Layout::new(false, false);
        assert_eq!(pieces(layout, 256, 1514), [1514]);
        assert_eq!(pieces(layout, 8 * 4096 + 256, 9014), [3840, 4096, 1078]);
    }

    #[test]
    fn aligned_descriptors_with_metadata_cannot_begin_a_chunk() {
        let layout = Layout::new(false, true);
        assert_eq!(pieces(layout, 256, 1514), [1514]);
        assert_eq!(pieces(layout, 256, 9014), [3840, 0]);
        assert_eq!(pieces(layout, 16, 60), [0]);
    }

    #[test]
    fn unaligned_descriptors_leave_room_for_metadata() {
        let layout = Layout::new(true, true);
        assert_eq!(pieces(layout, 256 + 448, SMALL_ROOM), [SMALL_ROOM]);
        let long = pieces(layout, 256, 9014);
        assert!(long.iter().all(|piece| piece + METADATA_LEN <= layout.chunk));
        assert_eq!(long.iter().sum::<usize>(), 9014);
        assert_eq!(long.len(), 3);
    }
}
