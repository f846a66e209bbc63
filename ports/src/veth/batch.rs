//! Many packets a system call: `recvmmsg` and `sendmmsg` over arrays that are made once.
//!
//! The arrays hold pointers only while a call runs: they are set right before it, and the chunks they point to
//! are taken from the pool before and given away after.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use packet::{Frame, FramePool, FrameQueue};

use crate::finish::Can;
use crate::join::{self, Head};
use crate::landing::{Landed, Landing};
use crate::{sys, vnet};

/// Packets of one system call. PERF: 64 is where the cost of the call itself is gone in the noise of the
/// kernel's own cost a packet, 0.7 us and more (the ignored bench in ports/tests/veth.rs).
pub(super) const SLOTS: usize = 64;
/// After this many bytes the port has had its turn, whatever its budget of frames: see `tap`. PERF:
/// tests/speed.rs, 288 ns/KiB with this limit (a bare loop has the same), 315 with a quarter of it, 325 with four
/// times as much.
pub(super) const TURN_BYTES: usize = 1 << 20;
/// With no more packets than this expected, fewer slots are prepared.
const FEW: usize = 4;
const _: () = assert!(join::MOST <= SLOTS);

/// Room for one `PACKET_AUXDATA` control message, aligned as `cmsghdr` wants it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    data: libc::tpacket_auxdata,
    /// Up to `CMSG_SPACE`.
    padding: u32,
}

/// The receiving half.
pub(super) struct Receiver {
    landings: Vec<Landing>,
    messages: Box<[libc::mmsghdr]>,
    iovecs: Box<[[libc::iovec; 2]]>,
    controls: Box<[Control]>,
    /// How many slots the next call prepares: follows the traffic.
    slots: usize,
}

// SAFETY: the pointers in the arrays are used only within `receive`, which sets them first.
unsafe impl Send for Receiver {}

/// A packet as `recvmmsg` left it.
pub(super) enum Received {
    /// A whole packet, and the VLAN tag (TPID, TCI) that the kernel took out of it.
    Whole(Landed, Option<(u16, u16)>),
    /// It was longer than the slot; the rest is lost. `true`: for want of a large chunk.
    Truncated(bool),
}

/// Makes an array of C structures for the kernel.
///
/// # Safety
/// All zero is a valid `T`.
unsafe fn zeroed<T: Clone>() -> Box<[T]> {
    // SAFETY: passed on from the caller.
    let zero: T = unsafe { std::mem::zeroed() };
    vec![zero; SLOTS].into_boxed_slice()
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            landings: Vec::with_capacity(SLOTS),
            // SAFETY: integers and pointers.
            messages: unsafe { zeroed::<libc::mmsghdr>() },
            // SAFETY: integers and pointers.
            iovecs: unsafe { zeroed::<[libc::iovec; 2]>() },
            // SAFETY: integers and pointers.
            controls: unsafe { zeroed::<Control>() },
            slots: FEW,
        }
    }

    /// Receives up to `most` packets in one system call and hands each to `each`. Returns how many, and
    /// whether more may wait.
    ///
    /// # Errors
    /// What `recvmmsg` says; `OutOfMemory` when the pool has no chunk.
    #[inline]
    pub(super) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        pool: &mut FramePool,
        most: usize,
        mut each: impl FnMut(Received, &mut FramePool),
    ) -> io::Result<(usize, bool)> {
        let slots = self.slots.min(most).min(SLOTS);
        for n in 0..slots {
            let Some(mut landing) = Landing::take(pool) else { break };
            if n > 0 && !landing.takes_large() {
                // What is large must find a large chunk: better fewer slots than a frame cut off.
                landing.give_back(pool);
                break;
            }
            self.iovecs[n] = landing.iovecs(vnet::LEN);
            self.landings.push(landing);
            let header = &mut self.messages[n].msg_hdr;
            header.msg_iov = self.iovecs[n].as_mut_ptr();
            header.msg_iovlen = 2;
            header.msg_control = (&raw mut self.controls[n]).cast();
            header.msg_controllen = size_of::<Control>();
        }
        let slots = self.landings.len();
        if slots == 0 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let count = u32::try_from(slots).expect("at most SLOTS");
        let messages = self.messages.as_mut_ptr();
        // SAFETY: `messages` has `count` entries whose pointers were just set to memory that we own: chunks of
        // the landings, and the arrays of `self`.
        let result = sys::check(unsafe {
            libc::recvmmsg(fd.as_raw_fd(), messages, count, libc::MSG_DONTWAIT, std::ptr::null_mut())
        });
        let received = *result.as_ref().unwrap_or(&0);
        let mut bytes = 0;
        for (n, landing) in self.landings.drain(..).enumerate() {
            if n >= received {
                landing.give_back(pool);
                continue;
            }
            let message = &self.messages[n];
            let len = message.msg_len as usize;
            bytes += len;
            if message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 || len < vnet::LEN {
                let starved = !landing.takes_large();
                landing.give_back(pool);
                each(Received::Truncated(starved), pool);
                continue;
            }
            let tag = tag(&message.msg_hdr, &self.controls[n]);
            let landed = landing.land(vnet::LEN, len - vnet::LEN, pool);
            each(Received::Whole(landed, tag), pool);
        }
        result?;
        let full = received == slots;
        if full {
            // No more of a kind than fill one turn.
            let enough = (TURN_BYTES * received).div_ceil(bytes.max(1)).max(FEW);
            self.slots = (slots * 2).min(SLOTS).min(enough);
        } else if received < self.slots / 2 {
            self.slots = (self.slots / 2).max(FEW);
        }
        Ok((received, full))
    }
}

/// Returns the VLAN tag that the kernel keeps beside the packet.
fn tag(header: &libc::msghdr, control: &Control) -> Option<(u16, u16)> {
    let present = header.msg_controllen >= size_of::<libc::cmsghdr>() + size_of::<libc::tpacket_auxdata>()
        && control.header.cmsg_level == libc::SOL_PACKET
        && control.header.cmsg_type == libc::PACKET_AUXDATA;
    if !present || control.data.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let tpid = if control.data.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0 {
        control.data.tp_vlan_tpid
    } else {
        0x8100
    };
    Some((tpid, control.data.tp_vlan_tci))
}

/// The sending half.
pub(super) struct Sender {
    messages: Box<[libc::mmsghdr]>,
    /// Two for each frame: a frame alone takes up to two, and joined ones one each and one for their headers.
    iovecs: Box<[libc::iovec]>,
    /// For frames without headroom.
    headers: Box<[[u8; vnet::LEN]]>,
    /// For frames that are joined.
    heads: Box<[Head]>,
    /// Frames in each message.
    counts: Box<[u8]>,
}

// SAFETY: the pointers in the arrays are used only within `send`, which sets them first.
unsafe impl Send for Sender {}

impl Sender {
    pub(super) fn new() -> Self {
        // SAFETY: integers and pointers.
        let iovecs = unsafe { zeroed::<[libc::iovec; 2]>() };
        Self {
            // SAFETY: integers and pointers.
            messages: unsafe { zeroed::<libc::mmsghdr>() },
            iovecs: iovecs.into_iter().flatten().collect(),
            headers: vec![[0; vnet::LEN]; SLOTS].into_boxed_slice(),
            heads: vec![Head::default(); SLOTS / 2].into_boxed_slice(),
            counts: vec![0; SLOTS].into_boxed_slice(),
        }
    }

    /// Sends the first `ready` frames of `queue`, at most [`SLOTS`], in one system call, and returns how many of them the
    /// kernel took; and how many of those as parts of a larger one.
    ///
    /// # Errors
    /// What `sendmmsg` says of the first, and how many frames that was.
    #[inline]
    pub(super) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        can: &Can,
        queue: &mut FrameQueue,
        ready: usize,
    ) -> Result<(usize, usize), (io::Error, usize)> {
        let ready = ready.min(SLOTS);
        let (mut messages, mut heads, mut pieces, mut at) = (0, 0, 0, 0);
        while at < ready {
            let count = join::count(can, queue.iter_from(at).take(ready - at));
            let first = pieces;
            if count == 1 {
                if let Some(frame) = queue.iter_mut().nth(at) {
                    pieces += alone(frame, &mut self.iovecs[pieces..], &mut self.headers[messages]);
                }
            } else {
                let head = &mut self.heads[heads];
                heads += 1;
                pieces += joined(head, queue.iter_mut().skip(at).take(count), &mut self.iovecs[pieces..]);
            }
            let header = &mut self.messages[messages].msg_hdr;
            header.msg_iov = self.iovecs[first..].as_mut_ptr();
            header.msg_iovlen = pieces - first;
            self.counts[messages] = u8::try_from(count).expect("at most SLOTS");
            messages += 1;
            at += count;
        }
        let count = libc::c_uint::try_from(messages).expect("at most SLOTS");
        // SAFETY: the first `count` messages point to frames that the caller lends for the call, and to our own arrays.
        let sent =
            unsafe { libc::sendmmsg(fd.as_raw_fd(), self.messages.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
        match sys::check(sent) {
            Ok(sent) => {
                let counts = self.counts[..sent].iter().map(|count| usize::from(*count));
                let joined = counts.clone().filter(|count| *count > 1).sum();
                Ok((counts.sum(), joined))
            }
            Err(error) => Err((error, usize::from(self.counts[0]))),
        }
    }
}

/// Points to a frame with its header, and returns how many pieces that takes.
#[inline]
fn alone(frame: &mut Frame, pieces: &mut [libc::iovec], spare: &mut [u8; vnet::LEN]) -> usize {
    if frame.headroom() >= vnet::LEN {
        let mut header = [0; vnet::LEN];
        vnet::encode(frame, &mut header);
        let bytes = frame.with_headroom(vnet::LEN);
        bytes[..vnet::LEN].copy_from_slice(&header);
        pieces[0] = piece(bytes);
        return 1;
    }
    vnet::encode(frame, spare);
    pieces[0] = piece(spare);
    pieces[1] = piece(frame.bytes_mut());
    2
}

/// Points to the headers of joined frames, and to their payloads.
fn joined<'a>(
    head: &mut Head,
    frames: impl Iterator<Item = &'a mut Frame>,
    pieces: &mut [libc::iovec],
) -> usize {
    let mut count = 1;
    for frame in frames {
        if count == 1 {
            head.start(vnet::LEN, frame);
        }
        let start = head.add(frame);
        pieces[count] = piece(&mut frame.bytes_mut()[start..]);
        count += 1;
    }
    pieces[0] = piece(head.finish());
    count
}

fn piece(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}
