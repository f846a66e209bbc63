//! Output: fits the frame to the port that it leaves by.
//!
//! The port must be up, must carry the VLAN, and its MTU must take the packet. The VLAN tag becomes what the
//! output port wants: how the frame came is compared with how it has to leave. Flooded frames are fitted copy by
//! copy, by [`fit`]. What is too long for a port is dropped by a bridge, but for a tunnel: there the sender is told.

use packet::VlanId;

use crate::answer::Problem;
use crate::drop_reason::DropReason;
use crate::flow_cache::TagAction;
use crate::headers::Headers;
use crate::snapshot::PortInfo;
use crate::tables::{Adjacency, Target};
use crate::walk::{Answer, Decision, Packet, Shape, Step, View, Walk};

/// See the module header.
pub fn walk(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    if let Decision::Route { adjacency, target, .. } = walk.decision {
        return route(packet, view, walk, adjacency, target);
    }
    if let Decision::Forward { transform, .. } = &mut walk.decision {
        let Some(port) = view.snapshot.port(transform.to) else { return Step::Drop(DropReason::PortDown) };
        match fit(packet.shape(), port, walk.vlan) {
            Ok(tag) => transform.tag = tag,
            Err(DropReason::Mtu) if port.tunnel.is_some() => return tell(packet, view, walk, port.mtu),
            Err(reason) => return Step::Drop(reason),
        }
    }
    Step::Next
}

/// A tunnel may take less than the link that a station believes to be on: its packets are refused as if there were a router
/// between the two, the gateway, or in a network without one the other station.
fn tell(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk, mtu: u32) -> Step {
    // Nobody has read them yet when it is only bridged.
    if walk.headers.is_none() {
        walk.headers = Headers::of(packet.bytes).ok().flatten();
    }
    let Some(headers) = walk.headers else { return Step::Drop(DropReason::Mtu) };
    walk.note(|| format!("longer than the {mtu} bytes that the way to the other host takes"));
    let problem = Problem::TooBig { mtu };
    if view.snapshot.own_address(view.port.network, headers.v6).is_some() {
        return walk.refuse(view, DropReason::Mtu, problem);
    }
    let answer = Answer::Problem { problem, from: headers.tuple.destination, mac: packet.destination() };
    walk.decision = Decision::Refuse(DropReason::Mtu, answer);
    Step::Done
}

/// A routed packet that is too long is cut where that is allowed, else its sender is told how long it may be
/// (RFC 1191, RFC 8201).
fn route(
    packet: &Packet<'_>,
    view: &View<'_>,
    walk: &mut Walk,
    adjacency: Adjacency,
    target: Target,
) -> Step {
    let (Some(port), Some(headers)) = (view.snapshot.port(target.port).filter(|port| port.up), walk.headers)
    else {
        return Step::Drop(DropReason::PortDown);
    };
    // A station is in the VLAN of its port's untagged frames, or its own.
    let tagged = port.vlan.untagged().is_none();
    if tagged {
        return Step::Drop(DropReason::Vlan);
    }
    let too_long = packet.shape().packet_len > port.mtu as usize;
    if too_long && (headers.v6 || headers.dont_fragment || packet.is_large) {
        let mtu = port.mtu;
        walk.note(|| format!("longer than the {mtu} bytes of port {}", target.port.0));
        return walk.refuse(view, DropReason::Mtu, Problem::TooBig { mtu });
    }
    let cut_to = too_long.then_some(port.mtu);
    walk.decision = Decision::Route { adjacency, target, tag: TagAction::Keep, cut_to };
    walk.note(|| format!("leaves by port {}", target.port.0));
    Step::Next
}

/// Returns what has to happen to the tag of a frame in `vlan` that leaves by `port`.
///
/// # Errors
/// Why it cannot leave there.
pub fn fit(shape: Shape, port: &PortInfo, vlan: VlanId) -> Result<TagAction, DropReason> {
    if !port.up {
        return Err(DropReason::PortDown);
    }
    let tagged = port.vlan.egress_tag(vlan).ok_or(DropReason::Vlan)?;
    if shape.packet_len > port.mtu as usize {
        return Err(DropReason::Mtu);
    }
    Ok(tag_action(shape.tag, tagged))
}

fn tag_action(tag: Option<VlanId>, wanted: bool) -> TagAction {
    match (tag, wanted) {
        (None, false) => TagAction::Keep,
        (None, true) => TagAction::Push,
        (Some(_), false) => TagAction::Pop,
        (Some(VlanId::UNTAGGED), true) => TagAction::Set,
        (Some(_), true) => TagAction::Keep,
    }
}
