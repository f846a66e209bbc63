//! The fast path into tunnels: packs a frame whose decision was found, and queues it at the port of the underlay.
//!
//! A tunnel's port has no queue, so whoever has decided that a frame leaves by one finds that out when the queue refuses it,
//! and frames for other ports pay nothing for there being tunnels. The endpoint is that of the station or of the neighbour that
//! the decision names, now: it is no part of the decision, whose station's version or neighbour's word tells of moves.
//!
//! What takes more than writing a template before the frame is left to `pack.rs`: there is no template, no room before the
//! frame, the frame is to be cut, or the outer checksum needs an inner one that is not there yet.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use packet::{Frame, PortId, VtepId};

use super::encap::{Template, Templates};
use super::hash;
use super::pack::MAX_LEN;
use crate::flow_cache::routed::Names;
use crate::hit::Why;
use crate::snapshot::{Egress, OVERHEAD_V4, OVERHEAD_V6, Snapshot};
use crate::tables::{Counters, Tables};
use crate::{DropReason, Outputs, TagAction, Transform};

/// What packing needs to know, for a run of frames.
#[derive(Clone, Copy)]
pub(crate) struct Away<'a> {
    templates: &'a [Template],
    /// The words of neighbours, which templates are checked against.
    words: &'a [AtomicU64],
    /// The endpoints of neighbours, and of stations.
    vteps: [&'a [AtomicU16]; 2],
    egress: &'a [Egress],
    counters: &'a Counters,
    generation: u32,
}

impl<'a> Away<'a> {
    #[inline(always)]
    pub(crate) fn new(
        templates: &'a Templates,
        tables: &'a Tables,
        snapshot: &'a Snapshot,
        counters: &'a Counters,
    ) -> Self {
        let Tables { fdb, neighbors, .. } = tables;
        Self {
            templates: templates.all(),
            words: neighbors.words(),
            vteps: [neighbors.vteps(), fdb.vteps()],
            egress: snapshot.egress(),
            counters,
            generation: Templates::generation(snapshot, tables),
        }
    }

    /// Returns the endpoint of a decision, when its port is a tunnel.
    pub(crate) fn endpoint(&self, names: Names) -> Option<VtepId> {
        self.egress.get(names.to().index()).filter(|egress| egress.is_tunnel())?;
        self.vtep(names)
    }

    #[inline(always)]
    fn vtep(&self, names: Names) -> Option<VtepId> {
        let vteps = self.vteps[usize::from(names.is_bridged())];
        VtepId::new(vteps.get(names.next())?.load(Ordering::Relaxed))
    }

    /// Sends a frame that the queue of its port refused.
    ///
    /// PERF: not in the loop, which would have to keep in memory what it has in registers (benches/l2, benches/flows). Nor is what
    /// IPv6 and checksums need in here, for the same reason (benches/overlay).
    ///
    /// # Errors
    /// The frame, and what is left to the slow path.
    #[inline(never)]
    pub(crate) fn send(
        &self,
        mut frame: Frame,
        names: Names,
        outputs: &mut Outputs,
    ) -> Result<(), (Frame, Why)> {
        let tunnel = names.to();
        let Some(egress) = self.egress.get(tunnel.index()).filter(|egress| egress.is_tunnel()) else {
            return Err((frame, Why::Drop(tunnel, DropReason::TxFull)));
        };
        let Some(vtep) = self.vtep(names) else {
            return Err((frame, Why::Drop(tunnel, DropReason::NoVtep)));
        };
        let template = self.templates.get(vtep.index());
        let Some(template) = template.filter(|template| template.is_good(self.generation, self.words)) else {
            return Err((frame, left(tunnel, vtep)));
        };
        let len = frame.len();
        let packed = if template.is_simple() {
            pack::<OVERHEAD_V4>(&mut frame, template, egress)
        } else {
            pack_other(&mut frame, template, egress)
        };
        if packed.is_none() {
            return Err((frame, left(tunnel, vtep)));
        }
        let counters = self.counters.port(tunnel);
        counters.tx_frames.add(1);
        counters.tx_bytes.add(len as u64);
        let to = template.to;
        outputs.push(to, frame).map_err(|frame| (frame, Why::Drop(to, DropReason::TxFull)))
    }
}

fn left(tunnel: PortId, vtep: VtepId) -> Why {
    Why::Send(Transform { to: tunnel, tag: TagAction::Keep, vtep: Some(vtep) })
}

/// Puts `N` bytes of outer headers before a frame. `None`, and nothing changed, when it takes more.
#[inline(always)]
fn pack<const N: usize>(frame: &mut Frame, template: &Template, egress: &Egress) -> Option<()> {
    if frame.is_gso() || frame.len() + N - 14 > MAX_LEN {
        return None;
    }
    let summary = hash::summary(frame.bytes());
    frame.prepend(N)?;
    template.write::<N>(frame.bytes_mut(), summary, egress);
    Some(())
}

#[inline(never)]
fn pack_other(frame: &mut Frame, template: &Template, egress: &Egress) -> Option<()> {
    if template.has_checksum && !frame.is_complete() {
        return None;
    }
    match template.v6 {
        true => pack::<OVERHEAD_V6>(frame, template, egress)?,
        false => pack::<OVERHEAD_V4>(frame, template, egress)?,
    }
    if template.has_checksum {
        template.fill_checksum(frame.bytes_mut());
    }
    Some(())
}
