//! The daemon ends, by force or by request, and starts again: containers do not notice for long.
//!
//! Needs root.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tests::Net;
use tests::net::{Pulse, wait_for, wait_until};

/// What a connection may stand still, from the start of the new daemon on. A machine that is busy with other
/// things gets more than one try; the best of them counts, and every one has to go on at all.
const GAP: Duration = Duration::from_secs(1);
const TRIES: usize = 4;

const ALL_KINDS: &str = r#"
    [[network]]
    name = "front"
    subnets = ["10.1.0.0/24", "fd00:1::/64"]
    [[port]]
    name = "client"
    network = "front"
    netns = "@client"
    addresses = ["10.1.0.10", "fd00:1::10"]
    [[port]]
    name = "veth"
    network = "front"
    kind = "veth"
    netns = "@veth"
    addresses = ["10.1.0.11", "fd00:1::11"]
    [[port]]
    name = "tap"
    network = "front"
    kind = "tap"
    netns = "@tap"
    addresses = ["10.1.0.12", "fd00:1::12"]
    [[port]]
    name = "afxdp"
    network = "front"
    kind = "afxdp"
    netns = "@afxdp"
    addresses = ["10.1.0.13", "fd00:1::13"]
"#;

fn pulses(net: &Net) -> Vec<(String, Pulse)> {
    let targets = [
        ("veth", "10.1.0.11"),
        ("tap", "10.1.0.12"),
        ("afxdp", "10.1.0.13"),
        ("veth", "fd00:1::11"),
        ("tap", "fd00:1::12"),
    ];
    let client = net.space("client");
    targets
        .into_iter()
        .map(|(kind, address)| {
            let target: IpAddr = address.parse().expect("an address");
            (format!("{kind} {address}"), Pulse::start(&client, &net.space(kind), target))
        })
        .collect()
}

fn beat(pulses: &[(String, Pulse)]) {
    for (name, pulse) in pulses {
        let before = pulse.beats();
        wait_for(&format!("the connection to {name} moves"), || pulse.beats() > before + 2);
    }
}

/// Ends and starts the daemon, and returns how long after the start each connection stood still.
fn restart(net: &mut Net, pulses: &[(String, Pulse)], end: fn(&mut Net)) -> Vec<(String, Duration)> {
    end(net);
    // Nothing is on its way any more.
    std::thread::sleep(Duration::from_millis(60));
    let before: Vec<_> = pulses.iter().map(|(_, pulse)| pulse.beats()).collect();
    let start = Instant::now();
    net.start();
    let mut gaps: Vec<Option<Duration>> = vec![None; pulses.len()];
    let all = wait_until(Duration::from_secs(30), || {
        for ((gap, (_, pulse)), before) in gaps.iter_mut().zip(pulses).zip(&before) {
            if gap.is_none() && pulse.beats() > *before {
                *gap = Some(start.elapsed());
            }
        }
        gaps.iter().all(Option::is_some)
    });
    assert!(all, "connections that do not go on: {gaps:?} of {pulses:?}\n{}", net.log());
    pulses.iter().map(|(name, _)| name.clone()).zip(gaps.into_iter().flatten()).collect()
}

fn connections_go_on(end: fn(&mut Net)) {
    let mut net = Net::with(ALL_KINDS);
    let pulses = pulses(&net);
    beat(&pulses);
    let before = net.picture();
    let mut best: Vec<Duration> = vec![Duration::MAX; pulses.len()];
    for _ in 0..TRIES {
        let gaps = restart(&mut net, &pulses, end);
        println!("stood still after the start: {gaps:?}");
        for (best, (_, gap)) in best.iter_mut().zip(&gaps) {
            *best = (*best).min(*gap);
        }
        net.ready();
        beat(&pulses);
        if best.iter().all(|gap| *gap < GAP) {
            break;
        }
    }
    assert!(best.iter().all(|gap| *gap < GAP), "too long: {best:?}");
    assert_eq!(net.picture(), before, "the devices are the same ones, untouched");
    for (_, pulse) in pulses {
        pulse.end();
    }
    net.balance();
}

#[test]
fn connections_go_on_after_the_daemon_was_killed() {
    connections_go_on(Net::kill);
}

#[test]
fn connections_go_on_after_the_daemon_was_stopped() {
    connections_go_on(Net::stop);
}

#[test]
fn what_commands_made_is_there_after_a_restart() {
    let mut net = Net::with("[[network]]\nname = \"front\"\nsubnets = [\"10.1.0.0/24\"]\n");
    net.vsctl("attach @a --network front --ip 10.1.0.10 --name a");
    net.vsctl("port add b --network front --kind tap --netns @b --ip 10.1.0.11 --label tier=web");
    net.vsctl("network add back --subnet 10.2.0.0/24");
    net.vsctl("fdb add 02:00:00:00:00:99 --network front --port b");
    net.ready();
    net.ping("a", "10.1.0.11");
    let (config, picture) = (net.vsctl("config show"), net.picture());
    for end in [Net::kill, Net::stop] {
        end(&mut net);
        net.start();
        net.ready();
        assert_eq!(net.vsctl("config show"), config);
        assert_eq!(net.picture(), picture);
        net.ping("a", "10.1.0.11");
    }
    // What was removed does not come back, not even its device.
    net.vsctl("detach a");
    net.kill();
    net.start();
    net.ready();
    assert!(net.get("/v1/ports").as_array().is_some_and(|ports| ports.len() == 1));
    assert_eq!(net.space("a").run("ip -o link").lines().count(), 1);
}

#[test]
fn a_port_taken_out_of_the_file_while_no_daemon_ran_is_gone_after_the_start() {
    let mut net = Net::with(ALL_KINDS);
    net.kill();
    let shorter = ALL_KINDS.split("[[port]]\n    name = \"tap\"").next().expect("the part before");
    net.write_config(shorter);
    net.start();
    net.ready();
    assert!(net.get("/v1/ports").as_array().is_some_and(|ports| ports.len() == 2));
    for name in ["tap", "afxdp"] {
        wait_for("its device is gone", || net.space(name).run("ip -o link").lines().count() == 1);
    }
    net.ping("client", "10.1.0.11");
}

#[test]
fn hang_up_applies_the_file_again() {
    let net = Net::with(ALL_KINDS);
    let pulses = pulses(&net);
    beat(&pulses);
    let more = format!(
        "{ALL_KINDS}\n[[port]]\nname = \"more\"\nnetwork = \"front\"\nnetns = \"@more\"\naddresses = [\"10.1.0.20\"]\n"
    );
    net.write_config(&more);
    net.reload();
    wait_for("the new port is there", || net.api("GET", "/v1/ports/more", None).is_ok());
    net.ready();
    net.ping("client", "10.1.0.20");
    // A file that is no good changes nothing.
    let before = net.vsctl("config show");
    net.write_config("[[network]]\nnmae = \"front\"\n");
    net.reload();
    wait_for("the refusal is logged", || net.log().contains("nmae"));
    assert_eq!(net.vsctl("config show"), before);
    net.write_config(ALL_KINDS);
    net.reload();
    wait_for("the port is gone again", || net.api("GET", "/v1/ports/more", None).is_err());
    beat(&pulses);
    for (_, pulse) in pulses {
        pulse.end();
    }
}

#[test]
fn three_ports_take_less_than_64_mib() {
    // One of each kind, and the defaults of everything else.
    let config = ALL_KINDS.replacen("[[port]]\n    name = \"client\"\n    network = \"front\"\n    netns = \"@client\"\n    addresses = [\"10.1.0.10\", \"fd00:1::10\"]\n", "", 1);
    let net = Net::with(&config);
    assert_eq!(net.get("/v1/ports").as_array().map(Vec::len), Some(3));
    for (from, to) in [("veth", "10.1.0.12"), ("tap", "10.1.0.13"), ("afxdp", "10.1.0.11")] {
        let target: IpAddr = to.parse().expect("an address");
        let names = ["veth", "tap", "afxdp"];
        let server = names.into_iter().zip(11..).find(|(_, n)| to.ends_with(&n.to_string())).expect("one").0;
        tests::net::transfer(&net.space(from), &net.space(server), target, 16 << 20).expect("TCP works");
    }
    let resident = net.resident();
    println!("resident: {} KiB", resident / 1024);
    assert!(resident < 64 << 20, "{resident} bytes");
}
