//! The daily work of the switch on the real kernel: real tools over every kind of port.
//!
//! Needs root, ping, arping, tcpdump.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use packet::MacAddr;
use tests::Net;
use tests::net::{
    Ears, PATIENCE, Wire, arp_request, binary, ethernet, need, tagged, udp4, wait_for, wait_until,
};

/// Time in which nothing must arrive that should not.
const QUIET: Duration = Duration::from_millis(300);

fn pair(kind: &str) -> String {
    format!(
        r#"
        [[network]]
        name = "front"
        subnets = ["10.1.0.0/24", "fd00:1::/64"]
        [[network]]
        name = "back"
        subnets = ["10.1.0.0/24", "fd00:1::/64"]

        [[port]]
        name = "a"
        network = "front"
        kind = "{kind}"
        netns = "@a"
        addresses = ["10.1.0.10", "fd00:1::10"]
        [[port]]
        name = "b"
        network = "front"
        kind = "{kind}"
        netns = "@b"
        addresses = ["10.1.0.11", "fd00:1::11"]
        [[port]]
        name = "c"
        network = "back"
        kind = "{kind}"
        netns = "@c"
        addresses = ["10.1.0.11", "fd00:1::11"]
        "#
    )
}

#[test]
fn real_tools_work_over_every_kind_and_networks_are_apart() {
    need(&["ping", "arping", "tcpdump"]);
    let net = Net::with(&pair("veth"));
    for kind in ["veth", "tap", "afxdp"] {
        net.apply(&pair(kind));
        for port in ["a", "b", "c"] {
            assert_eq!(net.port(port)["kind"], kind, "{:#}", net.port(port));
        }
        let (a, c) = (net.space("a"), net.space("c"));
        net.ping("a", "10.1.0.11");
        net.ping("a", "fd00:1::11");
        let listen = |name: &str| Ears::listen(&net.space(name), "eth0", "icmp or arp", &net.path(""));
        let (mut at_b, mut at_c) = (listen("b"), listen("c"));
        a.run("ping -n -c 5 -i 0.05 -W 5 10.1.0.11");
        let seen = at_b.heard();
        assert_eq!(seen.iter().filter(|line| line.contains("echo request")).count(), 5, "{kind}: {seen:#?}");
        assert_eq!(at_c.heard(), Vec::<String>::new(), "{kind}: another network sees the frames");

        // The same address elsewhere neither answers nor is heard.
        let mut at_a = listen("a");
        assert!(!c.output("ping -n -c 2 -i 0.2 -W 1 10.1.0.10").status.success(), "{kind}");
        assert_eq!(at_a.heard(), Vec::<String>::new(), "{kind}");

        // The switch answers for the stations it knows, and each request once.
        let answers = a.run("arping -c 3 -w 5 -I eth0 10.1.0.11");
        let mac = net.space("b").mac("eth0").to_string();
        assert!(answers.to_lowercase().contains(&mac), "{kind}: {answers}");
        assert!(answers.contains("Received 3 response(s)"), "{kind}: {answers}");
        net.balance();
    }
    assert_eq!(net.vsctl("fdb list --network front").as_array().map(Vec::len), Some(2));
}

#[test]
fn an_arp_request_for_any_address_of_the_host_gets_one_answer_and_the_host_sees_nothing() {
    // Joined to the host, the network would reach it by way of the router: that is another test.
    let pair = |kind| pair(kind).replace("[[network]]", "[[network]]\nhost = false");
    let net = Net::with(&pair("veth"));
    let (host, a) = (net.host(), net.space("a"));
    // A host that forwards and answers ARP for every address that it has on any interface: the default.
    host.run("sysctl -q -w net.ipv4.ip_forward=1");
    host.run("ip link add uplink0 type veth peer name uplink1");
    host.run("ip link set uplink0 up");
    host.run("ip addr add 192.0.2.2/24 dev uplink0");
    wait_for("the switch knows the host's address", || {
        net.get("/v1/neighbors").to_string().contains("192.0.2.2") || {
            std::thread::sleep(Duration::from_millis(100));
            a.output("arping -c 1 -w 1 -I eth0 192.0.2.2").status.success()
        }
    });
    for kind in ["veth", "tap", "afxdp"] {
        net.apply(&pair(kind));
        net.ping("a", "10.1.0.11");
        let mac = a.mac("eth0");
        let mut wire = Wire::open(&a, "eth0");
        let before = host.snmp("Ip", "InReceives");
        let address = Ipv4Addr::new(10, 1, 0, 10);
        for wanted in [Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(192, 0, 2, 2)] {
            wire.send(&arp_request(mac, address, wanted));
            let is_answer = |frame: &[u8]| {
                frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[28..32] == wanted.octets()
            };
            let answer = wire.receive(PATIENCE, is_answer);
            let answer = answer.unwrap_or_else(|| panic!("{kind}: nobody answers for {wanted}"));
            assert_eq!(answer[..6], mac.0, "{kind}: it is for us");
            std::thread::sleep(QUIET);
            assert_eq!(wire.received(is_answer).len(), 0, "{kind}: a second answer for {wanted}");
            // What is then sent to that address, and anything else, never reaches the host's stack.
            let to = MacAddr(answer[6..12].try_into().expect("six"));
            for _ in 0..10 {
                wire.send(&udp4([mac, to], address, wanted, 7, b"is anybody there?"));
            }
        }
        let _ = a.output("ping -n -c 3 -i 0.1 -W 1 192.0.2.2");
        net.balance();
        assert_eq!(host.snmp("Ip", "InReceives"), before, "{kind}: the host's IP input got frames");
    }
}

#[test]
fn isolated_ports_reach_the_others_and_never_one_another() {
    let net = Net::with(
        r#"
        [[network]]
        name = "front"
        subnets = ["10.1.0.0/24"]
        arp_proxy = false
        [[port]]
        name = "a"
        network = "front"
        netns = "@a"
        addresses = ["10.1.0.10"]
        isolated = true
        [[port]]
        name = "b"
        network = "front"
        kind = "tap"
        netns = "@b"
        addresses = ["10.1.0.11"]
        isolated = true
        [[port]]
        name = "c"
        network = "front"
        kind = "afxdp"
        netns = "@c"
        addresses = ["10.1.0.12"]
        "#,
    );
    net.ping("a", "10.1.0.12");
    net.ping("b", "10.1.0.12");
    net.ping("c", "10.1.0.10");
    let (a, b) = (net.space("a"), net.space("b"));
    let mut at_b = Wire::open(&b, "eth0");
    assert!(!a.output("ping -n -c 2 -i 0.2 -W 1 10.1.0.11").status.success());
    // Even a frame to the right MAC does not get through.
    let macs = [a.mac("eth0"), b.mac("eth0")];
    let (from, to) = (Ipv4Addr::new(10, 1, 0, 10), Ipv4Addr::new(10, 1, 0, 11));
    Wire::open(&a, "eth0").send(&udp4(macs, from, to, 7, b"psst"));
    wait_for("the drop is counted", || net.dropped("a", "isolated") > 0);
    let of_a = at_b.received(|frame| frame[6..12] == macs[0].0);
    assert_eq!(of_a.len(), 0, "{of_a:02x?}");
    net.balance();
}

#[test]
fn a_liar_about_its_addresses_is_not_heard() {
    let net = Net::with(&pair("veth"));
    let (a, b) = (net.space("a"), net.space("b"));
    net.ping("b", "10.1.0.10");
    b.run("ip addr add 10.1.0.66/24 dev eth0");
    let mut at_a = Wire::open(&a, "eth0");
    assert!(!b.output("ping -n -c 2 -i 0.2 -W 1 -I 10.1.0.66 10.1.0.10").status.success());
    let forged = MacAddr::local(0x666);
    let (from, to) = (Ipv4Addr::new(10, 1, 0, 11), Ipv4Addr::new(10, 1, 0, 10));
    Wire::open(&b, "eth0").send(&udp4([forged, a.mac("eth0")], from, to, 7, b"it is me"));
    wait_for("the drops are counted", || net.dropped("b", "spoof") >= 3);
    let heard = at_a.received(|frame| frame[6..12] == forged.0 || frame[26..30] == [10, 1, 0, 66]);
    assert_eq!(heard.len(), 0, "{heard:02x?}");
}

const VLANS: &str = r#"
    [[network]]
    name = "campus"
    [[port]]
    name = "desk"
    network = "campus"
    netns = "@desk"
    vlan = 10
    [[port]]
    name = "fast"
    network = "campus"
    kind = "afxdp"
    netns = "@fast"
    vlan = 10
    [[port]]
    name = "phone"
    network = "campus"
    netns = "@phone"
    vlan = 20
    [[port]]
    name = "trunk1"
    network = "campus"
    netns = "@trunk1"
    trunk = [10, 20]
    [[port]]
    name = "trunk2"
    network = "campus"
    kind = "tap"
    netns = "@trunk2"
    trunk = [20, "30-39"]
    native = 10
    [[port]]
    name = "trunk3"
    network = "campus"
    kind = "afxdp"
    netns = "@trunk3"
    trunk = [10, 20]
"#;

#[test]
fn vlans_are_tagged_on_trunks_untagged_on_access_ports_and_apart() {
    let net = Net::with(VLANS);
    let names = ["desk", "fast", "phone", "trunk1", "trunk2", "trunk3"];
    let mut wires = names.map(|name| Wire::open(&net.space(name), "eth0"));
    // What each port gets of a broadcast in VLAN 10 and 20: None is nothing, 0 untagged.
    let expected = |vlan: u16| match vlan {
        10 => [Some(0), Some(0), None, Some(10), Some(0), Some(10)],
        _ => [None, None, Some(0), Some(20), Some(20), Some(20)],
    };
    // What it must send to be in the VLAN.
    let sends = |vlan: u16| expected(vlan);
    let mut mac = 0x1000;
    for vlan in [10, 20] {
        for (sender, tag) in sends(vlan).into_iter().enumerate() {
            let Some(tag) = tag else { continue };
            mac += 1;
            let plain = ethernet(MacAddr::BROADCAST, MacAddr::local(mac), 0x88b5, &[0x5a; 60]);
            let frame = if tag == 0 { plain.clone() } else { tagged(&plain, tag) };
            wires[sender].send(&frame);
            for (receiver, tag) in expected(vlan).into_iter().enumerate() {
                let what = format!("vlan {vlan}, from {} to {}", names[sender], names[receiver]);
                let ours = |frame: &[u8]| frame[6..12] == MacAddr::local(mac).0;
                if receiver == sender {
                    continue;
                }
                let Some(tag) = tag else { continue };
                let got =
                    wires[receiver].receive(PATIENCE, ours).unwrap_or_else(|| panic!("{what}: nothing"));
                // The kernel may take a tag off before a packet socket sees the frame; its type shows it then:
                // what is left of the frame is compared in any case.
                let with_tag = tagged(&plain, tag);
                assert!(
                    if tag == 0 { got == plain } else { got == with_tag || got == plain },
                    "{what}: {got:02x?}"
                );
            }
            std::thread::sleep(Duration::from_millis(20));
            for (receiver, tag) in expected(vlan).into_iter().enumerate() {
                if tag.is_none() {
                    let ours = |frame: &[u8]| frame[6..12] == MacAddr::local(mac).0;
                    let got = wires[receiver].received(ours);
                    assert_eq!(got.len(), 0, "vlan {vlan} leaks to {}: {got:02x?}", names[receiver]);
                }
            }
        }
    }
    // What a port does not carry is a drop with that name. (A far end's own frames are untagged, too.)
    let others = ["desk", "trunk1", "trunk2"];
    let before = others.map(|name| net.dropped(name, "vlan"));
    let plain = ethernet(MacAddr::BROADCAST, MacAddr::local(0x2000), 0x88b5, &[0x5a; 60]);
    wires[0].send(&tagged(&plain, 20));
    wires[3].send(&plain);
    wires[4].send(&tagged(&plain, 40));
    for (name, before) in others.into_iter().zip(before) {
        wait_for(&format!("{name} drops a foreign VLAN"), || net.dropped(name, "vlan") > before);
    }
    net.balance();
}

#[test]
fn tcpdump_sees_the_tags_that_the_switch_puts_on() {
    need(&["tcpdump"]);
    let net = Net::with(VLANS);
    for trunk in ["trunk1", "trunk2", "trunk3"] {
        let mut ears = Ears::listen(&net.space(trunk), "eth0", "", &net.path(""));
        let plain = ethernet(MacAddr::BROADCAST, MacAddr::local(0x77), 0x88b5, &[0x5a; 60]);
        Wire::open(&net.space("phone"), "eth0").send(&plain);
        wait_for("the frame is there", || net.counter(trunk, "tx_frames") > 0);
        let lines = ears.heard();
        assert!(lines.iter().any(|line| line.contains("vlan 20")), "{trunk}: {lines:#?}");
    }
}

#[test]
fn a_capture_of_a_port_is_read_by_tcpdump() {
    need(&["ping", "tcpdump"]);
    let net = Net::with(&pair("veth"));
    for kind in ["veth", "tap", "afxdp"] {
        net.apply(&pair(kind));
        net.ping("a", "10.1.0.11");
        let file = net.path(&format!("{kind}.pcapng"));
        let mut capture = Command::new(binary("vsctl"))
            .args(["capture", "a", "--count", "4", "-w"])
            .arg(&file)
            .env("VSWITCH_SOCKET", net.socket())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("vsctl runs");
        // Until the capture has begun, what is sent is not in it.
        let ended = wait_until(PATIENCE, || {
            net.space("a").run("ping -n -c 1 -W 5 10.1.0.11");
            capture.try_wait().expect("a child").is_some()
        });
        let _ = capture.kill();
        let code = capture.wait().expect("a child").code();
        assert!(ended && code == Some(0), "the capture of a {kind} ends with {code:?}");
        let output = Command::new("tcpdump").args(["-nn", "-r"]).arg(&file).output().expect("tcpdump runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(text.lines().count(), 4, "{kind}: {text}");
        for part in ["10.1.0.10 > 10.1.0.11: ICMP echo request", "10.1.0.11 > 10.1.0.10: ICMP echo reply"] {
            assert!(text.contains(part), "{kind}: {text}");
        }
    }
}

#[test]
fn ports_and_namespaces_come_and_go_by_command() {
    let net = Net::with("");
    net.vsctl("network add front --subnet 10.1.0.0/24");
    let name = net.vsctl("attach @a --network front --ip 10.1.0.10 --name a")["config"]["name"].clone();
    assert_eq!(name, "a");
    net.vsctl("port add b --network front --kind tap --netns @b --ip 10.1.0.11");
    net.ready();
    net.ping("a", "10.1.0.11");
    assert!(net.refused("network rm front").contains("port"), "a network in use stays");
    net.vsctl("detach a");
    assert_eq!(net.space("a").run("ip -o link").lines().count(), 1, "only the loopback is left");
    net.vsctl("port rm b");
    net.vsctl("network rm front");
    assert_eq!(net.get("/v1/ports"), serde_json::json!([]));
    assert_eq!(net.get("/v1/networks"), serde_json::json!([]));
}
