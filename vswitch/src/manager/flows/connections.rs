//! Connections and neighbours, as the workers' tables have them.

use std::cmp::Reverse;

use config::api::{
    ConnectionQuery, ConnectionState, ConnectionView, Flushed, HostView, NeighborQuery, NeighborSource,
    NeighborState, NeighborView, Traffic, TupleView, UplinkDeviceView, UplinkView,
};
use config::expression::Facts;
use pipeline::Snapshot;
use pipeline::tables::connections::{End, Key, State, View};
use pipeline::tables::{Neighbor, NeighborState as Standing};

use crate::manager::Manager;
use crate::manager::change::Who;
use crate::refusal::Refusal;

impl Manager {
    /// Returns the connections that match, those with the most bytes first.
    pub fn connections(&self, query: &ConnectionQuery) -> Vec<ConnectionView> {
        let snapshot = self.crew.snapshot();
        let mut views = Vec::new();
        self.crew.tables().connections.for_each(
            packet::Instant::now(),
            |view| self.picks(query, view, &snapshot),
            |view| views.push(self.connection(view, &snapshot)),
        );
        views.sort_by_key(|view| Reverse(view.sent.bytes + view.received.bytes));
        views.truncate(query.limit.map_or(usize::MAX, |limit| limit as usize));
        views
    }

    /// Ends the connections that match.
    ///
    /// # Errors
    /// A limit makes no sense here.
    pub fn flush_connections(&self, query: &ConnectionQuery, who: Who) -> Result<Flushed, Refusal> {
        if query.limit.is_some() {
            return Err(Refusal::input("all connections that match are ended: there is no limit"));
        }
        let snapshot = self.crew.snapshot();
        let ended = self.crew.tables().connections.kill_where(
            packet::Instant::now(),
            |view| self.picks(query, view, &snapshot),
            End::Flushed,
        );
        let entries = u32::try_from(ended).unwrap_or(u32::MAX);
        self.journal.note("connections_flushed", "", format!("{entries} connections were ended by {who}"));
        Ok(Flushed { entries })
    }

    fn picks(&self, query: &ConnectionQuery, view: &View, snapshot: &Snapshot) -> bool {
        if query.expression.conditions.is_empty() {
            return true;
        }
        let networks = [view.original.network, view.reply.network].map(|id| self.called_network(id));
        let ports = [view.owner, view.details.peer_port].map(|id| self.called_port(id).unwrap_or_default());
        let facts = Facts {
            tuples: &[view.original.tuple, view.reply.tuple.inverted()],
            networks: &networks.each_ref().map(String::as_str),
            ports: &ports.each_ref().map(String::as_str),
            state: Some(state(view.state)),
            rule: rule(view, snapshot),
        };
        query.expression.matches(&facts)
    }

    fn connection(&self, view: &View, snapshot: &Snapshot) -> ConnectionView {
        let translation = snapshot.router().translations.get(view.details.translation);
        let traffic = |n: usize| Traffic { packets: view.packets[n], bytes: view.bytes[n] };
        ConnectionView {
            protocol: view.original.tuple.protocol,
            state: state(view.state),
            original: self.tuple(&view.original),
            reply: self.tuple(&view.reply),
            from: self.called_port(view.owner),
            to: self.called_port(view.details.peer_port),
            translation: translation.map(|translation| translation.name.to_string()),
            rule: rule(view, snapshot).map(str::to_owned),
            sent: traffic(0),
            received: traffic(1),
            age_seconds: view.age.as_secs(),
            expires_seconds: view.left.as_secs(),
        }
    }

    fn tuple(&self, key: &Key) -> TupleView {
        TupleView {
            network: self.called_network(key.network),
            source: key.tuple.source.ip(),
            source_port: key.tuple.source_port,
            destination: key.tuple.destination.ip(),
            destination_port: key.tuple.destination_port,
        }
    }

    /// Returns the neighbours that were learned or are asked for, and those outside.
    pub(in crate::manager) fn learned_neighbors(&self) -> Vec<NeighborView> {
        let now = packet::Instant::now();
        let peers = self.peer_addresses();
        let mut views = Vec::new();
        self.crew.tables().neighbors.for_each(|neighbor| {
            let Some(state) = standing(neighbor, self.limits.networks) else { return };
            let vtep = neighbor.target.and_then(|target| target.vtep);
            views.push(NeighborView {
                network: self.called_network(neighbor.key.network),
                address: neighbor.key.address.ip(),
                mac: neighbor.target.map(|target| target.mac),
                port: neighbor
                    .key
                    .port
                    .or_else(|| neighbor.target.map(|target| target.port))
                    .and_then(|port| self.called_port(port)),
                source: if state == NeighborState::Fixed && vtep.is_some() {
                    NeighborSource::Remote
                } else {
                    NeighborSource::Learned
                },
                state,
                age_seconds: if state == NeighborState::Fixed {
                    0
                } else {
                    now.since(neighbor.seen).as_secs()
                },
                peer: vtep.and_then(|vtep| peers.get(&vtep).copied()),
            });
        });
        views
    }

    /// Forgets learned neighbours that match; they are asked for again when they are needed.
    ///
    /// # Errors
    /// There is no such network.
    pub fn flush_neighbors(&self, query: &NeighborQuery, who: Who) -> Result<Flushed, Refusal> {
        if let Some(name) = query.network.as_ref().filter(|name| !self.networks.contains_key(*name))
            && !matches!(name.as_str(), "outside" | "host")
        {
            return Err(Refusal::unknown("network", name));
        }
        let forgotten = self.crew.tables().neighbors.remove_all(packet::Instant::now(), |neighbor| {
            neighbor.state != Standing::Fixed
                && query.address.is_none_or(|address| neighbor.key.address.ip() == address)
                && query
                    .network
                    .as_ref()
                    .is_none_or(|name| self.called_network(neighbor.key.network) == *name)
        });
        let entries = u32::try_from(forgotten).unwrap_or(u32::MAX);
        self.journal.note("neighbors_flushed", "", format!("{entries} neighbours were forgotten by {who}"));
        Ok(Flushed { entries })
    }

    /// Returns how the host, the outside and the networks reach one another.
    pub fn host_view(&self) -> HostView {
        let surroundings = &self.surroundings;
        let networks = self.saved.intent.networks.values().map(|owned| &owned.object);
        let config = self.saved.intent.settings.uplink.clone();
        let devices = surroundings.uplinks.iter().map(|uplink| {
            let hops = surroundings.routes.iter().flat_map(|route| &route.hops);
            let hops: Vec<_> = hops.filter(|hop| hop.port == uplink.id).collect();
            let distinct = |mut list: Vec<std::net::IpAddr>| {
                list.sort_unstable();
                list.dedup();
                list
            };
            UplinkDeviceView {
                name: uplink.name.clone(),
                up: uplink.up,
                mode: uplink.mode.clone(),
                notes: uplink.notes.clone(),
                mac: Some(uplink.mac),
                mtu: u16::try_from(uplink.mtu).unwrap_or(u16::MAX),
                addresses: distinct(hops.iter().filter_map(|hop| hop.source).collect()),
                gateways: distinct(hops.iter().filter_map(|hop| hop.via).collect()),
            }
        });
        HostView {
            device: surroundings.host.as_ref().map_or_else(String::new, |_| "vsw-host".to_owned()),
            up: surroundings.host.is_some(),
            notes: Vec::new(),
            addresses: surroundings.addresses.clone(),
            networks: networks.filter(|n| n.joins_host()).map(|n| n.name.clone()).collect(),
            uplink: UplinkView { devices: devices.collect(), config },
        }
    }
}

fn rule<'s>(view: &View, snapshot: &'s Snapshot) -> Option<&'s str> {
    let rules = snapshot.router().policy.rules();
    rules.get(usize::try_from(view.details.rule).ok()?).map(|rule| &*rule.name)
}

fn state(state: State) -> ConnectionState {
    match state {
        State::Unreplied => ConnectionState::Unreplied,
        State::Replied => ConnectionState::Replied,
        State::SynSent => ConnectionState::SynSent,
        State::SynReceived => ConnectionState::SynReceived,
        State::PickedUp => ConnectionState::PickedUp,
        State::Established => ConnectionState::Established,
        State::HalfClosed => ConnectionState::HalfClosed,
        State::Closed => ConnectionState::Closed,
        State::Doubted => ConnectionState::Doubted,
        State::Reset => ConnectionState::Reset,
    }
}

/// Returns how a neighbour stands, when it is not one that is listed from the configuration.
fn standing(neighbor: &Neighbor, configurable: u16) -> Option<NeighborState> {
    match neighbor.state {
        Standing::Fixed => {
            let is_remote = neighbor.target.is_some_and(|target| target.vtep.is_some());
            (is_remote || neighbor.key.network.0 >= configurable).then_some(NeighborState::Fixed)
        }
        Standing::Reachable => Some(NeighborState::Reachable),
        Standing::Probed => Some(NeighborState::Probed),
        Standing::Incomplete => Some(NeighborState::Incomplete),
        Standing::Failed => Some(NeighborState::Failed),
    }
}
