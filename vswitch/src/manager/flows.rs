//! What the manager knows of the flows that workers decide.
//!
//! * [`connections`]: those that there are, and ending them; neighbours.
//! * [`tracing`]: what would become of a packet, by the very stages that workers walk.
//! * [`asserts`]: what would become of a connection with another configuration.
//!
//! What is not counted is `None`, never a number that looks like one.

pub mod asserts;
pub mod connections;
pub mod probe;
pub mod tracing;

use config::Publish;
use packet::{NetworkId, PortId};

use super::Manager;
use crate::compile;

impl Manager {
    /// Returns how many new connections a policy decided, when somebody counts.
    pub(super) fn policy_hits(&self, name: &str) -> Option<u64> {
        let (policy, hits) = self.compiler.policy();
        let named = (0..).zip(policy.rules()).find(|(_, rule)| &*rule.name == name);
        named.map(|(n, _)| hits.of(n))
    }

    /// Returns the first L4 port that a published port listens on; `None` while a free one is to be chosen.
    pub(super) fn bound_l4_port(&self, publish: &Publish) -> Option<u16> {
        match publish.listen.is_random() {
            true => self.outside.as_ref()?.chosen(&config::Object::name(publish)),
            false => Some(publish.listen.ports.first),
        }
    }

    /// Returns what people call a network, one of the switch's own included.
    fn called_network(&self, id: NetworkId) -> String {
        match self.network_name(id) {
            Some(name) => name.to_owned(),
            None if id.0 == self.limits.networks => "outside".to_owned(),
            None if id.0 == self.limits.networks + 1 => "host".to_owned(),
            None => "?".to_owned(),
        }
    }

    /// Returns the ports of the switch's own: devices that lead outside, the host's tap, and tunnels.
    pub(super) fn outer_ports(&self) -> Vec<(PortId, String)> {
        let uplinks = self.surroundings.uplinks.iter().map(|uplink| (uplink.id, uplink.name.clone()));
        let host = self.surroundings.host.iter().map(|host| (host.id, "host".to_owned()));
        let intent = self.intent();
        let has_tunnel = |name: &str| intent.networks.get(name).is_some_and(|n| n.object.vni.is_some());
        let networks = self.networks.iter().filter(|(name, _)| has_tunnel(name));
        let tunnels = networks
            .map(|(name, id)| (compile::overlay::tunnel(&self.limits, *id), format!("tunnel of {name}")));
        uplinks.chain(host).chain(tunnels).collect()
    }

    /// Returns what all ports are called.
    pub fn port_names(&self) -> std::collections::HashMap<PortId, String> {
        let ports = self.ports.iter().map(|(name, attached)| (attached.id, name.clone()));
        ports.chain(self.outer_ports()).collect()
    }

    /// Returns what the stages say with names in the place of numbers.
    fn named(&self, note: &str) -> String {
        // Not every "port": there are L4 ports, too.
        let ports = ["at port ", "leaves by port ", "bytes of port "];
        let places = ports.into_iter().chain(["into network "]);
        for place in places {
            let Some((before, after)) = note.split_once(place) else { continue };
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            let Ok(number) = after[..end].parse() else { continue };
            let name = match place {
                "into network " => Some(self.called_network(NetworkId(number))),
                _ => self.called_port(PortId(number)),
            };
            let Some(name) = name else { continue };
            return format!("{before}{place}'{name}'{}", &after[end..]);
        }
        note.to_owned()
    }

    /// Returns what people call a port, one of the switch's own included.
    pub(crate) fn called_port(&self, id: PortId) -> Option<String> {
        let own = || self.outer_ports().into_iter().find(|(other, _)| *other == id).map(|(_, name)| name);
        self.port_name(id).map(str::to_owned).or_else(own)
    }
}
