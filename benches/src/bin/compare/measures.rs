//! The rows: what is measured over a subject that runs.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::{ADDRESSES, Lab, Running, output};
use crate::subjects::{Ends, Subject, vswitch};
use crate::{Figures, Results, Row, Sample, Setting};

/// Ports that do nothing, in [`idle_ports`].
const IDLE_PORTS: usize = 200;

/// Where the two ends of a measurement are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path<'a> {
    /// Namespace of the end that calls.
    pub client: &'a str,
    /// Namespace of the end that is called.
    pub server: &'a str,
    /// Address that the server is bound to.
    pub bind: &'a str,
    /// Address that the client calls.
    pub target: &'a str,
}

impl<'a> Path<'a> {
    /// Between the ends of a lab, on one link.
    pub(crate) fn inside(lab: &'a Lab) -> Self {
        let [client, server] = &lab.ends;
        Self { client, server, bind: ADDRESSES[1], target: ADDRESSES[1] }
    }
}

/// Runs the rows over one subject.
pub(crate) fn all(
    subject: Subject,
    setting: &Setting,
    rows: &[Row],
    round: usize,
    results: &mut Results,
) -> Result<()> {
    let running = subject.start(setting)?;
    for row in rows {
        let figures = match row {
            Row::Tcp => tcp(Path::inside(&running.lab), setting, false),
            Row::Rate => rate(&running, subject.ends() == Ends::Afxdp),
            _ => latency_of(&running, subject),
        };
        let figures = figures.with_context(|| format!("{row:?}"))?;
        match row {
            Row::Tcp => eprint!("  {:6.2} Gbit/s", figures["gigabits"]),
            Row::Rate => {
                eprint!("  {:4.0}/{:4.0} kpps", figures["offered"] / 1e3, figures["delivered"] / 1e3)
            }
            _ => eprint!("  {:5.1}/{:5.1} us", figures["p50"], figures["p99"]),
        }
        let subject = subject.name().to_owned();
        results.samples.push(Sample { subject, row: *row, round, figures });
    }
    Ok(())
}

/// TCP, one flow: iperf3, both ends on one CPU; with `back`, from the server to the client.
pub(crate) fn tcp(path: Path<'_>, setting: &Setting, back: bool) -> Result<Figures> {
    let mut server = Lab::command(path.server, Some(setting.ends_cpu), "iperf3");
    let mut server = server
        .args(["-s", "-1", "-B", path.bind])
        .stdout(std::process::Stdio::null())
        .spawn()
        .context("is iperf3 installed?")?;
    let mut result = Ok(String::new());
    for _ in 0..20 {
        // Until the server listens.
        thread::sleep(Duration::from_millis(50));
        let mut client = Lab::command(path.client, Some(setting.ends_cpu), "iperf3");
        // The first tenths are slow start.
        client.args(["-J", "-O", "0.3", "-c", path.target, "-t", &setting.seconds.ceil().to_string()]);
        if back {
            client.arg("-R");
        }
        result = output(&mut client);
        if result.is_ok() {
            break;
        }
    }
    let _ = server.kill();
    let _ = server.wait();
    let report: serde_json::Value = serde_json::from_str(&result?)?;
    let of = |pointer: &str| report.pointer(pointer).and_then(serde_json::Value::as_f64);
    let bits = of("/end/sum_received/bits_per_second").context("iperf3 printed no result")?;
    let retransmits = of("/end/sum_sent/retransmits").unwrap_or(0.0);
    Ok(Figures::from([("gigabits", bits / 1e9), ("retransmits", retransmits)]))
}

/// 64-byte frames as fast as a packet socket sends them, counted by the receiving device. They are for an
/// address that is not there, so the receiving stack drops them at its routing table, at next to no cost.
///
/// A sender of single frames is what limits an AF_XDP path, not the switch. There it sends 64 at once for the
/// kernel to cut (a veth whose far end has an XDP program does not pass a large frame on).
pub(crate) fn rate(running: &Running, cut: bool) -> Result<Figures> {
    let (lab, setting) = (&running.lab, &running.setting);
    let mac = lab.link(1, "/0/address")?;
    let program = setting.programs.join("vspktgen");
    let mut send = Lab::command(&lab.ends[0], Some(setting.ends_cpu), program);
    let device: &[&str] = if cut { &["veth:eth0", "--gso", "64"] } else { &["packet:eth0"] };
    send.arg("send").args(device).args(["--json", "--size", "64", "--rate", "max"]);
    send.args(["--src-ip", ADDRESSES[0], "--dst-ip", "198.18.0.2"]);
    send.args(["--dst-mac", mac.as_str().context("no MAC")?]);
    send.args(["--duration", &setting.seconds.to_string()]);
    let received = || -> Result<f64> {
        lab.link(1, "/0/stats64/rx/packets")?.as_f64().context("the counter is no number")
    };
    let before = received()?;
    let report: serde_json::Value = serde_json::from_str(&output(&mut send)?)?;
    thread::sleep(Duration::from_millis(50));
    let delivered = received()? - before;
    let sent = |pointer: &str| {
        report.pointer(pointer).and_then(serde_json::Value::as_f64).context("vspktgen printed no result")
    };
    Ok(Figures::from([
        ("offered", sent("/sent/frames_per_second")?),
        ("delivered", delivered / sent("/sent/seconds")?),
    ]))
}

/// Ping-pong with both ends on one CPU; over the bridge, which has the other CPU free, also on two.
fn latency_of(running: &Running, subject: Subject) -> Result<Figures> {
    let setting = &running.setting;
    let path = Path::inside(&running.lab);
    let Trips { p50, p99, .. } = ping_pong(path, setting, setting.ends_cpu, None)?;
    let mut figures = Figures::from([("p50", p50), ("p99", p99)]);
    if subject == Subject::Bridge {
        let Trips { p50, p99, .. } = ping_pong(path, setting, setting.switch_cpu, None)?;
        figures.extend([("p50_two_cpus", p50), ("p99_two_cpus", p99)]);
    }
    Ok(figures)
}

/// Half round trips in microseconds.
pub(crate) struct Trips {
    pub p25: f64,
    pub p50: f64,
    pub p99: f64,
}

/// Half round trips as sockperf measures them: back to back, or `per_second` of them.
pub(crate) fn ping_pong(
    path: Path<'_>,
    setting: &Setting,
    server_cpu: usize,
    per_second: Option<u32>,
) -> Result<Trips> {
    let mut server = Lab::command(path.server, Some(server_cpu), "sockperf");
    let mut server = server
        .args(["server", "-i", path.bind, "-p", "11111"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .context("is sockperf installed?")?;
    thread::sleep(Duration::from_millis(200));
    let mut client = Lab::command(path.client, Some(setting.ends_cpu), "sockperf");
    client.args(["ping-pong", "-i", path.target, "-p", "11111", "-m", "14"]);
    client.args(["-t", &setting.seconds.ceil().to_string()]);
    if let Some(rate) = per_second {
        client.args(["--mps", &rate.to_string()]);
    }
    let result = output(&mut client);
    let _ = server.kill();
    let _ = server.wait();
    let text = result?;
    let percentile = |which: &str| {
        let line = text.lines().find(|line| line.contains(&format!("percentile {which}")));
        line.and_then(|line| line.split('=').nth(1)?.trim().parse::<f64>().ok())
            .with_context(|| format!("sockperf printed no percentile {which}"))
    };
    Ok(Trips { p25: percentile("25.000")?, p50: percentile("50.000")?, p99: percentile("99.000")? })
}

/// CPU use of the switch without traffic, and how long it takes to wake up for a frame.
///
/// The time to wake up is what a round trip that comes alone, after 50 ms of rest, takes longer over a switch
/// that may sleep than over one that spins. The first of its two passes wakes the switch.
pub(crate) fn idle(setting: &Setting, rounds: usize, results: &mut Results) -> Result<()> {
    let setting = Setting { seconds: setting.seconds.max(2.0), ..setting.clone() };
    for round in 1..=rounds {
        let mut figures = Figures::new();
        let mut trips = [0.0; 2];
        for (trip, poll) in trips.iter_mut().zip(["adaptive", "busy"]) {
            let mut lab = Lab::new()?;
            // Three ports, as the footprint is stated for.
            let pid = vswitch(&mut lab, &setting, "auto", poll, 1)?;
            lab.wait_for_path()?;
            if poll == "adaptive" {
                thread::sleep(Duration::from_secs(1));
                let before = cpu_nanos(pid)?;
                let time = Duration::from_secs(3);
                thread::sleep(time);
                let used = cpu_nanos(pid)? - before;
                figures.insert("cpu_percent", used / 1e7 / time.as_secs_f64());
                figures.insert("rss_mib", resident_mib(pid)?);
            }
            // The better quarter: with a rest between, whatever else the machine does is in the way.
            *trip = 2.0 * ping_pong(Path::inside(&lab), &setting, setting.ends_cpu, Some(20))?.p25;
        }
        figures.extend([("round_trip_adaptive", trips[0]), ("round_trip_busy", trips[1])]);
        figures.insert("wake_up", trips[0] - trips[1]);
        let subject = Subject::VswitchDefault.name().to_owned();
        results.samples.push(Sample { subject, row: Row::Idle, round, figures });
    }
    Ok(())
}

/// Ping-pong between two busy ports, alone and beside idle ones.
pub(crate) fn idle_ports(setting: &Setting, rounds: usize, results: &mut Results) -> Result<()> {
    for round in 1..=rounds {
        let mut figures = Figures::new();
        for (metric, idle) in [("p50_alone", 0), ("p50_beside", IDLE_PORTS)] {
            let mut lab = Lab::new()?;
            vswitch(&mut lab, setting, "veth", "busy", idle)?;
            lab.wait_for_path()?;
            let trips = ping_pong(Path::inside(&lab), setting, setting.ends_cpu, None)?;
            figures.insert(metric, trips.p50);
        }
        let subject = "vswitch-veth".to_owned();
        results.samples.push(Sample { subject, row: Row::Ports, round, figures });
    }
    Ok(())
}

/// CPU time of all threads of a process so far.
fn cpu_nanos(pid: u32) -> Result<f64> {
    let mut total = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        total += text.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
    }
    if total == 0.0 {
        bail!("process {pid} has used no CPU time at all");
    }
    Ok(total)
}

fn resident_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
