//! Decap: says what came out of a tunnel, and why a packet of the overlay was not opened.
//!
//! Packets of the overlay are opened before the walk (`overlay/open.rs`), so that all stages, keys and caches see the inner one.
//! What still is packed when it gets here, and is to our own endpoint, cannot be opened. It is dropped under a reason that
//! says why; but for an identifier that is none of ours: on a device that is shared with the host it may be of a
//! tunnel of the host's.

use packet::Address;
use packet::header::protocol;

use crate::drop_reason::DropReason;
use crate::overlay::outer::{self, Fate};
use crate::rewrite;
use crate::snapshot::HandBack;
use crate::walk::{Decision, Effect, Packet, Step, View, Walk};

/// See the module header.
pub fn walk(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    if let Some(tunnel) = &view.port.tunnel {
        walk.note(|| match packet.vtep.and_then(|vtep| view.tables.vteps.get(vtep)) {
            Some(vtep) => format!("from {}, identifier {}", vtep.key.address, tunnel.vni.0),
            None => format!("from an endpoint that is not known yet, identifier {}", tunnel.vni.0),
        });
        return Step::Next;
    }
    let overlay = view.snapshot.overlay();
    if overlay.info.as_ref().is_none_or(|info| info.network != view.port.network) {
        return Step::Next;
    }
    match outer::fate_of(packet.bytes, view.snapshot, view.tables) {
        Fate::Drop(reason) => Step::Drop(reason),
        Fate::Foreign(outer) => {
            walk.note(|| format!("none of our networks has identifier {}", outer.vni.0));
            match view.port.hand_back {
                HandBack::Nowhere => Step::Drop(DropReason::UnknownVni),
                _ => walk.hand_back(view),
            }
        }
        // Its headers are good: its checksum was not.
        Fate::Open { .. } | Fate::Cut => Step::Drop(DropReason::VxlanMalformed),
        Fate::Learn { .. } => Step::Drop(DropReason::UnknownVtep),
        Fate::Other => unpacked(packet, view, walk),
    }
}

/// Fragments of packets to us, and errors about packets of ours, are the overlay's too.
fn unpacked(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    let overlay = view.snapshot.overlay();
    let Some(headers) = walk.headers else { return Step::Next };
    let is_ours = |address: Address, number: u8, udp_port: u16| {
        number == protocol::UDP && overlay.is_local(address) && overlay.listens_on(udp_port)
    };
    let tuple = headers.tuple;
    if headers.is_fragment() && is_ours(tuple.destination, tuple.protocol, tuple.destination_port) {
        walk.note(|| "a peer must not send fragments".to_owned());
        return Step::Drop(DropReason::Fragment);
    }
    if headers.is_icmp_error()
        && let Some(embedded) = rewrite::embedded(packet.bytes, &headers)
        && is_ours(embedded.tuple.source, embedded.tuple.protocol, embedded.tuple.destination_port)
    {
        let to = embedded.tuple.destination;
        walk.note(|| format!("an error about a packet of the overlay to {to}"));
        if let Some(mtu) = rewrite::next_hop_mtu(packet.bytes, &headers).filter(|mtu| *mtu < view.port.mtu) {
            walk.note(|| format!("the way takes {mtu} bytes"));
            walk.then(Effect::PathMtu { to, mtu });
        }
        walk.decision = Decision::Consume;
        return Step::Done;
    }
    Step::Next
}
