//! Software segmentation: cuts a large frame into the packets that it stands for.
//!
//! What a device with TSO or USO does (virtio 1.3, 5.1.6.2), for ports whose device cannot. Every segment gets
//! a copy of all headers, one part of the payload, and its own lengths, IPv4 identification, TCP sequence
//! number, flags and checksums; inside a UDP tunnel the outer headers are fixed as well. VLAN tags, IPv4
//! options and IPv6 extension headers are copied as they are.
//!
//! The frame's own claims are not trusted: where the headers are is read from the packet, and what does not
//! fit is an error. All or nothing: the chunks for all segments are reserved before the first is cut.
//!
//! Limit: [`MAX_SEGMENTS`] a frame, so that a hostile segment size cannot turn one frame into 65535.

use crate::area::ChunkKind;
use crate::checksum::{self, Sum};
use crate::frame::Frame;
use crate::header::{
    Fragment, Header, Ipv4Header, Ipv6Header, Layout, TcpHeader, UdpHeader, ethertype, protocol, tcp_flags,
};
use crate::offload::{Checksum, Gso, GsoKind};
use crate::pool::{FramePool, LARGE_ROOM, MAX_RESERVE, SMALL_ROOM};

/// The most packets that one frame is cut into.
pub const MAX_SEGMENTS: usize = MAX_RESERVE;

/// Who finishes the transport checksums of the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// We do: segments are [`Checksum::Complete`].
    Now,
    /// The output device does: segments are [`Checksum::Partial`]. Outer checksums are complete all the same.
    Later,
}

/// Why a frame cannot be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The packet is not what the offload state says, or its headers are inconsistent.
    #[error("the headers of the large frame do not fit its offload state")]
    Malformed,
    /// The segment size is so small or so large that no memory is set aside for that.
    #[error("the large frame would become too many or too large packets")]
    Size,
    /// The area has not enough chunks left for all segments.
    #[error("no chunks left for the segments")]
    NoMemory,
}

/// Cuts `frame` and gives the packets, in order, to `sink`; returns how many. The frame's chunk goes back to
/// `pool`. A frame that is not large goes to `sink` as it is.
///
/// # Errors
/// `sink` got nothing then, and the frame's chunk is back in `pool`: the caller counts one dropped frame.
pub fn segment(
    frame: Frame,
    pool: &mut FramePool,
    finish: Finish,
    mut sink: impl FnMut(Frame),
) -> Result<usize, SegmentError> {
    let Some(gso) = frame.gso() else {
        sink(frame);
        return Ok(1);
    };
    let result = Plan::new(&frame, gso).and_then(|plan| {
        plan.reserve(pool)?;
        for index in 0..plan.count {
            sink(plan.cut(&frame, pool, finish, index).ok_or(SegmentError::NoMemory)?);
        }
        Ok(plan.count)
    });
    pool.free(frame);
    result
}

/// Where a frame is cut, and what each packet needs.
struct Plan {
    /// The packet that is cut: the one inside when there is a tunnel.
    inner: Layout,
    /// The tunnel's own headers.
    outer: Option<Layout>,
    /// The outer UDP checksum is used.
    outer_checksum: bool,
    /// The transport checksum is used: always, but for IPv4 UDP.
    checksum: bool,
    /// Bytes from the Ethernet header to the transport payload.
    header_len: usize,
    payload_len: usize,
    size: usize,
    count: usize,
}

impl Plan {
    fn new(frame: &Frame, gso: Gso) -> Result<Self, SegmentError> {
        let bytes = frame.bytes();
        let malformed = |_| SegmentError::Malformed;
        let first = Layout::of(bytes).map_err(malformed)?;
        let (inner, outer) = match gso.tunnel {
            None => (first, None),
            Some(tunnel) => {
                let inner = Layout::of_ip(bytes, tunnel.inner_l3).map_err(malformed)?;
                // The checksum trick of `Plan::outer` sums from one to the other, so in whole words.
                let even = inner.l4.wrapping_sub(first.l4) % 2 == 0;
                let behind = usize::from(inner.l3) >= usize::from(first.l4) + UdpHeader::LEN;
                let inside = behind && inner.end <= first.end && even;
                if first.protocol != protocol::UDP || first.l4 != tunnel.outer_l4 || !inside {
                    return Err(SegmentError::Malformed);
                }
                (inner, Some(first))
            }
        };
        let family_and_protocol = match gso.kind {
            GsoKind::Tcp4 => inner.ethertype == ethertype::IPV4 && inner.protocol == protocol::TCP,
            GsoKind::Tcp6 => inner.ethertype == ethertype::IPV6 && inner.protocol == protocol::TCP,
            GsoKind::Udp => inner.is_ip() && inner.protocol == protocol::UDP,
        };
        let whole = first.is_ip() && first.fragment == Fragment::No && inner.fragment == Fragment::No;
        if !family_and_protocol || !whole || gso.size == 0 {
            return Err(SegmentError::Malformed);
        }

        let l4 = usize::from(inner.l4);
        let transport_len = match gso.kind {
            GsoKind::Udp => UdpHeader::LEN,
            _ => TcpHeader::at(bytes, l4).ok_or(SegmentError::Malformed)?.header_len(),
        };
        let header_len = l4 + transport_len;
        let payload_len = (inner.end as usize).checked_sub(header_len).ok_or(SegmentError::Malformed)?;
        if transport_len < TcpHeader::LEN && gso.kind != GsoKind::Udp {
            return Err(SegmentError::Malformed);
        }
        let size = usize::from(gso.size);
        let count = payload_len.div_ceil(size).max(1);
        if count > MAX_SEGMENTS || header_len + size.min(payload_len) > LARGE_ROOM {
            return Err(SegmentError::Size);
        }

        let used = |l4: u16| UdpHeader::at(bytes, usize::from(l4)).is_some_and(|udp| udp.checksum.get() != 0);
        let partial = matches!(frame.checksum(), Checksum::Partial { .. });
        let may_lack = gso.kind == GsoKind::Udp && inner.ethertype == ethertype::IPV4;
        let outer_checksum =
            outer.is_some_and(|o| gso.tunnel.is_some_and(|t| t.outer_checksum) || used(o.l4));
        Ok(Self {
            checksum: partial || !may_lack || used(inner.l4),
            inner,
            outer,
            outer_checksum,
            header_len,
            payload_len,
            size,
            count,
        })
    }

    /// Returns where the payload of packet `index` starts, and its length.
    fn part(&self, index: usize) -> (usize, usize) {
        let start = index * self.size;
        (start, self.size.min(self.payload_len - start))
    }

    /// Sets the chunks for all packets aside.
    fn reserve(&self, pool: &mut FramePool) -> Result<(), SegmentError> {
        let (_, last_len) = self.part(self.count - 1);
        let is_small = |len: usize| self.header_len + len <= SMALL_ROOM;
        let (full, last) = (self.count - 1, 1);
        let small = if is_small(self.size) { full } else { 0 } + if is_small(last_len) { last } else { 0 };
        let enough =
            pool.reserve(ChunkKind::Small, small) && pool.reserve(ChunkKind::Large, self.count - small);
        if enough { Ok(()) } else { Err(SegmentError::NoMemory) }
    }

    /// Makes packet number `index`. `None` when there is no chunk, which `reserve` has excluded.
    fn cut(&self, frame: &Frame, pool: &mut FramePool, finish: Finish, index: usize) -> Option<Frame> {
        let (start, len) = self.part(index);
        let mut segment = pool.alloc(self.header_len + len)?;
        segment.set_len(self.header_len + len);
        let (headers, payload) = frame.bytes().split_at_checked(self.header_len)?;
        let bytes = segment.bytes_mut();
        bytes[..self.header_len].copy_from_slice(headers);
        bytes[self.header_len..].copy_from_slice(&payload[start..start + len]);
        // OK because `new` has found all headers in the same places of the large frame.
        let state = self.fix(bytes, finish, index).expect("the headers are those of the large frame");
        segment.set_checksum(state);
        Some(segment)
    }

    /// Writes what differs from packet to packet into the headers, and returns the checksum's state.
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers and identifications wrap")]
    fn fix(&self, bytes: &mut [u8], finish: Finish, index: usize) -> Option<Checksum> {
        network(bytes, &self.inner, index as u16)?;
        let l4 = usize::from(self.inner.l4);
        let len = u32::try_from(bytes.len() - l4).ok()?;
        let (start, _) = self.part(index);
        if self.inner.protocol == protocol::TCP {
            let tcp = TcpHeader::at_mut(bytes, l4)?;
            tcp.seq.set(tcp.seq.get().wrapping_add(start as u32));
            if index + 1 < self.count {
                tcp.flags &= !(tcp_flags::FIN | tcp_flags::PSH);
            }
            if index > 0 {
                tcp.flags &= !tcp_flags::CWR;
            }
        } else {
            UdpHeader::at_mut(bytes, l4)?.len.set(u16::try_from(len).ok()?);
        }

        let offset = self.inner.checksum_at()?;
        let at = l4 + usize::from(offset);
        let pseudo = checksum::pseudo_of_len(bytes, &self.inner, len)?;
        let mut state = Checksum::Complete;
        if self.checksum {
            bytes.get_mut(at..at + 2)?.copy_from_slice(&pseudo.fold().to_be_bytes());
            match finish {
                Finish::Now => {
                    let sum = Sum::new().bytes(&bytes[l4..]).udp_checksum();
                    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
                }
                Finish::Later => state = Checksum::Partial { start: self.inner.l4, offset },
            }
        }
        if let Some(outer) = &self.outer {
            self.outer(bytes, outer, pseudo, index as u16)?;
        }
        Some(state)
    }

    /// Writes what differs into the tunnel's headers.
    fn outer(&self, bytes: &mut [u8], outer: &Layout, inner_pseudo: Sum, index: u16) -> Option<()> {
        network(bytes, outer, index)?;
        let (l4, inner_l4) = (usize::from(outer.l4), usize::from(self.inner.l4));
        let len = u32::try_from(bytes.len() - l4).ok()?;
        let udp = UdpHeader::at_mut(bytes, l4)?;
        udp.len.set(u16::try_from(len).ok()?);
        udp.checksum.set(0);
        if self.outer_checksum {
            // A transport packet with a right checksum sums to the complement of its pseudo header, so its
            // bytes need not be summed, nor its checksum be finished.
            let inner = match self.checksum {
                true => Sum::new().u16(!inner_pseudo.fold()),
                false => Sum::new().bytes(&bytes[inner_l4..]),
            };
            let pseudo = checksum::pseudo_of_len(bytes, outer, len)?;
            let sum = pseudo.bytes(bytes.get(l4..inner_l4)?).sum(inner);
            UdpHeader::at_mut(bytes, l4)?.checksum.set(sum.udp_checksum());
        }
        Some(())
    }
}

/// Writes the length of packet number `index`, and over IPv4 its identification and header checksum.
fn network(bytes: &mut [u8], layout: &Layout, index: u16) -> Option<()> {
    let l3 = usize::from(layout.l3);
    let len = bytes.len() - l3;
    if layout.ethertype == ethertype::IPV4 {
        let header = Ipv4Header::at_mut(bytes, l3)?;
        header.total_len.set(u16::try_from(len).ok()?);
        header.id.set(header.id.get().wrapping_add(index));
        Ipv4Header::fill_checksum(&mut bytes[l3..])
    } else {
        let header = Ipv6Header::at_mut(bytes, l3)?;
        header.payload_len.set(u16::try_from(len - Ipv6Header::LEN).ok()?);
        Some(())
    }
}

#[cfg(test)]
mod tests;
