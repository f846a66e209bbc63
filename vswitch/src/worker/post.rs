//! What a worker does besides receiving and transmitting: its mail, frames to and from other workers, its end.
//!
//! Handing over and taking over are part of a turn, and allocate nothing. The rest runs between two turns, where
//! allocation and system calls are allowed but kept rare.

use std::sync::Arc;

use packet::{Batch, FramePool, FrameQueue, Instant, PortId};
use pipeline::DropReason;
use pipeline::tables::Counters;

use super::capture::{Capture, Direction};
use super::mail::{self, Event, Message};
use super::{CAPTURES, NOWHERE, Worker};

/// A message is taken only while this many events fit: no message causes more, but for a port's queues.
const EVENT_ROOM: usize = 64;

impl Worker {
    /// Takes mail and the newest snapshot, in the order that [`super::mail`] explains.
    #[inline]
    pub fn between_turns(&mut self) {
        let newest = self.published.generation();
        if self.mailbox.is_empty() && newest == self.generation {
            return;
        }
        let published = Arc::clone(&self.published);
        let adopted = mail::catch_up(
            newest,
            || self.take_mail(),
            || published.load(),
            |snapshot| snapshot.generation(),
        );
        if let Some(snapshot) = adopted.filter(|_| newest != self.generation) {
            self.generation = newest;
            self.shared.figures.generation.set(newest);
            // The manager keeps every snapshot until nobody else does, so this only lowers a count.
            drop(self.pipeline.adopt(snapshot));
        }
    }

    /// Obeys what is in the mailbox while there is room for replies; says whether that was all.
    fn take_mail(&mut self) -> bool {
        while self.events.slots() >= EVENT_ROOM {
            let Ok(message) = self.mailbox.pop() else { return true };
            self.obey(message);
        }
        false
    }

    fn obey(&mut self, message: Message) {
        match message {
            Message::AddPort { id, queue, port, frames } => {
                if let Some(frames) = frames {
                    self.outputs.insert(id, frames);
                    self.owners[id.index()] = u16::try_from(self.id).unwrap_or(NOWHERE);
                }
                if let Err(port) = self.slots.add(id, queue, *port) {
                    self.tell(Event::Refused { id, port });
                }
            }
            Message::AddRemote { id, worker, frames } => {
                self.outputs.insert(id, frames);
                self.owners[id.index()] = u16::try_from(worker).unwrap_or(NOWHERE);
            }
            Message::RemovePort { id } => self.remove_port(id),
            Message::Inject { id, bytes } => self.inject(id, &bytes),
            Message::Report { id } => {
                for n in 0..self.slots.capacity() {
                    let stats = self.slots.get(n).filter(|slot| slot.id == id).map(|slot| slot.port.stats());
                    if let Some(stats) = stats {
                        self.tell(Event::Stats { id, stats });
                    }
                }
                self.tell(Event::Reported { id });
            }
            Message::AddCapture(capture) => {
                if self.captures.len() < CAPTURES {
                    self.captures.push(*capture);
                }
            }
            Message::RemoveCapture(number) => self.captures.retain(|capture| capture.number != number),
            Message::SetPoll { poll, budget } => {
                self.poll = poll;
                self.budget = budget.clamp(1, Batch::CAPACITY);
            }
            Message::SetDropLog(log) => drop(self.pipeline.set_drop_log(Some(log))),
            Message::Stop => self.stopping = true,
        }
    }

    fn remove_port(&mut self, id: PortId) {
        if let Some(mut queue) = self.outputs.remove(id) {
            let counters = self.tables.counters(self.id);
            drop_all(&mut queue, id, DropReason::PortDown, &mut self.pool, counters);
        }
        self.owners[id.index()] = NOWHERE;
        while let Some(slot) = self.slots.remove(id) {
            self.tell(Event::Removed { id, port: Some(Box::new(slot.port)) });
        }
        self.tell(Event::Removed { id, port: None });
    }

    fn inject(&mut self, id: PortId, bytes: &[u8]) {
        let counters = self.tables.counters(self.id);
        let Some(queue) = self.outputs.queue(id) else { return };
        let Some(frame) = self.pool.alloc_from(bytes) else { return };
        counters.ledger.created.add(1);
        if let Err(frame) = queue.push(frame) {
            counters.drop(id, DropReason::TxFull);
            self.pool.free(frame);
        } else {
            counters.ledger.forwarded.add(1);
            counters.port(id).tx_frames.add(1);
            counters.port(id).tx_bytes.add(bytes.len() as u64);
            if !self.slots.wait_for_transmit(id) {
                self.hand_over(id);
                self.links.ring();
            }
        }
    }

    /// Moves frames that other workers handed over into our own output queues.
    #[inline]
    pub(super) fn take_over(&mut self) -> usize {
        let (slots, outputs, pool) = (&mut self.slots, &mut self.outputs, &mut self.pool);
        let counters = self.tables.counters(self.id);
        let taken = self.links.drain(|id, frame| {
            let refused = match outputs.queue(id) {
                Some(queue) if slots.wait_for_transmit(id) => queue.push(frame).err(),
                _ => Some(frame),
            };
            if let Some(frame) = refused {
                counters.drop(id, DropReason::TxFull);
                pool.free(frame);
            }
        });
        if taken > 0 {
            self.shared.figures.handed_in.add(taken as u64);
        }
        taken
    }

    /// Hands everything that waits for `id` to the worker that owns it.
    #[inline]
    pub(super) fn hand_over(&mut self, id: PortId) {
        let Some(queue) = self.outputs.queue(id) else { return };
        let owner = usize::from(self.owners[id.index()]);
        let mut handed = 0;
        while let Some(frame) = queue.pop() {
            match self.links.push(owner, id, frame) {
                Ok(()) => handed += 1,
                Err(frame) => {
                    self.tables.counters(self.id).drop(id, DropReason::TxFull);
                    self.pool.free(frame);
                }
            }
        }
        self.shared.figures.handed_out.add(handed);
    }

    /// Sends an event and wakes the manager. Room was made sure of, or the event may be lost.
    fn tell(&mut self, event: Event) {
        // A full ring can only be the pipeline's doing, and its events may be lost.
        let _ = self.events.push(event);
        self.manager.ring();
    }

    /// Tells the manager when the device behind a port has vanished.
    #[cold]
    fn report_gone(&mut self, id: PortId) {
        self.tell(Event::Gone { id });
    }

    /// Looks whether the device behind a port has vanished, after it delivered or took nothing.
    #[inline]
    pub(super) fn notice_gone(&mut self, id: PortId) {
        if self.slots.notice_gone(id) {
            self.report_gone(id);
        }
    }

    /// Passes on what the pipeline saw, while there is room beside the replies to mail.
    #[inline]
    pub(super) fn tell_pipeline_events(&mut self) {
        while let Some(event) = self.pipeline.next_event() {
            if self.events.slots() > EVENT_ROOM {
                self.tell(Event::Pipeline(event));
            }
        }
    }

    /// Adds the time since the last turn to the figures.
    #[inline]
    pub(super) fn account(&self, start: Instant, last: Instant, now: Instant, moved: bool) {
        let figures = &self.shared.figures;
        figures.turns.add(1);
        figures.total_nanos.set(nanos(now, start));
        if moved {
            figures.busy_nanos.add(nanos(now, last));
        } else {
            figures.idle_turns.add(1);
        }
    }

    /// Gives everything up: ports are closed, frames and chunks go home. For the manager, after the thread has
    /// ended and all other workers have, too.
    pub fn dismantle(mut self) {
        self.between_turns();
        let pool = &mut self.pool;
        self.links.drain(|_, frame| pool.free(frame));
        for n in 0..self.owners.len() {
            let id = PortId(u16::try_from(n).expect("port numbers have 16 bits"));
            if let Some(mut queue) = self.outputs.remove(id) {
                while let Some(frame) = queue.pop() {
                    self.pool.free(frame);
                }
            }
        }
        close_all(self.slots.drain(), &mut self.pool);
        while let Ok(message) = self.mailbox.pop() {
            if let Message::AddPort { port, .. } = message {
                port.close(&mut self.pool);
            }
        }
    }
}

/// Copies the frames of `queue` but the first `old`, which were copied in an earlier turn.
pub(super) fn capture(
    captures: &mut [Capture],
    queue: &mut FrameQueue,
    old: usize,
    id: PortId,
    now: Instant,
) {
    for frame in queue.iter_mut().skip(old) {
        captures.iter_mut().for_each(|capture| capture.offer(frame, id, Direction::Tx, now));
    }
}

fn close_all(slots: impl Iterator<Item = super::slots::Slot>, pool: &mut FramePool) {
    slots.for_each(|slot| slot.port.close(pool));
}

fn nanos(later: Instant, earlier: Instant) -> u64 {
    later.as_nanos().saturating_sub(earlier.as_nanos())
}

/// Drops every frame in `queue`.
pub(super) fn drop_all(
    queue: &mut FrameQueue,
    id: PortId,
    reason: DropReason,
    pool: &mut FramePool,
    counters: &Counters,
) {
    while let Some(frame) = queue.pop() {
        counters.drop(id, reason);
        pool.free(frame);
    }
}
