//! Opens what comes from other hosts.
//!
//! Before the keys of a batch are made (`known.rs`), frames from the underlay's ports that are the overlay's lose their outer
//! headers, and came by the tunnel's port from then on. What cannot be opened so, or must not, goes its way as it is: the
//! slow path, here, learns endpoints and cuts what arrived as one, and the stage `decap` says why the rest dies.

use packet::{Frame, PortId, VtepId};

use super::outer::{self, Fate, Outer};
use crate::parse::Flow;
use crate::{DropReason, Pipeline, Turn};

impl Pipeline {
    /// Opens a frame that the first pass left as it was, and has what is in it decided. Returns a frame that is not to be
    /// opened.
    pub(crate) fn open_late(&mut self, frame: Frame, from: PortId, turn: &mut Turn<'_>) -> Option<Frame> {
        match outer::fate(&frame, &self.snapshot, &self.tables) {
            Fate::Open { to, vtep, outer, tos } => self.enter(frame, (to, vtep), &outer, tos, turn),
            Fate::Learn { to, limit, outer, tos } => {
                let network = self.snapshot.port(to).map(|port| port.network);
                let learned = network
                    .and_then(|network| self.tables.vteps.learn(network, outer.source, limit, turn.now));
                match learned {
                    Some(vtep) => self.enter(frame, (to, vtep), &outer, tos, turn),
                    None => self.drop_frame(frame, from, DropReason::UnknownVtep.into(), turn),
                }
            }
            Fate::Cut => self.cut_and_open(frame, from, turn),
            Fate::Foreign(_) | Fate::Drop(_) | Fate::Other => return Some(frame),
        }
        None
    }

    fn enter(
        &mut self,
        mut frame: Frame,
        (to, vtep): (PortId, VtepId),
        outer: &Outer,
        tos: Option<u8>,
        turn: &mut Turn<'_>,
    ) {
        outer::strip(&mut frame, outer, tos, vtep);
        let counters = self.counters().port(to);
        counters.rx_frames.add(1);
        counters.rx_bytes.add(frame.len() as u64);
        self.miss(frame, &Flow::default(), to, turn);
    }

    /// Cuts a frame into the datagrams that arrived as one, and opens each.
    fn cut_and_open(&mut self, frame: Frame, from: PortId, turn: &mut Turn<'_>) {
        let mut pieces = self.cut_large(frame, from, DropReason::VxlanMalformed, turn);
        for piece in pieces.drain(..) {
            if let Some(piece) = self.open_late(piece, from, turn) {
                self.miss(piece, &Flow::default(), from, turn);
            }
        }
        self.segments = pieces;
    }
}
