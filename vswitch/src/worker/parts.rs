//! What a worker is made of.

use std::sync::Arc;

use packet::FramePool;
use pipeline::Tables;
use rtrb::{Consumer, Producer};

use super::figures::Shared;
use super::handover::Links;
use super::mail::{Event, Message, Published};
use super::wake::Doorbell;

/// How a worker waits for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// Spin for a while, then sleep.
    Adaptive,
    /// Never sleep.
    Busy,
    /// Sleep at once.
    Interrupt,
}

/// What a worker is made of.
#[derive(Debug)]
pub struct Parts {
    /// Its number.
    pub id: usize,
    /// How it waits for work.
    pub poll: Poll,
    /// Frames that one port may bring in before the next port has its chance.
    pub budget: usize,
    /// Port numbers end here.
    pub ports: usize,
    /// Its chunks.
    pub pool: FramePool,
    /// The tables that all workers share.
    pub tables: Arc<Tables>,
    /// Where snapshots come from.
    pub published: Arc<Published>,
    /// What it shows to others.
    pub shared: Arc<Shared>,
    /// Its ends of the rings to other workers.
    pub links: Links,
    /// Its mailbox.
    pub mailbox: Consumer<Message>,
    /// Where it tells what happened.
    pub events: Producer<Event>,
    /// Wakes the manager after an event.
    pub manager: Arc<Doorbell>,
}
