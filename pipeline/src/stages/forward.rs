//! Forward: says what the packet becomes, and in which network it leaves.
//!
//! A connection has two faces, one in the network of either side. A packet that comes with one leaves with the
//! other, turned around; all of NAT is the difference between them. Here what the stages before decided about a connection's
//! first packet is compared with what holds for it so far: if it is no longer the same, the connection ends,
//! and a packet of its original direction walks again and begins a new one.

use packet::Tuple;
use packet::header::{protocol, tcp_flags};

use crate::drop_reason::DropReason;
use crate::snapshot::DomainKind;
use crate::tables::connections::{Direction, Found, Key};
use crate::walk::{Lookup, Packet, Step, View, Walk};

/// See the module header.
pub fn walk(_packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    match walk.connection {
        Lookup::Untracked => Step::Next,
        Lookup::New => {
            if let Some(step) = refuse_start(view, walk) {
                return step;
            }
            let reply = reply_key(walk);
            become_other(walk, reply);
            Step::Next
        }
        Lookup::Known { found, holds } => {
            if !holds && !is_same(&found, walk) {
                walk.ended = Some(found.id);
                walk.note(|| "the connection's translation has changed: it ends".to_owned());
                if found.direction == Direction::Reply {
                    return Step::Drop(DropReason::InvalidState);
                }
                return Step::Again;
            }
            become_other(walk, found.key(found.direction.opposite()));
            Step::Next
        }
        Lookup::Related { found, .. } => {
            // The error goes back to whoever sent what it quotes.
            let sender = found.key(found.direction);
            walk.leaves_in = sender.network;
            walk.becomes = sender.tuple.inverted();
            Step::Next
        }
    }
}

/// A TCP segment that is no SYN may go on with a connection that was open before the switch started, if nothing
/// of it is translated: nobody could know to what.
fn refuse_start(view: &View<'_>, walk: &mut Walk) -> Option<Step> {
    let headers = walk.headers?;
    if headers.protocol != protocol::TCP
        || headers.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
    {
        return None;
    }
    let reply = reply_key(walk);
    let plain = reply.tuple == walk.subject.tuple.inverted();
    if plain && headers.tcp_flags & (tcp_flags::RST | tcp_flags::SYN) == 0 {
        return None;
    }
    if view.snapshot.kind(walk.network) == DomainKind::Uplink {
        // It may be of a connection of the host's own that was open before.
        return Some(walk.hand_back(view));
    }
    walk.note(|| "a segment of no connection".to_owned());
    Some(Step::Drop(DropReason::InvalidState))
}

/// Returns how answers to the subject look.
pub fn reply_key(walk: &Walk) -> Key {
    let (subject, destination, leaves) = (walk.subject, walk.destination, walk.leaves_as);
    let is_icmp = matches!(subject.tuple.protocol, protocol::ICMP | protocol::ICMPV6);
    let tuple = Tuple {
        source: destination.address,
        destination: leaves.address,
        // Both ports of an ICMP query are its identifier.
        source_port: if is_icmp { leaves.port } else { destination.port },
        destination_port: leaves.port,
        protocol: subject.tuple.protocol,
    };
    Key { network: destination.network.unwrap_or(subject.network), tuple }
}

fn become_other(walk: &mut Walk, other: Key) {
    walk.leaves_in = other.network;
    walk.becomes = other.tuple.inverted();
}

fn is_same(found: &Found, walk: &Walk) -> bool {
    reply_key(walk) == found.reply
}
