//! The outside and the host: devices that are shared with the host, its tap, and the ports that are held there.
//!
//! Whatever changes, the configuration or the host, ends in [`Manager::follow_outside`]: it looks at what should be
//! there, makes and removes the difference, tells the compiler what is around the switch, and says to the steering
//! programs which packets are ours. Nothing here is urgent for what runs: established flows go on.
//!
//! The ports of the outside have numbers of their own, behind those that can be configured.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use config::Network;
use packet::PortId;
use pipeline::requests::{Form, announce, solicit};
use tokio::sync::watch;

use super::Manager;
use crate::compile;
use crate::devices::Link;
use crate::devices::follow::HostState;
use crate::devices::host::HostRoute;
use crate::relay::{Relay, Source};
use crate::uplink::{HOST_TAP, Uplink, Way, relay_addresses};

mod around;
mod devices;
mod probing;
mod publishing;

pub(super) use around::underlay_mtu;
use devices::Device;
pub(super) use devices::sockets;
use probing::Probing;

/// How long after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Devices that can lead outside at the same time.
const DEVICES: u16 = 8;
/// Port numbers behind those that can be configured: the host's tap, the devices, and for each of these the tap by which
/// what is the host's goes back.
pub const NUMBERS: u16 = 1 + 2 * DEVICES;

/// What the manager has of the outside.
#[derive(Debug)]
pub struct Outside {
    uplink: Uplink,
    relay: Relay,
    host: watch::Receiver<HostState>,
    /// By the number of the link.
    devices: BTreeMap<u32, Device>,
    tap: Option<(PortId, Link)>,
    /// What an earlier run had and this one has not was looked for.
    looked_for_leftovers: bool,
    /// What was said last, so that a failure is told once.
    troubles: BTreeSet<String>,
    /// When these are looked at again.
    again: Instant,
    probing: Probing,
    /// What was told by which device, and whose it was.
    announced: BTreeMap<(PortId, IpAddr), String>,
    /// Next hops towards peers that the kernel was told to find and keep.
    asked: BTreeSet<(PortId, IpAddr)>,
    /// L4 ports that were chosen for published ports that any would do for.
    chosen: BTreeMap<String, u16>,
}

impl Outside {
    /// Starts looking after the host's namespace, which is the calling thread's.
    ///
    /// # Errors
    /// Names what was refused.
    pub async fn start(switch: &str) -> anyhow::Result<Self> {
        let uplink = Uplink::start(switch)?;
        let host = uplink.follow().await?;
        let (v4, v6) = relay_addresses(switch);
        let relay = Relay::start(Source { v4, v6 })?;
        Ok(Self {
            uplink,
            relay,
            host,
            devices: BTreeMap::new(),
            tap: None,
            looked_for_leftovers: false,
            troubles: BTreeSet::new(),
            again: Instant::now(),
            probing: Probing::default(),
            announced: BTreeMap::new(),
            asked: BTreeSet::new(),
            chosen: BTreeMap::new(),
        })
    }

    /// Returns how many AF_XDP sockets the devices have.
    pub fn sockets(&self) -> usize {
        self.devices.values().map(|device| device.sockets).sum()
    }

    /// Returns what is not as it should be.
    pub fn troubles(&self) -> Vec<&str> {
        self.troubles.iter().map(String::as_str).collect()
    }

    /// Says who else has an address, as far as that keeps the switch from using it.
    pub fn taken(&self, address: IpAddr) -> Option<String> {
        self.probing.owner(address).map(ToString::to_string)
    }

    /// Returns the host as it is now.
    pub fn state(&self) -> HostState {
        self.host.borrow().clone()
    }

    /// Returns what tells of changes of the host.
    pub fn changes(&self) -> watch::Receiver<HostState> {
        self.host.clone()
    }

    /// Returns the L4 port that was chosen for a published port.
    pub fn chosen(&self, name: &str) -> Option<u16> {
        self.chosen.get(name).copied()
    }

    /// Removes all that was made in the host's namespace.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn remove_all(&self) -> Result<(), crate::devices::Error> {
        self.relay.set(Vec::new()).await;
        self.uplink.remove_all().await
    }
}

impl Manager {
    /// Returns how many AF_XDP sockets the devices of an uplink would take that are there now.
    pub(super) fn uplink_sockets(&self, wish: &config::Uplink) -> usize {
        match (&wish.device, &self.outside) {
            // What is not named is used as it can be.
            (config::UplinkDevice::Auto, Some(outside)) => outside.sockets(),
            (_, Some(outside)) => sockets(wish, &outside.state()),
            (_, None) => 0,
        }
    }

    /// Brings the outside in line with the configuration and the host. To be called after either changed.
    pub(super) async fn follow_outside(&mut self) {
        let Some(mut outside) = self.outside.take() else { return };
        let state = outside.host.borrow_and_update().clone();
        let mut troubles = BTreeSet::new();
        let refused = self.share_devices(&mut outside, &state).await;
        troubles.extend(refused.iter().map(|error| format!("uplink: {error}")));
        if let Err(error) = self.join_host(&mut outside).await {
            troubles.insert(format!("host: {error}"));
        }
        let surroundings = self.look_around(&outside, &state);
        let changed = surroundings != self.surroundings;
        self.surroundings = surroundings;
        self.outside = Some(outside);
        if changed {
            self.publish();
            self.follow_mtu().await;
        }
        let Some(mut outside) = self.outside.take() else { return };
        if let Err(error) = self.steer(&outside).await {
            troubles.insert(format!("uplink: {error}"));
        }
        let conflicts = outside.relay.set(self.held(&self.saved.intent, &outside)).await;
        troubles.extend(conflicts.iter().map(|conflict| format!("publish: {conflict}")));
        self.announce(&mut outside).await;
        self.ask_for_peers(&mut outside);
        troubles.extend(outside.probing.troubles());
        for trouble in troubles.difference(&outside.troubles) {
            self.journal.note("outside_trouble", "", trouble.clone());
        }
        outside.troubles = troubles;
        outside.again = Instant::now() + AGAIN;
        self.outside = Some(outside);
    }

    /// Follows the outside again, when something was not as it should be.
    pub(super) async fn retry_outside(&mut self) {
        let is_due = |outside: &Outside| !outside.troubles.is_empty() && outside.again <= Instant::now();
        if self.outside.as_ref().is_some_and(is_due) {
            self.follow_outside().await;
        }
    }

    /// Has the host's kernel find the next hops towards peers, before packets wait for them, and keep knowing them.
    fn ask_for_peers(&self, outside: &mut Outside) {
        let unknown = self.unknown_next_hops();
        for (port, address) in unknown.difference(&outside.asked) {
            let found = outside.devices.iter().find(|(_, d)| d.id == *port && d.way != Way::Dedicated);
            if let Some((index, _)) = found {
                outside.uplink.resolve(*index, *address);
            }
        }
        outside.asked = unknown;
    }

    /// Has the host's kernel find out who has an address behind a device.
    pub(super) async fn have_resolved(&self, port: PortId, address: IpAddr) {
        let Some(outside) = &self.outside else { return };
        let Some((index, device)) = outside.devices.iter().find(|(_, device)| device.id == port) else {
            return;
        };
        outside.uplink.resolve(*index, address);
        let state = outside.state();
        let mut own = state.addresses.iter().filter(|(of, _)| of == index).map(|(_, net)| net.addr());
        if address.is_ipv4() || own.clone().any(|own| own.is_ipv6() && is_link_local(own)) {
            return;
        }
        // The kernel asks from a link-local address and from no other. The answer is for it all the same.
        let Some(source) = own.find(IpAddr::is_ipv6) else { return };
        let mut pool = packet::FramePool::new(Arc::clone(self.crew.area()));
        if let Some(frame) = solicit(&mut pool, (device.link.mac, source.into()), address.into(), None) {
            self.crew.inject(port, 0, frame.bytes()).await;
            pool.free(frame);
        }
        pool.flush();
    }

    /// Makes the tap to the host and its routes, when a network is joined to it.
    async fn join_host(&self, outside: &mut Outside) -> anyhow::Result<()> {
        let plan = self.plan();
        let joined: Vec<&Network> = plan
            .networks
            .iter()
            .map(|(_, network)| *network)
            .filter(|n| compile::joins_host(&plan, n))
            .collect();
        let joined: Vec<&Network> =
            joined.into_iter().filter(|network| !network.gateway_addresses().is_empty()).collect();
        if joined.is_empty() {
            if let Some((id, _)) = outside.tap.take() {
                self.crew.remove_port(id).await;
                outside.uplink.remove_host_tap().await?;
            }
            return Ok(());
        }
        if outside.tap.is_none() {
            let id = PortId(self.limits.ports);
            let ports::Opened { queues, .. } = self.open_tap(&outside.uplink, HOST_TAP.to_owned()).await?;
            let link = outside.uplink.set_up_host_tap(None).await?;
            self.crew.add_port(id, queues, 0).await;
            outside.tap = Some((id, link));
        }
        let route = |to| HostRoute { to, source: None };
        let mut routes: Vec<HostRoute> =
            joined.iter().flat_map(|network| network.subnets.iter().map(|subnet| route(*subnet))).collect();
        let floating = self.saved.intent.floating_ips.values();
        let floating = floating.map(|floating| floating.object.address);
        let ours = floating.filter(|address| outside.probing.owner(*address).is_none());
        routes.extend(ours.map(|address| route(address.into())));
        // And to the switch's own addresses, which the host's kernel does not have.
        let state = outside.host.borrow().clone();
        let is_hosts = |address: IpAddr| state.addresses.iter().any(|(_, net)| net.addr() == address);
        let own = outside.devices.values().flat_map(|device| self.own_addresses(device, &state));
        routes.extend(own.filter(|own| !is_link_local(*own) && !is_hosts(*own)).map(|own| route(own.into())));
        outside.uplink.set_host_routes(routes).await?;
        Ok(())
    }

    /// Tells the outside where floating IPs and the switch's own addresses are, after they came or moved (RFC 5227, 3;
    /// RFC 4861, 7.2.6).
    async fn announce(&self, outside: &mut Outside) {
        let state = outside.host.borrow().clone();
        let floating = self.saved.intent.floating_ips.values().map(|floating| &floating.object);
        let mut pool = packet::FramePool::new(Arc::clone(self.crew.area()));
        let mut now = BTreeMap::new();
        for device in outside.devices.values() {
            let floating = floating.clone().map(|floating| (floating.address, floating.port.as_str()));
            let own = self.own_addresses(device, &state).into_iter().map(|own| (own, ""));
            let ours = floating.chain(own).filter(|(address, _)| outside.probing.owner(*address).is_none());
            for (address, port) in ours {
                let key = (device.id, address);
                if outside.announced.get(&key).is_none_or(|before| before != port) {
                    for form in [Form::Request, Form::Reply] {
                        let frame = announce(&mut pool, device.link.mac, address.into(), form, false);
                        let Some(frame) = frame else { continue };
                        self.crew.inject(device.id, 0, frame.bytes()).await;
                        pool.free(frame);
                    }
                }
                now.insert(key, port.to_owned());
            }
        }
        pool.flush();
        outside.announced = now;
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
