//! The whole switch on the real kernel: `vswitchd` in a namespace that plays the host, and containers around it.
//!
//! A [`Net`] has a namespace `host`, where the daemon runs with its own socket, store and configuration file, and
//! one namespace for each `@name` that its configuration mentions. Everything is named after this process
//! (`vst<pid>-<n>`), and all of it is removed when the `Net` is dropped, also by a panic; what a killed run left is
//! removed by the next one. The machine's own namespace is never touched.
//!
//! Tests need root, and say so. They take turns (one `Net` at a time in a process): their deadlines are generous,
//! but two of them on two cores would measure each other. Nothing sleeps for a result: [`wait_for`] asks until a
//! deadline.

mod api;
mod frames;
pub mod outside;
pub mod overlay;
mod process;
mod service;
mod space;
mod transfer;
pub mod ways;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

pub use api::Refused;
pub use frames::{Wire, arp_request, ethernet, tagged, udp4};
pub use process::{Ears, Running};
pub use service::{Call, Caller, Proto, Service, ask, at};
pub use space::Space;
pub use transfer::{Pulse, transfer};

/// What all names begin with; the process id follows.
const PREFIX: &str = "vst";
/// How long anything may take that should be done at once, on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(20);

static TURN: Mutex<()> = Mutex::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A switch with namespaces around it. See the module header.
pub struct Net {
    tag: String,
    directory: PathBuf,
    host: Arc<Space>,
    spaces: Mutex<BTreeMap<String, Arc<Space>>>,
    daemon: Option<Running>,
    starts: u32,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Net {
    /// Makes the namespace of the host; no daemon runs yet.
    pub fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces and needs root");
        space::remove_leftovers(PREFIX);
        Self::of_turn(Some(turn))
    }

    /// Makes another host, with a switch and namespaces of its own, within this one's turn: it goes first.
    pub fn beside(&self) -> Self {
        Self::of_turn(None)
    }

    fn of_turn(turn: Option<MutexGuard<'static, ()>>) -> Self {
        let tag = format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&tag);
        std::fs::create_dir_all(&directory).expect("the directory for temporary files can be written");
        let host = Arc::new(Space::new(&format!("{tag}-host")));
        host.run("ip link set lo up");
        let net =
            Self { tag, directory, host, spaces: Mutex::default(), daemon: None, starts: 0, _turn: turn };
        net.write_config("");
        net
    }

    /// Makes a switch that runs with `config`, and waits until all its ports are up.
    pub fn with(config: &str) -> Self {
        let mut net = Self::new();
        net.write_config(config);
        net.start();
        net.ready();
        net
    }

    /// Returns the name of the switch, which every name made here begins with.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Returns a path in this net's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Returns the namespace where the daemon runs.
    pub fn host(&self) -> Arc<Space> {
        Arc::clone(&self.host)
    }

    /// Returns the namespace `name`, which is made at its first mention.
    pub fn space(&self, name: &str) -> Arc<Space> {
        let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || Arc::new(Space::new(&format!("{}-{name}", self.tag)));
        Arc::clone(spaces.entry(name.to_owned()).or_insert_with(make))
    }

    /// Removes the namespace `name`, with all that is in it.
    pub fn remove_space(&self, name: &str) {
        let space = self.spaces.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        drop(space);
    }

    /// Returns `text` with every `@name` replaced by the namespace's real name; the namespace is made.
    pub fn expand(&self, text: &str) -> String {
        let mut pieces = text.split('@');
        let mut expanded = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let end = piece.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(piece.len());
            expanded.push_str(self.space(&piece[..end]).name());
            expanded.push_str(&piece[end..]);
        }
        expanded
    }

    /// Writes the daemon's configuration file; `@name` stands for a namespace.
    pub fn write_config(&self, config: &str) {
        self.write("vswitch.toml", config);
    }

    /// Writes a file in this net's directory and returns its path; `@name` stands for a namespace.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, self.expand(text)).expect("the directory is ours");
        path.display().to_string()
    }

    /// Returns the command that runs the daemon in the host's namespace, behind `wrapper` when there is one.
    pub fn daemon_command(&self, wrapper: &[&str]) -> Command {
        let mut words = wrapper.to_vec();
        let vswitchd = binary("vswitchd").display().to_string();
        words.push(&vswitchd);
        let mut command = self.host.command(&words);
        command.arg("--config").arg(self.path("vswitch.toml"));
        command.arg("--socket").arg(self.socket()).arg("--state-dir").arg(self.path("state"));
        command.args(["--name", &self.tag]);
        command
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) {
        assert!(self.daemon.is_none(), "the daemon runs already");
        self.starts += 1;
        let log = self.path(&format!("daemon{}.log", self.starts));
        let mut daemon = Running::start(self.daemon_command(&[]), "vswitchd", &log);
        let end = Instant::now() + PATIENCE;
        while self.api("GET", "/v1/status", None).is_err() {
            assert!(daemon.is_alive(), "vswitchd ended at once:\n{}", daemon.log());
            assert!(Instant::now() < end, "vswitchd does not answer:\n{}", daemon.log());
            thread::sleep(Duration::from_millis(5));
        }
        self.daemon = Some(daemon);
    }

    /// Waits until every port is up.
    pub fn ready(&self) {
        let mut last = Value::Null;
        let all_up = wait_until(PATIENCE, || {
            last = self.get("/v1/ports");
            last.as_array().is_some_and(|ports| ports.iter().all(|port| port["state"] == "up"))
        });
        assert!(all_up, "not every port is up: {last:#}\n{}", self.log());
    }

    /// Returns the daemon's process id.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").pid()
    }

    /// Says whether the daemon has neither ended nor been ended.
    pub fn is_alive(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(Running::is_alive)
    }

    /// Ends the daemon by SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.daemon.take().expect("the daemon runs").end(Signal::SIGKILL);
    }

    /// Ends the daemon by SIGTERM, and expects it to say that all went well.
    pub fn stop(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        let code = daemon.end(Signal::SIGTERM);
        assert_eq!(code, Some(0), "vswitchd did not end well:\n{}", daemon.log());
    }

    /// Makes the daemon read its configuration file again.
    pub fn reload(&self) {
        self.daemon.as_ref().expect("the daemon runs").signal(Signal::SIGHUP);
    }

    /// Returns what the daemon has logged since it was started last.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path(&format!("daemon{}.log", self.starts))).unwrap_or_default()
    }

    /// Returns the path of the API socket.
    pub fn socket(&self) -> PathBuf {
        self.path("vswitch.sock")
    }

    /// Asks the daemon by its API.
    ///
    /// # Errors
    /// It refuses, or does not answer.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Refused> {
        api::ask(&self.socket(), method, path, body)
    }

    /// Returns what the API says at `path`.
    pub fn get(&self, path: &str) -> Value {
        self.api("GET", path, None).unwrap_or_else(|refused| panic!("GET {path}: {refused}\n{}", self.log()))
    }

    /// Runs `vsctl` with the words of `line`; `@name` stands for a namespace.
    pub fn vsctl_output(&self, line: &str) -> Output {
        let line = self.expand(line);
        Command::new(binary("vsctl"))
            .args(line.split_whitespace())
            .env("VSWITCH_SOCKET", self.socket())
            .stdin(Stdio::null())
            .output()
            .expect("vsctl runs")
    }

    /// Runs `vsctl --json` with the words of `line`, expects success, and returns the answer.
    pub fn vsctl(&self, line: &str) -> Value {
        let output = self.vsctl_output(&format!("{line} --json"));
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "vsctl {line}: {errors}\n{}", self.log());
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Runs `vsctl` with the words of `line`, expects a refusal (exit code 1), and returns what it says.
    pub fn refused(&self, line: &str) -> String {
        let output = self.vsctl_output(line);
        let (out, errors) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "vsctl {line} was not refused: {out}{errors}");
        errors
    }

    /// Applies a configuration; expects success, and waits until all ports are up.
    pub fn apply(&self, config: &str) {
        let file = self.write("apply.toml", config);
        self.vsctl(&format!("apply {file}"));
        self.ready();
    }

    /// Applies a configuration that must be refused, and returns what is said about it.
    pub fn apply_refused(&self, config: &str) -> String {
        let file = self.write("bad.toml", config);
        self.refused(&format!("apply {file}"))
    }

    /// Returns what the switch says about a port.
    pub fn port(&self, name: &str) -> Value {
        self.get(&format!("/v1/ports/{name}"))
    }

    /// Returns a counter of a port.
    pub fn counter(&self, port: &str, counter: &str) -> u64 {
        self.port(port)["counters"][counter].as_u64().unwrap_or_else(|| panic!("no counter {counter}"))
    }

    /// Returns how many frames that came in by `port` were dropped for `reason`.
    pub fn dropped(&self, port: &str, reason: &str) -> u64 {
        let drops = self.get("/v1/drops");
        let all = drops["drops"].as_array().cloned().unwrap_or_default();
        let matching = all.iter().filter(|drop| drop["port"] == port && drop["reason"] == reason);
        matching.filter_map(|drop| drop["frames"].as_u64()).sum()
    }

    /// Waits until every frame is accounted for and none is on its way, and returns the books.
    pub fn balance(&self) -> Value {
        let mut last = Value::Null;
        let balanced = wait_until(PATIENCE, || {
            last = self.get("/v1/drops");
            let of = |name: &str| last["ledger"][name].as_i64().unwrap_or(-1);
            of("queued") == 0 && of("received") + of("created") == of("sent") + of("dropped") + of("consumed")
        });
        assert!(balanced, "the books do not balance: {last:#}");
        last["ledger"].clone()
    }

    /// Returns the daemon's resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the daemon runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("every process has it");
        line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).expect("a number") * 1024
    }

    /// Returns how long a thread of the daemon was ready to run and had no CPU, since it started.
    pub fn waited(&self, thread: &str) -> Duration {
        let tasks = format!("/proc/{}/task", self.pid());
        let entries = std::fs::read_dir(tasks).expect("the daemon runs").flatten();
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let found = entries.map(|entry| entry.path()).find(|task| read(task.join("comm")).trim() == thread);
        let figures = read(found.unwrap_or_else(|| panic!("no thread {thread}")).join("schedstat"));
        let waited = figures.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        Duration::from_nanos(waited.unwrap_or(0))
    }

    /// Expects that `to` answers a ping from the namespace `from`, within the usual patience.
    pub fn ping(&self, from: &str, to: &str) {
        let space = self.space(from);
        let line = format!("ping -n -c 1 -W 1 {to}");
        assert!(
            wait_until(PATIENCE, || space.output(&line).status.success()),
            "{from} does not reach {to}; its interface: {}\ndrops: {:#}\n{}",
            text(&space.output("ip addr").stdout),
            self.get("/v1/drops"),
            self.log()
        );
    }

    /// Returns what the links of every namespace here are, with their addresses: what a refused change, or a
    /// restart, leaves alone. What the kernel changes by itself, such as carrier and link-local addresses, is
    /// left out.
    pub fn picture(&self) -> BTreeMap<String, Vec<String>> {
        let spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<_> = spaces.values().map(|space| space.name().to_owned()).collect();
        names.extend([self.host.name().to_owned(), format!("vswitch-{}", self.tag)]);
        names.into_iter().map(|name| (name.clone(), space::picture(&name))).collect()
    }
}

impl Default for Net {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(40)..].iter().fold(String::new(), |mut all, line| {
                let _ = writeln!(all, "  {line}");
                all
            });
            eprintln!("--- the last lines of vswitchd of {}:\n{last}---", self.tag);
        }
        if let Some(mut daemon) = self.daemon.take() {
            daemon.end(Signal::SIGKILL);
        }
        // The switch's own namespace goes with what is in it, and so do the far ends with theirs.
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner).clear();
        space::remove(&format!("vswitch-{}", self.tag));
        space::remove_pins(&self.tag);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Asks until the answer is yes; says whether it came within `patience`.
pub fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    let mut pause = Duration::from_millis(2);
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Waits until `done`, and panics with `what` when it does not come within the usual patience.
pub fn wait_for(what: &str, done: impl FnMut() -> bool) {
    assert!(wait_until(PATIENCE, done), "it did not come true within {PATIENCE:?}: {what}");
}

/// Expects that programs are installed.
pub fn need(programs: &[&str]) {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &&&str| !std::env::split_paths(&paths).any(|path| path.join(program).exists());
    let missing: Vec<_> = programs.iter().filter(is_there).collect();
    assert!(missing.is_empty(), "missing, install them (tools/test does): {missing:?}");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the path of a program of this workspace, built from the present sources.
pub fn binary(name: &str) -> PathBuf {
    static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(build);
    DIRECTORY.join(name)
}

/// Cargo gives a test no path to the programs of other packages, and builds them only with the whole workspace:
/// when a source is younger than they are, it is asked to.
fn build() -> PathBuf {
    let test = std::env::current_exe().expect("this process has a program");
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/test").to_owned();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let built = ["vswitchd", "vsctl", "vspktgen"]
        .map(|name| std::fs::metadata(profile.join(name)).and_then(|metadata| metadata.modified()).ok());
    let oldest = built.into_iter().min().flatten();
    let sources = ["packet", "config", "ports", "pipeline", "vswitch", "tools"];
    let newest = sources.iter().filter_map(|name| newest_source(&root.join(name).join("src"))).max();
    if oldest.is_some() && oldest >= newest {
        return profile;
    }
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(["build", "-q", "-p", "vswitch", "-p", "tools", "--bins"]);
    command.arg("--target-dir").arg(profile.parent().expect("target"));
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let output = command.stdin(Stdio::null()).output().expect("cargo runs");
    assert!(output.status.success(), "the programs do not build:\n{}", text(&output.stderr));
    profile
}

fn newest_source(directory: &Path) -> Option<std::time::SystemTime> {
    let entries = std::fs::read_dir(directory).ok()?.flatten();
    let newest = entries.filter_map(|entry| match entry.file_type().ok()?.is_dir() {
        true => newest_source(&entry.path()),
        false => entry.metadata().ok()?.modified().ok(),
    });
    newest.max()
}
