//! A worker: one pinned thread that owns its ports' queues and runs turns.
//!
//! A turn looks which queues have frames, receives, has the pipeline decide, and transmits. Everything it
//! needs is the worker's own: queues, batch, output queues, chunks, flow cache, counters. What others want of it
//! waits in a mailbox ([`mail`]) and in the newest snapshot, and is looked at between two turns; frames for ports
//! of other workers go through [`handover`].
//!
//! Within a turn there is no system call but those of ports and one `epoll_wait` that does not wait, nothing is
//! allocated, logged or locked, and the clock was read once.
//!
//! While nothing is to be done an adaptive worker spins for [`SPIN`] and then sleeps ([`wake`]); a busy one spins
//! for ever; an interrupt-driven one sleeps at once.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::epoll::EpollTimeout;
use packet::{Batch, FramePool, Instant};
use pipeline::{DropReason, Outputs, Pipeline, Snapshot, Tables};
use ports::Health;
use rtrb::{Consumer, Producer};

pub mod capture;
pub mod figures;
pub mod handover;
pub mod mail;
mod parts;
pub mod post;
pub mod slots;
pub mod wake;

use capture::{Capture, Direction};
use figures::Shared;
use handover::Links;
use mail::{Event, Message, Published};
pub use parts::{Parts, Poll};
use post::drop_all;
use slots::Slots;

/// How long an adaptive worker looks for work before it sleeps: about what a sleep and a wake-up cost.
pub const SPIN: Duration = Duration::from_micros(50);
/// How long a worker spins while a device is slow to complete what was transmitted; then it naps.
const COMPLETION: Duration = Duration::from_millis(1);
/// Milliseconds of a nap, taken while a device is full or cannot wake us.
const NAP: u16 = 1;
/// Milliseconds that a worker sleeps at most while it keeps decisions about connections, which have to be looked at.
const SWEEP_NAP: u16 = 100;
/// Milliseconds that it sleeps at most anyhow, for connections and neighbours to age.
const AGE_NAP: u16 = 1000;
/// Captures that one worker can serve at the same time.
const CAPTURES: usize = 8;
/// Port has no owner among the workers.
const NOWHERE: u16 = u16::MAX;

/// A worker. See the module header.
#[derive(Debug)]
pub struct Worker {
    id: usize,
    poll: Poll,
    budget: usize,
    slots: Slots,
    /// The worker that transmits for each port.
    owners: Vec<u16>,
    batch: Batch,
    outputs: Outputs,
    pool: FramePool,
    pipeline: Pipeline,
    tables: Arc<Tables>,
    generation: u64,
    published: Arc<Published>,
    shared: Arc<Shared>,
    links: Links,
    mailbox: Consumer<Message>,
    events: Producer<Event>,
    manager: Arc<wake::Doorbell>,
    captures: Vec<Capture>,
    stopping: bool,
    idle_since: Option<Instant>,
}

impl Worker {
    /// Makes a worker without ports.
    ///
    /// # Errors
    /// What the epoll calls say.
    pub fn new(parts: Parts) -> std::io::Result<Self> {
        let snapshot: Arc<Snapshot> = parts.published.load();
        Ok(Self {
            id: parts.id,
            poll: parts.poll,
            budget: parts.budget.clamp(1, Batch::CAPACITY),
            slots: Slots::new(parts.ports * 2, parts.ports, &parts.shared.bell)?,
            owners: vec![NOWHERE; parts.ports],
            batch: Batch::new(),
            outputs: Outputs::new(parts.ports),
            pool: parts.pool,
            generation: snapshot.generation(),
            pipeline: Pipeline::new(Arc::clone(&parts.tables), snapshot, parts.id),
            tables: parts.tables,
            published: parts.published,
            shared: parts.shared,
            links: parts.links,
            mailbox: parts.mailbox,
            events: parts.events,
            manager: parts.manager,
            captures: Vec::with_capacity(CAPTURES),
            stopping: false,
            idle_since: None,
        })
    }

    /// Runs turns until the manager says stop.
    pub fn run(&mut self) {
        let start = Instant::now();
        let (mut last, mut moved) = (start, false);
        while !self.stopping {
            let now = Instant::now();
            self.account(start, last, now, moved);
            last = now;
            self.between_turns();
            moved = self.turn(now);
            self.rest(now, moved);
        }
    }

    /// Runs one turn: receive from every ready queue, decide, transmit. Returns whether any frame moved.
    pub fn turn(&mut self, now: Instant) -> bool {
        let mut moved = self.take_over();
        self.slots.look();
        for n in 0..self.slots.ready() {
            if self.batch.room() < self.budget {
                self.decide(now);
            }
            let Some(slot) = self.slots.ready_slot(n) else { continue };
            let (id, batch) = (slot.id, &mut self.batch);
            let received = slot.port.receive(&mut self.pool, self.budget, |frame| batch.push(frame, id));
            if received > 0 {
                moved += received;
                self.slots.keep_active(n);
            } else if slot.port.health() == Health::Gone {
                self.notice_gone(id);
            }
        }
        self.decide(now);
        self.pipeline.tick(&mut self.outputs, &mut self.pool, now);
        self.pass_on();
        moved += self.transmit(now);
        self.tell_pipeline_events();
        moved > 0
    }

    /// Decides what was received.
    fn decide(&mut self, now: Instant) {
        if self.batch.is_empty() {
            return;
        }
        self.shared.figures.batch(self.batch.len());
        if !self.captures.is_empty() {
            for (frame, from) in self.batch.frames().iter().zip(self.batch.from()) {
                self.captures.iter_mut().for_each(|c| c.offer(frame, *from, Direction::Rx, now));
            }
        }
        self.pipeline.run(&mut self.batch, &mut self.outputs, &mut self.pool, now);
        self.pass_on();
    }

    /// Puts the ports that got frames on the list to transmit, and hands over those of other workers.
    fn pass_on(&mut self) {
        if self.outputs.touched().is_empty() {
            return;
        }
        for n in 0..self.outputs.touched().len() {
            let id = self.outputs.touched()[n];
            if !self.slots.wants_transmit(id) {
                self.hand_over(id);
            }
        }
        self.outputs.clear_touched(self.tables.counters(self.id));
        self.links.ring();
    }

    /// Transmits what was decided, and what a full device left from the last turn.
    fn transmit(&mut self, now: Instant) -> usize {
        let (mut sent, mut queued) = (0, 0);
        for n in 0..self.slots.transmits() {
            let Some(slot) = self.slots.transmit_slot(n) else { continue };
            let Some(queue) = self.outputs.queue(slot.id) else { continue };
            let id = slot.id;
            if slot.gone {
                drop_all(queue, id, DropReason::PortDown, &mut self.pool, self.tables.counters(self.id));
                continue;
            }
            let before = queue.len();
            if !self.captures.is_empty() {
                post::capture(&mut self.captures, queue, slot.left, id, now);
            }
            slot.port.transmit(queue, &mut self.pool);
            slot.left = queue.len();
            let taken = before - queue.len();
            sent += taken;
            let gone = slot.port.health() == Health::Gone;
            if !queue.is_empty() {
                queued += queue.len();
                self.slots.keep_waiting(n);
            }
            self.slots.note_sent(n, taken);
            if gone {
                self.notice_gone(id);
            }
        }
        self.shared.figures.transmitted.add(sent as u64);
        self.shared.figures.queued.set(queued as u64);
        sent
    }

    /// Waits for work if the turn found none for long enough.
    fn rest(&mut self, now: Instant, moved: bool) {
        if moved || self.stopping || self.poll == Poll::Busy {
            self.idle_since = None;
            return;
        }
        let idle = now - *self.idle_since.get_or_insert(now);
        let unfinished = self.slots.any_wants_turn();
        if (self.poll == Poll::Adaptive && idle < SPIN) || (unfinished && idle < COMPLETION) {
            std::hint::spin_loop();
            return;
        }
        let nap = unfinished
            || self.slots.any_waiting()
            || self.slots.has_ports_without_fd()
            || self.pipeline.held_frames() > 0;
        let timeout = match (nap, self.pipeline.wants_tick()) {
            (true, _) => EpollTimeout::from(NAP),
            // What was decided is swept and forgotten, then connections age by themselves.
            (false, true) => EpollTimeout::from(SWEEP_NAP),
            (false, false) => EpollTimeout::from(AGE_NAP),
        };
        let (published, generation) = (&self.published, self.generation);
        let (mailbox, links, slots) = (&self.mailbox, &self.links, &mut self.slots);
        let idle = || published.generation() == generation && mailbox.is_empty() && links.is_empty();
        self.shared.figures.sleeps.add(1);
        self.shared.bell.sleep(idle, || slots.wait(timeout));
    }
}
