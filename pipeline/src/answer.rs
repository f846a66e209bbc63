//! Turns a question into its answer, in the frame that asked.
//!
//! The question's chunk is at hand and large enough, so an answer costs no allocation. Tags and priority stay as
//! they came: the answer leaves by the port that the question came in by, to the station that sent it.
//!
//! An answer is written from scratch: a plain IP header without the question's options or extension headers (so an
//! echo reply records no route, which RFC 1122, 3.2.2.6 would like), and complete checksums. A large frame is first
//! cut to the packet that would have gone out first, since that is what its sender can make sense of.
//!
//! What an answer must not answer is refused here, whoever asks for it: errors, groups, later fragments
//! ([`may_report`]), and resets.

mod icmp;
mod ip;
mod neighbor;
mod reset;
mod router;

pub use icmp::{Problem, may_report};
pub use router::{RouterAdvert, link_local};

pub(crate) use ip::address;
pub(crate) use neighbor::{ALL_NODES, Message};
pub(crate) use router::advertise;

use packet::{Checksum, Frame};

use crate::walk::Answer;

/// Writes `answer` over the question in `frame`. `None` when it is no such question, must not be answered, or there is
/// no room; then at most what the device was to do has been done: the checksum completed, a large frame cut.
pub fn write(frame: &mut Frame, answer: Answer) -> Option<()> {
    match answer {
        Answer::Arp(mac) => neighbor::arp(frame, mac)?,
        Answer::NeighborAdvert { mac, router } => neighbor::advert(frame, mac, router)?,
        Answer::Echo(mac) => icmp::echo(frame, mac)?,
        Answer::Problem { problem, from, mac } => icmp::report(frame, problem, from, mac)?,
        Answer::Reset(mac) => reset::reset(frame, mac)?,
        Answer::RouterAdvert { mac, advert } => router::answer(frame, mac, &advert)?,
    }
    frame.set_checksum(Checksum::Complete);
    frame.set_gso(None);
    Some(())
}

#[cfg(test)]
mod tests;
