//! Encap: finds the way to the endpoint that a packet goes to.
//!
//! The outer headers themselves are written when the packet is sent (`overlay/pack.rs`); here is decided whether there is a
//! way at all. A next hop of the underlay that nobody has heard of yet is no obstacle: the packet waits for it, packed or
//! not.

use crate::DropReason;
use crate::overlay::encap::{self, NoWay};
use crate::walk::{Decision, Packet, Step, View, Walk};

/// See the module header.
pub fn walk(_packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    let (to, vtep) = match walk.decision {
        Decision::Forward { transform, .. } => (transform.to, transform.vtep),
        Decision::Route { target, .. } => (target.port, target.vtep),
        _ => return Step::Next,
    };
    let Some(tunnel) = view.snapshot.port(to).and_then(|port| port.tunnel) else { return Step::Next };
    let Some(vtep) = vtep else { return Step::Drop(DropReason::NoVtep) };
    match encap::way(vtep, view.snapshot, view.tables) {
        Ok(way) => walk.note(|| {
            let vni = tunnel.vni.0;
            format!("identifier {vni} from {} to {} by {}, port {}", way.local, way.remote, way.via, way.to.0)
        }),
        Err(NoWay::Neighbor(next)) => walk.note(|| format!("next hop {} is to be asked for", next.address)),
        Err(no_way) => return Step::Drop(no_way.into()),
    }
    Step::Next
}
