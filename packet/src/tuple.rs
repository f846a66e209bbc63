//! What identifies a flow at layers 3 and 4: addresses, prefixes, and the 5-tuple.
//!
//! IPv4 and IPv6 are one type here, so that tables and stages are written once. An IPv4 address is kept as
//! the IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2); a packet that carries such an address in an IPv6 header is
//! malformed (RFC 4942, 2.2) and never gets this far.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An IPv4 or IPv6 address in 16 bytes. Orders as a number, IPv4 within `::ffff:0:0/96`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(u128);

impl Address {
    const MAPPED: u128 = 0xffff_0000_0000;

    /// `::`, which stands for "no address".
    pub const UNSPECIFIED: Address = Address(0);

    /// Makes an IPv4 address of its four octets.
    #[inline]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self(Self::MAPPED | u32::from_be_bytes(octets) as u128)
    }

    /// Makes an IPv6 address of its sixteen octets.
    #[inline]
    pub const fn v6(octets: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(octets))
    }

    /// Says whether it is an IPv4 address.
    #[inline]
    pub const fn is_v4(self) -> bool {
        self.0 >> 32 == Self::MAPPED >> 32
    }

    /// Returns the octets of an IPv4 address; of an IPv6 address, the last four.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the last four octets are asked for")]
    pub const fn octets_v4(self) -> [u8; 4] {
        (self.0 as u32).to_be_bytes()
    }

    /// Returns the sixteen octets.
    #[inline]
    pub const fn octets(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// Returns the address as a number, most significant octet first.
    #[inline]
    pub const fn to_bits(self) -> u128 {
        self.0
    }

    /// Returns the address that [`Address::to_bits`] gave.
    #[inline]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// Returns the address as the standard library has it.
    pub const fn ip(self) -> IpAddr {
        if self.is_v4() {
            let [a, b, c, d] = self.octets_v4();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(self.0))
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Self::v4(address.octets())
    }
}

impl From<Ipv6Addr> for Address {
    fn from(address: Ipv6Addr) -> Self {
        Self::v6(address.octets())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.ip(), f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A range of addresses that share their first bits.
///
/// INVARIANT: the bits behind the prefix are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: Address,
    /// Of the 128 bits; an IPv4 prefix is 96 longer here.
    len: u8,
}

impl Prefix {
    /// All IPv4 addresses.
    pub const ALL_V4: Prefix = Prefix { address: Address(Address::MAPPED), len: 96 };
    /// All IPv6 addresses.
    pub const ALL_V6: Prefix = Prefix { address: Address(0), len: 0 };

    /// Makes the prefix of `len` bits (of 32 for IPv4, of 128 for IPv6) that `address` is in; `None` when it is
    /// longer than the address.
    pub fn new(address: Address, len: u8) -> Option<Self> {
        let len = if address.is_v4() { (len <= 32).then_some(len + 96)? } else { len };
        let bits = match len {
            0 => 0,
            1..=128 => address.0 & (u128::MAX << (128 - len)),
            _ => return None,
        };
        Some(Self { address: Address(bits), len })
    }

    /// Makes the prefix that holds one address.
    pub const fn host(address: Address) -> Self {
        Self { address, len: 128 }
    }

    /// Returns the first address.
    pub const fn address(self) -> Address {
        self.address
    }

    /// Returns the length as it is written: of 32 bits for IPv4, of 128 for IPv6.
    #[expect(clippy::len_without_is_empty, reason = "a length in bits; no prefix is empty")]
    pub const fn len(self) -> u8 {
        if self.is_v4() { self.len - 96 } else { self.len }
    }

    /// Says whether it is of IPv4 addresses. `::/0` is of IPv6 and holds no IPv4 address.
    pub const fn is_v4(self) -> bool {
        self.len >= 96 && self.address.is_v4()
    }

    /// Says whether `address` is in it.
    #[inline]
    pub const fn contains(self, address: Address) -> bool {
        let shift = 128 - self.len as u32;
        let same = shift == 128 || (self.address.0 ^ address.0) >> shift == 0;
        same && self.is_v4() == address.is_v4()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The 5-tuple of a packet. Ports are host integers.
///
/// ICMP echo and other queries have their identifier as both ports (RFC 5508, 3.1); other protocols have 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Where it comes from.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// The L4 port it comes from.
    pub source_port: u16,
    /// The L4 port it goes to.
    pub destination_port: u16,
    /// The protocol number of IPv4 or the last next header of IPv6.
    pub protocol: u8,
}

impl Tuple {
    /// Returns the tuple of an answer.
    #[inline]
    #[must_use]
    pub const fn inverted(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |address: Address, port| SocketAddr::new(address.ip(), port);
        let (source, destination) =
            (end(self.source, self.source_port), end(self.destination, self.destination_port));
        write!(f, "{source} -> {destination} protocol {}", self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().expect("an address").into()
    }

    fn prefix(text: &str, len: u8) -> Prefix {
        Prefix::new(address(text), len).expect("a prefix")
    }

    #[test]
    fn addresses_of_both_families_round_trip() {
        for text in ["0.0.0.0", "10.1.0.9", "255.255.255.255", "::", "fd00:1::9", "ffff::"] {
            let address = address(text);
            assert_eq!(address.to_string(), text);
            assert_eq!(address.is_v4(), text.contains('.'), "{text}");
        }
    }

    #[test]
    fn a_prefix_holds_its_own_family_only() {
        assert!(prefix("10.1.0.0", 16).contains(address("10.1.255.9")));
        assert!(!prefix("10.1.0.0", 16).contains(address("10.2.0.9")));
        assert!(Prefix::ALL_V4.contains(address("1.2.3.4")) && !Prefix::ALL_V4.contains(address("::1")));
        assert!(Prefix::ALL_V6.contains(address("fd00::1")) && !Prefix::ALL_V6.contains(address("1.2.3.4")));
        assert!(Prefix::host(address("fd00::1")).contains(address("fd00::1")));
        assert_eq!(prefix("10.1.2.3", 24).to_string(), "10.1.2.0/24");
        assert_eq!(Prefix::new(address("10.0.0.0"), 33), None);
        assert_eq!(Prefix::new(address("::"), 129), None);
    }

    #[test]
    fn inverting_twice_is_the_identity() {
        let tuple = Tuple {
            source: address("10.0.0.1"),
            destination: address("10.0.0.2"),
            source_port: 1,
            destination_port: 2,
            protocol: 6,
        };
        assert_eq!(tuple.inverted().source_port, 2);
        assert_eq!(tuple.inverted().inverted(), tuple);
    }
}
