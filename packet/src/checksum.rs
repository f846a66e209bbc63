//! The Internet checksum (RFC 1071): full, incremental (RFC 1624), and what a sender left undone.
//!
//! A [`Sum`] is a ones' complement sum that is being built, a [`Delta`] the change that a rewrite makes to
//! one. Both keep their words in the machine's byte order: the sum of swapped words is the swapped sum
//! (RFC 1071, 2 B), so only the result is swapped.
//!
//! [`resolve`] finds out what an AF_XDP frame's checksum is, [`complete`] finishes a partial one. Offsets come
//! from other machines (`virtio_net_hdr`) and are trusted nowhere: what does not fit is an error value.

mod crc32c;

use crate::frame::Frame;
use crate::header::{Fragment, Header, Layout, UdpHeader, VxlanHeader, ethertype, protocol};
use crate::offload::Checksum;

/// A ones' complement sum that is being built.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Returns the empty sum.
    #[inline]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds a 16-bit word.
    #[inline]
    #[must_use]
    pub const fn u16(self, value: u16) -> Self {
        Self(self.0 + value.to_be() as u64)
    }

    /// Adds a 32-bit word.
    #[inline]
    #[must_use]
    pub const fn u32(self, value: u32) -> Self {
        Self(self.0 + value.to_be() as u64)
    }

    /// Adds another sum.
    #[inline]
    #[must_use]
    pub const fn sum(self, other: Sum) -> Self {
        Self(self.0 + fold(other.0) as u64)
    }

    /// Adds bytes; when their number is odd a zero follows, so only the last piece may be odd.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        Self(self.0 + u64::from(fold(sum_words(bytes))))
    }

    /// Returns the sum in 16 bits.
    #[inline]
    pub const fn fold(self) -> u16 {
        u16::from_be(fold(self.0))
    }

    /// Returns the checksum: the complement of the sum.
    #[inline]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }

    /// Returns the checksum as UDP wants it: 0 means "none" there, and 0xffff is the same number.
    #[inline]
    pub const fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// Sums 32-bit words into 64-bit lanes, which cannot overflow below 16 GiB, so no carry has to be looked after
/// in the loop and the compiler makes it a vector loop.
#[inline]
fn sum_words(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 8];
    let (chunks, rest) = bytes.as_chunks::<32>();
    for chunk in chunks {
        let (words, _) = chunk.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut sum: u64 = lanes.iter().sum();
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    let last = match *rest {
        [a, b, c] => [a, b, c, 0],
        [a, b] => [a, b, 0, 0],
        [a] => [a, 0, 0, 0],
        _ => [0; 4],
    };
    sum + u64::from(u32::from_ne_bytes(last))
}

/// Brings a sum down to 16 bits with end-around carry.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the last two lines leave at most 16 bits")]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Returns the sum of the IPv4 pseudo header; `len` is that of the transport header and its payload.
#[inline]
pub fn pseudo_v4(src: [u8; 4], dst: [u8; 4], protocol: u8, len: u32) -> Sum {
    let addresses = u64::from(u32::from_ne_bytes(src)) + u64::from(u32::from_ne_bytes(dst));
    Sum(addresses).u16(u16::from(protocol)).u32(len)
}

/// Returns the sum of the IPv6 pseudo header; `len` is that of the transport header and its payload.
#[inline]
pub fn pseudo_v6(src: &[u8; 16], dst: &[u8; 16], protocol: u8, len: u32) -> Sum {
    Sum(sum_words(src) + sum_words(dst)).u16(u16::from(protocol)).u32(len)
}

/// The change that a rewrite makes to a ones' complement sum: old words out, new words in.
///
/// Compiled once into a flow's transform, it is one addition and two folds a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// Returns "no change".
    #[inline]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds the change of a 16-bit word.
    #[inline]
    #[must_use]
    pub const fn u16(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old).to_be() as u64 + new.to_be() as u64)
    }

    /// Adds the change of a 32-bit word.
    #[inline]
    #[must_use]
    pub const fn u32(self, old: u32, new: u32) -> Self {
        Self(self.0 + (!old).to_be() as u64 + new.to_be() as u64)
    }

    /// Adds the change of an IPv4 address.
    #[inline]
    #[must_use]
    pub const fn ipv4(self, old: [u8; 4], new: [u8; 4]) -> Self {
        self.u32(u32::from_be_bytes(old), u32::from_be_bytes(new))
    }

    /// Adds the change of an IPv6 address.
    #[inline]
    #[must_use]
    pub fn ipv6(self, old: &[u8; 16], new: &[u8; 16]) -> Self {
        Self(self.0 + sum_words(&old.map(|b| !b)) + sum_words(new))
    }

    /// Adds another change.
    #[inline]
    #[must_use]
    pub const fn and(self, other: Delta) -> Self {
        Self(self.0 + fold(other.0) as u64)
    }

    /// Returns the change in 16 bits, for a table entry.
    #[inline]
    pub const fn folded(self) -> u16 {
        u16::from_be(fold(self.0))
    }

    /// Returns the change that [`Delta::folded`] gave.
    #[inline]
    pub const fn from_folded(folded: u16) -> Self {
        Self(folded.to_be() as u64)
    }

    /// Returns the checksum after the change (RFC 1624, eqn. 3).
    #[inline]
    pub const fn apply(self, checksum: u16) -> u16 {
        !u16::from_be(fold(self.0 + (!checksum).to_be() as u64))
    }

    /// Returns the UDP checksum after the change: none (0) stays none.
    #[inline]
    pub const fn apply_udp(self, checksum: u16) -> u16 {
        match (checksum, self.apply(checksum)) {
            (0, _) => 0,
            (_, 0) => 0xffff,
            (_, sum) => sum,
        }
    }

    /// Returns the pseudo-header sum after the change, for the field of a [`Checksum::Partial`] frame. Ports
    /// are not in the pseudo header: such a frame takes the change of the addresses only.
    #[inline]
    pub const fn apply_partial(self, sum: u16) -> u16 {
        u16::from_be(fold(self.0 + sum.to_be() as u64))
    }
}

/// Where SCTP's checksum is, from the start of its header. No protocol with an Internet checksum has it there,
/// so a partial checksum at this offset is SCTP's CRC32c, wherever in the packet it starts.
pub const SCTP_CHECKSUM_AT: u16 = 8;

/// Returns SCTP's checksum, as the field has it, after the ports of a packet of `len` bytes (header and chunks)
/// became others: `old` and `new` are both ports in the order of the wire. A checksum that was wrong stays wrong.
pub fn sctp_ports_changed(checksum: [u8; 4], old: [u8; 4], new: [u8; 4], len: usize) -> [u8; 4] {
    let change = crc32c::change(old, new, len.saturating_sub(4));
    (u32::from_le_bytes(checksum) ^ change).to_le_bytes()
}

/// Why a checksum cannot be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfinishable {
    /// The checksum's start or place is outside the packet.
    #[error("the checksum to be finished is outside the packet")]
    Outside,
    /// The frame is to be segmented first.
    #[error("a large frame has one checksum for each segment")]
    Gso,
}

/// Finishes the checksum of a frame: afterwards it is [`Checksum::Complete`]. An unknown one is resolved first.
/// Sums to the end of the packet, as virtio defines it. SCTP ([`SCTP_CHECKSUM_AT`]) gets its CRC32c, of which
/// virtio knows nothing: the kernel passes such packets on with nothing but the offset to tell.
///
/// # Errors
/// When the state's offsets leave the packet, or the frame is a large one; nothing was changed then.
#[inline]
pub fn complete(frame: &mut Frame) -> Result<(), Unfinishable> {
    if frame.checksum() == Checksum::Unknown {
        resolve(frame);
    }
    let Checksum::Partial { start, offset } = frame.checksum() else { return Ok(()) };
    if frame.is_gso() {
        return Err(Unfinishable::Gso);
    }
    let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
    let bytes = frame.bytes_mut();
    if at + 2 > bytes.len() {
        return Err(Unfinishable::Outside);
    }
    let summed = bytes.get(start..).ok_or(Unfinishable::Outside)?;
    if at - start == usize::from(SCTP_CHECKSUM_AT) {
        let (before, rest) = summed.split_at(usize::from(SCTP_CHECKSUM_AT));
        let (_, after) = rest.split_first_chunk::<4>().ok_or(Unfinishable::Outside)?;
        let crc = crc32c::crc32c(&[before, &[0; 4], after]);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        frame.set_checksum(Checksum::Complete);
        return Ok(());
    }
    // Any protocol may have 0xffff for 0, and UDP must (as `skb_checksum_help` does).
    let sum = Sum::new().bytes(summed).udp_checksum();
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    frame.set_checksum(Checksum::Complete);
    Ok(())
}

/// Finds out what an [`Checksum::Unknown`] frame's checksum is.
///
/// A sender that leaves the checksum to its device writes the folded sum of the pseudo header into the field.
/// Where that is what the field holds, the state becomes `Partial`, else `Complete`; so is a fragment, a packet
/// without TCP or UDP, and a malformed one. SCTP leaves a zero. A complete checksum looks partial once in 65536 packets by chance;
/// finishing it again then gives a wrong one, and the sender sends again. What is inside a VXLAN packet is
/// looked at too: the kernel's VXLAN leaves the inner checksum to the device.
#[inline]
pub fn resolve(frame: &mut Frame) {
    if frame.checksum() == Checksum::Unknown {
        let state = partial_in(frame.bytes(), 0).unwrap_or(Checksum::Complete);
        frame.set_checksum(state);
    }
}

/// Returns the partial checksum of the frame that starts at `from` within `bytes`.
fn partial_in(bytes: &[u8], from: usize) -> Option<Checksum> {
    let inner = bytes.get(from..)?;
    let layout = Layout::of(inner).ok()?;
    if layout.is_ip() && layout.protocol == protocol::SCTP && layout.fragment == Fragment::No {
        let field = inner.get(usize::from(layout.l4)..)?.get(8..12)?;
        let start = u16::try_from(from + usize::from(layout.l4)).ok()?;
        return (field == [0; 4]).then_some(Checksum::Partial { start, offset: SCTP_CHECKSUM_AT });
    }
    let offset = layout.checksum_at()?;
    let field = word_at(inner, usize::from(layout.l4) + usize::from(offset))?;
    if field != 0 && field == pseudo(inner, &layout)?.fold() {
        let start = u16::try_from(from + usize::from(layout.l4)).ok()?;
        return Some(Checksum::Partial { start, offset });
    }
    let udp = UdpHeader::at(inner, usize::from(layout.l4))?;
    if from == 0 && layout.protocol == protocol::UDP && udp.dst_port.get() == VxlanHeader::PORT {
        return partial_in(bytes, usize::from(layout.l4) + UdpHeader::LEN + VxlanHeader::LEN);
    }
    None
}

/// Returns the pseudo-header sum of an IP packet with the given layout, or `None` when it is not IP.
pub fn pseudo(frame: &[u8], layout: &Layout) -> Option<Sum> {
    let len = layout.end.checked_sub(u32::from(layout.l4))?;
    pseudo_of_len(frame, layout, len)
}

/// As [`pseudo`], for a transport header and payload of `len` bytes.
pub(crate) fn pseudo_of_len(frame: &[u8], layout: &Layout, len: u32) -> Option<Sum> {
    use crate::header::{Ipv4Header, Ipv6Header};
    let l3 = usize::from(layout.l3);
    match layout.ethertype {
        ethertype::IPV4 => {
            let header = Ipv4Header::at(frame, l3)?;
            Some(pseudo_v4(header.src, header.dst, layout.protocol, len))
        }
        ethertype::IPV6 => {
            let header = Ipv6Header::at(frame, l3)?;
            Some(pseudo_v6(&header.src, &header.dst, layout.protocol, len))
        }
        _ => None,
    }
}

/// Says whether the checksum of the TCP, UDP, SCTP, ICMP or ICMPv6 packet in `frame` is right. `None` when there is
/// nothing to check: not IP, another protocol, a fragment, malformed, or UDP over IPv4 without a checksum.
pub fn is_valid(frame: &[u8]) -> Option<bool> {
    let layout = Layout::of(frame).ok()?;
    if !layout.is_ip() || layout.fragment != Fragment::No {
        return None;
    }
    let packet = frame.get(usize::from(layout.l4)..layout.end as usize)?;
    if layout.protocol == protocol::SCTP {
        let (before, rest) = packet.split_at_checked(usize::from(SCTP_CHECKSUM_AT))?;
        let (field, after) = rest.split_first_chunk::<4>()?;
        return Some(crc32c::crc32c(&[before, &[0; 4], after]).to_le_bytes() == *field);
    }
    let sum = Sum::new().bytes(packet);
    let sum = match layout.protocol {
        protocol::ICMP if layout.ethertype == ethertype::IPV4 => sum,
        protocol::UDP if layout.ethertype == ethertype::IPV4 && word_at(packet, 6)? == 0 => return None,
        protocol::TCP | protocol::UDP | protocol::ICMPV6 => sum.sum(pseudo(frame, &layout)?),
        _ => return None,
    };
    Some(sum.fold() == 0xffff)
}

/// Returns the big-endian word at `at`.
#[inline]
pub(crate) fn word_at(bytes: &[u8], at: usize) -> Option<u16> {
    let word: [u8; 2] = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
    Some(u16::from_be_bytes(word))
}

#[cfg(test)]
mod tests;
