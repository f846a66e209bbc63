//! What the builders put over IP: UDP, VXLAN in it, TCP, and ICMP echo.

use zerocopy::IntoBytes;
use zerocopy::big_endian::U16;

use super::Packet;
use super::ip::{Either, Ip, Version};
use crate::addr::Vni;
use crate::header::{Header, IcmpHeader, TcpHeader, UdpHeader, VxlanHeader, protocol};

/// Gives an unfinished layer an empty payload, and with it what a finished packet has.
macro_rules! finishes {
    ($($name:ident),*) => { $(
        impl $name {
            /// Returns the packet with an empty payload.
            pub fn build(self) -> Packet {
                self.data(&[])
            }

            /// Returns the bytes of the packet with an empty payload.
            pub fn bytes(self) -> Vec<u8> {
                self.build().bytes()
            }
        }

        impl From<$name> for Packet {
            fn from(layer: $name) -> Packet {
                layer.build()
            }
        }
    )* };
}

finishes!(Udp, Tcp, Echo);

/// A UDP header.
#[derive(Clone, Debug)]
pub struct Udp {
    pub(super) ip: Ip<Either>,
    pub(super) header: UdpHeader,
    pub(super) has_checksum: bool,
}

impl Udp {
    /// Leaves the checksum out (0), as IPv4 and tunnels may.
    #[must_use]
    pub fn without_checksum(mut self) -> Self {
        self.has_checksum = false;
        self
    }

    /// Carries `data`.
    pub fn data(self, data: &[u8]) -> Packet {
        let len = u16::try_from(UdpHeader::LEN + data.len()).expect("a datagram is shorter than 64 KiB");
        let header = UdpHeader { len: U16::new(len), ..self.header };
        let packet = self.ip.raw(protocol::UDP, &[header.as_bytes(), data].concat());
        if self.has_checksum {
            return packet;
        }
        let mut bytes = packet.bytes();
        let at = bytes.len() - usize::from(len) + usize::from(UdpHeader::CHECKSUM_AT);
        bytes[at..at + 2].fill(0);
        Packet::new(bytes)
    }

    /// Carries a whole packet in VXLAN.
    pub fn vxlan(self, vni: Vni, inner: impl Into<Packet>) -> Packet {
        let inner = inner.into();
        self.data(&[VxlanHeader::make(vni).as_bytes(), inner.as_slice()].concat())
    }
}

/// A TCP header.
#[derive(Clone, Debug)]
pub struct Tcp {
    pub(super) ip: Ip<Either>,
    pub(super) header: TcpHeader,
    pub(super) options: Vec<u8>,
}

impl Tcp {
    /// Sets the flags, all of them: see [`tcp_flags`](crate::header::tcp_flags).
    #[must_use]
    pub fn flags(mut self, flags: u8) -> Self {
        self.header.flags = flags;
        self
    }

    /// Sets the sequence number.
    #[must_use]
    pub fn seq(mut self, seq: u32) -> Self {
        self.header.seq.set(seq);
        self
    }

    /// Sets the acknowledgment number.
    #[must_use]
    pub fn ack(mut self, ack: u32) -> Self {
        self.header.ack.set(ack);
        self
    }

    /// Sets the window.
    #[must_use]
    pub fn window(mut self, window: u16) -> Self {
        self.header.window.set(window);
        self
    }

    /// Adds options, padded with "end of options" to whole words.
    ///
    /// # Panics
    /// When they are longer than 40 bytes.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        assert!(options.len() <= 40, "at most 40 bytes of options");
        self.options = options.to_vec();
        self.options.resize(options.len().next_multiple_of(4), 0);
        self
    }

    /// Carries `data`.
    pub fn data(mut self, data: &[u8]) -> Packet {
        let words = u8::try_from(5 + self.options.len() / 4).expect("at most 15");
        self.header.offset_reserved = words << 4;
        self.ip.raw(protocol::TCP, &[self.header.as_bytes(), &self.options, data].concat())
    }
}

/// An ICMP echo request or reply.
#[derive(Clone, Debug)]
pub struct Echo {
    pub(super) ip: Ip<Either>,
    pub(super) header: IcmpHeader,
}

impl Echo {
    /// Carries `data`.
    pub fn data(self, data: &[u8]) -> Packet {
        let number = match self.ip.header {
            Version::V4(_) => protocol::ICMP,
            Version::V6(_) => protocol::ICMPV6,
        };
        self.ip.raw(number, &[self.header.as_bytes(), data].concat())
    }
}
