//! A host in a namespace: the daemon, its containers, its API, and their removal.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use serde_json::Value;
use vswitch::devices::Namespace;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Tests that count losses need the CPUs for themselves: they hold this for writing, all others for reading.
static QUIET: RwLock<()> = RwLock::new(());

/// Which of the two a host holds; nobody reads it.
#[expect(dead_code, reason = "held for what its end does")]
enum Share {
    Alone(RwLockWriteGuard<'static, ()>),
    Together(RwLockReadGuard<'static, ()>),
    Second,
}

/// A daemon in a namespace, and containers. Everything is removed when it is dropped.
pub(crate) struct Host {
    /// Unique; part of every name.
    pub(crate) tag: String,
    directory: PathBuf,
    daemon: Option<Child>,
    containers: Vec<String>,
    _share: Share,
}

/// Runs a command and returns what it printed.
pub(crate) fn run(command: &str) -> String {
    let output = Command::new("sh").arg("-c").arg(command).output().expect("a shell");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Waits until `condition` holds.
pub(crate) fn wait_for(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < patience, "{what} did not happen within {patience:?}");
        sleep(Duration::from_millis(10));
    }
}

impl Host {
    /// Makes a host without a daemon.
    pub(crate) fn new() -> Self {
        Self::sharing(Share::Together(QUIET.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Makes a host while no other test runs.
    pub(crate) fn alone() -> Self {
        Self::sharing(Share::Alone(QUIET.write().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Makes a second host in the same test.
    pub(crate) fn second() -> Self {
        Self::sharing(Share::Second)
    }

    fn sharing(share: Share) -> Self {
        assert!(Uid::effective().is_root(), "SKIP: needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN)");
        let tag = format!("vt{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&tag);
        fs::create_dir_all(&directory).expect("a directory");
        let host = Self { tag: tag.clone(), directory, daemon: None, containers: Vec::new(), _share: share };
        run(&format!("ip netns add {tag}h"));
        run(&format!("ip -n {tag}h link set lo up"));
        host
    }

    /// Makes a namespace that plays a container and returns its name.
    pub(crate) fn container(&mut self, name: &str) -> String {
        let full = format!("{}{name}", self.tag);
        run(&format!("ip netns add {full} && ip -n {full} link set lo up"));
        self.containers.push(full.clone());
        full
    }

    /// Deletes a container's namespace.
    pub(crate) fn delete_container(&mut self, full: &str) {
        self.containers.retain(|other| other != full);
        run(&format!("ip netns del {full}"));
    }

    /// Forgets a container that was deleted otherwise.
    pub(crate) fn delete_container_record(&mut self, full: &str) {
        self.containers.retain(|other| other != full);
    }

    /// Returns the path of the configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.join("vswitch.toml")
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("sock")
    }

    /// Returns `[daemon]` and then `rest`.
    pub(crate) fn toml(&self, rest: &str) -> String {
        let directory = self.directory.display();
        format!(
            "[daemon]\nname = \"{}\"\nsocket = \"{directory}/sock\"\nstate_dir = \"{directory}/state\"\n{rest}",
            self.tag
        )
    }

    /// Writes the configuration file.
    pub(crate) fn write_config(&self, rest: &str) {
        fs::write(self.config(), self.toml(rest)).expect("written");
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) fn start(&mut self) {
        self.spawn();
        wait_for("an answer", Duration::from_secs(10), || self.try_get("/v1/status").is_some());
    }

    /// Starts the daemon. `nsenter`, since `ip netns exec` gives the daemon a mount namespace of its own, with
    /// which the switch's namespace would go.
    pub(crate) fn spawn(&mut self) {
        let log =
            fs::File::options().create(true).append(true).open(self.directory.join("log")).expect("a log");
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}h", self.tag))
            .arg(env!("CARGO_BIN_EXE_vswitchd"))
            .arg("--config")
            .arg(self.config())
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .expect("the daemon starts");
        self.daemon = Some(child);
    }

    /// Sends the daemon a signal; `nsenter` has become it.
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.daemon.as_ref().expect("it runs");
        kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), signal).expect("sent");
    }

    /// Ends the daemon by a signal and waits until it is gone.
    pub(crate) fn stop(&mut self, signal: Signal) {
        self.signal(signal);
        let mut child = self.daemon.take().expect("it runs");
        let start = Instant::now();
        while child.try_wait().expect("a child").is_none() {
            assert!(start.elapsed() < Duration::from_secs(10), "the daemon does not end: {}", self.log());
            sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the daemon to end by itself and returns its exit code.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.daemon.take().expect("it runs").wait().expect("a child").code()
    }

    /// Returns what the daemon has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Asks the API; returns status and body.
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        self.try_request(method, path, body)
            .unwrap_or_else(|| panic!("no answer to {method} {path}: {}", self.log()))
    }

    fn try_request(&self, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        let len = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}"
        )
        .ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).ok()?;
        let (head, body) = reply.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, serde_json::from_str(body).ok()?))
    }

    /// Opens a reply that goes on, past its head.
    pub(crate) fn stream(&self, path: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).expect("it listens");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("asked");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a head");
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        stream
    }

    fn try_get(&self, path: &str) -> Option<Value> {
        self.try_request("GET", path, "").map(|(_, value)| value)
    }

    /// Gets what must be there.
    pub(crate) fn get(&self, path: &str) -> Value {
        let (status, value) = self.request("GET", path, "");
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    /// Posts what must be accepted.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Value {
        let (status, value) = self.request("POST", path, &body.to_string());
        assert_eq!(status, 200, "{path}: {value}\n{}", self.log());
        value
    }

    /// Returns the state of a port.
    pub(crate) fn state(&self, port: &str) -> String {
        self.get(&format!("/v1/ports/{port}"))["state"].as_str().unwrap_or("?").to_owned()
    }

    /// Checks that every frame is accounted for; the counters of a moment in traffic do not agree, so it waits for
    /// quiet.
    pub(crate) fn check_ledger(&self) {
        let balances = || {
            let ledger = &self.get("/v1/drops")["ledger"];
            let n = |key: &str| ledger[key].as_u64().expect("a count");
            n("received") + n("created") == n("sent") + n("dropped") + n("consumed") + n("queued")
        };
        wait_for("a balanced ledger", Duration::from_secs(5), balances);
    }

    /// Pings one by one and returns how many answers came. In one go, `ping` gives the last ones two round trips
    /// only, which is little on a busy machine.
    pub(crate) fn ping(&self, from: &str, to: &str, count: u32) -> u32 {
        let ping = || {
            Command::new("ip")
                .args(["netns", "exec", from, "ping", "-q", "-c", "1", "-W", "2", to])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .expect("ping")
        };
        (0..count).map(|_| u32::from(ping().success())).sum()
    }

    /// Runs something inside a namespace.
    pub(crate) fn inside<T: Send>(&self, netns: &str, action: impl FnOnce() -> T + Send) -> T {
        Namespace::resolve(netns).and_then(|namespace| namespace.run(action)).expect("the namespace")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
        let quiet = |command: String| {
            let _ = Command::new("sh").arg("-c").arg(command).stderr(Stdio::null()).status();
        };
        if let Some(mut child) = self.daemon.take() {
            let _ = self.try_request("POST", "/v1/cleanup", r#"{"force":true}"#);
            let _ = child.kill();
            let _ = child.wait();
        }
        quiet(format!("ip netns del vswitch-{}", self.tag));
        for container in &self.containers {
            quiet(format!("ip netns del {container}"));
        }
        quiet(format!("ip netns del {}h", self.tag));
        let _ = fs::remove_dir_all(&self.directory);
    }
}
