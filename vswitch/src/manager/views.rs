//! What users are shown.

use std::collections::{BTreeMap, HashMap};

use config::Document;
use config::api::{
    Check, Counts, DropCount, Drops, FdbKind, FdbQuery, FdbView, KernelView, Ledger, MemoryView,
    NeighborQuery, NeighborSource, NeighborState, NeighborView, NetworkView, PortCounters, PortState,
    PortView, Status, WorkerView,
};
use futures_util::future::join_all;
use packet::area::ChunkKind;
use packet::{NetworkId, PortId};
use pipeline::DropReason;
use pipeline::tables::{Station, StationKind};
use ports::Stats;

use super::upkeep::Sample;
use super::{Attached, Condition, Manager};
use crate::compile::made_mac;
use crate::doctor;
use crate::plug;
use crate::refusal::Refusal;

impl Manager {
    /// Returns the daemon at a glance.
    pub fn status(&self) -> Status {
        let area = self.crew.area();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let up = self.ports.values().filter(|attached| attached.condition == Condition::Up).count();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.name.clone(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            config_file: self.config_file.clone(),
            config_differs: self.differs_from_file(),
            generation: self.generation,
            confirm_seconds: self
                .unconfirmed
                .as_ref()
                .map(|u| u.deadline.saturating_duration_since(std::time::Instant::now()).as_secs()),
            workers: count(self.crew.shared().len()),
            counts: Counts {
                networks: count(self.saved.intent.networks.len()),
                ports: count(self.saved.intent.ports.len()),
                ports_up: count(up),
                stations: count(self.crew.tables().fdb.list().len()),
                flows: (0..self.crew.shared().len())
                    .map(|n| self.crew.tables().counters(n).ledger.cache_entries.get())
                    .sum(),
            },
            memory: MemoryView {
                rss_bytes: doctor::resident_bytes(),
                limit_bytes: self.limits.memory.bytes(),
                small_chunks: count(area.total(ChunkKind::Small)),
                small_free: count(area.free(ChunkKind::Small)),
                large_chunks: count(area.total(ChunkKind::Large)),
                large_free: count(area.free(ChunkKind::Large)),
                huge_pages: false,
            },
            kernel: KernelView { release: doctor::kernel_release(), features: doctor::kernel_features() },
        }
    }

    /// Returns the whole intent.
    pub fn document(&self) -> Document {
        self.saved.intent.document()
    }

    /// Returns a network.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn network_view(&self, name: &str) -> Result<NetworkView, Refusal> {
        let owned = self.saved.intent.networks.get(name).ok_or_else(|| Refusal::unknown("network", name))?;
        let ports = self.saved.intent.ports.values().filter(|p| p.object.network == name);
        let id = self.networks.get(name);
        let stations = self.crew.tables().fdb.list().iter().filter(|s| Some(&s.key.network) == id).count();
        Ok(NetworkView {
            config: owned.object.clone(),
            owner: owned.owner,
            gateways: owned.object.gateway_addresses(),
            ports: ports.map(|p| p.object.name.clone()).collect(),
            stations: u32::try_from(stations).unwrap_or(u32::MAX),
            mtu: self.resolved(&self.saved.intent, &owned.object).mtu.bytes(),
        })
    }

    /// Returns all networks.
    pub fn network_views(&self) -> Vec<NetworkView> {
        self.saved.intent.networks.keys().filter_map(|name| self.network_view(name).ok()).collect()
    }

    /// Returns a port, with what its queues have counted.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn port_view(&self, name: &str) -> Result<PortView, Refusal> {
        let owned = self.saved.intent.ports.get(name).ok_or_else(|| Refusal::unknown("port", name))?;
        let config = owned.object.clone();
        let network = self.saved.intent.networks.get(&config.network);
        let network = network.map(|network| self.resolved(&self.saved.intent, &network.object));
        let mtu = network.as_ref().map_or(0, |network| crate::compile::mtu(&config, network));
        let mut view = PortView {
            id: None,
            owner: owned.owner,
            state: PortState::Pending,
            reason: None,
            kind: plug::kind(&config),
            mode: String::new(),
            notes: Vec::new(),
            device: String::new(),
            peer: String::new(),
            mac: network.as_ref().map(|network| plug::far_mac(&config, network)),
            mtu,
            workers: Vec::new(),
            counters: PortCounters::default(),
            rates: config::api::Rates::default(),
            config,
        };
        if let Some(attached) = self.ports.get(name) {
            let stats = self.crew.report(attached.id).await.unwrap_or_default();
            self.describe(&mut view, attached, &stats);
        } else if let Some(waiting) = self.waiting.get(name) {
            view.state = if waiting.gone { PortState::Gone } else { PortState::Pending };
            view.reason = Some(waiting.reason.clone());
        }
        Ok(view)
    }

    fn describe(&self, view: &mut PortView, attached: &Attached, stats: &Stats) {
        (view.state, view.reason) = match &attached.condition {
            Condition::Up => (PortState::Up, None),
            Condition::Down => (PortState::Down, Some("the far end is down".to_owned())),
            Condition::Disabled { reason, .. } => (PortState::Down, Some(reason.clone())),
        };
        let device = &attached.plugged.device;
        view.id = Some(attached.id);
        view.mode.clone_from(&attached.mode);
        view.notes.clone_from(&attached.notes);
        view.device.clone_from(&device.near);
        view.peer = format!("{} in {}", device.ifname, device.netns);
        view.workers = attached.workers.iter().map(|w| u32::try_from(*w).unwrap_or(u32::MAX)).collect();
        view.rates = attached.rates;
        let counted = Sample::take(self.crew.tables(), attached.id).since(&attached.base);
        view.counters = PortCounters {
            rx_frames: stats.rx_frames,
            rx_bytes: stats.rx_bytes,
            rx_errors: stats.rx_errors,
            rx_kernel_drops: stats.rx_kernel_drops,
            rx_no_memory: stats.rx_no_memory,
            tx_frames: stats.tx_frames,
            tx_bytes: stats.tx_bytes,
            tx_errors: stats.tx_errors,
            tx_segmented: stats.tx_segmented,
            tx_joined: stats.tx_joined,
            tx_checksummed: stats.tx_checksummed,
            dropped: counted.drops.iter().sum(),
            syscalls: stats.syscalls,
            lent_chunks: stats.lent_chunks,
        };
    }

    /// Returns all ports.
    pub async fn port_views(&self) -> Vec<PortView> {
        let names: Vec<&String> = self.saved.intent.ports.keys().collect();
        let views = join_all(names.iter().map(|name| self.port_view(name))).await;
        views.into_iter().flatten().collect()
    }

    /// Returns what picks the stations that `query` means.
    ///
    /// # Errors
    /// There is no such network or port.
    pub(super) fn station_filter(
        &self,
        query: &FdbQuery,
    ) -> Result<impl Fn(&Station) -> bool + use<>, Refusal> {
        let network = match &query.network {
            None => None,
            Some(name) => Some(*self.networks.get(name).ok_or_else(|| Refusal::unknown("network", name))?),
        };
        let port = match &query.port {
            None => None,
            Some(name) if self.saved.intent.ports.contains_key(name) => {
                // A port that waits has no stations.
                Some(self.ports.get(name).map_or(PortId(u16::MAX), |attached| attached.id))
            }
            Some(name) => return Err(Refusal::unknown("port", name)),
        };
        let mac = query.mac;
        Ok(move |station: &Station| {
            network.is_none_or(|id| id == station.key.network)
                && port.is_none_or(|id| id == station.port)
                && mac.is_none_or(|mac| mac == station.key.mac)
        })
    }

    /// Returns the stations that match.
    ///
    /// # Errors
    /// There is no such network or port.
    pub fn stations(&self, query: &FdbQuery) -> Result<Vec<FdbView>, Refusal> {
        let matches = self.station_filter(query)?;
        let now = packet::Instant::now();
        let ports = self.port_names();
        let peers = self.peer_addresses();
        let networks: HashMap<NetworkId, &str> =
            self.networks.iter().map(|(n, id)| (*id, n.as_str())).collect();
        let configured: Vec<_> =
            self.saved.intent.fdb.values().map(|e| (&e.object.network, e.object.mac)).collect();
        let mut views: Vec<FdbView> = self
            .crew
            .tables()
            .fdb
            .list()
            .iter()
            .filter(|station| matches(station))
            .map(|station| {
                let network = networks.get(&station.key.network).copied().unwrap_or("?").to_owned();
                let kind = match station.kind {
                    StationKind::Learned => FdbKind::Learned,
                    StationKind::Fixed if configured.contains(&(&network, station.key.mac)) => {
                        FdbKind::Static
                    }
                    StationKind::Fixed if station.vtep.is_some() => FdbKind::Remote,
                    StationKind::Fixed => FdbKind::Port,
                };
                let age_seconds =
                    if kind == FdbKind::Learned { now.since(station.seen).as_secs() } else { 0 };
                FdbView {
                    network,
                    vlan: station.key.vlan.0,
                    mac: station.key.mac,
                    port: ports.get(&station.port).cloned().unwrap_or_else(|| "?".to_owned()),
                    kind,
                    age_seconds,
                    moves: station.moves,
                    peer: station.vtep.and_then(|vtep| peers.get(&vtep).copied()),
                }
            })
            .collect();
        views.sort_by(|a, b| (&a.network, a.vlan, a.mac).cmp(&(&b.network, b.vlan, b.mac)));
        Ok(views)
    }

    /// Returns who has which address: those that the switch answers for, and those that it was told.
    pub fn neighbors(&self, query: &NeighborQuery) -> Vec<NeighborView> {
        let mut neighbors = Vec::new();
        for (name, network) in &self.saved.intent.networks {
            for address in network.object.gateway_addresses() {
                neighbors.push(NeighborView {
                    network: name.clone(),
                    address,
                    mac: Some(made_mac("gateway", name)),
                    port: None,
                    source: NeighborSource::Gateway,
                    state: NeighborState::Fixed,
                    age_seconds: 0,
                    peer: None,
                });
            }
        }
        for (name, attached) in &self.ports {
            let Some(port) = self.saved.intent.ports.get(name).map(|p| &p.object) else { continue };
            neighbors.extend(port.addresses.iter().map(|address| NeighborView {
                network: port.network.clone(),
                address: *address,
                mac: Some(attached.mac),
                port: Some(name.clone()),
                source: NeighborSource::Port,
                state: NeighborState::Fixed,
                age_seconds: 0,
                peer: None,
            }));
        }
        neighbors.extend(self.learned_neighbors());
        neighbors.sort_by(|a, b| (&a.network, a.address).cmp(&(&b.network, b.address)));
        neighbors.retain(|neighbor| {
            query.network.as_ref().is_none_or(|network| *network == neighbor.network)
                && query.address.is_none_or(|address| address == neighbor.address)
        });
        neighbors
    }

    /// Returns every drop, and the ledger.
    pub async fn drops(&self) -> Drops {
        let tables = self.crew.tables();
        let mut drops = Vec::new();
        let mut unclaimed = vec![0_u64; DropReason::COUNT];
        for id in 0..tables.limits().ports {
            let sample = Sample::take(tables, PortId(u16::try_from(id).unwrap_or(u16::MAX)));
            unclaimed.iter_mut().zip(&sample.drops).for_each(|(sum, n)| *sum += n);
        }
        for (name, attached) in &self.ports {
            let counted = Sample::take(tables, attached.id).since(&attached.base);
            for (n, reason) in DropReason::ALL.iter().enumerate().filter(|(n, _)| counted.drops[*n] > 0) {
                let frames = counted.drops[n];
                unclaimed[n] = unclaimed[n].saturating_sub(frames);
                drops.push(drop_count(*reason, Some(name.clone()), frames));
            }
        }
        for (id, name) in self.outer_ports() {
            let counted = Sample::take(tables, id);
            for (n, reason) in DropReason::ALL.iter().enumerate().filter(|(n, _)| counted.drops[*n] > 0) {
                unclaimed[n] = unclaimed[n].saturating_sub(counted.drops[n]);
                drops.push(drop_count(*reason, Some(name.clone()), counted.drops[n]));
            }
        }
        for (reason, frames) in DropReason::ALL.iter().zip(unclaimed).filter(|(_, frames)| *frames > 0) {
            // Of ports that are no more.
            drops.push(drop_count(*reason, None, frames));
        }
        let reports = join_all(self.ports.values().map(|attached| self.crew.report(attached.id))).await;
        let mut tx_errors = self.closed_tx_errors;
        for (name, stats) in self.ports.keys().zip(reports) {
            let refused = stats.map_or(0, |stats| stats.tx_errors);
            tx_errors += refused;
            if refused > 0 {
                drops.push(tx_error(Some(name.clone()), refused));
            }
        }
        if self.closed_tx_errors > 0 {
            drops.push(tx_error(None, self.closed_tx_errors));
        }
        drops.sort_by(|a, b| b.frames.cmp(&a.frames).then_with(|| a.reason.cmp(&b.reason)));
        Drops { drops, ledger: self.ledger(tx_errors) }
    }

    fn ledger(&self, tx_errors: u64) -> Ledger {
        let mut ledger = Ledger::default();
        for counters in self.crew.tables().all_counters() {
            ledger.received += counters.ledger.received.get();
            ledger.created += counters.ledger.created.get();
            ledger.dropped += counters.ledger.dropped.get();
            ledger.consumed += counters.ledger.consumed.get();
            ledger.queued += counters.ledger.held.get();
        }
        let (mut handed_out, mut handed_in) = (0, 0);
        for shared in self.crew.shared() {
            ledger.sent += shared.figures.transmitted.get();
            ledger.queued += shared.figures.queued.get();
            handed_out += shared.figures.handed_out.get();
            handed_in += shared.figures.handed_in.get();
        }
        // A device took these from its queue and refused them.
        ledger.sent = ledger.sent.saturating_sub(tx_errors);
        ledger.dropped += tx_errors;
        ledger.queued += handed_out.saturating_sub(handed_in);
        ledger
    }

    /// Returns all workers.
    pub fn worker_views(&self) -> Vec<WorkerView> {
        let mut ports: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for (name, attached) in &self.ports {
            for worker in &attached.workers {
                let names = ports.entry(*worker).or_default();
                if names.last() != Some(name) {
                    names.push(name.clone());
                }
            }
        }
        let shared = self.crew.shared().iter().enumerate();
        shared
            .map(|(n, shared)| {
                let figures = &shared.figures;
                let ledger = &self.crew.tables().counters(n).ledger;
                let load = self.loads.get(n).cloned().unwrap_or_default();
                WorkerView {
                    id: u32::try_from(n).unwrap_or(u32::MAX),
                    cpu: self.crew.cpus()[n].and_then(|cpu| u32::try_from(cpu).ok()).unwrap_or_default(),
                    poll: self.saved.intent.settings.workers.poll,
                    busy: load.busy,
                    turns: figures.turns.get(),
                    idle_turns: figures.idle_turns.get(),
                    waits: figures.sleeps.get(),
                    batches: figures.batches.iter().map(|bucket| bucket.get()).collect(),
                    ports: ports.remove(&n).unwrap_or_default(),
                    rates: load.rates,
                    cache_hits: ledger.cache_hits.get(),
                    cache_misses: ledger.cache_misses.get(),
                    cache_entries: ledger.cache_entries.get(),
                }
            })
            .collect()
    }
}

impl Manager {
    /// Looks at what the host has left of the switch, and how ports are used.
    pub async fn checks(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        let stray = match self.devices.leftovers().await {
            Ok(leftovers) => {
                let known = |name: &str| {
                    self.ports.values().any(|a| {
                        let device = &a.plugged.device;
                        device.near == name || device.ifname == name
                    })
                };
                leftovers.into_iter().map(|l| l.link.name).filter(|name| !known(name)).collect()
            }
            Err(error) => vec![error.to_string()],
        };
        let detail = if stray.is_empty() { "none".to_owned() } else { stray.join(", ") };
        checks.push(doctor::check(
            "leftovers",
            stray.is_empty(),
            detail,
            "vsctl cleanup, or restart vswitchd",
        ));
        for (name, attached) in &self.ports {
            let ok = attached.condition == Condition::Up;
            let detail = match &attached.condition {
                Condition::Disabled { reason, .. } => reason.clone(),
                Condition::Down => "the far end is down".to_owned(),
                Condition::Up => {
                    let mode = format!("{} {}", attached.plugged.kind, attached.mode);
                    std::iter::once(mode).chain(attached.notes.iter().cloned()).collect::<Vec<_>>().join("; ")
                }
            };
            checks.push(doctor::check(&format!("port {name}"), ok, detail, "vsctl port show tells more"));
        }
        for (name, waiting) in &self.waiting {
            let fix = "make what is missing: the port is tried again every second";
            checks.push(doctor::check(&format!("port {name}"), false, waiting.reason.clone(), fix));
        }
        for uplink in &self.surroundings.uplinks {
            let detail: Vec<&str> =
                std::iter::once(&uplink.mode).chain(&uplink.notes).map(String::as_str).collect();
            let name = format!("uplink {}", uplink.name);
            checks.push(doctor::check(
                &name,
                uplink.up,
                detail.join("; "),
                "the device is down: bring it up",
            ));
        }
        let troubles = self.outside.as_ref().map(|outside| outside.troubles().join("; "));
        let detail = match &troubles {
            None => "the host's namespace could not be entered: the log says why",
            Some(troubles) if troubles.is_empty() => "no trouble",
            Some(troubles) => troubles,
        };
        let fix = "it is tried again every few seconds";
        checks.push(doctor::check("outside", detail == "no trouble", detail.to_owned(), fix));
        let retired = self.crew.retired();
        checks.push(doctor::check(
            "workers",
            retired < 8,
            format!("{} workers, {retired} old snapshots in use", self.crew.shared().len()),
            "a worker does not come to the end of its turn",
        ));
        checks
    }
}

fn drop_count(reason: DropReason, port: Option<String>, frames: u64) -> DropCount {
    DropCount { reason: reason.name().to_owned(), help: reason.help().trim().to_owned(), port, frames }
}

fn tx_error(port: Option<String>, frames: u64) -> DropCount {
    let help = "The device refused the frame, or it could not be finished for the device.";
    DropCount { reason: "tx_error".to_owned(), help: help.to_owned(), port, frames }
}
