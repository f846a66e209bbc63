//! Packs what goes to other hosts.
//!
//! What a frame's device left undone stays undone: a checksum that is to be finished is finished by the port of the underlay,
//! and a large frame is cut by it, inside its tunnel, or by the device behind it. Only a frame that cannot be described so
//! is cut here: one that is in a tunnel already, or that outer headers would make too long.

use packet::checksum;
use packet::header::UdpHeader;
use packet::segment::{self, Finish, SegmentError};
use packet::{Checksum, Frame, FramePool, Gso, PortId, Tunnel, VtepId};

use super::encap::{L4_V4, L4_V6, NoWay, Template};
use super::hash;
use crate::flow_cache::Transform;
use crate::snapshot::{Egress, OVERHEAD_V4, OVERHEAD_V6};
use crate::tables::Ask;
use crate::{DropReason, Pipeline, Turn};

/// The most bytes that an IP packet with outer headers has.
pub(super) const MAX_LEN: usize = u16::MAX as usize;

impl Pipeline {
    /// Sends a frame into a tunnel: to one endpoint, or a copy to each of the network.
    pub(crate) fn send_tunnel(&mut self, frame: Frame, transform: Transform, turn: &mut Turn<'_>) {
        let Transform { to, vtep, .. } = transform;
        if let Some(vtep) = vtep {
            return self.pack(frame, to, vtep, turn);
        }
        let mut vteps = std::mem::take(&mut self.vteps);
        if let Some(port) = self.snapshot.port(to) {
            let room = vteps.capacity();
            self.tables.vteps.for_each_of(port.network, |vtep| {
                if vteps.len() < room {
                    vteps.push(vtep);
                }
            });
        }
        let last = vteps.pop();
        for vtep in vteps.drain(..) {
            self.counters().ledger.created.add(1);
            match turn.pool.copy(&frame) {
                Some(copy) => self.pack(copy, to, vtep, turn),
                // It counts as made and lost, at the port it was for.
                None => self.counters().drop(to, DropReason::NoMemory),
            }
        }
        self.vteps = vteps;
        match last {
            Some(vtep) => self.pack(frame, to, vtep, turn),
            None => self.drop_frame(frame, to, DropReason::NoListener.into(), turn),
        }
    }

    /// Packs a frame for an endpoint and queues it, or keeps it while the way is looked for.
    pub(crate) fn pack(&mut self, frame: Frame, tunnel: PortId, vtep: VtepId, turn: &mut Turn<'_>) {
        let egress = self.snapshot.egress().get(tunnel.index()).copied().unwrap_or_default();
        let (template, adjacency) = match self.templates.get(vtep, &self.snapshot, &self.tables) {
            Ok(found) => found,
            Err(NoWay::Neighbor(neighbor)) => {
                let transform = Transform { to: tunnel, vtep: Some(vtep), ..Transform::default() };
                return self.hold_packed(frame, neighbor, transform, turn);
            }
            Err(no_way) => {
                return self.drop_frame(frame, tunnel, DropReason::from(no_way).into(), turn);
            }
        };
        self.tables.neighbors.mark_used(adjacency);
        let in_tunnel = frame.gso().is_some_and(|gso| gso.tunnel.is_some());
        if frame.is_gso() && (in_tunnel || frame.len() + template.len() - 14 > MAX_LEN) {
            return self.cut_and_pack(frame, tunnel, vtep, turn);
        }
        let frame = match packed(frame, &template, &egress, turn.pool) {
            Ok(frame) => frame,
            Err(frame) => return self.drop_frame(frame, tunnel, DropReason::NoMemory.into(), turn),
        };
        let inner_len = (frame.len() - template.len()) as u64;
        match turn.outputs.push(template.to, frame) {
            Ok(()) => {
                let counters = self.counters().port(tunnel);
                counters.tx_frames.add(1);
                counters.tx_bytes.add(inner_len);
                self.counters().ledger.forwarded.add(1);
            }
            Err(frame) => self.drop_frame(frame, template.to, DropReason::TxFull.into(), turn),
        }
    }

    /// Cuts a large frame and packs each of its packets.
    fn cut_and_pack(&mut self, frame: Frame, tunnel: PortId, vtep: VtepId, turn: &mut Turn<'_>) {
        let mut pieces = self.cut_large(frame, tunnel, DropReason::Malformed, turn);
        for piece in pieces.drain(..) {
            self.pack(piece, tunnel, vtep, turn);
        }
        self.segments = pieces;
    }

    /// Cuts a large frame, and counts it at a port if that fails. The list returned is to be put back, empty.
    pub(super) fn cut_large(
        &mut self,
        frame: Frame,
        at: PortId,
        malformed: DropReason,
        turn: &mut Turn<'_>,
    ) -> Vec<Frame> {
        let mut pieces = std::mem::take(&mut self.segments);
        // When it fails, its chunk is back in the pool.
        match segment::segment(frame, turn.pool, Finish::Now, |piece| pieces.push(piece)) {
            Ok(count) => {
                self.counters().ledger.created.add(count as u64);
                self.counters().ledger.consumed.add(1);
            }
            Err(SegmentError::NoMemory) => self.counters().drop(at, DropReason::NoMemory),
            Err(_) => self.counters().drop(at, malformed),
        }
        pieces
    }

    /// Keeps a frame until the next hop to its endpoint is known, and has that asked for.
    fn hold_packed(
        &mut self,
        frame: Frame,
        neighbor: crate::tables::NeighborKey,
        transform: Transform,
        turn: &mut Turn<'_>,
    ) {
        let ask = self.tables.neighbors.resolve(neighbor, turn.now);
        if let Ok((_, Ask::Now)) = ask {
            self.ask_for(neighbor, None, turn);
        }
        let kept = match ask {
            Ok((_, Ask::Now | Ask::Wait | Ask::Known)) => {
                self.held.push(neighbor, frame, transform.to, Some(transform), turn.now)
            }
            _ => Err(frame),
        };
        match kept {
            Ok(()) => self.counters().ledger.held.set(self.held_frames()),
            Err(frame) => self.drop_frame(frame, transform.to, DropReason::Unresolved.into(), turn),
        }
    }
}

impl From<NoWay> for DropReason {
    fn from(no_way: NoWay) -> Self {
        match no_way {
            NoWay::Endpoint => DropReason::NoVtep,
            NoWay::Route => DropReason::NoRoute,
            NoWay::Neighbor(_) => DropReason::Unresolved,
            NoWay::Port => DropReason::PortDown,
        }
    }
}

/// Puts the outer headers before a frame, in another chunk when this one has no room.
///
/// # Errors
/// The frame as it was, when there is no chunk, or it would be too long.
fn packed(
    mut frame: Frame,
    template: &Template,
    egress: &Egress,
    pool: &mut FramePool,
) -> Result<Frame, Frame> {
    let len = template.len();
    if frame.len() + len - 14 > MAX_LEN {
        return Err(frame);
    }
    if frame.headroom() < len {
        let Some(copy) = pool.copy(&frame) else { return Err(frame) };
        pool.free(std::mem::replace(&mut frame, copy));
    }
    let summary = hash::summary(frame.bytes());
    let inner = frame.checksum();
    if template.has_checksum && inner == Checksum::Unknown {
        checksum::resolve(&mut frame);
    }
    if frame.prepend(len).is_none() {
        return Err(frame);
    }
    match template.v6 {
        true => template.write::<OVERHEAD_V6>(frame.bytes_mut(), summary, egress),
        false => template.write::<OVERHEAD_V4>(frame.bytes_mut(), summary, egress),
    }
    let l4 = if template.v6 { L4_V6 } else { L4_V4 };
    if let Some(gso) = frame.gso() {
        #[expect(clippy::cast_possible_truncation, reason = "34 to 84")]
        let tunnel = Tunnel {
            outer_l4: l4 as u16,
            inner_l3: (len + 14) as u16,
            outer_checksum: template.has_checksum,
        };
        frame.set_gso(Some(Gso { tunnel: Some(tunnel), ..gso }));
    }
    if template.has_checksum {
        fill_checksum(&mut frame, l4);
    }
    Ok(frame)
}

/// Fills the outer UDP checksum in. A large frame gets the sum of the pseudo header, which its segments' checksums are made
/// from. Of a packet whose checksum its device is to finish, it is known what that will add up to.
fn fill_checksum(frame: &mut Frame, l4: usize) {
    let is_gso = frame.is_gso();
    let partial = match frame.checksum() {
        Checksum::Partial { start, offset } if offset != checksum::SCTP_CHECKSUM_AT => {
            Some((usize::from(start), usize::from(offset)))
        }
        Checksum::Partial { .. } => {
            // Nobody knows what SCTP's CRC will add up to.
            let _ = checksum::complete(frame);
            None
        }
        _ => None,
    };
    let bytes = frame.bytes_mut();
    let Ok(layout) = packet::header::Layout::of(bytes) else { return };
    let Some(pseudo) = checksum::pseudo(bytes, &layout) else { return };
    let at = l4 + usize::from(UdpHeader::CHECKSUM_AT);
    let value = match partial {
        _ if is_gso => pseudo.fold(),
        Some((start, offset)) => {
            let Some(field) = bytes.get(start + offset..start + offset + 2) else { return };
            let field = u16::from_be_bytes([field[0], field[1]]);
            // Finished, the bytes from `start` on add up to the complement of what the field holds now.
            pseudo.bytes(&bytes[l4..start]).u16(!field).udp_checksum()
        }
        None => pseudo.bytes(&bytes[l4..layout.end as usize]).udp_checksum(),
    };
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
