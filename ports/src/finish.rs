//! What a device cannot do, done for it before a frame is transmitted.
//!
//! A frame carries what is left to do: a checksum to complete, a large frame to cut. [`Can`] says what a device
//! takes over. Everything else is done here: first the checksum state is resolved where the sending port could
//! not tell it, then what the device cannot finish is finished.

use packet::checksum;
use packet::{Checksum, Frame, GsoKind};

use crate::Stats;

/// What a device does itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Can {
    /// Completes checksums.
    pub checksum: bool,
    /// Cuts TCP over IPv4.
    pub tso4: bool,
    /// Cuts TCP over IPv6.
    pub tso6: bool,
    /// Cuts UDP into datagrams.
    pub uso: bool,
    /// Cuts inside a UDP tunnel without outer checksum.
    pub tunnel: bool,
    /// Cuts inside a UDP tunnel with outer checksum.
    pub tunnel_checksum: bool,
}

/// What is to be done with a frame now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The device takes it as it is.
    Send,
    /// It must be cut first.
    Cut,
    /// It contradicts itself and cannot be finished.
    Drop,
}

impl Can {
    /// Says whether the device cuts `frame` itself.
    fn cuts(&self, frame: &Frame) -> bool {
        let Some(gso) = frame.gso() else { return true };
        let kind = match gso.kind {
            GsoKind::Tcp4 => self.tso4,
            GsoKind::Tcp6 => self.tso6,
            GsoKind::Udp => self.uso,
        };
        let tunnel = match gso.tunnel {
            None => true,
            Some(tunnel) if tunnel.outer_checksum => self.tunnel_checksum,
            Some(_) => self.tunnel,
        };
        self.checksum && kind && tunnel
    }

    /// Finishes `frame` in place as far as the device needs it, and says what comes next.
    #[inline]
    pub fn prepare(&self, frame: &mut Frame, stats: &mut Stats) -> Next {
        if frame.is_finished() { Next::Send } else { self.prepare_offloads(frame, stats) }
    }

    fn prepare_offloads(&self, frame: &mut Frame, stats: &mut Stats) -> Next {
        if frame.checksum() == Checksum::Unknown {
            checksum::resolve(frame);
        }
        if frame.is_gso() {
            return if self.cuts(frame) { Next::Send } else { Next::Cut };
        }
        if self.checksum || frame.checksum() == Checksum::Complete {
            return Next::Send;
        }
        stats.tx_checksummed += 1;
        match checksum::complete(frame) {
            Ok(()) => Next::Send,
            Err(_) => Next::Drop,
        }
    }
}
