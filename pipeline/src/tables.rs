//! The tables that workers share: stations, meters, counters.
//!
//! Sized from [`Limits`] when the switch starts; none of them grows. Who may touch what is said in each file.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use packet::{Instant, PortId, VtepId};

pub mod connections;
mod counters;
mod fdb;
mod fragments;
mod index;
mod lists;
mod meter;
pub mod nat_ports;
mod neighbors;
mod vteps;

pub use connections::{Connections, Timeouts};
pub use counters::{Counter, Counters, Ledger, PortCounters};
pub use fdb::{At, Fdb, Found, LearnLimits, Learned, MOVES_A_SECOND, Station, StationKey, StationKind};
pub use fragments::{FragmentDrop, FragmentKey, Fragments, Piece, Sighting};
pub use meter::Meter;
pub use nat_ports::{NatPorts, Pool, PortLease};
pub use neighbors::{Adjacency, Ask, Full, Kind, Neighbor, NeighborKey, NeighborState, Neighbors, Target};
pub use vteps::{Vtep, VtepKey, VtepKind, Vteps};

use crate::flow_cache::routed::MAX_CONNECTIONS;
use crate::snapshot::MAX_PORTS;

/// How large the tables are.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Ports; at most [`MAX_PORTS`].
    pub ports: usize,
    /// Networks.
    pub networks: usize,
    /// Stations, in all networks together.
    pub stations: usize,
    /// Neighbours, in all networks together.
    pub neighbors: usize,
    /// Tunnel endpoints of other hosts; at most [`VtepId::MAX`].
    pub vteps: usize,
    /// Connections, in all networks together.
    pub connections: usize,
    /// How long they live without traffic.
    pub timeouts: Timeouts,
    /// Inside endpoints that have an external port at the same time.
    pub nat_ports: usize,
    /// Decisions in the flow cache of each worker.
    pub flows: usize,
    /// Workers.
    pub workers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ports: 1024,
            networks: 256,
            stations: 16_384,
            neighbors: 16_384,
            vteps: 1024,
            connections: 16_384,
            timeouts: Timeouts::default(),
            nat_ports: 16_384,
            flows: 65_536,
            workers: 1,
        }
    }
}

/// What workers share. See the module header.
#[derive(Debug)]
pub struct Tables {
    /// Which port a station is behind.
    pub fdb: Fdb,
    /// Where an IP next hop is.
    pub neighbors: Neighbors,
    /// Which tunnel endpoint of another host has which address.
    pub vteps: Vteps,
    /// Which flows belong together, and what was decided about them.
    pub connections: Connections,
    /// Which external port an inside endpoint has.
    pub nat_ports: NatPorts,
    limits: Limits,
    counters: Box<[Counters]>,
    storm: Box<[Meter]>,
    refusals: Box<[Meter]>,
    cookie: u64,
    seed: [u64; 2],
    logs_drops: AtomicBool,
}

impl Tables {
    /// Makes empty tables. `random` is secret and different in each process: it seeds the hash functions and
    /// marks our loop probes.
    pub fn new(limits: Limits, random: [u64; 3]) -> Arc<Self> {
        let connections = limits.connections.min(MAX_CONNECTIONS);
        let limits = Limits { ports: limits.ports.min(MAX_PORTS), connections, ..limits };
        let [a, b, cookie] = random;
        Arc::new(Self {
            fdb: Fdb::new(limits.stations, limits.networks, limits.vteps, [a, b]),
            neighbors: Neighbors::new(limits.neighbors, limits.networks, [cookie ^ a, b.rotate_left(7)]),
            vteps: Vteps::new(limits.vteps, limits.networks, [a.rotate_left(37), cookie ^ b.rotate_left(3)]),
            connections: Connections::new(
                limits.connections,
                limits.workers,
                limits.ports,
                limits.timeouts,
                [a.rotate_left(13), cookie ^ b],
            ),
            nat_ports: NatPorts::new(limits.nat_ports, [b.rotate_left(29), cookie ^ a.rotate_left(43)]),
            limits,
            counters: (0..limits.workers).map(|_| Counters::new(limits.ports)).collect(),
            storm: (0..limits.ports).map(|_| Meter::default()).collect(),
            refusals: (0..limits.ports).map(|_| Meter::default()).collect(),
            cookie,
            seed: [b.rotate_left(17), a.rotate_left(31)],
            logs_drops: AtomicBool::new(false),
        })
    }

    /// Removes a tunnel endpoint, and the stations that are behind it, and says whether it was there. Neighbours stay where
    /// the manager set them or ageing removes them; packets to them are dropped as `no_vtep` meanwhile.
    pub fn forget_vtep(&self, vtep: VtepId, now: Instant) -> bool {
        let was_there = self.vteps.remove(vtep, now);
        self.fdb.remove(|station| station.vtep == Some(vtep));
        self.neighbors.remove_all(now, |neighbor| {
            neighbor.state != NeighborState::Fixed
                && neighbor.target.is_some_and(|target| target.vtep == Some(vtep))
        });
        was_there
    }

    /// Returns how large the tables were made.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Returns the counters of a worker.
    ///
    /// # Panics
    /// When there is no such worker.
    pub fn counters(&self, worker: usize) -> &Counters {
        &self.counters[worker]
    }

    /// Returns the counters of all workers.
    pub fn all_counters(&self) -> &[Counters] {
        &self.counters
    }

    /// Returns the storm meter of a port.
    pub(crate) fn storm(&self, port: PortId) -> &Meter {
        &self.storm[port.index()]
    }

    /// Returns the meter of what a port is told about packets that were refused.
    pub(crate) fn refusals(&self, port: PortId) -> &Meter {
        &self.refusals[port.index()]
    }

    /// Returns what marks this switch's loop probes.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    pub(crate) fn seed(&self) -> [u64; 2] {
        self.seed
    }

    /// Has the workers copy the heads of dropped frames into their drop logs, or stops it.
    pub fn set_logs_drops(&self, on: bool) {
        self.logs_drops.store(on, Ordering::Relaxed);
    }

    pub(crate) fn logs_drops(&self) -> bool {
        self.logs_drops.load(Ordering::Relaxed)
    }
}
