//! Two hosts and the VXLAN between them: a container on each, on one network.
//!
//! ```text
//!   container eth0 10.77.0.11 - p0 host eth1 203.0.113.1 --- eth1 203.0.113.2 host p1 - eth0 10.77.0.12 container
//! ```
//!
//! Every subject is set up on both hosts: the kernel's bridge and VXLAN device, Open vSwitch in userspace, vswitch. The bare
//! loops put no header on and take none off: each copies all frames between its container and the link of the hosts,
//! as they are. So they say what two switches in a row may reach at best.
//!
//! Both containers share one CPU, and both hosts' switches the other. Two that spin would wait for one another there, so all
//! of them sleep when there is nothing to do.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::lab::Running;
use crate::measures::{Path, rate, tcp};
use crate::{Figures, Results, Row, Sample, Setting};

mod setups;
pub(crate) mod table;

/// The link between the hosts.
const UNDERLAY: [&str; 2] = ["203.0.113.1", "203.0.113.2"];
const UNDERLAY_MTU: u32 = 1500;
const VNI: u32 = 77;
/// What VXLAN over IPv4 adds to a packet: Ethernet, IPv4, UDP and its own header.
const OVERHEAD: u32 = 50;

/// What joins the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A bridge and a VXLAN device.
    Kernel,
    /// Open vSwitch in userspace, with a VXLAN port.
    Ovs,
    /// Loops that only copy.
    Bare,
    /// This switch as it comes.
    Vswitch,
}

impl Subject {
    pub(crate) const ALL: [Subject; 4] = [Self::Kernel, Self::Ovs, Self::Bare, Self::Vswitch];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kernel => "overlay-kernel",
            Self::Ovs => "overlay-ovs",
            Self::Bare => "overlay-bare",
            Self::Vswitch => "overlay-vswitch",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Kernel => "kernel, bridge and VXLAN device",
            Self::Ovs => "Open vSwitch, VXLAN (no TSO, tx sum off)",
            Self::Bare => "bare copy loops, no VXLAN at all",
            Self::Vswitch => "vswitch, sleeping when idle",
        }
    }
}

/// Measures the subjects once.
pub(crate) fn round(
    subjects: &[Subject],
    setting: &Setting,
    round: usize,
    start: Instant,
    results: &mut Results,
) {
    for subject in subjects {
        let name = subject.name();
        if results.failures.contains_key(name) {
            continue;
        }
        eprint!("{:4.0} s  round {round}  {name:28}", start.elapsed().as_secs_f64());
        match subject.start(setting).and_then(|running| all(&running)) {
            Ok(figures) => {
                let f = |metric| figures.get(metric).copied().unwrap_or(f64::NAN);
                eprintln!(
                    "  there {:5.2} back {:5.2} Gbit/s  {:4.0}/{:4.0} kpps",
                    f("there"),
                    f("back"),
                    f("offered") / 1e3,
                    f("delivered") / 1e3
                );
                results.samples.push(Sample { subject: name.to_owned(), row: Row::Overlay, round, figures });
            }
            Err(error) => {
                eprintln!("  {error:#}");
                results.failures.insert(name.to_owned(), format!("{error:#}"));
            }
        }
    }
}

/// TCP both ways, and 64-byte frames.
fn all(running: &Running) -> Result<Figures> {
    let path = Path::inside(&running.lab);
    let mut figures = Figures::new();
    for (metric, lost, back) in [("there", "retransmits_there", false), ("back", "retransmits_back", true)] {
        let moved = tcp(path, &running.setting, back).with_context(|| format!("TCP {metric}"))?;
        figures.extend([(metric, moved["gigabits"]), (lost, moved["retransmits"])]);
    }
    figures.extend(rate(running, false).context("64-byte frames")?);
    Ok(figures)
}
