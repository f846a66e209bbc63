//! Neighbour: finds who the packet is handed to, and which MAC that is.
//!
//! A packet that is only bridged already knows. Otherwise the routes of the network that it leaves in name the next
//! hop; of several, the connection's addresses choose one, so that a connection stays with it, and so do
//! the others when one goes. A next hop that nobody has heard of is asked for, and the
//! packet waits.

use packet::Address;

use crate::answer::Problem;
use crate::drop_reason::DropReason;
use crate::flow_cache::TagAction;
use crate::tables::NeighborKey;
use crate::walk::{Decision, Packet, Step, View, Walk};

/// See the module header.
pub fn walk(_packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    let (true, Some(headers)) = (walk.is_tracked(), walk.headers) else { return Step::Next };
    let untouched = walk.becomes == headers.tuple && walk.leaves_in == walk.network;
    if !walk.routed && untouched && !headers.is_icmp_error() {
        return Step::Next;
    }
    let destination = walk.becomes.destination;
    let domain = view.snapshot.domain(walk.leaves_in);
    let route = domain.and_then(|domain| domain.lookup(destination)).map(|(_, route)| route);
    let Some(hop) = route.and_then(|route| route.choose(&walk.becomes)) else {
        walk.note(|| "no way to there".to_owned());
        return walk.refuse(view, DropReason::NoRoute, Problem::HostUnreachable);
    };
    let via = if hop.via == Address::UNSPECIFIED { destination } else { hop.via };
    let key = NeighborKey { network: walk.leaves_in, port: hop.port, address: via };
    match view.tables.neighbors.find(key) {
        Some((adjacency, Some(target))) => {
            walk.note(|| format!("next hop {via} is {} at port {}", target.mac, target.port.0));
            walk.decision = Decision::Route { adjacency, target, tag: TagAction::Keep, cut_to: None };
        }
        _ => {
            walk.note(|| format!("next hop {via} is to be asked for"));
            walk.decision = Decision::Hold(key);
            return Step::Done;
        }
    }
    Step::Next
}
