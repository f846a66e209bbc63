//! The port queues of one worker, and which of them a turn visits.
//!
//! A turn must not pay for idle ports. Ports whose state is in memory (AF_XDP rings, memory ports) are asked
//! one by one, which costs a cache line each. Ports behind a descriptor (tap, veth) are in one epoll set,
//! `live`, asked once a turn without waiting; those that delivered frames in the last turn are visited anyway.
//! To sleep, a worker waits on a second set, `all`, that holds `live` itself, the AF_XDP descriptors and the
//! bell.
//!
//! A descriptor in an epoll set costs its socket a wake-up for each frame that it has sent, taken or not, once
//! the frame is freed: 6 % of a saturated AF_XDP path. So an AF_XDP descriptor joins `all` when the worker is
//! about to wait, and leaves it when its queue has transmitted `MANY` frames since: never, in a worker that spins.
//!
//! Capacity: the number of port queues given to `new`; a queue beyond it is refused.
//! Threads: the worker's own only.

use std::io;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use packet::PortId;
use ports::{Health, Port};

use super::wake::Bell;

/// Event number of everything in `all` that is no port.
const NO_SLOT: u64 = u64::MAX;
/// Descriptors that one `epoll_wait` reports; more wait for the next turn.
const EVENTS: usize = 256;
const NONE: u16 = u16::MAX;
/// Frames transmitted without a wait between, after which leaving the set and joining it again costs nothing
/// beside them.
const MANY: usize = 256;

/// One queue of a port.
#[derive(Debug)]
pub struct Slot {
    /// The port it belongs to.
    pub id: PortId,
    /// Which of the port's queues it is.
    pub queue: u16,
    /// The queue itself.
    pub port: Port,
    /// It was found gone, and the manager was told; nothing is received or transmitted any more.
    pub gone: bool,
    /// Frames that the device had not taken when it was last tried.
    pub left: usize,
    /// Its descriptor is in `all`; only for a queue in memory.
    watched: bool,
    /// Frames transmitted since `sent_since`, the number of a wait.
    sent: usize,
    sent_since: u64,
    /// It delivered frames in the last turn.
    active: bool,
    /// Frames wait for it, and the next turn tries to transmit them.
    waiting: bool,
    /// The last turn that put it on the list of ready slots.
    ready_at: u64,
    /// The last turn that put it on the list of slots to transmit.
    transmit_at: u64,
}

/// All port queues of a worker. See the module header.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<Option<Slot>>,
    /// The slot that transmits for a port; `NONE` when the port is not here.
    by_port: Vec<u16>,
    ready: Vec<u16>,
    transmit: Vec<u16>,
    active: Vec<u16>,
    waiting: Vec<u16>,
    in_memory: Vec<u16>,
    /// Those in memory, with a descriptor, that must join `all` before the next wait.
    unwatched: Vec<u16>,
    waits: u64,
    live_count: usize,
    without_fd: usize,
    live: Epoll,
    all: Epoll,
    events: Vec<EpollEvent>,
    turn: u64,
}

impl Slots {
    /// Makes room for `capacity` port queues of ports numbered below `ports`. `bell` ends a wait.
    ///
    /// # Errors
    /// What the epoll calls say.
    pub fn new(capacity: usize, ports: usize, bell: &Bell) -> io::Result<Self> {
        let live = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let all = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        all.add(&live.0, EpollEvent::new(EpollFlags::EPOLLIN, NO_SLOT))?;
        all.add(bell.fd(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, NO_SLOT))?;
        let list = || Vec::with_capacity(capacity);
        Ok(Self {
            slots: (0..capacity.min(usize::from(NONE))).map(|_| None).collect(),
            by_port: vec![NONE; ports],
            ready: list(),
            transmit: list(),
            active: list(),
            waiting: list(),
            in_memory: list(),
            unwatched: list(),
            waits: 0,
            live_count: 0,
            without_fd: 0,
            live,
            all,
            events: vec![EpollEvent::empty(); EVENTS.min(capacity.max(1))],
            turn: 0,
        })
    }

    /// Adds a port queue.
    ///
    /// # Errors
    /// The queue itself when there is no room or epoll refuses its descriptor.
    pub fn add(&mut self, id: PortId, queue: u16, port: Port) -> Result<(), Box<Port>> {
        let free = self.slots.iter().position(Option::is_none);
        let Some(n) = free.and_then(|n| u16::try_from(n).ok()) else { return Err(Box::new(port)) };
        if id.index() >= self.by_port.len() {
            return Err(Box::new(port));
        }
        let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::from(n));
        let in_memory = Self::is_in_memory(&port);
        let registered = match port.as_fd() {
            Some(fd) if !in_memory => self.live.add(fd, event).is_ok(),
            _ => true,
        };
        if !registered {
            return Err(Box::new(port));
        }
        self.without_fd += usize::from(port.fd().is_none());
        if in_memory {
            self.in_memory.push(n);
            if port.fd().is_some() {
                self.unwatched.push(n);
            }
        } else {
            self.live_count += 1;
        }
        if self.by_port[id.index()] == NONE {
            self.by_port[id.index()] = n;
        }
        self.slots[usize::from(n)] = Some(Slot {
            id,
            queue,
            port,
            gone: false,
            left: 0,
            watched: false,
            sent: 0,
            sent_since: 0,
            active: false,
            waiting: false,
            ready_at: 0,
            transmit_at: 0,
        });
        Ok(())
    }

    /// Removes one queue of a port and returns it.
    pub fn remove(&mut self, id: PortId) -> Option<Slot> {
        let n = self.slots.iter().position(|slot| slot.as_ref().is_some_and(|slot| slot.id == id))?;
        let slot = self.slots[n].take()?;
        let number = u16::try_from(n).expect("the capacity is below 65536");
        for list in [
            &mut self.ready,
            &mut self.transmit,
            &mut self.active,
            &mut self.waiting,
            &mut self.in_memory,
            &mut self.unwatched,
        ] {
            list.retain(|other| *other != number);
        }
        let next = self.slots.iter().position(|slot| slot.as_ref().is_some_and(|slot| slot.id == id));
        self.by_port[id.index()] = next.and_then(|n| u16::try_from(n).ok()).unwrap_or(NONE);
        self.without_fd -= usize::from(slot.port.fd().is_none());
        if !Self::is_in_memory(&slot.port) {
            self.live_count -= 1;
        }
        if !slot.gone {
            self.forget(&slot.port);
        }
        Some(slot)
    }

    fn is_in_memory(port: &Port) -> bool {
        !matches!(port, Port::Tap(_) | Port::Veth(_))
    }

    /// Takes a descriptor out of the epoll set that it is in.
    fn forget(&self, port: &Port) {
        if let Some(fd) = port.as_fd() {
            let set = if Self::is_in_memory(port) { &self.all } else { &self.live };
            // It fails only for a descriptor that is not in the set, which is what we want.
            let _ = set.delete(fd);
        }
    }

    /// Starts a turn: finds the queues to visit, which [`Slots::ready`] then counts.
    #[inline]
    pub fn look(&mut self) {
        self.turn += 1;
        self.ready.clear();
        self.transmit.clear();
        // The lists swap roles: who was active is ready now.
        std::mem::swap(&mut self.ready, &mut self.active);
        for n in &self.ready {
            if let Some(slot) = &mut self.slots[usize::from(*n)] {
                slot.ready_at = self.turn;
                slot.active = false;
            }
        }
        while let Some(number) = self.waiting.pop() {
            if let Some(slot) = &mut self.slots[usize::from(number)] {
                slot.waiting = false;
                Self::list(&mut self.transmit, &mut slot.transmit_at, self.turn, number);
            }
        }
        for n in 0..self.in_memory.len() {
            let number = self.in_memory[n];
            let Some(slot) = &mut self.slots[usize::from(number)] else { continue };
            if !slot.gone && slot.port.wants_turn() {
                Self::list(&mut self.ready, &mut slot.ready_at, self.turn, number);
                Self::list(&mut self.transmit, &mut slot.transmit_at, self.turn, number);
            }
        }
        if self.live_count > 0 {
            let found = self.live.wait(&mut self.events, EpollTimeout::ZERO).unwrap_or(0);
            for event in &self.events[..found] {
                let Ok(number) = u16::try_from(event.data()) else { continue };
                if let Some(Some(slot)) = self.slots.get_mut(usize::from(number)) {
                    Self::list(&mut self.ready, &mut slot.ready_at, self.turn, number);
                }
            }
        }
    }

    #[inline]
    fn list(list: &mut Vec<u16>, listed_at: &mut u64, turn: u64, number: u16) {
        if *listed_at != turn {
            *listed_at = turn;
            list.push(number);
        }
    }

    /// Returns how many queues are to be visited in this turn.
    #[inline]
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Returns the `n`th queue to be visited in this turn.
    #[inline]
    pub fn ready_slot(&mut self, n: usize) -> Option<&mut Slot> {
        self.slots[usize::from(self.ready[n])].as_mut()
    }

    /// Notes that the `n`th ready queue delivered frames: the next turn visits it without being asked.
    #[inline]
    pub fn keep_active(&mut self, n: usize) {
        let number = self.ready[n];
        if let Some(slot) = &mut self.slots[usize::from(number)]
            && !slot.active
        {
            slot.active = true;
            self.active.push(number);
        }
    }

    /// Notes that frames still wait for the `n`th transmitting queue: the next turn tries again.
    #[inline]
    pub fn keep_waiting(&mut self, n: usize) {
        let number = self.transmit[n];
        if let Some(slot) = &mut self.slots[usize::from(number)]
            && !slot.waiting
        {
            slot.waiting = true;
            self.waiting.push(number);
        }
    }

    /// Puts the port's queue on the next turn's list of queues to transmit; returns false when the port is not
    /// this worker's. To be called before [`Slots::look`].
    #[inline]
    pub fn wait_for_transmit(&mut self, id: PortId) -> bool {
        let number = self.by_port.get(id.index()).copied().unwrap_or(NONE);
        let Some(Some(slot)) = self.slots.get_mut(usize::from(number)) else { return false };
        if !slot.waiting {
            slot.waiting = true;
            self.waiting.push(number);
        }
        true
    }

    /// Says whether frames wait for a device that was full.
    pub fn any_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Puts the port's queue on this turn's list of queues to transmit; returns false when the port is not
    /// this worker's.
    #[inline]
    pub fn wants_transmit(&mut self, id: PortId) -> bool {
        let number = self.by_port.get(id.index()).copied().unwrap_or(NONE);
        let Some(Some(slot)) = self.slots.get_mut(usize::from(number)) else { return false };
        Self::list(&mut self.transmit, &mut slot.transmit_at, self.turn, number);
        true
    }

    /// Returns how many queues are to transmit in this turn.
    #[inline]
    pub fn transmits(&self) -> usize {
        self.transmit.len()
    }

    /// Returns the `n`th queue to transmit in this turn.
    #[inline]
    pub fn transmit_slot(&mut self, n: usize) -> Option<&mut Slot> {
        self.slots[usize::from(self.transmit[n])].as_mut()
    }

    /// Notes that the `n`th transmitting queue has transmitted `count` frames.
    #[inline]
    pub fn note_sent(&mut self, n: usize, count: usize) {
        let number = self.transmit[n];
        let Some(slot) = &mut self.slots[usize::from(number)] else { return };
        if !slot.watched {
            return;
        }
        if slot.sent_since != self.waits {
            slot.sent_since = self.waits;
            slot.sent = 0;
        }
        slot.sent += count;
        if slot.sent >= MANY
            && let Some(fd) = slot.port.as_fd()
            && self.all.delete(fd).is_ok()
        {
            slot.watched = false;
            self.unwatched.push(number);
        }
    }

    /// Looks for queues of the port whose device has gone, and returns whether one is news. Its descriptor
    /// reports no more events from then on.
    pub fn notice_gone(&mut self, id: PortId) -> bool {
        let mut news = false;
        for n in 0..self.slots.len() {
            let Some(slot) = &mut self.slots[n] else { continue };
            if slot.id != id || slot.gone || slot.port.health() != Health::Gone {
                continue;
            }
            slot.gone = true;
            news = true;
            let Some(slot) = &self.slots[n] else { continue };
            self.forget(&slot.port);
        }
        news
    }

    /// Says whether any queue in memory wants a turn.
    pub fn any_wants_turn(&mut self) -> bool {
        let slots = &mut self.slots;
        self.in_memory
            .iter()
            .any(|n| slots[usize::from(*n)].as_mut().is_some_and(|s| !s.gone && s.port.wants_turn()))
    }

    /// Says whether there are ports that cannot end a wait.
    pub fn has_ports_without_fd(&self) -> bool {
        self.without_fd > 0
    }

    /// Waits until a port has frames, the bell rings, or `timeout` is over.
    pub fn wait(&mut self, timeout: EpollTimeout) {
        self.waits += 1;
        let (all, slots) = (&self.all, &mut self.slots);
        self.unwatched.retain(|n| {
            let Some(slot) = &mut slots[usize::from(*n)] else { return false };
            if slot.gone {
                return false;
            }
            // Frames that wait already end the wait at once: the set is level-triggered.
            let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::from(*n));
            slot.watched = slot.port.as_fd().is_some_and(|fd| all.add(fd, event).is_ok());
            !slot.watched
        });
        // No memory for the set: look again soon, since nothing wakes us.
        let timeout = if self.unwatched.is_empty() { timeout } else { EpollTimeout::from(1_u8) };
        // An interrupted wait is a short wait.
        let _ = self.all.wait(&mut self.events, timeout);
    }

    /// Returns how many queues there is room for.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Returns the queue in place `n`, if there is one.
    pub fn get(&self, n: usize) -> Option<&Slot> {
        self.slots.get(n)?.as_ref()
    }

    /// Takes all queues out.
    pub fn drain(&mut self) -> impl Iterator<Item = Slot> {
        self.slots.iter_mut().filter_map(Option::take)
    }
}
