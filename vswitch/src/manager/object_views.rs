//! What users are shown of routes, floating IPs, published ports, egress addresses and policies.
//!
//! An object that names a port which is not there, or has no device, is pending: it is kept, shown with what it
//! waits for, and has effect when the port comes.

use std::net::IpAddr;

use config::api::{EgressView, FloatingIpView, ObjectState, PolicyView, PublishView, RouteView};
use config::{Egress, FloatingIp, Object, Peer, Policy, Port, Publish, Route, UplinkDevice};
use serde::Serialize;

use super::Manager;
use crate::intent::{Kind, Owned};
use crate::refusal::Refusal;

/// A kind of object that is shown with what the switch knows about it.
pub trait Shown: Kind + Send + Sync + 'static {
    /// The object with what is known.
    type View: Serialize + Send;

    /// Returns the view of an object of the intent.
    fn view(manager: &Manager, owned: &Owned<Self>) -> Self::View;

    /// Returns the views of all, and of what is like them and none of the intent.
    fn views(manager: &Manager) -> Vec<Self::View> {
        Self::of(manager.intent()).values().map(|owned| Self::view(manager, owned)).collect()
    }
}

impl Manager {
    /// Returns the view of an object.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn object_view<T: Shown>(&self, name: &str) -> Result<T::View, Refusal> {
        let owned = T::of(&self.saved.intent).get(name).ok_or_else(|| Refusal::unknown(T::NOUN, name))?;
        Ok(T::view(self, owned))
    }

    /// Returns the views of all objects of a kind.
    pub fn object_views<T: Shown>(&self) -> Vec<T::View> {
        T::views(self)
    }

    /// Returns a port that has a device.
    ///
    /// # Errors
    /// What is missing.
    fn ready(&self, name: &str) -> Result<&Port, String> {
        let Some(port) = self.saved.intent.ports.get(name) else {
            return Err(format!("there is no port '{name}' yet"));
        };
        if let Some(waiting) = self.waiting.get(name) {
            return Err(format!("port '{name}' has no device: {}", waiting.reason));
        }
        Ok(&port.object)
    }

    /// Says what is missing for a way outside, when that is so.
    pub(super) fn island(&self) -> Result<(), String> {
        match self.saved.intent.settings.uplink.device {
            UplinkDevice::None => Err("[uplink] device is \"none\": there is no outside".to_owned()),
            UplinkDevice::Auto | UplinkDevice::Names(_) => Ok(()),
        }
    }

    /// Returns the names of the ports that a side of a policy means.
    fn members(&self, peer: &Peer) -> Vec<String> {
        let ports = self.saved.intent.ports.values().map(|owned| &owned.object);
        ports.filter(|port| means(peer, port)).map(|port| port.name.clone()).collect()
    }
}

/// Says whether a side of a policy means what is behind a port, by the port and not by an address.
fn means(peer: &Peer, port: &Port) -> bool {
    match peer {
        Peer::Network(name) => port.network == *name,
        Peer::Port(name) => port.name == *name,
        Peer::Label(selector) => Peer::selects(selector, &port.labels),
        Peer::Any | Peer::Host | Peer::Outside | Peer::Cidr(_) => false,
    }
}

fn family(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

/// Splits what an object waits for into the fields of a view.
pub(super) fn state<T>(ready: Result<T, String>) -> (ObjectState, Option<String>, Option<T>) {
    match ready {
        Ok(value) => (ObjectState::Active, None, Some(value)),
        Err(reason) => (ObjectState::Pending, Some(reason), None),
    }
}

impl Shown for Route {
    type View = RouteView;

    fn view(manager: &Manager, owned: &Owned<Self>) -> RouteView {
        let route = &owned.object;
        let network = manager.saved.intent.networks.get(&route.network).map(|n| &n.object);
        let outside = |hop: &IpAddr| network.is_none_or(|network| network.subnet_of(*hop).is_none());
        let ready = if route.via.iter().any(outside) { manager.island() } else { Ok(()) };
        let (state, reason, _) = state(ready);
        RouteView { name: route.name(), config: route.clone(), owner: owned.owner, state, reason }
    }
}

impl Shown for FloatingIp {
    type View = FloatingIpView;

    fn view(manager: &Manager, owned: &Owned<Self>) -> FloatingIpView {
        let floating = &owned.object;
        let ready = manager.island().and_then(|()| manager.ready(&floating.port)).and_then(|port| {
            let none = || match floating.to {
                Some(to) => format!("port '{}' has no address {to}", port.name),
                None => format!("port '{}' has no {} address", port.name, family(floating.address.is_ipv4())),
            };
            floating.inside(port).ok_or_else(none)
        });
        let taken = manager.outside.as_ref().and_then(|outside| outside.taken(floating.address));
        let ready = ready.and_then(|inside| taken.map_or(Ok(inside), Err));
        let (state, reason, inside) = state(ready);
        let (name, config) = (floating.name(), floating.clone());
        FloatingIpView { name, config, owner: owned.owner, state, reason, inside }
    }
}

impl Shown for Publish {
    type View = PublishView;

    fn view(manager: &Manager, owned: &Owned<Self>) -> PublishView {
        let publish = &owned.object;
        let bound = manager.bound_l4_port(publish);
        let ready = manager.ready(&publish.to.port).and_then(|port| {
            let families = [true, false].into_iter();
            let wanted = families.filter(|v4| publish.listen.address.is_none_or(|a| a.is_ipv4() == *v4));
            let inside: Vec<IpAddr> = wanted.filter_map(|v4| publish.inside(port, v4)).collect();
            if inside.is_empty() {
                return Err(format!("port '{}' has no address that it could lead to", port.name));
            }
            bound.map(|_| inside).ok_or_else(|| "no free L4 port was chosen yet".to_owned())
        });
        let (state, reason, inside) = state(ready);
        let (name, config, inside) = (publish.name(), publish.clone(), inside.unwrap_or_default());
        PublishView { name, config, owner: owned.owner, state, reason, bound, inside }
    }
}

impl Shown for Egress {
    type View = EgressView;

    fn view(manager: &Manager, owned: &Owned<Self>) -> EgressView {
        let egress = &owned.object;
        let ready = manager.island().and_then(|()| manager.ready(&egress.port)).map(drop);
        let (state, reason, _) = state(ready);
        EgressView { name: egress.name(), config: egress.clone(), owner: owned.owner, state, reason }
    }
}

impl Shown for Policy {
    type View = PolicyView;

    fn view(manager: &Manager, owned: &Owned<Self>) -> PolicyView {
        let policy = &owned.object;
        let missing = [&policy.from, &policy.to].into_iter().find_map(|peer| match peer {
            // A port without a device sends nothing: the policy waits for nothing else than the name.
            Peer::Port(name) if !manager.saved.intent.ports.contains_key(name) => {
                Some(format!("there is no port '{name}' yet"))
            }
            _ => None,
        });
        let (state, reason, _) = state(missing.map_or(Ok(()), Err));
        PolicyView {
            name: policy.name(),
            config: policy.clone(),
            owner: owned.owner,
            state,
            reason,
            from_ports: manager.members(&policy.from),
            to_ports: manager.members(&policy.to),
            hits: manager.policy_hits(&policy.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_means_ports_by_network_name_and_labels() {
        let labels = [("tier", "web"), ("env", "prod")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let port = Port { labels, ..Port::new("web", "front") };
        for (peer, meant) in [
            ("front", true),
            ("back", false),
            ("port:web", true),
            ("port:front", false),
            ("tier=web", true),
            ("tier=web,env=prod", true),
            ("tier=web,env=test", false),
            ("any", false),
            ("10.0.0.0/8", false),
        ] {
            assert_eq!(means(&peer.parse().expect(peer), &port), meant, "{peer}");
        }
    }
}
