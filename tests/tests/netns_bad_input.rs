//! What users and neighbours get wrong: a clear error or a counted drop, nothing changed, nothing leaked.
//!
//! Needs root, setpriv.

use std::time::Duration;

use packet::MacAddr;
use tests::Net;
use tests::net::{Running, Wire, ethernet, need, wait_for};

const GOOD: &str = r#"[[network]]
name = "front"
subnets = ["10.1.0.0/24"]

[[port]]
name = "a"
network = "front"
netns = "@a"
addresses = ["10.1.0.10"]

[[port]]
name = "b"
network = "front"
kind = "tap"
netns = "@b"
addresses = ["10.1.0.11"]
"#;

/// Asserts that the switch refuses `config` with every one of `expected`, and that nothing is different then.
fn refused_without_a_trace(net: &Net, what: &str, config: &str, expected: &[&str]) {
    let text = net.expand(config);
    let before = (net.vsctl("config show"), net.picture(), net.get("/v1/ports").as_array().map(Vec::len));
    let said = net.apply_refused(&text);
    for part in expected {
        assert!(said.contains(part), "{what}: '{part}' is not said: {said}");
    }
    let after = (net.vsctl("config show"), net.picture(), net.get("/v1/ports").as_array().map(Vec::len));
    assert_eq!(before, after, "{what} changed something");
}

#[test]
fn a_file_with_an_error_is_refused_with_the_place_and_changes_nothing() {
    let net = Net::with(GOOD);
    let file = |text: &str| format!("{GOOD}\n{text}");
    // The text appended begins in line 18.
    let cases: [(&str, String, &[&str]); 9] = [
        (
            "an unknown key",
            file("[[network]]\nname = \"x\"\nsubnet = \"10.2.0.0/24\"\n"),
            &["bad.toml:20:1:", "subnet", "subnets"],
        ),
        (
            "an unknown section",
            file("[[netwrok]]\nname = \"x\"\n"),
            &["bad.toml:18:3:", "netwrok", "network"],
        ),
        ("no TOML", file("[[network\n"), &["bad.toml:18:"]),
        ("a duplicate name", file("[[network]]\nname = \"front\"\n"), &["bad.toml:19:8:", "front"]),
        (
            "a duplicate port",
            file("[[port]]\nname = \"a\"\nnetwork = \"front\"\n"),
            &["bad.toml:19:8:", "'a'"],
        ),
        (
            "an address twice",
            file(
                "[[port]]\nname = \"c\"\nnetwork = \"front\"\nnetns = \"@c\"\naddresses = [\"10.1.0.11\"]\n",
            ),
            &["bad.toml:22:14:", "10.1.0.11", "'b'"],
        ),
        (
            "subnets that overlap",
            file("[[network]]\nname = \"x\"\nsubnets = [\"10.2.0.0/16\", \"10.2.3.0/24\"]\n"),
            &["bad.toml:20:27:", "10.2.3.0/24", "overlap"],
        ),
        (
            "an address outside",
            file(
                "[[port]]\nname = \"c\"\nnetwork = \"front\"\nnetns = \"@c\"\naddresses = [\"10.9.0.11\"]\n",
            ),
            &["bad.toml:22:14:", "10.9.0.11", "10.1.0.0/24"],
        ),
        (
            "no such network",
            file("[[port]]\nname = \"c\"\nnetwork = \"frnot\"\nnetns = \"@c\"\n"),
            &["bad.toml:20:11:", "frnot", "front"],
        ),
    ];
    for (what, config, expected) in cases {
        refused_without_a_trace(&net, what, &config, expected);
    }
    net.ping("a", "10.1.0.11");
}

#[test]
fn what_the_host_lacks_is_told_and_the_rest_of_the_file_is_not_done() {
    let net = Net::with(GOOD);
    let with = |port: &str| {
        format!(
            "{GOOD}\n[[port]]\nname = \"c\"\nnetwork = \"front\"\nnetns = \"@c\"\n[[port]]\nname = \"d\"\nnetwork = \"front\"\n{port}"
        )
    };
    let nowhere = format!("{}-nowhere", net.tag());
    refused_without_a_trace(
        &net,
        "no such namespace",
        &with(&format!("netns = \"{nowhere}\"\n")),
        &[&nowhere],
    );
    refused_without_a_trace(&net, "no such process", &with("netns = \"pid:4194304\"\n"), &["4194304"]);
    refused_without_a_trace(&net, "not a namespace", &with("netns = \"/etc/passwd\"\n"), &["/etc/passwd"]);
    // The name is taken inside.
    net.space("e").run("ip link add eth0 type veth peer name eth1");
    refused_without_a_trace(&net, "a name that is taken", &with("netns = \"@e\"\n"), &["eth0"]);
    let said = net.refused(&format!("attach {nowhere} --network front"));
    assert!(said.contains(&nowhere), "{said}");
    assert!(net.refused("attach @a --network nowhere").contains("nowhere"));
    net.ping("a", "10.1.0.11");
}

#[test]
fn a_namespace_that_goes_is_an_event_and_a_file_that_names_it_is_refused() {
    let net = Net::with(&format!(
        "{GOOD}\n[[port]]\nname = \"c\"\nnetwork = \"front\"\nnetns = \"@c\"\naddresses = [\"10.1.0.12\"]\n"
    ));
    net.ping("c", "10.1.0.10");
    let name = net.space("c").name().to_owned();
    net.remove_space("c");
    wait_for("the port is gone", || net.port("c")["state"] != "up");
    assert!(
        ["gone", "pending"].contains(&net.port("c")["state"].as_str().unwrap_or("")),
        "{:#}",
        net.port("c")
    );
    // The first thing known is that the device went; what it waits for now, as soon as it was looked for.
    wait_for("the port says what it waits for", || {
        net.port("c")["reason"].as_str().is_some_and(|reason| reason.contains(&name))
    });
    net.ping("a", "10.1.0.11");
    assert!(net.get("/v1/log").to_string().contains("port_gone"), "{:#}", net.get("/v1/log"));
    let config = format!(
        "{GOOD}\n[[port]]\nname = \"d\"\nnetwork = \"front\"\nnetns = \"{name}\"\naddresses = [\"10.1.0.13\"]\n"
    );
    let said = net.apply_refused(&config);
    assert!(said.contains(&name), "{said}");
    // It comes again under its name: the port is there again.
    let again = net.space("c");
    assert_eq!(again.name(), name);
    wait_for("the port comes back", || net.port("c")["state"] == "up");
    net.ping("c", "10.1.0.10");
}

#[test]
fn a_daemon_that_cannot_run_says_why() {
    need(&["setpriv"]);
    let net = Net::with(GOOD);
    let run = |command: std::process::Command, log: &str| {
        let mut running = Running::start(command, "vswitchd", &net.path(log));
        let code = running.wait();
        (code, running.log())
    };
    // A second one on the same socket.
    let (code, said) = run(net.daemon_command(&[]), "second.log");
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains(&net.socket().display().to_string()) && said.contains("another vswitchd"),
        "{said}"
    );
    net.ping("a", "10.1.0.11");
    // Without what it needs from the kernel.
    for missing in ["net_admin", "net_raw"] {
        let (bounding, inheritable) =
            (format!("--bounding-set=-{missing}"), format!("--inh-caps=-{missing}"));
        let command = net.daemon_command(&["setpriv", &bounding, &inheritable, "--"]);
        let (code, said) = run(command, "capability.log");
        assert_eq!(code, Some(1), "{missing}: {said}");
        assert!(said.to_lowercase().contains(&format!("cap_{missing}")), "{missing}: {said}");
    }
    // A file that is no good, or not there.
    net.write_config("[[port]]\nname = \"a\"\nnetwork = \"nowhere\"\n");
    let (code, said) = run(net.daemon_command(&[]), "bad.log");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("vswitch.toml:3:11"), "{said}");
    std::fs::remove_file(net.path("vswitch.toml")).expect("it is there");
    let (code, said) = run(net.daemon_command(&[]), "none.log");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("vswitch.toml"), "{said}");
}

/// Bytes that repeat from run to run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.next().to_le_bytes()[3];
        }
    }
}

#[test]
fn noise_of_any_length_is_counted_and_harms_nobody() {
    let mut net = Net::with("");
    let config = |kind: &str| {
        // The most that the device has; a frame of AF_XDP beyond one page takes several chunks.
        let mtu = match kind {
            "afxdp" => 9000,
            "tap" => 65521,
            _ => 65535,
        };
        format!(
            r#"
            [[network]]
            name = "front"
            subnets = ["10.1.0.0/24"]
            [[port]]
            name = "noisy"
            network = "front"
            kind = "{kind}"
            netns = "@noisy"
            mtu = {mtu}
            addresses = ["10.1.0.10"]
            [[port]]
            name = "open"
            network = "front"
            kind = "{kind}"
            netns = "@open"
            mtu = {mtu}
            [[port]]
            name = "a"
            network = "front"
            netns = "@a"
            addresses = ["10.1.0.11"]
            [[port]]
            name = "b"
            network = "front"
            kind = "tap"
            netns = "@b"
            addresses = ["10.1.0.12"]
            "#
        )
    };
    let mut noise = Noise(0x5eed_5eed);
    let mut bytes = vec![0; 70_000];
    for kind in ["veth", "tap", "afxdp"] {
        net.apply(&config(kind));
        net.ping("a", "10.1.0.12");
        let mac = net.space("noisy").mac("eth0");
        let (mut taken, mut sent) = (0, 0);
        for port in ["noisy", "open"] {
            let before = net.counter(port, "rx_frames");
            let mut wire = Wire::open(&net.space(port), "eth0");
            let mut taken_here = 0;
            for n in 0..600_usize {
                let len = match n {
                    0..=100 => n,
                    101..=400 => 100 + usize::try_from(noise.next() % 1500).expect("small"),
                    _ => usize::try_from(noise.next() % 70_001).expect("small"),
                };
                noise.fill(&mut bytes[..len]);
                if n % 2 == 0 && len >= 14 {
                    // Past the guard and into the headers: a good Ethernet header, and noise behind it.
                    let kinds = [0x0800, 0x86dd, 0x0806, 0x8100, 0x88a8, 0x8847, 0x88b7];
                    let to = if n % 4 == 0 { MacAddr::BROADCAST } else { net_mac(n) };
                    let header = ethernet(to, mac, kinds[n / 2 % kinds.len()], &[]);
                    bytes[..14].copy_from_slice(&header);
                    if n % 3 == 0 && len > 20 {
                        bytes[14] = 0x45;
                    }
                }
                sent += 1;
                // The kernel refuses what is longer than the MTU or shorter than an Ethernet header.
                if wire.try_send(&bytes[..len]) {
                    taken_here += 1;
                }
            }
            assert!(taken_here > 300, "{kind}: the kernel took {taken_here} of 600");
            taken += taken_here;
            wait_for("all of them were read", || {
                let port = net.port(port);
                let count = |name: &str| port["counters"][name].as_u64().unwrap_or(0);
                count("rx_frames") + count("rx_errors") + count("rx_kernel_drops") >= before + taken_here
            });
        }
        let drops = net.get("/v1/drops");
        println!("{kind}: {taken} of {sent} frames of noise were taken by the kernel; drops {drops:#}");
        assert!(net.dropped("noisy", "spoof") + net.dropped("noisy", "malformed") > 0, "{drops:#}");
        net.balance();
        assert!(net.is_alive(), "the daemon died:\n{}", net.log());
        net.ping("a", "10.1.0.12");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Stations that nobody has.
fn net_mac(n: usize) -> MacAddr {
    MacAddr::local(0xbad_0000 + n as u64)
}
