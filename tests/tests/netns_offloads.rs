//! TCP between every pair of port kinds, both ways, at every MTU, with the far ends' offloads on and off.
//!
//! One daemon serves the whole table; MTUs change while it runs. Each cell sends content both ways and looks at
//! every byte, so a checksum that nobody finished, a segment cut wrong, or a frame above the MTU shows as a
//! stall or a wrong byte. The cells that failed are told together. Needs root and ethtool.

use std::net::IpAddr;
use std::time::Instant;

use tests::Net;
use tests::net::{need, transfer, wait_for};

const KINDS: [&str; 3] = ["veth", "tap", "afxdp"];
/// Bytes each way: a few hundred segments of the largest size, thousands of the smallest.
const BYTES: u64 = 4 << 20;
/// What a stack does for its device, or its device for it. TCP's checksum comes with `tx`.
const OFFLOADS: [&str; 7] = ["tx", "rx", "sg", "tso", "gso", "gro", "tx-udp-segmentation"];

/// Two ports of each kind.
fn config(mtu: u16) -> String {
    // IPv6 needs 1280.
    let v6 = if mtu < 1280 { "" } else { ", \"fd00:1::/64\"" };
    let mut text = format!(
        "[limits]\nmemory = \"96 MiB\"\n[[network]]\nname = \"front\"\nmtu = {mtu}\n\
         subnets = [\"10.1.0.0/24\"{v6}]\n"
    );
    for (n, (kind, end)) in ends().into_iter().enumerate() {
        let v6 = if mtu < 1280 { String::new() } else { format!(", \"{}\"", address(n, true)) };
        let v4 = address(n, false);
        text += &format!(
            "[[port]]\nname = \"{kind}{end}\"\nnetwork = \"front\"\nkind = \"{kind}\"\nnetns = \"@{kind}{end}\"\n\
             addresses = [\"{v4}\"{v6}]\n"
        );
    }
    text
}

fn ends() -> Vec<(&'static str, u8)> {
    KINDS.into_iter().flat_map(|kind| [(kind, 1), (kind, 2)]).collect()
}

fn address(n: usize, v6: bool) -> IpAddr {
    let text = if v6 { format!("fd00:1::{}", n + 10) } else { format!("10.1.0.{}", n + 10) };
    text.parse().expect("an address")
}

/// Turns the far ends' offloads on or off, as far as the device has them.
fn set_offloads(net: &Net, on: bool) {
    let word = if on { "on" } else { "off" };
    for (kind, end) in ends() {
        let space = net.space(&format!("{kind}{end}"));
        for offload in OFFLOADS {
            space.output(&format!("ethtool -K eth0 {offload} {word}"));
        }
        let features = space.run("ethtool -k eth0");
        // The kernel takes TSO from a veth whose other end has an XDP program.
        let tso = format!("tcp-segmentation-offload: {word}");
        assert!(kind == "afxdp" || features.contains(&tso), "{kind} cannot turn TSO {word}:\n{features}");
        let checksum = format!("tx-checksumming: {word}");
        assert!(features.contains(&checksum), "{kind} cannot turn checksums {word}:\n{features}");
    }
}

#[test]
fn tcp_works_between_every_pair_of_kinds_at_every_mtu_with_offloads_on_and_off() {
    need(&["ethtool"]);
    let net = Net::with(&config(1500));
    let (mut failures, mut cells) = (Vec::new(), 0);
    for mtu in [1500, 512, 1280, 2048, 9000] {
        net.apply(&config(mtu));
        for (kind, end) in ends() {
            let links = net.space(&format!("{kind}{end}")).run("ip -o link show dev eth0");
            assert!(links.contains(&format!("mtu {mtu} ")), "{kind}{end}: {links}");
        }
        for offloads in [true, false] {
            set_offloads(&net, offloads);
            for v6 in [false, true] {
                if v6 && mtu < 1280 {
                    continue;
                }
                let start = Instant::now();
                for from_kind in KINDS {
                    for (to, to_kind) in KINDS.into_iter().enumerate() {
                        let (client, server) =
                            (net.space(&format!("{from_kind}1")), net.space(&format!("{to_kind}2")));
                        cells += 1;
                        if let Err(error) = transfer(&client, &server, address(2 * to + 1, v6), BYTES) {
                            let family = if v6 { "IPv6" } else { "IPv4" };
                            failures.push(format!(
                                "{from_kind} -> {to_kind} {family} MTU {mtu} offloads {offloads}: {error}"
                            ));
                        }
                    }
                }
                println!("MTU {mtu}, IPv6 {v6}, offloads {offloads}: {:?}", start.elapsed());
            }
        }
    }
    let drops = net.get("/v1/drops");
    assert!(failures.is_empty(), "{} of {cells} failed:\n{}\n{drops:#}", failures.len(), failures.join("\n"));
    net.balance();
    // Nothing was too large for where it went, and no chunk is missing.
    for (kind, end) in ends() {
        let port = net.port(&format!("{kind}{end}"));
        assert_eq!(port["counters"]["tx_errors"], 0, "{port:#}");
        assert_eq!(net.dropped(&format!("{kind}{end}"), "malformed"), 0, "{drops:#}");
    }
    wait_for("all large chunks are back", || {
        let memory = &net.get("/v1/status")["memory"];
        memory["large_free"].as_u64().unwrap_or(0) * 2 >= memory["large_chunks"].as_u64().unwrap_or(u64::MAX)
    });
}
