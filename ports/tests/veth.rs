//! Packet sockets on veth pairs against the real kernel. Needs root; see `common`.

mod common;

use common::{Forwarder, Lab, Way, totals};

const BOTH: [Way; 2] = [Way::Veth, Way::Veth];

#[test]
fn tcp_crosses_with_offloads_on_and_off() {
    for offloads in ["on", "off"] {
        for mtu in [512, 1500, 9000] {
            let lab = Lab::new();
            let ports = vec![lab.attach(0, Way::Veth), lab.attach(1, Way::Veth)];
            lab.configure(mtu, BOTH);
            if offloads == "off" {
                for end in &lab.ends {
                    end.run("ethtool -K eth0 tx off rx off sg off tso off gso off gro off");
                }
            }
            let forwarder = Forwarder::new(ports, &lab.area);
            lab.check(false, 3_000_000);
            if mtu >= 1280 {
                lab.check(true, 3_000_000);
            }
            let (ports, mut pool) = forwarder.stop();
            let stats = totals(&ports);
            println!("offloads {offloads} mtu {mtu}: {stats:?}");
            assert_eq!((stats.rx_errors, stats.tx_errors, stats.rx_no_memory), (0, 0, 0), "{stats:?}");
            let mean = stats.rx_bytes / stats.rx_frames;
            assert!(offloads == "off" || mean > 2 * u64::from(mtu), "large frames cross whole: {mean}");
            ports.into_iter().for_each(|port| port.close(&mut pool));
        }
    }
}
