//! Assertions: what would become of connections with a configuration that does not run yet.
//!
//! A snapshot is made of it on the side, with every port of it, attached or not, and a first packet is traced through
//! that. So an assertion is decided by the stages that would decide the connection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use config::api::AssertView;
use config::probe::{Probe, ProbeKind, TcpFlags};
use config::{Action, Assert, IcmpName, Peer, Port, Service};
use packet::{MacAddr, NetworkId, PortId};
use pipeline::trace::Verdict;
use pipeline::{DropReason, Snapshot};

use super::{probe, tracing};
use crate::compile::{Compiler, Member, made_mac};
use crate::intent::Intent;
use crate::manager::{Manager, plan_of};
use crate::plug;
use crate::refusal::Refusal;

/// Stations of a network that a packet is traced to.
const STATIONS_MAX: usize = 256;

impl Manager {
    /// Looks at what the file asserts, as it would be with `next`, which is valid.
    pub(in crate::manager) fn look_at_asserts(&self, next: &Intent) -> Vec<AssertView> {
        if next.settings.asserts.is_empty() {
            return Vec::new();
        }
        let mut free = (0..self.limits.networks).map(NetworkId);
        let used: BTreeSet<NetworkId> = self.networks.values().copied().collect();
        let mut networks: BTreeMap<String, NetworkId> = BTreeMap::new();
        for name in next.networks.keys() {
            let known = self.networks.get(name).copied();
            let Some(id) = known.or_else(|| free.find(|id| !used.contains(id))) else { break };
            networks.insert(name.clone(), id);
        }
        let mut free = (0..self.limits.ports).map(PortId);
        let used: BTreeSet<PortId> = self.ports.values().map(|attached| attached.id).collect();
        let mut members = Vec::new();
        for (name, owned) in &next.ports {
            let known = self.ports.get(name).map(|attached| attached.id);
            let Some(id) = known.or_else(|| free.find(|id| !used.contains(id))) else { break };
            let port = &owned.object;
            let Some(network) = next.networks.get(&port.network) else { continue };
            members.push(Member { id, port, mac: plug::far_mac(port, &network.object), up: true });
        }
        let plan = plan_of(next, &networks, members.clone(), &self.limits, &self.surroundings);
        let (snapshot, _) = Compiler::new().compile(&plan);
        let looked = next.settings.asserts.iter().map(|assert| {
            let found = self.look(assert, next, &members, &snapshot);
            let (found, reason) = match found {
                Ok((action, reason)) => (Some(action), reason),
                Err(reason) => (None, reason),
            };
            let (from, to) = (assert.from.clone(), assert.to.to_string());
            AssertView { from, to, expect: assert.expect, found, reason }
        });
        looked.collect()
    }

    /// Returns what would become of a connection, and what decides. Of several destinations, the first that is not as
    /// expected is told.
    fn look(
        &self,
        assert: &Assert,
        next: &Intent,
        members: &[Member<'_>],
        snapshot: &Snapshot,
    ) -> Result<(Action, String), String> {
        let Some(from) = members.iter().find(|member| member.port.name == assert.from) else {
            return Err(format!("there is no port '{}' yet", assert.from));
        };
        let mut last =
            Err(format!("'{}' has no address that '{}' could send to", assert.to.peer, assert.from));
        for to in self.addresses(&assert.to.peer, next)? {
            let Some(probe) = first_packet(assert.to.service, to) else { continue };
            let Some(probe) = tracing::with_source(probe, from.port) else { continue };
            let frame = probe::frame(&probe, from.mac, next_mac(members, from.port, to));
            let (action, reason) = judge(self.walk(snapshot, &frame, from.id).1);
            if action != assert.expect {
                return Ok((action, format!("{reason} ({probe})")));
            }
            last = Ok((action, reason));
        }
        last
    }

    /// Returns the addresses that a destination means.
    fn addresses(&self, peer: &Peer, next: &Intent) -> Result<Vec<IpAddr>, String> {
        let known = |text: &str| text.parse::<IpAddr>().expect("a constant");
        Ok(match peer {
            Peer::Cidr(net) => vec![net.addr()],
            Peer::Port(name) => match next.ports.get(name) {
                Some(port) => port.object.addresses.clone(),
                None => return Err(format!("there is no port '{name}' yet")),
            },
            Peer::Network(name) => {
                let ports = next.ports.values().map(|owned| &owned.object);
                let ports = ports.filter(|port| port.network == *name).take(STATIONS_MAX);
                let mut addresses: Vec<IpAddr> =
                    ports.flat_map(|port| port.addresses.iter().copied()).collect();
                let network = next.networks.get(name).map(|owned| &owned.object);
                for subnet in network.into_iter().flat_map(|network| &network.subnets) {
                    // And one that is nobody's yet.
                    let last = match subnet.broadcast() {
                        IpAddr::V4(last) => IpAddr::V4((u32::from(last) - 1).into()),
                        last @ IpAddr::V6(_) => last,
                    };
                    addresses.push(last);
                }
                addresses
            }
            Peer::Host => {
                let own = self.surroundings.addresses.iter().copied();
                own.filter(|address| !address.is_loopback()).collect()
            }
            // Of the ranges for documentation: nobody's (RFC 5737, RFC 3849).
            Peer::Outside => vec![known("198.51.100.1"), known("2001:db8::1")],
            Peer::Any | Peer::Label(_) => Vec::new(),
        })
    }
}

/// Returns the MAC that a station behind `port` sends to.
fn next_mac(members: &[Member<'_>], port: &Port, to: IpAddr) -> MacAddr {
    let neighbor = members.iter().find(|m| m.port.network == port.network && m.port.addresses.contains(&to));
    neighbor.map_or_else(|| made_mac("gateway", &port.network), |member| member.mac)
}

/// Returns the packet that opens a connection for `service`; `None` when it is of the other family.
fn first_packet(service: Service, to: IpAddr) -> Option<Probe> {
    let echo = if to.is_ipv4() { IcmpName::EchoRequest.v4() } else { IcmpName::EchoRequest.v6() };
    let what = match service {
        Service::L4 { protocol, ports } => {
            ProbeKind::L4 { protocol, from: None, to: ports.first, flags: TcpFlags::SYN }
        }
        Service::Icmp(None) => ProbeKind::Icmp(echo),
        Service::Icmp(Some(name)) => ProbeKind::Icmp(if to.is_ipv4() { name.v4() } else { name.v6() }),
        Service::IcmpV4(kind) if to.is_ipv4() => ProbeKind::Icmp(kind),
        Service::IcmpV6(kind) if to.is_ipv6() => ProbeKind::Icmp(kind.unwrap_or(echo)),
        Service::IcmpV4(_) | Service::IcmpV6(_) | Service::Any => return None,
        Service::Protocol(number) => ProbeKind::Other(number),
    };
    Some(Probe { what, to, from: None, ttl: 64, len: None, df: false })
}

/// Returns what a verdict means for who opens the connection, and what decided.
fn judge(verdict: Verdict) -> (Action, String) {
    match verdict {
        Verdict::Drop { reason, because, told } => {
            let by = match because {
                Some(rule) => format!("policy {rule}"),
                None if reason == DropReason::Policy => "no policy allows it".to_owned(),
                None => reason.help().trim().to_owned(),
            };
            (if told.is_some() { Action::Reject } else { Action::Deny }, by)
        }
        _ => (Action::Allow, "nothing forbids it".to_owned()),
    }
}

/// Refuses a change after which an assertion would not hold.
pub(in crate::manager) fn hold(asserts: &[AssertView]) -> Result<(), Refusal> {
    let broken: Vec<String> = asserts
        .iter()
        .filter_map(|assert| {
            let found = assert.found.filter(|found| *found != assert.expect)?;
            let AssertView { from, to, expect, reason, .. } = assert;
            Some(format!("assert {from}->{to}: expected {expect}, found {found}: {reason}"))
        })
        .collect();
    match broken.as_slice() {
        [] => Ok(()),
        [one] => Err(Refusal::conflict(one.clone())),
        more => {
            Err(Refusal::conflict(format!("{} assertions would not hold", more.len())).with_details(broken))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(expect: Action, found: Option<Action>) -> AssertView {
        AssertView { from: "web".into(), to: "mgmt:22/tcp".into(), expect, found, reason: "policy x".into() }
    }

    #[test]
    fn only_what_was_looked_at_and_is_not_so_is_refused() {
        let (good, unknown) = (view(Action::Deny, Some(Action::Deny)), view(Action::Deny, None));
        assert_eq!(hold(&[good.clone(), unknown]), Ok(()));
        let bad = view(Action::Deny, Some(Action::Allow));
        let refused = hold(&[good, bad.clone()]).expect_err("one is not so");
        assert_eq!(refused.message, "assert web->mgmt:22/tcp: expected deny, found allow: policy x");
        assert_eq!(hold(&[bad.clone(), bad]).expect_err("two are not").details.len(), 2);
    }
}
