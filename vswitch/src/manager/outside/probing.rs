//! Does somebody else outside have an address that the switch is to have? Asked in the manner of RFC 5227, 2.1 and
//! RFC 4862, 5.4, in less time: [`ROUNDS`] times, at each device whose subnet the address is in.
//!
//! A change that brings a new address waits for the answer and is refused with it. Addresses that the switch has already,
//! at a start or when a device comes, are used at once, so that connections go on, and asked about meanwhile: one that turns
//! out to be somebody else's is given up, told of, and asked about again until it is free.
//!
//! Answers come by the neighbour table: the switch asks as for a next hop, and whoever answers is found there. An address
//! beyond the device's subnets is not asked about: a router that answers for all that it has a way to would have it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use packet::{MacAddr, NetworkId, PortId};
use pipeline::requests;
use pipeline::tables::{Kind, NeighborKey};

use super::{Device, Outside};
use crate::devices::follow::HostState;
use crate::intent::Intent;
use crate::manager::Manager;
use crate::refusal::Refusal;

/// How often an address is asked for before it counts as free.
const ROUNDS: u32 = 3;
/// How long a change waits for answers to one question.
const PAUSE: Duration = Duration::from_millis(150);
/// How soon an address that somebody else has is asked about again.
const AGAIN: Duration = Duration::from_secs(5);

/// Another station has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    address: IpAddr,
    mac: MacAddr,
    device: String,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "station {} at {} has {} already", self.mac, self.device, self.address)
    }
}

/// An address at a device.
type At = (PortId, IpAddr);

/// What is known about who has which address.
#[derive(Debug, Default)]
pub(super) struct Probing {
    /// Asked by a change just now.
    pub(super) candidates: BTreeSet<IpAddr>,
    /// Nobody answered, or when to ask again.
    settled: BTreeMap<At, Option<Instant>>,
    /// How often it was asked so far.
    asked: BTreeMap<At, u32>,
    /// Somebody else's.
    taken: BTreeMap<At, Taken>,
}

impl Probing {
    /// Returns the addresses that are somebody else's.
    pub(super) fn taken(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.taken.keys().map(|(_, address)| *address)
    }

    /// Says who has an address.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&Taken> {
        self.taken.iter().find(|((_, taken), _)| *taken == address).map(|(_, taken)| taken)
    }

    /// Says what is wrong.
    pub(super) fn troubles(&self) -> impl Iterator<Item = String> + '_ {
        self.taken.values().map(|taken| format!("{taken}: the switch does not use it"))
    }
}

/// Returns the addresses of an intent that nobody else may have: floating IPs, and egress addresses.
fn addresses(intent: &Intent) -> BTreeSet<IpAddr> {
    let floating = intent.floating_ips.values().map(|floating| floating.object.address);
    let egress = intent.egresses.values().flat_map(|egress| egress.object.address.iter().copied());
    floating.chain(egress).collect()
}

impl Manager {
    /// Finds out whether addresses that `next` brings are free.
    ///
    /// # Errors
    /// One is the host's, or another station's, which is named.
    pub(in crate::manager) async fn try_addresses(&mut self, next: &Intent) -> Result<(), Refusal> {
        let before = addresses(&self.saved.intent);
        let hosts = &self.surroundings.addresses;
        for floating in next.floating_ips.values().map(|floating| floating.object.address) {
            if hosts.contains(&floating) && !before.contains(&floating) {
                return Err(Refusal::conflict(format!(
                    "floating IP {floating}: the host itself has it; allowed: an address that nobody has"
                )));
            }
        }
        let new: BTreeSet<IpAddr> =
            addresses(next).difference(&before).filter(|address| !hosts.contains(address)).copied().collect();
        let Some(mut outside) = self.outside.take() else { return Ok(()) };
        let state = outside.state();
        let pairs: Vec<At> = outside
            .devices
            .values()
            .flat_map(|device| new.iter().map(move |address| (device, *address)))
            .filter(|(device, address)| self.is_near(device, &state, *address))
            .map(|(device, address)| (device.id, address))
            .collect();
        let mut found = None;
        if !pairs.is_empty() {
            outside.probing.candidates.clone_from(&new);
            if let Err(error) = self.steer(&outside).await {
                tracing::warn!(%error, "answers about addresses may not be heard");
            }
            for _ in 0..ROUNDS {
                for at in &pairs {
                    self.ask_about(&outside, *at).await;
                }
                tokio::time::sleep(PAUSE).await;
                found = pairs.iter().find_map(|at| self.answer_about(&outside, *at));
                if found.is_some() {
                    break;
                }
            }
            for at in &pairs {
                self.forget_question(*at);
                if found.is_none() {
                    outside.probing.settled.insert(*at, None);
                }
            }
            outside.probing.candidates.clear();
        }
        self.outside = Some(outside);
        found.map_or(Ok(()), |taken| {
            Err(Refusal::conflict(format!("{taken}; allowed: an address that nobody has")))
        })
    }

    /// Asks about the addresses that the switch has, looks who has answered, and gives up or takes what follows from it.
    /// Once a second.
    pub(in crate::manager) async fn probe_addresses(&mut self) {
        let Some(mut outside) = self.outside.take() else { return };
        let state = outside.state();
        let hosts = &self.surroundings.addresses;
        let floating: BTreeSet<IpAddr> =
            addresses(&self.saved.intent).into_iter().filter(|address| !hosts.contains(address)).collect();
        let mut wanted = BTreeSet::new();
        for device in outside.devices.values() {
            let own = self.own_addresses(device, &state);
            let all = floating.iter().copied().chain(own);
            let near = all.filter(|address| self.is_near(device, &state, *address));
            wanted.extend(near.map(|address| (device.id, address)));
        }
        let before: Vec<IpAddr> = outside.probing.taken().collect();
        outside.probing.settled.retain(|at, _| wanted.contains(at));
        outside.probing.taken.retain(|at, _| wanted.contains(at));
        let asked = std::mem::take(&mut outside.probing.asked);
        for (at, rounds) in asked {
            if !wanted.contains(&at) {
                self.forget_question(at);
            } else if let Some(taken) = self.answer_about(&outside, at) {
                self.forget_question(at);
                outside.probing.settled.insert(at, Some(Instant::now() + AGAIN));
                if outside.probing.taken.insert(at, taken.clone()).is_none() {
                    let text = format!("{taken}: the switch does not use it until it is free");
                    self.journal.note("address_taken", format!("address {}", at.1), text);
                }
            } else if rounds >= ROUNDS {
                self.forget_question(at);
                outside.probing.settled.insert(at, None);
                if outside.probing.taken.remove(&at).is_some() {
                    let text = "nobody else has it any more: the switch uses it";
                    self.journal.note("address_free", format!("address {}", at.1), text);
                }
            } else {
                self.ask_about(&outside, at).await;
                outside.probing.asked.insert(at, rounds + 1);
            }
        }
        for at in wanted {
            let is_due = match outside.probing.settled.get(&at) {
                None => true,
                Some(again) => again.is_some_and(|again| again <= Instant::now()),
            };
            if is_due && !outside.probing.asked.contains_key(&at) {
                self.ask_about(&outside, at).await;
                outside.probing.asked.insert(at, 1);
            }
        }
        let changed = !outside.probing.taken().eq(before);
        self.outside = Some(outside);
        if changed {
            self.follow_outside().await;
        }
    }

    /// Says whether an address is in a subnet of the device: others there would answer for it.
    fn is_near(&self, device: &Device, state: &HostState, address: IpAddr) -> bool {
        let kernels = state.addresses.iter().filter(|(index, _)| *index == device.link.index);
        let mut networks: Vec<IpNet> = kernels.map(|(_, network)| *network).collect();
        networks.extend(self.own_networks(device, state));
        device.link.up && networks.iter().any(|network| network.contains(&address))
    }

    /// Says whether somebody is being asked for an address by this module, and not by packets that are for it.
    pub(in crate::manager) fn is_probed(&self, address: IpAddr) -> bool {
        let probing = self.outside.as_ref().map(|outside| &outside.probing);
        probing.is_some_and(|p| p.candidates.contains(&address) || p.asked.keys().any(|at| at.1 == address))
    }

    fn neighbor_key(&self, (port, address): At) -> NeighborKey {
        NeighborKey { network: NetworkId(self.limits.networks), port: Some(port), address: address.into() }
    }

    async fn ask_about(&self, outside: &Outside, at: At) {
        let (port, address) = at;
        let Some(device) = outside.devices.values().find(|device| device.id == port) else { return };
        let (neighbors, key) = (&self.crew.tables().neighbors, self.neighbor_key(at));
        // What the kernel has heard once may be long ago, and nothing that is learned would change it.
        if self.neighbors.contains_key(&key) {
            neighbors.remove(key, packet::Instant::now());
        }
        if neighbors.resolve(key, packet::Instant::now()).is_err() {
            return;
        }
        let mut pool = packet::FramePool::new(Arc::clone(self.crew.area()));
        if let Some(frame) = requests::probe(&mut pool, device.link.mac, address.into()) {
            self.crew.inject(port, 0, frame.bytes()).await;
            pool.free(frame);
        }
        pool.flush();
    }

    fn answer_about(&self, outside: &Outside, at: At) -> Option<Taken> {
        let device = outside.devices.values().find(|device| device.id == at.0)?;
        let (_, target) = self.crew.tables().neighbors.find(self.neighbor_key(at))?;
        let mac = target?.mac;
        (mac != device.link.mac).then(|| Taken { address: at.1, mac, device: device.link.name.clone() })
    }

    fn forget_question(&self, at: At) {
        let (neighbors, key) = (&self.crew.tables().neighbors, self.neighbor_key(at));
        neighbors.remove(key, packet::Instant::now());
        if let Some((mac, port)) = self.neighbors.get(&key) {
            neighbors.set(key, *mac, *port, Kind::Fixed, packet::Instant::now());
        }
    }
}
