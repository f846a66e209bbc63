//! The manager: turns intent into what runs, and keeps it so.
//!
//! One object behind one asynchronous lock, used by the API's handlers and by its own [`upkeep`] loop, all on one
//! thread. It never holds workers up: it publishes snapshots and sends messages, and waits for devices on
//! threads of theirs.
//!
//! * [`change`]: a new intent is checked as a whole, its devices are made, it is stored, published, and what went
//!   is taken away; or nothing changes.
//! * [`attach`]: ports get devices and queues, and lose them.
//! * [`upkeep`]: what happens without a request: devices that vanish and come back, ageing, rates, loops.
//! * [`views`], [`object_views`]: what users are shown; [`flows`]: what is known of what workers decide.
//!
//! `ports` holds the ports that have a number and queues; `waiting` those that have none yet or no longer. A
//! port of the intent is in exactly one of them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use config::{Document, Limits, Owner, PortKind};
use packet::{MacAddr, NetworkId, PortId};
use pipeline::tables::{At, Kind, StationKey};
use tokio::sync::Mutex;

use crate::compile::{self, Compiler, Endpoints, Member, Neighbors, Overlay, Plan};
use crate::crew::Crew;
use crate::devices::Devices;
use crate::intent::Intent;
use crate::journal::Journal;
use crate::numbers::Numbers;
use crate::plug::Plugged;
use crate::store::{PortRecord, Saved, Store};
use crate::surroundings::Surroundings;

pub mod attach;
pub mod change;
pub mod flows;
pub mod loops;
pub mod object_views;
pub mod objects;
pub mod outside;
mod overlay_views;
mod paths;
pub mod restore;
pub mod start;
pub mod upkeep;
pub mod views;

use loops::LoopGuard;
use outside::Outside;
use paths::Paths;
use restore::Restoring;
use upkeep::Sample;

/// The manager, shared by all tasks.
pub type Shared = Arc<Mutex<Manager>>;

/// A port that has a number and queues.
#[derive(Debug)]
pub struct Attached {
    /// Its number.
    pub id: PortId,
    /// Its device.
    pub plugged: Plugged,
    /// The far end's MAC.
    pub mac: MacAddr,
    /// How the device is used.
    pub mode: String,
    /// Why a better mode was not taken.
    pub notes: Vec<String>,
    /// The worker of each queue.
    pub workers: Vec<usize>,
    /// Whether frames pass.
    pub condition: Condition,
    /// The counters of its number when it got it.
    pub base: Sample,
    /// The counters a second ago, and the rates since.
    pub last: Sample,
    /// When `last` was taken.
    pub sampled: Instant,
    /// How fast it goes.
    pub rates: config::api::Rates,
}

/// Whether frames pass a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// They do.
    Up,
    /// The far end is down.
    Down,
    /// The switch has disabled it, and tries again later.
    Disabled {
        /// Why.
        reason: String,
        /// When it is enabled again.
        until: Instant,
    },
}

/// A port without a device.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// It had one, which vanished.
    pub gone: bool,
    /// Why it has none.
    pub reason: String,
    /// When to try again.
    pub again: Instant,
    /// What was made for it before, for taking over what is left of it.
    pub before: Option<PortRecord>,
}

/// An apply that is undone unless it is confirmed.
#[derive(Debug)]
pub struct Unconfirmed {
    /// When it is undone.
    pub deadline: Instant,
    /// What ran before.
    pub before: Intent,
    /// Where to write its text when it is confirmed.
    pub save: Option<(PathBuf, String)>,
}

/// The manager. See the module header.
#[derive(Debug)]
pub struct Manager {
    /// Name of the switch.
    pub name: String,
    /// When the daemon started.
    pub started: Instant,
    /// The configuration file.
    pub config_file: Option<PathBuf>,
    /// The limits that tables and pools were sized from.
    pub limits: Limits,
    /// Chunks that each AF_XDP socket keeps.
    pub fill: u32,
    /// AF_XDP sockets that the memory has room for.
    pub sockets: usize,
    /// What the store holds.
    pub saved: Saved,
    /// The store.
    pub store: Store,
    /// The devices.
    pub devices: Devices,
    /// The workers.
    pub crew: Arc<Crew>,
    /// What happened.
    pub journal: Arc<Journal>,
    /// Ports that have queues, by name.
    pub ports: BTreeMap<String, Attached>,
    /// Ports that have none, by name.
    pub waiting: BTreeMap<String, Waiting>,
    /// The networks' numbers.
    pub networks: BTreeMap<String, NetworkId>,
    /// An apply that is undone unless it is confirmed.
    pub unconfirmed: Option<Unconfirmed>,
    /// What port queues that were closed had failed to transmit: for the ledger.
    pub closed_tx_errors: u64,
    /// How busy each worker was, and its rates.
    pub loads: Vec<upkeep::Load>,
    compiler: Compiler,
    generation: u64,
    port_numbers: Numbers,
    network_numbers: Numbers,
    fixed: BTreeMap<StationKey, At>,
    endpoints: Endpoints,
    neighbors: Neighbors,
    surroundings: Surroundings,
    paths: Paths,
    /// The host's namespace, unless it could not be entered.
    outside: Option<Outside>,
    loops: LoopGuard,
    restoring: Restoring,
    polling: (crate::worker::Poll, usize),
}

impl Manager {
    /// Returns what users want.
    pub fn intent(&self) -> &Intent {
        &self.saved.intent
    }

    /// Returns the number of the newest snapshot.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Writes all connections down once more, at the end. Blocks for some milliseconds.
    pub fn keep_connections(&mut self) {
        self.restoring.stop();
    }

    /// Compiles what runs now and gives it to the workers.
    fn publish(&mut self) {
        self.restore();
        self.fix_endpoints();
        let mut compiler = std::mem::take(&mut self.compiler);
        let (snapshot, neighbors) = compiler.compile(&self.plan());
        self.compiler = compiler;
        self.fix_neighbors(neighbors);
        self.generation = snapshot.generation();
        self.crew.publish(snapshot);
        self.fix_stations();
    }

    /// Returns all that the next snapshot follows from.
    pub(crate) fn plan(&self) -> Plan<'_> {
        let intent = &self.saved.intent;
        let members = members(&self.ports, intent);
        Plan {
            publishes: self.publishes(),
            endpoints: &self.endpoints,
            ..plan_of(intent, &self.networks, members, &self.limits, &self.surroundings)
        }
    }

    /// Has the neighbour table know who is where, before the snapshot that needs it is published.
    fn fix_neighbors(&mut self, neighbors: Neighbors) {
        let table = &self.crew.tables().neighbors;
        for key in self.neighbors.keys().filter(|key| !neighbors.contains_key(*key)) {
            table.remove(*key, packet::Instant::now());
        }
        for (key, (mac, at)) in &neighbors {
            if self.neighbors.get(key) != Some(&(*mac, *at)) {
                table.set(*key, *mac, *at, Kind::Fixed, packet::Instant::now());
            }
        }
        self.neighbors = neighbors;
    }

    /// Has the table of endpoints hold those that are given, before the plan that needs their numbers.
    fn fix_endpoints(&mut self) {
        let wanted = compile::overlay::endpoints(&self.plan());
        let tables = self.crew.tables();
        let now = packet::Instant::now();
        self.endpoints.retain(|key, id| {
            let stays = wanted.contains(key);
            if !stays {
                tables.forget_vtep(*id, now);
            }
            stays
        });
        for key in wanted {
            if let Entry::Vacant(vacant) = self.endpoints.entry(key) {
                match tables.vteps.fix(key, now) {
                    Some(id) => drop(vacant.insert(id)),
                    None => {
                        tracing::warn!(address = %key.address, "no room for a peer: raise [limits] vteps")
                    }
                }
            }
        }
    }

    /// Makes the fixed stations of the FDB those of the ports' far ends, of `[[fdb]]` and of `[[remote]]`.
    fn fix_stations(&mut self) {
        let mut wanted: BTreeMap<StationKey, At> = compile::overlay::stations(&self.plan()).collect();
        for (name, attached) in &self.ports {
            let Some(port) = self.saved.intent.ports.get(name) else { continue };
            let Some(network) = self.networks.get(&port.object.network) else { continue };
            if let Some(vlan) = compile::own_vlan(&port.object) {
                wanted.insert(StationKey { network: *network, vlan, mac: attached.mac }, attached.id.into());
            }
        }
        for entry in self.saved.intent.fdb.values() {
            let entry = &entry.object;
            let Some(network) = self.networks.get(&entry.network) else { continue };
            let (Some(attached), Some(port)) =
                (self.ports.get(&entry.port), self.saved.intent.ports.get(&entry.port))
            else {
                continue;
            };
            let vlan = entry.vlan.map(packet::VlanId).or_else(|| compile::own_vlan(&port.object));
            if let Some(vlan) = vlan {
                wanted.insert(StationKey { network: *network, vlan, mac: entry.mac }, attached.id.into());
            }
        }
        let fdb = &self.crew.tables().fdb;
        let stale: HashSet<StationKey> =
            self.fixed.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        if !stale.is_empty() {
            fdb.remove(|station| stale.contains(&station.key));
        }
        for (key, at) in wanted.iter().filter(|(key, at)| self.fixed.get(key) != Some(at)) {
            if !fdb.fix(*key, *at, packet::Instant::now()) {
                tracing::warn!(mac = %key.mac, "the FDB has no room for a fixed station: raise [limits] stations");
            }
        }
        self.fixed = wanted;
    }

    /// Returns what was made for each port, for the store.
    fn records(&self) -> BTreeMap<String, PortRecord> {
        let attached = self.ports.iter().map(|(name, attached)| {
            (name.clone(), PortRecord { id: attached.id, plugged: attached.plugged.clone() })
        });
        let waiting = self.waiting.iter().filter_map(|(name, w)| Some((name.clone(), w.before.clone()?)));
        attached.chain(waiting).collect()
    }

    /// Writes the present state to the store; a failure is noted, since what it tells of has happened already.
    fn save_records(&mut self) {
        let saved = Saved { intent: self.saved.intent.clone(), ports: self.records() };
        match self.store.save(&self.saved, &saved) {
            Ok(()) => self.saved = saved,
            Err(error) => self.journal.note("store_failed", "store", error.to_string()),
        }
    }

    /// Returns the name of the port with the number.
    pub fn port_name(&self, id: PortId) -> Option<&str> {
        self.ports.iter().find(|(_, attached)| attached.id == id).map(|(name, _)| name.as_str())
    }

    /// Returns the name of the network with the number.
    pub fn network_name(&self, id: NetworkId) -> Option<&str> {
        self.networks.iter().find(|(_, other)| **other == id).map(|(name, _)| name.as_str())
    }

    /// Returns how many AF_XDP sockets there are.
    fn sockets_in_use(&self) -> usize {
        let afxdp = self.ports.values().filter(|attached| attached.plugged.kind == PortKind::Afxdp);
        let ports: usize = afxdp.map(|attached| attached.workers.len()).sum();
        ports + self.outside.as_ref().map_or(0, Outside::sockets)
    }

    /// Says whether what runs is not what the configuration file says.
    pub fn differs_from_file(&self) -> bool {
        let file = self.config_file.as_ref().and_then(|path| {
            let text = std::fs::read_to_string(path).ok()?;
            Document::parse(&text, &path.display().to_string()).ok()
        });
        let running = self.saved.intent.owned_by(Owner::File);
        !file.unwrap_or_default().diff(&running).is_empty()
    }
}

/// Endpoints of a plan that is not carried out.
fn no_endpoints() -> &'static Endpoints {
    static NONE: Endpoints = Endpoints::new();
    &NONE
}

/// Returns all that a snapshot of `intent` follows from. Published ports whose L4 port is to be chosen have none.
fn plan_of<'i>(
    intent: &'i Intent,
    networks: &BTreeMap<String, NetworkId>,
    members: Vec<Member<'i>>,
    limits: &'i Limits,
    surroundings: &'i Surroundings,
) -> Plan<'i> {
    let settings = &intent.settings;
    Plan {
        networks: networks
            .iter()
            .filter_map(|(name, id)| Some((*id, &intent.networks.get(name)?.object)))
            .collect(),
        members,
        overlay: Overlay::of(intent),
        endpoints: no_endpoints(),
        routes: intent.routes.values().map(|route| &route.object).collect(),
        floating_ips: intent.floating_ips.values().map(|floating| &floating.object).collect(),
        publishes: intent.publishes.values().map(|publish| publish.object.clone()).collect(),
        egresses: intent.egresses.values().map(|egress| &egress.object).collect(),
        policies: intent.policies.values().map(|policy| &policy.object).collect(),
        publish_allow_from: &settings.daemon.publish_allow_from,
        snat_ports: (settings.uplink.ports.first, settings.uplink.ports.last),
        limits,
        surroundings,
    }
}

/// Returns the ports that there are, with what is configured.
fn members<'i>(ports: &BTreeMap<String, Attached>, intent: &'i Intent) -> Vec<Member<'i>> {
    let member = |(name, attached): (&String, &Attached)| {
        let port = &intent.ports.get(name)?.object;
        let up = !matches!(attached.condition, Condition::Disabled { .. });
        Some(Member { id: attached.id, port, mac: attached.mac, up })
    };
    ports.iter().filter_map(member).collect()
}
