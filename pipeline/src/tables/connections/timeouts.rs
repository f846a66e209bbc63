//! How long connections live without traffic.

use std::time::Duration;

use packet::header::protocol;

use super::State;

/// How long a connection lives without traffic, by what it is and how far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, open on both sides. RFC 5382, REQ-5 asks for 2 h 4 min at least; a day lets quiet sessions survive a
    /// night, in the spirit of Linux's five days but within what a bounded table can bear.
    pub tcp_established: Duration,
    /// TCP, closing, in doubt, or answered and not yet confirmed: RFC 5382, REQ-5 asks for 4 min at least.
    pub tcp_transitory: Duration,
    /// TCP, a SYN without an answer. RFC 7857, 2.1 lets it be shorter than 4 min for the sake of safety.
    pub tcp_syn_sent: Duration,
    /// TCP, ended by a RST that was believed: what is still under way may pass.
    pub tcp_closed: Duration,
    /// UDP without an answer. Linux has 30 s.
    pub udp_unreplied: Duration,
    /// UDP with traffic both ways: RFC 4787, REQ-5 recommends 5 min and asks for 2.
    pub udp: Duration,
    /// ICMP queries: RFC 5508, REQ-2 asks for 60 s at least.
    pub icmp: Duration,
    /// All other protocols. Linux has 10 min.
    pub other: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_secs(24 * 3600),
            tcp_transitory: Duration::from_secs(240),
            tcp_syn_sent: Duration::from_secs(30),
            tcp_closed: Duration::from_secs(10),
            udp_unreplied: Duration::from_secs(30),
            udp: Duration::from_secs(300),
            icmp: Duration::from_secs(60),
            other: Duration::from_secs(600),
        }
    }
}

impl Timeouts {
    /// Returns how long a connection of `number` (the protocol's) may stay in a state without traffic.
    pub const fn of(&self, state: State, number: u8) -> Duration {
        match state {
            State::SynSent => self.tcp_syn_sent,
            State::SynReceived | State::PickedUp => self.tcp_transitory,
            State::HalfClosed | State::Closed | State::Doubted => self.tcp_transitory,
            State::Established => self.tcp_established,
            State::Reset => self.tcp_closed,
            State::Unreplied | State::Replied => match number {
                protocol::UDP if matches!(state, State::Unreplied) => self.udp_unreplied,
                protocol::UDP => self.udp,
                protocol::ICMP | protocol::ICMPV6 => self.icmp,
                _ => self.other,
            },
        }
    }
}
