//! DNAT: finds out where a packet really goes.
//!
//! Published ports and floating IPs stand for others (see [`Translations`](crate::Translations)), in whichever network
//! they are asked for: outside, on the host, by a neighbour, by the container itself. The gateway's own address stands for
//! the host's services. What an internal network sends is never translated: it leaves the network by no way.

use std::sync::Arc;

use packet::header::protocol;

use crate::drop_reason::DropReason;
use crate::snapshot::{DomainKind, Route};
use crate::walk::{Destination, Lookup, Packet, Step, View, Walk};

/// See the module header.
pub fn walk(_packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    if !walk.is_undecided() {
        return Step::Next;
    }
    let subject = walk.subject;
    let (address, port) = (subject.tuple.destination, subject.tuple.destination_port);
    walk.destination = Destination { network: None, address, port, translation: None };
    if !walk.routed && subject.network == walk.network && is_on_link(view, walk) {
        walk.destination.network = Some(subject.network);
        return Step::Next;
    }
    let Some(domain) = view.snapshot.domain(subject.network) else { return Step::Next };
    if domain.spec().internal {
        return Step::Next;
    }
    let router = view.snapshot.router();
    let is_host = view.snapshot.is_host_address(&address.ip());
    if let Some((n, translation)) = router.translations.find(address, subject.tuple.protocol, port, is_host) {
        if !translation.admits(subject.tuple.source) {
            walk.note(|| format!("{} does not admit {}", translation.name, subject.tuple.source));
            walk.because = Some(Arc::clone(&translation.name));
            return Step::Drop(DropReason::Policy);
        }
        let port = translation.port_for(port);
        walk.note(|| format!("{} leads to {} port {port}", translation.name, translation.to));
        walk.destination = Destination {
            network: Some(translation.network),
            address: translation.to,
            port,
            translation: Some(n),
        };
        return Step::Next;
    }
    // The gateway's address is none of the host's, and those that the switch has outside are not the gateway's.
    let is_gateway = domain.spec().kind == DomainKind::Inside
        && !is_host
        && domain.lookup(address).is_some_and(|(_, route)| *route == Route::Local);
    let is_ping = matches!(subject.tuple.protocol, protocol::ICMP | protocol::ICMPV6);
    let service = router.spec().host_service.iter().find(|host| host.is_v4() == address.is_v4());
    if let (true, false, true, Some(host), Some(service)) =
        (is_gateway, is_ping, domain.spec().host, router.spec().host, service)
    {
        walk.note(|| format!("the gateway's address stands for the host's {service}"));
        let translation = Some(GATEWAY);
        walk.destination = Destination { network: Some(host), address: *service, port, translation };
    }
    Step::Next
}

/// The translation that every gateway has: to the host. No entry of the table has its number.
pub const GATEWAY: u32 = u32::MAX - 1;

fn is_on_link(view: &View<'_>, walk: &Walk) -> bool {
    // Asked again for a connection whose answer came bridged: the way of its first packet counts, and that was routed
    // when it was translated.
    match walk.connection {
        Lookup::Known { found, .. } => {
            found.original.tuple == found.reply.tuple.inverted()
                && found.original.network == found.reply.network
        }
        _ => view.snapshot.kind(walk.subject.network) == DomainKind::Inside,
    }
}
