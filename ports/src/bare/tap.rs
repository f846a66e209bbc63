//! The bare loop over two taps: one `read` and one `write` a packet, `virtio_net_hdr` handed back as it came.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicBool;

use super::{Totals, Wait, check, run};

// Linux `uapi/linux/if_tun.h`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;

/// Frames that one device may send before the other has its turn.
const BUDGET: usize = 64;
/// Room for a 64 KiB packet, its Ethernet header and the `virtio_net_hdr`.
const ROOM: usize = 65536 + 64;

/// Creates the two taps, calls `ready` (which may move them to other namespaces: the descriptors stay good),
/// and copies frames between them until `stop` is set. The taps vanish with the loop.
///
/// # Errors
/// What the kernel says when a tap is made or goes.
pub fn forward(
    devices: [&str; 2],
    wait: Wait,
    stop: &AtomicBool,
    totals: &mut Totals,
    ready: impl FnOnce(),
) -> io::Result<()> {
    let taps = [open(devices[0])?, open(devices[1])?];
    ready();
    let mut buffer = vec![0; ROOM];
    let fds = [taps[0].as_raw_fd(), taps[1].as_raw_fd()];
    run(stop, wait, fds, totals, |totals| {
        let forth = copy(&taps[0], &taps[1], &mut buffer, totals)?;
        Ok(copy(&taps[1], &taps[0], &mut buffer, totals)? | forth)
    })
}

/// Makes the tap `device`.
pub(super) fn open(device: &str) -> io::Result<OwnedFd> {
    // SAFETY: a NUL-terminated string.
    let fd = check(unsafe {
        libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK)
    })?;
    // SAFETY: a new descriptor that nobody else knows.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut request = request(device)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the request is the structure that this call reads and writes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    let base = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
    // SAFETY: the argument is a number.
    let with_uso =
        check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, base | TUN_F_USO4 | TUN_F_USO6) });
    if with_uso.is_err() {
        // Before kernel 6.2.
        // SAFETY: as above.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, base) })?;
    }
    Ok(fd)
}

/// Returns a request about `device` that has only its name yet.
fn request(device: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

/// Brings `device` up, in the namespace of the calling thread.
pub(super) fn bring_up(device: &str) -> io::Result<()> {
    let mut request = request(device)?;
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: a new descriptor that nobody else knows.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).expect("1");
    // SAFETY: the request is the structure that this call reads.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }).map(drop)
}

fn copy(from: &OwnedFd, to: &OwnedFd, buffer: &mut [u8], totals: &mut Totals) -> io::Result<bool> {
    for n in 0..BUDGET {
        // SAFETY: the buffer lives through the call and its length is right.
        let len = unsafe { libc::read(from.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        let Ok(len) = usize::try_from(len) else {
            return match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(n > 0),
                error => Err(error),
            };
        };
        // SAFETY: `len` bytes of the buffer were just written by the kernel.
        let written = unsafe { libc::write(to.as_raw_fd(), buffer.as_ptr().cast(), len) };
        if written < 0 {
            // A tap that is down refuses with EIO; a full one drops by itself.
            totals.refused += 1;
        } else {
            totals.frames += 1;
            totals.bytes += len as u64;
        }
    }
    Ok(true)
}

/// Says whether this machine has taps at all.
pub fn available() -> bool {
    let device: &CStr = c"/dev/net/tun";
    // SAFETY: a NUL-terminated string.
    unsafe { libc::access(device.as_ptr(), libc::R_OK | libc::W_OK) == 0 }
}
