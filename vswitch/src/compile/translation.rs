//! Translations: floating IPs, published ports, and what connections leave as.

use std::net::IpAddr;
use std::sync::Arc;

use config::{Object, Publish};
use packet::{Address, NetworkId, Prefix};
use pipeline::tables::Pool;
use pipeline::{PublishedService, Source, Translation, Translations};

use super::{Member, Plan, routing};

/// Returns all translations. What names a port that is not there, or that has no address of the family,
/// waits; so does a floating IP that another station has.
pub(super) fn all(plan: &Plan<'_>) -> Translations {
    let mut list = Vec::new();
    let mut sources = std::collections::HashMap::new();
    for floating in &plan.floating_ips {
        if plan.surroundings.taken.contains(&floating.address) {
            continue;
        }
        let Some((member, network)) = attached(plan, &floating.port) else { continue };
        let Some(inside) = floating.inside(member.port) else { continue };
        list.push(Translation {
            name: Arc::from(format!("floating IP {}", floating.address)),
            listen: floating.address.into(),
            service: None,
            network,
            to: inside.into(),
            port: member.id,
            allow_from: Vec::new(),
        });
        // Of several, the first is what the port is seen as.
        sources
            .entry((network, Address::from(inside)))
            .or_insert_with(|| Source::Floating(floating.address.into()));
    }
    for egress in &plan.egresses {
        let Some((member, network)) = attached(plan, &egress.port) else { continue };
        for inside in &member.port.addresses {
            let own = egress.address.iter().find(|address| address.is_ipv4() == inside.is_ipv4());
            let Some(own) = own else { continue };
            let pool = Pool { address: (*own).into(), first: egress.ports.first, last: egress.ports.last };
            // Whoever asks for an egress address means it, also beside a floating IP.
            sources.insert((network, Address::from(*inside)), Source::Masquerade(pool));
        }
    }
    for publish in &plan.publishes {
        list.extend([true, false].into_iter().filter_map(|v4| published(plan, publish, v4)));
    }
    Translations::new(list, sources.into_iter().collect(), plan.snat_ports)
}

fn attached<'p, 'i>(plan: &'p Plan<'i>, port: &str) -> Option<(&'p Member<'i>, NetworkId)> {
    let member = plan.member(port)?;
    let (network, _) = plan.network(&member.port.network)?;
    Some((member, network))
}

/// Returns the translation of a published port for one family.
fn published(plan: &Plan<'_>, publish: &Publish, v4: bool) -> Option<Translation> {
    let any = if v4 { Address::v4([0; 4]) } else { Address::UNSPECIFIED };
    let listen = match publish.listen.address {
        Some(address) if address.is_ipv4() != v4 => return None,
        address => address.map_or(any, Address::from),
    };
    if publish.listen.is_random() {
        // Nobody has chosen a port for it yet.
        return None;
    }
    let (member, network) = attached(plan, &publish.to.port)?;
    let inside: IpAddr = publish.inside(member.port, v4)?;
    let allow_from: Vec<Prefix> =
        publish.admitted(plan.publish_allow_from).iter().filter_map(|net| routing::prefix(*net)).collect();
    Some(Translation {
        name: Arc::from(format!("published {}", publish.name())),
        listen,
        service: Some(PublishedService {
            protocol: publish.listen.protocol.number(),
            first: publish.listen.ports.first,
            last: publish.listen.ports.last,
            to: publish.to.ports.first,
        }),
        network,
        to: inside.into(),
        port: member.id,
        allow_from,
    })
}
