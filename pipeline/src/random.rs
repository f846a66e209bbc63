//! Random packets for the tests of what reads and rewrites them.

use packet::build::eth;
use packet::header::{Layout, protocol};
use packet::{Area, Checksum, Frame, FramePool, MacAddr, VlanId, checksum};
use proptest::prelude::*;

/// The station that random packets come from.
pub(crate) const STATION: MacAddr = MacAddr::local(1);
/// The gateway that they go to.
pub(crate) const GATEWAY: MacAddr = MacAddr::local(2);

/// What a random packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Udp,
    /// UDP over IPv4 without a checksum.
    Bare,
    Echo,
    Sctp,
    UdpLite,
}

/// A whole random packet; `bytes` makes it.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    pub(crate) v6: bool,
    pub(crate) kind: Kind,
    pub(crate) source: [u8; 16],
    pub(crate) destination: [u8; 16],
    pub(crate) ports: (u16, u16),
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) options: bool,
    pub(crate) tagged: bool,
    pub(crate) data: Vec<u8>,
}

/// An address of 16 random bytes; of IPv4 they are the first four.
pub(crate) fn address(v6: bool, bytes: [u8; 16]) -> packet::Address {
    if v6 {
        let mut bytes = bytes;
        bytes[0] = 0xfd;
        packet::Address::v6(bytes)
    } else {
        packet::Address::v4([bytes[0] % 100 + 1, bytes[1], bytes[2], bytes[3]])
    }
}

pub(crate) fn random() -> impl Strategy<Value = Random> {
    const KINDS: [Kind; 6] = [Kind::Tcp, Kind::Udp, Kind::Bare, Kind::Echo, Kind::Sctp, Kind::UdpLite];
    let l3 = (any::<bool>(), any::<[u8; 16]>(), any::<[u8; 16]>(), 2u8.., any::<u8>(), any::<bool>());
    let l4 = (prop::sample::select(&KINDS), any::<(u16, u16)>(), prop::collection::vec(any::<u8>(), 0..200));
    (l3, l4, any::<bool>()).prop_map(|(l3, (kind, ports, data), tagged)| {
        let (v6, source, destination, ttl, tos, options) = l3;
        let ports = if kind == Kind::Echo { (ports.0, ports.0) } else { ports };
        let kind = if v6 && kind == Kind::Bare { Kind::Udp } else { kind };
        Random { v6, kind, source, destination, ports, ttl, tos, options, tagged, data }
    })
}

impl Random {
    pub(crate) fn tuple(&self) -> packet::Tuple {
        let protocol = match self.kind {
            Kind::Tcp => protocol::TCP,
            Kind::Udp | Kind::Bare => protocol::UDP,
            Kind::Echo if self.v6 => protocol::ICMPV6,
            Kind::Echo => protocol::ICMP,
            Kind::Sctp => protocol::SCTP,
            Kind::UdpLite => protocol::UDP_LITE,
        };
        packet::Tuple {
            source: address(self.v6, self.source),
            destination: address(self.v6, self.destination),
            source_port: self.ports.0,
            destination_port: self.ports.1,
            protocol,
        }
    }

    /// Returns the packet, its checksum complete.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        use std::net::IpAddr;
        let tuple = self.tuple();
        let start = eth(STATION, GATEWAY);
        let start = if self.tagged { start.vlan(VlanId(7)) } else { start };
        let bytes = match (tuple.source.ip(), tuple.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let ip = start.ipv4(source, destination).ttl(self.ttl).tos(self.tos);
                // Record route, and no operation: neither is copied into fragments; then stream identifier, which is.
                let ip = if self.options { ip.options(&[7, 7, 4, 0, 0, 0, 0, 1, 0x88, 4, 1, 2]) } else { ip };
                self.transport(ip)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ip = start.ipv6(source, destination).ttl(self.ttl).tos(self.tos);
                self.transport(if self.options { ip.options(&[1, 4, 0, 0, 0, 0]) } else { ip })
            }
            _ => unreachable!("one family"),
        };
        self.finished(bytes)
    }

    fn transport<V>(&self, ip: packet::build::Ip<V>) -> Vec<u8> {
        let (source, destination) = self.ports;
        let [a, b] = source.to_be_bytes();
        let [c, d] = destination.to_be_bytes();
        match self.kind {
            Kind::Tcp => ip.tcp(source, destination).seq(7).ack(9).data(&self.data),
            Kind::Udp => ip.udp(source, destination).data(&self.data),
            Kind::Bare => ip.udp(source, destination).without_checksum().data(&self.data),
            Kind::Echo => ip.icmp_echo(source, 3).data(&self.data),
            Kind::Sctp => {
                ip.raw(protocol::SCTP, &[&[a, b, c, d, 1, 2, 3, 4, 0, 0, 0, 0], &self.data[..]].concat())
            }
            Kind::UdpLite => {
                ip.raw(protocol::UDP_LITE, &[&[a, b, c, d, 0, 0, 0, 0], &self.data[..]].concat())
            }
        }
        .bytes()
    }

    /// Fills in the checksums that the builders do not know.
    fn finished(&self, bytes: Vec<u8>) -> Vec<u8> {
        let layout = Layout::of(&bytes).expect("well-formed");
        let offset = match self.kind {
            Kind::Sctp => checksum::SCTP_CHECKSUM_AT,
            Kind::UdpLite => 6,
            _ => return bytes,
        };
        let mut pool = pool();
        let mut frame = pool.alloc_from(&bytes).expect("a chunk");
        if self.kind == Kind::UdpLite {
            leave_partial(&mut frame, &layout, offset);
        }
        frame.set_checksum(Checksum::Partial { start: layout.l4, offset });
        checksum::complete(&mut frame).expect("inside");
        let bytes = frame.bytes().to_vec();
        pool.free(frame);
        bytes
    }
}

/// Writes the pseudo-header sum into the checksum field, as a sender with a clever device does.
pub(crate) fn leave_partial(frame: &mut Frame, layout: &Layout, offset: u16) {
    let sum = checksum::pseudo(frame.bytes(), layout).expect("IP").fold();
    let at = usize::from(layout.l4 + offset);
    frame.bytes_mut()[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    frame.set_checksum(Checksum::Partial { start: layout.l4, offset });
}

/// Says whether the IP header's and the transport checksum are right, also of what [`checksum::is_valid`] does not
/// know.
pub(crate) fn is_right(bytes: &[u8]) -> bool {
    let layout = Layout::of(bytes).expect("well-formed");
    let l3 = usize::from(layout.l3);
    let v4 = packet::header::Ipv4::new(&bytes[l3..]);
    let lite = || {
        let l4 = &bytes[usize::from(layout.l4)..layout.end as usize];
        let sum = checksum::pseudo(bytes, &layout).expect("IP").bytes(l4);
        layout.protocol != protocol::UDP_LITE || sum.fold() == 0xffff
    };
    v4.is_none_or(|ip| ip.checksum_is_valid()) && checksum::is_valid(bytes).unwrap_or_else(lite)
}

/// Returns a pool with an area of its own.
pub(crate) fn pool() -> FramePool {
    FramePool::new(Area::new(64, 4).expect("a small area"))
}
