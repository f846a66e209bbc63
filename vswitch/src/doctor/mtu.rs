//! Whether the networks' packets fit the way to each peer.

use std::net::IpAddr;

use config::api::Check;
use futures_util::future::join_all;

use super::{check, path};

/// What is to be found out about a peer.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its address.
    pub peer: IpAddr,
    /// Our address, and the device that leads there with its MTU; or why nothing can be sent.
    pub way: Result<Way, String>,
    /// What goes before a packet in the tunnel.
    pub overhead: u32,
    /// The networks that it takes part in, with their MTU.
    pub networks: Vec<(String, u32)>,
}

/// The way to a peer.
#[derive(Clone, Debug)]
pub struct Way {
    /// Our end.
    pub local: IpAddr,
    /// The device's name.
    pub device: String,
    /// Its MTU.
    pub mtu: u32,
    /// The host has a part in it, and so can ask.
    pub shared: bool,
}

/// Asks the peers, all at once, and says what that means.
pub async fn answers(questions: Vec<Question>) -> Vec<Check> {
    let answers = questions.into_iter().map(|question| async move {
        let found = match &question.way {
            Ok(Way { local, mtu, shared: true, .. }) => {
                let (local, peer, mtu) = (*local, question.peer, *mtu);
                let asked = tokio::task::spawn_blocking(move || path::largest(local, peer, mtu)).await;
                asked.map_err(|error| error.to_string()).and_then(|found| found.map_err(|e| e.to_string()))
            }
            Ok(_) | Err(_) => Ok(None),
        };
        explain(&question, found)
    });
    join_all(answers).await
}

fn explain(question: &Question, found: Result<Option<u32>, String>) -> Check {
    let name = format!("peer {}", question.peer);
    let Way { device, mtu, shared, .. } = match &question.way {
        Ok(way) => way,
        Err(reason) => return check(&name, false, reason.clone(), "vsctl peer show tells more"),
    };
    let room = |packet: u32| packet.saturating_sub(question.overhead);
    let too_large = |limit: u32| -> Vec<String> {
        let networks = question.networks.iter().filter(|(_, mtu)| *mtu > room(limit));
        networks.map(|(name, mtu)| format!("{name} ({mtu})")).collect()
    };
    let fits =
        |limit: u32| match question.networks.iter().map(|(name, mtu)| format!("{name} {mtu}")).collect() {
            list if Vec::<String>::is_empty(&list) => format!("networks up to {} fit", room(limit)),
            list => format!("networks up to {} fit: {}", room(limit), list.join(", ")),
        };
    match found {
        Err(error) => check(&name, false, format!("cannot be asked: {error}"), "see the log of vswitchd"),
        Ok(None) if !shared => {
            let unfit = too_large(*mtu);
            let detail =
                format!("by {device} (MTU {mtu}), which the switch has alone: the way beyond was not probed");
            advise(&name, &unfit, detail, *mtu, question)
        }
        Ok(None) => check(
            &name,
            false,
            format!("by {device} (MTU {mtu}): no echo request was answered"),
            "the host is down, or ICMP is filtered on the way: then large packets get lost unnoticed, too",
        ),
        Ok(Some(found)) if found < *mtu => {
            let detail = format!(
                "by {device} (MTU {mtu}): packets of at most {found} bytes arrive, something on the way is smaller"
            );
            let fix = format!(
                "ip link set {device} mtu {found}: networks with mtu = \"auto\" follow to {}; or mend the way",
                room(found)
            );
            let unfit = too_large(found);
            if unfit.is_empty() {
                return check(&name, true, format!("{detail}; {}", fits(found)), "");
            }
            check(&name, false, format!("{detail}; too large for that: {}", unfit.join(", ")), &fix)
        }
        Ok(Some(found)) => {
            let unfit = too_large(found);
            let detail = format!("by {device}: packets of {found} bytes arrive, {}", fits(found));
            advise(&name, &unfit, detail, found, question)
        }
    }
}

fn advise(name: &str, unfit: &[String], detail: String, limit: u32, question: &Question) -> Check {
    let fix = format!(
        "mtu = \"auto\", or at most {}, for {}: until then their senders are told by ICMP what fits",
        limit.saturating_sub(question.overhead),
        unfit.join(", ")
    );
    check(name, unfit.is_empty(), detail, &fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(networks: &[(&str, u32)]) -> Question {
        Question {
            peer: "192.0.2.2".parse().expect("an address"),
            way: Ok(Way {
                local: "192.0.2.1".parse().expect("an address"),
                device: "eth1".to_owned(),
                mtu: 1500,
                shared: true,
            }),
            overhead: 50,
            networks: networks.iter().map(|(name, mtu)| ((*name).to_owned(), *mtu)).collect(),
        }
    }

    #[test]
    fn a_way_that_is_smaller_than_its_device_is_told_with_what_to_do() {
        let check = explain(&question(&[("front", 1450)]), Ok(Some(1400)));
        assert!(!check.ok);
        assert!(check.detail.contains("at most 1400") && check.detail.contains("front (1450)"), "{check:?}");
        assert!(
            check.fix.is_some_and(|fix| fix.contains("ip link set eth1 mtu 1400") && fix.contains("1350"))
        );
        assert!(explain(&question(&[("front", 1350)]), Ok(Some(1400))).ok);
    }

    #[test]
    fn networks_that_are_too_large_are_named() {
        assert!(explain(&question(&[("front", 1450)]), Ok(Some(1500))).ok);
        let check = explain(&question(&[("front", 1450), ("big", 9000)]), Ok(Some(1500)));
        assert!(!check.ok && check.fix.is_some_and(|fix| fix.contains("big (9000)") && fix.contains("1450")));
    }

    #[test]
    fn silence_and_no_way_are_failures() {
        assert!(!explain(&question(&[]), Ok(None)).ok);
        let nowhere = Question { way: Err("no route leads to 192.0.2.2".to_owned()), ..question(&[]) };
        assert!(!explain(&nowhere, Ok(None)).ok);
    }
}
