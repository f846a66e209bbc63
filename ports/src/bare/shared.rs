//! The bare loop between a packet socket and a device that is shared by redirecting: what a switch's way outside is made
//! of, without a switch.
//!
//! Programs of three instructions redirect all that arrives at the device into a tap, and all that is written to the tap
//! out of the device, so GRO and GSO frames cross whole. They decide nothing: whoever is behind the packet socket is
//! the one that the device's link reaches, with an address of that link and ARP of its own.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::AtomicBool;

use super::packet::Socket;
use super::{Totals, Wait, index_of, run, tap};
use crate::bpf::assembler::{Assembler, Helper, R1, R2};
use crate::bpf::{Link, PROG_TYPE_SCHED_CLS, Program, TCX_INGRESS};

/// Frames that one device may send before the other has its turn.
const BUDGET: usize = 64;
/// Room for a 64 KiB packet, its Ethernet header and the `virtio_net_hdr`.
const ROOM: usize = 65536 + 64;

/// Redirection of all packets between a device and a tap, both ways. It ends when this is dropped.
#[derive(Debug)]
pub struct Redirect {
    links: [Link; 2],
}

impl Redirect {
    /// Redirects between two devices of the calling thread's namespace, and brings the second one up.
    ///
    /// # Errors
    /// What the kernel says: no such device, no right, `EINVAL` without tcx (Linux 6.6).
    pub fn between(device: &str, tap: &str) -> io::Result<Self> {
        let redirect = |at: u32, to: u32| {
            let mut program = Assembler::default();
            program.set(R1, to.cast_signed());
            program.set(R2, 0);
            program.call(Helper::Redirect);
            program.exit();
            Program::load("bare", PROG_TYPE_SCHED_CLS, 0, 0, &program.finish())?.attach(at, TCX_INGRESS, 0)
        };
        tap::bring_up(tap)?;
        let (outer, inner) = (index_of(device)?, index_of(tap)?);
        Ok(Self { links: [redirect(inner, outer)?, redirect(outer, inner)?] })
    }
}

impl Drop for Redirect {
    fn drop(&mut self) {
        self.links.iter().for_each(Link::detach);
    }
}

/// Copies frames between the packet socket of `inside` and `outside`, which is shared by a tap called `tap`, until `stop`
/// is set. The tap vanishes with the loop.
///
/// # Errors
/// What the kernel says when a device is opened or goes.
pub fn forward(
    inside: &str,
    outside: &str,
    tap: &str,
    wait: Wait,
    stop: &AtomicBool,
    totals: &mut Totals,
) -> io::Result<()> {
    let socket = Socket::open(inside, true)?;
    let file = tap::open(tap)?;
    let _redirect = Redirect::between(outside, tap)?;
    let mut buffer = vec![0; ROOM];
    run(stop, wait, [socket.raw(), file.as_raw_fd()], totals, |totals| {
        let out = copy(&socket, &file, &mut buffer, totals)?;
        Ok(copy(&file, &socket, &mut buffer, totals)? | out)
    })
}

/// What moves one frame a system call, both with a `virtio_net_hdr` of the same kind.
trait Way {
    fn read(&self, buffer: &mut [u8]) -> isize;
    fn write(&self, bytes: &[u8]) -> isize;
}

impl Way for OwnedFd {
    fn read(&self, buffer: &mut [u8]) -> isize {
        // SAFETY: the buffer lives through the call and its length is right.
        unsafe { libc::read(self.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) }
    }

    fn write(&self, bytes: &[u8]) -> isize {
        // SAFETY: the bytes live through the call and their length is right.
        unsafe { libc::write(self.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) }
    }
}

impl Way for Socket {
    fn read(&self, buffer: &mut [u8]) -> isize {
        // SAFETY: the buffer lives through the call and its length is right.
        unsafe { libc::recv(self.raw(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) }
    }

    fn write(&self, bytes: &[u8]) -> isize {
        // SAFETY: the bytes live through the call and their length is right.
        unsafe { libc::send(self.raw(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) }
    }
}

fn copy(from: &impl Way, to: &impl Way, buffer: &mut [u8], totals: &mut Totals) -> io::Result<bool> {
    for n in 0..BUDGET {
        let Ok(len) = usize::try_from(from.read(buffer)) else {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                // A device that is down says so once and may come up again.
                Some(libc::EAGAIN | libc::ENETDOWN) => Ok(n > 0),
                _ => Err(error),
            };
        };
        if to.write(&buffer[..len]) < 0 {
            totals.refused += 1;
        } else {
            totals.frames += 1;
            totals.bytes += len as u64;
        }
    }
    Ok(true)
}
