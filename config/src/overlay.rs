//! Networks that several hosts share: `[overlay]`, `[[peer]]` and `[[remote]]`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use packet::MacAddr;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::document::{Document, Network, Object, is_default};
use crate::services::L4Range;
use crate::values::{ValueError, one_or_list};

/// `[overlay]`: the tunnels between this host and others, VXLAN (RFC 7348).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overlay {
    /// Our own ends, at most one a family; none: the addresses that the host has towards its peers.
    #[serde(with = "one_or_list", skip_serializing_if = "Vec::is_empty")]
    pub local: Vec<IpAddr>,
    /// The other hosts, which take part in every network that has a `vni`.
    #[serde(with = "one_or_list", skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<IpAddr>,
    /// The UDP port that tunnels use, where a network has none of its own.
    pub port: u16,
    /// Endpoints that each network may learn from traffic, beside those that are given.
    pub learn: u16,
    /// Whether outer packets have a UDP checksum.
    pub checksum: OuterChecksum,
    /// The type of service of outer packets.
    pub dscp: OuterDscp,
    /// Time to live of outer packets; 1 to 255.
    pub ttl: u8,
    /// The UDP ports that outer packets come from; the inner flow chooses one.
    pub source_ports: L4Range,
}

impl Overlay {
    /// The UDP port of VXLAN (RFC 7348, 8).
    pub const PORT: u16 = 4789;

    /// Returns the UDP port that a network's tunnels use.
    pub fn port_of(&self, network: &Network) -> u16 {
        network.vxlan_port.unwrap_or(self.port)
    }

    /// Returns `peers` as they would stand in `[[peer]]`.
    pub fn listed(&self) -> impl Iterator<Item = OverlayPeer> + '_ {
        self.peers.iter().map(|address| OverlayPeer::new(*address))
    }
}

impl Default for Overlay {
    fn default() -> Self {
        Self {
            local: Vec::new(),
            peers: Vec::new(),
            port: Self::PORT,
            learn: 0,
            checksum: OuterChecksum::Auto,
            dscp: OuterDscp::Inherit,
            ttl: 64,
            source_ports: L4Range { first: 49152, last: 65535 },
        }
    }
}

/// Whether outer packets have a UDP checksum. What arrives is checked when it has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OuterChecksum {
    /// None over IPv4, where it may be left out (RFC 7348, 5); full over IPv6, where most receivers insist on it.
    #[default]
    Auto,
    /// Always.
    Full,
    /// Never; over IPv6 the peers have to be told (RFC 6935).
    None,
}

/// The type of service of outer packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OuterDscp {
    /// That of the inner packet.
    #[default]
    Inherit,
    /// Always this, 0 to 63.
    Fixed(u8),
}

impl OuterDscp {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str = "\"inherit\" or 0 to 63";
}

impl fmt::Display for OuterDscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OuterDscp::Inherit => f.write_str("inherit"),
            OuterDscp::Fixed(dscp) => dscp.fmt(f),
        }
    }
}

impl FromStr for OuterDscp {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match (text, text.parse()) {
            ("inherit", _) => Ok(OuterDscp::Inherit),
            (_, Ok(dscp @ 0..=63)) => Ok(OuterDscp::Fixed(dscp)),
            _ => Err(ValueError::new(text, "type of service", Self::ALLOWED)),
        }
    }
}

impl Serialize for OuterDscp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            OuterDscp::Inherit => serializer.serialize_str("inherit"),
            OuterDscp::Fixed(dscp) => serializer.serialize_u8(*dscp),
        }
    }
}

impl<'de> Deserialize<'de> for OuterDscp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fixed = |number| u8::try_from(number).ok().filter(|dscp| *dscp <= 63).map(OuterDscp::Fixed);
        crate::values::text_or_integer(deserializer, Self::ALLOWED, fixed)
    }
}

/// `[[peer]]`: another host, with more to say about it than `[overlay] peers` can.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverlayPeer {
    /// Its address in the underlay.
    pub address: IpAddr,
    /// The network that it takes part in; `None`: every network that has a `vni`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What is behind it and reached by routing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<IpNet>,
    /// The MAC that packets to `subnets` are sent to in the tunnel; `None`: made from its address, as vswitch does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// How it is reached.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: PeerMode,
}

impl OverlayPeer {
    /// Returns a peer that takes part in every network.
    pub const fn new(address: IpAddr) -> Self {
        Self { address, network: None, subnets: Vec::new(), mac: None, mode: PeerMode::Vxlan }
    }

    /// Returns the MAC that packets to its subnets are sent to.
    pub fn router_mac(&self) -> MacAddr {
        self.mac.unwrap_or_else(|| router_mac(self.address))
    }
}

impl Object for OverlayPeer {
    const SECTION: &'static str = "peer";

    /// `192.0.2.2`, or `front/192.0.2.2` when it takes part in one network only
    fn name(&self) -> String {
        match &self.network {
            Some(network) => format!("{network}/{}", self.address),
            None => self.address.to_string(),
        }
    }
}

/// Returns the MAC that the switch whose end of the tunnels is `address` has in them: 0a:76 and the address, of IPv6 a
/// hash of it. The first two bytes tell packets that a peer has routed.
pub fn router_mac(address: IpAddr) -> MacAddr {
    let tail = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, e, f, g, h] = packet::hash::fnv1a(v6.octets()).to_be_bytes();
            [a ^ e, b ^ f, c ^ g, d ^ h]
        }
    };
    MacAddr([0x0a, 0x76, tail[0], tail[1], tail[2], tail[3]])
}

/// How a peer is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerMode {
    /// By tunnel.
    #[default]
    Vxlan,
    /// As it is: a router on a segment of ours, to which packets for its `subnets` go with their own addresses.
    Routed,
}

impl fmt::Display for PeerMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PeerMode::Vxlan => "vxlan",
            PeerMode::Routed => "routed",
        })
    }
}

impl PeerMode {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str = "\"vxlan\", \"routed\"";
}

impl FromStr for PeerMode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "vxlan" => Ok(PeerMode::Vxlan),
            "routed" => Ok(PeerMode::Routed),
            _ => Err(ValueError::new(text, "way to a peer", Self::ALLOWED)),
        }
    }
}

/// `[[remote]]`: a station that is known to be behind a peer. Nobody has to be asked where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    /// The network that it is in.
    pub network: String,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC.
    pub mac: MacAddr,
    /// The address, in the underlay, of the host that it is behind.
    pub vtep: IpAddr,
}

impl Object for Remote {
    const SECTION: &'static str = "remote";

    /// `front/10.1.0.77`
    fn name(&self) -> String {
        format!("{}/{}", self.network, self.address)
    }
}

impl Document {
    /// Returns every peer: those of `[overlay]`, then `[[peer]]`.
    pub fn every_peer(&self) -> impl Iterator<Item = OverlayPeer> + '_ {
        self.overlay.listed().chain(self.peers.iter().cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_in_the_tunnels_follows_from_the_address() {
        let mac = |text: &str| router_mac(text.parse().expect("an address")).to_string();
        assert_eq!(mac("192.0.2.1"), "0a:76:c0:00:02:01");
        assert_ne!(mac("2001:db8::1"), mac("2001:db8::2"));
        assert_ne!(mac("2001:db8::1"), mac("2001:db8:0:1::"));
        assert!(mac("2001:db8::1").starts_with("0a:76:"));
    }

    #[test]
    fn the_type_of_service_is_a_word_or_a_number() {
        for (text, read) in [("inherit", Some(OuterDscp::Inherit)), ("46", Some(OuterDscp::Fixed(46)))] {
            assert_eq!(text.parse().ok(), read);
            assert_eq!(read.expect("good").to_string(), text);
        }
        for bad in ["64", "-1", "", "ef"] {
            assert!(bad.parse::<OuterDscp>().is_err(), "{bad}");
        }
    }
}
