//! Which connections or packets are meant: `src=10.1.0.5,proto=tcp,dport=80,state!=established`.
//!
//! Conditions are joined by commas and must all hold; `!=` turns one around. A connection has two forms, as its first
//! packet came and as it went on after translation: a condition about addresses or L4 ports holds when it holds for
//! one of them, and a turned one when it holds for neither. An empty expression means everything.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use packet::Tuple;

use crate::api::ConnectionState;
use crate::keys::nearest;
use crate::services::L4Range;
use crate::validate::is_name;

/// The most conditions of an expression.
const CONDITIONS_MAX: usize = 32;

/// Conditions that must all hold. See the module header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expression {
    /// The conditions.
    pub conditions: Vec<Condition>,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What is looked at, and what it is compared with.
    pub test: Test,
    /// It must not be so.
    pub negated: bool,
}

/// What is looked at, and what it is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// `src`: the source address is in the prefix.
    Source(IpNet),
    /// `dst`: the destination address is in the prefix.
    Destination(IpNet),
    /// `addr`: one of both is in the prefix.
    Address(IpNet),
    /// `sport`: the source L4 port is in the range.
    SourcePort(L4Range),
    /// `dport`: the destination L4 port is in the range.
    DestinationPort(L4Range),
    /// `proto`: the protocol, by name or number; `icmp` is that of both families.
    Protocol(Protocol),
    /// `network`: one of its networks.
    Network(String),
    /// `port`: one of its ports.
    Port(String),
    /// `state`: the connection's state.
    State(ConnectionState),
    /// `rule`: the policy that decided.
    Rule(String),
}

/// A protocol as an expression names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// ICMP of either family.
    Icmp,
    /// The one with this number.
    Number(u8),
}

const PROTOCOLS: [(&str, u8); 7] =
    [("tcp", 6), ("udp", 17), ("sctp", 132), ("icmpv6", 58), ("gre", 47), ("esp", 50), ("igmp", 2)];

/// Returns the name of the protocol with the number, or the number.
pub fn protocol_name(number: u8) -> String {
    if number == 1 {
        return "icmp".to_owned();
    }
    let known = PROTOCOLS.into_iter().find(|(_, other)| *other == number);
    known.map_or_else(|| number.to_string(), |(name, _)| name.to_owned())
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protocol::Icmp => f.write_str("icmp"),
            // The name `icmp` means both families.
            Protocol::Number(1) => f.write_str("1"),
            Protocol::Number(number) => f.write_str(&protocol_name(*number)),
        }
    }
}

impl FromStr for Protocol {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "icmp" {
            return Ok(Protocol::Icmp);
        }
        let known = PROTOCOLS.into_iter().find(|(name, _)| *name == text).map(|(_, number)| number);
        known.or_else(|| text.parse().ok()).map(Protocol::Number).ok_or(())
    }
}

/// What is known of a connection or packet, for comparing.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'f> {
    /// The forms it has, at least one.
    pub tuples: &'f [Tuple],
    /// Names of its networks.
    pub networks: &'f [&'f str],
    /// Names of its ports.
    pub ports: &'f [&'f str],
    /// Its state; `None` for a packet without a connection.
    pub state: Option<ConnectionState>,
    /// Name of the policy that decided.
    pub rule: Option<&'f str>,
}

impl Expression {
    /// Says whether all conditions hold.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        self.conditions.iter().all(|condition| condition.test.holds(facts) != condition.negated)
    }
}

impl Test {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        let any = |test: &dyn Fn(&Tuple) -> bool| facts.tuples.iter().any(test);
        match self {
            Test::Source(net) => any(&|t| net.contains(&t.source.ip())),
            Test::Destination(net) => any(&|t| net.contains(&t.destination.ip())),
            Test::Address(net) => any(&|t| net.contains(&t.source.ip()) || net.contains(&t.destination.ip())),
            Test::SourcePort(range) => any(&|t| range.contains(t.source_port)),
            Test::DestinationPort(range) => any(&|t| range.contains(t.destination_port)),
            Test::Protocol(Protocol::Icmp) => any(&|t| matches!(t.protocol, 1 | 58)),
            Test::Protocol(Protocol::Number(number)) => any(&|t| t.protocol == *number),
            Test::Network(name) => facts.networks.contains(&name.as_str()),
            Test::Port(name) => facts.ports.contains(&name.as_str()),
            Test::State(state) => facts.state == Some(*state),
            Test::Rule(name) => facts.rule == Some(name.as_str()),
        }
    }

    /// Returns the field as it is written.
    pub const fn field(&self) -> &'static str {
        match self {
            Test::Source(_) => "src",
            Test::Destination(_) => "dst",
            Test::Address(_) => "addr",
            Test::SourcePort(_) => "sport",
            Test::DestinationPort(_) => "dport",
            Test::Protocol(_) => "proto",
            Test::Network(_) => "network",
            Test::Port(_) => "port",
            Test::State(_) => "state",
            Test::Rule(_) => "rule",
        }
    }
}

const FIELDS: [&str; 10] =
    ["src", "dst", "addr", "sport", "dport", "proto", "network", "port", "state", "rule"];

/// An expression makes no sense; the message names the condition and says what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{condition}': {wrong}; allowed: {allowed}")]
pub struct ExpressionError {
    condition: String,
    wrong: String,
    allowed: String,
}

fn prefix(text: &str) -> Option<IpNet> {
    text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse::<IpNet>().map(|net| net.trunc())).ok()
}

impl FromStr for Condition {
    type Err = ExpressionError;

    fn from_str(text: &str) -> Result<Self, ExpressionError> {
        let bad = |wrong: String, allowed: &str| ExpressionError {
            condition: text.to_owned(),
            wrong,
            allowed: allowed.to_owned(),
        };
        let Some((field, value)) = text.split_once('=') else {
            return Err(bad("it has no '='".to_owned(), "FIELD=VALUE or FIELD!=VALUE, as in dport=80"));
        };
        let (field, negated) = field.strip_suffix('!').map_or((field, false), |field| (field, true));
        let (field, value) = (field.trim(), value.trim());
        let no = |what: &str, allowed: &str| bad(format!("'{value}' is no {what}"), allowed);
        let address =
            || prefix(value).ok_or_else(|| no("address or prefix", "as in 10.1.0.5 or 10.1.0.0/24"));
        let ports = || value.parse::<L4Range>().map_err(|_| no("range of L4 ports", "as in 80 or 8000-8999"));
        let name =
            || if is_name(value) { Ok(value.to_owned()) } else { Err(no("name", "the name of an object")) };
        let test =
            match field {
                "src" => Test::Source(address()?),
                "dst" => Test::Destination(address()?),
                "addr" => Test::Address(address()?),
                "sport" => Test::SourcePort(ports()?),
                "dport" => Test::DestinationPort(ports()?),
                "proto" => Test::Protocol(value.parse().map_err(|()| {
                    no("protocol", "tcp, udp, sctp, icmp, icmpv6, gre, esp, igmp, or a number from 0 to 255")
                })?),
                "network" => Test::Network(name()?),
                "port" => Test::Port(name()?),
                "state" => Test::State(value.parse().map_err(|()| {
                    no("state", &ConnectionState::ALL.map(ConnectionState::name).join(", "))
                })?),
                // Policies without a name have made ones, with all sorts of signs in them.
                "rule" if !value.is_empty() => Test::Rule(value.to_owned()),
                "rule" => return Err(no("name", "the name of a policy")),
                other => {
                    let mut wrong = format!("there is no field '{other}'");
                    if let Some(meant) = nearest(other, FIELDS) {
                        wrong.push_str(&format!(", did you mean '{meant}'?"));
                    }
                    return Err(bad(wrong, &FIELDS.join(", ")));
                }
            };
        Ok(Self { test, negated })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.test.field(), if self.negated { "!=" } else { "=" })?;
        match &self.test {
            Test::Source(net) | Test::Destination(net) | Test::Address(net) => {
                if net.prefix_len() == net.max_prefix_len() { net.addr().fmt(f) } else { net.fmt(f) }
            }
            Test::SourcePort(range) | Test::DestinationPort(range) => range.fmt(f),
            Test::Protocol(protocol) => protocol.fmt(f),
            Test::Network(name) | Test::Port(name) | Test::Rule(name) => f.write_str(name),
            Test::State(state) => f.write_str(state.name()),
        }
    }
}

impl FromStr for Expression {
    type Err = ExpressionError;

    fn from_str(text: &str) -> Result<Self, ExpressionError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let conditions = text.split(',').map(str::trim).map(str::parse).collect::<Result<Vec<_>, _>>()?;
        if conditions.len() > CONDITIONS_MAX {
            return Err(ExpressionError {
                condition: format!("{}, ...", conditions[0]),
                wrong: format!("{} conditions are too many", conditions.len()),
                allowed: format!("at most {CONDITIONS_MAX}"),
            });
        }
        Ok(Self { conditions })
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conditions: Vec<String> = self.conditions.iter().map(Condition::to_string).collect();
        f.write_str(&conditions.join(","))
    }
}

crate::values::by_text!(Expression, "conditions as in src=10.1.0.5,proto=tcp,dport=80");

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: &str, destination: &str, ports: (u16, u16), protocol: u8) -> Tuple {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address").into();
        Tuple {
            source: address(source),
            destination: address(destination),
            source_port: ports.0,
            destination_port: ports.1,
            protocol,
        }
    }

    #[test]
    fn expressions_print_what_they_read() {
        for (text, printed) in [
            ("", ""),
            ("src=10.1.0.5, proto=tcp ,dport=80", "src=10.1.0.5,proto=tcp,dport=80"),
            ("dst!=10.1.0.7/24", "dst!=10.1.0.0/24"),
            (
                "addr=fd00::/8,sport=1-9,network=front,port=web",
                "addr=fd00::/8,sport=1-9,network=front,port=web",
            ),
            ("state!=established,rule=front->mgmt@7", "state!=established,rule=front->mgmt@7"),
            ("proto=icmp,proto!=1,proto=58", "proto=icmp,proto!=1,proto=icmpv6"),
        ] {
            let expression: Expression = text.parse().expect(text);
            assert_eq!(expression.to_string(), printed);
            assert_eq!(printed.parse(), Ok(expression));
        }
    }

    #[test]
    fn bad_expressions_say_which_condition_and_what_is_allowed() {
        for (text, error) in [
            ("src", "'src': it has no '='; allowed: FIELD=VALUE or FIELD!=VALUE, as in dport=80"),
            ("proto=tcp,", "'': it has no '='; allowed: FIELD=VALUE or FIELD!=VALUE, as in dport=80"),
            ("src=web", "'src=web': 'web' is no address or prefix; allowed: as in 10.1.0.5 or 10.1.0.0/24"),
            ("dport=http", "'dport=http': 'http' is no range of L4 ports; allowed: as in 80 or 8000-8999"),
            (
                "dpotr=80",
                "'dpotr=80': there is no field 'dpotr', did you mean 'dport'?; allowed: src, dst, addr, sport, dport, \
                 proto, network, port, state, rule",
            ),
            ("network=", "'network=': '' is no name; allowed: the name of an object"),
        ] {
            assert_eq!(text.parse::<Expression>().map_err(|e| e.to_string()), Err(error.to_owned()));
        }
        assert!("state=open".parse::<Expression>().is_err_and(|e| e.to_string().contains("established")));
        assert!(vec!["port=a"; 33].join(",").parse::<Expression>().is_err());
    }

    #[test]
    fn a_condition_holds_for_either_form_and_a_turned_one_for_neither() {
        let tuples = [
            tuple("10.1.0.5", "192.0.2.7", (4000, 443), 6),
            tuple("203.0.113.2", "192.0.2.7", (50000, 443), 6),
        ];
        let facts = Facts {
            tuples: &tuples,
            networks: &["front", "outside"],
            ports: &["web"],
            state: Some(ConnectionState::Established),
            rule: None,
        };
        for (text, holds) in [
            ("", true),
            ("src=10.1.0.5", true),
            ("src=203.0.113.0/24", true),
            ("src!=203.0.113.0/24", false),
            ("dst=10.1.0.5", false),
            ("addr=10.1.0.5", true),
            ("sport=50000,dport=400-500", true),
            ("proto=tcp", true),
            ("proto=icmp", false),
            ("network=front,port=web,state=established", true),
            ("network=back", false),
            ("port!=web", false),
            ("rule=x", false),
            ("rule!=x", true),
            ("src=10.1.0.5,dport=80", false),
        ] {
            let expression: Expression = text.parse().expect(text);
            assert_eq!(expression.matches(&facts), holds, "{text}");
        }
    }
}
