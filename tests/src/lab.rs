//! The lab: a pipeline with ports that a test holds in its hands, and a clock that it winds.
//!
//! A test reads like a conversation: `send` a frame by a port, `receive` what comes out of another, and say with
//! `changed` which counters moved: all others must not have. Always on, after every turn: frames are conserved, no
//! counter went back. When the lab ends: every frame was looked at, and every chunk is home.

#![expect(clippy::cast_possible_truncation, reason = "a lab has few networks and ports")]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use packet::area::ChunkKind;
use packet::{Area, Batch, Checksum, Frame, FramePool, FrameQueue, Gso, Instant, NetworkId, PortId};
use pipeline::tables::Counters;
use pipeline::{
    DropReason, Event, Limits, NetworkInfo, Outputs, Pipeline, PortInfo, SnapshotBuilder, Tables,
};

const SMALL: usize = 2048;
const LARGE: usize = 16;

/// A frame that left by a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What is known of its checksum.
    pub checksum: Checksum,
    /// How it is to be cut.
    pub gso: Option<Gso>,
}

/// A pipeline under test. See the module header.
pub struct Lab {
    /// The pipeline itself, for what the lab does not wrap.
    pub pipeline: Pipeline,
    /// What it shares with others.
    pub tables: Arc<Tables>,
    /// The configuration; [`Lab::publish`] after changing it.
    pub config: SnapshotBuilder,
    /// The pool of all frames.
    pub pool: FramePool,
    area: Arc<Area>,
    outputs: Outputs,
    batch: Batch,
    now: Instant,
    networks: HashMap<String, NetworkId>,
    ports: BTreeMap<String, (PortId, PortInfo)>,
    received: HashMap<PortId, VecDeque<Received>>,
    baseline: BTreeMap<String, u64>,
}

impl Lab {
    /// Makes a lab without ports and networks, with small tables.
    pub fn empty() -> Self {
        Self::with_limits(Limits {
            ports: 64,
            networks: 16,
            stations: 1024,
            flows: 4096,
            workers: 1,
            ..Limits::default()
        })
    }

    /// Makes a lab with tables of the given sizes.
    pub fn with_limits(limits: Limits) -> Self {
        let tables = Tables::new(limits, [0x5eed, 0xfeed_beef, 0xc00_c1e]);
        let mut config = SnapshotBuilder::new();
        let area = Area::new(SMALL, LARGE).expect("memory for the lab");
        let mut lab = Self {
            pipeline: Pipeline::new(Arc::clone(&tables), config.build(), 0),
            tables,
            config,
            pool: FramePool::new(Arc::clone(&area)),
            area,
            outputs: Outputs::new(limits.ports),
            batch: Batch::new(),
            now: Instant::from_nanos(1_000_000_000),
            networks: HashMap::new(),
            ports: BTreeMap::new(),
            received: HashMap::new(),
            baseline: BTreeMap::new(),
        };
        lab.baseline = lab.counters();
        lab
    }

    /// Makes a lab with one network, `net`, and a port of it for each name.
    pub fn new(ports: &[&str]) -> Self {
        let mut lab = Self::empty();
        lab.network("net", NetworkInfo::new());
        for port in ports {
            lab.port(port, "net", |_| {});
        }
        lab
    }

    /// Adds or replaces a network.
    pub fn network(&mut self, name: &str, info: NetworkInfo) -> NetworkId {
        let next = NetworkId(self.networks.len() as u16);
        let id = *self.networks.entry(name.to_owned()).or_insert(next);
        self.config.set_network(id, info);
        self.publish();
        id
    }

    /// Adds a port of `network`, with `change` made to the defaults; or changes one that is there.
    pub fn port(&mut self, name: &str, network: &str, change: impl FnOnce(&mut PortInfo)) -> PortId {
        let next = PortId(self.ports.len() as u16);
        let network = self.networks[network];
        let (id, info) = self.ports.entry(name.to_owned()).or_insert_with(|| (next, PortInfo::new(network)));
        info.network = network;
        change(info);
        let (id, info) = (*id, info.clone());
        self.config.set_port(id, info);
        // A tunnel has none.
        if self.outputs.queue(id).is_none() && self.ports[name].1.tunnel.is_none() {
            self.outputs.insert(id, FrameQueue::new(512));
        }
        self.publish();
        id
    }

    /// Makes the queue before a port take `limit` frames only.
    pub fn limit_queue(&mut self, port: &str, limit: usize) {
        self.outputs.insert(self.id(port), FrameQueue::new(limit));
    }

    /// Removes a port.
    pub fn remove_port(&mut self, name: &str) {
        let (id, _) = self.ports[name];
        self.config.remove_port(id);
        self.publish();
    }

    /// Gives the configuration to the pipeline.
    pub fn publish(&mut self) {
        self.pipeline.adopt(self.config.build());
    }

    /// Returns the number of a port.
    pub fn id(&self, port: &str) -> PortId {
        self.ports.get(port).unwrap_or_else(|| panic!("no port '{port}'")).0
    }

    /// Returns the lab's time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Winds the clock on.
    pub fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Sends one frame by a port and has it decided.
    pub fn send(&mut self, port: &str, bytes: impl AsRef<[u8]>) {
        let frame = self.pool.alloc_from(bytes.as_ref()).expect("the lab has chunks enough");
        self.send_frame(port, frame);
    }

    /// Sends a frame with whatever offload state it has.
    pub fn send_frame(&mut self, port: &str, frame: Frame) {
        let id = self.id(port);
        self.send_batch([(id, frame)]);
    }

    /// Sends frames that are decided together; at most a batch. Returns how long deciding took, by the machine's clock.
    pub fn send_batch(&mut self, frames: impl IntoIterator<Item = (PortId, Frame)>) -> Duration {
        for (port, frame) in frames {
            self.batch.push(frame, port);
        }
        let start = std::time::Instant::now();
        self.pipeline.run(&mut self.batch, &mut self.outputs, &mut self.pool, self.now);
        let took = start.elapsed();
        assert!(self.batch.is_empty(), "the pipeline left frames undecided");
        self.collect();
        took
    }

    /// Winds the clock on in steps of half a second, and lets the pipeline do what is due.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = (self.now + Duration::from_millis(500)).min(end);
            self.pipeline.tick(&mut self.outputs, &mut self.pool, self.now);
            self.collect();
        }
    }

    /// Takes what the pipeline sent.
    fn collect(&mut self) {
        self.check_ledger();
        for port in self.outputs.touched().to_vec() {
            let queue = self.outputs.queue(port).expect("touched ports have queues");
            while let Some(frame) = queue.pop() {
                let (checksum, gso) = (frame.checksum(), frame.gso());
                let received = Received { bytes: frame.bytes().to_vec(), checksum, gso };
                self.received.entry(port).or_default().push_back(received);
                self.pool.free(frame);
            }
        }
        self.outputs.clear_touched(self.tables.counters(0));
    }

    /// Takes the next frame that left by a port, if there is one.
    pub fn take(&mut self, port: &str) -> Option<Vec<u8>> {
        self.take_whole(port).map(|received| received.bytes)
    }

    /// Takes the next frame that left by a port with what its device is to finish.
    pub fn take_whole(&mut self, port: &str) -> Option<Received> {
        let id = self.id(port);
        self.received.get_mut(&id)?.pop_front()
    }

    /// Expects that `bytes` left by a port next.
    #[track_caller]
    pub fn receive(&mut self, port: &str, bytes: impl AsRef<[u8]>) {
        let frame = self.take(port);
        assert_eq!(
            frame.as_deref().map(Hex),
            Some(Hex(bytes.as_ref())),
            "what left by '{port}'\n{}",
            self.describe()
        );
    }

    /// Expects that nothing (more) left by a port.
    #[track_caller]
    pub fn silent(&mut self, port: &str) {
        let frame = self.take(port);
        assert_eq!(frame.as_deref().map(Hex), None, "'{port}' should be silent\n{}", self.describe());
    }

    /// Takes the pipeline's next event.
    pub fn event(&mut self) -> Option<Event> {
        self.pipeline.next_event()
    }

    /// Expects that just these counters moved since the last time, as `"port.a.rx +1"`.
    #[track_caller]
    pub fn changed(&mut self, expected: &[&str]) {
        let now = self.counters();
        let mut changes: Vec<String> = now
            .iter()
            .filter_map(|(name, value)| {
                let delta = *value as i128 - i128::from(*self.baseline.get(name).unwrap_or(&0));
                (delta != 0).then(|| format!("{name} {delta:+}"))
            })
            .collect();
        let mut expected: Vec<String> = expected.iter().map(|line| (*line).to_owned()).collect();
        changes.sort();
        expected.sort();
        assert_eq!(changes, expected, "what changed\n{}", self.describe());
        self.baseline = now;
    }

    /// Returns how many frames were dropped for `reason`, at all ports together.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.ports.values().map(|(id, _)| self.tables.counters(0).drops(*id, reason)).sum()
    }

    /// Returns all counters and table sizes by name.
    fn counters(&self) -> BTreeMap<String, u64> {
        let counters = self.tables.counters(0);
        let mut all = BTreeMap::from([
            ("created".to_owned(), counters.ledger.created.get()),
            ("consumed".to_owned(), counters.ledger.consumed.get()),
            ("fdb".to_owned(), self.tables.fdb.list().len() as u64),
        ]);
        for (name, (id, _)) in &self.ports {
            all.insert(format!("port.{name}.rx"), counters.port(*id).rx_frames.get());
            all.insert(format!("port.{name}.tx"), counters.port(*id).tx_frames.get());
            for reason in DropReason::ALL {
                all.insert(format!("port.{name}.drop.{reason}"), counters.drops(*id, *reason));
            }
        }
        all
    }

    /// Received and created frames were forwarded, dropped or consumed, each once; and drops have reasons.
    #[track_caller]
    fn check_ledger(&self) {
        let counters: &Counters = self.tables.counters(0);
        let ledger = &counters.ledger;
        assert_eq!(
            ledger.received.get() + ledger.created.get(),
            ledger.forwarded.get() + ledger.dropped.get() + ledger.consumed.get() + ledger.held.get(),
            "frames are conserved\n{}",
            self.describe()
        );
        let by_reason: u64 = DropReason::ALL
            .iter()
            .flat_map(|reason| (0..counters.port_count()).map(|n| counters.drops(PortId(n as u16), *reason)))
            .sum();
        assert_eq!(ledger.dropped.get(), by_reason, "every drop has one reason");
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.counters().iter().filter(|(_, value)| **value > 0) {
            let _ = writeln!(text, "  {name} = {value}");
        }
        text
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for (name, (id, _)) in &self.ports {
            let rest = self.received.get(id).map_or(0, VecDeque::len);
            assert_eq!(rest, 0, "frames that left by '{name}' and nobody looked at");
        }
        self.pool.flush();
        assert_eq!(self.area.free(ChunkKind::Small), SMALL, "small chunks at home");
        assert_eq!(self.area.free(ChunkKind::Large), LARGE, "large chunks at home");
    }
}

impl std::fmt::Debug for Lab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lab").field("ports", &self.ports).finish_non_exhaustive()
    }
}

/// Bytes that print as a hex dump.
#[derive(PartialEq)]
struct Hex<'a>(&'a [u8]);

impl std::fmt::Debug for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, byte) in self.0.iter().enumerate() {
            f.write_str(if n % 16 == 0 { "\n  " } else { " " })?;
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
