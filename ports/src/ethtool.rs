//! Offload settings of a device, as `ethtool -k` shows and `ethtool -K` sets them.
//!
//! The old calls, one number a feature: every kernel since 2.6 has them, and nothing else of ethtool is needed.
//! Devices are looked up in the network namespace of the calling thread. Not for a worker's turn.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;

use crate::sys::{check, ifreq, socket};

/// SIOCETHTOOL (linux/sockios.h).
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// An offload that can be read and switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// The device checks checksums of received packets.
    RxChecksum,
    /// The device finishes checksums of packets to send.
    TxChecksum,
    /// The device takes packets in pieces.
    ScatterGather,
    /// The device cuts large TCP packets.
    Tso,
    /// The kernel cuts large packets only just before the device.
    Gso,
    /// The kernel joins received packets to large ones.
    Gro,
    /// VLAN tags of received packets go into metadata.
    RxVlan,
    /// VLAN tags of packets to send come from metadata: in a veth pair they stay there, where the other end's
    /// XDP program does not see them.
    TxVlan,
}

impl Offload {
    /// All of them.
    pub const ALL: [Offload; 8] = [
        Self::RxChecksum,
        Self::TxChecksum,
        Self::ScatterGather,
        Self::Tso,
        Self::Gso,
        Self::Gro,
        Self::RxVlan,
        Self::TxVlan,
    ];

    /// The commands that read and write it, and its bit in their value (linux/ethtool.h).
    const fn commands(self) -> (u32, u32, u32) {
        match self {
            Self::RxChecksum => (0x14, 0x15, 1),
            Self::TxChecksum => (0x16, 0x17, 1),
            Self::ScatterGather => (0x18, 0x19, 1),
            Self::Tso => (0x1e, 0x1f, 1),
            Self::Gso => (0x23, 0x24, 1),
            Self::Gro => (0x2b, 0x2c, 1),
            Self::TxVlan => (0x25, 0x26, 1 << 7),
            Self::RxVlan => (0x25, 0x26, 1 << 8),
        }
    }
}

impl fmt::Display for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RxChecksum => "rx-checksum",
            Self::TxChecksum => "tx-checksum",
            Self::ScatterGather => "scatter-gather",
            Self::Tso => "tso",
            Self::Gso => "gso",
            Self::Gro => "gro",
            Self::RxVlan => "rx-vlan",
            Self::TxVlan => "tx-vlan",
        })
    }
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Says whether `offload` is on for `device`.
///
/// # Errors
/// There is no such device, or it does not know the offload (`EOPNOTSUPP`).
pub fn is_on(device: &str, offload: Offload) -> io::Result<bool> {
    let (read, _, bit) = offload.commands();
    let mut value = Value { command: read, data: 0 };
    call(device, &mut value)?;
    Ok(value.data & bit != 0)
}

/// Switches `offload` of `device`. Others may follow: without checksums there is no TSO.
///
/// # Errors
/// There is no such device, or it cannot switch the offload.
pub fn set(device: &str, offload: Offload, on: bool) -> io::Result<()> {
    let (read, write, bit) = offload.commands();
    // One number holds several of them.
    let mut value = Value { command: read, data: 0 };
    call(device, &mut value)?;
    value.command = write;
    value.data = if on { value.data | bit } else { value.data & !bit };
    call(device, &mut value)
}

fn call(device: &str, value: &mut Value) -> io::Result<()> {
    // Any socket does; it stands for its namespace.
    let socket = socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)?;
    let mut request = ifreq(device)?;
    request.ifr_ifru.ifru_data = (&raw mut *value).cast();
    // SAFETY: `request` names the device and points to a `struct ethtool_value`, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_namespace_has_a_loopback_with_checksums_on() {
        assert!(is_on("lo", Offload::TxChecksum).expect("lo can be asked"));
        assert!(is_on("lo", Offload::ScatterGather).expect("lo can be asked"));
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = is_on("no-such-device", Offload::Tso).expect_err("no such device");
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        assert!(set("", Offload::Tso, false).is_err());
    }
}
