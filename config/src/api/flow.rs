//! What the switch tells about connections and packets on their way: traces, connections, routes, policies, addresses.

use std::net::IpAddr;
use std::str::FromStr;

use packet::MacAddr;
use serde::{Deserialize, Serialize};

use crate::document::Owner;
use crate::expression::Expression;
use crate::nat::{Egress, FloatingIp, Publish};
use crate::policy::{Action, Policy};
use crate::probe::Probe;
use crate::routing::{Route, Uplink};

/// Whether an object has effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectState {
    /// It has.
    Active,
    /// Something it needs is missing: it has as soon as that comes.
    #[default]
    Pending,
}

/// A route, and what the switch knows about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteView {
    /// What it is known by, as `front/10.9.0.0/16`.
    pub name: String,
    /// What is configured.
    pub config: Route,
    /// Who made it.
    pub owner: Owner,
    /// Whether it has effect.
    pub state: ObjectState,
    /// Why not, when it has none.
    #[serde(default)]
    pub reason: Option<String>,
}

/// A floating IP, and what the switch knows about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatingIpView {
    /// What it is known by: the address.
    pub name: String,
    /// What is configured.
    pub config: FloatingIp,
    /// Who made it.
    pub owner: Owner,
    /// Whether it has effect.
    pub state: ObjectState,
    /// Why not, when it has none.
    #[serde(default)]
    pub reason: Option<String>,
    /// The address that it stands for.
    #[serde(default)]
    pub inside: Option<IpAddr>,
}

/// A published port, and what the switch knows about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishView {
    /// What it is known by: its name, or where it listens.
    pub name: String,
    /// What is configured.
    pub config: Publish,
    /// Who made it.
    pub owner: Owner,
    /// Whether it has effect.
    pub state: ObjectState,
    /// Why not, when it has none.
    #[serde(default)]
    pub reason: Option<String>,
    /// The first L4 port that is listened on: chosen by chance when 0 is configured, and `None` until then.
    #[serde(default)]
    pub bound: Option<u16>,
    /// The addresses that it leads to, one a family.
    #[serde(default)]
    pub inside: Vec<IpAddr>,
}

/// Egress addresses, and what the switch knows about them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressView {
    /// What they are known by: the port.
    pub name: String,
    /// What is configured.
    pub config: Egress,
    /// Who made it.
    pub owner: Owner,
    /// Whether it has effect.
    pub state: ObjectState,
    /// Why not, when it has none.
    #[serde(default)]
    pub reason: Option<String>,
}

/// A policy, and what the switch knows about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    /// What it is known by: its name, given or made.
    pub name: String,
    /// What is configured.
    pub config: Policy,
    /// Who made it.
    pub owner: Owner,
    /// Whether it has effect.
    pub state: ObjectState,
    /// Why not, when it has none.
    #[serde(default)]
    pub reason: Option<String>,
    /// Names of the ports that `from` means now; none when it does not go by ports.
    #[serde(default)]
    pub from_ports: Vec<String>,
    /// Names of the ports that `to` means now; none when it does not go by ports.
    #[serde(default)]
    pub to_ports: Vec<String>,
    /// New connections that it decided; `None`: nobody counts them.
    #[serde(default)]
    pub hits: Option<u64>,
}

/// An assertion, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssertView {
    /// The port that opens the connection.
    pub from: String,
    /// Where it goes.
    pub to: String,
    /// What must become of it.
    pub expect: Action,
    /// What would become of it; `None` when it was not looked at.
    #[serde(default)]
    pub found: Option<Action>,
    /// What decides, as `policy front->mgmt`, or why it was not looked at.
    #[serde(default)]
    pub reason: String,
}

/// The uplink, and what the switch knows about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UplinkView {
    /// What is configured.
    pub config: Uplink,
    /// The devices that lead outside; none: the switch is an island.
    pub devices: Vec<UplinkDeviceView>,
}

/// A device that leads outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UplinkDeviceView {
    /// Its name.
    pub name: String,
    /// Frames move.
    pub up: bool,
    /// How packets get from it to the switch, as `steer, tcx`.
    pub mode: String,
    /// Why a better mode was not taken, or what is wrong, one sentence each.
    pub notes: Vec<String>,
    /// Its MAC, which all frames leave with.
    pub mac: Option<MacAddr>,
    /// Its MTU, in bytes.
    pub mtu: u16,
    /// The switch's addresses on it.
    pub addresses: Vec<IpAddr>,
    /// The next routers behind it.
    pub gateways: Vec<IpAddr>,
}

/// How the host and the networks reach one another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostView {
    /// The device that joins them.
    pub device: String,
    /// Frames move.
    pub up: bool,
    /// What is wrong, one sentence each.
    pub notes: Vec<String>,
    /// The host's own addresses.
    pub addresses: Vec<IpAddr>,
    /// Names of the networks that are joined.
    pub networks: Vec<String>,
    /// The way outside.
    pub uplink: UplinkView,
}

/// A packet to be followed through the stages, without any effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceRequest {
    /// The port that sends it.
    pub from: String,
    /// The packet, as `tcp 10.0.0.2:80`.
    pub packet: Probe,
}

/// The way of a packet through the stages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TraceReply {
    /// The port it comes in by.
    pub from: String,
    /// The packet, with what was left out: `tcp 10.2.0.5:22 syn from 10.1.0.10:40000`.
    pub packet: String,
    /// The stages that it walked, in order.
    pub steps: Vec<TraceStep>,
    /// What becomes of it.
    pub verdict: TraceVerdict,
    /// Name of the reason it was dropped for.
    pub reason: Option<String>,
    /// What decided that, as the name of a policy or published port.
    pub rule: Option<String>,
    /// The port it leaves by.
    pub to: Option<String>,
    /// What its addresses and L4 ports become, as `203.0.113.2:50000 > 192.0.2.7:443`.
    pub becomes: Option<String>,
    /// More about the verdict, as whom it waits for or how it is answered.
    pub note: Option<String>,
}

/// What one stage did with a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TraceStep {
    /// Name of the stage.
    pub stage: String,
    /// What it found and did, a sentence each; none when the packet did not concern it.
    pub notes: Vec<String>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceVerdict {
    /// It leaves by a port.
    Forward,
    /// A copy leaves by every other port of the network.
    Flood,
    /// The switch answers it.
    Answer,
    /// It waits for the station of its next hop.
    Hold,
    /// It goes to the host's own stack.
    HandBack,
    /// It ends here as meant.
    Consume,
    /// It ends.
    #[default]
    Drop,
    /// It ends, and its sender is told.
    Reject,
}

/// Which neighbours are meant; all that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NeighborQuery {
    /// Of this network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// This address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

/// Which connections are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionQuery {
    /// Those that it matches; empty: all.
    #[serde(rename = "match")]
    pub expression: Expression,
    /// At most so many, those with the most bytes first; `None`: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionView {
    /// Number of the protocol.
    pub protocol: u8,
    /// How far it is.
    pub state: ConnectionState,
    /// Its first packet as it came.
    pub original: TupleView,
    /// An answer as it comes: source and destination are those of the original turned around, unless they are
    /// translated.
    pub reply: TupleView,
    /// The port that opened it.
    #[serde(default)]
    pub from: Option<String>,
    /// The port it was opened to.
    #[serde(default)]
    pub to: Option<String>,
    /// What translates its destination, as `published 8080/tcp`.
    #[serde(default)]
    pub translation: Option<String>,
    /// Name of the policy that allows it.
    #[serde(default)]
    pub rule: Option<String>,
    /// What went from the opener.
    #[serde(default)]
    pub sent: Traffic,
    /// What came back.
    #[serde(default)]
    pub received: Traffic,
    /// Seconds since it was opened.
    #[serde(default)]
    pub age_seconds: u64,
    /// Seconds until it is forgotten if nothing comes.
    #[serde(default)]
    pub expires_seconds: u64,
}

/// What went one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Who is at both ends of a packet, in the network where it comes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TupleView {
    /// The network; `outside` and `host` are those that the switch makes.
    pub network: String,
    /// The source address.
    pub source: IpAddr,
    /// The source L4 port; of ICMP the identifier.
    #[serde(default)]
    pub source_port: u16,
    /// The destination address.
    pub destination: IpAddr,
    /// The destination L4 port; of ICMP the identifier.
    #[serde(default)]
    pub destination_port: u16,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionState {
    /// Not TCP: nothing has come back yet.
    Unreplied,
    /// Not TCP: there was traffic both ways.
    Replied,
    /// TCP: a SYN was sent.
    SynSent,
    /// TCP: both have sent a SYN.
    SynReceived,
    /// TCP: it began before we saw it, and nothing has come back yet.
    PickedUp,
    /// TCP: both have answered.
    Established,
    /// TCP: one side has sent its FIN.
    HalfClosed,
    /// TCP: both have sent their FIN.
    Closed,
    /// TCP: a RST was seen that may not be genuine.
    Doubted,
    /// TCP: a RST ended it.
    Reset,
}

impl ConnectionState {
    /// Every state.
    pub const ALL: [ConnectionState; 10] = [
        ConnectionState::Unreplied,
        ConnectionState::Replied,
        ConnectionState::SynSent,
        ConnectionState::SynReceived,
        ConnectionState::PickedUp,
        ConnectionState::Established,
        ConnectionState::HalfClosed,
        ConnectionState::Closed,
        ConnectionState::Doubted,
        ConnectionState::Reset,
    ];

    /// Returns the state as the API spells it.
    pub const fn name(self) -> &'static str {
        match self {
            ConnectionState::Unreplied => "unreplied",
            ConnectionState::Replied => "replied",
            ConnectionState::SynSent => "syn_sent",
            ConnectionState::SynReceived => "syn_received",
            ConnectionState::PickedUp => "picked_up",
            ConnectionState::Established => "established",
            ConnectionState::HalfClosed => "half_closed",
            ConnectionState::Closed => "closed",
            ConnectionState::Doubted => "doubted",
            ConnectionState::Reset => "reset",
        }
    }
}

impl FromStr for ConnectionState {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|state| state.name() == text).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_spelled_alike_everywhere() {
        for state in ConnectionState::ALL {
            assert_eq!(serde_json::to_value(state).expect("a word"), state.name());
            assert_eq!(state.name().parse(), Ok(state));
        }
    }

    #[test]
    fn a_query_has_its_expression_as_text() {
        let query: ConnectionQuery =
            serde_json::from_str(r#"{"match": "proto=tcp,dport=80"}"#).expect("good");
        assert_eq!(query.expression.conditions.len(), 2);
        assert_eq!(serde_json::to_string(&query).expect("good"), r#"{"match":"proto=tcp,dport=80"}"#);
        let request = r#"{"from":"web","packet":"tcp 10.0.0.2:80 syn"}"#;
        let read: TraceRequest = serde_json::from_str(request).expect("good");
        assert_eq!(serde_json::to_string(&read).expect("good"), request);
        let error =
            serde_json::from_str::<TraceRequest>(r#"{"from":"web","packet":"tcp web"}"#).expect_err("bad");
        assert!(error.to_string().contains("'web' is no destination"), "{error}");
    }
}
