//! Taps: made, adopted, removed, and gone with their namespace.

use std::time::{Duration, Instant};

use packet::Area;
use ports::Health;
use vswitch::devices::Namespace;

use crate::lab::{Lab, Outcome};

#[test]
fn a_tap_is_made_moved_and_removed() -> Outcome {
    let lab = Lab::new(&["web"])?;
    let (device, opened) = lab.create_tap(lab.tap("web", 10))?;
    assert!(!device.adopted && opened.queues.len() == 1);
    let link = lab.inside("web", "ip -d addr show dev eth0") + &lab.inside("web", "ip route");
    for word in [
        "02:00:00:00:00:0a",
        "mtu 1400",
        "LOWER_UP",
        "persist on",
        "10.1.0.10/24",
        "fd00:1::10/64",
        "default via 10.1.0.1",
    ] {
        assert!(link.contains(word), "{word} is not in {link}");
    }
    assert_eq!(lab.inside("switch", "ip -o link").lines().count(), 1, "something is left at home");
    assert_eq!(opened.queues[0].health(), Health::Up);

    lab.remove(device.clone())?;
    assert!(lab.inside("web", "ip link show dev eth0").contains("does not exist"));
    lab.remove(device)?;
    Ok(())
}

#[test]
fn a_tap_goes_with_its_namespace_though_it_is_open() -> Outcome {
    let lab = Lab::new(&["web"])?;
    let (device, mut opened) = lab.create_tap(lab.tap("web", 10))?;
    let mut pool = packet::FramePool::new(Area::new(64, 1)?);
    Namespace::remove(&lab.space("web"))?;
    let start = Instant::now();
    let port = &mut opened.queues[0];
    while port.health() != Health::Gone && start.elapsed() < Duration::from_secs(5) {
        let mut frames = Vec::new();
        port.receive(&mut pool, 8, |frame| frames.push(frame));
        frames.into_iter().for_each(|frame| pool.free(frame));
        std::thread::sleep(Duration::from_millis(1));
    }
    eprintln!("told after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(1));
    lab.remove(device)?;
    Ok(())
}

#[test]
fn a_tap_is_found_again_after_a_restart() -> Outcome {
    let lab = Lab::new(&["web"])?;
    let (first, opened) = lab.create_tap(lab.tap("web", 10))?;
    lab.inside("web", "ip addr add 10.9.9.9/32 dev eth0");
    // Without what the carrier and duplicate address detection change in their own time.
    let look = || {
        let text = lab.inside("web", "ip -o addr")
            + &lab.inside("web", "ip route")
            + &lab.inside("web", "ip -6 route");
        [" tentative", " linkdown"].iter().fold(text, |text, word| text.replace(word, ""))
    };
    let before = look();
    drop(opened);
    assert!(lab.inside("web", "ip link show dev eth0").contains("NO-CARRIER"));

    let (second, opened) = lab.create_tap(lab.tap("web", 10))?;
    assert!(second.adopted);
    assert_eq!((first.far_index, first.namespace), (second.far_index, second.namespace));
    assert_eq!(before, look());

    // Opened inside, it holds the namespace; what tells is that nobody else is there.
    let live = || lab.runtime.block_on(lab.devices.live_namespaces());
    assert!(live()?.contains(&second.namespace));
    Namespace::remove(&lab.space("web"))?;
    assert!(!live()?.contains(&second.namespace));
    lab.remove(second)?;
    drop(opened);
    Ok(())
}

#[test]
fn a_tap_of_somebody_else_is_left_alone() -> Outcome {
    let lab = Lab::new(&["web"])?;
    lab.inside("web", "ip tuntap add dev eth0 mode tap");
    let error = lab.create_tap(lab.tap("web", 10)).expect_err("the name is taken").to_string();
    assert!(error.contains("'eth0' exists already"), "{error}");
    // Another port's tap, of the same switch, is somebody else's too.
    let mut spec = lab.tap("web", 10);
    spec.far.ifname = "eth1".to_owned();
    let (device, _opened) = lab.create_tap(spec.clone())?;
    spec.port = "db".to_owned();
    assert!(lab.create_tap(spec).is_err());

    let mut bad = lab.tap("web", 10);
    bad.port = "bad".to_owned();
    bad.far.ifname = "eth2".to_owned();
    bad.far.routes = vec![("10.9.0.0/16".parse()?, Some("0.0.0.0".parse()?))];
    assert!(lab.create_tap(bad).is_err());
    assert!(lab.inside("web", "ip link show dev eth2").contains("does not exist"));

    let left = lab.runtime.block_on(lab.devices.leftovers())?;
    assert_eq!(left.iter().map(|left| left.link.index).collect::<Vec<_>>(), [device.far_index], "{left:?}");
    lab.runtime.block_on(lab.devices.remove_all())?;
    assert!(lab.inside("web", "ip link show dev eth1").contains("does not exist"));
    assert!(lab.inside("web", "ip link show dev eth0").contains("eth0:"));
    Ok(())
}
