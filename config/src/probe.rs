//! The packet of a trace: `tcp 10.0.0.2:80`, `udp [fd00::2]:53 from [fd00::9]:4000`, `icmp 10.0.0.2 ttl 1`.
//!
//! ```text
//! tcp|udp|sctp ADDRESS:PORT            icmp ADDRESS [TYPE]            protocol/NUMBER ADDRESS
//!   [from ADDRESS[:PORT]]  [syn|ack|fin|rst ...]  [ttl N]  [len N]  [df]
//! ```
//!
//! What is left out is what a station would send: its own address, a high L4 port, a SYN, an echo request, TTL 64, no
//! payload. `len` is the length of the IP packet.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::nat::bracketed;
use crate::services::{IcmpName, IcmpType, L4Protocol};

/// A packet to be traced. See the module header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What it is.
    pub what: ProbeKind,
    /// Where it goes.
    pub to: IpAddr,
    /// Where it comes from; `None`: an address of the port it is sent by.
    pub from: Option<IpAddr>,
    /// How many routers it may pass.
    pub ttl: u8,
    /// Length of the IP packet, in bytes; `None`: without a payload.
    pub len: Option<u16>,
    /// It must not be fragmented; with IPv6 always so.
    pub df: bool,
}

/// What a packet to be traced is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// Of a protocol with L4 ports.
    L4 {
        /// The protocol.
        protocol: L4Protocol,
        /// The source L4 port; `None`: a high one.
        from: Option<u16>,
        /// The destination L4 port.
        to: u16,
        /// Of TCP.
        flags: TcpFlags,
    },
    /// An ICMP message of the family of its destination.
    Icmp(IcmpType),
    /// Of another protocol.
    Other(u8),
}

/// Flags of a TCP segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags {
    /// It opens a connection.
    pub syn: bool,
    /// It confirms.
    pub ack: bool,
    /// It closes one direction.
    pub fin: bool,
    /// It ends the connection.
    pub rst: bool,
}

impl TcpFlags {
    /// The flags of the first segment of a connection.
    pub const SYN: TcpFlags = TcpFlags { syn: true, ack: false, fin: false, rst: false };

    fn words(self) -> impl Iterator<Item = &'static str> {
        let words = [(self.syn, "syn"), (self.ack, "ack"), (self.fin, "fin"), (self.rst, "rst")];
        words.into_iter().filter(|(set, _)| *set).map(|(_, word)| word)
    }
}

/// The TTL of packets unless it is given.
const TTL: u8 = 64;

impl Probe {
    /// Returns the number of its protocol.
    pub const fn protocol(&self) -> u8 {
        match self.what {
            ProbeKind::L4 { protocol, .. } => protocol.number(),
            ProbeKind::Icmp(_) if self.to.is_ipv4() => 1,
            ProbeKind::Icmp(_) => 58,
            ProbeKind::Other(number) => number,
        }
    }
}

/// The text describes no packet; the message says what is wrong and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wrong}; allowed: {allowed}")]
pub struct ProbeError {
    wrong: String,
    allowed: &'static str,
}

fn bad<T>(wrong: impl Into<String>, allowed: &'static str) -> Result<T, ProbeError> {
    Err(ProbeError { wrong: wrong.into(), allowed })
}

/// What is allowed as a whole.
const SHAPE: &str = "tcp, udp or sctp ADDRESS:PORT, icmp ADDRESS [TYPE], protocol/NUMBER ADDRESS; then from \
                     ADDRESS[:PORT], syn, ack, fin, rst, ttl N, len N, df; as in 'tcp 10.0.0.2:80 syn'";
const WITH_PORT: &str = "ADDRESS:PORT, as in 10.0.0.2:80 or [fd00::2]:80";
const WITHOUT_PORT: &str = "an address, as in 10.0.0.2 or fd00::2";
const ICMP_TYPE: &str =
    "echo-request, echo-reply, unreachable, packet-too-big, time-exceeded, parameter-problem, or TYPE[/CODE]";

/// Reads `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.
fn place(text: &str) -> Option<(IpAddr, Option<u16>)> {
    let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    if let Ok(address) = text.parse() {
        return Some((address, None));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address = address.parse().ok().filter(IpAddr::is_ipv6)?;
        return match port.strip_prefix(':') {
            Some(port) => Some((address, Some(number(port)?))),
            None => port.is_empty().then_some((address, None)),
        };
    }
    let (address, port) = text.split_once(':')?;
    Some((address.parse().ok().filter(IpAddr::is_ipv4)?, Some(number(port)?)))
}

fn number<T: FromStr>(name: &str, word: Option<&str>, allowed: &'static str) -> Result<T, ProbeError> {
    let Some(word) = word else { return bad(format!("'{name}' is not followed by a number"), allowed) };
    word.parse().or_else(|_| bad(format!("'{name} {word}' does not fit"), allowed))
}

impl FromStr for Probe {
    type Err = ProbeError;

    fn from_str(text: &str) -> Result<Self, ProbeError> {
        let mut words = text.split_whitespace().peekable();
        let Some(head) = words.next() else { return bad("there is no packet", SHAPE) };
        let Some(target) = words.next() else { return bad(format!("'{head}' has no destination"), SHAPE) };
        let l4 = head.parse::<L4Protocol>().ok();
        let Some((to, to_port)) = place(target) else {
            return bad(
                format!("'{target}' is no destination"),
                if l4.is_some() { WITH_PORT } else { WITHOUT_PORT },
            );
        };
        let mut what = match (l4, to_port) {
            (Some(protocol), Some(to)) => {
                let flags = TcpFlags::default();
                ProbeKind::L4 { protocol, from: None, to, flags }
            }
            (Some(protocol), None) => {
                return bad(format!("'{target}' has no L4 port, which {protocol} needs"), WITH_PORT);
            }
            (None, _) if !matches!(head, "icmp" | "icmpv6") && !head.starts_with("protocol/") => {
                return bad(format!("'{head}' is no kind of packet"), SHAPE);
            }
            (None, Some(_)) => {
                return bad(format!("'{target}' has an L4 port, which {head} has not"), WITHOUT_PORT);
            }
            (None, None) => match head.strip_prefix("protocol/") {
                Some(protocol) => {
                    ProbeKind::Other(number("protocol", Some(protocol), "a number from 0 to 255")?)
                }
                None if head == "icmpv6" && to.is_ipv4() => {
                    return bad(
                        format!("'{target}' is no IPv6 address"),
                        "icmp for IPv4, icmpv6 or icmp for IPv6",
                    );
                }
                None => ProbeKind::Icmp(icmp_type(&mut words, to.is_ipv4())?),
            },
        };
        let mut probe = Probe { what, to, from: None, ttl: TTL, len: None, df: false };
        while let Some(word) = words.next() {
            match word {
                "from" => {
                    let Some(source) = words.next() else {
                        return bad("'from' is not followed by an address", SHAPE);
                    };
                    let Some((address, port)) = place(source) else {
                        return bad(
                            format!("'{source}' is no source"),
                            "ADDRESS or ADDRESS:PORT, as in 10.0.0.9:4000",
                        );
                    };
                    if address.is_ipv4() != to.is_ipv4() {
                        return bad(
                            format!("{address} and {to} are of different families"),
                            "two of one family",
                        );
                    }
                    probe.from = Some(address);
                    match &mut what {
                        ProbeKind::L4 { from, .. } => *from = port,
                        _ if port.is_some() => {
                            return bad(
                                format!("'{source}' has an L4 port, which {head} has not"),
                                WITHOUT_PORT,
                            );
                        }
                        _ => {}
                    }
                }
                "syn" | "ack" | "fin" | "rst" => match &mut what {
                    ProbeKind::L4 { protocol: L4Protocol::Tcp, flags, .. } => match word {
                        "syn" => flags.syn = true,
                        "ack" => flags.ack = true,
                        "fin" => flags.fin = true,
                        _ => flags.rst = true,
                    },
                    _ => return bad(format!("'{word}' is a flag of TCP, and the packet is {head}"), SHAPE),
                },
                "ttl" => probe.ttl = number("ttl", words.next(), "ttl 0 to ttl 255")?,
                "len" => {
                    let allowed = "len N, the bytes of the IP packet with its headers, up to 65535";
                    let len: u16 = number("len", words.next(), allowed)?;
                    if len < least(&what, to) {
                        return bad(
                            format!("'len {len}' is less than the {} bytes of its headers", least(&what, to)),
                            allowed,
                        );
                    }
                    probe.len = Some(len);
                }
                "df" => probe.df = true,
                other => return bad(format!("'{other}' is not understood"), SHAPE),
            }
        }
        if let ProbeKind::L4 { protocol: L4Protocol::Tcp, flags, .. } = &mut what
            && *flags == TcpFlags::default()
        {
            *flags = TcpFlags::SYN;
        }
        probe.what = what;
        Ok(probe)
    }
}

/// Returns the bytes of the headers.
const fn least(what: &ProbeKind, to: IpAddr) -> u16 {
    let inner = match what {
        ProbeKind::L4 { protocol: L4Protocol::Tcp, .. } => 20,
        ProbeKind::L4 { protocol: L4Protocol::Sctp, .. } => 12,
        ProbeKind::L4 { protocol: L4Protocol::Udp, .. } | ProbeKind::Icmp(_) => 8,
        ProbeKind::Other(_) => 0,
    };
    inner + if to.is_ipv4() { 20 } else { 40 }
}

/// Reads the type of an ICMP message if the next word is one.
fn icmp_type<'t>(
    words: &mut std::iter::Peekable<impl Iterator<Item = &'t str>>,
    v4: bool,
) -> Result<IcmpType, ProbeError> {
    let of = |name: IcmpName| if v4 { name.v4() } else { name.v6() };
    let options = ["from", "syn", "ack", "fin", "rst", "ttl", "len", "df"];
    let Some(word) = words.next_if(|word| !options.contains(word)) else {
        return Ok(of(IcmpName::EchoRequest));
    };
    match IcmpName::find(word) {
        Some(name) => Ok(of(name)),
        None => word.parse().or_else(|()| bad(format!("'{word}' is no type of ICMP message"), ICMP_TYPE)),
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut from_port = None;
        match self.what {
            ProbeKind::L4 { protocol, from, to, flags } => {
                write!(f, "{protocol} {}:{to}", bracketed(self.to))?;
                for word in flags.words() {
                    write!(f, " {word}")?;
                }
                from_port = from;
            }
            ProbeKind::Icmp(kind) => {
                let of = |name: &IcmpName| if self.to.is_ipv4() { name.v4() } else { name.v6() };
                write!(f, "icmp {} ", self.to)?;
                match IcmpName::ALL.into_iter().find(|name| of(name) == kind) {
                    Some(name) => f.write_str(name.name())?,
                    None => kind.fmt(f)?,
                }
            }
            ProbeKind::Other(number) => write!(f, "protocol/{number} {}", self.to)?,
        }
        match (self.from, from_port) {
            (Some(from), Some(port)) => write!(f, " from {}:{port}", bracketed(from))?,
            (Some(from), None) => write!(f, " from {from}")?,
            (None, _) => {}
        }
        if self.ttl != TTL {
            write!(f, " ttl {}", self.ttl)?;
        }
        if let Some(len) = self.len {
            write!(f, " len {len}")?;
        }
        f.write_str(if self.df { " df" } else { "" })
    }
}

crate::values::by_text!(Probe, "a packet as in tcp 10.0.0.2:80 syn");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_print_what_they_read() {
        for (text, printed) in [
            ("tcp 10.0.0.2:80", "tcp 10.0.0.2:80 syn"),
            ("tcp [fd00::2]:80 syn", "tcp [fd00::2]:80 syn"),
            ("tcp 10.0.0.2:80 ack syn", "tcp 10.0.0.2:80 syn ack"),
            ("udp 10.0.0.2:53 from 10.0.0.9:4000", "udp 10.0.0.2:53 from 10.0.0.9:4000"),
            ("udp [fd00::2]:53 from fd00::9", "udp [fd00::2]:53 from fd00::9"),
            ("sctp 10.0.0.2:7", "sctp 10.0.0.2:7"),
            ("icmp 10.0.0.2", "icmp 10.0.0.2 echo-request"),
            ("icmp fd00::2 echo-reply ttl 1", "icmp fd00::2 echo-reply ttl 1"),
            ("icmpv6 fd00::2 128", "icmp fd00::2 echo-request"),
            ("icmp 10.0.0.2 3/1", "icmp 10.0.0.2 3/1"),
            ("protocol/47 10.0.0.2 len 1400 df", "protocol/47 10.0.0.2 len 1400 df"),
            ("  tcp   10.0.0.2:80  df len 1400  ttl 1 ", "tcp 10.0.0.2:80 syn ttl 1 len 1400 df"),
        ] {
            let probe: Probe = text.parse().expect(text);
            assert_eq!(probe.to_string(), printed);
            assert_eq!(printed.parse(), Ok(probe));
        }
    }

    #[test]
    fn what_is_no_packet_is_told_with_what_is_allowed() {
        for (text, wrong) in [
            ("", "there is no packet; allowed: tcp, udp or sctp ADDRESS:PORT"),
            ("tcp", "'tcp' has no destination; allowed: tcp, udp"),
            ("tcp 10.0.0.2", "'10.0.0.2' has no L4 port, which tcp needs; allowed: ADDRESS:PORT, as in"),
            ("tcp web:80", "'web:80' is no destination; allowed: ADDRESS:PORT"),
            ("tcp fd00::2:80:", "'fd00::2:80:' is no destination"),
            ("tpc 10.0.0.2:80", "'tpc' is no kind of packet"),
            ("icmp 10.0.0.2:80", "'10.0.0.2:80' has an L4 port, which icmp has not; allowed: an address"),
            ("icmp 10.0.0.2 ping", "'ping' is no type of ICMP message; allowed: echo-request"),
            ("icmpv6 10.0.0.2", "'10.0.0.2' is no IPv6 address"),
            ("udp 10.0.0.2:53 syn", "'syn' is a flag of TCP, and the packet is udp"),
            ("udp 10.0.0.2:53 from fd00::1", "fd00::1 and 10.0.0.2 are of different families"),
            ("udp 10.0.0.2:53 from", "'from' is not followed by an address"),
            ("udp 10.0.0.2:53 ttl", "'ttl' is not followed by a number; allowed: ttl 0 to ttl 255"),
            ("udp 10.0.0.2:53 ttl 256", "'ttl 256' does not fit"),
            ("udp 10.0.0.2:53 len 27", "'len 27' is less than the 28 bytes of its headers"),
            ("udp 10.0.0.2:53 fast", "'fast' is not understood"),
            ("protocol/x 10.0.0.2", "'protocol x' does not fit; allowed: a number from 0 to 255"),
        ] {
            let error = text.parse::<Probe>().expect_err(text).to_string();
            assert!(error.starts_with(wrong), "{text}: {error}");
        }
    }

    #[test]
    fn the_protocol_is_that_of_the_family() {
        let protocol = |text: &str| text.parse::<Probe>().expect(text).protocol();
        assert_eq!(
            ["tcp 1.2.3.4:1", "icmp 1.2.3.4", "icmp fd00::1", "protocol/47 fd00::1"].map(protocol),
            [6, 1, 58, 47]
        );
    }
}
