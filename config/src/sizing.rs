//! What `[limits]` makes of the memory.
//!
//! `memory` is one budget for three things that grow with the configuration: the tables, the frame area, and
//! what the kernel keeps for AF_XDP sockets (about 128 bytes a chunk of the area and socket, whether the
//! socket uses the chunk or not). Tables take what their limits say; the area is what is left:
//!
//! ```text
//! memory = tables + area + sockets * 128 * area / 4096
//! ```
//!
//! Tables are resident from the start. AF_XDP sockets pin the whole area, so with one such port all of `memory` is
//! resident. The daemon's code and
//! heap, about 12 MiB, come on top: the default of 46 MiB keeps it under 64 MiB whatever happens.

use packet::area::{CHUNK_LEN, LARGE_CHUNK_LEN};

use crate::document::Limits;
use crate::values::ByteSize;

/// Bytes of one station: slot, index, version, and the spare quarter of `pipeline`'s table.
const STATION_BYTES: u64 = 112;
/// Bytes of one entry of a flow cache: of bridged, IPv4, and half an IPv6 flow, the latter two with a byte of their hash.
const FLOW_BYTES: u64 = 162;
/// Bytes of one connection: row, both keys in the index, and its share of NAT bindings.
const CONNECTION_BYTES: u64 = 285;
/// Bytes of one neighbour.
const NEIGHBOR_BYTES: u64 = 128;
/// Bytes of one endpoint: slot, index, lists.
const VTEP_BYTES: u64 = 192;
/// Bytes that each worker keeps for an endpoint: the headers that go before packets to it, and four of those that come with
/// packets from it, of both families.
const TEMPLATE_BYTES: u64 = 128 + 4 * (32 + 64);
/// Bytes that each worker keeps for a port that there may be: counters, one a drop reason too, and queues.
const PORT_BYTES: u64 = 1024;
/// Bytes that the kernel keeps for each chunk of the area and AF_XDP socket (measured, kernel 6.18).
const KERNEL_BYTES: u64 = 128;
/// Small chunks without which not even one worker and one port could run well.
const LEAST_CHUNKS: u64 = 1024;
/// One part in this many of the area is large chunks.
const LARGE_SHARE: u64 = 4;

const SMALL: u64 = CHUNK_LEN as u64;
const LARGE: u64 = LARGE_CHUNK_LEN as u64;

/// How the memory is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizing {
    /// 4 KiB chunks of the area.
    pub small_chunks: usize,
    /// 68 KiB chunks of the area.
    pub large_chunks: usize,
    /// Chunks that each AF_XDP socket keeps in its fill ring: a power of two, so that all sockets together
    /// hold at most half of the small chunks.
    pub fill: u32,
    /// Bytes of the tables.
    pub table_bytes: u64,
    /// Bytes that the kernel keeps for AF_XDP sockets.
    pub kernel_bytes: u64,
}

/// `[limits] memory` does not suffice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{memory} leaves no room for frames beside tables of {tables} and {sockets} AF_XDP sockets")]
pub struct TooSmall {
    memory: ByteSize,
    tables: ByteSize,
    sockets: u64,
    /// What would suffice.
    pub needed: ByteSize,
}

impl Limits {
    /// Shares the memory out among `workers` workers and `sockets` AF_XDP sockets (one a port and queue).
    ///
    /// # Errors
    /// When frames would have less than 4 MiB, or less than 128 chunks a socket.
    pub fn sizing(&self, workers: usize, sockets: usize) -> Result<Sizing, TooSmall> {
        let (workers, sockets) = (workers as u64, sockets as u64);
        let worker = u64::from(self.flows) * FLOW_BYTES
            // Every network may have a tunnel, which counts like a port.
            + (u64::from(self.ports) + u64::from(self.networks)) * PORT_BYTES
            + u64::from(self.vteps) * TEMPLATE_BYTES;
        let shared = u64::from(self.stations) * STATION_BYTES
            + u64::from(self.connections) * CONNECTION_BYTES
            + u64::from(self.neighbors) * NEIGHBOR_BYTES
            + u64::from(self.vteps) * VTEP_BYTES;
        let tables = shared + workers * worker;
        let left = self.memory.bytes().saturating_sub(tables);
        // Chunks of 4 KiB that `left` pays for, with what the kernel keeps about each.
        let pages = left / (SMALL + sockets * KERNEL_BYTES);
        let large = pages * SMALL / LARGE_SHARE / LARGE;
        let small = pages - large * (LARGE / SMALL);
        // Half of the small chunks may sit in fill rings.
        let least = LEAST_CHUNKS.max(sockets * 256);
        if small < least {
            let pages = least * LARGE_SHARE / (LARGE_SHARE - 1) + 2 * LARGE / SMALL;
            let needed = tables + pages * (SMALL + sockets * KERNEL_BYTES);
            return Err(TooSmall {
                memory: self.memory,
                tables: ByteSize::mib(tables.div_ceil(1 << 20)),
                sockets,
                needed: ByteSize::mib(needed.div_ceil(1 << 20)),
            });
        }
        let share = small / 2 / sockets.max(1);
        let fill = 1 << share.clamp(128, 2048).ilog2();
        let chunks = |count: u64| usize::try_from(count).expect("the area fits the address space");
        Ok(Sizing {
            small_chunks: chunks(small),
            large_chunks: chunks(large),
            fill,
            table_bytes: tables,
            kernel_bytes: pages * sockets * KERNEL_BYTES,
        })
    }
}

impl Sizing {
    /// Returns the bytes of the frame area.
    pub fn area_bytes(&self) -> u64 {
        self.small_chunks as u64 * SMALL + self.large_chunks as u64 * LARGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_give_an_area_of_about_thirty_mebibytes() {
        let sizing = Limits::default().sizing(1, 3).expect("fits");
        let area = sizing.area_bytes() >> 20;
        assert!((26..=32).contains(&area), "{area} MiB");
        assert_eq!(sizing.fill, 512);
        assert!(sizing.large_chunks >= 64);
    }

    #[test]
    fn everything_together_stays_within_the_memory() {
        for (mib, workers, sockets) in [(46, 1, 0), (46, 2, 3), (64, 1, 10), (256, 4, 32), (4096, 8, 200)] {
            let limits = Limits { memory: ByteSize::mib(mib), ..Limits::default() };
            let sizing = limits.sizing(workers, sockets).expect("fits");
            let total = sizing.area_bytes() + sizing.table_bytes + sizing.kernel_bytes;
            assert!(total <= mib << 20, "{total}");
            assert!(total > (mib << 20) - (1 << 20), "{total} of {mib} MiB wastes memory");
            assert!(u64::from(sizing.fill) * sockets as u64 <= sizing.small_chunks as u64 / 2);
        }
    }

    #[test]
    fn too_little_memory_is_refused_with_what_would_do() {
        let limits = Limits { memory: ByteSize::mib(9), ..Limits::default() };
        let needed = limits.sizing(1, 3).expect_err("too little").needed;
        assert!(Limits { memory: needed, ..limits }.sizing(1, 3).is_ok());
    }

    #[test]
    fn what_would_do_does() {
        for workers in [1, 2, 16] {
            for sockets in [0, 1, 3, 5, 100, 4096] {
                let limits = Limits { memory: ByteSize::mib(8), ..Limits::default() };
                if let Err(TooSmall { needed, .. }) = limits.sizing(workers, sockets) {
                    assert!(Limits { memory: needed, ..limits }.sizing(workers, sockets).is_ok(), "{needed}");
                }
            }
        }
    }
}
