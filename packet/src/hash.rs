//! A hash that is the same in every version, for what is made from names and outlives a process.

/// Returns FNV-1a of `bytes`, 64 bits. One byte that differs makes another hash, for every step is a bijection. It mixes
/// upwards: the low bits of similar texts hardly differ. No secret is in it.
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    #[test]
    fn hashes_are_those_of_the_specification() {
        // draft-eastlake-fnv, appendix C.
        for (text, hash) in
            [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            assert_eq!(super::fnv1a(text.bytes()), hash, "{text}");
        }
    }
}
