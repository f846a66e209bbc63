//! The fast path into tunnels: packs a frame whose decision was found, and queues it at the port of the underlay.
//!
//! A tunnel's port has no queue, so whoever has decided that a frame leaves by one finds that out when the queue refuses it,
//! and frames for other ports pay nothing for there being tunnels. The endpoint is that of the station or of the neighbour that
//! the decision names, now: it is no part of the decision, whose station's version or neighbour's word tells of moves.
//!
//! What takes more than writing a template before the frame is left to `pack.rs`: there is no template, no room before the
//! frame, the frame is to be cut, or the outer checksum needs an inner one that is not there yet.

use std::sync::atomic::Ordering;

use packet::{Frame, PortId, VtepId};

use super::encap::{self, Templates};
use super::pack::MAX_LEN;
use crate::flow_cache::routed::Names;
use crate::hit::Why;
use crate::snapshot::{Egress, Snapshot};
use crate::tables::{Counters, Tables};
use crate::{DropReason, Outputs, TagAction, Transform};

/// What packing needs to know, for a run of frames.
#[derive(Clone, Copy)]
pub(crate) struct Away<'a> {
    templates: &'a Templates,
    tables: &'a Tables,
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
        let generation = Templates::generation(snapshot, tables);
        Self { templates, tables, egress: snapshot.egress(), counters, generation }
    }

    /// Says whether a port is a tunnel.
    #[inline(always)]
    pub(crate) fn is_tunnel(&self, port: PortId) -> bool {
        self.egress.get(port.index()).is_some_and(Egress::is_tunnel)
    }

    /// Returns the endpoint of a station or neighbour behind a tunnel.
    #[inline(always)]
    pub(crate) fn endpoint(&self, names: Names) -> Option<VtepId> {
        let Tables { fdb, neighbors, .. } = self.tables;
        let vteps = if names.is_bridged() { fdb.vteps() } else { neighbors.vteps() };
        VtepId::new(vteps.get(names.next())?.load(Ordering::Relaxed))
    }

    /// Sends a frame that the queue of its port refused.
    ///
    /// PERF: not in the loop, which would have to keep in memory what it has in registers (benches/l2, benches/flows).
    ///
    /// # Errors
    /// The frame, and what is left to the slow path.
    #[inline(never)]
    pub(crate) fn send(&self, frame: Frame, names: Names, outputs: &mut Outputs) -> Result<(), (Frame, Why)> {
        let to = names.to();
        if !self.is_tunnel(to) {
            return Err((frame, Why::Drop(to, DropReason::TxFull)));
        }
        match self.endpoint(names) {
            Some(vtep) => self.pack(frame, to, vtep, outputs),
            None => Err((frame, Why::Drop(to, DropReason::NoVtep))),
        }
    }

    #[inline(always)]
    fn pack(
        &self,
        mut frame: Frame,
        tunnel: PortId,
        vtep: VtepId,
        outputs: &mut Outputs,
    ) -> Result<(), (Frame, Why)> {
        let Some(to) = self.write(&mut frame, tunnel, vtep) else {
            let transform = Transform { to: tunnel, tag: TagAction::Keep, vtep: Some(vtep) };
            return Err((frame, Why::Send(transform)));
        };
        outputs.push(to, frame).map_err(|frame| (frame, Why::Drop(to, DropReason::TxFull)))
    }

    /// Writes the outer headers and returns the port of the underlay; `None`, and nothing changed, when it takes more.
    #[inline(always)]
    fn write(&self, frame: &mut Frame, tunnel: PortId, vtep: VtepId) -> Option<PortId> {
        let template = self.templates.find(vtep.get(), self.generation, self.tables)?;
        let egress = self.egress.get(tunnel.index())?;
        let len = frame.len();
        let is_simple = !frame.is_gso() && (frame.is_complete() || !template.has_checksum);
        if !is_simple || len + template.len() - 14 > MAX_LEN {
            return None;
        }
        let summary = encap::summary(frame.bytes());
        frame.prepend(template.len())?;
        template.write(frame.bytes_mut(), summary, egress);
        if template.has_checksum {
            template.fill_checksum(frame.bytes_mut());
        }
        let counters = self.counters.port(tunnel);
        counters.tx_frames.add(1);
        counters.tx_bytes.add(len as u64);
        Some(template.to)
    }
}
