//! What a policy or a published port is about: L4 protocols, ranges of L4 ports, ICMP types.
//!
//! A [`Service`] is written as its protocol and what is meant of it: `tcp/514`, `udp/1000-2000`, `icmp/echo-request`,
//! `any`. `514/tcp` is read too, as other tools write it. `tcp/514` means both address families, and so do `icmp` and
//! `icmp/NAME`: ICMP for IPv4, ICMPv6 for IPv6. A number is of one family: `icmp/8` is IPv4's, `icmpv6/128` IPv6's.
//!
//! [`Service::terms`] spells a service as ranges of numbers, which is what packets are compared with.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::values::{ValueError, as_text, text_or_integer};

/// Numbers of protocols (IANA "Assigned Internet Protocol Numbers").
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// A protocol whose packets have L4 ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum L4Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl L4Protocol {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str = "tcp, udp, sctp";

    /// Returns the number in the IP header.
    pub const fn number(self) -> u8 {
        match self {
            L4Protocol::Tcp => 6,
            L4Protocol::Udp => 17,
            L4Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for L4Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            L4Protocol::Tcp => "tcp",
            L4Protocol::Udp => "udp",
            L4Protocol::Sctp => "sctp",
        })
    }
}

impl FromStr for L4Protocol {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "tcp" => Ok(L4Protocol::Tcp),
            "udp" => Ok(L4Protocol::Udp),
            "sctp" => Ok(L4Protocol::Sctp),
            _ => Err(ValueError::new(text, "protocol", Self::ALLOWED)),
        }
    }
}

/// L4 ports in a row: `80` or `"8080-8090"`. First and last belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct L4Range {
    /// The first port.
    pub first: u16,
    /// The last port, at least `first`.
    pub last: u16,
}

impl L4Range {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str = "an L4 port from 0 to 65535, or a range of them as in \"8080-8090\"";
    /// Every port.
    pub const ALL: L4Range = L4Range { first: 0, last: u16::MAX };

    /// Returns the range of one port.
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// Returns how many ports there are in it.
    pub const fn count(self) -> u32 {
        (self.last - self.first) as u32 + 1
    }

    /// Says whether `port` is in the range.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// Says whether a port is in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for L4Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl FromStr for L4Range {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        number(first)
            .zip(number(last))
            .map(|(first, last)| Self { first, last })
            .filter(|range| range.first <= range.last)
            .ok_or_else(|| ValueError::new(text, "range of L4 ports", Self::ALLOWED))
    }
}

impl Serialize for L4Range {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last {
            serializer.serialize_u16(self.first)
        } else {
            serializer.collect_str(self)
        }
    }
}

impl<'de> Deserialize<'de> for L4Range {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_integer(deserializer, Self::ALLOWED, |port| u16::try_from(port).ok().map(Self::one))
    }
}

/// Reads a number without a sign, which `parse` would take and which would not be printed again.
fn number<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A kind of ICMP message that both families have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IcmpName {
    /// `echo-request`: 8, and 128 in ICMPv6.
    EchoRequest,
    /// `echo-reply`: 0, and 129 in ICMPv6.
    EchoReply,
    /// `unreachable`: 3, and 1 in ICMPv6.
    Unreachable,
    /// `packet-too-big`: 3 with code 4, and 2 in ICMPv6.
    PacketTooBig,
    /// `time-exceeded`: 11, and 3 in ICMPv6.
    TimeExceeded,
    /// `parameter-problem`: 12, and 4 in ICMPv6.
    ParameterProblem,
}

impl IcmpName {
    /// Every name.
    pub const ALL: [IcmpName; 6] = [
        IcmpName::EchoRequest,
        IcmpName::EchoReply,
        IcmpName::Unreachable,
        IcmpName::PacketTooBig,
        IcmpName::TimeExceeded,
        IcmpName::ParameterProblem,
    ];

    /// Returns the name.
    pub const fn name(self) -> &'static str {
        match self {
            IcmpName::EchoRequest => "echo-request",
            IcmpName::EchoReply => "echo-reply",
            IcmpName::Unreachable => "unreachable",
            IcmpName::PacketTooBig => "packet-too-big",
            IcmpName::TimeExceeded => "time-exceeded",
            IcmpName::ParameterProblem => "parameter-problem",
        }
    }

    /// Returns type and code of ICMP for IPv4 (RFC 792).
    pub const fn v4(self) -> IcmpType {
        match self {
            IcmpName::EchoRequest => IcmpType { kind: 8, code: None },
            IcmpName::EchoReply => IcmpType { kind: 0, code: None },
            IcmpName::Unreachable => IcmpType { kind: 3, code: None },
            IcmpName::PacketTooBig => IcmpType { kind: 3, code: Some(4) },
            IcmpName::TimeExceeded => IcmpType { kind: 11, code: None },
            IcmpName::ParameterProblem => IcmpType { kind: 12, code: None },
        }
    }

    /// Returns type and code of ICMPv6 (RFC 4443).
    pub const fn v6(self) -> IcmpType {
        let kind = match self {
            IcmpName::EchoRequest => 128,
            IcmpName::EchoReply => 129,
            IcmpName::Unreachable => 1,
            IcmpName::PacketTooBig => 2,
            IcmpName::TimeExceeded => 3,
            IcmpName::ParameterProblem => 4,
        };
        IcmpType { kind, code: None }
    }

    /// Returns the kind of that name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Type and, when only one of them is meant, code of an ICMP message of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IcmpType {
    /// The type.
    pub kind: u8,
    /// The code; `None`: any.
    pub code: Option<u8>,
}

impl IcmpType {
    fn term(self, protocol: u8) -> Term {
        let (first, last) = self.code.map_or((0, 255), |code| (code, code));
        let join = |code| u16::from(self.kind) << 8 | u16::from(code);
        Term { protocol: Some(protocol), first: join(first), last: join(last) }
    }
}

impl fmt::Display for IcmpType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            None => self.kind.fmt(f),
            Some(code) => write!(f, "{}/{code}", self.kind),
        }
    }
}

impl FromStr for IcmpType {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (kind, code) = match text.split_once('/') {
            None => (text, None),
            Some((kind, code)) => (kind, Some(number(code).ok_or(())?)),
        };
        Ok(Self { kind: number(kind).ok_or(())?, code })
    }
}

/// What packets are about, as in `"tcp/514"`. See the module header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// `any`: every packet.
    Any,
    /// `tcp/514`, `udp/1000-2000`, `sctp`: by destination port.
    L4 {
        /// The protocol.
        protocol: L4Protocol,
        /// The destination ports.
        ports: L4Range,
    },
    /// `icmp`, `icmp/echo-request`: of both families.
    Icmp(Option<IcmpName>),
    /// `icmp/8`, `icmp/3/4`: of IPv4.
    IcmpV4(IcmpType),
    /// `icmpv6`, `icmpv6/128`: of IPv6.
    IcmpV6(Option<IcmpType>),
    /// `protocol/47`: every packet of another protocol.
    Protocol(u8),
}

/// One range of packets that a service stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term {
    /// Number of the protocol; `None`: any.
    pub protocol: Option<u8>,
    /// The least destination port; of ICMP the least `type << 8 | code`. 0 for protocols that have neither.
    pub first: u16,
    /// The greatest; 65535 for protocols that have neither.
    pub last: u16,
}

impl Service {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str = "any, tcp, udp or sctp with L4 ports as in \"tcp/514\" or \"udp/1000-2000\", icmp or \
                                       icmpv6 with a type as in \"icmp/echo-request\" or \"icmpv6/128\", protocol/NUMBER";

    /// Returns the service as ranges of numbers.
    pub fn terms(self) -> Vec<Term> {
        let whole = |protocol| Term { protocol, first: 0, last: u16::MAX };
        match self {
            Service::Any => vec![whole(None)],
            Service::L4 { protocol, ports } => {
                vec![Term { protocol: Some(protocol.number()), first: ports.first, last: ports.last }]
            }
            Service::Icmp(None) => vec![whole(Some(ICMP)), whole(Some(ICMPV6))],
            Service::Icmp(Some(name)) => vec![name.v4().term(ICMP), name.v6().term(ICMPV6)],
            Service::IcmpV4(kind) => vec![kind.term(ICMP)],
            Service::IcmpV6(None) => vec![whole(Some(ICMPV6))],
            Service::IcmpV6(Some(kind)) => vec![kind.term(ICMPV6)],
            Service::Protocol(number) => vec![whole(Some(number))],
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Service::Any => f.write_str("any"),
            Service::L4 { protocol, ports: L4Range::ALL } => protocol.fmt(f),
            Service::L4 { protocol, ports } => write!(f, "{protocol}/{ports}"),
            Service::Icmp(None) => f.write_str("icmp"),
            Service::Icmp(Some(name)) => write!(f, "icmp/{}", name.name()),
            Service::IcmpV4(kind) => write!(f, "icmp/{kind}"),
            Service::IcmpV6(None) => f.write_str("icmpv6"),
            Service::IcmpV6(Some(kind)) => write!(f, "icmpv6/{kind}"),
            Service::Protocol(number) => write!(f, "protocol/{number}"),
        }
    }
}

impl FromStr for Service {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError::new(text, "service", Self::ALLOWED);
        let Some((head, tail)) = text.split_once('/') else {
            return match text {
                "any" => Ok(Service::Any),
                "icmp" => Ok(Service::Icmp(None)),
                "icmpv6" => Ok(Service::IcmpV6(None)),
                protocol => {
                    let protocol = protocol.parse().map_err(|_| bad())?;
                    Ok(Service::L4 { protocol, ports: L4Range::ALL })
                }
            };
        };
        match head {
            "icmp" => match IcmpName::find(tail) {
                Some(name) => Ok(Service::Icmp(Some(name))),
                None => tail.parse().map(Service::IcmpV4).map_err(|()| bad()),
            },
            "icmpv6" => match IcmpName::find(tail) {
                Some(name) => Ok(Service::IcmpV6(Some(name.v6()))),
                None => tail.parse().map(|kind| Service::IcmpV6(Some(kind))).map_err(|()| bad()),
            },
            "protocol" => number(tail).map(Service::Protocol).ok_or_else(bad),
            _ => {
                let (protocol, ports) = match head.parse::<L4Protocol>() {
                    Ok(protocol) => (protocol, tail),
                    Err(_) => (tail.parse().map_err(|_| bad())?, head),
                };
                Ok(Service::L4 { protocol, ports: ports.parse().map_err(|_| bad())? })
            }
        }
    }
}

as_text!(Service);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_print_what_they_read() {
        for text in [
            "any",
            "tcp",
            "tcp/514",
            "udp/1000-2000",
            "sctp/1",
            "icmp",
            "icmp/echo-request",
            "icmp/8",
            "icmp/3/4",
            "icmpv6",
            "icmpv6/128",
            "protocol/47",
        ] {
            let service: Service = text.parse().expect(text);
            assert_eq!(service.to_string(), text);
        }
        for (text, printed) in [
            ("514/tcp", "tcp/514"),
            ("1000-2000/udp", "udp/1000-2000"),
            ("tcp/0-65535", "tcp"),
            ("icmpv6/echo-request", "icmpv6/128"),
            ("icmpv6/packet-too-big", "icmpv6/2"),
        ] {
            assert_eq!(text.parse::<Service>().map(|s| s.to_string()), Ok(printed.to_owned()));
        }
    }

    #[test]
    fn bad_services_are_refused() {
        for text in [
            "",
            "tpc",
            "tcp/",
            "/tcp",
            "tcp/65536",
            "tcp/5-4",
            "tcp/+5",
            "icmp/ping",
            "icmp/256",
            "icmp/3/",
            "80",
            "ANY",
            "tcp/80/81",
            "protocol/256",
            "protocol/tcp",
            "tcp/udp",
            "icmp/-1",
        ] {
            let error = text.parse::<Service>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("'{text}' is no service; allowed: any, tcp")), "{error}");
        }
    }

    #[test]
    fn terms_are_what_packets_have() {
        let terms = |text: &str| {
            let service: Service = text.parse().expect(text);
            service.terms().iter().map(|t| (t.protocol, t.first, t.last)).collect::<Vec<_>>()
        };
        assert_eq!(terms("any"), [(None, 0, 65535)]);
        assert_eq!(terms("tcp/514"), [(Some(6), 514, 514)]);
        assert_eq!(terms("icmp"), [(Some(1), 0, 65535), (Some(58), 0, 65535)]);
        assert_eq!(terms("icmp/echo-request"), [(Some(1), 0x800, 0x8ff), (Some(58), 0x8000, 0x80ff)]);
        assert_eq!(terms("icmp/packet-too-big"), [(Some(1), 0x304, 0x304), (Some(58), 0x200, 0x2ff)]);
        assert_eq!(terms("icmpv6/1/4"), [(Some(58), 0x104, 0x104)]);
        assert_eq!(terms("protocol/47"), [(Some(47), 0, 65535)]);
    }
}
