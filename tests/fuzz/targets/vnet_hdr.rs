//! Any `virtio_net_hdr` before any frame: what is accepted can be carried out, and is written back the same.
#![no_main]

use fuzz::{HEADER_LEN, Reader};
use libfuzzer_sys::fuzz_target;
use packet::segment::{Finish, segment};
use packet::{Checksum, checksum};
use ports::vnet::{self, MERGED_LEN, TUNNEL_LEN};

fuzz_target!(|data: &[u8]| {
    // Two flags that no kernel sets choose the length of the header.
    let flags = data.first().copied().unwrap_or(0);
    let len = [HEADER_LEN, TUNNEL_LEN, MERGED_LEN][usize::from(flags >> 6).min(2)];
    let mut reader = Reader(data);
    let mut header = reader.bytes(len).to_vec();
    header.resize(len, 0);
    header[0] &= 0x3f;
    fuzz::with_pool(|pool| {
        let Some(mut frame) = pool.alloc_from(reader.0) else { return };
        if vnet::decode(&header, &mut frame).is_err() {
            return pool.free(frame);
        }
        assert_ne!(frame.checksum(), Checksum::Unknown);

        let tunnel = frame.gso().and_then(|gso| gso.tunnel);
        if tunnel.is_none() || len == TUNNEL_LEN {
            let mut written = vec![0xaa; len];
            vnet::encode(&frame, &mut written);
            let mut again = pool.copy(&frame).expect("a chunk for a copy");
            vnet::decode(&written, &mut again).expect("our own header");
            assert_eq!((again.checksum(), again.gso()), (frame.checksum(), frame.gso()));
            pool.free(again);
        }

        if frame.is_gso() {
            let mut segments = Vec::new();
            // Refused, all the same, where a look at the whole packet shows that lengths contradict.
            let _ = segment(frame, pool, Finish::Now, |segment| segments.push(segment));
            for segment in segments {
                assert!(segment.is_finished());
                // Inside a tunnel it is the inner one that counts; the library's own tests look at that.
                assert!(tunnel.is_some() || checksum::is_valid(segment.bytes()) != Some(false));
                pool.free(segment);
            }
        } else {
            fuzz::complete(&mut frame);
            pool.free(frame);
        }
    });
});
