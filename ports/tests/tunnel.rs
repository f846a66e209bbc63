//! The kernel's VXLAN inside the ends, its large frames crossing the ports. Needs root; see `common`.
//!
//! Taps with a 24-byte header hand such frames through whole. A packet socket shows them without their tunnel
//! and takes none, so the port finds the tunnel again and cuts.

mod common;

use std::net::IpAddr;

use common::{Forwarder, Lab, Way, totals};

#[test]
fn tcp_in_vxlan_crosses_with_large_frames() {
    for ways in [[Way::Veth, Way::Veth], [Way::Tap, Way::Tap], [Way::Veth, Way::Tap]] {
        for (outer_v6, options) in [(false, "noudpcsum"), (false, "udpcsum"), (true, "")] {
            let lab = Lab::new();
            let ports = vec![lab.attach(0, ways[0]), lab.attach(1, ways[1])];
            lab.configure(1500, ways);
            for (n, end) in lab.ends.iter().enumerate() {
                let (here, there) = (n + 1, 2 - n);
                let addresses = if outer_v6 {
                    format!("local fd09::{here} remote fd09::{there}")
                } else {
                    format!("local 10.9.0.{here} remote 10.9.0.{there}")
                };
                end.ip(&format!("link add v0 type vxlan id 7 dstport 4789 dev eth0 {addresses} {options}"));
                end.ip("link set v0 mtu 1400 up");
                end.ip(&format!("addr add 10.8.0.{here}/24 dev v0"));
                end.ip(&format!("addr add fd08::{here}/64 dev v0 nodad"));
            }
            let forwarder = Forwarder::new(ports, &lab.area);
            for to in [[10, 8, 0, 2].into(), IpAddr::from([0xfd08, 0, 0, 0, 0, 0, 0, 2])] {
                common::transfer(&lab.ends[0], &lab.ends[1], to, 5_000_000);
            }
            common::transfer(&lab.ends[1], &lab.ends[0], [10, 8, 0, 1].into(), 5_000_000);
            for end in &lab.ends {
                assert_eq!(end.checksum_errors(), 0, "{ways:?} {outer_v6} {options}");
            }
            let (ports, mut pool) = forwarder.stop();
            let stats = totals(&ports);
            println!("{ways:?} outer IPv6 {outer_v6} {options}: {stats:?}");
            assert_eq!((stats.rx_errors, stats.tx_errors), (0, 0), "{ways:?} {outer_v6} {options}");
            if ways == [Way::Tap, Way::Tap] {
                assert!(stats.rx_bytes / stats.rx_frames > 3000, "large frames arrive");
                assert_eq!(stats.tx_segmented, 0, "a tap takes them whole");
            } else {
                assert!(stats.tx_segmented > 50, "large frames arrive, and a packet socket takes none");
            }
            ports.into_iter().for_each(|port| port.close(&mut pool));
        }
    }
}
