//! The host's links, addresses, routes and neighbours, as they are and as they change.
//!
//! A thread listens to the kernel's news, waits until they have been quiet for [`QUIET`] (or for [`PATIENCE`] in all),
//! lists anew what has changed, and gives the whole to who follows. So a state is never half of a change, and lost news
//! only mean that everything is listed. Routes are those of the main table, neighbours those with a hardware address.
//!
//! The gateways of default routes are kept resolved by this thread, so that the first packet of a container to the
//! outside does not wait.
//!
//! # Limits
//! What changed is listed as a whole: some milliseconds for a thousand routes, a second for the Internet's table.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{setsockopt, sockopt};
use packet::MacAddr;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::sync::watch;

use super::host::{Host, ip};
use super::{Error, Link, link, netlink};

/// Links, neighbours, addresses and routes of both families (RTMGRP_* of linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400;
/// News that come in so short a time are one change.
const QUIET: Duration = Duration::from_millis(20);
/// A change is told after this time even if more follows.
const PATIENCE: Duration = Duration::from_millis(200);
/// A gateway that did not answer is asked for again after this time, at the next change.
const AGAIN: Duration = Duration::from_secs(2);
/// How soon the thread notices that nobody follows any more.
const ROUND: Duration = Duration::from_secs(1);

/// What becomes of packets that a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// They go on.
    Unicast,
    /// They are dropped silently.
    Blackhole,
    /// They are answered as unreachable.
    Unreachable,
    /// They are answered as prohibited.
    Prohibit,
}

/// A route of the host's main table. One with several next hops is several of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where it leads.
    pub to: IpNet,
    /// The smaller one wins, among routes to the same place.
    pub metric: u32,
    /// What becomes of the packets.
    pub kind: RouteKind,
    /// Number of the device; 0 when there is none.
    pub device: u32,
    /// The next hop; `None` when what it leads to is on the link.
    pub via: Option<IpAddr>,
    /// The source that the host prefers.
    pub source: Option<IpAddr>,
    /// Share of the traffic, among several next hops.
    pub weight: u16,
}

/// The host, as seen by its kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// Its links.
    pub links: Vec<Link>,
    /// Its addresses with their subnets, by number of the link. Tentative ones are left out.
    pub addresses: Vec<(u32, IpNet)>,
    /// Its routes, those with the longer prefix and then the smaller metric first.
    pub routes: Vec<Route>,
    /// Whose hardware address it knows, by number of the link.
    pub neighbors: Vec<(u32, IpAddr, MacAddr)>,
}

impl HostState {
    /// Returns the link number `index`.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// Returns the hardware address of a neighbour.
    pub fn neighbor(&self, index: u32, address: IpAddr) -> Option<MacAddr> {
        self.neighbors.iter().find(|found| (found.0, found.1) == (index, address)).map(|found| found.2)
    }

    /// Returns the devices that lead outside: those of default routes, and those with a subnet of their own that are no
    /// device of containers (bridges, our own, other ends of namespaces). All of them Ethernet and up.
    pub fn uplinks(&self) -> Vec<u32> {
        let leads_outside = |link: &&Link| {
            let mut routes =
                self.routes.iter().filter(|r| r.device == link.index && r.kind == RouteKind::Unicast);
            let is_virtual =
                matches!(link.kind.as_str(), "bridge" | "veth" | "tun" | "dummy" | "vxlan" | "geneve");
            routes.any(|route| {
                route.to.prefix_len() == 0
                    || !is_virtual && !docker(&link.name) && !is_link_local(route.to.addr())
            })
        };
        let usable = |link: &&Link| {
            link.up && link.mac.is_station() && link.name != "lo" && !link.name.starts_with("vsw")
        };
        self.links.iter().filter(usable).filter(leads_outside).map(|link| link.index).collect()
    }

    /// Returns the routes that are in use for `address`: of the longest prefix, the smallest metric, by a device that is
    /// up.
    pub fn route(&self, address: IpAddr) -> impl Iterator<Item = &Route> {
        let fits = move |route: &&Route| {
            let up = route.device == 0 || self.link(route.device).is_some_and(|link| link.up);
            up && route.to.contains(&address)
        };
        let best = self.routes.iter().find(fits);
        let same =
            move |route: &&Route| best.is_some_and(|best| (best.to, best.metric) == (route.to, route.metric));
        self.routes.iter().filter(fits).filter(same)
    }
}

/// Says whether the name is one that Docker gives its bridges.
fn docker(name: &str) -> bool {
    name.starts_with("docker") || name.starts_with("br-")
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
    }
}

/// Follows the host whose namespace the calling thread is in. What is received is the present state from the start;
/// the thread ends when nobody follows any more.
///
/// # Errors
/// The kernel's refusal.
pub fn follow() -> Result<watch::Receiver<HostState>, Error> {
    let failed = |error: io::Error| Error::kernel("follow the host's network", error);
    let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20));
    socket.bind(&SocketAddr::new(0, GROUPS)).map_err(failed)?;
    socket.set_non_blocking(true).map_err(failed)?;
    let mut follower =
        Follower { socket, host: Host::open()?, state: HostState::default(), kept: BTreeMap::new() };
    follower.list(Dirty::ALL)?;
    follower.keep_gateways();
    let (sender, receiver) = watch::channel(follower.state.clone());
    thread::Builder::new().name("follow".to_owned()).spawn(move || follower.run(&sender)).map_err(failed)?;
    Ok(receiver)
}

/// What has to be listed anew.
#[derive(Clone, Copy, Debug, Default)]
struct Dirty {
    links: bool,
    addresses: bool,
    routes: bool,
    neighbors: bool,
}

impl Dirty {
    const ALL: Dirty = Dirty { links: true, addresses: true, routes: true, neighbors: true };

    fn any(self) -> bool {
        self.links || self.addresses || self.routes || self.neighbors
    }
}

struct Follower {
    socket: Socket,
    host: Host,
    state: HostState,
    /// The gateways that were asked for, and when.
    kept: BTreeMap<(u32, IpAddr), Instant>,
}

impl Follower {
    fn run(mut self, sender: &watch::Sender<HostState>) {
        let mut dirty = Dirty::default();
        while !sender.is_closed() {
            if !self.wait(ROUND) && !dirty.any() {
                continue;
            }
            let first = Instant::now();
            self.hear(&mut dirty);
            while first.elapsed() < PATIENCE && self.wait(QUIET) {
                self.hear(&mut dirty);
            }
            if !dirty.any() {
                continue;
            }
            let before = self.state.clone();
            // A refusal is a moment's: what is dirty stays so.
            if self.list(dirty).is_err() {
                thread::sleep(QUIET);
                continue;
            }
            dirty = Dirty::default();
            self.keep_gateways();
            if before != self.state {
                sender.send_replace(self.state.clone());
            }
        }
    }

    /// Waits for news; says whether there are some.
    fn wait(&self, time: Duration) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let millis = PollTimeout::try_from(time.as_millis()).unwrap_or(PollTimeout::MAX);
        matches!(nix::poll::poll(&mut fds, millis), Ok(1..))
    }

    /// Reads the news that are there.
    fn hear(&self, dirty: &mut Dirty) {
        let mut buffer = Vec::with_capacity(64 * 1024);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // News were lost.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    *dirty = Dirty::ALL;
                    continue;
                }
                Err(_) => {
                    *dirty = Dirty::ALL;
                    return;
                }
            }
            for message in netlink::messages(&buffer) {
                use RouteNetlinkMessage as M;
                let Ok(message) = NetlinkMessage::<M>::deserialize(message) else {
                    *dirty = Dirty::ALL;
                    continue;
                };
                match message.payload {
                    NetlinkPayload::InnerMessage(M::NewNeighbour(_) | M::DelNeighbour(_)) => {
                        dirty.neighbors = true
                    }
                    NetlinkPayload::InnerMessage(M::NewRoute(_) | M::DelRoute(_)) => dirty.routes = true,
                    // What goes with a link, or with an address, goes without a word.
                    _ => *dirty = Dirty::ALL,
                }
            }
        }
    }

    fn list(&mut self, dirty: Dirty) -> Result<(), Error> {
        let netlink = self.host.netlink();
        let mut dump = |what: &str, message| {
            netlink.dump(message).map_err(|refusal| Error::refused(format!("list {what}"), &refusal))
        };
        if dirty.addresses {
            let answers = dump("addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
            self.state.addresses = answers.iter().filter_map(address).collect();
            self.state.addresses.sort_unstable();
        }
        if dirty.routes {
            let mut routes = Vec::new();
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                let mut message = RouteMessage::default();
                message.header.address_family = family;
                message.header.table = RouteHeader::RT_TABLE_MAIN;
                for answer in dump("routes", RouteNetlinkMessage::GetRoute(message))? {
                    if let RouteNetlinkMessage::NewRoute(message) = answer {
                        add_routes(&message, &mut routes);
                    }
                }
            }
            routes.sort_unstable_by_key(|route: &Route| (u8::MAX - route.to.prefix_len(), *route));
            self.state.routes = routes;
        }
        if dirty.neighbors {
            let mut neighbors = Vec::new();
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                let mut message = NeighbourMessage::default();
                message.header.family = family;
                let answers = dump("neighbours", RouteNetlinkMessage::GetNeighbour(message))?;
                neighbors.extend(answers.iter().filter_map(neighbor));
            }
            neighbors.sort_unstable();
            self.state.neighbors = neighbors;
        }
        if dirty.links {
            let mut links = link::list(netlink)?;
            links.sort_unstable_by_key(|link| link.index);
            self.state.links = links;
        }
        Ok(())
    }

    /// Has the kernel resolve the gateways of default routes, each once: it keeps them resolved.
    fn keep_gateways(&mut self) {
        let is_up = |index| self.state.link(index).is_some_and(|link| link.up);
        let gateways: BTreeSet<_> = self
            .state
            .routes
            .iter()
            .filter(|route| route.to.prefix_len() == 0 && is_up(route.device))
            .filter_map(|route| Some((route.device, route.via?)))
            .collect();
        self.kept.retain(|kept, _| gateways.contains(kept));
        for (index, gateway) in gateways {
            // The kernel gives up on one that does not answer; it may come back.
            let known = self.state.neighbor(index, gateway).is_some();
            let asked = self.kept.get(&(index, gateway));
            if asked.is_none_or(|asked| !known && asked.elapsed() >= AGAIN) {
                self.kept.insert((index, gateway), Instant::now());
                let _ = self.host.resolve(index, gateway);
            }
        }
    }
}

fn address(message: &RouteNetlinkMessage) -> Option<(u32, IpNet)> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            // Of a point-to-point link, "address" is the other end.
            AddressAttribute::Local(address) => {
                found = Some(*address);
                break;
            }
            AddressAttribute::Address(address) => found = Some(*address),
            _ => {}
        }
    }
    let tentative =
        message.header.flags.intersects(netlink_packet_route::address::AddressHeaderFlags::Tentative);
    let net = IpNet::new(found?, message.header.prefix_len).ok()?;
    (!tentative).then_some((message.header.index, net))
}

fn add_routes(message: &RouteMessage, routes: &mut Vec<Route>) {
    let header = &message.header;
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::BlackHole => RouteKind::Blackhole,
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::Prohibit => RouteKind::Prohibit,
        _ => return,
    };
    if header.table != RouteHeader::RT_TABLE_MAIN || header.flags.intersects(RouteFlags::Cloned) {
        return;
    }
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return,
    };
    let mut to = any;
    let mut route =
        Route { to: IpNet::from(any), metric: 0, kind, device: 0, via: None, source: None, weight: 1 };
    let mut hops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address).unwrap_or(any),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::MultiPath(several) => hops.clone_from(several),
            other => next_hop(other, &mut route),
        }
    }
    let Ok(to) = IpNet::new(to, header.destination_prefix_length) else { return };
    route.to = to;
    // The kernel gives an unreachable IPv6 route the loopback as its device.
    if kind != RouteKind::Unicast {
        route.device = 0;
    }
    if hops.is_empty() {
        if !header.flags.intersects(RouteFlags::Dead) {
            routes.push(route);
        }
        return;
    }
    for hop in hops {
        if hop.flags.intersects(RouteNextHopFlags::Dead) {
            continue;
        }
        let mut route = Route { device: hop.interface_index, weight: u16::from(hop.hops) + 1, ..route };
        hop.attributes.iter().for_each(|attribute| next_hop(attribute, &mut route));
        routes.push(route);
    }
}

fn next_hop(attribute: &RouteAttribute, route: &mut Route) {
    match attribute {
        RouteAttribute::Gateway(address) => route.via = ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => route.via = Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => route.via = Some((*address).into()),
        RouteAttribute::Oif(index) => route.device = *index,
        _ => {}
    }
}

fn neighbor(message: &RouteNetlinkMessage) -> Option<(u32, IpAddr, MacAddr)> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                address = Some(IpAddr::from(*found))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                address = Some(IpAddr::from(*found))
            }
            NeighbourAttribute::LinkLayerAddress(octets) => {
                mac = octets.as_slice().try_into().ok().map(MacAddr);
            }
            _ => {}
        }
    }
    use netlink_packet_route::neighbour::NeighbourState as S;
    let known = matches!(message.header.state, S::Reachable | S::Stale | S::Delay | S::Probe | S::Permanent);
    known.then_some((message.header.ifindex, address?, mac.filter(|mac| mac.is_station())?))
}
