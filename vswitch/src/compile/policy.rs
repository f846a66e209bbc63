//! Policies: names, labels and prefixes become the numbers of ports and networks.

use std::sync::Arc;

use config::{Action, Object, Peer, Policy, Service};
use pipeline::policy::{Action as Verdict, Identity, Peer as Side, Rule, Service as Traffic};

use super::{Plan, routing};

/// Returns the rules of all policies. One that names a port or network which is not there yet matches nobody on
/// that side until it comes.
pub(super) fn rules(plan: &Plan<'_>) -> Vec<Rule> {
    plan.policies.iter().map(|policy| rule(plan, policy)).collect()
}

fn rule(plan: &Plan<'_>, policy: &Policy) -> Rule {
    let (action, services) = policy.action();
    Rule {
        name: Arc::from(policy.name()),
        priority: u32::from(policy.priority),
        from: side(plan, &policy.from),
        to: side(plan, &policy.to),
        services: services.iter().flat_map(|service| traffic(*service)).collect(),
        action: match action {
            Action::Allow => Verdict::Allow,
            Action::Deny => Verdict::Deny,
            Action::Reject => Verdict::Reject,
        },
        log: policy.log,
        both_ways: policy.both_ways,
    }
}

/// Returns who is meant by one side of a policy.
pub(super) fn side(plan: &Plan<'_>, peer: &Peer) -> Side {
    let ports = |wanted: &dyn Fn(&config::Port) -> bool| {
        let members = plan.members.iter().filter(|member| wanted(member.port));
        members.map(|member| Identity::port(member.id)).collect::<Vec<_>>()
    };
    match peer {
        Peer::Any => Side::Any,
        Peer::Host => Side::Identities(vec![Identity::network(plan.host())]),
        Peer::Outside => Side::Identities(vec![Identity::network(plan.uplink())]),
        Peer::Network(name) => {
            let mut identities = ports(&|port| port.network == *name);
            identities.extend(plan.network(name).map(|(id, _)| Identity::network(id)));
            Side::Identities(identities)
        }
        Peer::Port(name) => Side::Identities(ports(&|port| port.name == *name)),
        Peer::Label(selector) => Side::Identities(ports(&|port| Peer::selects(selector, &port.labels))),
        Peer::Cidr(net) => Side::Prefixes(routing::prefix(*net).into_iter().collect()),
    }
}

fn traffic(service: Service) -> Vec<Traffic> {
    const ICMP: u8 = 1;
    const ICMPV6: u8 = 58;
    let icmp = |v6: bool, kind: Option<config::IcmpType>| Traffic::Icmp {
        v6,
        kind: kind.map(|kind| kind.kind),
        code: kind.and_then(|kind| kind.code),
    };
    match service {
        Service::Any => vec![Traffic::Any],
        Service::L4 { protocol, ports } => {
            vec![Traffic::Ports { protocol: protocol.number(), first: ports.first, last: ports.last }]
        }
        Service::Icmp(None) => vec![Traffic::Protocol(ICMP), Traffic::Protocol(ICMPV6)],
        Service::Icmp(Some(name)) => vec![icmp(false, Some(name.v4())), icmp(true, Some(name.v6()))],
        Service::IcmpV4(kind) => vec![icmp(false, Some(kind))],
        Service::IcmpV6(kind) => vec![icmp(true, kind)],
        Service::Protocol(number) => vec![Traffic::Protocol(number)],
    }
}
