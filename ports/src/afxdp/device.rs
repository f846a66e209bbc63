//! What there is to know about the device under an AF_XDP port, by `ioctl`.
//!
//! Names are looked up in the network namespace of the calling thread (which is why nothing here reads /sys).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const SIOCETHTOOL: libc::c_ulong = 0x8946;

// uapi/linux/ethtool.h
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// A network device and a socket to ask about it.
#[derive(Debug)]
pub(super) struct Device {
    name: CString,
    index: u32,
    socket: OwnedFd,
}

/// Returns how many receive queues a device has, each of which takes a socket.
///
/// # Errors
/// `ENODEV` when there is none of that name.
pub fn queues(device: &str) -> io::Result<u32> {
    Ok(Device::find(device)?.queues())
}

/// `struct ifreq` with a pointer or an integer behind the name.
#[repr(C)]
struct Request<T> {
    name: [u8; libc::IFNAMSIZ],
    value: T,
    // The kernel copies a whole `struct ifreq`, whatever the request.
    rest: [u8; 24],
}

#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// The head of `struct ethtool_drvinfo` and the rest of its 196 bytes.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

impl Device {
    /// Finds the device.
    ///
    /// # Errors
    /// `ENODEV` when there is none of that name.
    pub(super) fn find(name: &str) -> io::Result<Self> {
        let name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
        if name.count_bytes() >= libc::IFNAMSIZ {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        // SAFETY: `name` is a C string that outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: plain system call, no memory involved.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { name, index, socket })
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// Returns the longest packet the device carries, without its Ethernet header.
    pub(super) fn mtu(&self) -> io::Result<u32> {
        let mut request = self.request(0i32);
        self.ioctl(libc::SIOCGIFMTU, &mut request)?;
        Ok(request.value.cast_unsigned())
    }

    /// Says whether this is one end of a veth pair.
    pub(super) fn is_veth(&self) -> bool {
        let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
        self.ethtool(&mut info).is_ok() && info.driver.starts_with(b"veth\0")
    }

    /// Returns how many receive queues are in use; 1 when the driver does not say.
    pub(super) fn queues(&self) -> u32 {
        let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
        match self.ethtool(&mut channels) {
            Ok(()) => (channels.rx + channels.combined).max(1),
            Err(_) => 1,
        }
    }

    fn ethtool<T>(&self, command: &mut T) -> io::Result<()> {
        let mut request = self.request(std::ptr::from_mut(command));
        self.ioctl(SIOCETHTOOL, &mut request)
    }

    fn request<T>(&self, value: T) -> Request<T> {
        let mut name = [0; libc::IFNAMSIZ];
        let bytes = self.name.as_bytes();
        name[..bytes.len()].copy_from_slice(bytes);
        Request { name, value, rest: [0; 24] }
    }

    fn ioctl<T>(&self, code: libc::c_ulong, request: &mut Request<T>) -> io::Result<()> {
        // SAFETY: the request is at least as long as `struct ifreq`, and for SIOCETHTOOL it points to a command
        // structure of the length that the kernel knows for it; both outlive the call.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), code, std::ptr::from_mut(request)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
