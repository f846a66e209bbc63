//! Processes of a test: what they write, and their end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PATIENCE, Space, text, wait_for, wait_until};

/// A process that runs beside the test. It is killed when the value is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    log: PathBuf,
    code: Option<Option<i32>>,
}

impl Running {
    /// Starts a command that writes into `log`.
    pub fn start(mut command: Command, name: &str, log: &Path) -> Self {
        let file = File::create(log).expect("the directory is ours");
        let again = file.try_clone().expect("a descriptor");
        let child = command.stdout(file).stderr(again).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { child, name: name.to_owned(), log: log.to_owned(), code: None }
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns what it has written.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| text(&bytes)).unwrap_or_default()
    }

    /// Says whether it has not ended.
    pub fn is_alive(&mut self) -> bool {
        self.code.is_none() && matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("a process id");
        let _ = kill(Pid::from_raw(pid), signal);
    }

    /// Sends it a signal, waits for its end, and returns its exit code.
    pub fn end(&mut self, signal: Signal) -> Option<i32> {
        if self.is_alive() {
            self.signal(signal);
        }
        self.wait()
    }

    /// Waits for its end and returns its exit code; `None` when a signal ended it.
    pub fn wait(&mut self) -> Option<i32> {
        if let Some(code) = self.code {
            return code;
        }
        if !wait_until(PATIENCE * 3, || !matches!(self.child.try_wait(), Ok(None))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.code = Some(None);
            assert!(thread::panicking(), "{} does not end:\n{}", self.name, self.log());
            return None;
        }
        let code = self.child.wait().ok().and_then(|status| status.code());
        self.code = Some(code);
        code
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_alive() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A `tcpdump` that listens.
#[derive(Debug)]
pub struct Ears {
    process: Running,
    capture: PathBuf,
}

impl Ears {
    /// Listens to what matches `filter` on an interface, and returns when it hears.
    pub fn listen(space: &Space, interface: &str, filter: &str, directory: &Path) -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let capture = directory.join(format!("{}-{interface}-{number}.pcap", space.name()));
        let file = capture.display().to_string();
        let mut words = vec!["tcpdump", "-i", interface, "-nn", "--immediate-mode", "-U", "-Z", "root"];
        words.extend(["-w", &file]);
        words.extend(filter.split_whitespace());
        let process = Running::start(space.command(&words), "tcpdump", &capture.with_extension("log"));
        wait_for("tcpdump listens", || process.log().contains("listening on"));
        Self { process, capture }
    }

    /// Returns what was heard until now, a line a frame, as tcpdump shows it with link headers.
    pub fn heard(&mut self) -> Vec<String> {
        // What the kernel has handed over already is written at once; this is for what it has not.
        thread::sleep(Duration::from_millis(200));
        self.process.end(Signal::SIGTERM);
        read_capture(&self.capture)
    }
}

/// Returns the frames of a capture file, a line each.
fn read_capture(path: &Path) -> Vec<String> {
    let output = Command::new("tcpdump").args(["-nn", "-e", "-r"]).arg(path).output().expect("tcpdump runs");
    assert!(output.status.success(), "tcpdump cannot read it: {}", text(&output.stderr));
    text(&output.stdout).lines().map(str::to_owned).collect()
}
