//! `[daemon]`, `[workers]`, `[limits]`: the process and its sizes.

use std::path::Path;

use super::{At, Checker};
use crate::document::PortKind;
use crate::values::{ByteSize, Cpus};

/// Bytes of the longest path that a unix socket can have (`sun_path` without the final zero, unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// Ports and networks together: port numbers end at 4096, and 17 are those of the outside.
const NUMBERS_MAX: u32 = 4079;

pub(super) fn check(checker: &mut Checker<'_>) {
    daemon(checker);
    workers(checker);
    limits(checker);
}

fn daemon(checker: &mut Checker<'_>) {
    let daemon = &checker.document.daemon;
    if let Some(name) = &daemon.name {
        checker.name(&At::of("daemon", "name"), name);
    }
    path(checker, "socket", &daemon.socket, SOCKET_PATH_MAX);
    // PATH_MAX counts the final zero (limits.h).
    path(checker, "state_dir", &daemon.state_dir, 4095);
    checker.prefixes(&At::of("daemon", "publish_allow_from"), &daemon.publish_allow_from);
}

fn path(checker: &mut Checker<'_>, key: &str, path: &Path, longest: usize) {
    let bytes = path.as_os_str().as_encoded_bytes();
    let at = At::of("daemon", key);
    if !path.is_absolute() {
        checker.wrong(&at, format!("'{}' is no absolute path", path.display()));
    } else if bytes.len() > longest || bytes.contains(&0) {
        checker.wrong(&at, format!("a path of {} bytes is too long or has a zero byte", bytes.len()));
    }
}

fn workers(checker: &mut Checker<'_>) {
    let workers = &checker.document.workers;
    checker.range(&At::of("workers", "budget"), workers.budget, 1..=256);
    let Cpus::List(cpus) = &workers.cpus else { return };
    let at = At::of("workers", "cpus");
    if cpus.is_empty() || cpus.len() > 64 {
        checker.wrong(&at, format!("a list of {} CPUs makes {} workers", cpus.len(), cpus.len()));
    }
    for (index, cpu) in cpus.iter().enumerate() {
        if *cpu > 1023 {
            checker.wrong(&at.index(index), format!("there is no CPU {cpu}"));
        } else if cpus[..index].contains(cpu) {
            checker.wrong(&at.index(index), format!("CPU {cpu} is given twice"));
        }
    }
}

fn limits(checker: &mut Checker<'_>) {
    let document = checker.document;
    let limits = &document.limits;
    let at = |key| At::of("limits", key);
    let before = checker.findings.len();
    checker.range(&at("memory"), limits.memory, ByteSize::mib(8)..=ByteSize::mib(1 << 20));
    checker.range(&at("ports"), limits.ports, 1..=4078);
    checker.range(&at("networks"), limits.networks, 1..=4078);
    checker.range(&at("stations"), limits.stations, 16..=1 << 20);
    if !limits.flows.is_power_of_two() || !(1024..=1 << 24).contains(&limits.flows) {
        checker.wrong(&at("flows"), format!("{} does not fit", limits.flows));
    }
    checker.range(&at("connections"), limits.connections, 1024..=1 << 24);
    checker.range(&at("neighbors"), limits.neighbors, 64..=1 << 20);
    checker.range(&at("vteps"), limits.vteps, 0..=32767);
    // The host's tap, the devices outside, and a tunnel for every network have numbers too.
    let numbers = u32::from(limits.ports) + u32::from(limits.networks);
    if numbers > NUMBERS_MAX {
        let message =
            format!("{} ports and {} networks are too many together", limits.ports, limits.networks);
        checker.wrong_but(&at("ports"), message, Some(format!("{NUMBERS_MAX} together")));
    }
    let sized = checker.findings.len() == before;
    checker.range(&at("stations_per_port"), limits.stations_per_port, 1..=1 << 20);
    checker.range(&at("per_port"), limits.per_port, 1..=1 << 24);
    checker.range(&at("half_open"), limits.half_open, 1..=1 << 24);

    for (section, key, count, limit) in [
        ("network", "networks", document.networks.len(), limits.networks),
        ("port", "ports", document.ports.len(), limits.ports),
    ] {
        if count > usize::from(limit) {
            let message = format!("there are {count} [[{section}]], and [limits] {key} is {limit}");
            // Placed at the first that is too many.
            let at = At::item(section, usize::from(limit));
            checker.wrong_but(&at, message, Some(format!("at most {limit}")));
        }
    }

    let afxdp = document.ports.iter().filter(|port| port.kind == PortKind::Afxdp);
    let sockets = afxdp.map(|port| usize::from(port.queues)).sum();
    // Other sizes that are wrong would make this one wrong again.
    if sized && let Err(error) = limits.sizing(document.workers.cpus.workers(), sockets) {
        let allowed = format!("at least \"{}\", smaller tables, or fewer AF_XDP queues", error.needed);
        checker.wrong_but(&at("memory"), error.to_string(), Some(allowed));
    }
}
