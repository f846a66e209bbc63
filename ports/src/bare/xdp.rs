//! The bare loop over two AF_XDP sockets that share one area of memory.
//!
//! A received descriptor moves from one socket's receive ring to the other's transmit ring; nothing is copied
//! in here and no header is read, so checksums must be complete when they come in (`ethtool -K tx off`).
//! Native mode and copy, which is what veth has; one queue; frames of at most a chunk.
//!
//! The area is registered once per socket. A chunk is always in one place: the stack of free ones, a fill
//! ring, a receive or transmit ring, or on its way in the kernel until the completion ring returns it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::{Totals, Wait, check, index_of, run, set_option};
use crate::bpf::assembler::{Assembler, Helper, R1, R2, R3, W4};
use crate::bpf::{self, Link, Map, MapSpec};

const CHUNK: usize = 4096;
const CHUNKS: usize = 16384;
const RING: u32 = 2048;
const BATCH: u32 = 64;
/// `XDP_MAX_TX_SKB_BUDGET` (Linux 6.17): descriptors that one call sends.
const MAX_TX_BUDGET: i32 = 9;

/// Runs the loop between two devices until `stop` is set.
///
/// # Errors
/// What the kernel says when a socket is opened or a device goes.
pub fn forward(devices: [&str; 2], wait: Wait, stop: &AtomicBool, totals: &mut Totals) -> io::Result<()> {
    let area = map_area()?;
    let mut free: Vec<u64> = (0..CHUNKS as u64).map(|n| n * CHUNK as u64).collect();
    let mut a = Socket::open(devices[0], area)?;
    let mut b = Socket::open(devices[1], area)?;
    let fds = [a.fd.as_raw_fd(), b.fd.as_raw_fd()];
    run(stop, wait, fds, totals, |totals| {
        let forth = a.pass_to(&mut b, &mut free, totals)?;
        Ok(b.pass_to(&mut a, &mut free, totals)? | forth)
    })
}

/// One ring shared with the kernel. `T` is an address (`u64`) or a descriptor.
struct Ring<T> {
    producer: *const AtomicU32,
    consumer: *const AtomicU32,
    flags: *const AtomicU32,
    entries: *mut T,
    /// Our own position: the next entry to produce or to consume.
    own: u32,
    /// The kernel's position when we last looked.
    seen: u32,
}

impl<T: Copy> Ring<T> {
    fn load(&self, position: *const AtomicU32) -> u32 {
        // SAFETY: points into the ring's mapping, which stays until the process ends.
        unsafe { &*position }.load(Ordering::Acquire)
    }

    fn store(&self, position: *const AtomicU32) {
        // SAFETY: as in `load`.
        unsafe { &*position }.store(self.own, Ordering::Release);
    }

    fn needs_wakeup(&self) -> bool {
        self.load(self.flags) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    fn entry(&self) -> *mut T {
        // SAFETY: the mask keeps the index within the mapping.
        unsafe { self.entries.add((self.own & (RING - 1)) as usize) }
    }

    /// Entries that the kernel has produced and we have not consumed, at most `limit`.
    fn filled(&mut self, limit: u32) -> u32 {
        if self.seen == self.own {
            self.seen = self.load(self.producer);
        }
        self.seen.wrapping_sub(self.own).min(limit)
    }

    fn pop(&mut self) -> T {
        // SAFETY: `filled` said that the kernel has written this entry.
        let value = unsafe { self.entry().read() };
        self.own = self.own.wrapping_add(1);
        value
    }

    /// Room for entries of ours, at most `limit`.
    fn room(&mut self, limit: u32) -> u32 {
        if RING - self.own.wrapping_sub(self.seen) < limit {
            self.seen = self.load(self.consumer);
        }
        (RING - self.own.wrapping_sub(self.seen)).min(limit)
    }

    fn push(&mut self, value: T) {
        // SAFETY: `room` said that the kernel has consumed this entry.
        unsafe { self.entry().write(value) };
        self.own = self.own.wrapping_add(1);
    }
}

struct Socket {
    fill: Ring<u64>,
    completion: Ring<u64>,
    rx: Ring<libc::xdp_desc>,
    tx: Ring<libc::xdp_desc>,
    fd: OwnedFd,
    _program: Program,
}

impl Socket {
    fn open(device: &str, area: *mut u8) -> io::Result<Self> {
        let index = index_of(device)?;
        let program = Program::attach(index)?;
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: a new descriptor that nobody else knows.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let raw = fd.as_raw_fd();
        let registration = libc::xdp_umem_reg {
            addr: area as u64,
            len: (CHUNKS * CHUNK) as u64,
            chunk_size: u32::try_from(CHUNK).expect("4096"),
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set_option(raw, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)?;
        for ring in
            [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING, libc::XDP_TX_RING]
        {
            set_option(raw, libc::SOL_XDP, ring, &RING)?;
        }
        // Older kernels do not know it and send 32 a call.
        let _ = set_option(raw, libc::SOL_XDP, MAX_TX_BUDGET, &RING);
        // SAFETY: all zeroes is a valid value.
        let mut at: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
        let mut len = libc::socklen_t::try_from(size_of_val(&at)).expect("128");
        // SAFETY: `at` lives through the call and `len` is its size.
        check(unsafe {
            libc::getsockopt(raw, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, (&raw mut at).cast(), &raw mut len)
        })?;
        let pages = |page: libc::c_ulonglong| libc::off_t::try_from(page).expect("a constant");
        let fill = map_ring(raw, &at.fr, pages(libc::XDP_UMEM_PGOFF_FILL_RING))?;
        let completion = map_ring(raw, &at.cr, pages(libc::XDP_UMEM_PGOFF_COMPLETION_RING))?;
        let rx = map_ring(raw, &at.rx, libc::XDP_PGOFF_RX_RING)?;
        let tx = map_ring(raw, &at.tx, libc::XDP_PGOFF_TX_RING)?;
        // SAFETY: all zeroes is a valid address.
        let mut address: libc::sockaddr_xdp = unsafe { std::mem::zeroed() };
        address.sxdp_family = u16::try_from(libc::AF_XDP).expect("44");
        address.sxdp_flags = libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP;
        address.sxdp_ifindex = index;
        let len = libc::socklen_t::try_from(size_of_val(&address)).expect("16");
        // SAFETY: `address` lives through the call and `len` is its size.
        check(unsafe { libc::bind(raw, (&raw const address).cast(), len) })?;
        program.redirect_to(raw)?;
        Ok(Self { fill, completion, rx, tx, fd, _program: program })
    }

    /// One pass: everything that waits here goes to `to`; both sides' rings are kept going.
    fn pass_to(&mut self, to: &mut Self, free: &mut Vec<u64>, totals: &mut Totals) -> io::Result<bool> {
        let done = self.completion.filled(RING);
        if done > 0 {
            for _ in 0..done {
                free.push(self.completion.pop() & !(CHUNK as u64 - 1));
            }
            self.completion.store(self.completion.consumer);
        }
        let room = self.fill.room(RING);
        if room >= BATCH {
            for _ in 0..room {
                let Some(chunk) = free.pop() else { break };
                self.fill.push(chunk);
            }
            self.fill.store(self.fill.producer);
        }
        if self.fill.needs_wakeup() {
            // SAFETY: no data is transferred.
            unsafe { libc::recv(self.fd.as_raw_fd(), ptr::null_mut(), 0, libc::MSG_DONTWAIT) };
        }
        let received = self.rx.filled(BATCH);
        if received > 0 {
            let room = to.tx.room(received);
            for n in 0..received {
                let descriptor = self.rx.pop();
                if n < room {
                    totals.frames += 1;
                    totals.bytes += u64::from(descriptor.len);
                    to.tx.push(libc::xdp_desc { options: 0, ..descriptor });
                } else {
                    totals.refused += 1;
                    free.push(descriptor.addr & !(CHUNK as u64 - 1));
                }
            }
            self.rx.store(self.rx.consumer);
            to.tx.store(to.tx.producer);
        }
        // The kernel sends a limited number a call: go on until its ring is empty.
        if to.tx.load(to.tx.consumer) != to.tx.own && to.tx.needs_wakeup() {
            let fd = to.fd.as_raw_fd();
            // SAFETY: no data is transferred.
            let sent = unsafe { libc::sendto(fd, ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
            if sent < 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::ENETDOWN) => {}
                    _ => return Err(error),
                }
            }
        }
        Ok(received > 0)
    }
}

/// Maps the area; it stays until the process ends.
fn map_area() -> io::Result<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    map(-1, CHUNKS * CHUNK, flags, 0)
}

fn map_ring<T>(fd: RawFd, at: &libc::xdp_ring_offset, page: libc::off_t) -> io::Result<Ring<T>> {
    let entries = usize::try_from(at.desc).expect("64-bit");
    let len = entries + RING as usize * size_of::<T>();
    let base = map(fd, len, libc::MAP_SHARED | libc::MAP_POPULATE, page)?;
    let place = |offset: u64| {
        // SAFETY: the kernel gave the offset, which is within the mapping it made.
        unsafe { base.add(usize::try_from(offset).expect("64-bit")) }
    };
    Ok(Ring {
        producer: place(at.producer).cast(),
        consumer: place(at.consumer).cast(),
        flags: place(at.flags).cast(),
        entries: place(at.desc).cast(),
        own: 0,
        seen: 0,
    })
}

fn map(fd: RawFd, len: usize, flags: i32, offset: libc::off_t) -> io::Result<*mut u8> {
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let base =
        unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset) };
    if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(base.cast()) }
}

/// The XDP program `redirect_map(&sockets, queue, XDP_PASS)`, its map, and the link that keeps it attached
/// until the process ends.
struct Program {
    map: Map,
    _link: Link,
}

impl Program {
    fn attach(device: u32) -> io::Result<Self> {
        const RX_QUEUE_INDEX: i16 = 16;
        const XDP_PASS: i32 = 2;
        const XDP_FLAGS_DRV_MODE: u32 = 4;

        let name = "bare_xsk";
        let map = Map::create(MapSpec {
            name,
            kind: bpf::MAP_TYPE_XSKMAP,
            key_len: 4,
            value_len: 4,
            entries: 1,
            flags: 0,
        })?;
        let mut a = Assembler::default();
        a.load(W4, R2, R1, RX_QUEUE_INDEX);
        a.map(R1, &map);
        a.set(R3, XDP_PASS);
        a.call(Helper::RedirectMap);
        a.exit();
        let program = bpf::Program::load(name, bpf::PROG_TYPE_XDP, bpf::XDP, 0, &a.finish())?;
        Ok(Self { map, _link: program.attach(device, bpf::XDP, XDP_FLAGS_DRV_MODE)? })
    }

    fn redirect_to(&self, socket: RawFd) -> io::Result<()> {
        self.map.set(&0_u32.to_ne_bytes(), &socket.to_ne_bytes())
    }
}
