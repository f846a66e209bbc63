//! Whose packets get other addresses: `[[floating_ip]]`, `[[publish]]`, `[[egress]]`.
//!
//! Each may name a port that does not exist yet: it is pending then, and holds when the port comes.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::document::{Object, Port};
use crate::services::{L4Protocol, L4Range};
use crate::validate::is_name;
use crate::values::{ValueError, as_text, one_or_list};

/// `[[floating_ip]]`: an outside address that is a port's, both ways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FloatingIp {
    /// The outside address.
    pub address: IpAddr,
    /// The port it leads to.
    pub port: String,
    /// Which of the port's addresses it stands for; `None`: the first of its family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<IpAddr>,
}

impl FloatingIp {
    /// Returns the address of `port` that it stands for.
    pub fn inside(&self, port: &Port) -> Option<IpAddr> {
        inside(port, self.to, self.address.is_ipv4())
    }
}

impl Object for FloatingIp {
    const SECTION: &'static str = "floating_ip";

    /// `203.0.113.10`
    fn name(&self) -> String {
        self.address.to_string()
    }
}

/// Returns `wanted` if the port has it, and without a wish its first address of the family.
fn inside(port: &Port, wanted: Option<IpAddr>, v4: bool) -> Option<IpAddr> {
    port.addresses.iter().copied().find(|address| match wanted {
        Some(wanted) => *address == wanted,
        None => address.is_ipv4() == v4,
    })
}

/// `[[publish]]`: L4 ports of the host or of a floating IP that lead to a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Unique name; `None` stands for `listen`, or for `to` when the L4 port is chosen by chance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it is reached.
    pub listen: Listen,
    /// Where it leads.
    pub to: Target,
    /// Who may reach it; none: as `[daemon] publish_allow_from` says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_from: Vec<IpNet>,
}

impl Publish {
    /// Returns the address of `port` that it leads to for packets of one family.
    pub fn inside(&self, port: &Port, v4: bool) -> Option<IpAddr> {
        inside(port, self.to.address, v4).filter(|address| address.is_ipv4() == v4)
    }

    /// Returns who may reach it, `daemon` being `[daemon] publish_allow_from`; empty: everybody.
    pub fn admitted<'p>(&'p self, daemon: &'p [IpNet]) -> &'p [IpNet] {
        if self.allow_from.is_empty() { daemon } else { &self.allow_from }
    }
}

impl Object for Publish {
    const SECTION: &'static str = "publish";

    /// `203.0.113.2:8080-8090/tcp`, or `web:80/tcp` when the L4 port is chosen by chance
    fn name(&self) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None if self.listen.is_random() => format!("{}/{}", self.to, self.listen.protocol),
            None => self.listen.to_string(),
        }
    }
}

/// Where a published port is reached: `8080/tcp`, `203.0.113.2:8080-8090/udp`, `[fd00::1]:0/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listen {
    /// An address of the host or a floating IP, `0.0.0.0` or `::` for all of the host's in that family; `None`: all
    /// of the host's.
    pub address: Option<IpAddr>,
    /// The L4 ports; 0: one that is free.
    pub ports: L4Range,
    /// The protocol.
    pub protocol: L4Protocol,
}

impl Listen {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str = "[ADDRESS:]PORT[-PORT][/tcp|udp|sctp], as in \"8080/tcp\", \"203.0.113.2:8080-8090/tcp\", \
                                       \"[fd00::1]:53/udp\"; port 0 is one that is free";

    /// Says whether the L4 port is chosen by chance.
    pub const fn is_random(self) -> bool {
        self.ports.first == 0
    }

    /// Says whether packets to `address`, one of the host's or a floating IP, are meant.
    pub fn covers(self, address: IpAddr) -> bool {
        match self.address {
            None => true,
            Some(own) if own.is_unspecified() => own.is_ipv4() == address.is_ipv4(),
            Some(own) => own == address,
        }
    }

    /// Says whether one packet could be for both.
    pub fn overlaps(self, other: Self) -> bool {
        let addresses = match (self.address, other.address) {
            (None, _) | (_, None) => true,
            (Some(a), Some(b)) => self.covers(b) || other.covers(a),
        };
        let random = self.is_random() || other.is_random();
        addresses && !random && self.protocol == other.protocol && self.ports.overlaps(other.ports)
    }
}

/// Spells an address as it stands before a colon.
pub(crate) fn bracketed(address: IpAddr) -> String {
    if address.is_ipv6() { format!("[{address}]") } else { address.to_string() }
}

/// Splits `ADDRESS:REST`, with brackets around an IPv6 address.
fn with_address(text: &str) -> Option<(IpAddr, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once("]:")?;
        return address.parse().ok().filter(IpAddr::is_ipv6).map(|address| (address, rest));
    }
    let (address, rest) = text.split_once(':')?;
    address.parse().ok().filter(IpAddr::is_ipv4).map(|address| (address, rest))
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, "{}:", bracketed(address))?;
        }
        write!(f, "{}/{}", self.ports, self.protocol)
    }
}

impl FromStr for Listen {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError::new(text, "place to listen", Self::ALLOWED);
        let (place, protocol) = match text.rsplit_once('/') {
            Some((place, protocol)) => (place, protocol.parse().map_err(|_| bad())?),
            None => (text, L4Protocol::Tcp),
        };
        let (address, ports) = match place.contains(':') {
            true => with_address(place).map(|(address, ports)| (Some(address), ports)).ok_or_else(bad)?,
            false => (None, place),
        };
        let ports: L4Range = ports.parse().map_err(|_| bad())?;
        if ports.first == 0 && ports.last != 0 {
            return Err(bad());
        }
        Ok(Self { address, ports, protocol })
    }
}

/// Where a published port leads: `web:80`, `web@10.1.0.10:80-90`, `web@[fd00::10]:80`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The port.
    pub port: String,
    /// Which of its addresses; `None`: the first of the family.
    pub address: Option<IpAddr>,
    /// The L4 ports there, as many as are listened on.
    pub ports: L4Range,
}

impl Target {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str =
        "NAME[@ADDRESS]:PORT[-PORT], as in \"web:80-90\", \"web@10.1.0.10:80\", \"web@[fd00::10]:80\"";
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.port)?;
        if let Some(address) = self.address {
            write!(f, "@{}", bracketed(address))?;
        }
        write!(f, ":{}", self.ports)
    }
}

impl FromStr for Target {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError::new(text, "place inside", Self::ALLOWED);
        let (port, address, ports) = match text.split_once('@') {
            Some((port, place)) => {
                let (address, ports) = with_address(place).ok_or_else(bad)?;
                (port, Some(address), ports)
            }
            None => {
                let (port, ports) = text.split_once(':').ok_or_else(bad)?;
                (port, None, ports)
            }
        };
        let ports: L4Range = ports.parse().map_err(|_| bad())?;
        if !is_name(port) || ports.first == 0 {
            return Err(bad());
        }
        Ok(Self { port: port.to_owned(), address, ports })
    }
}

as_text!(Listen, Target);

/// `[[egress]]`: outside addresses that a port's connections to the outside come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// The port.
    pub port: String,
    /// The outside addresses, at most one of each family.
    #[serde(with = "one_or_list")]
    pub address: Vec<IpAddr>,
    /// L4 ports that its connections get.
    #[serde(default = "Egress::default_ports", skip_serializing_if = "Egress::has_default_ports")]
    pub ports: L4Range,
}

impl Egress {
    /// L4 ports unless the file says otherwise: all but the well-known ones.
    pub const DEFAULT_PORTS: L4Range = L4Range { first: 1024, last: 65535 };

    fn default_ports() -> L4Range {
        Self::DEFAULT_PORTS
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn has_default_ports(ports: &L4Range) -> bool {
        *ports == Self::DEFAULT_PORTS
    }
}

impl Object for Egress {
    const SECTION: &'static str = "egress";

    /// The port's name.
    fn name(&self) -> String {
        self.port.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_listen_print_what_they_read() {
        for (text, printed) in [
            ("8080/tcp", "8080/tcp"),
            ("8080", "8080/tcp"),
            ("0/udp", "0/udp"),
            ("203.0.113.2:8080-8090/tcp", "203.0.113.2:8080-8090/tcp"),
            ("0.0.0.0:80/sctp", "0.0.0.0:80/sctp"),
            ("[::]:80", "[::]:80/tcp"),
        ] {
            assert_eq!(text.parse::<Listen>().map(|l| l.to_string()), Ok(printed.to_owned()));
        }
        for text in [
            "",
            "/tcp",
            "tcp",
            ":80/tcp",
            "::1:80",
            "[10.0.0.1]:80",
            "0-9/tcp",
            "80/icmp",
            "80-79",
            "1.2.3.4:/tcp",
            "web:80",
        ] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }

    #[test]
    fn places_inside_print_what_they_read() {
        for text in ["web:80", "web:80-90", "web@10.1.0.10:80", "web@[fd00::10]:80"] {
            assert_eq!(text.parse::<Target>().map(|t| t.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "web", "web:", "web:0", ":80", "web@:80", "web@fd00::1:80", "a b:80", "web@x:80"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn places_overlap_when_one_packet_could_be_for_both() {
        let listen = |text: &str| text.parse::<Listen>().expect("good");
        for (a, b, both) in [
            ("80/tcp", "80/tcp", true),
            ("80/tcp", "80/udp", false),
            ("80/tcp", "10.0.0.1:70-90/tcp", true),
            ("0.0.0.0:80/tcp", "10.0.0.1:80/tcp", true),
            ("[::]:80/tcp", "10.0.0.1:80/tcp", false),
            ("0.0.0.0:80/tcp", "[::]:80/tcp", false),
            ("10.0.0.1:80/tcp", "10.0.0.2:80/tcp", false),
            ("80-90/tcp", "91/tcp", false),
            ("0/tcp", "0/tcp", false),
        ] {
            assert_eq!(listen(a).overlaps(listen(b)), both, "{a} {b}");
            assert_eq!(listen(b).overlaps(listen(a)), both, "{b} {a}");
        }
    }

    #[test]
    fn an_address_inside_is_of_the_family_that_is_asked_for() {
        let addresses = ["fd00::2", "10.0.0.2", "10.0.0.3"].map(|a| a.parse().expect("an address")).to_vec();
        let port = Port { addresses, ..Port::new("web", "front") };
        let publish = |to: &str| Publish {
            name: None,
            listen: "80/tcp".parse().expect("good"),
            to: to.parse().expect("good"),
            allow_from: Vec::new(),
        };
        let inside = |to: &str, v4| publish(to).inside(&port, v4).map(|a| a.to_string());
        assert_eq!(inside("web:80", true).as_deref(), Some("10.0.0.2"));
        assert_eq!(inside("web:80", false).as_deref(), Some("fd00::2"));
        assert_eq!(inside("web@10.0.0.3:80", true).as_deref(), Some("10.0.0.3"));
        assert_eq!(inside("web@10.0.0.3:80", false), None);
        assert_eq!(inside("web@10.0.0.9:80", true), None);
    }
}
