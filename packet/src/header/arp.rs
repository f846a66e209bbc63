//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use zerocopy::big_endian::U16;

use super::{Header, ethertype, header};
use crate::addr::MacAddr;

header! {
    /// An ARP message; other hardware or protocol types are not parsed.
    pub struct Arp {
        /// 1: Ethernet.
        pub hardware_type: U16,
        /// 0x0800: IPv4.
        pub protocol_type: U16,
        /// 6.
        pub hardware_len: u8,
        /// 4.
        pub protocol_len: u8,
        /// See [`ArpOperation`].
        pub operation: U16,
        /// The sender's station.
        pub sender_mac: MacAddr,
        /// The sender's address; 0.0.0.0 in a probe (RFC 5227).
        pub sender_ip: [u8; 4],
        /// The target's station; zero in a request.
        pub target_mac: MacAddr,
        /// The address that is asked for.
        pub target_ip: [u8; 4],
    }
}

/// What an ARP message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpOperation {
    /// Who has the target address?
    Request,
    /// The sender has the sender address.
    Reply,
}

impl Arp {
    /// Returns the message at the front of `bytes` (what follows the Ethernet header); `None` when it is
    /// short, no request or reply, or not for IPv4 over Ethernet.
    #[inline]
    pub fn new(bytes: &[u8]) -> Option<&Self> {
        let (arp, _) = Self::split(bytes)?;
        let known = arp.hardware_type.get() == 1
            && arp.protocol_type.get() == ethertype::IPV4
            && arp.hardware_len == 6
            && arp.protocol_len == 4
            && matches!(arp.operation.get(), 1 | 2);
        known.then_some(arp)
    }

    /// Makes a message.
    pub fn make(operation: ArpOperation, sender: (MacAddr, Ipv4Addr), target: (MacAddr, Ipv4Addr)) -> Self {
        Self {
            hardware_type: U16::new(1),
            protocol_type: U16::new(ethertype::IPV4),
            hardware_len: 6,
            protocol_len: 4,
            operation: U16::new(if operation == ArpOperation::Request { 1 } else { 2 }),
            sender_mac: sender.0,
            sender_ip: sender.1.octets(),
            target_mac: target.0,
            target_ip: target.1.octets(),
        }
    }

    /// Returns what the message does.
    #[inline]
    pub fn operation(&self) -> ArpOperation {
        if self.operation.get() == 1 { ArpOperation::Request } else { ArpOperation::Reply }
    }

    /// Returns the sender's address.
    #[inline]
    pub fn sender_ip(&self) -> Ipv4Addr {
        self.sender_ip.into()
    }

    /// Returns the address that is asked for.
    #[inline]
    pub fn target_ip(&self) -> Ipv4Addr {
        self.target_ip.into()
    }
}
