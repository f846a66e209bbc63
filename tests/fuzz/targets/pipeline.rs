//! Any frames, from any ports, through the whole pipeline, while its configuration changes.
//!
//! The input is a stream of operations (see [`Switch::step`]). After every turn the ledger balances, drops by
//! reason add up, what was forwarded is in a queue, and nothing crossed from one network to another.
#![no_main]

use std::sync::Arc;

use fuzz::{HEADER_LEN, Reader};
use libfuzzer_sys::fuzz_target;
use packet::segment::{Finish, segment};
use packet::{Batch, Checksum, Frame, FramePool, FrameQueue, Instant, MacAddr, NetworkId, PortId, VlanId};
use pipeline::{
    DropLog, DropReason, Gateway, Guard, Limits, Neighbor, NetworkInfo, Outputs, Pipeline, PortInfo,
    SnapshotBuilder, Tables, VlanMode, VlanSet,
};
use ports::vnet;

/// Ports 0 to 3 are of network 0, 4 and 5 of network 1; the rest does not exist at first.
const PORTS: u16 = 8;
const QUEUE: usize = 40;

fuzz_target!(|data: &[u8]| {
    fuzz::with_pool(|pool| {
        let mut switch = Switch::new(pool);
        let mut reader = Reader(data);
        while let Some(op) = reader.op() {
            switch.step(op, &mut reader);
        }
        switch.run();
        switch.end();
    });
});

struct Switch<'p> {
    pool: &'p mut FramePool,
    builder: SnapshotBuilder,
    pipeline: Pipeline,
    tables: Arc<Tables>,
    outputs: Outputs,
    batch: Batch,
    /// Every frame that was sent, to be sent again: what was seen once is in the flow cache.
    sent: Vec<Vec<u8>>,
    /// Chunks kept from the pool, so that it runs dry.
    held: Vec<Frame>,
    /// Frames taken out of output queues.
    transmitted: u64,
    now: Instant,
    networks: [NetworkId; PORTS as usize],
}

impl<'p> Switch<'p> {
    fn new(pool: &'p mut FramePool) -> Self {
        let limits = Limits { ports: 16, networks: 4, stations: 32, flows: 64, workers: 1, ..Limits::default() };
        let tables = Tables::new(limits, [1, 2, 3]);
        let mut builder = SnapshotBuilder::new();
        let mut network = NetworkInfo::new();
        network.gateway = Some(Gateway {
            mac: MacAddr::local(0xfe),
            addresses: vec![[10, 1, 0, 2].into(), "fd00::2".parse().expect("an address")],
        });
        let neighbor = Neighbor { mac: MacAddr::local(9), port: PortId(1) };
        network.neighbors.insert([10, 1, 0, 1].into(), neighbor);
        builder.set_network(NetworkId(0), network);
        builder.set_network(NetworkId(1), NetworkInfo::new());
        builder.set_host_addresses([[192, 0, 2, 1].into()].into_iter().collect());
        let mut networks = [NetworkId(0); PORTS as usize];
        for n in 0..6 {
            networks[usize::from(n)] = NetworkId(u16::from(n >= 4));
            builder.set_port(PortId(n), PortInfo::new(networks[usize::from(n)]));
        }
        let mut outputs = Outputs::new(16);
        for n in 0..PORTS {
            outputs.insert(PortId(n), FrameQueue::new(QUEUE));
        }
        let mut pipeline = Pipeline::new(Arc::clone(&tables), builder.build(), 0);
        tables.set_logs_drops(true);
        let (log, _reader) = DropLog::new(8);
        pipeline.set_drop_log(Some(log));
        Self {
            pool,
            builder,
            pipeline,
            tables,
            outputs,
            batch: Batch::new(),
            sent: Vec::new(),
            held: Vec::new(),
            transmitted: 0,
            now: Instant::from_nanos(1_000_000_000),
            networks,
        }
    }

    fn step(&mut self, op: u8, reader: &mut Reader<'_>) {
        match op & 7 {
            // A frame: port, virtio_net_hdr, length, bytes.
            0 | 7 => {
                let port = reader.u8();
                let header = reader.bytes(HEADER_LEN);
                let len = reader.u16();
                let record = [header, reader.bytes(len.into())].concat();
                if header.len() == HEADER_LEN {
                    self.send(port, &record);
                    self.sent.push(record);
                }
            }
            // An earlier frame again; perhaps with its addresses swapped, as its answer would have them.
            1 => {
                let (port, which) = (reader.u8(), reader.u8());
                let Some(earlier) = self.sent.get(usize::from(which) % self.sent.len().max(1)) else {
                    return;
                };
                let mut record = earlier.clone();
                if op & 8 != 0
                    && let Some(macs) = record.get_mut(HEADER_LEN..HEADER_LEN + 12)
                {
                    macs.rotate_left(6);
                }
                self.send(port, &record);
            }
            2 => {
                self.run();
                self.now = Instant::from_nanos(self.now.as_nanos() + u64::from(reader.u8()) * 100_000_000);
            }
            3 => self.transmit(),
            4 => self.configure(reader.u8(), reader.u8()),
            5 => self.hold(usize::from(reader.u8()) * 8),
            _ => {
                self.run();
                self.transmit();
            }
        }
    }

    /// Puts a frame into the batch, as a tap's `receive` would.
    fn send(&mut self, port: u8, record: &[u8]) {
        if self.batch.room() == 0 {
            self.run();
        }
        let (header, bytes) = record.split_at(HEADER_LEN);
        let Some(mut frame) = self.pool.alloc_from(bytes) else { return };
        if vnet::decode(header, &mut frame).is_err() {
            return self.pool.free(frame);
        }
        if port & 0x80 != 0 && !frame.is_gso() {
            frame.set_checksum(Checksum::Unknown);
        }
        self.batch.push(frame, PortId(u16::from(port) % PORTS));
    }

    fn run(&mut self) {
        let mut from = [false; 4];
        for port in self.batch.from() {
            from[self.networks[port.index()].index()] = true;
        }
        self.pipeline.run(&mut self.batch, &mut self.outputs, self.pool, self.now);
        assert!(self.batch.is_empty());
        while self.pipeline.next_event().is_some() {}

        for port in self.outputs.touched() {
            assert!(from[self.networks[port.index()].index()], "a frame crossed over to port {port:?}");
        }
        self.outputs.clear_touched(self.tables.counters(0));
        self.balance();
    }

    fn balance(&self) {
        let counters = self.tables.counters(0);
        let ledger = &counters.ledger;
        let income = ledger.received.get() + ledger.created.get();
        let outcome = ledger.forwarded.get() + ledger.dropped.get() + ledger.consumed.get();
        assert_eq!(income, outcome, "{ledger:?}");
        assert_eq!(ledger.received.get(), ledger.cache_hits.get() + ledger.cache_misses.get());
        let waiting = self.outputs.queued() as u64;
        assert_eq!(ledger.forwarded.get(), waiting + self.transmitted);
        let drops: u64 = (0..PORTS)
            .flat_map(|n| DropReason::ALL.iter().map(move |reason| counters.drops(PortId(n), *reason)))
            .sum();
        assert_eq!(drops, ledger.dropped.get());
        let sent: u64 = (0..PORTS).map(|n| counters.port(PortId(n)).tx_frames.get()).sum();
        assert_eq!(sent, ledger.forwarded.get());
    }

    /// Takes every frame out of the queues, finished as a device without offloads needs it.
    fn transmit(&mut self) {
        for n in 0..PORTS {
            while let Some(frame) = self.outputs.queue(PortId(n)).and_then(FrameQueue::pop) {
                self.transmitted += 1;
                let mut segments = Vec::new();
                let _ = segment(frame, self.pool, Finish::Later, |frame| segments.push(frame));
                for mut frame in segments {
                    fuzz::complete(&mut frame);
                    self.pool.free(frame);
                }
            }
        }
    }

    /// Changes one thing about one port, or a network, between two turns.
    fn configure(&mut self, what: u8, value: u8) {
        self.run();
        let id = PortId(u16::from(value) % PORTS);
        let mut port = PortInfo::new(NetworkId(u16::from(value >> 3 & 1)));
        match what % 9 {
            0 => port.up = false,
            1 => port.vlan = VlanMode::Access(VlanId(7)),
            2 => {
                let native = (value & 16 != 0).then_some(VlanId(7));
                port.vlan = VlanMode::Trunk { allowed: Box::new(VlanSet::all()), native };
            }
            3 => {
                port.guard = Guard {
                    mac: (value & 16 != 0).then_some(MacAddr::local(u64::from(value))),
                    addresses: vec![[10, 1, 0, 1].into(), "fd00::1".parse().expect("an address")],
                };
            }
            4 => port.isolated = true,
            5 => port.mtu = u32::from(value) * 40,
            6 => {
                port.storm = Some(u32::from(value >> 4));
                port.stations = u32::from(value >> 6);
            }
            7 => {
                self.builder.remove_port(id);
                self.adopt();
                return;
            }
            _ => {}
        }
        self.networks[id.index()] = port.network;
        self.builder.set_port(id, port);
        self.adopt();
    }

    fn adopt(&mut self) {
        let snapshot = self.builder.build();
        drop(self.pipeline.adopt(snapshot));
    }

    /// Keeps `count` chunks from the pool.
    fn hold(&mut self, count: usize) {
        while self.held.len() > count {
            let frame = self.held.pop().expect("there are more than `count`");
            self.pool.free(frame);
        }
        while self.held.len() < count {
            let Some(frame) = self.pool.alloc(1) else { return };
            self.held.push(frame);
        }
    }

    fn end(mut self) {
        self.hold(0);
        self.transmit();
        self.balance();
    }
}
