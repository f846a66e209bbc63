//! Bare forwarding loops: the yardstick that the switch is measured with.
//!
//! Each loop moves frames between two devices of one kind, both ways, with as few lines as the kernel's
//! interface allows, and does nothing else: no header is read, nothing is counted per frame but its length.
//! What such a loop reaches is what the kernel gives; `vspktgen loop` runs them and `benches/compare` prints
//! every figure of the switch as a ratio to them.
//!
//! One loop has two kinds: a packet socket, and a device shared with the host by redirecting it into a tap ([`shared`]),
//! which is what the way outside of a container is made of.
//!
//! They share no line that moves frames with the ports ([`crate::tap`], [`crate::veth`], [`crate::afxdp`]) on purpose: the
//! ratio measures the ports, too. The switch itself uses nothing from here.
//!
//! Limits: one queue a device, no VLAN tag is put back in ([`packet`]), no jumbo frames ([`xdp`]).

use std::ffi::CString;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};

pub mod packet;
pub mod shared;
pub mod tap;
pub mod xdp;

/// What a loop does when neither device has a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Looks again at once.
    Busy,
    /// Sleeps in `poll` until a device is readable.
    Poll,
}

/// What a loop has moved, both directions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Frames handed to the other device.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that the other device refused.
    pub refused: u64,
    /// Passes over both devices that found at least one frame.
    pub busy_turns: u64,
    /// Passes that found none.
    pub idle_turns: u64,
}

/// Runs `pass` (which returns whether it found a frame) until `stop` is set.
fn run(
    stop: &AtomicBool,
    wait: Wait,
    fds: [RawFd; 2],
    totals: &mut Totals,
    mut pass: impl FnMut(&mut Totals) -> io::Result<bool>,
) -> io::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        if pass(totals)? {
            totals.busy_turns += 1;
        } else {
            totals.idle_turns += 1;
            if wait == Wait::Poll {
                readable(&fds, 100)?;
            }
        }
    }
    Ok(())
}

/// Waits until one of `fds` (at most 16) is readable, at most `millis`, and says whether one is.
///
/// # Errors
/// What `poll` says; an interrupted call counts as nothing readable.
pub fn readable(fds: &[RawFd], millis: i32) -> io::Result<bool> {
    let mut polled = [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; 16];
    for (slot, fd) in polled.iter_mut().zip(fds) {
        slot.fd = *fd;
    }
    // SAFETY: the array lives through the call and its length is right.
    let count = unsafe { libc::poll(polled.as_mut_ptr(), 16, millis) };
    if count >= 0 {
        return Ok(count > 0);
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        error => Err(error),
    }
}

/// Returns the result of a system call, or why it failed.
fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sets a socket option that is a plain number or structure.
fn set_option<T>(fd: RawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).expect("an option is small");
    // SAFETY: `value` lives through the call and `len` is its size.
    let result = unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(value).cast(), len) };
    check(result).map(drop)
}

/// Returns the number of the device called `name` in the namespace of this thread.
fn index_of(name: &str) -> io::Result<u32> {
    let name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: a NUL-terminated string that lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}
