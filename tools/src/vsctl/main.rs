//! `vsctl`: the command tool of vswitch, a client of the daemon's API.
//!
//! Nouns first, one file a noun: its options, what it asks the daemon, how it shows the answer. `--json`
//! prints the daemon's answer as it is; without it, tables for people. Exit code 0 done, 1 refused with the
//! reason on stderr, 2 wrong usage. Nothing is decided here that the daemon could decide: what is allowed is
//! told by the same validation that reads files.

mod apply;
mod attach;
mod capture;
mod client;
mod connection;
mod docs;
mod drops;
mod events;
mod fdb;
mod frame;
mod host;
mod nat;
mod network;
mod object;
mod output;
mod overlay;
mod policy;
mod port;
mod route;
mod settings;
mod status;
mod top;
mod trace;
mod units;
mod worker;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use client::{ApiError, Client};

/// Controls vswitchd, the userspace packet switch for container hosts.
#[derive(Debug, Parser)]
#[command(name = "vsctl", version, arg_required_else_help = true)]
#[command(
    after_help = "Examples:\n  vsctl status\n  vsctl port list --json\n  vsctl apply /etc/vswitch/vswitch.toml --confirm 30s"
)]
struct Cli {
    /// Print the switch's answer as JSON
    #[arg(long, global = true, help_heading = docs::GLOBAL)]
    json: bool,
    /// The switch's socket [env: VSWITCH_SOCKET] [default: /run/vswitch/vswitch.sock]
    #[arg(long, global = true, value_name = "PATH", help_heading = docs::GLOBAL)]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Status(status::Status),
    Apply(apply::Apply),
    Diff(apply::Diff),
    Confirm(apply::Confirm),
    #[command(subcommand)]
    Config(apply::Config),
    #[command(subcommand)]
    Network(network::Network),
    #[command(subcommand)]
    Port(port::Port),
    #[command(subcommand)]
    Policy(policy::Policy),
    #[command(subcommand)]
    Fip(nat::Fip),
    #[command(subcommand)]
    Publish(nat::Publish),
    #[command(subcommand)]
    Egress(nat::Egress),
    #[command(subcommand)]
    Route(route::Route),
    #[command(subcommand)]
    Peer(overlay::Peer),
    #[command(subcommand)]
    Remote(overlay::Remote),
    Attach(attach::Attach),
    Detach(attach::Detach),
    #[command(subcommand)]
    Fdb(fdb::Fdb),
    #[command(subcommand)]
    Neighbor(fdb::Neighbor),
    #[command(subcommand)]
    Connection(connection::Connection),
    #[command(subcommand)]
    Host(host::Host),
    Drops(drops::Drops),
    Trace(trace::Trace),
    Capture(capture::Capture),
    #[command(subcommand)]
    Worker(worker::Worker),
    Top(top::Top),
    Doctor(status::Doctor),
    Log(events::Log),
    Watch(events::Watch),
    Cleanup(status::Cleanup),
    Completions(docs::Completions),
    Man(docs::Man),
    /// Prints docs/commands.md.
    #[command(hide = true)]
    Docs,
}

/// What every command needs.
#[derive(Debug)]
struct Context {
    client: Client,
    /// Print JSON.
    json: bool,
}

impl Context {
    /// Prints an answer: as it is with `--json`, else as `render` shows it.
    fn show<T: DeserializeOwned>(
        &self,
        answer: &Value,
        render: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        if self.json {
            return Ok(output::print_json(answer)?);
        }
        Ok(output::print(&render(&client::read(answer)?))?)
    }

    /// Prints the answer to a command that changes something: with `--json` as it is, else `done`.
    fn done(&self, answer: &Value, done: &str) -> anyhow::Result<()> {
        if self.json { Ok(output::print_json(answer)?) } else { Ok(output::print(&format!("{done}\n"))?) }
    }
}

/// The command line makes no sense in a way that its grammar does not catch.
#[derive(Debug)]
struct UsageError(&'static str);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for UsageError {}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json;
    match run(cli) {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<UsageError>() => {
            eprintln!("error: {error}\n\nFor more information, try '--help'.");
            ExitCode::from(2)
        }
        Err(error) => {
            if json {
                eprintln!("{:#}", error_as_json(&error));
            } else {
                eprintln!("vsctl: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let socket = cli
        .socket
        .or_else(|| std::env::var_os("VSWITCH_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from))
        .unwrap_or_else(|| config::Daemon::default().socket);
    let context = Context { client: Client::new(&socket), json: cli.json };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(dispatch(cli.command, &context))
}

async fn dispatch(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        Command::Status(command) => command.run(context).await?,
        Command::Apply(command) => command.run(context).await?,
        Command::Diff(command) => command.run(context).await?,
        Command::Confirm(command) => command.run(context).await?,
        Command::Config(command) => command.run(context).await?,
        Command::Network(command) => command.run(context).await?,
        Command::Port(command) => command.run(context).await?,
        Command::Policy(command) => command.run(context).await?,
        Command::Fip(command) => command.run(context).await?,
        Command::Publish(command) => command.run(context).await?,
        Command::Egress(command) => command.run(context).await?,
        Command::Route(command) => command.run(context).await?,
        Command::Peer(command) => command.run(context).await?,
        Command::Remote(command) => command.run(context).await?,
        Command::Attach(command) => command.run(context).await?,
        Command::Detach(command) => command.run(context).await?,
        Command::Fdb(command) => command.run(context).await?,
        Command::Neighbor(command) => command.run(context).await?,
        Command::Connection(command) => command.run(context).await?,
        Command::Host(command) => command.run(context).await?,
        Command::Trace(command) => command.run(context).await?,
        Command::Drops(command) => command.run(context).await?,
        Command::Capture(command) => command.run(context).await?,
        Command::Worker(command) => command.run(context).await?,
        Command::Top(command) => command.run(context).await?,
        Command::Doctor(command) => return command.run(context).await,
        Command::Log(command) => command.run(context).await?,
        Command::Watch(command) => command.run(context).await?,
        Command::Cleanup(command) => command.run(context).await?,
        Command::Completions(command) => command.run()?,
        Command::Man(command) => command.run()?,
        Command::Docs => output::print(&docs::commands())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Says whether the reader of our output has gone, which is its right: `vsctl watch | head -1`.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    kind == Some(io::ErrorKind::BrokenPipe)
}

fn error_as_json(error: &anyhow::Error) -> Value {
    let (message, details) = match error.downcast_ref::<ApiError>() {
        Some(ApiError::Refused { message, details, .. }) => (message.clone(), details.clone()),
        _ => (format!("{error:#}"), Vec::new()),
    };
    json!({"error": {"message": message, "details": details}})
}
