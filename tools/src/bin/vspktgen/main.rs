//! vspktgen: generates, counts and times traffic over any kind of port.
//!
//! `send` and `receive` are two ends of one measurement: every frame carries its flow, its number in the flow
//! and the time it was made, so that the receiver tells loss, reordering and duplicates apart. `latency` plays
//! ping-pong. `connect` opens and closes TCP connections. `replay` sends a capture. `loop` runs the bare forwarding loops of [`ports::bare`], the yardstick
//! that `benches/compare` measures switches with.
//!
//! One thread a process, pinned with `--cpu`; text on stdout, or one JSON object with `--json`.

use std::io;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

mod bare;
mod connect;
mod device;
mod latency;
mod pace;
mod receive;
mod replay;
mod report;
mod send;
mod stop;
mod traffic;

const EXAMPLES: &str = "\
Devices:
  veth:NAME     packet socket with virtio_net_hdr      packet:NAME  packet socket without
  tap:NAME      tap (made when there is none)          afxdp:NAME   AF_XDP sockets
  memory        a pair in memory; what is sent is counted at its other end
  pcap:FILE     a capture, read by receive, written by send
  shared:NAME   any device, beside a veth of a loop: all of its traffic, by a tap

Examples:
  vspktgen send packet:eth0 --dst-mac 02:00:00:00:00:02 --rate 100k --duration 5
  vspktgen send afxdp:eth0 --flows 1000 --vary src-ip,src-port --size imix --rate max
  vspktgen receive packet:eth0 --idle 2 --latency --json
  vspktgen latency packet:eth0 --respond --netns b &
  vspktgen latency packet:eth0 --dst-mac 02:00:00:00:00:02 --netns a --duration 3
  vspktgen connect --serve 0.0.0.0:7000 --netns b &
  vspktgen connect 10.1.0.10:7000 --netns a --duration 3
  vspktgen replay trace.pcapng packet:eth0 --rate 50k --repeat 10
  vspktgen loop veth:a0 veth:b0 --cpu 1 --wait busy --duration 5
  vspktgen loop veth:a0 shared:eth1";

/// Generates, counts and times network traffic.
#[derive(Debug, Parser)]
#[command(name = "vspktgen", version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

/// What every command takes.
#[derive(Debug, Args)]
struct Common {
    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// Pin the process to this CPU.
    #[arg(long, global = true, value_name = "N")]
    cpu: Option<usize>,
    /// Enter this network namespace first (name under /run/netns, or a path).
    #[arg(long, global = true, value_name = "NAME")]
    netns: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send generated frames.
    Send(send::Options),
    /// Receive frames, count them, and find loss and reordering.
    Receive(receive::Options),
    /// Measure round trips, or answer them with --respond.
    Latency(latency::Options),
    /// Open and close TCP connections, as many a second as it goes, or accept them with --serve.
    Connect(connect::Options),
    /// Forward between two devices as barely as the kernel allows.
    Loop(bare::Options),
    /// Send the frames of a capture.
    Replay(replay::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vspktgen: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let json = cli.common.json;
    // Before anything else: signals are blocked in every thread that comes after.
    stop::catch_signals().context("cannot catch signals")?;
    if let Some(name) = &cli.common.netns {
        enter(name)?;
    }
    if let Some(cpu) = cli.common.cpu {
        pin(cpu)?;
    }
    match cli.command {
        Command::Send(options) => print(json, &send::run(&options)?),
        Command::Receive(options) => print(json, &receive::run(&options)?),
        Command::Latency(options) => print(json, &latency::run(&options)?),
        Command::Connect(options) => print(json, &connect::run(&options)?),
        Command::Loop(options) => print(json, &bare::run(&options)?),
        Command::Replay(options) => print(json, &replay::run(&options)?),
    }
}

fn print(json: bool, report: &(impl Serialize + std::fmt::Display)) -> Result<()> {
    use io::Write;
    let text = if json { serde_json::to_string_pretty(report)? } else { report.to_string() };
    // A reader that went away (`| head`) is no error.
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn enter(name: &str) -> Result<()> {
    let path = if name.contains('/') { name.to_owned() } else { format!("/run/netns/{name}") };
    let file = std::fs::File::open(&path).with_context(|| format!("cannot open namespace {path}"))?;
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("cannot enter namespace {path}"))
}

fn pin(cpu: usize) -> Result<()> {
    // Asked for first: core_affinity panics on a number that no CPU mask has room for.
    let known = core_affinity::get_core_ids().unwrap_or_default();
    let core = core_affinity::CoreId { id: cpu };
    if !known.contains(&core) || !core_affinity::set_for_current(core) {
        bail!("cannot pin to CPU {cpu}: it is not one that this process may use");
    }
    Ok(())
}
