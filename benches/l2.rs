//! The L2 path in memory: a batch of 64-byte frames between stations that are known.
//!
//! Measured is `Pipeline::run`: parse, look-up, checks, count, and queue to the output port. The frames are made
//! and taken out of the queues outside the measurement.
#![allow(clippy::cast_possible_truncation, reason = "sizes of benchmarks are small numbers")]

use std::sync::Arc;

use benches::Case;
use packet::{Area, Batch, Frame, FramePool, FrameQueue, Instant, MacAddr, NetworkId, PortId};
use pipeline::{Limits, NetworkInfo, Outputs, Pipeline, PortInfo, SnapshotBuilder, Tables};

const NETWORK: NetworkId = NetworkId(0);
const PORTS: [PortId; 2] = [PortId(0), PortId(1)];

/// Frames between pairs of stations, the two of each pair behind different ports.
struct Bridge {
    pipeline: Pipeline,
    outputs: Outputs,
    pool: FramePool,
    batch: Batch,
    pairs: u64,
    random: u64,
}

impl Bridge {
    fn new(stations: u64) -> Self {
        let limits = Limits {
            ports: 2,
            networks: 1,
            stations: stations as usize,
            flows: (stations as usize * 4).max(65_536),
            workers: 1,
            ..Limits::default()
        };
        let tables = Tables::new(limits, [0x0123_4567_89ab_cdef, 0xfeed_face_dead_beef, 7]);
        let mut builder = SnapshotBuilder::new();
        builder.set_network(NETWORK, NetworkInfo::new());
        let mut outputs = Outputs::new(limits.ports);
        for port in PORTS {
            builder.set_port(port, PortInfo::new(NETWORK));
            outputs.insert(port, FrameQueue::new(Batch::CAPACITY));
        }
        let area = Area::new(2048, 0).expect("8 MiB");
        let mut bridge = Self {
            pipeline: Pipeline::new(tables, builder.build(), 0),
            outputs,
            pool: FramePool::new(Arc::clone(&area)),
            batch: Batch::new(),
            pairs: (stations / 2).max(1),
            random: 88_172_645_463_325_252,
        };
        // Every station speaks twice, so that both directions of each pair are known and cached.
        for round in 0..3 {
            for pair in 0..bridge.pairs {
                for side in 0..2 {
                    bridge.push(pair, (side + round) % 2);
                }
                if bridge.batch.room() < 2 {
                    bridge.run();
                    bridge.prepare_outputs();
                }
            }
            bridge.run();
            bridge.prepare_outputs();
        }
        bridge
    }

    fn push(&mut self, pair: u64, side: u64) {
        let station = |side: u64| MacAddr::local(pair * 2 + side).0;
        let mut frame = self.pool.alloc(64).expect("the area is larger than a batch");
        frame.set_len(64);
        let bytes: &mut [u8] = frame.bytes_mut();
        bytes[..6].copy_from_slice(&station(1 - side));
        bytes[6..12].copy_from_slice(&station(side));
        bytes[12..14].copy_from_slice(&[0x08, 0x00]);
        self.batch.push(frame, PORTS[side as usize]);
    }

    fn prepare_outputs(&mut self) {
        for port in PORTS {
            let queue = self.outputs.queue(port).expect("made with it");
            while let Some(frame) = queue.pop() {
                self.pool.free(frame);
            }
        }
        self.outputs.clear_touched(self.pipeline.tables().counters(0));
    }
}

impl Case for Bridge {
    fn prepare(&mut self) {
        self.prepare_outputs();
        // Half from each port, in two runs, as a worker receives them.
        for n in 0..Batch::CAPACITY {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let side = u64::from(n >= Batch::CAPACITY / 2);
            self.push((self.random >> 8) % self.pairs, side);
        }
    }

    fn run(&mut self) -> usize {
        let packets = self.batch.len();
        let now = Instant::from_nanos(1_000_000_000);
        self.pipeline.run(&mut self.batch, &mut self.outputs, &mut self.pool, now);
        packets
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.prepare_outputs();
        let frames: Vec<Frame> = self.batch.drain().collect();
        frames.into_iter().for_each(|frame| self.pool.free(frame));
    }
}

fn main() {
    benches::main(
        "L2 bridge, 64 B, known stations",
        &[
            ("bridge/1", || Box::new(Bridge::new(2))),
            ("bridge/1k", || Box::new(Bridge::new(1_000))),
            ("bridge/64k", || Box::new(Bridge::new(64_000))),
        ],
    );
}
