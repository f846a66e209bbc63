//! How the manager starts: what to run from the file and the store, and with how much memory.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use config::{Cpus, Document, Owner, PortKind};
use packet::Area;
use pipeline::{Limits as TableLimits, Tables};
use tokio::sync::mpsc;

use super::Manager;
use super::change::Missing;
use super::loops::LoopGuard;
use super::outside::Outside;
use super::paths::Paths;
use super::restore::Restoring;
use super::upkeep::{host_addresses, poll};
use crate::compile::{self, Compiler};
use crate::crew::{Crew, Listener, News, Plan};
use crate::devices::Devices;
use crate::intent::{Intent, fdb_key};
use crate::journal::Journal;
use crate::keeper::Keeper;
use crate::numbers::Numbers;
use crate::refusal::Refusal;
use crate::store::Store;
use crate::surroundings::Surroundings;

/// AF_XDP sockets that the memory is shared out for at least: some may be added at run time.
const SPARE_SOCKETS: usize = 4;

/// Where it is written down which connections there are.
const RUN: &str = "/run/vswitch";

/// What the daemon was told by its command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file that was read, if there is one.
    pub config_file: Option<PathBuf>,
    /// What it says.
    pub document: Document,
    /// Name of the switch.
    pub name: String,
    /// Directory of the store.
    pub state_dir: PathBuf,
}

/// What a started manager is looked after with.
#[derive(Debug)]
pub struct Started {
    /// The manager.
    pub manager: Manager,
    /// Listens to the workers; to be run.
    pub listener: Listener,
    /// What they tell.
    pub news: mpsc::UnboundedReceiver<News>,
}

impl Manager {
    /// Starts devices and workers; [`Manager::resume`] then brings everything up.
    ///
    /// # Errors
    /// Says what the daemon cannot do without.
    pub async fn start(options: Options) -> anyhow::Result<Started> {
        let Options { config_file, document, name, state_dir } = options;
        let store = Store::open(&state_dir)?;
        let mut saved = store.load()?;
        saved.intent.settings = document.settings();
        let limits = document.limits.clone();
        let cpus = cpus(&document.workers.cpus)?;
        let outside = match Outside::start(&name).await {
            Ok(outside) => Some(outside),
            Err(error) => {
                tracing::error!(%error, "no way to the outside or the host");
                None
            }
        };
        let uplink_sockets =
            outside.as_ref().map_or(0, |outside| super::outside::sockets(&document.uplink, &outside.state()));
        let sockets = (saved
            .intent
            .ports
            .values()
            .map(|port| &port.object)
            .filter(|port| document.port(&port.name).is_none())
            .chain(&document.ports)
            .filter(|port| port.kind == PortKind::Afxdp)
            .map(|port| usize::from(port.queues))
            .sum::<usize>()
            + uplink_sockets)
            .max(SPARE_SOCKETS);
        let sizing =
            limits.sizing(cpus.len(), sockets).map_err(|e| anyhow::anyhow!("[limits] memory: {e}"))?;
        let area = Area::new(sizing.small_chunks, sizing.large_chunks)
            .map_err(|e| anyhow::anyhow!("cannot map {} bytes for frames: {e}", sizing.area_bytes()))?;
        let table_limits = TableLimits {
            // And those of the host's tap and the devices outside, and a tunnel for every network.
            ports: usize::from(limits.ports)
                + usize::from(super::outside::NUMBERS)
                + usize::from(limits.networks),
            // Two more: the outside and the host.
            networks: usize::from(limits.networks) + 2,
            stations: usize::try_from(limits.stations)?,
            neighbors: usize::try_from(limits.neighbors)?,
            vteps: usize::from(limits.vteps),
            connections: usize::try_from(limits.connections)?,
            nat_ports: usize::try_from(limits.connections)?,
            flows: usize::try_from(limits.flows)?,
            workers: cpus.len(),
            ..TableLimits::default()
        };
        let tables = Tables::new(table_limits, random()?);
        let devices = Devices::start(&name)?;
        let mut compiler = Compiler::new();
        let host = outside.as_ref().map(Outside::state);
        let surroundings = Surroundings {
            addresses: host_addresses(),
            underlay_mtu: host.and_then(|host| super::outside::underlay_mtu(&saved.intent, &host)),
            ..Surroundings::default()
        };
        let (snapshot, _) = compiler.compile(&compile::Plan::empty(&limits, &surroundings));
        let polling = (poll(document.workers.poll), usize::from(document.workers.budget));
        let journal = Arc::new(Journal::new());
        let (loaded, keeper) = Keeper::start(Path::new(RUN), &name, Arc::clone(&tables));
        if let Some(trouble) = &loaded.trouble {
            journal.note("connections_lost", "", format!("the file of connections is not used: {trouble}"));
        }
        let keeper = keeper.map_err(|error| {
            journal.note("connections_not_kept", "", format!("a restart will end connections: {error}"));
        });
        let restoring = Restoring::new(loaded, keeper.ok());
        let (crew, listener, news) = Crew::start(Plan {
            cpus,
            poll: polling.0,
            budget: polling.1,
            ports: table_limits.ports,
            area,
            tables,
            snapshot,
        })?;
        let manager = Manager {
            name,
            started: Instant::now(),
            config_file,
            port_numbers: Numbers::new(limits.ports),
            network_numbers: Numbers::new(limits.networks),
            limits,
            fill: sizing.fill,
            sockets,
            saved,
            store,
            devices,
            crew: Arc::new(crew),
            journal,
            ports: BTreeMap::new(),
            waiting: BTreeMap::new(),
            networks: BTreeMap::new(),
            unconfirmed: None,
            closed_tx_errors: 0,
            loads: Vec::new(),
            compiler,
            generation: 0,
            fixed: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            neighbors: BTreeMap::new(),
            surroundings,
            paths: Paths::default(),
            outside,
            loops: LoopGuard::default(),
            restoring,
            polling,
        };
        Ok(Started { manager, listener, news })
    }

    /// Brings up what the file and the store say: devices that are there are adopted, ports whose namespace is
    /// not there wait for it, and devices that nobody wants any more are removed.
    ///
    /// # Errors
    /// The file and the store contradict one another, or cannot be brought up.
    pub async fn resume(&mut self, document: &Document) -> anyhow::Result<()> {
        let next = self.intent_at_start(document)?;
        self.enact(next, Missing::Wait).await?;
        self.tell_restored();
        self.remove_leftovers().await;
        let (up, waiting) = (self.ports.len(), self.waiting.len());
        self.journal.note("started", "", format!("{up} ports are up, {waiting} wait"));
        Ok(())
    }

    /// Returns the file's objects with those of other owners from the store. Where they contradict one another
    /// the file wins: there must be a way to start.
    fn intent_at_start(&self, document: &Document) -> Result<Intent, Refusal> {
        let mut others = self.saved.intent.clone();
        let file = Intent::default().replace(Owner::File, document)?;
        others.retain(|owner, section, name| owner == Owner::File || !file.has(section, name));
        let keys: Vec<_> = document.fdb.iter().map(fdb_key).collect();
        others.fdb.retain(|key, o| o.owner == Owner::File || !keys.contains(key));
        let next = others.replace(Owner::File, document)?;
        let checked =
            next.document().validate().map_err(Refusal::from).and_then(|()| self.check_limits(&next));
        let Err(refusal) = checked else { return Ok(next) };
        self.journal.note(
            "objects_dropped",
            "",
            format!("not in the file, and no longer possible: {refusal}"),
        );
        let alone = Intent::default().replace(Owner::File, document)?;
        alone.document().validate()?;
        self.check_limits(&alone)?;
        Ok(alone)
    }

    /// Removes devices of ours that belong to no port.
    async fn remove_leftovers(&self) {
        let leftovers = match self.devices.leftovers().await {
            Ok(leftovers) => leftovers,
            Err(error) => {
                tracing::warn!(%error, "cannot look for devices that an earlier run left");
                return;
            }
        };
        for leftover in leftovers {
            let known = self.ports.values().any(|attached| {
                let device = &attached.plugged.device;
                match leftover.netns {
                    None => device.near == leftover.link.name,
                    Some(_) => device.ifname == leftover.link.name && device.far_index == leftover.link.index,
                }
            });
            if known {
                continue;
            }
            let object = format!("device {}", leftover.link.name);
            match self.devices.remove_leftover(leftover).await {
                Ok(()) => self.journal.note("leftover_removed", object, "it belonged to no port"),
                Err(error) => self.journal.note("leftover_stays", object, error.to_string()),
            }
        }
    }
}

/// Returns the CPU of each worker.
fn cpus(wish: &Cpus) -> anyhow::Result<Vec<Option<usize>>> {
    let allowed: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    match wish {
        // The last: interrupts and everything that is not pinned gather on the first.
        Cpus::Auto => Ok(vec![allowed.last().copied()]),
        Cpus::List(list) => list
            .iter()
            .map(|cpu| {
                let cpu = usize::from(*cpu);
                anyhow::ensure!(
                    allowed.contains(&cpu),
                    "[workers] cpus: there is no CPU {cpu} that vswitchd may run on; allowed: {allowed:?}"
                );
                Ok(Some(cpu))
            })
            .collect(),
    }
}

/// Returns what no packet's sender may guess.
fn random() -> std::io::Result<[u64; 3]> {
    let mut bytes = [0; 24];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let word = |n: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[8 * n..8 * n + 8]);
        u64::from_le_bytes(word)
    };
    Ok([word(0), word(1), word(2)])
}
