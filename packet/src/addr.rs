//! Addresses and identifiers that every crate shares.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A 48-bit Ethernet address, in the order it has on the wire.
#[derive(
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(transparent)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);
    /// `00:00:00:00:00:00`: never a station.
    pub const ZERO: MacAddr = MacAddr([0; 6]);

    /// Says whether the group bit is set: broadcast or multicast (IEEE 802-2014, 8.2.2).
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Says whether this may be a station's address: neither a group nor all zero.
    pub fn is_station(self) -> bool {
        !self.is_multicast() && self != Self::ZERO
    }

    /// Returns the locally administered address that is made from the low 40 bits of `value`:
    /// `02:` and five octets.
    pub const fn local(value: u64) -> Self {
        let b = value.to_be_bytes();
        Self([0x02, b[3], b[4], b[5], b[6], b[7]])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no MAC address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no MAC address; allowed: six octets in hex, as in 02:00:0a:01:00:0a")]
pub struct MacParseError(String);

impl FromStr for MacAddr {
    type Err = MacParseError;

    fn from_str(text: &str) -> Result<Self, MacParseError> {
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            *octet = parts
                .next()
                .filter(|part| part.len() == 2)
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| MacParseError(text.to_owned()))?;
        }
        if parts.next().is_some() {
            return Err(MacParseError(text.to_owned()));
        }
        Ok(Self(octets))
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The index of a port in the switch, stable while the port lives and used again after it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PortId(pub u16);

impl PortId {
    /// Returns the identifier as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The index of a network in the switch, stable while the network lives and used again after it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetworkId(pub u16);

impl NetworkId {
    /// Returns the identifier as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// An IEEE 802.1Q VLAN identifier, 0 to 4094; 0 stands for "untagged".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VlanId(pub u16);

impl VlanId {
    /// Frames without a tag.
    pub const UNTAGGED: VlanId = VlanId(0);
    /// The largest identifier a frame may carry; 4095 is reserved (IEEE 802.1Q-2022, 9.6).
    pub const MAX: VlanId = VlanId(4094);
}

/// A VXLAN network identifier, 24 bits (RFC 7348).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Vni(pub u32);

impl Vni {
    /// The largest identifier.
    pub const MAX: Vni = Vni((1 << 24) - 1);
}

/// The number of a tunnel endpoint of another host, 1 to 32767: as good as its address, and short enough for a frame and a
/// flow's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VtepId(NonZeroU16);

impl VtepId {
    /// The largest number.
    pub const MAX: u16 = (1 << 15) - 1;

    /// Returns the endpoint of that number; `None` for 0, and beyond [`VtepId::MAX`].
    #[inline]
    pub const fn new(number: u16) -> Option<Self> {
        match NonZeroU16::new(number) {
            Some(number) if number.get() <= Self::MAX => Some(Self(number)),
            _ => None,
        }
    }

    /// Returns the number.
    #[inline]
    pub const fn get(self) -> u16 {
        self.0.get()
    }

    /// Returns the number, 0 for none.
    #[inline]
    pub const fn raw(vtep: Option<Self>) -> u16 {
        match vtep {
            Some(vtep) => vtep.get(),
            None => 0,
        }
    }

    /// Returns the number as an index; 0 is nobody's.
    #[inline]
    pub const fn index(self) -> usize {
        self.0.get() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_text_round_trips() {
        let mac: MacAddr = "02:00:0a:01:00:ff".parse().expect("a good address");
        assert_eq!(mac, MacAddr([2, 0, 10, 1, 0, 255]));
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }

    #[test]
    fn bad_mac_text_is_refused() {
        for text in ["", "02:00:0a:01:00", "02:00:0a:01:00:ff:00", "2:0:a:1:0:f", "02:00:0a:01:00:gg"] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }
}
