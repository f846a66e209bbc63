//! `[[policy]]` and `[[assert]]`: who and what.

use super::network::overlap;
use super::{At, Checker};
use crate::document::{Document, Network};
use crate::peer::Peer;
use crate::policy::Policy;
use crate::services::Service;

/// Services of one policy.
const SERVICES_MAX: usize = 256;

pub(super) fn check(checker: &mut Checker<'_>) {
    let document = checker.document;
    let unique = "a name of its own, or one policy with the services of both";
    checker.unique_objects(&document.policies, "name", unique);
    for (index, policy) in document.policies.iter().enumerate() {
        let at = At::item("policy", index);
        if let Some(name) = &policy.name {
            checker.name(&at.key("name"), name);
        }
        side(checker, document, &at.key("from"), &policy.from);
        side(checker, document, &at.key("to"), &policy.to);
        services(checker, &at, policy);
        joins(checker, document, &at, policy);
    }
    checker.unique_objects(&document.asserts, "to", "each once");
    for (index, assert) in document.asserts.iter().enumerate() {
        let at = At::item("assert", index);
        // Ports may come later, as everywhere: until then it is not checked, and an apply says so.
        checker.name(&at.key("from"), &assert.from);
        side(checker, document, &at.key("to"), &assert.to.peer);
    }
}

fn side(checker: &mut Checker<'_>, document: &Document, at: &At, peer: &Peer) {
    match peer {
        Peer::Network(name) if document.network(name).is_none() => {
            let known = document.networks.iter().map(|network| network.name.as_str());
            if document.port(name).is_some() {
                let message = format!("there is no network '{name}', but a port of that name");
                checker.wrong_but(at, message, Some(format!("port:{name}")));
            } else {
                checker.dangling(at, "network", name, known);
            }
        }
        Peer::Cidr(net) => {
            checker.host_bits(at, net);
        }
        _ => {}
    }
}

fn services(checker: &mut Checker<'_>, at: &At, policy: &Policy) {
    let lists: Vec<(&str, &[Service])> =
        [("allow", &policy.allow), ("deny", &policy.deny), ("reject", &policy.reject)]
            .into_iter()
            .map(|(key, list)| (key, list.as_slice()))
            .filter(|(_, list)| !list.is_empty())
            .collect();
    let Some(((key, list), more)) = lists.split_first() else {
        let allowed = "one of allow, deny, reject, as in allow = [\"tcp/514\"]".to_owned();
        checker.wrong_but(at, "it says neither what is allowed nor what is not", Some(allowed));
        return;
    };
    for (other, _) in more {
        let message = format!("is given together with {key}");
        checker.wrong_but(
            &at.key(other),
            message,
            Some("one of allow, deny, reject; two policies for two".to_owned()),
        );
    }
    if !checker.few(&at.key(key), list, SERVICES_MAX) {
        return;
    }
    for (index, service) in list.iter().enumerate() {
        if list[..index].contains(service) {
            let message = format!("'{service}' is given twice");
            checker.wrong_but(&at.key(key).index(index), message, Some("each once".to_owned()));
        }
    }
}

/// Reports a policy that joins two networks whose subnets overlap: their stations could not tell who is meant.
fn joins(checker: &mut Checker<'_>, document: &Document, at: &At, policy: &Policy) {
    let network = |peer: &Peer| match peer {
        Peer::Network(name) => document.network(name),
        _ => None,
    };
    let (Some(from), Some(to)) = (network(&policy.from), network(&policy.to)) else { return };
    if from.name == to.name {
        return;
    }
    if let Some((a, b)) = common(from, to) {
        let message = format!(
            "{b} of network '{}' overlaps {a} of network '{}', which the policy joins",
            to.name, from.name
        );
        let allowed = "networks whose subnets do not overlap".to_owned();
        checker.wrong_but(&at.key("to"), message, Some(allowed));
    }
}

fn common(a: &Network, b: &Network) -> Option<(ipnet::IpNet, ipnet::IpNet)> {
    a.subnets
        .iter()
        .find_map(|one| b.subnets.iter().find(|other| overlap(one, other)).map(|other| (*one, *other)))
}
