//! Connection: finds the connection that a packet belongs to.
//!
//! The reception desk: who is expected is let through to where he was going before; a newcomer is announced. A packet
//! that is routed, or bridged in a tracked network, is looked up by its addresses and ports in the network that
//! it is in. What was decided about its connection holds until the configuration changes; then the next stages decide about
//! the connection's *first* packet once more, whichever packet came.
//!
//! A packet that comes from a tunnel, and that the router of another host has sent there, is in the network of its source, and
//! is tracked: its answer is routed here, and belongs to the same connection.
//!
//! An ICMP error belongs to the connection of the packet that it quotes (RFC 5508, REQ-4). A TCP segment that
//! begins nothing is let in only where nothing has to be translated (see `snat`).

use packet::{Address, MacAddr, NetworkId};

use crate::drop_reason::DropReason;
use crate::rewrite;
use crate::snapshot::DomainKind;
use crate::tables::connections::{Direction, Found, Key};
use crate::walk::{Decision, Lookup, Packet, Step, Subject, View, Walk};

/// See the module header.
pub fn walk(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    let Some(headers) = walk.headers else { return Step::Next };
    let origin = origin(packet, view, walk, headers.tuple.source);
    if !walk.routed && origin.is_none() && !is_tracked(view, walk) {
        return Step::Next;
    }
    let network = origin.unwrap_or(walk.network);
    if headers.is_of_link() {
        if walk.routed {
            walk.decision = Decision::Consume;
            return Step::Done;
        }
        return Step::Next;
    }
    if headers.is_icmp_error() {
        return related(packet, view, walk, network);
    }
    let key = Key { network, tuple: headers.tuple };
    let found = view.tables.connections.find(&key).filter(|found| walk.ended != Some(found.id));
    match found {
        Some(found) => {
            walk.note(|| describe(&found));
            known(packet, view, walk, found);
        }
        None => {
            walk.note(|| "no connection yet".to_owned());
            walk.connection = Lookup::New;
            walk.subject = Subject { network, from: packet.from, tuple: headers.tuple };
        }
    }
    Step::Next
}

/// Returns the network that a packet was in before the router of another host sent it through the tunnel.
fn origin(packet: &Packet<'_>, view: &View<'_>, walk: &Walk, source: Address) -> Option<NetworkId> {
    if view.port.tunnel.is_none() || !matches!(walk.decision, Decision::Forward { .. }) {
        return None;
    }
    let own = view.router_mac();
    let was_routed = own != MacAddr::ZERO && packet.source().0[..2] == own.0[..2];
    view.snapshot.router().network_of(source).filter(|network| was_routed && *network != walk.network)
}

fn is_tracked(view: &View<'_>, walk: &Walk) -> bool {
    matches!(walk.decision, Decision::Forward { .. })
        && view.network.domain.as_ref().is_some_and(|domain| domain.spec().tracked)
}

fn known(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk, found: Found) {
    let Found { original, owner, details, .. } = found;
    let (from, to) = match found.direction {
        Direction::Original => (packet.from, details.peer_port),
        Direction::Reply => (owner, packet.from),
    };
    // A port that the packets come by now and did not before is a change too.
    let holds = details.checked == view.snapshot.generation_between(from, to)
        && (found.direction == Direction::Reply || packet.from == owner);
    walk.subject = Subject { network: original.network, from: owner, tuple: original.tuple };
    walk.connection = Lookup::Known { found, holds };
}

fn related(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk, network: NetworkId) -> Step {
    let headers = walk.headers.as_ref();
    let embedded = headers.and_then(|headers| rewrite::embedded(packet.bytes, headers));
    let found = embedded.and_then(|embedded| {
        // The quoted packet left into this network; its answers would look like this.
        let key = Key { network, tuple: embedded.tuple.inverted() };
        Some((view.tables.connections.find(&key)?, embedded))
    });
    match found {
        Some((found, embedded)) => {
            walk.note(|| format!("an error about: {}", describe(&found)));
            // What it quotes went the other way.
            let direction = found.direction.opposite();
            walk.connection = Lookup::Related { found: Found { direction, ..found }, embedded };
            Step::Next
        }
        None if view.snapshot.kind(walk.network) == DomainKind::Uplink => walk.hand_back(view),
        None => Step::Drop(DropReason::InvalidState),
    }
}

fn describe(found: &Found) -> String {
    let Found { original, reply, state, direction, .. } = found;
    format!("{state:?} connection {}, answered as {}; {direction:?}", original.tuple, reply.tuple)
}
