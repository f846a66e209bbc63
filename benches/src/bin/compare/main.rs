//! compare: the switch beside its peers and beside what the kernel allows, on one machine in one run.
//!
//! Every subject (the kernel bridge, Open vSwitch, bare loops, vswitch) joins two namespaces in turn and is put
//! through the same rows: bulk TCP, a flood of small frames, ping-pong. The row `outside` has subjects of its own: what
//! leads a container outside, by masquerade, a published port and a floating address; so has the row `overlay`: what joins
//! containers of two hosts by VXLAN. Rounds are interleaved, so that what
//! the machine does meanwhile hits all alike; figures are medians, ratios are medians of the rounds' ratios.
//!
//! The switch runs on one CPU and both ends on the other. Everything lives in namespaces of this process and
//! is removed at the end, also after a signal; a run that was killed is cleaned up by the next.
//!
//! `lab` has namespaces and processes, `subjects` sets each one up, `measures` are the rows, `table` prints; `outside` and
//! `overlay` have the like for their rows.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use serde::Serialize;

mod lab;
mod measures;
mod outside;
mod overlay;
mod subjects;
mod table;

use subjects::Subject;

/// Compares vswitch with the kernel bridge, Open vSwitch and bare loops. Needs root.
#[derive(Debug, Parser)]
#[command(name = "compare")]
struct Cli {
    /// One round of one second each, without the ports alone: in about two minutes.
    #[arg(long)]
    quick: bool,
    /// Rows to measure; all by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    rows: Vec<Row>,
    /// Subjects to measure, by name; all by default. Names may end in '*'.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Rounds; the median counts.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each measurement.
    #[arg(long)]
    seconds: Option<f64>,
    /// Where the figures go as JSON; next to the programs by default.
    #[arg(long)]
    json: Option<PathBuf>,
    /// CPU of the switch.
    #[arg(long, default_value_t = 1)]
    switch_cpu: usize,
    /// CPU of both ends.
    #[arg(long, default_value_t = 0)]
    ends_cpu: usize,
    /// List the subjects and stop.
    #[arg(long)]
    list: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Row {
    /// TCP, one flow, as fast as it goes.
    Tcp,
    /// 64-byte frames, offered at the highest rate.
    Rate,
    /// Ping-pong of small UDP datagrams.
    Latency,
    /// CPU use without traffic, and the time to wake up.
    Idle,
    /// Latency with 200 idle ports beside the two.
    Ports,
    /// A container and the outside: TCP both ways, connections a second, latency.
    Outside,
    /// Containers of two hosts: TCP both ways, 64-byte frames.
    Overlay,
}

/// How the measurements are run.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub seconds: f64,
    pub switch_cpu: usize,
    pub ends_cpu: usize,
    /// Directory of `vspktgen` and `vswitchd`.
    pub programs: PathBuf,
}

/// Figures of one subject, row and round: metric -> value.
pub(crate) type Figures = BTreeMap<&'static str, f64>;

/// All that was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Results {
    pub machine: BTreeMap<&'static str, String>,
    pub samples: Vec<Sample>,
    /// Subjects that could not run, and why.
    pub failures: BTreeMap<String, String>,
}

/// One measurement.
#[derive(Debug, Serialize)]
pub(crate) struct Sample {
    pub subject: String,
    pub row: Row,
    pub round: usize,
    pub figures: Figures,
}

impl Results {
    /// Returns `metric` of a subject in each round that has it.
    pub(crate) fn series(&self, subject: &str, row: Row, metric: &str) -> BTreeMap<usize, f64> {
        let matching = self.samples.iter().filter(|s| s.subject == subject && s.row == row);
        matching.filter_map(|s| s.figures.get(metric).map(|value| (s.round, *value))).collect()
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        for subject in Subject::ALL {
            println!("{:18} {}", subject.name(), subject.title());
        }
        for subject in outside::Subject::ALL {
            println!("{:18} {}", subject.name(), subject.title());
        }
        for subject in overlay::Subject::ALL {
            println!("{:18} {}", subject.name(), subject.title());
        }
        return ExitCode::SUCCESS;
    }
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "needs root: it makes network namespaces");
    lab::clean_at_exit()?;
    lab::clean_leftovers();
    let programs = std::env::current_exe()?.parent().context("no directory of programs")?.to_owned();
    let setting = Setting {
        seconds: cli.seconds.unwrap_or(if cli.quick { 1.0 } else { 2.0 }),
        switch_cpu: cli.switch_cpu,
        ends_cpu: cli.ends_cpu,
        programs,
    };
    let rounds = cli.rounds.unwrap_or(if cli.quick { 1 } else { 3 });
    let wanted = |row| cli.rows.is_empty() || cli.rows.contains(&row);
    let named = |subject: &str| {
        cli.only.iter().any(|name| match name.strip_suffix('*') {
            Some(start) => subject.starts_with(start),
            None => subject == name,
        })
    };
    let chosen = |subject: &&Subject| {
        // The ports alone tell where the switch's time goes; a quick look does not need them.
        cli.only.is_empty() && !(cli.quick && matches!(subject, Subject::Ports(_))) || named(subject.name())
    };
    let subjects: Vec<_> = Subject::ALL.iter().filter(chosen).copied().collect();
    let chosen = |subject: &&outside::Subject| {
        cli.only.is_empty() && !(cli.quick && subject.is_detail()) || named(subject.name())
    };
    let outside: Vec<_> = outside::Subject::ALL.iter().filter(chosen).copied().collect();
    let ways = if cli.quick { &outside::Way::ALL[..1] } else { &outside::Way::ALL };
    let chosen = |subject: &&overlay::Subject| cli.only.is_empty() || named(subject.name());
    let overlay: Vec<_> = overlay::Subject::ALL.iter().filter(chosen).copied().collect();
    let is_empty = subjects.is_empty() && outside.is_empty() && overlay.is_empty();
    anyhow::ensure!(!is_empty, "no such subject; --list names them");
    let start = Instant::now();
    let mut results = Results { machine: lab::machine(), ..Results::default() };
    for round in 1..=rounds {
        for subject in &subjects {
            let rows: Vec<_> =
                [Row::Tcp, Row::Rate, Row::Latency].into_iter().filter(|row| wanted(*row)).collect();
            if rows.is_empty() || results.failures.contains_key(subject.name()) {
                continue;
            }
            eprint!("{:4.0} s  round {round}/{rounds}  {:18}", start.elapsed().as_secs_f64(), subject.name());
            if let Err(error) = measures::all(*subject, &setting, &rows, round, &mut results) {
                eprint!("  {error:#}");
                results.failures.insert(subject.name().to_owned(), format!("{error:#}"));
            }
            eprintln!();
        }
        if wanted(Row::Outside) {
            outside::round(&outside, ways, &setting, round, start, &mut results);
        }
        if wanted(Row::Overlay) {
            overlay::round(&overlay, &setting, round, start, &mut results);
        }
    }
    let vswitch = subjects.iter().any(|subject| subject.is_vswitch());
    for (row, measure) in [
        (Row::Idle, measures::idle as fn(&Setting, usize, &mut Results) -> Result<()>),
        (Row::Ports, measures::idle_ports),
    ] {
        if vswitch && wanted(row) {
            eprintln!("{:4.0} s  {row:?}", start.elapsed().as_secs_f64());
            if let Err(error) = measure(&setting, rounds, &mut results) {
                eprintln!("        {error:#}");
                results.failures.insert(format!("{row:?}").to_lowercase(), format!("{error:#}"));
            }
        }
    }
    table::print(&results);
    let path = cli.json.clone().unwrap_or_else(|| setting.programs.join("compare.json"));
    std::fs::write(&path, serde_json::to_string_pretty(&results)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("\n{:.0} s; all figures of all rounds: {}", start.elapsed().as_secs_f64(), path.display());
    Ok(())
}
