//! Learn: notes which port the source is behind.
//!
//! A source that is fixed behind another port, or behind another endpoint of a tunnel, is an impostor. One that is known here only has to be told alive
//! now and then; anything else is to be learned. The stations outside and the host are not: nothing is bridged to them.
//! A packet for the router from a port's one fixed MAC, which `guard` has looked at, says nothing new either.

use crate::drop_reason::DropReason;
use crate::snapshot::DomainKind;
use crate::tables::{StationKey, StationKind};
use crate::walk::{Effect, Packet, Step, View, Walk};

/// See the module header.
pub fn walk(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    if view.snapshot.kind(walk.network) != DomainKind::Inside {
        return Step::Next;
    }
    let is_own = view.port.guard.mac == Some(packet.source());
    // PERF: a new connection takes no lock of the FDB, which all connections of a station would take.
    if is_own && view.snapshot.router_mac(packet.from) == Some(packet.destination()) {
        return Step::Next;
    }
    let key = StationKey { network: walk.network, vlan: walk.vlan, mac: packet.source() };
    if let Some(found) = view.tables.fdb.find(key)
        && found.kind == StationKind::Fixed
    {
        if (found.port, found.vtep) != (packet.from, packet.vtep) {
            let is_tunnel = view.port.tunnel.is_some();
            return Step::Drop(if is_tunnel { DropReason::VtepSpoof } else { DropReason::Spoof });
        }
        walk.source = Some(found.station);
        return Step::Next;
    }
    walk.then(Effect::Learn(key));
    Step::Next
}
