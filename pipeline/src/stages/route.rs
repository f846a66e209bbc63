//! Route: finds the network that a packet goes to.
//!
//! A network's own routes come first. Then the host's addresses, the subnets of other networks, and at last the
//! uplink, for what is nobody's. What comes in from the uplink and is for nobody here is the host's own affair and
//! goes back to its stack; what comes from there to a network that does not hide behind the host's
//! addresses, or from behind a router to whom it does not hide, is routed like the rest.
//!
//! The gateway's own address answers echo requests. A packet whose time to live ends here is reported to its sender.

use packet::Address;
use packet::header::{icmp4, icmp6, protocol};

use crate::answer::Problem;
use crate::drop_reason::DropReason;
use crate::snapshot::{Domain, DomainKind, Route};
use crate::walk::{Answer, Decision, Packet, Step, View, Walk};

/// See the module header.
pub fn walk(_packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    let Some(headers) = walk.headers else { return Step::Next };
    if walk.routed && walk.is_tracked() && headers.ttl <= 1 && !is_for_us(view, walk) {
        walk.note(|| "its time to live ends here".to_owned());
        return walk.refuse(view, DropReason::Ttl, Problem::TimeExceeded);
    }
    if !walk.is_undecided() {
        return Step::Next;
    }
    if walk.routed && is_link_local(walk.subject.tuple.source) && !comes_from_host(view, walk) {
        walk.note(|| "a link-local source means nothing beyond its link".to_owned());
        return Step::Drop(DropReason::NoRoute);
    }
    if walk.destination.network.is_some() {
        return Step::Next;
    }
    find(view, walk)
}

/// Says whether the address is good on one link only (RFC 3927, 2.7; RFC 4291, 2.5.6).
fn is_link_local(address: Address) -> bool {
    match address.ip() {
        std::net::IpAddr::V4(v4) => v4.is_link_local(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The host's relay sends from a link-local address, and what comes from outside may be the host's own affair.
fn comes_from_host(view: &View<'_>, walk: &Walk) -> bool {
    view.snapshot.kind(walk.subject.network) != DomainKind::Inside
}

/// Says whether the packet ends here, so that its time to live does not matter.
fn is_for_us(view: &View<'_>, walk: &Walk) -> bool {
    let address = walk.destination.address;
    walk.is_undecided()
        && walk.destination.translation.is_none()
        && (view.snapshot.kind(walk.network) == DomainKind::Uplink
            || view
                .snapshot
                .domain(walk.network)
                .and_then(|domain| domain.lookup(address))
                .is_some_and(|(_, route)| *route == Route::Local))
}

fn find(view: &View<'_>, walk: &mut Walk) -> Step {
    let (from, address) = (walk.subject.network, walk.destination.address);
    let Some(domain) = view.snapshot.domain(from) else { return no_route(view, walk) };
    let (spec, router) = (domain.spec(), view.snapshot.router());
    // What comes from outside does not go out again; but the switch may have addresses there.
    let goes_on = |route: &Route| spec.kind != DomainKind::Uplink || *route == Route::Local;
    let own = domain.lookup(address).filter(|(_, route)| goes_on(route));
    if let Some((prefix, route)) = own {
        walk.note(|| format!("{prefix}: {route:?}"));
        return match route {
            Route::Hops(_) => to(walk, from),
            Route::Local => local(view, walk),
            Route::Blackhole => Step::Drop(DropReason::Blackhole),
            Route::Unreachable => no_route(view, walk),
            Route::Prohibit => walk.refuse(view, DropReason::NoRoute, Problem::AdminProhibited),
        };
    }
    let host = router.spec().host.filter(|host| *host != from);
    if spec.kind == DomainKind::Inside && view.snapshot.is_host_address(&address.ip()) {
        return match host.filter(|_| spec.host && !spec.internal) {
            Some(host) => to(walk, host),
            None => no_route(view, walk),
        };
    }
    if let Some(network) = router.network_of(address)
        && network != from
        && view.snapshot.domain(network).is_some_and(|there| match spec.kind {
            DomainKind::Inside => true,
            DomainKind::Host => there.spec().host && !there.spec().internal,
            DomainKind::Uplink => {
                !there.spec().internal && (!there.spec().masquerade || is_behind_router(domain, walk))
            }
        })
    {
        return to(walk, network);
    }
    match spec.kind {
        DomainKind::Uplink => {
            walk.end_known();
            walk.hand_back(view)
        }
        DomainKind::Inside if !spec.internal => match router.spec().uplink {
            Some(uplink) => to(walk, uplink),
            None => no_route(view, walk),
        },
        _ => no_route(view, walk),
    }
}

/// Says whether a packet from outside comes from behind a router that all networks send to with their own addresses: the
/// way back is a next hop without an address to masquerade as.
fn is_behind_router(domain: &Domain, walk: &Walk) -> bool {
    let back = domain.lookup(walk.subject.tuple.source).map(|(_, route)| route);
    let hop = back.and_then(|route| route.choose(&walk.subject.tuple));
    hop.is_some_and(|hop| hop.via != Address::UNSPECIFIED && hop.source == Address::UNSPECIFIED)
}

/// The address is the gateway's own.
fn local(view: &View<'_>, walk: &mut Walk) -> Step {
    let Some(headers) = walk.headers else { return Step::Next };
    walk.end_known();
    let is_ping = match headers.icmp {
        Some((kind, _)) if headers.v6 => kind == icmp6::ECHO_REQUEST,
        Some((kind, _)) => kind == icmp4::ECHO_REQUEST,
        None => false,
    };
    if is_ping {
        walk.decision = Decision::Answer(Answer::Echo(view.router_mac()));
        return Step::Done;
    }
    if matches!(headers.protocol, protocol::ICMP | protocol::ICMPV6) {
        walk.decision = Decision::Consume;
        return Step::Done;
    }
    walk.refuse(view, DropReason::NoRoute, Problem::PortUnreachable)
}

fn to(walk: &mut Walk, network: packet::NetworkId) -> Step {
    walk.note(|| format!("leads into network {}", network.0));
    walk.destination.network = Some(network);
    Step::Next
}

fn no_route(view: &View<'_>, walk: &mut Walk) -> Step {
    walk.note(|| "no route".to_owned());
    walk.refuse(view, DropReason::NoRoute, Problem::NetUnreachable)
}
