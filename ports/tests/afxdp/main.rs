//! AF_XDP ports against the real kernel: veth pairs in namespaces, real ping and TCP.

mod lab;
mod vlan;

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::*;
use packet::{Area, FramePool, FrameQueue};
use ports::afxdp::{Attach, CopyMode, Options};
use ports::{Health, Port};

const MEGABYTE: usize = 1 << 20;

/// Ping and a checked TCP transfer, IPv4 and IPv6 where its MTU allows.
fn talk(lab: &Lab, len: usize, v6: bool) {
    lab.exec("0", "ping -q -c 2 -i 0.1 -W 1 10.9.0.2");
    lab.transfer(V4, len);
    if v6 {
        lab.exec("0", "ping -q -c 2 -i 0.1 -W 1 fd09::2");
        lab.transfer(V6, len);
    }
}

#[test]
fn containers_with_all_offloads_on_talk_tcp() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = area();
    let forwarder = Forwarder::start(&lab, &Options::default(), &area);
    assert_eq!(forwarder.modes, ["xdp-native,copy,need_wakeup,tx-csum,sg"; 2]);
    assert_eq!(forwarder.notes, [] as [String; 0]);
    talk(&lab, 20 * MEGABYTE, true);
    let done = forwarder.stop();
    for stats in done.stats {
        assert_eq!((stats.rx_errors, stats.rx_no_memory, stats.tx_errors), (0, 0, 0));
        assert_eq!(stats.tx_checksummed, 0, "the receiver finishes no checksum, nor do we");
        assert!(stats.rx_frames > 100 && stats.tx_frames > 100 && stats.syscalls > 100);
        assert!(stats.lent_chunks > 0);
    }
    all_home(&area);
}

#[test]
fn tcp_crosses_at_every_mtu_with_offloads_on_and_off() {
    if !can_run() {
        return;
    }
    for offloads in [true, false] {
        for mtu in [512, 1280, 2048, 3390, 3600, 4100, 9000, 40_000] {
            let lab = Lab::new(Pairs { mtu, offloads, ..Pairs::default() });
            let area = area();
            let forwarder = Forwarder::start(&lab, &Options::default(), &area);
            let longest = mtu - 28;
            lab.exec("0", &format!("ping -q -c 2 -i 0.1 -W 1 -M do -s {longest} 10.9.0.2"));
            talk(&lab, 2 * MEGABYTE, mtu >= 1280);
            let done = forwarder.stop();
            for stats in done.stats {
                assert_eq!((stats.rx_errors, stats.tx_errors), (0, 0), "MTU {mtu}");
            }
            all_home(&area);
        }
    }
}

#[test]
fn a_kernel_without_transmit_metadata_gets_finished_checksums() {
    if !can_run() {
        return;
    }
    for mtu in [1500, 9000] {
        let lab = Lab::new(Pairs { mtu, ..Pairs::default() });
        let area = area();
        let options = Options { tx_checksum: false, ..Options::default() };
        let forwarder = Forwarder::start(&lab, &options, &area);
        assert_eq!(forwarder.modes, ["xdp-native,copy,need_wakeup,sg"; 2]);
        talk(&lab, 2 * MEGABYTE, true);
        let done = forwarder.stop();
        assert!(done.stats.iter().all(|s| s.tx_checksummed > 0 && s.tx_errors == 0));
        all_home(&area);
    }
}

#[test]
fn the_aligned_layout_of_zero_copy_carries_jumbo_frames() {
    if !can_run() {
        return;
    }
    for tx_checksum in [true, false] {
        let lab = Lab::new(Pairs { mtu: 9000, ..Pairs::default() });
        let area = area();
        let options = Options { aligned: true, tx_checksum, ..Options::default() };
        let forwarder = Forwarder::start(&lab, &options, &area);
        talk(&lab, 2 * MEGABYTE, true);
        let done = forwarder.stop();
        assert_eq!(done.stats.map(|s| (s.rx_errors, s.tx_errors)), [(0, 0); 2]);
        all_home(&area);
    }
}

#[test]
fn without_fragments_ordinary_frames_still_cross() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = area();
    let options = Options { fragments: false, ..Options::default() };
    let forwarder = Forwarder::start(&lab, &options, &area);
    assert_eq!(forwarder.modes, ["xdp-native,copy,need_wakeup,tx-csum"; 2]);
    talk(&lab, 2 * MEGABYTE, true);
    forwarder.stop();
    all_home(&area);
}

#[test]
fn generic_mode_carries_large_frames_of_a_sender_that_was_not_told() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = area();
    let generic = Options { attach: Attach::Generic, ..Options::default() };
    let forwarder = Forwarder::start_each(&lab, [generic, Options::default()], &area);
    assert_eq!(forwarder.modes[0], "xdp-generic,copy,need_wakeup,tx-csum,sg");
    talk(&lab, 4 * MEGABYTE, true);
    let done = forwarder.stop();
    assert!(done.stats[1].tx_segmented > 0, "large frames were cut on their way out");
    assert_eq!(done.stats.map(|s| (s.rx_errors, s.tx_errors)), [(0, 0); 2]);
    all_home(&area);
}

#[test]
fn every_queue_of_a_device_has_its_port() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs { queues: 2, ..Pairs::default() });
    let area = area();
    lab.enter("s");
    let opened = open(0, Options::default(), &area).expect("the port opens");
    let mut queues = opened.queues;
    assert_eq!(queues.len(), 2);
    let mut pool = FramePool::new(area.clone());
    for queue in &mut queues {
        queue.receive(&mut pool, 64, |_| unreachable!("nobody sends"));
    }
    lab.exec("0", "ip neigh add 10.9.0.77 lladdr 02:00:00:00:00:77 dev eth0");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lab.enter("0");
            for port in 4000..4064u16 {
                let socket = UdpSocket::bind(("10.9.0.1", port)).expect("a free port");
                socket.send_to(b"x", "10.9.0.77:9").expect("the neighbour is known");
            }
        });
    });
    let mut counts = [0, 0];
    for (queue, count) in queues.iter_mut().zip(&mut counts) {
        let mut frames = Vec::new();
        queue.receive(&mut pool, 256, |frame| frames.push(frame));
        *count = frames.iter().filter(|frame| frame.bytes()[..6] == [2, 0, 0, 0, 0, 0x77]).count();
        frames.into_iter().for_each(|frame| pool.free(frame));
    }
    assert_eq!(counts.iter().sum::<usize>(), 64);
    assert!(counts.iter().all(|count| *count > 0), "one queue got nothing: {counts:?}");
    // The queues close one by one; the others stay.
    queues.remove(0).close(&mut pool);
    assert!(lab.exec("s", "ip link show sw0").contains("xdp"));
    queues.remove(0).close(&mut pool);
    assert!(!lab.exec("s", "ip link show sw0").contains("xdp"));
    drop(pool);
    all_home(&area);
    let forwarder = Forwarder::start(&lab, &Options::default(), &area);
    talk(&lab, 2 * MEGABYTE, true);
    forwarder.stop();
    all_home(&area);
}

#[test]
fn an_area_that_is_used_up_is_counted_and_recovers() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = Area::new(128, 4).expect("a small area");
    lab.enter("s");
    let mut port = open(0, Options::default(), &area).expect("the port opens").queues.remove(0);
    let mut pool = FramePool::new(area.clone());
    let mut held: Vec<_> = std::iter::from_fn(|| pool.alloc(60)).collect();
    port.receive(&mut pool, 64, |_| unreachable!("nobody sends"));
    assert_eq!((port.stats().rx_no_memory, port.stats().lent_chunks), (1, 0));
    assert!(port.wants_turn(), "nothing wakes a port that has no chunk in the kernel");
    held.drain(..).for_each(|frame| pool.free(frame));
    port.receive(&mut pool, 64, |_| unreachable!("nobody sends"));
    assert_eq!(port.stats().lent_chunks, 128);
    assert!(!port.wants_turn());
    lab.try_exec("0", "ping -c 1 -W 1 10.9.0.77");
    assert!(port.wants_turn());
    let mut count = 0;
    port.receive(&mut pool, 64, |frame| {
        held.push(frame);
        count += 1;
    });
    assert!(count > 0);
    held.drain(..).for_each(|frame| pool.free(frame));
    port.close(&mut pool);
    drop(pool);
    all_home(&area);
}

#[test]
fn a_device_deleted_in_full_flood_is_an_event() {
    if !can_run() {
        return;
    }
    // Deleted behind the sender and behind the receiver; in the middle of a stream of frames both ways.
    for victim in 0..2 {
        let lab = Lab::new(Pairs::default());
        let area = area();
        let forwarder = Forwarder::start(&lab, &Options::default(), &area);
        let _flood = lab.start("0", "ping -q -f -s 1000 10.9.0.2");
        std::thread::sleep(Duration::from_millis(300));
        run(&format!("ip -n {} link del sw{victim}", lab.namespace("s")));
        forwarder.wait_gone(Duration::from_secs(5));
        let done = forwarder.stop();
        assert_eq!(done.health[victim], Health::Gone);
        assert_eq!(done.health[1 - victim], Health::Up);
        all_home(&area);
    }
}

#[test]
fn a_namespace_deleted_in_full_flood_is_an_event() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = area();
    let forwarder = Forwarder::start(&lab, &Options::default(), &area);
    let flood = lab.start("0", "ping -q -f -s 1000 10.9.0.2");
    std::thread::sleep(Duration::from_millis(300));
    run(&format!("ip netns del {}", lab.namespace("1")));
    forwarder.wait_gone(Duration::from_secs(10));
    drop(flood);
    let done = forwarder.stop();
    assert_eq!(done.health, [Health::Up, Health::Gone]);
    all_home(&area);
}

#[test]
fn an_idle_port_learns_from_its_statistics_that_the_device_is_down_or_gone() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = area();
    lab.enter("s");
    let port = open(0, Options::default(), &area).expect("the port opens").queues.remove(0);
    let health_after = |line: &str| {
        run(&format!("ip -n {} {line}", lab.namespace("s")));
        port.stats();
        port.health()
    };
    assert_eq!(health_after("link set sw0 down"), Health::Down);
    assert_eq!(health_after("link set sw0 up"), Health::Up);
    assert_eq!(health_after("link del sw0"), Health::Gone);
    drop(port);
    all_home(&area);
}

#[test]
fn a_device_that_was_down_forwards_again() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = area();
    let forwarder = Forwarder::start(&lab, &Options::default(), &area);
    run(&format!("ip -n {} link set sw1 down", lab.namespace("s")));
    assert!(!lab.try_exec("0", "ping -q -c 1 -W 1 10.9.0.2").status.success());
    run(&format!("ip -n {} link set sw1 up", lab.namespace("s")));
    lab.exec("0", "ping -q -c 2 -i 0.1 -W 2 10.9.0.2");
    forwarder.stop();
    all_home(&area);
}

#[test]
fn chunks_in_flight_are_capped() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = area();
    lab.enter("s");
    let options = Options { fill: 64, fill_limit: 64, in_flight: 32, ..Options::default() };
    let mut port = open(0, options, &area).expect("the port opens").queues.remove(0);
    let mut pool = FramePool::new(area.clone());
    let mut queue = FrameQueue::new(1024);
    port.receive(&mut pool, 64, |_| unreachable!("nobody sends"));
    // A device that is down takes nothing.
    run(&format!("ip -n {} link set sw0 down", lab.namespace("s")));
    for _ in 0..100 {
        let frame = pool.alloc_from(&[0xff; 60]).expect("a chunk");
        queue.push(frame).expect("room");
    }
    // The port does not know yet, so it fills its ring up to the cap.
    port.transmit(&mut queue, &mut pool);
    assert_eq!(queue.len(), 68);
    assert_eq!(port.health(), Health::Down);
    port.transmit(&mut queue, &mut pool);
    assert_eq!((queue.len(), port.stats().lent_chunks), (68, 64 + 32));
    run(&format!("ip -n {} link set sw0 up", lab.namespace("s")));
    let start = Instant::now();
    while !queue.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(5), "{} frames are stuck", queue.len());
        port.transmit(&mut queue, &mut pool);
        assert!(port.stats().lent_chunks <= 64 + 32);
    }
    port.close(&mut pool);
    drop(pool);
    all_home(&area);
}

#[test]
fn frames_that_cannot_be_sent_are_counted_and_do_not_stop_the_others() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = area();
    lab.enter("s");
    let options = Options { fragments: false, ..Options::default() };
    let mut port = open(0, options, &area).expect("the port opens").queues.remove(0);
    let mut pool = FramePool::new(area.clone());
    let mut queue = FrameQueue::new(16);
    for len in [60, 0, 13, 9000, 68_000, 60] {
        let mut frame = pool.alloc(len).expect("a chunk");
        frame.set_len(len);
        frame.bytes_mut().fill(0xff);
        queue.push(frame).expect("room");
    }
    let mut wrong = pool.alloc_from(&[0xff; 60]).expect("a chunk");
    wrong.set_checksum(packet::Checksum::Partial { start: 50, offset: 40 });
    queue.push(wrong).expect("room");
    port.transmit(&mut queue, &mut pool);
    assert!(queue.is_empty());
    let stats = port.stats();
    assert_eq!((stats.tx_frames, stats.tx_errors), (2, 5));
    port.close(&mut pool);
    drop(pool);
    all_home(&area);
}

#[test]
fn another_program_on_the_device_is_named_as_the_reason() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = area();
    lab.enter("s");
    let first = open(0, Options::default(), &area).expect("the port opens");
    let error = open(0, Options::default(), &area).expect_err("the device is taken").to_string();
    assert_eq!(
        error,
        "port 'port0': cannot attach the XDP program to sw0: another XDP program is attached to sw0: \
         `ip -details link show sw0` tells which"
    );
    drop(first);
    all_home(&area);
}

#[test]
fn errors_name_what_was_tried() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let area = area();
    lab.enter("s");
    let error = |n, options| open(n, options, &area).expect_err("it cannot work").to_string();
    assert_eq!(error(7, Options::default()), "port 'port7': cannot find sw7: No such device (os error 19)");
    let options = Options { ring: 1000, ..Options::default() };
    assert!(error(0, options).contains("the ring size must be a power of two from 64 to 32768"));
    let options = Options { copy: CopyMode::ZeroCopy, ..Options::default() };
    assert_eq!(
        error(0, options),
        "port 'port0': cannot bind on sw0 queue 0: Operation not supported (os error 95)"
    );
    let options = Options { queues: Some(3), ..Options::default() };
    assert!(error(0, options).contains("on sw0 queue 1"));
    all_home(&area);
}

#[test]
fn two_hundred_lives_of_a_port_leak_nothing() {
    if !can_run() {
        return;
    }
    // In a process of its own: what other tests of this program hold would be counted too.
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "helper_lives", "--ignored", "--nocapture"])
        .output()
        .expect("it starts");
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&told));
}

/// Not a test of its own: what the test above runs.
#[test]
#[ignore = "helper of two_hundred_lives_of_a_port_leak_nothing"]
fn helper_lives() {
    let lab = Lab::new(Pairs::default());
    let area = area();
    lab.enter("s");
    let mut pool = FramePool::new(area.clone());
    let status = |key: &str| {
        let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
        let line = status.lines().find(|l| l.starts_with(key)).expect("the key");
        line.split_whitespace().nth(1).and_then(|v| v.parse::<i64>().ok()).expect("a number")
    };
    let mut resident = 0;
    for life in 0..200 {
        let mut port = open(0, Options::default(), &area).expect("the port opens").queues.remove(0);
        port.receive(&mut pool, 64, |_| unreachable!("nobody sends"));
        let mut queue = FrameQueue::new(4);
        queue.push(pool.alloc_from(&[0xff; 60]).expect("a chunk")).expect("room");
        port.transmit(&mut queue, &mut pool);
        assert_eq!(queue.len(), 0);
        if life % 2 == 0 {
            port.close(&mut pool);
        } else {
            drop(port);
        }
        if life == 20 {
            resident = status("VmRSS");
        }
    }
    let grown = status("VmRSS") - resident;
    assert!(grown < 8192, "{grown} KiB more resident after 180 lives");
    let left = std::fs::read_dir("/proc/self/fd")
        .expect("procfs")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().contains("bpf"))
        .count();
    assert!(left < 60, "{left} BPF descriptors are open");
    drop(pool);
    all_home(&area);
}

/// Not a test of its own: the process that the next test kills.
#[test]
#[ignore = "helper of the_program_vanishes_with_its_process"]
fn helper_process() {
    let Ok(namespace) = std::env::var("VSWITCH_TEST_NAMESPACE") else { return };
    let file = std::fs::File::open(format!("/run/netns/{namespace}")).expect("the namespace");
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("root may enter");
    let area = area();
    let mut port = open(0, Options::default(), &area).expect("the port opens").queues.remove(0);
    let mut pool = FramePool::new(area);
    println!("open");
    loop {
        port.receive(&mut pool, 64, std::mem::forget);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_program_vanishes_with_its_process() {
    if !can_run() {
        return;
    }
    let lab = Lab::new(Pairs::default());
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "helper_process", "--ignored", "--nocapture"])
        .env("VSWITCH_TEST_NAMESPACE", lab.namespace("s"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut child = Running(child);
    let output = child.0.stdout.take().expect("piped");
    let opened = BufReader::new(output).lines().map_while(Result::ok).any(|line| line.ends_with("open"));
    assert!(opened, "the helper opens the port");
    let attached = || lab.exec("s", "ip link show sw0").contains("xdp");
    assert!(attached());
    drop(child);
    assert!(!attached(), "the program is still attached after SIGKILL");
    // A new process takes over.
    let area = area();
    let forwarder = Forwarder::start(&lab, &Options::default(), &area);
    talk(&lab, MEGABYTE, true);
    forwarder.stop();
    all_home(&area);
}

#[test]
fn a_port_can_move_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Port>();
}

/// Not a test: figures for one machine. `cargo test --release -p ports --test afxdp -- --ignored speed`.
#[test]
#[ignore = "measures"]
fn speed() {
    for mtu in [1500, 9000] {
        let lab = Lab::new(Pairs { mtu, ..Pairs::default() });
        let area = area();
        let forwarder = Forwarder::start(&lab, &Options::default(), &area);
        let rates = [V4, V6].map(|to| lab.tcp(to, 3));
        let done = forwarder.stop();
        println!("MTU {mtu}: IPv4 {} IPv6 {} Gbit/s, {:?}", rates[0], rates[1], done.stats);
    }
}
