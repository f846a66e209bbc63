//! Loops: recognizes our own probes when they come back.
//!
//! When stations flap between ports, the manager suspects that two of them are wired together, and sends a probe
//! out of each. A probe carries this switch's secret cookie and the port it left by; when one comes in, the loop
//! is proved, and the manager disables the port where it was seen. No probe is sent without that suspicion.
//!
//! A probe is a frame of the configuration testing protocol (Ethernet 2.0, chapter 8) to its multicast
//! address, with a function that no station acts on.

use packet::{MacAddr, NetworkId, PortId};

use crate::drop_reason::DropReason;
use crate::walk::{Packet, Step, View, Walk};

/// Length of a probe: the shortest Ethernet frame without its check sequence.
pub const PROBE_LEN: usize = 60;
/// Ethertype of the configuration testing protocol.
const ETHERTYPE: u16 = 0x9000;
/// Its loopback assistance group.
const ASSISTANCE: MacAddr = MacAddr([0xcf, 0, 0, 0, 0, 0]);
/// Function code, little endian as the protocol has it: neither reply (1) nor forward (2).
const FUNCTION: [u8; 2] = 0x7673u16.to_le_bytes();

/// What a probe says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The network that it is for.
    pub network: NetworkId,
    /// The port that it left by.
    pub port: PortId,
}

impl Probe {
    /// Writes the probe as a frame from `source`.
    pub fn encode(self, cookie: u64, source: MacAddr) -> [u8; PROBE_LEN] {
        let mut frame = [0; PROBE_LEN];
        frame[..6].copy_from_slice(&ASSISTANCE.0);
        frame[6..12].copy_from_slice(&source.0);
        frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
        frame[16..18].copy_from_slice(&FUNCTION);
        frame[18..26].copy_from_slice(&cookie.to_be_bytes());
        frame[26..28].copy_from_slice(&self.network.0.to_be_bytes());
        frame[28..30].copy_from_slice(&self.port.0.to_be_bytes());
        frame
    }

    /// Reads a probe with our cookie, or `None`.
    pub fn decode(packet: &Packet<'_>, cookie: u64) -> Option<Self> {
        let payload = packet.payload();
        if packet.ethertype() != ETHERTYPE
            || payload.get(2..4)? != FUNCTION
            || payload.get(4..12)? != cookie.to_be_bytes()
        {
            return None;
        }
        let word = |at: usize| Some(u16::from_be_bytes([*payload.get(at)?, *payload.get(at + 1)?]));
        Some(Self { network: NetworkId(word(12)?), port: PortId(word(14)?) })
    }
}

/// Drops a probe of ours; the pipeline reports it.
pub fn walk(packet: &Packet<'_>, view: &View<'_>, _walk: &mut Walk) -> Step {
    match Probe::decode(packet, view.tables.cookie()) {
        Some(_) => Step::Drop(DropReason::Loop),
        None => Step::Next,
    }
}
