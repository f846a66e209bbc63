//! Namespaces and processes of one measurement, and their removal whatever happens.
//!
//! A [`Lab`] has three namespaces: `host`, where the switch runs, and two for the ends. Dropping it ends its
//! processes by their ids and removes the namespaces, and with them every device. What is alive is also noted
//! in a process-wide list, which is cleared by a signal's thread or the panic hook. Processes die with us
//! (`setpriv --pdeathsig`). Namespaces carry our process id: those of a run that was killed are known as such.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::Setting;

const PREFIX: &str = "vcmp";
/// Addresses of the two ends.
pub(crate) const ADDRESSES: [&str; 2] = ["10.77.0.11", "10.77.0.12"];

/// What must be gone when this process ends.
static ALIVE: Mutex<(Vec<i32>, Vec<String>, Vec<PathBuf>)> = Mutex::new((Vec::new(), Vec::new(), Vec::new()));

fn alive() -> std::sync::MutexGuard<'static, (Vec<i32>, Vec<String>, Vec<PathBuf>)> {
    ALIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a signal, and a panic, clean up before the process ends.
pub(crate) fn clean_at_exit() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    thread::spawn(move || {
        let _ = signals.wait();
        eprintln!("\ncompare: ended by a signal, cleaning up");
        clean();
        std::process::exit(130);
    });
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before(info);
        clean();
    }));
    Ok(())
}

fn clean() {
    let (pids, namespaces, directories) = std::mem::take(&mut *alive());
    for pid in pids {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for name in namespaces {
        remove_namespace(&name);
    }
    for directory in directories {
        let _ = std::fs::remove_dir_all(directory);
    }
    forget_switches();
}

/// The name of this run, which everything that it makes begins with.
fn own_name() -> String {
    format!("{PREFIX}{}", std::process::id())
}

/// The name of the switch of a host; there are two hosts at most.
fn switch_name(host: usize) -> String {
    if host == 0 { own_name() } else { format!("{}-g", own_name()) }
}

fn forget_switches() {
    for host in [0, 1] {
        forget_switch(&switch_name(host));
    }
}

/// Removes what a switch keeps when it ends, for its next start: pins, and files beside them.
fn forget_switch(name: &str) {
    let directory = Path::new("/run/vswitch");
    let _ = std::fs::remove_dir_all(directory.join("bpf").join(name));
    for suffix in ["connections", "connections.new", "reserved"] {
        let _ = std::fs::remove_file(directory.join(format!("{name}.{suffix}")));
    }
}

/// Removes namespaces and directories of runs that were killed. Their processes died with them.
pub(crate) fn clean_leftovers() {
    let names = |directory: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let left = |name: &String| {
        let ours = name.strip_prefix("vswitch-").unwrap_or(name).strip_prefix(PREFIX);
        let pid = ours.and_then(|rest| rest.split(['-', '.']).next()?.parse::<u32>().ok());
        pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    };
    for name in names(Path::new("/run/netns")).into_iter().filter(left) {
        eprintln!("compare: removing {name}, left by a run that was killed");
        remove_namespace(&name);
    }
    for directory in ["/run/vswitch", "/run/vswitch/bpf"] {
        for name in names(Path::new(directory)).into_iter().filter(left) {
            forget_switch(name.split('.').next().unwrap_or(&name));
        }
    }
    let directory = std::env::temp_dir();
    for name in names(&directory).into_iter().filter(left) {
        let _ = std::fs::remove_dir_all(directory.join(name));
    }
}

fn remove_namespace(name: &str) {
    let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
}

/// What the figures were measured on.
pub(crate) fn machine() -> BTreeMap<&'static str, String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let version = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or("not installed").to_owned()
    };
    BTreeMap::from([
        ("cpu", model.unwrap_or("unknown").to_owned()),
        ("cpus", thread::available_parallelism().map_or(0, usize::from).to_string()),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("load", read("/proc/loadavg").trim().to_owned()),
        ("date", version("date", "-uIseconds")),
        ("openvswitch", version("ovs-vswitchd", "--version")),
        ("iperf3", version("iperf3", "--version")),
    ])
}

/// Runs a command to its end and returns what it wrote.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        // iperf3 -J tells its errors on stdout.
        let said = if errors.trim().is_empty() { &text } else { &*errors };
        let last: Vec<_> = said.trim().lines().rev().take(3).collect();
        let name = command.get_program().to_string_lossy();
        bail!("{name}: {}", last.into_iter().rev().collect::<Vec<_>>().join("; "));
    }
    Ok(text)
}

/// Runs `ip`, or another program, with words separated by blanks.
pub(crate) fn sh(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command")?;
    output(Command::new(program).args(words)).with_context(|| format!("`{line}`"))
}

/// Three namespaces, what runs in them, and a directory for files.
#[derive(Debug)]
pub(crate) struct Lab {
    pub host: String,
    pub ends: [String; 2],
    pub directory: PathBuf,
    children: Vec<Child>,
    /// Namespaces that a subject made by itself.
    others: Vec<String>,
}

impl Lab {
    pub(crate) fn new() -> Result<Self> {
        let base = own_name();
        let directory = std::env::temp_dir().join(&base);
        let lab = Self {
            host: format!("{base}-h"),
            ends: [format!("{base}-a"), format!("{base}-b")],
            directory,
            children: Vec::new(),
            others: Vec::new(),
        };
        std::fs::create_dir_all(&lab.directory)?;
        alive().2.push(lab.directory.clone());
        for name in [&lab.host, &lab.ends[0], &lab.ends[1]] {
            make_namespace(name)?;
        }
        Ok(lab)
    }

    /// The name of this run, for what a subject names by itself.
    pub(crate) fn name(&self) -> String {
        own_name()
    }

    /// The name of the switch of the first or second host.
    pub(crate) fn switch_name(&self, host: usize) -> String {
        switch_name(host)
    }

    /// Makes another namespace, removed with the lab.
    pub(crate) fn add_namespace(&mut self, suffix: &str) -> Result<String> {
        let name = format!("{}-{suffix}", self.name());
        self.others.push(name.clone());
        make_namespace(&name)?;
        Ok(name)
    }

    /// Notes a namespace that a subject will make.
    pub(crate) fn adopt_namespace(&mut self, name: String) {
        alive().1.push(name.clone());
        self.others.push(name);
    }

    /// A command that runs in `namespace`, on `cpu` if one is given, and dies with us.
    pub(crate) fn command(namespace: &str, cpu: Option<usize>, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{namespace}"));
        command.args(["setpriv", "--pdeathsig", "KILL"]);
        if let Some(cpu) = cpu {
            command.args(["taskset", "-c", &cpu.to_string()]);
        }
        command.arg(program.as_ref());
        command
    }

    /// Starts a command that runs until the lab is dropped; what it writes goes to a file.
    pub(crate) fn spawn(&mut self, mut command: Command, log: &str) -> Result<u32> {
        let file = std::fs::File::create(self.directory.join(log))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let pid = child.id();
        alive().0.push(i32::try_from(pid)?);
        self.children.push(child);
        Ok(pid)
    }

    /// Returns the end of a log, for an error text.
    pub(crate) fn log_tail(&self, log: &str) -> String {
        let text = std::fs::read_to_string(self.directory.join(log)).unwrap_or_default();
        let lines: Vec<_> = text.trim().lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("; ")
    }

    /// Joins each end to the host namespace by a veth pair: `p0` and `p1` there, `eth0` inside.
    pub(crate) fn add_veths(&self) -> Result<()> {
        for (n, end) in self.ends.iter().enumerate() {
            sh(&format!("ip -n {} link add p{n} type veth peer name eth0 netns {end}", self.host))?;
            sh(&format!("ip -n {} link set p{n} up", self.host))?;
        }
        self.configure_ends()
    }

    /// Gives the ends their addresses.
    pub(crate) fn configure_ends(&self) -> Result<()> {
        for (end, address) in self.ends.iter().zip(ADDRESSES) {
            sh(&format!("ip -n {end} addr add {address}/24 dev eth0"))?;
            sh(&format!("ip -n {end} link set eth0 up"))?;
        }
        Ok(())
    }

    /// Turns an offload of both ends off.
    pub(crate) fn offload_off(&self, offload: &str) -> Result<()> {
        for end in &self.ends {
            output(Self::command(end, None, "ethtool").args(["-K", "eth0", offload, "off"]))?;
        }
        Ok(())
    }

    /// Waits until the ends reach each other.
    pub(crate) fn wait_for_path(&self) -> Result<()> {
        Self::wait_for(&self.ends[0], ADDRESSES[1])
    }

    /// Waits until `address` answers in the namespace `from`.
    pub(crate) fn wait_for(from: &str, address: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            let mut ping = Self::command(from, None, "ping");
            match output(ping.args(["-c", "1", "-W", "1", address])) {
                Ok(_) => return Ok(()),
                Err(_) if start.elapsed() < Duration::from_secs(8) => {
                    thread::sleep(Duration::from_millis(50));
                }
                Err(_) => bail!("{address} does not answer"),
            }
        }
    }

    /// Returns one value of `ip -s -j link show eth0` in an end.
    pub(crate) fn link(&self, end: usize, pointer: &str) -> Result<serde_json::Value> {
        let text = sh(&format!("ip -n {} -s -j link show eth0", self.ends[end]))?;
        let value: serde_json::Value = serde_json::from_str(&text)?;
        value.pointer(pointer).cloned().with_context(|| format!("ip shows no {pointer}"))
    }
}

fn make_namespace(name: &str) -> Result<()> {
    alive().1.push(name.to_owned());
    sh(&format!("ip netns add {name}"))?;
    sh(&format!("ip -n {name} link set lo up"))?;
    // Router solicitations and the like are noise in a measurement.
    let quiet = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; \
                 echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6";
    output(Lab::command(name, None, "sh").args(["-c", quiet])).map(drop)
}

fn end_child(mut child: Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let start = Instant::now();
        while matches!(child.try_wait(), Ok(None)) {
            if start.elapsed() > Duration::from_secs(3) {
                let _ = child.kill();
            }
            thread::sleep(Duration::from_millis(5));
        }
        alive().0.retain(|other| *other != pid);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The last one started goes first: a switch before its database.
        while let Some(child) = self.children.pop() {
            end_child(child);
        }
        for name in self.others.iter().chain([&self.host, &self.ends[0], &self.ends[1]]) {
            remove_namespace(name);
        }
        let _ = std::fs::remove_dir_all(&self.directory);
        forget_switches();
        let mut alive = alive();
        alive.1.clear();
        alive.2.clear();
    }
}

/// Waits until `done`, at most `seconds`.
pub(crate) fn wait_until(seconds: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > Duration::from_secs(seconds) {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

/// A [`Lab`] with a subject running in it.
#[derive(Debug)]
pub(crate) struct Running {
    pub lab: Lab,
    pub setting: Setting,
}
