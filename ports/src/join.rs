//! Packets of one TCP connection that follow one another in a queue, handed to the device as the large frame that they were.
//!
//! What a network card or another host has cut arrives packet by packet; a container's stack costs as much for 1400 bytes
//! as for 64 KiB. So what stands next to its successor leaves together, as the kernel's own receive offload does it (GRO):
//! the device gets one header and the payloads in a row, from where they are. No frame is changed or copied: what is
//! joined is joined by the system call only, and cut by who has to into what it was.
//!
//! Two packets are joined when the large frame, cut, gives both back: same headers but for length, sequence number,
//! identification and checksum; the first one full, and without PSH; nothing but ACK and ECE set. A joined packet's own
//! checksum is gone, so one that a device has not left to us is verified first: what was damaged stays alone, and
//! damaged.
//!
//! Limits: untagged frames, IPv4 without options, IPv6 without extension headers, neighbours only. [`MOST`] packets.

use packet::checksum::{self, Sum};
use packet::header::{protocol, tcp_flags};
use packet::{Checksum, Frame, GsoKind};

use crate::finish::Can;
use crate::vnet;

/// Most packets that are joined: as many as one system call of a packet socket takes.
pub(crate) const MOST: usize = 64;
/// Bytes of the longest headers: Ethernet, IPv6, TCP with all options; and before them those of virtio.
const HEADERS: usize = 14 + 40 + 60;
const MAX_IP_LEN: usize = 65535;

const IPV4: usize = 34;
const IPV6: usize = 54;
const TCP_LEN: usize = 20;
const TCP_CHECKSUM: usize = 16;

/// A TCP packet that may be joined with others.
#[derive(Clone, Copy)]
struct Packet<'a> {
    bytes: &'a [u8],
    /// Where the TCP header is, [`IPV4`] or [`IPV6`], and the payload.
    l4: usize,
    payload: usize,
    /// The checksum is in the packet, and has to be right.
    is_complete: bool,
}

impl<'a> Packet<'a> {
    #[inline]
    fn of(frame: &'a Frame) -> Option<Self> {
        let bytes = frame.bytes();
        let head = bytes.first_chunk::<IPV6>()?;
        let (l4, end) = match head[12..15] {
            [0x08, 0x00, 0x45] => {
                let fragment = u16::from_be_bytes([head[20], head[21]]) & 0xbfff;
                let end = 14 + usize::from(u16::from_be_bytes([head[16], head[17]]));
                (head[23] == protocol::TCP && fragment == 0).then_some((IPV4, end))?
            }
            [0x86, 0xdd, version] if version >> 4 == 6 => {
                let end = IPV6 + usize::from(u16::from_be_bytes([head[18], head[19]]));
                (head[20] == protocol::TCP).then_some((IPV6, end))?
            }
            _ => return None,
        };
        let tcp = bytes.get(l4..l4 + TCP_LEN)?;
        let header_len = usize::from(tcp[12] >> 4) * 4;
        let payload = l4 + header_len;
        let plain = matches!(tcp[13] & !tcp_flags::PSH, tcp_flags::ACK | ACK_ECE);
        if !plain || header_len < TCP_LEN || payload >= end || end != bytes.len() || frame.is_gso() {
            return None;
        }
        let is_complete = match frame.checksum() {
            Checksum::Complete => true,
            Checksum::Partial { start, offset }
                if (usize::from(start), usize::from(offset)) == (l4, TCP_CHECKSUM) =>
            {
                false
            }
            _ => return None,
        };
        Some(Self { bytes, l4, payload, is_complete })
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.payload
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
    }

    fn short(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// Says whether `next` is what comes behind, cut from the same large frame.
    #[inline]
    fn precedes(&self, next: &Packet<'_>) -> bool {
        const DONT_FRAGMENT: u16 = 0x4000;
        let (a, b, l4) = (self.bytes, next.bytes, self.l4);
        if (l4, self.payload) != (next.l4, next.payload) || a[l4 + 13] & tcp_flags::PSH != 0 {
            return false;
        }
        #[expect(clippy::cast_possible_truncation, reason = "an IP packet's length")]
        let follows = self.word(l4 + 4).wrapping_add(self.len() as u32) == next.word(l4 + 4);
        // Flags, but for PSH, which ends a row.
        let flags = (a[l4 + 13] ^ b[l4 + 13]) & !tcp_flags::PSH == 0;
        let tcp = a[l4..l4 + 4] == b[l4..l4 + 4]
            && a[l4 + 8..l4 + 13] == b[l4 + 8..l4 + 13]
            && a[l4 + 14..l4 + 16] == b[l4 + 14..l4 + 16]
            && a[l4 + 18..self.payload] == b[l4 + 18..self.payload];
        let ip = if l4 == IPV4 {
            let counted =
                self.short(20) & DONT_FRAGMENT != 0 || self.short(18).wrapping_add(1) == next.short(18);
            // Type of service; flags; time to live and protocol; addresses.
            a[15] == b[15] && a[20..24] == b[20..24] && a[26..34] == b[26..34] && counted
        } else {
            // Traffic class and flow label; hop limit; addresses.
            a[14..18] == b[14..18] && a[20..54] == b[20..54]
        };
        follows && flags && tcp && ip && a[..14] == b[..14]
    }

    /// Says whether its checksums are what they should be.
    fn is_intact(&self) -> bool {
        let whole = |sum: Sum| sum.fold() == 0xffff;
        (self.l4 == IPV6 || whole(Sum::new().bytes(&self.bytes[14..IPV4])))
            && (!self.is_complete || whole(self.pseudo(self.bytes.len()).bytes(&self.bytes[self.l4..])))
    }

    /// Returns the sum of the pseudo header of a frame that ends at `end`.
    fn pseudo(&self, end: usize) -> Sum {
        pseudo(self.bytes, self.l4, end)
    }
}

const ACK_ECE: u8 = tcp_flags::ACK | tcp_flags::ECE;

fn pseudo(headers: &[u8], l4: usize, end: usize) -> Sum {
    #[expect(clippy::cast_possible_truncation, reason = "an IP packet's length")]
    let len = (end - l4) as u32;
    let address = |at: usize| headers[at..at + 16].try_into().expect("sixteen bytes");
    let short = |at: usize| headers[at..at + 4].try_into().expect("four bytes");
    if l4 == IPV4 {
        checksum::pseudo_v4(short(26), short(30), protocol::TCP, len)
    } else {
        checksum::pseudo_v6(&address(22), &address(38), protocol::TCP, len)
    }
}

/// Says how many of the frames in front, at least one, are to be joined for a device that `can`.
#[inline]
pub(crate) fn count<'a>(can: &Can, mut frames: impl Iterator<Item = &'a Frame>) -> usize {
    let Some(first) = frames.next().and_then(Packet::of) else { return 1 };
    count_behind(can, first, frames)
}

fn count_behind<'a>(can: &Can, first: Packet<'_>, frames: impl Iterator<Item = &'a Frame>) -> usize {
    let kind = if first.l4 == IPV4 { can.tso4 } else { can.tso6 };
    if !kind || !can.checksum {
        return 1;
    }
    let (size, l3) = (first.len(), if first.l4 == IPV4 { 14 } else { IPV6 });
    let (mut count, mut end) = (1, first.bytes.len());
    let mut last = first;
    for frame in frames.take(MOST - 1) {
        let Some(next) = Packet::of(frame) else { break };
        let fits = last.len() == size && next.len() <= size && end + next.len() - l3 <= MAX_IP_LEN;
        if !fits || !last.precedes(&next) || (count == 1 && !first.is_intact()) || !next.is_intact() {
            break;
        }
        end += next.len();
        count += 1;
        last = next;
    }
    count
}

/// The headers of packets that are joined, with those of virtio in front.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    bytes: [u8; vnet::TUNNEL_LEN + HEADERS],
    /// Bytes of the virtio header, all bytes, where the TCP header is in the packet, and the payload of the first.
    vnet: usize,
    len: usize,
    l4: usize,
    size: usize,
    payload: usize,
}

impl Default for Head {
    fn default() -> Self {
        Self { bytes: [0; vnet::TUNNEL_LEN + HEADERS], vnet: 0, len: 0, l4: 0, size: 0, payload: 0 }
    }
}

impl Head {
    /// Begins with the first of packets that [`count`] found, for a device whose virtio header has `vnet` bytes.
    pub(crate) fn start(&mut self, vnet: usize, frame: &Frame) {
        let packet = Packet::of(frame).expect("it was counted");
        self.vnet = vnet;
        self.len = vnet + packet.payload;
        self.l4 = packet.l4;
        self.size = packet.len();
        self.payload = 0;
        self.bytes[vnet..self.len].copy_from_slice(&packet.bytes[..packet.payload]);
    }

    /// Adds a packet, the first one too, and returns where in it the payload starts.
    pub(crate) fn add(&mut self, frame: &Frame) -> usize {
        let start = self.len - self.vnet;
        self.payload += frame.len() - start;
        self.bytes[self.vnet + self.l4 + 13] |= frame.bytes()[self.l4 + 13] & tcp_flags::PSH;
        start
    }

    /// Returns the headers when all packets were added.
    #[expect(clippy::cast_possible_truncation, reason = "an IP packet is below 64 KiB")]
    pub(crate) fn finish(&mut self) -> &mut [u8] {
        let header_len = self.len - self.vnet;
        let end = header_len + self.payload;
        let (vnet, packet) = self.bytes[..self.len].split_at_mut(self.vnet);
        let kind = if self.l4 == IPV4 {
            packet[16..18].copy_from_slice(&((end - 14) as u16).to_be_bytes());
            packet[24..26].fill(0);
            let sum = Sum::new().bytes(&packet[14..IPV4]).checksum();
            packet[24..26].copy_from_slice(&sum.to_be_bytes());
            GsoKind::Tcp4
        } else {
            packet[18..20].copy_from_slice(&((end - IPV6) as u16).to_be_bytes());
            GsoKind::Tcp6
        };
        let sum = pseudo(packet, self.l4, end).fold();
        let at = self.l4 + TCP_CHECKSUM;
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        vnet::encode_tcp(kind, [self.l4 as u16, header_len as u16, self.size as u16], vnet);
        &mut self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests;
