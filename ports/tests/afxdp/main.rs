//! AF_XDP ports against the real kernel: veth pairs in namespaces, real ping and TCP.

mod lab;

use std::time::Duration;

use lab::*;
use ports::Health;
use ports::afxdp::{Attach, Options};

#[test]
fn containers_with_all_offloads_on_talk_tcp() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = area();
    let forwarder = Forwarder::start(&lab, &Options::default(), &area);
    assert!(forwarder.modes.iter().all(|mode| mode == "xdp-native,copy,need_wakeup,tx-csum,sg"));
    assert_eq!(forwarder.notes, [] as [String; 0]);
    lab.exec("0", "ping -c 3 -i 0.2 -W 1 10.9.0.2");
    lab.exec("0", "ping -c 3 -i 0.2 -W 1 fd09::2");
    for to in [V4, V6] {
        let rate = lab.tcp(to, 1);
        assert!(rate > 0.1, "TCP to {to} reached {rate} Gbit/s");
    }
    let done = forwarder.stop();
    for stats in done.stats {
        assert_eq!((stats.rx_errors, stats.rx_no_memory, stats.tx_errors), (0, 0, 0));
        assert_eq!(stats.tx_checksummed, 0, "the receiver finishes no checksum, nor do we");
    }
    all_home(&area);
}

#[test]
fn a_frame_of_nine_thousand_bytes_crosses() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs { mtu: 9000, ..Pairs::default() });
    let area = area();
    let forwarder = Forwarder::start(&lab, &Options::default(), &area);
    lab.exec("0", "ping -c 3 -i 0.2 -W 1 -M do -s 8972 10.9.0.2");
    lab.exec("0", "ping -c 3 -i 0.2 -W 1 -M do -s 8952 fd09::2");
    for to in [V4, V6] {
        let rate = lab.tcp(to, 1);
        assert!(rate > 0.1, "TCP to {to} reached {rate} Gbit/s");
    }
    let done = forwarder.stop();
    assert_eq!(done.stats.map(|s| (s.rx_errors, s.tx_errors)), [(0, 0); 2]);
    all_home(&area);
}

#[test]
fn a_device_deleted_in_full_flood_is_an_event() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = area();
    let forwarder = Forwarder::start(&lab, &Options::default(), &area);
    let _flood = lab.start("0", "ping -q -f -s 1000 10.9.0.2");
    std::thread::sleep(Duration::from_millis(300));
    run(&format!("ip -n {} link del sw1", lab.namespace("s")));
    forwarder.wait_gone(Duration::from_secs(5));
    let done = forwarder.stop();
    assert_eq!(done.health, [Health::Up, Health::Gone]);
    all_home(&area);
}

#[test]
fn generic_mode_is_used_when_asked_for() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = area();
    let options = Options { attach: Attach::Generic, ..Options::default() };
    let forwarder = Forwarder::start(&lab, &options, &area);
    assert!(forwarder.modes.iter().all(|mode| mode == "xdp-generic,copy,need_wakeup,tx-csum,sg"));
    lab.exec("0", "ping -c 3 -i 0.2 -W 1 10.9.0.2");
    let done = forwarder.stop();
    eprintln!("{:#?}", done.stats);
    all_home(&area);
}
