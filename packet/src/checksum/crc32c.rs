//! CRC32c, the checksum of SCTP (RFC 9260, appendix A). A byte at a time: SCTP is rare, and this is done only
//! for what a sender left to its device.

/// The Castagnoli polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

#[expect(clippy::cast_possible_truncation, reason = "the index is below 256")]
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
};

/// Returns the CRC of all pieces together.
pub(super) fn crc32c(pieces: &[&[u8]]) -> u32 {
    let mut crc = u32::MAX;
    for byte in pieces.iter().copied().flatten() {
        crc = crc >> 8 ^ TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)];
    }
    !crc
}

/// Returns what is to be XORed to the CRC of a message in which the four bytes `old`, with `behind` bytes behind
/// them, become `new`.
///
/// The CRC is linear: that of the difference, without presets, is the difference of the CRCs. The zeros behind are
/// walked by repeated squaring, so the message need not be read, and a wrong CRC stays as wrong as it was.
pub(super) fn change(old: [u8; 4], new: [u8; 4], behind: usize) -> u32 {
    let difference = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    // Four bytes of the difference shift it by x^32, those behind by x^8 each.
    let (mut result, mut square, mut count) = (difference, X8, behind + 4);
    while count > 0 {
        if count & 1 == 1 {
            result = multiply(result, square);
        }
        square = multiply(square, square);
        count >>= 1;
    }
    result
}

/// x^8, in reversed order: the highest bit is the factor of x^0.
const X8: u32 = 1 << (31 - 8);

/// Multiplies two polynomials modulo [`POLYNOMIAL`], all in reversed order.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 32;
    while bit > 0 {
        bit -= 1;
        if a >> bit & 1 == 1 {
            product ^= b;
        }
        b = if b & 1 == 1 { b >> 1 ^ POLYNOMIAL } else { b >> 1 };
    }
    product
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn change_of_four_bytes_is_that_of_the_whole(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..3000),
            at in any::<prop::sample::Index>(), new in any::<[u8; 4]>(),
        ) {
            let at = at.index(bytes.len() - 3);
            let before = crc32c(&[&bytes]);
            let old: [u8; 4] = bytes[at..at + 4].try_into().expect("four");
            bytes[at..at + 4].copy_from_slice(&new);
            prop_assert_eq!(before ^ change(old, new, bytes.len() - at - 4), crc32c(&[&bytes]));
        }
    }

    #[test]
    fn check_value_is_that_of_the_catalogue() {
        assert_eq!(crc32c(&[b"123456789"]), 0xe306_9283);
        assert_eq!(crc32c(&[b"1234", b"", b"56789"]), 0xe306_9283);
        assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa, "RFC 3720, B.4");
    }
}
