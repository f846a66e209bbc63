//! Fragments: those behind the first go its way, those before it wait.

use packet::header::Fragment;
use packet::{Frame, PortId};

use crate::headers::Headers;
use crate::tables::{FragmentKey, Piece, Sighting};
use crate::{DropReason, Flow, Pipeline, Turn};

impl Pipeline {
    /// Finds out which datagram a fragment belongs to, and treats it like the first.
    pub(crate) fn fragment(&mut self, frame: Frame, headers: Headers, from: PortId, turn: &mut Turn<'_>) {
        let Some(port) = self.snapshot.port(from) else {
            return self.drop_frame(frame, from, DropReason::PortDown.into(), turn);
        };
        let tuple = headers.tuple;
        let key = FragmentKey {
            network: port.network,
            source: tuple.source,
            destination: tuple.destination,
            protocol: headers.protocol,
            id: headers.fragment_id,
        };
        let piece = Piece {
            offset: headers.fragment_offset,
            len: headers.end - u32::from(headers.l4),
            more: headers.more_fragments,
            ports: (headers.fragment == Fragment::First)
                .then_some((tuple.source_port, tuple.destination_port)),
        };
        match self.fragments.see(key, from, piece, turn.now) {
            Sighting::First { .. } => {
                self.walk_and_send(frame, Some(headers), &Flow::default(), from, turn);
                while let Some((waiting, from)) = self.fragments.release(key) {
                    self.counters().ledger.held.set(self.held_frames());
                    match Headers::of(waiting.bytes()) {
                        Ok(Some(headers)) => self.follow(
                            waiting,
                            headers,
                            (tuple.source_port, tuple.destination_port),
                            from,
                            turn,
                        ),
                        _ => self.drop_frame(waiting, from, DropReason::Malformed.into(), turn),
                    }
                }
            }
            Sighting::Follows(ports) => self.follow(frame, headers, ports, from, turn),
            Sighting::Hold => match self.fragments.hold(key, frame, from) {
                Ok(()) => self.counters().ledger.held.set(self.held_frames()),
                Err(frame) => self.drop_frame(frame, from, DropReason::Fragment.into(), turn),
            },
            Sighting::Drop(_) => self.drop_frame(frame, from, DropReason::Fragment.into(), turn),
        }
    }

    fn follow(
        &mut self,
        frame: Frame,
        mut headers: Headers,
        (source, destination): (u16, u16),
        from: PortId,
        turn: &mut Turn<'_>,
    ) {
        headers.tuple.source_port = source;
        headers.tuple.destination_port = destination;
        self.walk_and_send(frame, Some(headers), &Flow::default(), from, turn);
    }
}
