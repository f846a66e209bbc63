//! What the table is asked, and what it answers.

use packet::{NetworkId, PortId, Tuple};

use super::State;
use crate::headers::Segment;
use crate::tables::index::Side;
use crate::tables::nat_ports::PortLease;

/// What a direction of a connection is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The network that its packets come from.
    pub network: NetworkId,
    /// What they look like there.
    pub tuple: Tuple,
}

/// Relative to the first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// As the first packet went.
    Original = 0,
    /// As its answers go.
    Reply = 1,
}

impl Direction {
    /// Returns the other one.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Direction::Original => Direction::Reply,
            Direction::Reply => Direction::Original,
        }
    }

    pub(super) const fn of(side: Side) -> Self {
        if side { Direction::Reply } else { Direction::Original }
    }
}

/// Names a connection, even after it ended: a slot's next user has another stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    /// Its place in the table; less than 2^23.
    pub slot: u32,
    /// Which of the slot's users it is.
    pub stamp: u32,
}

/// What the stages decided about a connection; kept and given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Details {
    /// The number of the policy rule that admitted it; `u32::MAX`: none.
    pub rule: u32,
    /// The number of the rule that translated its destination; `u32::MAX`: none.
    pub translation: u32,
    /// Sum of the generations under which it was last validated.
    pub checked: u32,
    /// The external port that it holds; to be given back when it has ended.
    pub nat_port: Option<PortLease>,
    /// The port that its original direction leaves by.
    pub peer_port: PortId,
    /// For the stages.
    pub flags: u8,
}

impl Default for Details {
    fn default() -> Self {
        Self {
            rule: u32::MAX,
            translation: u32::MAX,
            checked: 0,
            nat_port: None,
            peer_port: PortId(0),
            flags: 0,
        }
    }
}

/// A connection to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewConnection {
    /// As its first packet came.
    pub original: Key,
    /// As answers will come.
    pub reply: Key,
    /// The port that it counts for: where its first packet came in.
    pub owner: PortId,
    /// Its first segment, TCP only. One without SYN picks up a connection that began unseen; it counts as half-open until
    /// the other side is heard.
    pub tcp: Option<Segment>,
    /// How many connections the owner may have,
    pub quota: u32,
    /// and how many half-open ones.
    pub half_open_quota: u32,
    /// What was decided.
    pub details: Details,
    /// Bytes of its first packet, when that is counted right away; 0: when it is tracked.
    pub counted: u32,
}

/// Why a connection was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its original key is in use: somebody was faster.
    Exists,
    /// Its reply key is in use: another translation is needed.
    ReplyTaken,
    /// The table is full and nothing in it can make room.
    Full,
    /// Its owner has as many connections as it may have.
    Quota,
    /// Its owner has as many half-open connections as it may have.
    HalfOpen,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// It had no traffic for too long.
    Idle,
    /// It was over, by FIN or RST, and nothing more came.
    Closed,
    /// It made room for others.
    Evicted,
    /// What is configured now forbids it or treats it differently.
    Cut,
    /// Somebody asked for it.
    Flushed,
}

/// What a look-up finds.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The connection.
    pub id: ConnectionId,
    /// The direction that the key is of.
    pub direction: Direction,
    /// As its first packet came.
    pub original: Key,
    /// As answers come.
    pub reply: Key,
    /// How far it has come.
    pub state: State,
    /// What was decided.
    pub details: Details,
    /// The port that it counts for.
    pub owner: PortId,
}

impl Found {
    /// Returns what packets of a direction look like when they come.
    pub const fn key(&self, direction: Direction) -> Key {
        match direction {
            Direction::Original => self.original,
            Direction::Reply => self.reply,
        }
    }
}

/// A packet of the slow path.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Its length.
    pub bytes: u32,
    /// Its segment, TCP only; `None` for a later fragment too.
    pub tcp: Option<Segment>,
}
