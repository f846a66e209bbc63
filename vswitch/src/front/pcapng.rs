//! Captured frames as pcapng (draft-ietf-opsawg-pcapng), the format of Wireshark and tcpdump.
//!
//! One section, one Ethernet interface with nanosecond stamps, one enhanced packet block a frame with its
//! direction. Little endian.

use crate::worker::capture::{Direction, Record};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;
const OPTION_END: u16 = 0;
const OPTION_IF_NAME: u16 = 2;
const OPTION_IF_TSRESOL: u16 = 9;
const OPTION_EPB_FLAGS: u16 = 2;
const NANOSECONDS: u8 = 9;

/// Returns the blocks that a capture of `interface` begins with.
pub fn header(interface: &str, snaplen: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    let section =
        [&BYTE_ORDER.to_le_bytes()[..], &1u16.to_le_bytes(), &0u16.to_le_bytes(), &[0xff; 8]].concat();
    block(&mut out, SECTION, &section);
    let mut body = [&LINKTYPE_ETHERNET.to_le_bytes()[..], &[0; 2], &snaplen.to_le_bytes()].concat();
    option(&mut body, OPTION_IF_NAME, interface.as_bytes());
    option(&mut body, OPTION_IF_TSRESOL, &[NANOSECONDS]);
    option(&mut body, OPTION_END, &[]);
    block(&mut out, INTERFACE, &body);
    out
}

/// Appends a frame; `unix_nanos` is what 1970 is ahead of the record's clock.
pub fn frame(out: &mut Vec<u8>, record: &Record, unix_nanos: u64) {
    let time = record.time.as_nanos().wrapping_add(unix_nanos);
    let mut body = Vec::with_capacity(record.head.len() + 40);
    let words = [time >> 32, time & 0xffff_ffff, record.head.len() as u64, record.len as u64];
    body.extend_from_slice(&0u32.to_le_bytes());
    for word in words {
        body.extend_from_slice(&u32::try_from(word).unwrap_or(u32::MAX).to_le_bytes());
    }
    padded(&mut body, &record.head);
    let flags: u32 = match record.direction {
        Direction::Rx => 1,
        Direction::Tx => 2,
    };
    option(&mut body, OPTION_EPB_FLAGS, &flags.to_le_bytes());
    option(&mut body, OPTION_END, &[]);
    block(out, PACKET, &body);
}

fn block(out: &mut Vec<u8>, kind: u32, body: &[u8]) {
    let len = u32::try_from(body.len() + 12).expect("a block holds one frame");
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(&len.to_le_bytes());
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    body.extend_from_slice(&code.to_le_bytes());
    body.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    padded(body, value);
}

fn padded(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend_from_slice(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use packet::{Instant, PortId};

    /// Walks the blocks by their lengths, as a reader does.
    fn blocks(mut bytes: &[u8]) -> Vec<(u32, usize)> {
        let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let len = word(&bytes[4..]) as usize;
            assert_eq!(len % 4, 0);
            assert_eq!(word(&bytes[len - 4..]) as usize, len, "both lengths agree");
            found.push((word(bytes), len));
            bytes = &bytes[len..];
        }
        found
    }

    #[test]
    fn blocks_are_whole_and_padded() {
        let mut out = header("port web", 96);
        for len in [0, 1, 59, 60] {
            let record = Record {
                time: Instant::from_nanos(5),
                port: PortId(1),
                direction: Direction::Tx,
                len: 1500,
                head: vec![1; len],
            };
            frame(&mut out, &record, 1 << 60);
        }
        let kinds: Vec<u32> = blocks(&out).iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [SECTION, INTERFACE, PACKET, PACKET, PACKET, PACKET]);
    }
}
