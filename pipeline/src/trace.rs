//! Traces: what the stages say about a packet that nobody sends.
//!
//! [`trace`] walks the very stages that a worker's packets walk, over the same tables and the same snapshot, and
//! leaves out the effects: nothing is learned, no connection is made, no port taken. So what it says is what
//! would happen to the packet now.

use std::sync::Arc;

use packet::header::Fragment;
use packet::{Instant, MacAddr, PortId, Tuple, VtepId};

use crate::headers::Headers;
use crate::overlay::outer::{self, Fate};
use crate::parse;
use crate::snapshot::Snapshot;
use crate::tables::Tables;
use crate::walk::{Answer, Decision, Packet, Step, View, Walk};
use crate::{DropReason, walk_stages};

/// A stage that a packet passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceStep {
    /// The stage.
    pub stage: &'static str,
    /// What it found and did, a sentence each. Empty when the packet did not concern it.
    pub notes: Vec<String>,
}

/// The stages that a packet passed, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// One a stage.
    pub steps: Vec<TraceStep>,
}

impl Trace {
    pub(crate) fn enter(&mut self, stage: &'static str) {
        self.steps.push(TraceStep { stage, notes: Vec::new() });
    }

    pub(crate) fn note(&mut self, text: String) {
        if let Some(step) = self.steps.last_mut() {
            step.notes.push(text);
        }
    }
}

/// What would become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It leaves by a port.
    Forward {
        /// The port.
        to: PortId,
        /// What its addresses and ports become; `None` for a packet that is only bridged.
        becomes: Option<Tuple>,
        /// The MAC that it goes to; `None` for a packet that is only bridged.
        mac: Option<MacAddr>,
    },
    /// A copy leaves by every other port of the network.
    Flood,
    /// The switch answers it itself.
    Answer(Answer),
    /// It waits until somebody says who has this address.
    Hold(packet::Address),
    /// It goes to the host's own stack.
    HandBack,
    /// It ends here as meant.
    Consume,
    /// It dies.
    Drop {
        /// Why.
        reason: DropReason,
        /// The rule or published port that says so.
        because: Option<Arc<str>>,
        /// What its sender is told, if anything.
        told: Option<Answer>,
    },
}

/// Says what would become of the frame `bytes` if it came in by port `from` now, and why.
pub fn trace(
    snapshot: &Snapshot,
    tables: &Tables,
    bytes: &[u8],
    from: PortId,
    now: Instant,
) -> (Trace, Verdict) {
    let dead = |reason| Verdict::Drop { reason, because: None, told: None };
    let opened = open(snapshot, tables, bytes, from);
    let (bytes, from, vtep) = match &opened {
        Some((inner, tunnel, vtep)) => (&inner[..], *tunnel, *vtep),
        None => (bytes, from, None),
    };
    let Some(view) = View::of(snapshot, tables, from, now) else {
        return (Trace::default(), dead(DropReason::PortDown));
    };
    let packet = Packet { bytes, from, wire_len: bytes.len(), is_large: false, vtep };
    if bytes.len() < 14 || packet.is_tagged() && bytes.len() < 18 {
        return (Trace::default(), dead(DropReason::Malformed));
    }
    let headers = if parse::concerns(bytes, &snapshot.ingress(from)) { Headers::of(bytes) } else { Ok(None) };
    let Ok(headers) = headers else { return (Trace::default(), dead(DropReason::Malformed)) };
    if headers.is_some_and(|headers| headers.fragment == Fragment::Later) {
        // What its first fragment was is not in it.
        return (Trace::default(), dead(DropReason::Fragment));
    }
    let mut ended = None;
    loop {
        let mut walk = Walk { ended, ..Walk::new(view.port.network, headers) }.traced();
        let step = walk_stages(&packet, &view, &mut walk);
        let trace = walk.take_trace().unwrap_or_default();
        match step {
            Step::Again => ended = walk.ended,
            Step::Drop(reason) => {
                return (trace, Verdict::Drop { reason, because: walk.because, told: None });
            }
            Step::Next | Step::Done => return (trace, verdict(walk)),
        }
    }
}

/// Returns what is in a packet of the overlay, and the tunnel and endpoint that it comes from. A new endpoint is not
/// learned.
fn open(
    snapshot: &Snapshot,
    tables: &Tables,
    bytes: &[u8],
    from: PortId,
) -> Option<(Vec<u8>, PortId, Option<VtepId>)> {
    if !snapshot.ingress(from).is_underlay {
        return None;
    }
    let (to, vtep, outer, tos) = match outer::fate_of(bytes, snapshot, tables) {
        Fate::Open { to, vtep, outer, tos } => (to, Some(vtep), outer, tos),
        Fate::Learn { to, outer, tos, .. } => (to, None, outer, tos),
        _ => return None,
    };
    let mut inner = bytes.get(usize::from(outer.inner)..outer.end as usize)?.to_vec();
    if let Some(tos) = tos {
        packet::ecn::set_tos(&mut inner, tos);
    }
    Some((inner, to, vtep))
}

fn verdict(walk: Walk) -> Verdict {
    let becomes = walk.is_tracked().then_some(walk.becomes);
    match walk.decision {
        Decision::Forward { transform, .. } => Verdict::Forward { to: transform.to, becomes, mac: None },
        Decision::Route { target, .. } => {
            Verdict::Forward { to: target.port, becomes, mac: Some(target.mac) }
        }
        Decision::Flood => Verdict::Flood,
        Decision::Answer(answer) => Verdict::Answer(answer),
        Decision::Hold(neighbor) => Verdict::Hold(neighbor.address),
        Decision::HandBack => Verdict::HandBack,
        Decision::Consume | Decision::Seek(_) => Verdict::Consume,
        Decision::Refuse(reason, answer) => {
            Verdict::Drop { reason, because: walk.because, told: Some(answer) }
        }
        Decision::Pending => Verdict::Drop { reason: DropReason::NoRoute, because: None, told: None },
    }
}
