//! What follows from a decision to route, or to bridge a tracked packet: its connection is made or moved on, the frame
//! rewritten and sent, and the decision kept for the packets that follow.

use packet::header::protocol;
use packet::{Address, Frame, PortId, Tuple};

use crate::answer::Problem;
use crate::flow_cache::routed::{Plan, Rewrite4, Rewrite6, flag};
use crate::flow_cache::{StationRef, Transform};
use crate::headers::{Headers, Segment};
use crate::parse::AnyKey;
use crate::requests;
use crate::rewrite::{self, Deltas};
use crate::slow::Death;
use crate::snapshot::{DomainKind, Route};
use crate::stages::forward::reply_key;
use crate::tables::connections::{
    ConnectionId, Details, Direction, Invalid, Key, NewConnection, Refused, Seen, State,
};
use crate::tables::{Adjacency, Ask, NeighborKey, Target};
use crate::walk::{Answer, Decision, Lookup, View, Walk};
use crate::{DropReason, Event, Flow, Pipeline, Turn, fragmenter, mss};
use packet::header::tcp_flags::{ACK, FIN, RST, SYN};

/// The connection that a packet belongs to.
pub(crate) struct Joined {
    id: ConnectionId,
    direction: Direction,
    state: State,
}

/// Says whether packets without special flags change nothing any more about a connection in this state.
fn is_settled(state: State) -> bool {
    matches!(state, State::Unreplied | State::Replied | State::Established | State::HalfClosed)
}

/// Why a packet could not join.
pub(crate) enum Refusal {
    /// Somebody was faster: walk again.
    Retry,
    /// The port that was chosen is in use with just this destination: walk again and choose another.
    Collision,
    Drop(DropReason),
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Refusal::Drop(reason)
    }
}

impl Pipeline {
    /// Makes the connection of a packet that goes somewhere, or moves it on.
    pub(crate) fn join(
        &self,
        walk: &Walk,
        frame: &Frame,
        from: PortId,
        turn: &Turn<'_>,
    ) -> Result<Option<Joined>, Refusal> {
        let to = match walk.decision {
            Decision::Route { target, .. } => target.port,
            Decision::Forward { transform, .. } => transform.to,
            _ => return Ok(None),
        };
        let Some(headers) = walk.headers else { return Ok(None) };
        let connections = &self.tables.connections;
        let bytes = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let seen = Seen { bytes, tcp: Segment::of(frame.bytes(), &headers) };
        match walk.connection {
            Lookup::Untracked | Lookup::Related { .. } => Ok(None),
            Lookup::Known { found, holds } => {
                if !holds {
                    let (peer_port, checked) = match found.direction {
                        Direction::Original => (to, self.snapshot.generation_between(from, to)),
                        Direction::Reply => (from, self.snapshot.generation_between(found.owner, from)),
                    };
                    let rule = walk.rule.unwrap_or(u32::MAX);
                    let translation = walk.destination.translation.unwrap_or(u32::MAX);
                    let details = Details { rule, translation, checked, peer_port, ..found.details };
                    connections.revalidated(found.id, details);
                }
                match connections.track(found.id, found.direction, seen, turn.now) {
                    Ok(state) => Ok(Some(Joined { id: found.id, direction: found.direction, state })),
                    Err(Invalid::Ended | Invalid::Gone) => Err(Refusal::Retry),
                    Err(_) => Err(DropReason::InvalidState.into()),
                }
            }
            Lookup::New => self.begin(walk, &headers, seen, from, to, turn).map(Some),
        }
    }

    fn begin(
        &self,
        walk: &Walk,
        headers: &Headers,
        seen: Seen,
        from: PortId,
        to: PortId,
        turn: &Turn<'_>,
    ) -> Result<Joined, Refusal> {
        let port = self.snapshot.port(from).ok_or(DropReason::PortDown)?;
        let tuple = walk.subject.tuple;
        let mut lease = None;
        if let Some((pool, candidate)) = walk.leaves_as.wanted {
            let inside = crate::tables::nat_ports::Inside {
                network: walk.subject.network,
                address: tuple.source,
                port: tuple.source_port,
            };
            let taken = self.tables.nat_ports.take(pool, &inside, headers.protocol, candidate);
            lease = Some(taken.ok_or(Refusal::Retry)?);
        }
        // PERF: nothing can be said against a first packet like these, so that it is counted where the connection is made.
        let is_plain = seen.tcp.is_none_or(|segment| segment.flags & (SYN | ACK | RST | FIN) == SYN);
        let new = NewConnection {
            original: Key { network: walk.subject.network, tuple },
            reply: reply_key(walk),
            owner: from,
            tcp: seen.tcp,
            quota: port.connections,
            half_open_quota: port.half_open,
            details: Details {
                rule: walk.rule.unwrap_or(u32::MAX),
                translation: walk.destination.translation.unwrap_or(u32::MAX),
                checked: self.snapshot.generation_between(from, to),
                nat_port: lease,
                peer_port: to,
                flags: 0,
            },
            counted: if is_plain { seen.bytes } else { 0 },
        };
        match self.tables.connections.create(&new, turn.now) {
            Ok(id) => {
                let direction = Direction::Original;
                let state = match (is_plain, seen.tcp) {
                    (true, Some(_)) => Ok(State::SynSent),
                    (true, None) => Ok(State::Unreplied),
                    (false, _) => self.tables.connections.track(id, direction, seen, turn.now),
                };
                Ok(Joined { id, direction, state: state.map_err(|_| DropReason::InvalidState)? })
            }
            Err(refused) => {
                if let Some(lease) = lease {
                    self.tables.nat_ports.give_back(lease);
                }
                Err(match refused {
                    Refused::Exists => Refusal::Retry,
                    Refused::ReplyTaken if lease.is_some() => Refusal::Collision,
                    Refused::ReplyTaken => DropReason::SnatExhausted.into(),
                    Refused::Full => DropReason::TableFull.into(),
                    Refused::Quota => DropReason::Quota.into(),
                    Refused::HalfOpen => DropReason::HalfOpen.into(),
                })
            }
        }
    }

    /// Rewrites a routed frame and sends it to its neighbour.
    pub(crate) fn route(
        &mut self,
        mut frame: Frame,
        flow: &Flow,
        walk: &Walk,
        connection: Option<Joined>,
        from: PortId,
        turn: &mut Turn<'_>,
    ) {
        let (Decision::Route { adjacency, target, cut_to, .. }, Some(headers)) =
            (walk.decision, walk.headers)
        else {
            return self.drop_frame(frame, from, DropReason::NoRoute.into(), turn);
        };
        self.tables.neighbors.mark_used(adjacency.slot);
        match walk.connection {
            Lookup::Related { found, embedded } => {
                let sender = found.key(found.direction).tuple;
                // An error from the translated end itself comes from the address that the sender knows it by.
                let source = if headers.tuple.source == embedded.tuple.destination {
                    sender.destination
                } else {
                    headers.tuple.source
                };
                rewrite::translate_error(&mut frame, &headers, &embedded, (source, sender.source), &sender);
                if let Ok(Some(now)) = Headers::of(frame.bytes()) {
                    rewrite::apply(&mut frame, &now, &now.tuple, true);
                }
            }
            _ => {
                // PERF: what changes is found out once, for this packet and for those that follow.
                let (becomes, deltas) = rewrite::prepare(&headers, &walk.becomes, true);
                if let Some(joined) = &connection
                    && is_settled(joined.state)
                    && !headers.is_fragment()
                {
                    let key = flow.key_of(&frame, from, self.vtep_of(&frame, from));
                    let next = (adjacency, target);
                    self.keep_routed(key, (&headers.tuple, &becomes), deltas, joined, next, from, turn);
                }
                rewrite::apply_compiled(&mut frame, &headers, &becomes, deltas, true);
            }
        }
        let source = self.snapshot.router_mac(target.port).unwrap_or_default();
        if let Some(macs) = frame.bytes_mut().first_chunk_mut::<12>() {
            macs[..6].copy_from_slice(&target.mac.0);
            macs[6..].copy_from_slice(&source.0);
        }
        if headers.protocol == protocol::TCP && headers.tcp_flags & SYN != 0 {
            let mtu = |port| self.snapshot.port(port).map_or(u32::MAX, |port| port.mtu);
            mss::clamp_mss(&mut frame, &headers, mtu(from).min(mtu(target.port)) as usize);
        }
        let transform = Transform { to: target.port, vtep: target.vtep, ..Transform::default() };
        match cut_to {
            None => self.send(frame, transform, from, turn),
            Some(mtu) => self.cut(frame, &headers, mtu, transform, from, turn),
        }
    }

    /// Sends a packet in fragments.
    fn cut(
        &mut self,
        frame: Frame,
        headers: &Headers,
        mtu: u32,
        transform: Transform,
        from: PortId,
        turn: &mut Turn<'_>,
    ) {
        let mut pieces = std::mem::take(&mut self.pieces);
        let cut =
            fragmenter::fragment(frame, headers, mtu as usize, turn.pool, &mut |piece| pieces.push(piece));
        let count = pieces.len();
        for piece in pieces.drain(..) {
            self.send(piece, transform, from, turn);
        }
        self.pieces = pieces;
        // The frame itself is one of its pieces, or ended.
        self.counters().ledger.created.add(count as u64);
        match cut {
            Ok(()) => self.counters().ledger.consumed.add(1),
            Err(frame) => self.drop_frame(frame, from, DropReason::NoMemory.into(), turn),
        }
    }

    /// Keeps a frame until its neighbour is known, and has the neighbour asked for.
    pub(crate) fn hold(&mut self, frame: Frame, neighbor: NeighborKey, from: PortId, turn: &mut Turn<'_>) {
        let ask = self.tables.neighbors.resolve(neighbor, turn.now);
        if let Ok((_, Ask::Now)) = ask {
            self.ask_for(neighbor, None, turn);
        }
        let kept = match ask {
            Ok((_, Ask::Now | Ask::Wait | Ask::Known)) => {
                self.held.push(neighbor, frame, from, None, turn.now)
            }
            _ => Err(frame),
        };
        match kept {
            Ok(()) => self.counters().ledger.held.set(self.held_frames()),
            Err(frame) => self.unresolved(frame, from, turn),
        }
    }

    /// Drops a frame whose next hop did not answer, and tells its sender.
    pub(crate) fn unresolved(&mut self, frame: Frame, from: PortId, turn: &mut Turn<'_>) {
        let headers = Headers::of(frame.bytes()).ok().flatten();
        let Some(view) = View::of(&self.snapshot, &self.tables, from, turn.now) else {
            return self.drop_frame(frame, from, DropReason::PortDown.into(), turn);
        };
        let from_address = view.own_address(headers.as_ref());
        let answer =
            Answer::Problem { problem: Problem::HostUnreachable, from: from_address, mac: view.router_mac() };
        self.refuse(frame, DropReason::Unresolved, None, answer, from, turn);
    }

    /// Finds out who has an address, for a router of another host that asked: among the stations of this one.
    /// It asks again, and is answered then.
    pub(crate) fn seek(&mut self, neighbor: NeighborKey, turn: &mut Turn<'_>) {
        if let Ok((_, Ask::Now)) = self.tables.neighbors.resolve(neighbor, turn.now) {
            self.ask(neighbor, None, false, turn);
        }
    }

    /// Asks who has an address: everybody in its network, or, to see whether it is still there, the one who had it.
    pub(crate) fn ask_for(&mut self, neighbor: NeighborKey, last: Option<Target>, turn: &mut Turn<'_>) {
        self.ask(neighbor, last, true, turn);
    }

    fn ask(&mut self, neighbor: NeighborKey, last: Option<Target>, elsewhere: bool, turn: &mut Turn<'_>) {
        let NeighborKey { network, port, address } = neighbor;
        if self.snapshot.kind(network) == DomainKind::Uplink
            && let Some(port) = port
            && self.snapshot.port(port).is_some_and(|port| port.host_resolves)
        {
            return self.tell(Event::Resolve { port, address });
        }
        let way = self.snapshot.domain(network).and_then(|domain| domain.lookup(address));
        let near = match way {
            Some((_, Route::Hops(hops))) => hops.first().map(|hop| hop.source),
            _ => None,
        };
        let own = near
            .filter(|near| *near != Address::UNSPECIFIED)
            .or_else(|| self.snapshot.own_address(network, !address.is_v4()))
            .unwrap_or(Address::UNSPECIFIED);
        for n in 0..self.snapshot.members(network).len() {
            let to = self.snapshot.members(network)[n];
            let asked = match (last, port) {
                (Some(target), _) => target.port == to,
                (None, Some(port)) => port == to,
                (None, None) => elsewhere || !self.snapshot.is_tunnel(to),
            };
            let Some(mac) = self.snapshot.router_mac(to).filter(|_| asked) else { continue };
            let to_mac = last.map(|target| target.mac);
            let Some(frame) = requests::solicit(turn.pool, (mac, own), address, to_mac) else { return };
            self.counters().ledger.created.add(1);
            let vtep = last.and_then(|target| target.vtep);
            self.send(frame, Transform { to, vtep, ..Transform::default() }, to, turn);
        }
    }

    /// Keeps the decision about a bridged, tracked flow.
    pub(crate) fn keep_tracked(
        &mut self,
        key: AnyKey,
        joined: &Joined,
        station: StationRef,
        transform: Transform,
        from: PortId,
        turn: &Turn<'_>,
    ) {
        if !is_settled(joined.state) || transform.tag != crate::TagAction::Keep {
            return;
        }
        let [a, b, c, d] = station.version.to_le_bytes();
        let plan = Plan {
            connection: joined.id.slot,
            direction: joined.direction,
            next: station.slot,
            to: transform.to,
            flags: flag::BRIDGED,
            generation: self.snapshot.generation_between(from, transform.to),
            addresses_change: u16::from_le_bytes([a, b]),
            transport_change: u16::from_le_bytes([c, d]),
        };
        let connections = &self.tables.connections;
        match key {
            AnyKey::None => {}
            AnyKey::V4(key) => self.routed4.insert(&key, plan, Rewrite4::default(), connections, turn.now),
            AnyKey::V6(key) => self.routed6.insert(&key, plan, Rewrite6::default(), connections, turn.now),
        }
    }

    /// Keeps the decision about a routed flow. A key is there only when it will be the same for its next packets.
    #[expect(clippy::too_many_arguments, reason = "all that an entry is made of")]
    fn keep_routed(
        &mut self,
        key: AnyKey,
        (old, new): (&Tuple, &Tuple),
        deltas: Deltas,
        joined: &Joined,
        (adjacency, target): (Adjacency, Target),
        from: PortId,
        turn: &Turn<'_>,
    ) {
        // An ICMP query's two ports are its one identifier: it changes with the address that does.
        let is_icmp = matches!(old.protocol, protocol::ICMP | protocol::ICMPV6);
        let destination =
            old.destination != new.destination || !is_icmp && old.destination_port != new.destination_port;
        let source =
            old.source != new.source || old.source_port != new.source_port && !(is_icmp && destination);
        let mut flags = if source { flag::SOURCE } else { 0 };
        flags |= if destination { flag::DESTINATION } else { 0 };
        let plan = Plan {
            connection: joined.id.slot,
            direction: joined.direction,
            next: adjacency.slot,
            to: target.port,
            flags,
            generation: self.snapshot.generation_between(from, target.port),
            addresses_change: if old.source.is_v4() { deltas.ip } else { deltas.pseudo }.to_be(),
            transport_change: deltas.l4.to_be(),
        };
        let connections = &self.tables.connections;
        match key {
            AnyKey::None => {}
            AnyKey::V4(key) => {
                // An entry has room for one side. A container that reaches itself, or a relayed connection, walks.
                if source && destination {
                    return;
                }
                let (address, port) = if destination {
                    (new.destination, new.destination_port)
                } else {
                    (new.source, new.source_port)
                };
                let rewrite = Rewrite4 { address: address.octets_v4(), port: port.to_be_bytes() };
                self.routed4.insert(&key, plan, rewrite, connections, turn.now);
            }
            AnyKey::V6(key) => {
                let rewrite = Rewrite6 {
                    source: new.source.octets(),
                    destination: new.destination.octets(),
                    source_port: new.source_port.to_be_bytes(),
                    destination_port: new.destination_port.to_be_bytes(),
                };
                self.routed6.insert(&key, plan, rewrite, connections, turn.now);
            }
        }
    }
}

impl From<Refusal> for Death {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Retry | Refusal::Collision => DropReason::SnatExhausted.into(),
            Refusal::Drop(reason) => reason.into(),
        }
    }
}
