//! The sockets that hold ports.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, listen, setsockopt,
    socket, sockopt,
};
use tokio::net::{TcpListener, UdpSocket};

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 512;

/// Makes a socket for `address` that is not bound yet. One for `::` leaves IPv4 to others. The address need not be the
/// host's (yet).
fn open(address: SocketAddr, kind: SockType, protocol: Option<SockProtocol>) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, protocol)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    let _ = setsockopt(&socket, sockopt::IpFreebind, &true);
    Ok(socket)
}

fn bind_to(socket: &OwnedFd, address: SocketAddr) -> nix::Result<()> {
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
}

/// Listens at `address`.
pub(super) fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(address, SockType::Stream, None)?;
    // Connections that have ended lately do not keep the port; a socket that listens does, also from one with this set.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind_to(&socket, address)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    TcpListener::from_std(socket.into())
}

/// Receives at `address`, and is told which of its addresses a datagram was for.
pub(super) fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(address, SockType::Datagram, None)?;
    if address.is_ipv4() {
        setsockopt(&socket.as_fd(), sockopt::Ipv4PacketInfo, &true)?;
    } else {
        setsockopt(&socket.as_fd(), sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    bind_to(&socket, address)?;
    UdpSocket::from_std(socket.into())
}

/// Binds an SCTP socket; a kernel without SCTP has no use for one.
pub(super) fn sctp(address: SocketAddr) -> io::Result<Option<OwnedFd>> {
    match open(address, SockType::Stream, Some(SockProtocol::Sctp)) {
        Err(Errno::EPROTONOSUPPORT | Errno::ESOCKTNOSUPPORT) => Ok(None),
        Err(error) => Err(error.into()),
        Ok(socket) => {
            bind_to(&socket, address)?;
            listen(&socket, Backlog::new(1)?)?;
            Ok(Some(socket))
        }
    }
}
