//! What the manager tells a worker, and what a worker tells the manager.
//!
//! Two single-producer rings. A worker looks into its mailbox between turns, and takes a message only while
//! there is room for the reply, so a reply is never lost and a worker never waits. Snapshots do not travel in
//! the mailbox but through [`Published`], which always holds the newest: a worker that was asleep for a
//! thousand changes adopts one.
//!
//! Order: the manager sends messages before it publishes, and a worker reads the number of the newest snapshot
//! before it empties its mailbox ([`catch_up`]); so when a snapshot is adopted, every message sent before it has been
//! obeyed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use packet::{FrameQueue, PortId};
use pipeline::{DropLog, Snapshot};
use ports::{Port, Stats};

use super::Poll;
use super::capture::Capture;

/// Messages a mailbox holds, and events a worker can have under way.
pub const CAPACITY: usize = 1024;

/// What the manager tells a worker.
#[derive(Debug)]
pub enum Message {
    /// Receive from this queue; if `frames` is given, also transmit what is decided for the port.
    AddPort {
        /// The port.
        id: PortId,
        /// Which of its queues.
        queue: u16,
        /// The queue itself.
        port: Box<Port>,
        /// Where frames wait that are to leave by it.
        frames: Option<FrameQueue>,
    },
    /// The port belongs to another worker.
    AddRemote {
        /// The port.
        id: PortId,
        /// The worker that transmits for it.
        worker: usize,
        /// Where frames wait before they are handed over.
        frames: FrameQueue,
    },
    /// Forget the port; answered by [`Event::Removed`].
    RemovePort {
        /// The port.
        id: PortId,
    },
    /// Transmit a frame of the manager's by this port.
    Inject {
        /// The port.
        id: PortId,
        /// The frame.
        bytes: Box<[u8]>,
    },
    /// Tell what the queues of a port have counted; answered by one [`Event::Stats`] a queue.
    Report {
        /// The port.
        id: PortId,
    },
    /// Copy frames into a ring.
    AddCapture(Box<Capture>),
    /// End the capture of that number.
    RemoveCapture(u64),
    /// Wait for work in another way, and serve ports in other portions.
    SetPoll {
        /// How to wait for work.
        poll: Poll,
        /// Frames that one port may bring in before the next port has its chance.
        budget: usize,
    },
    /// Copy the heads of dropped frames there, while the tables say so.
    SetDropLog(DropLog),
    /// Leave the loop.
    Stop,
}

/// What a worker tells the manager.
#[derive(Debug)]
pub enum Event {
    /// All that this worker had of the port; dropped by the manager, because closing a packet socket or an
    /// AF_XDP socket takes the kernel milliseconds.
    Removed {
        /// The port.
        id: PortId,
        /// One of its queues; further ones come in events of their own before the last, which has none.
        port: Option<Box<Port>>,
    },
    /// A queue could not be added: no room, or epoll refused it.
    Refused {
        /// The port.
        id: PortId,
        /// The queue, to be closed.
        port: Box<Port>,
    },
    /// The device behind the port has vanished.
    Gone {
        /// The port.
        id: PortId,
    },
    /// What a queue of a port has counted.
    Stats {
        /// The port.
        id: PortId,
        /// What it counted since it was opened.
        stats: Stats,
    },
    /// All queues have reported.
    Reported {
        /// The port.
        id: PortId,
    },
    /// Something that the pipeline saw.
    Pipeline(pipeline::Event),
}

/// The newest snapshot, for all workers.
#[derive(Debug)]
pub struct Published {
    generation: AtomicU64,
    snapshot: ArcSwap<Snapshot>,
}

impl Published {
    /// Publishes the first snapshot.
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self { generation: AtomicU64::new(snapshot.generation()), snapshot: ArcSwap::new(snapshot) }
    }

    /// Publishes a newer snapshot and returns the one before, which the caller keeps until no worker has it.
    pub fn publish(&self, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
        let generation = snapshot.generation();
        let old = self.snapshot.swap(snapshot);
        self.generation.store(generation, Ordering::Release);
        old
    }

    /// Returns the number of the newest snapshot: one load of a line that rarely changes.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns the newest snapshot.
    pub fn load(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }
}

/// Takes mail, then loads the newest snapshot, and returns it if all messages that were sent before it have been
/// obeyed: the mailbox was emptied, and the snapshot is the one whose number, `newest`, was read before that. A
/// still newer one has to wait for its own mail, until the next time.
pub fn catch_up<S>(
    newest: u64,
    take_mail: impl FnOnce() -> bool,
    load: impl FnOnce() -> S,
    number: impl FnOnce(&S) -> u64,
) -> Option<S> {
    if !take_mail() {
        return None;
    }
    let snapshot = load();
    (number(&snapshot) == newest).then_some(snapshot)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use shuttle::sync::atomic::{AtomicU64, Ordering};
    use shuttle::sync::{Arc, Mutex};

    use super::catch_up;

    /// A manager that sends message n before it publishes snapshot n, and a worker that follows.
    fn manager_and_worker() {
        const CHANGES: u64 = 4;
        let mail = Arc::new(Mutex::new(VecDeque::new()));
        let snapshot = Arc::new(Mutex::new(0));
        let number = Arc::new(AtomicU64::new(0));
        let manager = {
            let (mail, snapshot, number) = (Arc::clone(&mail), Arc::clone(&snapshot), Arc::clone(&number));
            shuttle::thread::spawn(move || {
                for n in 1..=CHANGES {
                    mail.lock().expect("not poisoned").push_back(n);
                    *snapshot.lock().expect("not poisoned") = n;
                    number.store(n, Ordering::SeqCst);
                }
            })
        };
        let (mut adopted, mut obeyed) = (0, 0);
        while adopted < CHANGES {
            let newest = number.load(Ordering::SeqCst);
            let take_mail = || {
                while let Some(n) = { mail.lock().expect("not poisoned").pop_front() } {
                    obeyed = n;
                }
                true
            };
            let load = || *snapshot.lock().expect("not poisoned");
            if let Some(n) = catch_up(newest, take_mail, load, |n| *n) {
                assert!(obeyed >= n, "snapshot {n} was adopted with mail up to {obeyed}");
                adopted = n;
            }
            shuttle::thread::yield_now();
        }
        manager.join().expect("did not panic");
    }

    #[test]
    fn a_snapshot_is_adopted_after_the_mail_that_was_sent_before_it() {
        shuttle::check_random(manager_and_worker, 2000);
        shuttle::check_pct(manager_and_worker, 2000, 3);
    }
}
