//! Who a policy is about: networks, ports, labels, addresses, the host, the outside.
//!
//! A word in front tells what a text is: `network:front`, `port:web`, `label:tier=web,env=prod`, `cidr:10.0.0.0/8`. It
//! may be left out, and then these rules hold in this order:
//!
//! 1. `any`, `host` and `outside` are themselves;
//! 2. what has an `=` is a label selector;
//! 3. what reads as an address or prefix is one;
//! 4. every other name is a network's.
//!
//! So a port always needs its word, and so does a network whose name is one of the first three or an address.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::services::Service;
use crate::validate::is_name;
use crate::values::{ValueError, as_text};

/// One side of a policy. See the module header.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// `any`: everybody.
    Any,
    /// `host`: the host's own addresses.
    Host,
    /// `outside`: what is reached through the uplink.
    Outside,
    /// `front`: all stations of a network.
    Network(String),
    /// `port:web`: the stations behind a port.
    Port(String),
    /// `tier=web,env=prod`: the stations behind ports that have all of these labels.
    Label(BTreeMap<String, String>),
    /// `10.0.0.0/8`: addresses, in whichever network they are.
    Cidr(IpNet),
}

impl Peer {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str = "the name of a network, port:NAME, labels as in \"tier=web,env=prod\", an address or \
                                       prefix as in \"10.0.0.0/8\", host, outside, any; in doubt network:NAME, label:..., \
                                       cidr:...";

    /// Says whether a port with `labels` is meant by a selector.
    pub fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
        selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

fn address_or_prefix(text: &str) -> Option<IpNet> {
    text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse::<IpNet>()).ok()
}

fn selector(text: &str) -> Option<BTreeMap<String, String>> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    let mut labels = BTreeMap::new();
    for pair in text.split(',') {
        let (key, value) = pair.split_once('=')?;
        let (key, value) = (key.trim(), value.trim());
        let known =
            (1..=63).contains(&key.len()) && key.chars().all(good) && !value.chars().any(char::is_control);
        if !known || labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return None;
        }
    }
    Some(labels)
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Any => f.write_str("any"),
            Peer::Host => f.write_str("host"),
            Peer::Outside => f.write_str("outside"),
            // The shortest text that reads back as the same.
            Peer::Network(name) if name.parse().as_ref() == Ok(self) => f.write_str(name),
            Peer::Network(name) => write!(f, "network:{name}"),
            Peer::Port(name) => write!(f, "port:{name}"),
            Peer::Label(labels) => {
                let pairs = labels.iter().map(|(key, value)| format!("{key}={value}"));
                f.write_str(&pairs.collect::<Vec<_>>().join(","))
            }
            Peer::Cidr(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Peer::Cidr(net) => net.fmt(f),
        }
    }
}

impl FromStr for Peer {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError::new(text, "side of a policy", Self::ALLOWED);
        let named = |name: &str| is_name(name).then(|| name.to_owned()).ok_or_else(bad);
        match text.split_once(':') {
            Some(("network", name)) => return named(name).map(Peer::Network),
            Some(("port", name)) => return named(name).map(Peer::Port),
            Some(("label", labels)) => return selector(labels).map(Peer::Label).ok_or_else(bad),
            Some(("cidr", net)) => return address_or_prefix(net).map(Peer::Cidr).ok_or_else(bad),
            _ => {}
        }
        match text {
            "any" => Ok(Peer::Any),
            "host" => Ok(Peer::Host),
            "outside" => Ok(Peer::Outside),
            _ if text.contains('=') => selector(text).map(Peer::Label).ok_or_else(bad),
            _ => match address_or_prefix(text) {
                Some(net) => Ok(Peer::Cidr(net)),
                None => named(text).map(Peer::Network),
            },
        }
    }
}

/// Where the packet of an `[[assert]]` goes: whom, and what about, as in `mgmt:22/tcp`, `10.2.0.5:icmp`, `port:db:tcp/5432`,
/// `[fd00::5]:22/tcp`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Whom: a network (each of its ports), a port, an address, the host, the outside.
    pub peer: Peer,
    /// What about: one L4 port, or ICMP.
    pub service: Service,
}

impl Destination {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str = "a network, port:NAME, an address, host or outside, then ':' and one service, as in \
                                       \"mgmt:22/tcp\", \"[fd00::5]:22/tcp\", \"10.2.0.5:icmp\"";
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = match self.service {
            // As it is written in the address of something: the port first.
            Service::L4 { protocol, ports } => format!("{ports}/{protocol}"),
            service => service.to_string(),
        };
        match &self.peer {
            Peer::Cidr(net) if net.addr().is_ipv6() => write!(f, "[{}]:{service}", net.addr()),
            peer => write!(f, "{peer}:{service}"),
        }
    }
}

impl FromStr for Destination {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError::new(text, "destination", Self::ALLOWED);
        let (peer, service) = text.rsplit_once(':').ok_or_else(bad)?;
        let service: Service = service.parse().map_err(|_| bad())?;
        let single = match service {
            Service::L4 { ports, .. } => ports.count() == 1,
            Service::Icmp(_) | Service::IcmpV4(_) | Service::IcmpV6(_) | Service::Protocol(_) => true,
            Service::Any => false,
        };
        let inner = peer.strip_prefix('[').and_then(|peer| peer.strip_suffix(']'));
        let peer: Peer = match inner {
            Some(address) => Peer::Cidr(address.parse::<IpAddr>().map_err(|_| bad())?.into()),
            None => peer.parse().map_err(|_| bad())?,
        };
        let whom = match &peer {
            Peer::Cidr(net) => {
                net.prefix_len() == net.max_prefix_len() && (net.addr().is_ipv4() || inner.is_some())
            }
            Peer::Any | Peer::Label(_) => false,
            Peer::Host | Peer::Outside | Peer::Network(_) | Peer::Port(_) => true,
        };
        if single && whom { Ok(Self { peer, service }) } else { Err(bad()) }
    }
}

as_text!(Peer, Destination);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_print_the_shortest_text_that_reads_back() {
        for (text, printed) in [
            ("front", "front"),
            ("network:front", "front"),
            ("network:host", "network:host"),
            ("network:10.0.0.1", "network:10.0.0.1"),
            ("10.0.0.1", "10.0.0.1"),
            ("cidr:10.0.0.1/32", "10.0.0.1"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("fd00::/8", "fd00::/8"),
            ("port:web", "port:web"),
            ("label:tier=web", "tier=web"),
            ("tier=web, env=prod", "env=prod,tier=web"),
            ("host", "host"),
            ("outside", "outside"),
            ("any", "any"),
        ] {
            let peer: Peer = text.parse().expect(text);
            assert_eq!(peer.to_string(), printed);
            assert_eq!(printed.parse(), Ok(peer));
        }
    }

    #[test]
    fn bad_sides_are_refused() {
        for text in [
            "",
            "net:front",
            "port:",
            "port:a b",
            "tier=web,",
            "=web",
            "10.0.0.0/33",
            "a=1,a=2",
            "cidr:front",
        ] {
            assert!(text.parse::<Peer>().is_err(), "{text}");
        }
    }

    #[test]
    fn destinations_print_what_they_read() {
        for text in [
            "mgmt:22/tcp",
            "10.2.0.5:22/tcp",
            "[fd00::5]:53/udp",
            "port:db:icmp",
            "host:22/tcp",
            "outside:443/tcp",
        ] {
            let destination: Destination = text.parse().expect(text);
            assert_eq!(destination.to_string(), text);
        }
        assert_eq!("mgmt:tcp/22".parse::<Destination>().map(|d| d.to_string()), Ok("mgmt:22/tcp".to_owned()));
        for text in [
            "mgmt",
            "mgmt:",
            "mgmt:tcp",
            "mgmt:any",
            "fd00::5:22/tcp",
            "10.0.0.0/8:22/tcp",
            "any:22/tcp",
            ":22/tcp",
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }
}
