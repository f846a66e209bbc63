//! What users are shown of other hosts and of what is behind them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use config::api::{PeerOrigin, PeerView, RemoteView};
use config::{Object, OverlayPeer, Owner, PeerMode, Remote};
use packet::{NetworkId, PortId, VtepId};
use pipeline::tables::{VtepKey, VtepKind};
use pipeline::{OVERHEAD_V4, OVERHEAD_V6};

use super::Manager;
use super::object_views::{Shown, state};
use crate::compile::Overlay;
use crate::compile::overlay::{locals, way};
use crate::doctor::mtu::{Question, Way};
use crate::intent::Owned;
use crate::surroundings::UplinkPort;

/// The ways to other hosts, for a look at many of them.
struct Ways<'m> {
    manager: &'m Manager,
    /// Our ends.
    own: Vec<IpAddr>,
    /// How many stations are known to be behind whom.
    stations: HashMap<VtepId, u32>,
}

impl Ways<'_> {
    /// Says from which address and by which device packets go to a host.
    ///
    /// # Errors
    /// Why they cannot.
    fn known(&self, peer: IpAddr) -> Result<(IpAddr, String), String> {
        let (own, device, next) = self.route(peer)?;
        let mut neighbors = self.manager.surroundings.neighbors.iter();
        let is_known = neighbors.any(|(port, address, _)| (*port, *address) == (device.id, next));
        if device.is_shared() && !is_known {
            return Err(format!("{next} at {} does not answer (yet)", device.name));
        }
        Ok((own, device.name.clone()))
    }

    /// As [`Ways::known`], whether or not anybody is there: our address, the device, and the next hop.
    fn route(&self, peer: IpAddr) -> Result<(IpAddr, &UplinkPort, IpAddr), String> {
        self.manager.island()?;
        let around = &self.manager.surroundings;
        let hop = way(around, peer).ok_or_else(|| format!("no route leads to {peer}"))?;
        let device = around.uplinks.iter().find(|uplink| uplink.id == hop.port);
        let device = device.ok_or_else(|| "its device does not lead outside".to_owned())?;
        if !device.up {
            return Err(format!("{} is down", device.name));
        }
        let family = if peer.is_ipv4() { "IPv4" } else { "IPv6" };
        let own = self.own.iter().copied().find(|own| own.is_ipv4() == peer.is_ipv4());
        let own = own.ok_or_else(|| format!("this host has no {family} address in the underlay"))?;
        let is_here = around.addresses.contains(&own) || around.own_addresses().any(|other| other == own);
        if !is_here {
            return Err(format!("[overlay] local: {own} is no address of this host"));
        }
        Ok((own, device, hop.via.unwrap_or(peer)))
    }

    /// Returns the view of a host that has, or should have, a number.
    fn view(
        &self,
        peer: OverlayPeer,
        vtep: Option<VtepId>,
        (owner, origin): (Option<Owner>, PeerOrigin),
    ) -> PeerView {
        let ready = self.known(peer.address).and_then(|way| match (peer.mode, vtep) {
            (PeerMode::Vxlan, None) => Err("the table of endpoints is full: raise [limits] vteps".to_owned()),
            _ => Ok(way),
        });
        let (state, reason, way) = state(ready);
        let (local, device) = way.unzip();
        let stations = vtep.and_then(|vtep| self.stations.get(&vtep).copied()).unwrap_or(0);
        PeerView { name: peer.name(), config: peer, owner, origin, state, reason, local, device, stations }
    }

    /// As [`Ways::view`], of one that is given.
    fn given(&self, peer: OverlayPeer, owner: Option<Owner>, origin: PeerOrigin) -> PeerView {
        let manager = self.manager;
        let network = peer.network.as_ref().and_then(|name| manager.networks.get(name)).copied();
        let key = VtepKey { network, address: peer.address.into() };
        self.view(peer, manager.endpoints.get(&key).copied(), (owner, origin))
    }
}

impl Manager {
    fn ways(&self) -> Ways<'_> {
        let own = locals(&Overlay::of(&self.saved.intent), &self.surroundings);
        Ways { manager: self, own, stations: HashMap::new() }
    }

    /// As [`Manager::ways`], with a look at all stations.
    fn ways_and_stations(&self) -> Ways<'_> {
        let mut stations = HashMap::new();
        for vtep in self.crew.tables().fdb.list().iter().filter_map(|station| station.vtep) {
            *stations.entry(vtep).or_insert(0) += 1;
        }
        Ways { stations, ..self.ways() }
    }

    /// Returns the next hops towards peers that nobody has heard of yet, with their devices' ports.
    pub(super) fn unknown_next_hops(&self) -> BTreeSet<(PortId, IpAddr)> {
        let (overlay, ways) = (Overlay::of(&self.saved.intent), self.ways());
        let routers = overlay.routers().map(|peer| peer.address);
        let ends = overlay.ends().chain(routers);
        let hops = ends.filter_map(|end| ways.route(end).ok());
        let hops: BTreeSet<_> = hops.map(|(_, device, next)| (device.id, next)).collect();
        let known: BTreeSet<_> =
            self.surroundings.neighbors.iter().map(|(port, ip, _)| (*port, *ip)).collect();
        &hops - &known
    }

    /// Returns what `vsctl doctor mtu` finds out: one question a host that is reached by tunnel.
    pub fn mtu_questions(&self) -> Vec<Question> {
        let intent = &self.saved.intent;
        let mut ends: BTreeMap<IpAddr, BTreeSet<Option<NetworkId>>> = BTreeMap::new();
        self.crew.tables().vteps.for_each(|vtep| {
            ends.entry(vtep.key.address.ip()).or_default().insert(vtep.key.network);
        });
        let ways = self.ways();
        let question = |(peer, of): (IpAddr, BTreeSet<Option<NetworkId>>)| {
            let takes_part =
                |name: &str| of.contains(&None) || of.contains(&self.networks.get(name).copied());
            let networks = intent.networks.values().map(|network| &network.object);
            let networks = networks.filter(|n| n.vni.is_some() && takes_part(&n.name)).map(|network| {
                let mtu = self.resolved(intent, network).mtu.bytes();
                (network.name.clone(), mtu.into())
            });
            let way = ways.route(peer).map(|(local, device, _)| {
                let (mtu, shared, device) = (device.mtu, device.is_shared(), device.name.clone());
                Way { local, mtu, shared, device }
            });
            let overhead = if peer.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
            let overhead = u32::try_from(overhead).expect("50 or 70");
            Question { peer, way, overhead, networks: networks.collect() }
        };
        ends.into_iter().map(question).collect()
    }

    /// Returns the addresses of the endpoints of other hosts by their numbers.
    pub(super) fn peer_addresses(&self) -> HashMap<VtepId, IpAddr> {
        let mut addresses = HashMap::new();
        self.crew.tables().vteps.for_each(|vtep| {
            addresses.insert(vtep.id, vtep.key.address.ip());
        });
        addresses
    }

    /// Returns the endpoints that follow from something else, or were learned.
    fn other_peers(&self, ways: &Ways<'_>) -> Vec<PeerView> {
        let intent = &self.saved.intent;
        let listed = intent.settings.overlay.listed();
        let listed = listed.map(|peer| ways.given(peer, Some(Owner::File), PeerOrigin::Overlay));
        let mut views: Vec<PeerView> = listed.collect();
        let mut known: BTreeSet<String> = views.iter().map(|view| view.name.clone()).collect();
        known.extend(intent.peers.keys().cloned());
        let remotes = intent.remotes.values();
        let owners: HashMap<IpAddr, Owner> = remotes.map(|r| (r.object.vtep, r.owner)).collect();
        self.crew.tables().vteps.for_each(|vtep| {
            let peer = OverlayPeer {
                network: vtep.key.network.and_then(|id| self.network_name(id)).map(str::to_owned),
                ..OverlayPeer::new(vtep.key.address.ip())
            };
            let origin = match vtep.kind {
                VtepKind::Learned => (None, PeerOrigin::Learned),
                VtepKind::Fixed if known.contains(&peer.name()) => return,
                VtepKind::Fixed => (owners.get(&peer.address).copied(), PeerOrigin::Remote),
            };
            views.push(ways.view(peer, Some(vtep.id), origin));
        });
        views
    }
}

impl Shown for OverlayPeer {
    type View = PeerView;

    fn view(manager: &Manager, owned: &Owned<Self>) -> PeerView {
        manager.ways_and_stations().given(owned.object.clone(), Some(owned.owner), PeerOrigin::Peer)
    }

    fn views(manager: &Manager) -> Vec<PeerView> {
        let ways = manager.ways_and_stations();
        let peers = manager.intent().peers.values();
        let peers = peers.map(|peer| ways.given(peer.object.clone(), Some(peer.owner), PeerOrigin::Peer));
        peers.chain(manager.other_peers(&ways)).collect()
    }
}

fn remote_view(ways: &Ways<'_>, owned: &Owned<Remote>) -> RemoteView {
    let remote = &owned.object;
    let (state, reason, _) = state(ways.known(remote.vtep));
    RemoteView { name: remote.name(), config: remote.clone(), owner: owned.owner, state, reason }
}

impl Shown for Remote {
    type View = RemoteView;

    fn view(manager: &Manager, owned: &Owned<Self>) -> RemoteView {
        remote_view(&manager.ways(), owned)
    }

    fn views(manager: &Manager) -> Vec<RemoteView> {
        let ways = manager.ways();
        manager.intent().remotes.values().map(|remote| remote_view(&ways, remote)).collect()
    }
}
