//! Connections of the run before: made anew when the ports that they went by are there again.
//!
//! A connection comes back right before the first snapshot in which both its ports are: workers never see a packet of it
//! without it, which they would answer as one of nobody's. Its details are dropped but for the NAT port; the stages
//! decide about it again at its next packet, and end it where the configuration treats it otherwise now.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use packet::{Address, PortId};
use pipeline::tables::Pool;
use pipeline::tables::connections::{Details, Key, Refused, Saved};
use pipeline::tables::nat_ports::Inside;

use super::Manager;
use crate::keeper::record::{Name, Record};
use crate::keeper::{Keeper, Loaded, Names};

/// How long a connection waits for its ports.
const PATIENCE: Duration = Duration::from_secs(60);
/// L4 ports of a gateway's address that connections get.
const GATEWAY_PORTS: (u16, u16) = (1024, u16::MAX);

/// What has become of the connections of the run before.
#[derive(Debug)]
pub struct Restoring {
    keeper: Option<Keeper>,
    waiting: Vec<Record>,
    since: Instant,
    kept: usize,
    lost: BTreeMap<&'static str, usize>,
    /// It was told how it went.
    told: bool,
    names: Names,
}

impl Restoring {
    /// Begins with what the file says.
    pub(super) fn new(loaded: Loaded, keeper: Option<Keeper>) -> Self {
        let mut lost = BTreeMap::new();
        if loaded.damaged > 0 {
            lost.insert("damaged in the file", loaded.damaged);
        }
        let Loaded { records, .. } = loaded;
        let names = Names::default();
        Self { keeper, waiting: records, since: Instant::now(), kept: 0, lost, told: false, names }
    }

    /// Writes all connections down once more, and ends. Blocks for some milliseconds.
    pub fn stop(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            keeper.stop();
        }
    }

    /// Ends the keeper and removes its files. Until the next start connections are not kept: who cleans up is about to
    /// leave.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub(super) fn forget(&mut self) -> std::io::Result<()> {
        self.waiting.clear();
        self.keeper.take().map_or(Ok(()), Keeper::remove)
    }
}

impl Manager {
    /// Makes connections anew whose ports are there. To be called before a snapshot is published.
    pub(super) fn restore(&mut self) {
        let names = self.names();
        if names == self.restoring.names && !self.restoring.waiting.is_empty() {
            return;
        }
        if let Some(keeper) = self.restoring.keeper.as_ref().filter(|_| names != self.restoring.names) {
            keeper.name(names.clone());
        }
        let waiting = std::mem::take(&mut self.restoring.waiting);
        if !waiting.is_empty() {
            let networks: HashMap<Name, _> = names.networks.iter().map(|(id, name)| (*name, *id)).collect();
            let ports: HashMap<Name, PortId> = names.ports.iter().map(|(id, name)| (*name, *id)).collect();
            for record in waiting {
                let Record { from, to, owner, peer, original, reply, state, .. } = record;
                let network = |name: Name| networks.get(&name).copied();
                let port = |name: Name| ports.get(&name).copied();
                let (Some(from), Some(to), Some(owner), Some(peer)) =
                    (network(from), network(to), port(owner), port(peer))
                else {
                    self.restoring.waiting.push(record);
                    continue;
                };
                let saved = Saved {
                    original: Key { network: from, tuple: original },
                    reply: Key { network: to, tuple: reply },
                    owner,
                    state,
                    // Decided under no generation that there is.
                    details: Details { checked: u32::MAX, peer_port: peer, ..Details::default() },
                };
                match self.take_over(saved, record.leased) {
                    Ok(()) => self.restoring.kept += 1,
                    Err(why) => *self.restoring.lost.entry(why).or_default() += 1,
                }
            }
        }
        self.restoring.names = names;
    }

    fn take_over(&self, mut saved: Saved, leased: bool) -> Result<(), &'static str> {
        let tables = self.crew.tables();
        if leased {
            let (tuple, reply) = (saved.original.tuple, saved.reply.tuple);
            let inside =
                Inside { network: saved.original.network, address: tuple.source, port: tuple.source_port };
            let pool = self.pool_of(reply.destination);
            let port = reply.destination_port;
            let lease = tables.nat_ports.take_again(pool, &inside, tuple.protocol, port);
            saved.details.nat_port = Some(lease.ok_or("their NAT port cannot be had again")?);
        }
        match tables.connections.import(&saved, packet::Instant::now()) {
            Ok(_) => Ok(()),
            Err(refused) => {
                if let Some(lease) = saved.details.nat_port {
                    tables.nat_ports.give_back(lease);
                }
                Err(match refused {
                    Refused::Exists | Refused::ReplyTaken => "begun anew",
                    _ => "the table is full",
                })
            }
        }
    }

    /// Returns the L4 ports that connections get which leave with an address.
    fn pool_of(&self, address: Address) -> Pool {
        let intent = &self.saved.intent;
        let ip = address.ip();
        let egress = intent.egresses.values().map(|e| &e.object).find(|egress| egress.address.contains(&ip));
        let is_gateway = intent.networks.values().any(|n| n.object.gateway_addresses().contains(&ip));
        let (first, last) = match egress {
            Some(egress) => (egress.ports.first, egress.ports.last),
            None if is_gateway => GATEWAY_PORTS,
            None => (intent.settings.uplink.ports.first, intent.settings.uplink.ports.last),
        };
        Pool { address, first, last }
    }

    /// Tells how it went, once all that can come is here or time is up. To be called after the start, and then now and then.
    pub(super) fn tell_restored(&mut self) {
        let restoring = &mut self.restoring;
        if restoring.told || !restoring.waiting.is_empty() && restoring.since.elapsed() < PATIENCE {
            return;
        }
        restoring.told = true;
        let gone = std::mem::take(&mut restoring.waiting).len();
        if gone > 0 {
            restoring.lost.insert("their ports or networks are gone", gone);
        }
        if let Some(keeper) = &restoring.keeper {
            keeper.settled();
        }
        let lost: usize = restoring.lost.values().sum();
        if restoring.kept + lost == 0 {
            return;
        }
        let mut text = format!("{} connections go on", restoring.kept);
        if lost > 0 {
            let why: Vec<String> =
                restoring.lost.iter().map(|(why, count)| format!("{count}: {why}")).collect();
            text += &format!(", {lost} could not be kept ({})", why.join("; "));
        }
        self.journal.note("connections", "", text);
    }

    /// Returns whose the numbers of this run are.
    fn names(&self) -> Names {
        let (limits, around) = (&self.limits, &self.surroundings);
        let mut names = Names::default();
        for (name, id) in &self.networks {
            names.networks.insert(*id, Name::of("network", name));
        }
        names.networks.insert(packet::NetworkId(limits.networks), Name::of("outside", ""));
        names.networks.insert(packet::NetworkId(limits.networks + 1), Name::of("host", ""));
        for (name, attached) in &self.ports {
            names.ports.insert(attached.id, Name::of("port", name));
        }
        for uplink in &around.uplinks {
            names.ports.insert(uplink.id, Name::of("outside", &uplink.name));
        }
        if let Some(tap) = &around.host {
            names.ports.insert(tap.id, Name::of("host", ""));
        }
        names
    }
}
