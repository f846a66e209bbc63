//! Published ports on the host: which L4 ports they are, and that nobody else there has them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use config::{L4Protocol, Publish};

use super::Outside;
use crate::compile;
use crate::manager::Manager;
use crate::refusal::Refusal;
use crate::relay::{Conflict, Protocol, Published};

/// Where a published port that any L4 port would do for is looked for: below the ports that masquerading takes, and
/// above those of well-known services.
const RANDOM: std::ops::RangeInclusive<u16> = 32768..=49151;

impl Manager {
    /// Returns the published ports, each with the L4 port that was chosen for it.
    pub(in crate::manager) fn publishes(&self) -> Vec<Publish> {
        let chosen = |publish: &Publish| self.outside.as_ref()?.chosen(&config::Object::name(publish));
        with_ports(&self.saved.intent, chosen)
    }

    /// Returns what the relay is to hold.
    pub(super) fn held(&self, intent: &crate::intent::Intent, outside: &Outside) -> Vec<Published> {
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
    pub(in crate::manager) async fn hold_ports(
        &mut self,
        next: &crate::intent::Intent,
    ) -> Result<(), Refusal> {
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
}

/// Returns the published ports of an intent, each with the L4 port that was chosen for it.
pub(super) fn with_ports(
    intent: &crate::intent::Intent,
    chosen: impl Fn(&Publish) -> Option<u16>,
) -> Vec<Publish> {
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
