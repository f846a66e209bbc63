//! The states of a connection, and how TCP segments change them (RFC 9293, RFC 5382, RFC 7857).
//!
//! The switch believes what both ends would believe, and forwards what it does not understand without
//! changing its mind: an end answers a stray SYN or an old acknowledgment itself (RFC 5961). Only segments of the slow path come
//! here: all with SYN, FIN or RST, and some others. What the fast path carried in between is known by its count
//! alone, so the numbers kept here may be *stale*. Therefore
//!
//! * a RST whose number lies in the window that the other side last told ends the connection ([`State::Reset`]);
//! * one that does not, while the numbers are known to be current, is an error (a blind attack, RFC 5961, 3);
//! * and one that cannot be judged leaves the connection in doubt ([`State::Doubted`]) for the time that RFC 7857, 2.2
//!   asks to wait; traffic that goes on proves it wrong.
//!
//! The window is taken as it is in the header, not scaled: that makes more resets doubtful, and costs nothing else.

use crate::headers::Segment;
use packet::header::tcp_flags::{ACK, FIN, RST, SYN};

use super::Direction;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Not TCP: nothing has come back yet.
    Unreplied,
    /// Not TCP: there was traffic both ways.
    Replied,
    /// TCP: a SYN was sent.
    SynSent,
    /// TCP: both have sent a SYN.
    SynReceived,
    /// TCP: it began before we saw it, and nothing has come back yet.
    PickedUp,
    /// TCP: both have answered.
    Established,
    /// TCP: one side has sent its FIN.
    HalfClosed,
    /// TCP: both have sent their FIN.
    Closed,
    /// TCP: a RST was seen that may not be genuine.
    Doubted,
    /// TCP: a RST ended it.
    Reset,
}

impl State {
    /// Says whether nobody has confirmed it: it counts as half-open, and makes room when the table is full.
    pub const fn is_half_open(self) -> bool {
        matches!(self, State::Unreplied | State::SynSent | State::SynReceived | State::PickedUp)
    }

    /// Says whether it may make room when the table is full: it is half-open, or over.
    pub const fn is_expendable(self) -> bool {
        self.is_half_open() || matches!(self, State::Closed | State::Reset)
    }
}

/// Why a packet of a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// There is no such connection any more.
    Gone,
    /// Flags that do not go together.
    Flags,
    /// A RST with a number that the receiver cannot expect.
    Sequence,
    /// It begins a new connection where this one has ended; the table has let go of this one.
    Ended,
}

/// What is remembered of both sides' numbers; indexed by direction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers {
    /// What the other side expects next of this one.
    next: [u32; 2],
    /// The window that this side told, not scaled.
    window: [u16; 2],
    /// Bits: segments of this direction went by unseen since.
    stale: u8,
    /// Bits: a FIN of this direction was seen.
    fins: u8,
}

impl Numbers {
    /// Returns what the first segment says.
    pub(super) fn begin(segment: &Segment) -> (State, Self) {
        let mut numbers = Self::default();
        numbers.own(0, segment);
        let state = match segment.flags & (SYN | ACK | RST | FIN) {
            SYN => State::SynSent,
            flags if flags & RST != 0 => State::Reset,
            _ => {
                numbers.next[1] = segment.acknowledgment;
                numbers.fins = u8::from(segment.flags & FIN != 0);
                State::PickedUp
            }
        };
        (state, numbers)
    }

    /// Returns the numbers of a connection that is known by its state alone.
    pub(super) fn unknown(state: State) -> Self {
        let fins = match state {
            State::HalfClosed => 0b01,
            State::Closed => 0b11,
            _ => 0,
        };
        Self { stale: 0b11, fins, ..Self::default() }
    }

    /// Notes that packets went by on the fast path.
    pub(super) fn outdate(&mut self, direction: Direction) {
        self.stale |= 1 << direction as u8;
    }

    /// Returns the state after another segment. `quiet` says that what the fast path carried is counted.
    pub(super) fn step(
        &mut self,
        state: State,
        direction: Direction,
        segment: &Segment,
        quiet: bool,
    ) -> Result<State, Invalid> {
        let flags = segment.flags & (SYN | ACK | RST | FIN);
        if flags == 0 || flags & SYN != 0 && flags & (FIN | RST) != 0 {
            return Err(Invalid::Flags);
        }
        if flags & RST != 0 {
            return self.reset(state, direction, segment, quiet);
        }
        if flags == SYN {
            return self.open(state, direction, segment);
        }
        Ok(self.go_on(state, direction, segment))
    }

    fn open(&mut self, state: State, direction: Direction, segment: &Segment) -> Result<State, Invalid> {
        use Direction::{Original, Reply};
        match (state, direction) {
            // Sent again, perhaps with another number.
            (State::SynSent, Original) => {
                self.own(0, segment);
                Ok(state)
            }
            // Both open at once (RFC 5382, REQ-2).
            (State::SynSent, Reply) => {
                self.own(1, segment);
                Ok(State::SynReceived)
            }
            // The same ends begin anew, with whatever number (RFC 7857, 2.3; RFC 9293, 3.10.7.4).
            (State::Closed | State::Reset | State::Doubted, Original) => {
                let (state, numbers) = Self::begin(segment);
                *self = numbers;
                Ok(state)
            }
            // The other side begins a connection of its own: nobody has allowed that yet.
            (State::Closed | State::Reset, Reply) => Err(Invalid::Ended),
            // To an open connection a SYN means nothing; its receiver says so (RFC 5961, 4).
            _ => Ok(state),
        }
    }

    /// All segments with an ACK, and a lone FIN.
    fn go_on(&mut self, state: State, direction: Direction, segment: &Segment) -> State {
        let is_syn = segment.flags & SYN != 0;
        let state = match (state, direction) {
            (State::SynSent, Direction::Reply) if is_syn => {
                // An answer to another SYN changes nothing; a fast-open answer may acknowledge data too (RFC 7413).
                if segment.acknowledgment.wrapping_sub(self.next[0]) > u32::from(u16::MAX) {
                    return state;
                }
                self.own(1, segment);
                State::SynReceived
            }
            // Whatever else answers a SYN is about a connection before it (RFC 5961, 4).
            (State::SynSent, _) => return state,
            (State::SynReceived, Direction::Original) => State::Established,
            (State::PickedUp, Direction::Reply) => self.established(),
            (State::Doubted, _) => self.established(),
            (State::Reset, _) => return state,
            _ => state,
        };
        let me = direction as usize;
        if segment.flags & ACK != 0 {
            self.next[1 - me] = segment.acknowledgment;
            self.window[me] = segment.window;
            self.stale &= !(1 << me);
        }
        if segment.flags & FIN != 0 {
            self.fins |= 1 << me;
        }
        match state {
            State::Established | State::HalfClosed => self.established(),
            _ => state,
        }
    }

    fn reset(
        &self,
        state: State,
        direction: Direction,
        segment: &Segment,
        quiet: bool,
    ) -> Result<State, Invalid> {
        let (me, other) = (direction as usize, 1 - direction as usize);
        match (state, direction) {
            (State::Reset, _) => Ok(state),
            // Refused: it has to name our SYN (RFC 9293, 3.10.7.3).
            (State::SynSent, Direction::Reply) => {
                let named = segment.acknowledgment.wrapping_sub(self.next[0]) <= u32::from(u16::MAX);
                if named && segment.flags & ACK != 0 { Ok(State::Reset) } else { Err(Invalid::Sequence) }
            }
            // It may answer what a connection before this one still says.
            (State::SynSent, _) => Ok(if segment.sequence == self.next[0] { State::Reset } else { state }),
            _ => {
                let distance = segment.sequence.wrapping_sub(self.next[me]);
                if distance <= u32::from(self.window[other]) {
                    return Ok(State::Reset);
                }
                if quiet && self.stale & 1 << other == 0 {
                    return Err(Invalid::Sequence);
                }
                Ok(match state {
                    State::Established | State::HalfClosed => State::Doubted,
                    _ => state,
                })
            }
        }
    }

    /// Returns the state of a connection that is or was open on both sides.
    pub(super) fn established(&self) -> State {
        match self.fins {
            0 => State::Established,
            0b11 => State::Closed,
            _ => State::HalfClosed,
        }
    }

    /// Notes the numbers that one side gives of itself.
    fn own(&mut self, me: usize, segment: &Segment) {
        let syn = u32::from(segment.flags & SYN != 0);
        self.next[me] = segment.sequence.wrapping_add(syn + if syn == 0 { segment.payload_len } else { 0 });
        self.window[me] = segment.window;
    }
}

#[cfg(test)]
mod tests;
