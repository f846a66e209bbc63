//! vswitchd: reads its arguments and its configuration, checks what it may do, and runs.
//!
//! Exit codes: 0 after SIGTERM or SIGINT and for `--check` of a good file; 1 when it cannot run, with the reason on
//! stderr; 2 for wrong arguments.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Parser;
use config::{Document, LogLevel};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use vswitch::front::api;
use vswitch::manager::change::Who;
use vswitch::manager::start::{Options, Started};
use vswitch::manager::{Manager, Shared, upkeep};

/// Read when there is no `--config`.
const DEFAULT_CONFIG: &str = "/etc/vswitch/vswitch.toml";

/// How long a stop waits for a change under way.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// A userspace packet switch for container hosts.
#[derive(Debug, Parser)]
#[command(name = "vswitchd", version, about)]
struct Args {
    /// Configuration file [default: /etc/vswitch/vswitch.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Path of the API socket, in place of `[daemon] socket`
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Directory of the store, in place of `[daemon] state_dir`
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Name of the switch, in place of `[daemon] name`
    #[arg(long)]
    name: Option<String>,
    /// Checks the configuration file and exits
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vswitchd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let (config_file, document) = read_config(args.config.as_deref())?;
    if args.check {
        match config_file {
            Some(path) => println!("{}: good", path.display()),
            None => println!("no configuration file: the defaults are good"),
        }
        return Ok(());
    }
    log_to_stderr(document.daemon.log);
    vswitch::doctor::check_privileges()?;
    let name = match args.name.or_else(|| document.daemon.name.clone()) {
        Some(name) => name,
        None => host_name()?,
    };
    let socket = args.socket.unwrap_or_else(|| document.daemon.socket.clone());
    let state_dir = args.state_dir.unwrap_or_else(|| document.daemon.state_dir.clone());
    let options = Options { config_file, document, name, state_dir };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(options, &socket))
}

/// Reads the file that `--config` names, or the default one if it exists.
fn read_config(path: Option<&Path>) -> anyhow::Result<(Option<PathBuf>, Document)> {
    let path = match path {
        Some(path) => path,
        None if Path::new(DEFAULT_CONFIG).exists() => Path::new(DEFAULT_CONFIG),
        None => return Ok((None, Document::default())),
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    match Document::parse(&text, &path.display().to_string()) {
        Ok(document) => Ok((Some(path.to_owned()), document)),
        Err(found) => bail!("the configuration is not valid\n{}", found.render(false)),
    }
}

fn log_to_stderr(level: LogLevel) {
    let level = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    // A journal or a file wants no colours.
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .init();
}

fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host's name")?;
    let name: String =
        name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
    Ok(if name.is_empty() { "vswitch".to_owned() } else { name })
}

async fn serve(options: Options, socket: &Path) -> anyhow::Result<()> {
    // First of all: a second daemon must not touch the devices of the one that runs.
    let listener = api::listen(socket).await?;
    let document = options.document.clone();
    let Started { mut manager, listener: workers, news } = Manager::start(options).await?;
    tokio::spawn(workers.run());
    let watch = match manager.devices.watch().await {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::error!(%error, "devices that vanish will be noticed late");
            None
        }
    };
    manager.resume(&document).await?;
    let crew = Arc::clone(&manager.crew);
    let manager: Shared = Arc::new(tokio::sync::Mutex::new(manager));
    let server = api::serve(listener, Arc::clone(&manager)).await;
    tokio::spawn(upkeep::run(Arc::clone(&manager), news, watch));

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => {
                manager.lock().await.reload(Who::Daemon).await;
            }
        }
    }
    tracing::info!("stopping; devices stay for the next start");
    server.abort();
    // A change under way comes to its end first, unless it hangs.
    let settled = tokio::time::timeout(PATIENCE, manager.lock()).await;
    crew.stop().await;
    if let Ok(mut manager) = settled {
        manager.keep_connections();
    }
    let _ = std::fs::remove_file(socket);
    Ok(())
}
