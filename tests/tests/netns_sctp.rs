//! A published SCTP port on the real kernel. This kernel may have no SCTP: both ends are raw sockets, which see the
//! packets whole but for the IP header, and check RFC 9260's CRC32c by arithmetic of their own.
//!
//! Needs root.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use tests::net::outside::{HOST, ROUTER};
use tests::net::{PATIENCE, Space};
use tests::{Net, SctpPacket};

const SITE: &str = r#"
    [[network]]
    name = "front"
    subnets = ["10.1.0.0/24", "fd00:1::/64"]
    [[port]]
    name = "web"
    network = "front"
    netns = "@web"
    addresses = ["10.1.0.10", "fd00:1::10"]
    [[publish]]
    listen = "5000-5010/sctp"
    to = "web:6000-6010"
"#;

/// RFC 9260, 3.3.2 and 3.3.3: the chunk types that begin an association.
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// An end that sends and receives SCTP packets.
struct Raw {
    socket: OwnedFd,
    v6: bool,
}

impl Raw {
    fn new(space: &Space, v6: bool) -> Self {
        let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let socket = space.inside(|| {
            socket::socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Sctp).expect("root may")
        });
        socket::setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(200)).expect("settable");
        Self { socket, v6 }
    }

    fn send(&self, to: IpAddr, packet: &[u8]) {
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        let sent = socket::sendto(self.socket.as_raw_fd(), packet, &to, MsgFlags::empty());
        assert_eq!(sent, Ok(packet.len()));
    }

    /// Receives one packet, if there is one soon: where it came from, and its bytes without the IP header.
    fn receive(&self) -> Option<(IpAddr, Vec<u8>)> {
        let mut bytes = [0; 2048];
        let (len, from) = socket::recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut bytes).ok()?;
        let from = from?;
        // RFC 3542, 3: an IPv6 raw socket gives no header; an IPv4 one does.
        let header = if self.v6 { 0 } else { usize::from(bytes[0] & 15) * 4 };
        let address = match (from.as_sockaddr_in(), from.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, v6) => IpAddr::V6(v6?.ip()),
        };
        Some((address, bytes[header..len].to_vec()))
    }
}

#[test]
fn a_published_sctp_port_is_reached_and_its_crc_stays_right() {
    let net = Net::with_outside(SITE);
    for family in [0, 1] {
        let host: IpAddr = HOST[family].parse().expect("an address");
        let router: IpAddr = ROUTER[family].parse().expect("an address");
        let client = Raw::new(&net.space("x"), family == 1);
        let server = Raw::new(&net.space("web"), family == 1);
        for port in [5000, 5003, 5010] {
            let init = SctpPacket {
                ports: [40_000, port],
                tag: 0,
                chunk: INIT,
                value: b"an association of which".to_vec(),
            };
            let until = Instant::now() + PATIENCE;
            let (from, bytes) = loop {
                client.send(host, &init.bytes());
                if let Some(seen) = server.receive() {
                    break seen;
                }
                assert!(Instant::now() < until, "no INIT to {host}:{port}\n{}", net.circumstances());
            };
            let seen = SctpPacket::parse(&bytes).expect("a right CRC inside");
            assert_eq!(from, router, "the source is kept");
            assert_eq!(seen, SctpPacket { ports: [40_000, port + 1000], ..init.clone() });

            let ack =
                SctpPacket { ports: [port + 1000, 40_000], tag: 7, chunk: INIT_ACK, value: vec![9; 33] };
            server.send(from, &ack.bytes());
            let until = Instant::now() + PATIENCE;
            let (from, bytes) = loop {
                if let Some(seen) = client.receive() {
                    break seen;
                }
                assert!(Instant::now() < until, "no INIT ACK from {host}:{port}\n{}", net.circumstances());
            };
            let seen = SctpPacket::parse(&bytes).expect("a right CRC outside");
            assert_eq!(from, host);
            assert_eq!(seen, SctpPacket { ports: [port, 40_000], ..ack });
            while server.receive().is_some() {}
        }
        // What is not published stays with the host, whose stack has no SCTP or nobody on the port.
        client.send(host, &SctpPacket { ports: [40_000, 5011], tag: 0, chunk: INIT, value: vec![] }.bytes());
        assert_eq!(server.receive(), None);
    }
    net.balance();
}
