//! The few system calls that the ports make, with their return values as results.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Turns the return value of a system call into a result.
#[inline]
pub(crate) fn check(value: impl TryInto<usize>) -> io::Result<usize> {
    value.try_into().map_err(|_| io::Error::last_os_error())
}

/// Takes over a descriptor that a system call returned.
pub(crate) fn own(value: libc::c_int) -> io::Result<OwnedFd> {
    check(value)?;
    // SAFETY: the kernel has just made the descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(value) })
}

/// Makes a socket.
pub(crate) fn socket(domain: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    own(unsafe { libc::socket(domain, kind, protocol) })
}

/// Sets an integer option of a socket.
pub(crate) fn set_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = socklen::<libc::c_int>();
    // SAFETY: the option's value is `len` bytes at a valid address.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) })?;
    Ok(())
}

/// Returns the size of a plain C structure as the socket calls want it.
pub(crate) const fn socklen<T>() -> libc::socklen_t {
    #[expect(clippy::cast_possible_truncation, reason = "C structures for socket calls have under 4 GiB")]
    let len = size_of::<T>() as libc::socklen_t;
    len
}

/// Makes an `ifreq` for the device `name`.
///
/// # Errors
/// `InvalidInput` when the name is empty, too long for the kernel (15 bytes), or has a zero byte.
pub(crate) fn ifreq(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all fields of `ifreq` are integers, arrays of them and pointers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a device name has 1 to 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Returns the index of the device `name` in the namespace of the calling thread.
///
/// # Errors
/// `ENODEV` when there is none.
pub(crate) fn device_index(name: &str) -> io::Result<libc::c_int> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: `name` is a C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    match libc::c_int::try_from(index) {
        Ok(index) if index > 0 => Ok(index),
        _ => Err(io::Error::last_os_error()),
    }
}
