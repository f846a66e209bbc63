//! What users are shown of other hosts and of what is behind them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use config::api::{ObjectState, PeerOrigin, PeerView, RemoteView};
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

impl Manager {
    /// Says by which device and from which address packets go to a host of the overlay.
    ///
    /// # Errors
    /// Why they cannot.
    pub(super) fn way_to(&self, peer: IpAddr) -> Result<(IpAddr, String), String> {
        let (own, device, next) = self.route_to(peer)?;
        let around = &self.surroundings;
        let is_known =
            around.neighbors.iter().any(|(port, address, _)| (*port, *address) == (device.id, next));
        if device.is_shared() && !is_known {
            return Err(format!("{next} at {} does not answer (yet)", device.name));
        }
        Ok((own, device.name.clone()))
    }

    /// As [`Manager::way_to`], whether or not anybody is there: our address, the device, and the next hop.
    fn route_to(&self, peer: IpAddr) -> Result<(IpAddr, &UplinkPort, IpAddr), String> {
        self.island()?;
        let around = &self.surroundings;
        let hop = way(around, peer).ok_or_else(|| format!("no route leads to {peer}"))?;
        let device = around.uplinks.iter().find(|uplink| uplink.id == hop.port);
        let device = device.ok_or_else(|| "its device does not lead outside".to_owned())?;
        if !device.up {
            return Err(format!("{} is down", device.name));
        }
        let own = locals(&Overlay::of(&self.saved.intent), around);
        let family = if peer.is_ipv4() { "IPv4" } else { "IPv6" };
        let own = own.into_iter().find(|own| own.is_ipv4() == peer.is_ipv4());
        let own = own.ok_or_else(|| format!("this host has no {family} address in the underlay"))?;
        let is_here = around.addresses.contains(&own) || around.own_addresses().any(|other| other == own);
        if !is_here {
            return Err(format!("[overlay] local: {own} is no address of this host"));
        }
        Ok((own, device, hop.via.unwrap_or(peer)))
    }

    /// Returns the next hops towards peers that nobody has heard of yet, with their devices' ports.
    pub(super) fn unknown_next_hops(&self) -> BTreeSet<(PortId, IpAddr)> {
        let overlay = Overlay::of(&self.saved.intent);
        let routers = overlay.routers().map(|peer| peer.address);
        let ends = overlay.ends().chain(routers);
        let hops = ends.filter_map(|end| self.route_to(end).ok());
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
        let question = |(peer, of): (IpAddr, BTreeSet<Option<NetworkId>>)| {
            let takes_part =
                |name: &str| of.contains(&None) || of.contains(&self.networks.get(name).copied());
            let networks = intent.networks.values().map(|network| &network.object);
            let networks = networks.filter(|n| n.vni.is_some() && takes_part(&n.name)).map(|network| {
                let mtu = self.resolved(intent, network).mtu.bytes();
                (network.name.clone(), mtu.into())
            });
            let way = self.route_to(peer).map(|(local, device, _)| {
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

    fn endpoint(&self, network: Option<NetworkId>, address: IpAddr) -> Option<VtepId> {
        self.endpoints.get(&VtepKey { network, address: address.into() }).copied()
    }

    fn stations_behind(&self, vtep: Option<VtepId>) -> u32 {
        let Some(vtep) = vtep else { return 0 };
        let count = self.crew.tables().fdb.list().iter().filter(|s| s.vtep == Some(vtep)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn peer_view(&self, peer: OverlayPeer, owner: Option<Owner>, origin: PeerOrigin) -> PeerView {
        let network = peer.network.as_ref().and_then(|name| self.networks.get(name)).copied();
        let vtep = self.endpoint(network, peer.address);
        let ready = self.way_to(peer.address).and_then(|way| match (peer.mode, vtep) {
            (PeerMode::Vxlan, None) => Err("the table of endpoints is full: raise [limits] vteps".to_owned()),
            _ => Ok(way),
        });
        let (state, reason, way) = state(ready);
        let (local, device) = way.unzip();
        let stations = self.stations_behind(vtep);
        PeerView { name: peer.name(), config: peer, owner, origin, state, reason, local, device, stations }
    }

    /// Returns the endpoints that follow from something else, or were learned.
    fn other_peers(&self) -> Vec<PeerView> {
        let intent = &self.saved.intent;
        let listed = intent.settings.overlay.peers.iter();
        let listed =
            listed.map(|a| self.peer_view(OverlayPeer::new(*a), Some(Owner::File), PeerOrigin::Overlay));
        let mut views: Vec<PeerView> = listed.collect();
        let named = |key: &VtepKey| OverlayPeer {
            network: key.network.and_then(|id| self.network_name(id)).map(str::to_owned),
            ..OverlayPeer::new(key.address.ip())
        };
        for key in self.endpoints.keys() {
            let peer = named(key);
            let is_known =
                intent.peers.contains_key(&peer.name()) || views.iter().any(|v| v.name == peer.name());
            if !is_known {
                let mut remotes = intent.remotes.values();
                let owner =
                    remotes.find(|remote| remote.object.vtep == peer.address).map(|remote| remote.owner);
                views.push(self.peer_view(peer, owner, PeerOrigin::Remote));
            }
        }
        let mut learned = Vec::new();
        self.crew
            .tables()
            .vteps
            .for_each(|vtep| learned.extend((vtep.kind == VtepKind::Learned).then_some(*vtep)));
        for vtep in learned {
            let peer = named(&vtep.key);
            let (state, reason, way) = state(self.way_to(peer.address));
            let (local, device) = way.unzip();
            let stations = self.stations_behind(Some(vtep.id));
            let (name, origin) = (peer.name(), PeerOrigin::Learned);
            let owner = None;
            views.push(PeerView {
                name,
                config: peer,
                owner,
                origin,
                state,
                reason,
                local,
                device,
                stations,
            });
        }
        views
    }
}

impl Shown for OverlayPeer {
    type View = PeerView;

    fn view(manager: &Manager, owned: &Owned<Self>) -> PeerView {
        manager.peer_view(owned.object.clone(), Some(owned.owner), PeerOrigin::Peer)
    }

    fn others(manager: &Manager) -> Vec<PeerView> {
        manager.other_peers()
    }
}

impl Shown for Remote {
    type View = RemoteView;

    fn view(manager: &Manager, owned: &Owned<Self>) -> RemoteView {
        let remote = &owned.object;
        let (state, reason, _): (ObjectState, _, _) = state(manager.way_to(remote.vtep));
        RemoteView { name: remote.name(), config: remote.clone(), owner: owned.owner, state, reason }
    }
}
