//! Policy: decides who may begin a connection with whom.
//!
//! Rules name networks, groups and addresses; the first that matches, by priority, decides. Where none does: stations of
//! one network reach each other; networks reach the outside and the host; what comes in was either published or
//! is refused; and networks reach one another only by a rule. Answers belong to their connection and need
//! no rule.

use std::sync::Arc;

use packet::header::{icmp4, icmp6, protocol};

use crate::answer::Problem;
use crate::drop_reason::DropReason;
use crate::policy::{Action, Identity, Question};
use crate::snapshot::DomainKind;
use crate::walk::{Lookup, Packet, Step, View, Walk};

/// See the module header.
pub fn walk(_packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    let (true, Some(network)) = (walk.is_undecided(), walk.destination.network) else { return Step::Next };
    let (snapshot, subject, destination) = (view.snapshot, walk.subject, walk.destination);
    let from_kind = snapshot.kind(subject.network);
    let from = if snapshot.is_tunnel(subject.from) {
        snapshot.identity(subject.network, subject.tuple.source)
    } else if from_kind == DomainKind::Inside {
        Identity::port(subject.from)
    } else {
        Identity::network(subject.network)
    };
    let question = Question {
        from,
        to: snapshot.identity(network, destination.address),
        tuple: packet::Tuple {
            destination: destination.address,
            destination_port: destination.port,
            ..subject.tuple
        },
        icmp: icmp(walk),
    };
    let policy = &snapshot.router().policy;
    let Some(n) = policy.decide(&question) else {
        let allowed = by_default(from_kind, snapshot.kind(network))
            || subject.network == network
            || destination.translation.is_some();
        walk.note(|| {
            let verdict = if allowed { "allowed" } else { "denied" };
            format!("no rule matches: {verdict} by default")
        });
        return if allowed { Step::Next } else { deny(walk) };
    };
    let rule = policy.rule(n);
    walk.rule = Some(n);
    walk.note(|| format!("rule '{}': {:?}", rule.name, rule.action));
    if rule.action != Action::Allow {
        walk.because = Some(Arc::clone(&rule.name));
    }
    match rule.action {
        Action::Allow => Step::Next,
        Action::Deny => deny(walk),
        Action::Reject => walk.refuse(view, DropReason::Policy, Problem::AdminProhibited),
    }
}

/// Returns type and code of the subject: of a connection that is looked at again, those of its question.
fn icmp(walk: &Walk) -> Option<(u8, u8)> {
    let headers = walk.headers?;
    match (walk.connection, headers.protocol) {
        (Lookup::Known { .. }, protocol::ICMP) => Some((icmp4::ECHO_REQUEST, 0)),
        (Lookup::Known { .. }, protocol::ICMPV6) => Some((icmp6::ECHO_REQUEST, 0)),
        _ => headers.icmp,
    }
}

fn deny(walk: &mut Walk) -> Step {
    walk.end_known();
    Step::Drop(DropReason::Policy)
}

/// Says whether connections between two kinds of network are allowed where no rule decides.
fn by_default(from: DomainKind, to: DomainKind) -> bool {
    use DomainKind::{Host, Inside, Uplink};
    matches!((from, to), (Inside, Uplink | Host) | (Host, Inside | Uplink))
}
