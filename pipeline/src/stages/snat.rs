//! SNAT: decides which source a connection leaves with.
//!
//! Only what has to is changed: towards the outside a port's floating IP, its egress address, or the uplink's own
//! address with a port of the shared range; towards a container that reaches itself by a published port, and from the host's
//! relay, the gateway's address. Everybody else is seen with the address he has.
//!
//! A source port is not taken here: the stage looks at what is free and says what it wants; whoever carries the
//! decision out takes it, and walks again when another worker was faster.

use packet::Address;
use packet::header::protocol;

use crate::drop_reason::DropReason;
use crate::snapshot::{DomainKind, Source};
use crate::tables::Pool;
use crate::tables::nat_ports::Inside;
use crate::walk::{LeavesAs, Lookup, Packet, Step, View, Walk};

/// The ports that a gateway's address lends.
const GATEWAY_PORTS: (u16, u16) = (1024, u16::MAX);

/// See the module header.
pub fn walk(_packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    let (true, Some(network)) = (walk.is_undecided(), walk.destination.network) else { return Step::Next };
    let tuple = walk.subject.tuple;
    walk.leaves_as = LeavesAs { address: tuple.source, port: tuple.source_port, wanted: None };
    let Some(source) = wanted(view, walk, network) else { return Step::Next };
    let pool = match source {
        Source::Floating(address) => {
            walk.note(|| format!("leaves as its floating IP {address}"));
            walk.leaves_as.address = address;
            return Step::Next;
        }
        Source::Masquerade(pool) => pool,
    };
    walk.leaves_as.address = pool.address;
    if let Lookup::Known { found, .. } = walk.connection
        && found.reply.tuple.destination == pool.address
    {
        // The port is the connection's, as long as the address is.
        walk.leaves_as.port = found.reply.tuple.destination_port;
        return Step::Next;
    }
    if !has_ports(tuple.protocol) {
        return Step::Next;
    }
    let inside = Inside { network: walk.subject.network, address: tuple.source, port: tuple.source_port };
    let to = (walk.destination.address, walk.destination.port);
    match view.tables.nat_ports.candidate(pool, &inside, tuple.protocol, to, walk.attempt) {
        Some(candidate) => {
            walk.leaves_as.port = candidate.port;
            walk.leaves_as.wanted = Some((pool, candidate));
            walk.note(|| format!("leaves as {} port {}", pool.address, candidate.port));
            Step::Next
        }
        None => {
            walk.note(|| format!("no port of {} is free", pool.address));
            Step::Drop(DropReason::SnatExhausted)
        }
    }
}

/// Says whether the protocol has ports, or identifiers in their place, that tell connections apart.
fn has_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP | protocol::ICMP | protocol::ICMPV6)
}

fn wanted(view: &View<'_>, walk: &Walk, to: packet::NetworkId) -> Option<Source> {
    let (snapshot, subject) = (view.snapshot, walk.subject);
    let (router, source) = (snapshot.router(), subject.tuple.source);
    match (snapshot.kind(subject.network), snapshot.kind(to)) {
        (DomainKind::Inside, DomainKind::Uplink) => {
            if let Some(own) = router.translations.source(subject.network, source) {
                return Some(own);
            }
            let domain = snapshot.domain(subject.network)?;
            if !domain.spec().masquerade {
                return None;
            }
            let (_, route) = snapshot.domain(to)?.lookup(walk.destination.address)?;
            let address = route.choose(&subject.tuple)?.source;
            (address != Address::UNSPECIFIED)
                .then(|| Source::Masquerade(router.translations.shared_pool(address)))
        }
        (DomainKind::Host, DomainKind::Inside) if router.spec().relay.contains(&source) => {
            gateway_pool(view, to, source)
        }
        (DomainKind::Inside, DomainKind::Inside)
            if walk.destination.translation.is_some()
                && subject.network == to
                && walk.destination.address == source =>
        {
            gateway_pool(view, to, source)
        }
        _ => None,
    }
}

/// Returns the pool of the gateway's address of the family of `like`.
fn gateway_pool(view: &View<'_>, network: packet::NetworkId, like: Address) -> Option<Source> {
    let gateway = view.snapshot.network(network)?.gateway.as_ref()?;
    let address = gateway.addresses.iter().map(|a| Address::from(*a)).find(|a| a.is_v4() == like.is_v4())?;
    let (first, last) = GATEWAY_PORTS;
    Some(Source::Masquerade(Pool { address, first, last }))
}
