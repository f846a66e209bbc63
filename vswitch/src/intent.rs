//! What users want: every configured object with its owner.
//!
//! The intent is data: a change makes a new one, which is checked as a whole before anything happens, and
//! either replaces the old one or is dropped. Objects are known by their names across all owners, so a file
//! cannot redefine what a command made.

use std::collections::BTreeMap;

use config::{
    Document, Egress, FdbEntry, FloatingIp, Network, Object, OverlayPeer, Owner, Peer, Policy, Port, Publish,
    Remote, Route,
};
use packet::MacAddr;
use serde::{Deserialize, Serialize};

/// An object with its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned<T> {
    /// Who made it, and so who may take it away.
    pub owner: Owner,
    /// The object.
    pub object: T,
}

/// What a static station is known by: network, VLAN, address.
pub type FdbKey = (String, Option<u16>, MacAddr);

/// The objects of a kind by name.
pub type Objects<T> = BTreeMap<String, Owned<T>>;

/// All objects. See the module header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    /// The networks by name.
    pub networks: Objects<Network>,
    /// The ports by name.
    pub ports: Objects<Port>,
    /// The static stations.
    pub fdb: BTreeMap<FdbKey, Owned<FdbEntry>>,
    /// Other hosts of the overlay.
    pub peers: Objects<OverlayPeer>,
    /// Stations behind other hosts, by network and address.
    pub remotes: Objects<Remote>,
    /// The routes by network and destination.
    pub routes: Objects<Route>,
    /// The floating IPs by address.
    pub floating_ips: Objects<FloatingIp>,
    /// The published ports by name.
    pub publishes: Objects<Publish>,
    /// The egress addresses by port.
    pub egresses: Objects<Egress>,
    /// The policies by name.
    pub policies: Objects<Policy>,
    /// The sections that there are once, and what is asserted, from the file.
    pub settings: Document,
}

/// A kind of object that an intent holds by name.
pub trait Kind: Object {
    /// What people call it.
    const NOUN: &'static str;

    /// Returns those of the intent.
    fn of(intent: &Intent) -> &Objects<Self>;

    /// Returns those of the intent, to be changed.
    fn of_mut(intent: &mut Intent) -> &mut Objects<Self>;
}

macro_rules! kinds {
    ($($kind:ty, $noun:literal, $field:ident;)+) => {$(
        impl Kind for $kind {
            const NOUN: &'static str = $noun;

            fn of(intent: &Intent) -> &Objects<Self> {
                &intent.$field
            }

            fn of_mut(intent: &mut Intent) -> &mut Objects<Self> {
                &mut intent.$field
            }
        }
    )+};
}

kinds! {
    Network, "network", networks;
    Port, "port", ports;
    OverlayPeer, "peer", peers;
    Remote, "remote", remotes;
    Route, "route", routes;
    FloatingIp, "floating IP", floating_ips;
    Publish, "published port", publishes;
    Egress, "egress address", egresses;
    Policy, "policy", policies;
}

/// The change would take over an object of another owner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} '{name}' exists already and belongs to {owner}")]
pub struct Taken {
    /// Kind of object.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
}

/// Returns what a static station is known by.
pub fn fdb_key(entry: &FdbEntry) -> FdbKey {
    (entry.network.clone(), entry.vlan, entry.mac)
}

impl Intent {
    /// Returns all objects of all owners as one tree, with the settings.
    pub fn document(&self) -> Document {
        self.select(|_| true)
    }

    /// Returns the objects of one owner as a tree, with the settings.
    pub fn owned_by(&self, owner: Owner) -> Document {
        self.select(|other| other == owner)
    }

    fn select(&self, wanted: impl Fn(Owner) -> bool) -> Document {
        fn pick<K, T: Clone>(map: &BTreeMap<K, Owned<T>>, wanted: &impl Fn(Owner) -> bool) -> Vec<T> {
            map.values().filter(|o| wanted(o.owner)).map(|o| o.object.clone()).collect()
        }
        Document {
            networks: pick(&self.networks, &wanted),
            ports: pick(&self.ports, &wanted),
            fdb: pick(&self.fdb, &wanted),
            peers: pick(&self.peers, &wanted),
            remotes: pick(&self.remotes, &wanted),
            routes: pick(&self.routes, &wanted),
            floating_ips: pick(&self.floating_ips, &wanted),
            publishes: pick(&self.publishes, &wanted),
            egresses: pick(&self.egresses, &wanted),
            policies: pick(&self.policies, &wanted),
            ..self.settings.clone()
        }
    }

    /// Returns the intent with all objects of `owner` replaced by those of `document`. Settings are taken over
    /// from a file only.
    ///
    /// # Errors
    /// Names the first object that belongs to somebody else.
    pub fn replace(&self, owner: Owner, document: &Document) -> Result<Self, Taken> {
        let mut next = self.clone();
        next.fdb.retain(|_, o| o.owner != owner);
        next.swap(owner, &document.networks)?;
        next.swap(owner, &document.ports)?;
        next.swap(owner, &document.peers)?;
        next.swap(owner, &document.remotes)?;
        next.swap(owner, &document.routes)?;
        next.swap(owner, &document.floating_ips)?;
        next.swap(owner, &document.publishes)?;
        next.swap(owner, &document.egresses)?;
        next.swap(owner, &document.policies)?;
        for entry in &document.fdb {
            put(&mut next.fdb, "fdb entry", fdb_key(entry), owner, entry)?;
        }
        if owner == Owner::File {
            next.settings = document.settings();
        }
        Ok(next)
    }

    /// Returns the peers, remotes, routes, policies and assertions that name a network, as people call them.
    pub fn users_of_network(&self, name: &str) -> Vec<String> {
        let named = |peer: &Peer| *peer == Peer::Network(name.to_owned());
        let peers = self.peers.iter().filter(|(_, o)| o.object.network.as_deref() == Some(name));
        let remotes = self.remotes.iter().filter(|(_, o)| o.object.network == name);
        let routes = self.routes.iter().filter(|(_, o)| o.object.network == name);
        let policies = self.policies.iter().filter(|(_, o)| named(&o.object.from) || named(&o.object.to));
        let asserts = self.settings.asserts.iter().filter(|assert| named(&assert.to.peer));
        peers
            .map(|(peer, _)| format!("peer {peer}"))
            .chain(remotes.map(|(remote, _)| format!("remote {remote}")))
            .chain(routes.map(|(route, _)| format!("route {route}")))
            .chain(policies.map(|(policy, _)| format!("policy {policy}")))
            .chain(asserts.map(|assert| format!("assert {}", assert.name())))
            .collect()
    }

    /// Says whether there is an object of that name in the section.
    pub fn has(&self, section: &str, name: &str) -> bool {
        match section {
            Network::SECTION => self.networks.contains_key(name),
            Port::SECTION => self.ports.contains_key(name),
            OverlayPeer::SECTION => self.peers.contains_key(name),
            Remote::SECTION => self.remotes.contains_key(name),
            Route::SECTION => self.routes.contains_key(name),
            FloatingIp::SECTION => self.floating_ips.contains_key(name),
            Publish::SECTION => self.publishes.contains_key(name),
            Egress::SECTION => self.egresses.contains_key(name),
            Policy::SECTION => self.policies.contains_key(name),
            _ => false,
        }
    }

    /// Replaces the objects of one kind that belong to `owner`.
    fn swap<T: Kind>(&mut self, owner: Owner, objects: &[T]) -> Result<(), Taken> {
        let map = T::of_mut(self);
        map.retain(|_, o| o.owner != owner);
        objects.iter().try_for_each(|object| put(map, T::NOUN, object.name(), owner, object))
    }

    /// Takes out the objects that `wanted` does not want, told by their owner, section and name. Static stations
    /// are not asked for.
    pub fn retain(&mut self, wanted: impl Fn(Owner, &str, &str) -> bool) {
        fn sift<T: Kind>(intent: &mut Intent, wanted: &impl Fn(Owner, &str, &str) -> bool) {
            T::of_mut(intent).retain(|name, owned| wanted(owned.owner, T::SECTION, name));
        }
        sift::<Network>(self, &wanted);
        sift::<Port>(self, &wanted);
        sift::<OverlayPeer>(self, &wanted);
        sift::<Remote>(self, &wanted);
        sift::<Route>(self, &wanted);
        sift::<FloatingIp>(self, &wanted);
        sift::<Publish>(self, &wanted);
        sift::<Egress>(self, &wanted);
        sift::<Policy>(self, &wanted);
    }
}

/// Adds an object, or replaces the owner's own of that name.
///
/// # Errors
/// It belongs to somebody else.
fn put<K: Ord + Name, T: Clone>(
    map: &mut BTreeMap<K, Owned<T>>,
    kind: &'static str,
    key: K,
    owner: Owner,
    object: &T,
) -> Result<(), Taken> {
    if let Some(other) = map.get(&key)
        && other.owner != owner
    {
        return Err(Taken { kind, name: key.name(), owner: other.owner });
    }
    map.insert(key, Owned { owner, object: object.clone() });
    Ok(())
}

trait Name {
    fn name(&self) -> String;
}

impl Name for String {
    fn name(&self) -> String {
        self.clone()
    }
}

impl Name for FdbKey {
    fn name(&self) -> String {
        format!("{}/{}", self.0, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(networks: &[&str], ports: &[(&str, &str)]) -> Document {
        Document {
            networks: networks.iter().map(|name| Network::new(*name)).collect(),
            ports: ports.iter().map(|(name, network)| Port::new(*name, *network)).collect(),
            ..Document::default()
        }
    }

    #[test]
    fn an_apply_replaces_only_its_owners_objects() {
        let intent = Intent::default();
        let intent = intent.replace(Owner::File, &document(&["a", "b"], &[("p", "a")])).expect("free names");
        let intent = intent.replace(Owner::Cli, &document(&["c"], &[("q", "a")])).expect("free names");
        let intent = intent.replace(Owner::File, &document(&["a"], &[])).expect("own names");
        assert_eq!(intent.networks.keys().collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(intent.ports.keys().collect::<Vec<_>>(), ["q"]);
        assert_eq!(intent.owned_by(Owner::File), document(&["a"], &[]));
    }

    #[test]
    fn every_kind_of_object_goes_in_and_comes_out() {
        let text = r#"
            [uplink]
            device = "none"
            [[network]]
            name = "front"
            subnets = ["10.1.0.0/24"]
            vni = 101
            [[peer]]
            address = "192.0.2.2"
            [[remote]]
            network = "front"
            address = "10.1.0.77"
            mac = "02:00:0a:01:00:4d"
            vtep = "192.0.2.2"
            [[route]]
            network = "front"
            to = "default"
            via = "10.1.0.9"
            [[floating_ip]]
            address = "203.0.113.10"
            port = "web"
            [[publish]]
            listen = "80/tcp"
            to = "web:80"
            [[egress]]
            port = "web"
            address = "203.0.113.7"
            [[policy]]
            from = "front"
            to = "outside"
            allow = ["tcp/443"]
            [[assert]]
            from = "web"
            to = "outside:443/tcp"
            expect = "allow"
        "#;
        let document = Document::parse(text, "x.toml").expect("good");
        let intent = Intent::default().replace(Owner::File, &document).expect("free names");
        assert_eq!(intent.document(), document);
        assert_eq!(intent.owned_by(Owner::Cli), document.settings());
        assert_eq!(intent.replace(Owner::File, &Document::default()), Ok(Intent::default()));
        let users = ["remote front/10.1.0.77", "route front/default", "policy front->outside"];
        assert_eq!(intent.users_of_network("front"), users);
        assert!(intent.users_of_network("back").is_empty());
        let mut less = intent.clone();
        less.retain(|owner, section, name| {
            (owner, section, name) != (Owner::File, "policy", "front->outside")
        });
        assert_eq!(less.document(), Document { policies: Vec::new(), ..document });
    }

    #[test]
    fn an_object_of_another_owner_is_not_taken_over() {
        let intent = Intent::default().replace(Owner::Cli, &document(&["a"], &[])).expect("free names");
        let refused = intent.replace(Owner::File, &document(&["a"], &[])).expect_err("taken");
        assert_eq!(refused.to_string(), "network 'a' exists already and belongs to cli");
    }
}
