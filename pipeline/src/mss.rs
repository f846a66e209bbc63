//! Keeps TCP below the path's MTU: lowers the segment size that a SYN asks for.
//!
//! Path MTU discovery needs ICMP, which many networks drop; a segment size that fits needs nothing. The size is in an
//! option of SYN and SYN-ACK (RFC 9293, 3.7.1). It is only ever lowered, and where there is none, none is added: the
//! peer then sends 536 bytes (1220 over IPv6), which fits everywhere.

use packet::checksum::{self, Delta};
use packet::header::{Fragment, Header, TcpHeader, protocol, tcp_flags};
use packet::{Checksum, Frame};

use crate::headers::Headers;

/// The option's kind; its length is 4.
const MSS: u8 = 2;
const END: u8 = 0;
const NO_OPERATION: u8 = 1;

/// Lowers the segment size in a SYN or SYN-ACK to what fits into IP packets of `mtu` bytes, and says whether it had to.
/// `headers` are those of the frame; every other packet stays as it is.
pub fn clamp_mss(frame: &mut Frame, headers: &Headers, mtu: usize) -> bool {
    let is_syn = headers.protocol == protocol::TCP && headers.tcp_flags & tcp_flags::SYN != 0;
    if !is_syn || headers.fragment != Fragment::No {
        return false;
    }
    let most = mtu.saturating_sub(if headers.v6 { 60 } else { 40 });
    let Ok(most) = u16::try_from(most) else { return false };
    checksum::resolve(frame);
    let partial = matches!(frame.checksum(), Checksum::Partial { start, .. } if start == headers.l4);
    clamp(frame.bytes_mut(), usize::from(headers.l4), most, partial).is_some()
}

fn clamp(bytes: &mut [u8], l4: usize, most: u16, partial: bool) -> Option<()> {
    let header_len = TcpHeader::at(bytes, l4)?.header_len();
    let tcp = bytes.get_mut(l4..l4 + header_len)?;
    let at = find(tcp.get(TcpHeader::LEN..)?)? + TcpHeader::LEN;
    let old = u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    if old <= most {
        return None;
    }
    tcp[at..at + 2].copy_from_slice(&most.to_be_bytes());
    // A partial checksum has summed none of this yet.
    if !partial {
        // At an odd place the halves lie in two words, which sum up to the swapped one (RFC 1071, 2 B).
        let swap = |word: u16| if at % 2 == 0 { word } else { word.swap_bytes() };
        let header = TcpHeader::at_mut(tcp, 0)?;
        header.checksum.set(Delta::new().u16(swap(old), swap(most)).apply(header.checksum.get()));
    }
    Some(())
}

/// Returns where the segment size is in the options of TCP.
fn find(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += match *options.get(at)? {
            END => return None,
            NO_OPERATION => 1,
            kind => match (kind, *options.get(at + 1)?) {
                (MSS, 4) => return options.get(at + 2..at + 4).map(|_| at + 2),
                (_, 0 | 1) => return None,
                (_, len) => usize::from(len),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use packet::build::eth;
    use packet::header::Layout;
    use proptest::prelude::*;

    use super::*;
    use crate::random::{GATEWAY, STATION, is_right, leave_partial, pool};

    /// A SYN whose options are `before`, and then the segment size.
    fn syn(v6: bool, flags: u8, before: &[u8], size: Option<u16>) -> Vec<u8> {
        let mut options = before.to_vec();
        if let Some(size) = size {
            options.extend([2, 4]);
            options.extend(size.to_be_bytes());
        }
        let start = eth(STATION, GATEWAY);
        let tcp = if v6 {
            start.ipv6([0xfd; 16], [0xfc; 16]).tcp(1, 2)
        } else {
            start.ipv4([10, 0, 0, 1], [10, 0, 0, 2]).tcp(1, 2)
        };
        tcp.flags(flags).options(&options).data(b"fast open").bytes()
    }

    /// Clamps in one of the states of a checksum, and returns whether it was changed, and what became of it.
    fn clamped(bytes: &[u8], mtu: usize, partial: bool) -> (bool, Vec<u8>) {
        let mut pool = pool();
        let mut frame = pool.alloc_from(bytes).expect("a chunk");
        if partial {
            leave_partial(&mut frame, &Layout::of(bytes).expect("well-formed"), 16);
        }
        let headers = Headers::of(bytes).expect("well-formed").expect("IP");
        let changed = clamp_mss(&mut frame, &headers, mtu);
        checksum::complete(&mut frame).expect("well-formed");
        let bytes = frame.bytes().to_vec();
        pool.free(frame);
        (changed, bytes)
    }

    proptest! {
        #[test]
        fn a_size_that_is_too_large_becomes_the_largest_that_fits(
            v6 in any::<bool>(), size in any::<u16>(), mtu in 1280usize..9000, pad in 0usize..4, partial in any::<bool>(),
            ack in any::<bool>(),
        ) {
            // Window scale, then so many separators: the size is at an even or odd place.
            let before = [&[3, 3, 7][..], &vec![1; pad]].concat();
            let flags = tcp_flags::SYN | if ack { tcp_flags::ACK } else { 0 };
            let most = u16::try_from(mtu - if v6 { 60 } else { 40 }).expect("below 9000");
            let (changed, bytes) = clamped(&syn(v6, flags, &before, Some(size)), mtu, partial);
            prop_assert!(is_right(&bytes));
            prop_assert_eq!(changed, size > most);
            prop_assert_eq!(bytes, syn(v6, flags, &before, Some(size.min(most))));
        }

        #[test]
        fn any_options_never_panic(options in prop::collection::vec(any::<u8>(), 0..40), mtu in any::<usize>()) {
            let (_, bytes) = clamped(&syn(false, tcp_flags::SYN, &options, None), mtu, false);
            prop_assert!(is_right(&bytes));
        }
    }

    #[test]
    fn what_is_no_syn_or_names_no_size_stays() {
        for (flags, size) in [(tcp_flags::ACK, Some(9000)), (tcp_flags::SYN, None)] {
            let bytes = syn(false, flags, &[1, 1], size);
            assert_eq!(clamped(&bytes, 1400, false), (false, bytes));
        }
    }
}
