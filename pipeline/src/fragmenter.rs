//! IPv4 fragmentation (RFC 791, 3.2): cuts a packet that may be cut into pieces that fit the next link.
//!
//! Every piece is a copy of the headers and a part of the data; later pieces take only those options that say so
//! (RFC 791, 3.1). A fragment is cut like a whole packet: its pieces count from its own offset, and only the last piece
//! of the last fragment says that nothing follows. The identification is the sender's.
//!
//! All or nothing: chunks for all pieces are set aside before the first is cut. The transport checksum covers the whole
//! packet, so it is completed before; a large frame is to be segmented before. IPv6 is cut by its senders only.

use packet::area::ChunkKind;
use packet::checksum;
use packet::header::{Header, Ipv4Header};
use packet::pool::SMALL_ROOM;
use packet::{Frame, FramePool};

use crate::headers::Headers;

/// The longest IPv4 header.
const MAX_HEADER_LEN: usize = 60;
/// The shortest MTU that a link may have (RFC 791, 3.2): a header and eight bytes.
const MIN_MTU: usize = 68;
/// An option with this bit is copied into all fragments.
const COPIED: u8 = 0x80;
/// Ends the options.
const END: u8 = 0;
/// Separates options, and has no length byte.
const NO_OPERATION: u8 = 1;

/// Cuts the IPv4 packet in `frame` into pieces of at most `mtu` bytes, without Ethernet header and tags, and gives them
/// to `out` in their order. `headers` are those of the frame. A packet that fits goes to `out` as it is.
///
/// # Errors
/// The frame comes back, and `out` got nothing, when the packet must not be cut ("don't fragment", IPv6), is a large
/// frame, or the `mtu` is below 68; or when there are no chunks for the pieces.
pub fn fragment(
    mut frame: Frame,
    headers: &Headers,
    mtu: usize,
    pool: &mut FramePool,
    out: &mut impl FnMut(Frame),
) -> Result<(), Frame> {
    let (l3, end) = (usize::from(headers.l3), headers.end as usize);
    if !frame.is_gso() && end - l3 <= mtu {
        out(frame);
        return Ok(());
    }
    if headers.v6 || headers.dont_fragment || frame.is_gso() || mtu < MIN_MTU {
        return Err(frame);
    }
    if checksum::complete(&mut frame).is_err() {
        return Err(frame);
    }
    let Some(plan) = Plan::new(frame.bytes(), headers, mtu) else { return Err(frame) };
    let kind = if l3 + mtu <= SMALL_ROOM { ChunkKind::Small } else { ChunkKind::Large };
    if !pool.reserve(kind, plan.count()) {
        return Err(frame);
    }
    let mut at = 0;
    while at < plan.data.len() {
        // OK because the chunks were set aside, and all lengths are below the MTU.
        let mut piece = pool.alloc_kind(kind).expect("reserved");
        at += plan.cut(&mut piece, frame.bytes(), at);
        out(piece);
    }
    pool.free(frame);
    Ok(())
}

/// Where the packet is cut.
struct Plan {
    l3: usize,
    /// What is cut, in the frame.
    data: std::ops::Range<usize>,
    /// The header of the first piece, and of the others.
    first: Head,
    later: Head,
    /// Where in the whole packet the data begins, in bytes.
    offset: usize,
    /// Another fragment follows all pieces.
    more: bool,
}

/// An IPv4 header with its options, and how much data fits behind it.
struct Head {
    bytes: [u8; MAX_HEADER_LEN],
    len: usize,
    room: usize,
}

impl Head {
    /// Makes the header with `len` bytes in `bytes`, for packets of at most `mtu` bytes.
    fn new(mut bytes: [u8; MAX_HEADER_LEN], len: usize, mtu: usize) -> Option<Self> {
        bytes[0] = 0x40 | u8::try_from(len / 4).ok()?;
        // All data but the last is in units of eight bytes.
        let room = mtu.checked_sub(len)? & !7;
        (room > 0).then_some(Self { bytes, len, room })
    }
}

impl Plan {
    fn new(bytes: &[u8], headers: &Headers, mtu: usize) -> Option<Self> {
        let (l3, l4, end) = (usize::from(headers.l3), usize::from(headers.l4), headers.end as usize);
        let header = bytes.get(l3..l4)?;
        let offset = headers.fragment_offset as usize;
        // What would end behind the longest packet cannot be said (and is an attack).
        if offset + (end - l4) > usize::from(u16::MAX) {
            return None;
        }
        let mut first = [0; MAX_HEADER_LEN];
        first.get_mut(..header.len())?.copy_from_slice(header);
        let mut later = first;
        later[Ipv4Header::LEN..].fill(END);
        let copied = copy_options(header.get(Ipv4Header::LEN..)?, &mut later[Ipv4Header::LEN..]);
        Some(Self {
            l3,
            data: l4..end,
            first: Head::new(first, header.len(), mtu)?,
            later: Head::new(later, Ipv4Header::LEN + copied, mtu)?,
            offset,
            more: headers.more_fragments,
        })
    }

    /// Returns the number of pieces.
    fn count(&self) -> usize {
        1 + self.data.len().saturating_sub(self.first.room).div_ceil(self.later.room)
    }

    /// Writes the piece whose data begin at `at`, and returns how many there are.
    fn cut(&self, piece: &mut Frame, bytes: &[u8], at: usize) -> usize {
        let head = if at == 0 { &self.first } else { &self.later };
        let start = self.data.start + at;
        let data = &bytes[start..self.data.end.min(start + head.room)];
        piece.set_len(self.l3 + head.len + data.len());
        let (ethernet, packet) = piece.bytes_mut().split_at_mut(self.l3);
        ethernet.copy_from_slice(&bytes[..self.l3]);
        let (header, room) = packet.split_at_mut(head.len);
        header.copy_from_slice(&head.bytes[..head.len]);
        room.copy_from_slice(data);

        let more = self.more || start + data.len() < self.data.end;
        let flags = if more { Ipv4Header::MORE_FRAGMENTS } else { 0 };
        // OK because `new` has checked that the packet ends before 64 KiB.
        let word = |value: usize| u16::try_from(value).expect("shorter than 64 KiB");
        let (len, offset) = (word(packet.len()), word(self.offset + at) >> 3);
        let header = Ipv4Header::at_mut(packet, 0).expect("just written");
        header.total_len.set(len);
        header.flags_fragment.set(flags | offset);
        Ipv4Header::fill_checksum(packet).expect("just written");
        data.len()
    }
}

/// Copies the options that all fragments have from `options` to `to`, and returns their length in whole words. What is
/// malformed ends the list.
fn copy_options(mut options: &[u8], to: &mut [u8]) -> usize {
    let mut len = 0;
    while let [kind, rest @ ..] = options {
        let option_len = match *kind {
            END => break,
            NO_OPERATION => 1,
            _ => rest.first().map_or(0, |len| usize::from(*len)),
        };
        let Some((option, behind)) = options.split_at_checked(option_len.max(1)) else { break };
        if option_len < 2 && *kind != NO_OPERATION {
            break;
        }
        if kind & COPIED != 0
            && let Some(place) = to.get_mut(len..len + option.len())
        {
            place.copy_from_slice(option);
            len += option.len();
        }
        options = behind;
    }
    len.next_multiple_of(4)
}

#[cfg(test)]
mod tests;
