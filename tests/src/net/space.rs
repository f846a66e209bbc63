//! A network namespace of a test's own, and what is run inside it.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::text;

/// A namespace that `ip netns` knows. It is removed with all that is in it when the value is dropped.
#[derive(Debug)]
pub struct Space {
    name: String,
}

impl Space {
    /// Makes a namespace.
    pub fn new(name: &str) -> Self {
        let output = Command::new("ip").args(["netns", "add", name]).output().expect("ip is installed");
        assert!(output.status.success(), "cannot make namespace {name}: {}", text(&output.stderr));
        Self { name: name.to_owned() }
    }

    /// Returns the name that `ip netns` knows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the file that stands for it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Does `work` in a thread that has entered the namespace. Sockets made there stay in it wherever they go.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let work = || {
            let file = std::fs::File::open(self.path()).expect("the namespace is there");
            setns(file, CloneFlags::CLONE_NEWNET).expect("root enters any namespace");
            work()
        };
        let done = thread::scope(|scope| scope.spawn(work).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Returns a command of these words, to be run inside. It ends when this thread does, whatever happens.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display()));
        command.args(["setpriv", "--pdeathsig", "KILL", "--"]).args(words).stdin(Stdio::null());
        command
    }

    /// Runs the words of `line` inside.
    pub fn output(&self, line: &str) -> Output {
        let words: Vec<_> = line.split_whitespace().collect();
        self.command(&words).output().unwrap_or_else(|error| panic!("cannot run `{line}`: {error}"))
    }

    /// Runs the words of `line` inside, expects success, and returns what it prints.
    pub fn run(&self, line: &str) -> String {
        let output = self.output(line);
        let (out, errors) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "`{line}` in {}: {out}{errors}", self.name);
        out
    }

    /// Returns the MAC address of an interface.
    pub fn mac(&self, interface: &str) -> packet::MacAddr {
        let links = self.run(&format!("ip -o link show dev {interface}"));
        let mac = links.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
        mac.and_then(|mac| mac.parse().ok()).unwrap_or_else(|| panic!("{interface} has no MAC: {links}"))
    }

    /// Returns a counter of the kernel, as `Ip` and `InReceives` in /proc/net/snmp.
    pub fn snmp(&self, group: &str, name: &str) -> u64 {
        // The file shows the namespace of the thread that reads it.
        let file =
            self.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp").expect("it is there"));
        let mut lines = file.lines().filter(|line| line.starts_with(&format!("{group}:")));
        let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let found = names.split_whitespace().zip(values.split_whitespace()).find(|(key, _)| *key == name);
        found.and_then(|(_, value)| value.parse().ok()).unwrap_or_else(|| panic!("no {group} {name}: {file}"))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Returns the links of a namespace with MTU, MAC and flags that are set on purpose, and the addresses; in order.
pub(super) fn picture(name: &str) -> Vec<String> {
    let show = |what: &str| {
        let output = Command::new("ip").args(["-n", name, "-o", what]).output().expect("ip is installed");
        text(&output.stdout)
    };
    let link = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let after = |key: &str| words.iter().skip_while(|word| **word != key).nth(1).copied();
        let up = words.get(2).is_some_and(|flags| flags.contains("UP"));
        let (index, name) = (words.first().copied().unwrap_or("?"), words.get(1).copied().unwrap_or("?"));
        format!("{index} {name} mtu {:?} mac {:?} up {up}", after("mtu"), after("link/ether"))
    };
    let address = |line: &str| line.split_whitespace().take(4).collect::<Vec<_>>().join(" ");
    let (links, addresses) = (show("link"), show("addr"));
    let mut lines: Vec<_> = links.lines().map(link).collect();
    lines.extend(addresses.lines().filter(|line| !line.contains(" fe80:")).map(address));
    lines.sort();
    lines
}

/// Removes a namespace if it is there.
pub(super) fn remove(name: &str) {
    if PathBuf::from("/run/netns").join(name).exists() {
        let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
    }
}

/// Removes what a switch keeps outside of its namespaces: pinned programs, and the
/// notes of the L4 ports it reserved and of its connections.
pub(super) fn remove_pins(switch: &str) {
    let run = PathBuf::from("/run/vswitch");
    let _ = std::fs::remove_dir_all(run.join("bpf").join(switch));
    for name in ["reserved", "connections", "connections.new"] {
        let _ = std::fs::remove_file(run.join(format!("{switch}.{name}")));
    }
}

/// Removes the namespaces of runs that were killed, and their pins: those whose name has the id of a process that is no more.
pub(super) fn remove_leftovers(prefix: &str) {
    let names = |directory: &str| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let is_over = |name: &str| {
        let ours = name.strip_prefix("vswitch-").unwrap_or(name).strip_prefix(prefix);
        let pid = ours.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        pid.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists())
    };
    names("/run/netns").iter().filter(|name| is_over(name)).for_each(|name| remove(name));
    names("/run/vswitch/bpf").iter().filter(|name| is_over(name)).for_each(|name| remove_pins(name));
}
