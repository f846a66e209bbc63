//! What the fuzz targets share: reading an input piece by piece, and a memory area whose chunks are counted.
//!
//! Frame inputs look like what a tap hands over: a `virtio_net_hdr` of 10 bytes, then the frame. The corpus was
//! captured that way, from two namespaces joined by a veth pair with every offload on.

use std::sync::Arc;

use packet::area::ChunkKind;
use packet::{Area, Checksum, Frame, FramePool, checksum};

/// Bytes of the `virtio_net_hdr` before a frame.
pub const HEADER_LEN: usize = 10;

/// Takes an input apart from the front. What is missing at the end reads as zero or empty.
#[derive(Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// Returns the next byte, or `None` at the end.
    pub fn op(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Returns the next byte.
    pub fn u8(&mut self) -> u8 {
        self.op().unwrap_or(0)
    }

    /// Returns the next two bytes, the low one first.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    /// Returns the next `len` bytes, or as many as there are.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

/// Chunks of a small switch.
const SMALL: usize = 1500;
const LARGE: usize = 32;

thread_local! {
    static AREA: Arc<Area> = Area::new(SMALL, LARGE).expect("memory for an area");
}

/// Runs `work` with a pool, and checks that every chunk is back afterwards.
pub fn with_pool(work: impl FnOnce(&mut FramePool)) {
    AREA.with(|area| {
        let mut pool = FramePool::new(Arc::clone(area));
        work(&mut pool);
        drop(pool);
        assert_eq!(area.free(ChunkKind::Small), SMALL, "a chunk was lost, or came home twice");
        assert_eq!(area.free(ChunkKind::Large), LARGE, "a large chunk was lost, or came home twice");
    });
}

/// Completes the checksum of a frame whose offsets were checked when it came in. That check knows of two bytes;
/// only SCTP's has four, and may still be cut off.
pub fn complete(frame: &mut Frame) {
    let sctp = matches!(frame.checksum(), Checksum::Partial { offset: checksum::SCTP_CHECKSUM_AT, .. });
    let result = checksum::complete(frame);
    assert!(result.is_ok() || sctp, "{result:?}");
}
