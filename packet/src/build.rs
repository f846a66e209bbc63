//! Packets in one line: `eth(A, B).ipv4(A_IP, B_IP).udp(1, 2).data(b"hello").bytes()`.
//!
//! Each layer is a type whose methods are the layers that may follow, so what cannot be on a wire does not
//! compile; lengths and checksums are filled in. For tests, traffic generators, and the manager: everything
//! here allocates. The packet path writes its answers over the question instead.

mod ip;
mod transport;

use std::net::{Ipv4Addr, Ipv6Addr};

use zerocopy::IntoBytes;
use zerocopy::big_endian::U16;

use crate::addr::{MacAddr, VlanId};
use crate::frame::Frame;
use crate::header::{Arp, ArpOperation, EthernetHeader, VlanTag, ethertype};
use crate::pool::FramePool;

pub use ip::{Ip, V4, V6};
pub use transport::{Echo, Tcp, Udp};

/// Starts a packet from station `src` to station `dst`.
pub fn eth(src: MacAddr, dst: MacAddr) -> Eth {
    Eth { bytes: EthernetHeader { dst, src, ethertype: U16::ZERO }.as_bytes().to_vec(), src, dst }
}

/// Returns the broadcast with which the station `mac` at `ip` asks for `target`.
pub fn arp_request(mac: MacAddr, ip: impl Into<Ipv4Addr>, target: impl Into<Ipv4Addr>) -> Packet {
    eth(mac, MacAddr::BROADCAST).arp_request(ip, target)
}

/// Returns the answer of the station `mac` at `ip` to the station `to_mac` at `to_ip`.
pub fn arp_reply(
    mac: MacAddr,
    ip: impl Into<Ipv4Addr>,
    to_mac: MacAddr,
    to_ip: impl Into<Ipv4Addr>,
) -> Packet {
    eth(mac, to_mac).arp_reply(ip, to_ip)
}

/// Returns the multicast with which the station `mac` at `ip` asks for `target`.
pub fn neighbor_solicit(mac: MacAddr, ip: impl Into<Ipv6Addr>, target: impl Into<Ipv6Addr>) -> Packet {
    let target = target.into();
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    eth(mac, MacAddr([0x33, 0x33, 0xff, a, b, c])).ipv6(ip, group).neighbor_solicit(target, Some(mac))
}

/// A finished packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    bytes: Vec<u8>,
}

impl Packet {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Returns the bytes.
    pub fn bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Returns the bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Pads with zeros to the 60 bytes that Ethernet wants at least (without check sequence).
    #[must_use]
    pub fn padded(mut self) -> Self {
        let len = self.bytes.len().max(60);
        self.bytes.resize(len, 0);
        self
    }

    /// Returns the packet in a frame of `pool`, or `None` when there is no chunk for it.
    pub fn frame(&self, pool: &mut FramePool) -> Option<Frame> {
        pool.alloc_from(&self.bytes)
    }
}

impl AsRef<[u8]> for Packet {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// An Ethernet header, with or without VLAN tags.
#[derive(Clone, Debug)]
pub struct Eth {
    bytes: Vec<u8>,
    src: MacAddr,
    dst: MacAddr,
}

impl Eth {
    /// Adds an 802.1Q tag, inside those that are there.
    #[must_use]
    pub fn vlan(self, vlan: VlanId) -> Self {
        self.tag(ethertype::VLAN, vlan.0)
    }

    /// Adds an 802.1ad service tag, inside those that are there.
    #[must_use]
    pub fn service_vlan(self, vlan: VlanId) -> Self {
        self.tag(ethertype::SERVICE_VLAN, vlan.0)
    }

    /// Adds a tag with the given EtherType and control information (priority, drop eligibility, identifier).
    #[must_use]
    pub fn tag(mut self, ethertype: u16, tci: u16) -> Self {
        self.follow(ethertype);
        self.bytes.extend(VlanTag { tci: U16::new(tci), ethertype: U16::ZERO }.as_bytes());
        self
    }

    /// Writes what follows into the last two bytes: those of the header, or of the last tag.
    fn follow(&mut self, ethertype: u16) {
        let at = self.bytes.len() - 2;
        self.bytes[at..].copy_from_slice(&ethertype.to_be_bytes());
    }

    /// Asks for `target` as the station that sends the packet, at address `ip`.
    pub fn arp_request(self, ip: impl Into<Ipv4Addr>, target: impl Into<Ipv4Addr>) -> Packet {
        let sender = (self.src, ip.into());
        self.arp(Arp::make(ArpOperation::Request, sender, (MacAddr::ZERO, target.into())))
    }

    /// Says that `ip` is at the station that sends the packet, to the station it goes to, at `to_ip`.
    pub fn arp_reply(self, ip: impl Into<Ipv4Addr>, to_ip: impl Into<Ipv4Addr>) -> Packet {
        let (sender, target) = ((self.src, ip.into()), (self.dst, to_ip.into()));
        self.arp(Arp::make(ArpOperation::Reply, sender, target))
    }

    /// Carries an ARP message, whatever it says.
    pub fn arp(self, arp: Arp) -> Packet {
        self.raw(ethertype::ARP, arp.as_bytes())
    }

    /// Carries `payload` as EtherType `ethertype` (or, below 0x600, as an 802.3 length).
    pub fn raw(mut self, ethertype: u16, payload: &[u8]) -> Packet {
        self.follow(ethertype);
        self.bytes.extend(payload);
        Packet { bytes: self.bytes }
    }

    /// Adds an IPv4 header; TTL 64, identification 0, don't fragment.
    pub fn ipv4(mut self, src: impl Into<Ipv4Addr>, dst: impl Into<Ipv4Addr>) -> Ip<V4> {
        self.follow(ethertype::IPV4);
        Ip::v4(self.bytes, src.into(), dst.into())
    }

    /// Adds an IPv6 header; hop limit 64.
    pub fn ipv6(mut self, src: impl Into<Ipv6Addr>, dst: impl Into<Ipv6Addr>) -> Ip<V6> {
        self.follow(ethertype::IPV6);
        Ip::v6(self.bytes, src.into(), dst.into())
    }
}

#[cfg(test)]
mod tests;
