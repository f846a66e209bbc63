//! VLANs: access, trunk, native, and the tags on the wire.

use packet::build::{Eth, eth};
use packet::{MacAddr, VlanId};
use pipeline::{DropReason, VlanMode};
use tests::Lab;

const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);

fn bytes(ethernet: Eth) -> Vec<u8> {
    ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2]).udp(1, 2).data(b"hello, world").bytes()
}

fn untagged(to: MacAddr) -> Vec<u8> {
    bytes(eth(A, to))
}

fn tagged(vlan: u16, to: MacAddr) -> Vec<u8> {
    bytes(eth(A, to).vlan(VlanId(vlan)))
}

/// access10, access20, trunk of 10 and 20 with native 30, plain.
fn lab() -> Lab {
    let mut lab = Lab::new(&["plain"]);
    lab.port("access10", "net", |port| port.vlan = VlanMode::Access(VlanId(10)));
    lab.port("access20", "net", |port| port.vlan = VlanMode::Access(VlanId(20)));
    lab.port("trunk", "net", |port| {
        let allowed = Box::new([VlanId(10), VlanId(20)].into_iter().collect());
        port.vlan = VlanMode::Trunk { allowed, native: Some(VlanId(30)) };
    });
    lab.port("trunk-only", "net", |port| {
        let allowed = Box::new([VlanId(10), VlanId(30)].into_iter().collect());
        port.vlan = VlanMode::Trunk { allowed, native: None };
    });
    lab
}

#[test]
fn a_tag_reaches_its_vlan_only_and_leaves_it_untagged() {
    let mut lab = lab();
    lab.send("trunk", tagged(10, MacAddr::BROADCAST));
    lab.receive("access10", untagged(MacAddr::BROADCAST));
    lab.receive("trunk-only", tagged(10, MacAddr::BROADCAST));
    lab.silent("access20");
    lab.silent("plain");
}

#[test]
fn access_frames_get_a_tag_on_the_trunk() {
    let mut lab = lab();
    lab.send("access20", untagged(MacAddr::BROADCAST));
    lab.receive("trunk", tagged(20, MacAddr::BROADCAST));
    lab.silent("trunk-only");
    lab.silent("access10");
}

#[test]
fn the_native_vlan_is_untagged_on_its_trunk_and_tagged_on_others() {
    let mut lab = lab();
    lab.send("trunk", untagged(MacAddr::BROADCAST));
    lab.receive("trunk-only", tagged(30, MacAddr::BROADCAST));
    lab.silent("plain");
    lab.send("trunk-only", tagged(30, MacAddr::BROADCAST));
    lab.receive("trunk", untagged(MacAddr::BROADCAST));
}

#[test]
fn a_vlan_that_the_port_does_not_carry_is_dropped() {
    let mut lab = lab();
    for (port, frame) in [
        ("plain", tagged(10, B)),
        ("access10", tagged(10, B)),
        ("access10", tagged(20, B)),
        ("trunk", tagged(40, B)),
        ("trunk", tagged(4095, B)),
        ("trunk-only", untagged(B)),
    ] {
        lab.send(port, frame);
    }
    assert_eq!(lab.dropped(DropReason::Vlan), 6);
}

#[test]
fn a_priority_tag_counts_as_untagged() {
    let mut lab = lab();
    let with_priority = |tci: u16| bytes(eth(A, MacAddr::BROADCAST).tag(0x8100, tci));
    lab.send("access10", with_priority(5 << 13));
    lab.receive("trunk", with_priority(5 << 13 | 10));
    lab.receive("trunk-only", with_priority(5 << 13 | 10));
}

#[test]
fn a_cached_decision_changes_the_tag_too() {
    let mut lab = lab();
    let back = |tag: Option<u16>| match tag {
        Some(vlan) => bytes(eth(B, A).vlan(VlanId(vlan))),
        None => bytes(eth(B, A)),
    };
    lab.send("access10", untagged(MacAddr::BROADCAST));
    lab.send("trunk", back(Some(10)));
    for port in ["trunk", "trunk-only", "access10"] {
        lab.take(port);
    }
    for _ in 0..3 {
        lab.send("access10", untagged(B));
        lab.receive("trunk", tagged(10, B));
        lab.send("trunk", back(Some(10)));
        lab.receive("access10", back(None));
    }
    assert!(lab.tables.counters(0).ledger.cache_hits.get() >= 4);
}

#[test]
fn a_station_is_known_in_its_vlan_only() {
    let mut lab = lab();
    lab.send("access10", untagged(MacAddr::BROADCAST));
    lab.send("trunk", bytes(eth(B, A).vlan(VlanId(20))));
    lab.receive("access20", bytes(eth(B, A)));
    lab.receive("trunk", tagged(10, MacAddr::BROADCAST));
    lab.receive("trunk-only", tagged(10, MacAddr::BROADCAST));
    lab.silent("access10");
}
