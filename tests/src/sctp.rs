//! SCTP packets (RFC 9260, 3) of one chunk, with a CRC32c computed bit by bit, which shares nothing with the switch's.

/// A packet of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SctpPacket {
    /// Source and destination port.
    pub ports: [u16; 2],
    /// The verification tag.
    pub tag: u32,
    /// The chunk's type.
    pub chunk: u8,
    /// What follows the chunk's type, flags and length.
    pub value: Vec<u8>,
}

impl SctpPacket {
    /// Returns the packet from its common header on, padded to four bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for port in self.ports {
            bytes.extend(port.to_be_bytes());
        }
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        let len = u16::try_from(4 + self.value.len()).expect("a chunk has at most 65535 bytes");
        bytes.extend([self.chunk, 0]);
        bytes.extend(len.to_be_bytes());
        bytes.extend(&self.value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let crc = crc32c(&bytes).to_le_bytes();
        bytes[8..12].copy_from_slice(&crc);
        bytes
    }

    /// Reads a packet. `None` when it is malformed, or its checksum wrong.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut zeroed = bytes.to_vec();
        zeroed.get_mut(8..12)?.fill(0);
        if bytes[8..12] != crc32c(&zeroed).to_le_bytes() {
            return None;
        }
        let u16_at = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        Some(Self {
            ports: [u16_at(0)?, u16_at(2)?],
            tag: u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?),
            chunk: *bytes.get(12)?,
            value: bytes.get(16..12 + usize::from(u16_at(14)?))?.to_vec(),
        })
    }
}

/// RFC 9260, appendix A: the reflected polynomial 0x1EDC6F41.
fn crc32c(bytes: &[u8]) -> u32 {
    let byte = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    };
    !bytes.iter().fold(!0, byte)
}

#[cfg(test)]
mod tests {
    use super::{SctpPacket, crc32c};

    #[test]
    fn the_crc_is_that_of_the_standard() {
        // RFC 3720, B.4: 32 bytes of zeroes, and the check value of the catalogue of CRCs.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_is_written_is_read() {
        let packet = SctpPacket { ports: [1, 2], tag: 3, chunk: 4, value: vec![5; 5] };
        assert_eq!(SctpPacket::parse(&packet.bytes()), Some(packet.clone()));
        let mut wrong = packet.bytes();
        wrong[0] ^= 1;
        assert_eq!(SctpPacket::parse(&wrong), None);
    }
}
