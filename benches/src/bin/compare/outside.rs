//! The way outside: one container, the host that it is on, and a station beyond the host.
//!
//! ```text
//!   container eth0 10.77.0.11 ----- p0  host  eth1 203.0.113.2 ----- eth0 203.0.113.1  outside
//!                                                                     lo  198.51.100.1 ...
//! ```
//!
//! Every subject leads the container outside by masquerade, and the outside in by a published port and by a floating
//! address, each in a host of its own: Docker's bridge and rules, plain routing with nftables, vswitch. The bare loop
//! translates nothing: there the container has an address of the outside's own link.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::lab::Running;
use crate::measures::{Path, ping_pong, tcp};
use crate::{Figures, Results, Row, Sample, Setting, lab};

mod setups;
pub(crate) mod table;

/// The container's address.
const CONTAINER: &str = "10.77.0.11";
/// The host's address outside.
const HOST: &str = "203.0.113.2";
/// The address that is the container's alone.
const FLOATING: &str = "203.0.113.10";
/// Stations beyond the host's link, 198.51.100.1 to 16.
const STATIONS: std::ops::RangeInclusive<u8> = 1..=16;
const STATION: &str = "198.51.100.1";
/// Ports that iperf3, sockperf and `vspktgen connect` listen on.
const SERVICES: [(&str, u16); 3] = [("tcp", 5201), ("tcp", CONNECTIONS), ("udp", 11111)];
const CONNECTIONS: u16 = 7000;
/// Connections of one measurement at most. Closed ones keep their L4 port for minutes (RFC 5382, REQ-5), and above 80 % of
/// the 16384 that masquerading has by default a search for one takes longer: this is below.
const MOST: u32 = 12_000;
/// So many may a port have, closed ones included; 8192 by default.
const QUOTA: u32 = 2 * MOST;

/// How the container and the outside reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The container calls, and is seen as the host.
    Masquerade,
    /// The outside calls a port of the host's address.
    Published,
    /// The outside calls an address that is the container's.
    Floating,
}

impl Way {
    pub(crate) const ALL: [Way; 3] = [Way::Masquerade, Way::Published, Way::Floating];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Masquerade => "masquerade",
            Self::Published => "published",
            Self::Floating => "floating",
        }
    }
}

/// What leads a container outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A bridge, and the rules that Docker Engine makes.
    Docker,
    /// Routing, and as few rules of nftables as it takes.
    Nftables,
    /// A loop that only copies.
    Bare,
    /// The same loop over the switch's ports.
    Ports,
    /// This switch, spinning.
    Busy,
    /// This switch as it comes.
    Default,
}

impl Subject {
    pub(crate) const ALL: [Subject; 6] =
        [Self::Docker, Self::Nftables, Self::Bare, Self::Ports, Self::Busy, Self::Default];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Docker => "outside-docker",
            Self::Nftables => "outside-nftables",
            Self::Bare => "outside-bare",
            Self::Ports => "outside-ports",
            Self::Busy => "outside-vswitch",
            Self::Default => "outside-default",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Docker => "kernel, Docker's bridge and rules",
            Self::Nftables => "kernel, routing and nftables",
            Self::Bare => "bare copy loop, veth and redirected tap",
            Self::Ports => "vswitch's ports alone",
            Self::Busy => "vswitch",
            Self::Default => "vswitch, adaptive polling",
        }
    }

    /// What `--quick` leaves out.
    pub(crate) fn is_detail(self) -> bool {
        matches!(self, Self::Docker | Self::Ports | Self::Default)
    }

    /// A loop that copies has no published ports; calls from outside take one way.
    fn translates(self) -> bool {
        !matches!(self, Self::Bare | Self::Ports)
    }

    /// The name of its samples.
    fn sample(self, way: Way) -> String {
        let way = if way == Way::Published && !self.translates() { Way::Floating } else { way };
        format!("{} {}", self.name(), way.name())
    }
}

/// Measures the subjects once, by each of the ways.
pub(crate) fn round(
    subjects: &[Subject],
    ways: &[Way],
    setting: &Setting,
    round: usize,
    start: Instant,
    results: &mut Results,
) {
    for way in ways {
        for subject in subjects {
            let name = subject.sample(*way);
            let is_done = *way == Way::Published && !subject.translates();
            if is_done || results.failures.contains_key(&name) {
                continue;
            }
            eprint!("{:4.0} s  round {round}  {name:28}", start.elapsed().as_secs_f64());
            let measured = subject.start(setting, *way).and_then(|running| all(&running, *subject, *way));
            match measured {
                Ok(figures) => {
                    let f = |metric| figures.get(metric).copied().unwrap_or(f64::NAN);
                    eprintln!(
                        "  out {:5.2} in {:5.2} Gbit/s  {:5.0} conn/s  {:5.1}/{:5.1} us",
                        f("out"),
                        f("in"),
                        f("connections"),
                        f("p50"),
                        f("p99")
                    );
                    results.samples.push(Sample { subject: name, row: Row::Outside, round, figures });
                }
                Err(error) => {
                    eprintln!("  {error:#}");
                    results.failures.insert(name, format!("{error:#}"));
                }
            }
        }
    }
}

/// Takes all measures of one way: TCP both ways, ping-pong, connections.
fn all(running: &Running, subject: Subject, way: Way) -> Result<Figures> {
    let setting = &running.setting;
    let [container, outside] = &running.lab.ends;
    let calls_out = way == Way::Masquerade;
    let path = match way {
        Way::Masquerade => Path { client: container, server: outside, bind: STATION, target: STATION },
        _ if !subject.translates() => {
            Path { client: outside, server: container, bind: FLOATING, target: FLOATING }
        }
        Way::Published => Path { client: outside, server: container, bind: CONTAINER, target: HOST },
        Way::Floating => Path { client: outside, server: container, bind: CONTAINER, target: FLOATING },
    };
    let mut figures = Figures::new();
    for (metric, lost, back) in [("out", "retransmits_out", !calls_out), ("in", "retransmits_in", calls_out)]
    {
        let moved = tcp(path, setting, back).with_context(|| format!("TCP {metric}"))?;
        figures.extend([(metric, moved["gigabits"]), (lost, moved["retransmits"])]);
    }
    let trips = ping_pong(path, setting, setting.ends_cpu, None).context("ping-pong")?;
    figures.extend([("p50", trips.p50), ("p99", trips.p99)]);
    figures.extend(connections(path, setting, calls_out).context("connections")?);
    Ok(figures)
}

/// TCP connections opened and closed again, 64 at a time, both ends on one CPU.
fn connections(path: Path<'_>, setting: &Setting, calls_out: bool) -> Result<Figures> {
    let program = setting.programs.join("vspktgen");
    let mut server = lab::Lab::command(path.server, Some(setting.ends_cpu), &program);
    // The stations are many addresses; a container has one.
    let bind = if calls_out { "0.0.0.0" } else { path.bind };
    let mut server = server
        .args(["connect", "--serve", &format!("{bind}:{CONNECTIONS}")])
        .stdout(std::process::Stdio::null())
        .spawn()
        .context("there is no vspktgen")?;
    let targets: Vec<_> = match calls_out {
        true => STATIONS.map(|n| format!("198.51.100.{n}:{CONNECTIONS}")).collect(),
        false => vec![format!("{}:{CONNECTIONS}", path.target)],
    };
    let mut result = Ok(String::new());
    for _ in 0..20 {
        // Until the server listens.
        std::thread::sleep(std::time::Duration::from_millis(50));
        let mut client = lab::Lab::command(path.client, Some(setting.ends_cpu), &program);
        client.args(["connect", "--json", "--in-flight", "64", "--count", &MOST.to_string()]);
        client.args(["--duration", &setting.seconds.to_string()]).args(&targets);
        result = lab::output(&mut client);
        if result.is_ok() {
            break;
        }
    }
    let _ = server.kill();
    let _ = server.wait();
    let report: serde_json::Value = serde_json::from_str(&result?)?;
    let of = |name: &str| report[name].as_f64().with_context(|| format!("vspktgen printed no {name}"));
    Ok(Figures::from([("connections", of("connections_per_second")?), ("failed", of("failed")?)]))
}
