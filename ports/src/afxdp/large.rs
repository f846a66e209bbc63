//! Large frames: recognized where they come in unmarked, cut where they leave.
//!
//! A native XDP program switches segmentation offload off at the other end of a veth pair, so nothing large
//! arrives. A generic one runs too late for that: the sender's large TCP frames arrive whole, in several
//! descriptors, without a word about how to cut them.

use packet::checksum;
use packet::header::{Header, Layout, TcpHeader, ethertype, protocol};
use packet::{Checksum, Frame, Gso, GsoKind};

/// Marks a frame longer than the device's `mtu` as the large TCP frame it must be. Says whether it is one.
///
/// The segments get as long as the MTU allows: a TCP receiver takes any cut of the stream.
pub(super) fn mark(frame: &mut Frame, mtu: usize) -> bool {
    let Some(gso) = gso_of(frame.bytes(), mtu) else { return false };
    checksum::resolve(frame);
    if !matches!(frame.checksum(), Checksum::Partial { .. }) {
        return false;
    }
    frame.set_gso(Some(gso));
    true
}

fn gso_of(bytes: &[u8], mtu: usize) -> Option<Gso> {
    let layout = Layout::of(bytes).ok()?;
    let kind = match layout.ethertype {
        ethertype::IPV4 => GsoKind::Tcp4,
        ethertype::IPV6 => GsoKind::Tcp6,
        _ => return None,
    };
    // A frame with padding behind its packet is none that a stack made to be cut.
    if layout.protocol != protocol::TCP
        || layout.checksum_at().is_none()
        || layout.end as usize != bytes.len()
    {
        return None;
    }
    let header_len = usize::from(layout.l4) + TcpHeader::at(bytes, usize::from(layout.l4))?.header_len();
    let size = (usize::from(layout.l3) + mtu).checked_sub(header_len).filter(|size| *size > 0)?;
    Some(Gso {
        kind,
        size: u16::try_from(size).ok()?,
        header_len: u16::try_from(header_len).ok()?,
        ecn: false,
        tunnel: None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use packet::{Area, FramePool};

    use super::*;

    /// An IPv4 TCP packet with `payload` bytes, as a stack with checksum offload makes it.
    fn tcp(payload: usize) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        let total = u16::try_from(40 + payload).expect("one IPv4 packet");
        let [high, low] = total.to_be_bytes();
        bytes.extend([0x45, 0, high, low, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let pseudo = checksum::pseudo_v4([10, 0, 0, 1], [10, 0, 0, 2], 6, u32::from(total) - 20).fold();
        let [c0, c1] = pseudo.to_be_bytes();
        bytes.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, c0, c1, 0, 0]);
        bytes.resize(54 + payload, 7);
        bytes
    }

    #[test]
    fn an_uncut_tcp_frame_is_marked_to_be_cut_at_the_mtu() {
        let mut pool = FramePool::new(Area::new(64, 4).expect("a small area"));
        let mut frame = pool.alloc_from(&tcp(20_000)).expect("a large chunk");
        frame.set_checksum(Checksum::Unknown);
        assert!(mark(&mut frame, 1500));
        let gso = frame.gso().expect("marked");
        assert_eq!((gso.kind, gso.size, gso.header_len), (GsoKind::Tcp4, 1460, 54));
        assert_eq!(frame.checksum(), Checksum::Partial { start: 34, offset: 16 });
        pool.free(frame);
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let area = Area::new(64, 4).expect("a small area");
        let mut pool = FramePool::new(Arc::clone(&area));
        let mut bytes = tcp(20_000);
        bytes[23] = 17;
        let udp = bytes.clone();
        bytes[23] = 6;
        bytes[50] ^= 1;
        let finished = bytes.clone();
        let mut padded = tcp(20_000);
        padded.push(0);
        for bytes in [udp, finished, padded, vec![0; 5000], tcp(20_000)[..40].to_vec()] {
            let mut frame = pool.alloc_from(&bytes).expect("a chunk");
            frame.set_checksum(Checksum::Unknown);
            assert!(!mark(&mut frame, 1500), "{} bytes", bytes.len());
            assert!(!frame.is_gso());
            pool.free(frame);
        }
    }
}
