//! The outside and the host: devices that are shared with the host, its tap, and the ports that are held there.
//!
//! Whatever changes, the configuration or the host, ends in [`Manager::follow_outside`]: it looks at what should be
//! there, makes and removes the difference, tells the compiler what is around the switch, and says to the steering
//! programs which packets are ours. Nothing here is urgent for what runs: established flows go on.
//!
//! The ports of the outside have numbers of their own, behind those that can be configured.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use config::{L4Protocol, Network, Publish, UplinkDevice};
use packet::{Address, PortId, Prefix};
use pipeline::requests::{Form, announce};
use ports::steer::Rules;
use ports::{Kind, Port, Spec};
use tokio::sync::watch;

use super::Manager;
use crate::compile;
use crate::devices::Link;
use crate::devices::follow::{HostState, RouteKind};
use crate::devices::host::HostRoute;
use crate::refusal::Refusal;
use crate::relay::{Conflict, Protocol, Published, Relay, Source};
use crate::surroundings::{HostTap, OutsideHop, OutsideRoute, Surroundings, UplinkPort};
use crate::uplink::{HOST_TAP, Uplink, relay_addresses, tap_name};

/// Devices that can be shared at the same time.
const DEVICES: u16 = 8;
/// Port numbers behind those that can be configured: the host's tap and the devices.
pub const NUMBERS: u16 = 1 + DEVICES;
/// Where a published port that any L4 port would do for is looked for: below the ports that masquerading takes, and
/// above those of well-known services.
const RANDOM: std::ops::RangeInclusive<u16> = 32768..=49151;

/// What the manager has of the outside.
#[derive(Debug)]
pub struct Outside {
    uplink: Uplink,
    relay: Relay,
    host: watch::Receiver<HostState>,
    /// By the number of the link.
    devices: BTreeMap<u32, Shared>,
    tap: Option<(PortId, Link)>,
    /// What was said last, so that a failure is told once.
    troubles: BTreeSet<String>,
    announced: BTreeMap<IpAddr, String>,
    /// L4 ports that were chosen for published ports that any would do for.
    chosen: BTreeMap<String, u16>,
}

/// A device that is shared with the host.
#[derive(Debug)]
struct Shared {
    id: PortId,
    link: Link,
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
            troubles: BTreeSet::new(),
            announced: BTreeMap::new(),
            chosen: BTreeMap::new(),
        })
    }

    /// Returns what tells of changes of the host.
    pub fn changes(&self) -> watch::Receiver<HostState> {
        self.host.clone()
    }

    /// Returns the L4 port that was chosen for a published port.
    pub fn chosen(&self, name: &str) -> Option<u16> {
        self.chosen.get(name).copied()
    }

    /// Has the host's kernel find out who has an address behind a device.
    pub fn resolve(&self, port: PortId, address: IpAddr) {
        if let Some((index, _)) = self.devices.iter().find(|(_, shared)| shared.id == port) {
            self.uplink.resolve(*index, address);
        }
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
    /// Brings the outside in line with the configuration and the host. To be called after either changed.
    pub(super) async fn follow_outside(&mut self) {
        let Some(mut outside) = self.outside.take() else { return };
        let state = outside.host.borrow_and_update().clone();
        let mut troubles = BTreeSet::new();
        if let Err(error) = self.share_devices(&mut outside, &state).await {
            troubles.insert(format!("uplink: {error}"));
        }
        if let Err(error) = self.join_host(&mut outside).await {
            troubles.insert(format!("host: {error}"));
        }
        let surroundings = self.look_around(&outside, &state);
        let changed = surroundings != self.surroundings;
        self.surroundings = surroundings;
        self.outside = Some(outside);
        if changed {
            self.publish();
        }
        let Some(mut outside) = self.outside.take() else { return };
        if let Err(error) = self.steer(&outside).await {
            troubles.insert(format!("uplink: {error}"));
        }
        let conflicts = outside.relay.set(self.held(&self.saved.intent, &outside)).await;
        troubles.extend(conflicts.iter().map(|conflict| format!("publish: {conflict}")));
        self.announce(&mut outside).await;
        for trouble in troubles.difference(&outside.troubles) {
            self.journal.note("outside_trouble", "", trouble.clone());
        }
        outside.troubles = troubles;
        self.outside = Some(outside);
    }

    /// Shares the devices that lead outside, and gives back those that do not any more.
    async fn share_devices(&self, outside: &mut Outside, state: &HostState) -> anyhow::Result<()> {
        let wanted: BTreeSet<u32> = match &self.saved.intent.settings.uplink.device {
            // Nobody to go outside: so a cleaned up switch leaves the host alone.
            _ if self.saved.intent.networks.is_empty() => BTreeSet::new(),
            UplinkDevice::None => BTreeSet::new(),
            UplinkDevice::Auto => state.uplinks().into_iter().collect(),
            UplinkDevice::Names(names) => {
                let named = state.links.iter().filter(|link| names.contains(&link.name));
                named.map(|link| link.index).collect()
            }
        };
        let gone: Vec<u32> =
            outside.devices.keys().filter(|index| !wanted.contains(index)).copied().collect();
        for index in gone {
            let Some(shared) = outside.devices.remove(&index) else { continue };
            self.crew.remove_port(shared.id).await;
            outside.uplink.release(&shared.link.name).await?;
            self.journal.note("uplink_gone", format!("device {}", shared.link.name), "no longer shared");
        }
        for index in wanted {
            let Some(link) = state.link(index) else { continue };
            match outside.devices.get_mut(&index) {
                Some(shared) if (shared.link.mac, shared.link.mtu) == (link.mac, link.mtu) => {
                    shared.link = link.clone();
                }
                Some(shared) => {
                    outside.uplink.share(&link.name).await?;
                    shared.link = link.clone();
                }
                None => self.share(outside, link).await?,
            }
        }
        Ok(())
    }

    async fn share(&self, outside: &mut Outside, link: &Link) -> anyhow::Result<()> {
        let first = self.limits.ports + 1;
        let taken: Vec<PortId> = outside.devices.values().map(|shared| shared.id).collect();
        let id = (first..first + DEVICES).map(PortId).find(|id| !taken.contains(id));
        let Some(id) = id else { anyhow::bail!("more than {DEVICES} devices lead outside") };
        let queues = self.open_tap(&outside.uplink, tap_name(&link.name)).await?;
        outside.uplink.share(&link.name).await?;
        self.crew.add_port(id, queues, 0).await;
        self.journal.note("uplink", format!("device {}", link.name), "shared with the host");
        outside.devices.insert(link.index, Shared { id, link: link.clone() });
        Ok(())
    }

    async fn open_tap(&self, uplink: &Uplink, device: String) -> anyhow::Result<Vec<Port>> {
        let area = Arc::clone(self.crew.area());
        let name = device.clone();
        let kind = Kind::Tap { device, queues: 1, persist: true };
        let opened = uplink.run(move || Port::open(Spec { name, kind }, &area)).await??;
        Ok(opened.queues)
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
            let queues = self.open_tap(&outside.uplink, HOST_TAP.to_owned()).await?;
            let link = outside.uplink.set_up_host_tap(None).await?;
            self.crew.add_port(id, queues, 0).await;
            outside.tap = Some((id, link));
        }
        let route = |to| HostRoute { to, source: None };
        let mut routes: Vec<HostRoute> =
            joined.iter().flat_map(|network| network.subnets.iter().map(|subnet| route(*subnet))).collect();
        let floating = self.saved.intent.floating_ips.values();
        routes.extend(floating.map(|floating| route(floating.object.address.into())));
        outside.uplink.set_host_routes(routes).await?;
        Ok(())
    }

    /// Says what is around the switch.
    fn look_around(&self, outside: &Outside, state: &HostState) -> Surroundings {
        let usable = |address: &IpAddr| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        };
        let own: BTreeSet<IpAddr> =
            state.addresses.iter().map(|(_, net)| net.addr()).filter(usable).collect();
        let mut addresses: Vec<IpAddr> = own.into_iter().collect();
        let (v4, v6) = relay_addresses(&self.name);
        let relay = [IpAddr::from(v4), v6.into()];
        let host = outside.tap.as_ref().map(|(id, link)| {
            addresses.extend(relay);
            HostTap { id: *id, mac: link.mac, mtu: link.mtu, addresses: relay.to_vec() }
        });
        let port = |index: u32| outside.devices.get(&index).map(|shared| shared.id);
        let uplinks = outside.devices.values().map(|shared| UplinkPort {
            id: shared.id,
            name: shared.link.name.clone(),
            mac: shared.link.mac,
            mtu: shared.link.mtu,
            up: shared.link.up,
            shared: true,
        });
        let neighbors = state.neighbors.iter();
        addresses.sort();
        addresses.dedup();
        Surroundings {
            addresses,
            uplinks: uplinks.collect(),
            routes: routes(outside, state),
            neighbors: neighbors.filter_map(|(index, ip, mac)| Some((port(*index)?, *ip, *mac))).collect(),
            host,
        }
    }

    /// Tells the programs at the devices which packets are the switch's.
    async fn steer(&self, outside: &Outside) -> anyhow::Result<()> {
        let intent = &self.saved.intent;
        let around = &self.surroundings;
        let is_host = |address: &IpAddr| around.addresses.contains(address);
        let mut floating: BTreeSet<IpAddr> =
            intent.floating_ips.values().map(|floating| floating.object.address).collect();
        let mut snat: Vec<(Address, std::ops::RangeInclusive<u16>)> = Vec::new();
        for egress in intent.egresses.values().map(|egress| &egress.object) {
            for address in &egress.address {
                if is_host(address) {
                    snat.push(((*address).into(), egress.ports.first..=egress.ports.last));
                } else {
                    floating.insert(*address);
                }
            }
        }
        let range = intent.settings.uplink.ports;
        let hops = around.routes.iter().flat_map(|route| &route.hops);
        let sources: BTreeSet<IpAddr> = hops.filter_map(|hop| hop.source).collect();
        snat.extend(sources.iter().map(|source| ((*source).into(), range.first..=range.last)));
        let mut published = Vec::new();
        // Not by `publishes`, which does not find the ports chosen by chance while the outside is in our hands.
        for publish in with_ports(intent, |publish| outside.chosen(&config::Object::name(publish))) {
            let ports = publish.listen.ports;
            let listens = around.addresses.iter().filter(|address| publish.listen.covers(**address));
            for address in listens.copied() {
                let range = ports.first..=ports.last;
                published.push((address.into(), publish.listen.protocol.number(), range));
            }
        }
        let routed = intent.networks.values().map(|network| &network.object);
        let routed = routed.filter(|network| !network.masquerade && !network.internal);
        let routed = routed.flat_map(|network| &network.subnets);
        let groups: Vec<_> = floating
            .iter()
            .filter_map(|address| match address {
                IpAddr::V6(v6) => Some(*v6),
                IpAddr::V4(_) => None,
            })
            .collect();
        let rules = Rules {
            floating: floating.into_iter().map(Address::from).collect(),
            published,
            snat,
            routed: routed.filter_map(|net| Prefix::new(net.network().into(), net.prefix_len())).collect(),
            vnis: Vec::new(),
        };
        let reserve = rules.snat.iter().map(|(_, range)| range.clone());
        let reserve: Vec<_> =
            reserve.chain(rules.published.iter().map(|(_, _, range)| range.clone())).collect();
        if outside.devices.is_empty() {
            outside.uplink.reserve(Vec::new()).await?;
            return Ok(());
        }
        outside.uplink.set_rules(rules).await?;
        for index in outside.devices.keys() {
            outside.uplink.set_groups(*index, groups.clone()).await?;
        }
        outside.uplink.reserve(reserve).await?;
        Ok(())
    }

    /// Returns the published ports, each with the L4 port that was chosen for it.
    pub(super) fn publishes(&self) -> Vec<Publish> {
        let chosen = |publish: &Publish| self.outside.as_ref()?.chosen(&config::Object::name(publish));
        with_ports(&self.saved.intent, chosen)
    }

    /// Returns what the relay is to hold.
    fn held(&self, intent: &crate::intent::Intent, outside: &Outside) -> Vec<Published> {
        let daemon = &intent.settings.daemon.publish_allow_from;
        let publishes = with_ports(intent, |publish| outside.chosen(&config::Object::name(publish)));
        let mut held = Vec::new();
        for publish in &publishes {
            if publish.listen.is_random() {
                continue;
            }
            let allow: Arc<[ipnet::IpNet]> = publish.admitted(daemon).to_vec().into();
            let protocol = match publish.listen.protocol {
                L4Protocol::Tcp => Protocol::Tcp,
                L4Protocol::Udp => Protocol::Udp,
                L4Protocol::Sctp => Protocol::Sctp,
            };
            let any: [IpAddr; 2] = [[0; 4].into(), [0; 16].into()];
            let listens: Vec<IpAddr> = match publish.listen.address {
                None => any.to_vec(),
                // A floating IP is no address of the host: nobody else can have its ports.
                Some(address) if intent.floating_ips.contains_key(&address.to_string()) => continue,
                Some(address) => vec![address],
            };
            let port = intent.ports.get(&publish.to.port).map(|port| &port.object);
            for listen in listens {
                for (n, l4) in (publish.listen.ports.first..=publish.listen.ports.last).enumerate() {
                    let offset = u16::try_from(n).unwrap_or(0);
                    let to = port.and_then(|port| publish.inside(port, listen.is_ipv4()));
                    held.push(Published {
                        listen: SocketAddr::new(listen, l4),
                        protocol,
                        to: to.map(|to| SocketAddr::new(to, publish.to.ports.first + offset)),
                        allow: Arc::clone(&allow),
                    });
                }
            }
        }
        held
    }

    /// Takes the ports of the host that a new intent publishes.
    ///
    /// # Errors
    /// Another program has one: it is named, and what was held before is held again.
    pub(super) async fn hold_ports(&mut self, next: &crate::intent::Intent) -> Result<(), Refusal> {
        let Some(mut outside) = self.outside.take() else { return Ok(()) };
        choose_ports(next, &mut outside.chosen);
        let conflicts = outside.relay.set(self.held(next, &outside)).await;
        let before: BTreeSet<_> = outside.troubles.iter().cloned().collect();
        let new: Vec<&Conflict> =
            conflicts.iter().filter(|conflict| !before.contains(&format!("publish: {conflict}"))).collect();
        let refusal = new.first().map(|conflict| {
            let name = next.publishes.values().map(|publish| &publish.object).find(|publish| {
                let ports = publish.listen.ports;
                (ports.first..=ports.last).contains(&conflict.listen.port())
            });
            let name = name.map_or_else(String::new, |publish| format!("{}: ", publish.to.port));
            Refusal::conflict(format!("{name}{conflict}"))
        });
        if refusal.is_some() {
            outside.relay.set(self.held(&self.saved.intent, &outside)).await;
        }
        self.outside = Some(outside);
        refusal.map_or(Ok(()), Err)
    }

    /// Tells the outside where floating IPs are, after they came or moved (RFC 5227, 3; RFC 4861, 7.2.6).
    async fn announce(&self, outside: &mut Outside) {
        let floating = self.saved.intent.floating_ips.values().map(|floating| &floating.object);
        let now: BTreeMap<IpAddr, String> =
            floating.map(|floating| (floating.address, floating.port.clone())).collect();
        let new = now.iter().filter(|(address, port)| outside.announced.get(*address) != Some(*port));
        let new: Vec<IpAddr> = new.map(|(address, _)| *address).collect();
        if !new.is_empty() && !outside.devices.is_empty() {
            let mut pool = packet::FramePool::new(Arc::clone(self.crew.area()));
            for shared in outside.devices.values() {
                for address in &new {
                    for form in [Form::Request, Form::Reply] {
                        let frame = announce(&mut pool, shared.link.mac, (*address).into(), form, false);
                        let Some(frame) = frame else { continue };
                        self.crew.inject(shared.id, 0, frame.bytes()).await;
                        pool.free(frame);
                    }
                }
            }
            pool.flush();
        }
        if !outside.devices.is_empty() {
            outside.announced = now;
        }
    }
}

/// Returns the published ports of an intent, each with the L4 port that was chosen for it.
fn with_ports(intent: &crate::intent::Intent, chosen: impl Fn(&Publish) -> Option<u16>) -> Vec<Publish> {
    let publishes = intent.publishes.values().map(|publish| publish.object.clone());
    publishes
        .map(|mut publish| {
            if publish.listen.is_random()
                && let Some(port) = chosen(&publish)
            {
                publish.listen.ports = config::L4Range { first: port, last: port };
            }
            publish
        })
        .collect()
}

/// Chooses L4 ports for published ports that any would do for; one that was chosen stays.
fn choose_ports(intent: &crate::intent::Intent, chosen: &mut BTreeMap<String, u16>) {
    chosen.retain(|name, _| intent.publishes.contains_key(name));
    for (name, publish) in &intent.publishes {
        if !publish.object.listen.is_random() || chosen.contains_key(name) {
            continue;
        }
        let is_taken = |port: u16| {
            let range = config::L4Range { first: port, last: port };
            intent.publishes.values().any(|other| {
                let own = config::Listen { ports: range, ..publish.object.listen };
                other.object.listen.overlaps(own)
            }) || chosen.values().any(|other| *other == port)
        };
        // The same name gets the same port in every run, as far as it is free.
        let mac = compile::made_mac("publish", name).0;
        let start = u16::from_be_bytes([mac[4], mac[5]]) % (RANDOM.end() - RANDOM.start());
        let ports = (0..=RANDOM.end() - RANDOM.start())
            .map(|n| RANDOM.start() + (start + n) % (RANDOM.end() - RANDOM.start() + 1));
        if let Some(port) =
            ports.into_iter().find(|port| !is_taken(*port) && is_free(publish.object.listen, *port))
        {
            chosen.insert(name.clone(), port);
        }
    }
}

/// Says whether nobody on the host has the port.
fn is_free(listen: config::Listen, port: u16) -> bool {
    let address = listen.address.unwrap_or_else(|| [0; 4].into());
    match listen.protocol {
        L4Protocol::Tcp => std::net::TcpListener::bind((address, port)).is_ok(),
        L4Protocol::Udp => std::net::UdpSocket::bind((address, port)).is_ok(),
        L4Protocol::Sctp => true,
    }
}

/// Returns the host's routes by the devices that are shared, one for each prefix: that of the smallest metric.
fn routes(outside: &Outside, state: &HostState) -> Vec<OutsideRoute> {
    let mut best: BTreeMap<ipnet::IpNet, (u32, Vec<OutsideHop>)> = BTreeMap::new();
    for route in &state.routes {
        let Some(shared) = outside.devices.get(&route.device) else { continue };
        if route.kind != RouteKind::Unicast || !shared.link.up {
            continue;
        }
        let source = route.source.or_else(|| source(state, route.device, route.via, route.to));
        let hop = OutsideHop { port: shared.id, via: route.via, source };
        let entry = best.entry(route.to).or_insert_with(|| (route.metric, Vec::new()));
        if route.metric < entry.0 {
            *entry = (route.metric, Vec::new());
        }
        if route.metric == entry.0 {
            entry.1.push(hop);
        }
    }
    best.into_iter().map(|(to, (_, hops))| OutsideRoute { to, hops }).collect()
}

/// Returns the address that the host would send from by a device: one in the next hop's subnet, else the first of the
/// family that is no link-local one.
fn source(state: &HostState, device: u32, via: Option<IpAddr>, to: ipnet::IpNet) -> Option<IpAddr> {
    let own = state.addresses.iter().filter(|(index, net)| {
        let link_local = matches!(net.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local());
        *index == device && net.addr().is_ipv4() == to.addr().is_ipv4() && !link_local
    });
    let own: Vec<ipnet::IpNet> = own.map(|(_, net)| *net).collect();
    let near = via.unwrap_or_else(|| to.addr());
    own.iter().find(|net| net.contains(&near)).or_else(|| own.first()).map(ipnet::IpNet::addr)
}
