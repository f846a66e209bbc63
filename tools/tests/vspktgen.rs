//! vspktgen as a program: what it sends it finds again, and what it cannot do it says.
//!
//! The tests over devices need root and make their own network namespaces.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

fn vspktgen(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vspktgen"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    vspktgen(arguments).output().expect("the program runs")
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// Two namespaces for the ends of a path, and one for what is between; removed when dropped.
struct Pair {
    names: [String; 2],
    between: String,
}

impl Pair {
    /// Makes the namespaces; `None`, loudly, without root.
    fn empty(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP: needs root to make network namespaces");
            return None;
        }
        let base = format!("vpg{}-{test}", std::process::id());
        let pair = Self { names: [format!("{base}-a"), format!("{base}-b")], between: format!("{base}-h") };
        for name in pair.names.iter().chain([&pair.between]) {
            ip(&format!("netns add {name}"));
        }
        Some(pair)
    }

    /// The ends joined by one veth pair, `eth0` in each.
    fn new(test: &str) -> Option<Self> {
        let pair = Self::empty(test)?;
        let [a, b] = &pair.names;
        ip(&format!("-n {a} link add eth0 type veth peer name eth0 netns {b}"));
        pair.up();
        Some(pair)
    }

    /// Each end joined to the namespace between by a veth pair.
    fn with_veths(test: &str) -> Option<Self> {
        let pair = Self::empty(test)?;
        for (n, name) in pair.names.iter().enumerate() {
            ip(&format!("-n {} link add p{n} type veth peer name eth0 netns {name}", pair.between));
            ip(&format!("-n {} link set p{n} up", pair.between));
        }
        pair.up();
        Some(pair)
    }

    fn up(&self) {
        for name in &self.names {
            ip(&format!("-n {name} link set eth0 up"));
        }
    }

    fn mac(&self, end: usize) -> String {
        let output = ip(&format!("-n {} -j link show eth0", self.names[end]));
        let links: Value = serde_json::from_str(&output).expect("ip prints JSON");
        links[0]["address"].as_str().expect("a MAC address").to_owned()
    }

    /// Starts a command in an end.
    fn start(&self, end: usize, arguments: &[&str]) -> Child {
        let mut command = vspktgen(arguments);
        command.args(["--netns", &self.names[end], "--json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs")
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in self.names.iter().chain([&self.between]) {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn ip(line: &str) -> String {
    let output = Command::new("ip").args(line.split(' ')).output().expect("ip is installed");
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn memory_takes_all_that_is_sent() {
    let report = json(&run(&["send", "memory", "--count", "20000", "--flows", "100", "--json"]));
    assert_eq!(report["sent"]["frames"], 20000);
    assert_eq!(report["sent"]["bytes"], 20000 * 64);
    assert_eq!(report["refused"], 0);
}

#[test]
fn a_rate_is_kept() {
    let report = json(&run(&["send", "memory", "--rate", "2k", "--duration", "0.5", "--json"]));
    let rate = report["sent"]["frames_per_second"].as_f64().expect("a number");
    // A busy machine may be late; it must never be early.
    assert!(rate > 500.0 && rate < 2200.0, "{rate}");
}

#[test]
fn what_cannot_be_done_is_said() {
    for (arguments, code, text) in [
        (&["send", "eth0"][..], 2, "no kind of device"),
        (&["send", "memory", "--rate", "fast"], 2, "not a rate"),
        (&["send", "memory", "--size", "20"], 2, "not a frame size"),
        (&["send", "packet:vspktgen-none"], 1, "vspktgen-none"),
        (&["send", "memory", "--dst-ip", "::1"], 1, "two address families"),
        (&["loop", "veth:a", "tap:b"], 1, "one kind"),
        (&["latency", "memory"], 1, "cannot answer"),
        (&["replay", "/nonexistent.pcap", "memory"], 1, "nonexistent"),
        (&["send", "memory", "--netns", "vspktgen-none"], 1, "cannot open namespace"),
        (&["send", "memory", "--cpu", "4095"], 1, "cannot pin"),
    ] {
        let output = run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        assert!(errors.contains(text), "{arguments:?}: {errors}");
    }
}

#[test]
fn what_is_sent_is_received_in_order() {
    for kind in ["packet", "veth"] {
        let Some(pair) = Pair::new(kind) else { return };
        let device = format!("{kind}:eth0");
        let receiver = pair.start(1, &["receive", &device, "--idle", "1", "--duration", "20"]);
        std::thread::sleep(Duration::from_millis(300));
        let (mac, flows) = (pair.mac(1), "7");
        let traffic = ["--dst-mac", &mac, "--flows", flows, "--size", "imix", "--rate", "10k"];
        let sender = pair.start(0, &[&["send", &device, "--count", "3000"][..], &traffic].concat());
        let sent = json(&sender.wait_with_output().expect("it ends"));
        let received = json(&receiver.wait_with_output().expect("it ends"));
        assert_eq!(sent["sent"]["frames"], 3000);
        assert_eq!(received["received"]["frames"], 3000, "{received}");
        assert_eq!(received["received"]["bytes"], sent["sent"]["bytes"]);
        assert_eq!(received["flows"], 7);
        for counter in ["lost", "reordered", "duplicates", "kernel_drops"] {
            assert_eq!(received[counter], 0, "{counter}: {received}");
        }
    }
}

#[test]
fn round_trips_are_timed() {
    let Some(pair) = Pair::new("rtt") else { return };
    let responder = pair.start(1, &["latency", "packet:eth0", "--respond", "--duration", "3"]);
    std::thread::sleep(Duration::from_millis(300));
    let mac = pair.mac(1);
    let ask = ["latency", "packet:eth0", "--dst-mac", &mac, "--count", "200", "--duration", "10"];
    let report = json(&pair.start(0, &ask).wait_with_output().expect("it ends"));
    assert_eq!(report["round_trip"]["count"], 200);
    let p50 = report["round_trip"]["p50_us"].as_f64().expect("a number");
    assert!(p50 > 1.0 && p50 < 50_000.0, "{p50}");
    let answered = json(&responder.wait_with_output().expect("it ends"));
    assert!(answered["answered"].as_u64().expect("a number") >= 300);
}

/// Sends 2000 frames from end to end, through whatever is between, and expects all of them.
fn expect_a_path(pair: &Pair, what: &str) {
    let receive = ["receive", "packet:eth0", "--count", "2000", "--duration", "10"];
    let receiver = pair.start(1, &receive);
    std::thread::sleep(Duration::from_millis(300));
    let mac = pair.mac(1);
    let send = ["send", "packet:eth0", "--dst-mac", &mac, "--count", "2000", "--rate", "5k"];
    json(&pair.start(0, &send).wait_with_output().expect("it ends"));
    let received = json(&receiver.wait_with_output().expect("it ends"));
    assert_eq!(received["received"]["frames"], 2000, "{what}: {received}");
    assert_eq!((&received["lost"], &received["reordered"]), (&0.into(), &0.into()), "{what}");
}

#[test]
fn loops_forward_all_frames_in_order() {
    for kind in ["veth", "afxdp", "tap", "shared"] {
        for ports in [false, true] {
            let what = format!("{kind}{}", u8::from(ports));
            let pair = if kind == "tap" { Pair::empty(&what) } else { Pair::with_veths(&what) };
            let Some(pair) = pair else { return };
            // What is shared has the packet socket of a veth on its other side.
            let first = if kind == "shared" { "veth:p0".to_owned() } else { format!("{kind}:p0") };
            let second = format!("{kind}:p1");
            let mut command = vspktgen(&["loop", &first, &second, "--netns", &pair.between, "--json"]);
            if ports {
                command.arg("--ports");
            }
            let mut forwarder = command.stdout(Stdio::piped()).spawn().expect("the program runs");
            std::thread::sleep(Duration::from_millis(300));
            if kind == "tap" {
                for (n, name) in pair.names.iter().enumerate() {
                    ip(&format!("-n {} link set p{n} netns {name} name eth0", pair.between));
                }
                pair.up();
            }
            expect_a_path(&pair, &what);
            let pid = nix::unistd::Pid::from_raw(i32::try_from(forwarder.id()).expect("a process id"));
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it runs");
            assert!(forwarder.wait().expect("it ends").success(), "{what}");
        }
    }
}

#[test]
fn connections_are_opened_and_closed_as_many_as_were_asked_for() {
    let Some(pair) = Pair::new("connect") else { return };
    for (name, address) in pair.names.iter().zip(["10.9.0.1/24", "10.9.0.2/24"]) {
        ip(&format!("-n {name} addr add {address} dev eth0"));
    }
    let refused = ["connect", "10.9.0.2:7000", "--count", "9"];
    let refused = pair.start(0, &refused).wait_with_output().expect("it ends");
    assert_eq!(refused.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(errors.contains("nobody accepts: Connection refused"), "{errors}");

    let mut server = pair.start(1, &["connect", "--serve", "10.9.0.2:7000", "10.9.0.2:7001"]);
    let listening = || {
        let sockets =
            Command::new("ip").args(["netns", "exec", &pair.names[1], "cat", "/proc/net/tcp"]).output();
        let text = String::from_utf8(sockets.expect("ip is installed").stdout).expect("text");
        // State 0A is LISTEN.
        text.lines().filter(|line| line.contains(" 0A ")).count()
    };
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while listening() < 2 {
        assert!(server.try_wait().expect("a child").is_none() && std::time::Instant::now() < end);
        std::thread::sleep(Duration::from_millis(20));
    }
    let ask = ["connect", "10.9.0.2:7000", "10.9.0.2:7001", "--count", "500", "--in-flight", "8"];
    let report = json(&pair.start(0, &ask).wait_with_output().expect("it ends"));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(server.id()).expect("a process id"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it runs");
    let served = json(&server.wait_with_output().expect("it ends"));
    let count = |value: &Value| value.as_u64().expect("a count");
    let (done, accepted) = (count(&report["connections"]), count(&served["connections"]));
    // The last wait may report several at once.
    assert!((500..508).contains(&done), "{report}");
    assert!((done..=done + 8).contains(&accepted), "{report} {served}");
    assert_eq!((&report["failed"], &report["latency"]["count"]), (&0.into(), &done.into()));
}

#[test]
fn a_capture_is_written_read_and_replayed() {
    let file = std::env::temp_dir().join(format!("vspktgen-{}.pcapng", std::process::id()));
    let path = file.display().to_string();
    let device = format!("pcap:{path}");
    let sent = json(&run(&["send", &device, "--count", "500", "--flows", "3", "--json"]));
    assert_eq!(sent["sent"]["frames"], 500);
    let read = json(&run(&["receive", &device, "--json"]));
    assert_eq!((&read["received"]["frames"], &read["lost"]), (&500.into(), &0.into()), "{read}");
    let replayed = json(&run(&["replay", &path, "memory", "--repeat", "3", "--json"]));
    assert_eq!(replayed["sent"]["frames"], 1500);
    let _ = std::fs::remove_file(file);
}
