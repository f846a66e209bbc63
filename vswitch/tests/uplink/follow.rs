//! What the host's kernel knows, as it changes.

use std::net::IpAddr;
use std::time::Duration;

use vswitch::devices::follow::{HostState, RouteKind};

use crate::lab::{Lab, Outcome};

/// Waits for a state that `wanted` says yes to.
fn wait(
    lab: &Lab,
    states: &mut tokio::sync::watch::Receiver<HostState>,
    what: &str,
    wanted: impl FnMut(&HostState) -> bool,
) -> HostState {
    let found = lab.runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(5), states.wait_for(wanted))
            .await
            .map(|found| found.map(|s| s.clone()))
    });
    match found {
        Ok(Ok(state)) => state,
        _ => panic!("it did not come: {what}; the last state: {:#?}", states.borrow()),
    }
}

#[test]
fn the_host_is_followed() -> Outcome {
    let lab = Lab::new()?;
    let uplink = lab.start()?;
    let mut states = lab.runtime.block_on(uplink.follow())?;
    let d0 = lab.index("host", "d0");
    let first = states.borrow().clone();
    assert!(first.addresses.contains(&(d0, "10.8.0.1/24".parse()?)), "{first:#?}");
    assert!(first.addresses.contains(&(d0, "fd08::1/64".parse()?)));
    let link = first.link(d0).expect("listed");
    assert_eq!((link.name.as_str(), link.mac, link.mtu, link.up), ("d0", lab.mac("host", "d0"), 1500, true));
    // Its only route is to a subnet, and it is a veth device: of a container, as far as one can tell.
    assert!(first.uplinks().is_empty());

    // The default route, and its gateway, which the switch has resolved by the kernel.
    lab.sh("host", "ip route add default via 10.8.0.2 src 10.8.0.1 metric 7");
    let outside: IpAddr = "192.0.2.9".parse()?;
    let gateway: IpAddr = "10.8.0.2".parse()?;
    let state = wait(&lab, &mut states, "a default route", |state| state.neighbor(d0, gateway).is_some());
    let routes: Vec<_> = state.route(outside).collect();
    assert_eq!(routes.len(), 1);
    let route = routes[0];
    assert_eq!(
        (route.device, route.via, route.source, route.metric),
        (d0, Some(gateway), Some("10.8.0.1".parse()?), 7)
    );
    assert_eq!(state.uplinks(), [d0]);
    assert_eq!(state.neighbor(d0, gateway), Some(lab.mac("out", "o0")));
    assert!(lab.sh("host", "ip neigh show dev d0").contains("managed"));
    let on_link: Vec<_> = state.route("10.8.0.9".parse()?).collect();
    assert_eq!((on_link.len(), on_link[0].via, on_link[0].device), (1, None, d0));

    // Another device takes over, with two next hops; something is unreachable.
    let out = lab.space("out");
    lab.sh("host", &format!("ip link add d1 type veth peer name o1 netns {out}"));
    lab.sh("host", "ip addr add 10.9.0.1/24 dev d1; ip link set d1 mtu 1400 up");
    lab.sh("out", "ip addr add 10.9.0.2/24 dev o1; ip addr add 10.9.0.3/24 dev o1; ip link set o1 up");
    lab.sh(
        "host",
        "ip route replace default metric 5 nexthop via 10.9.0.2 weight 1 nexthop via 10.9.0.3 weight 2",
    );
    lab.sh("host", "ip route add unreachable 192.0.2.0/28; ip -6 route add blackhole 2001:db8::/32");
    let d1 = lab.index("host", "d1");
    let state = wait(&lab, &mut states, "two next hops", |state| {
        state.neighbor(d1, "10.9.0.3".parse().expect("an address")).is_some() && state.routes.len() >= 8
    });
    let routes: Vec<_> = state.route("198.51.100.1".parse()?).map(|r| (r.device, r.weight)).collect();
    assert_eq!(routes, [(d1, 1), (d1, 2)]);
    let kinds: Vec<_> = state.route(outside).map(|route| route.kind).collect();
    assert_eq!(kinds, [RouteKind::Unreachable]);
    let kinds: Vec<_> = state.route("2001:db8::1".parse()?).map(|route| (route.kind, route.device)).collect();
    assert_eq!(kinds, [(RouteKind::Blackhole, 0)]);
    assert_eq!(state.link(d1).expect("listed").mtu, 1400);

    // A device that goes takes its routes along.
    lab.sh("host", "ip link del d1");
    let state = wait(&lab, &mut states, "the device has gone", |state| {
        state.link(d1).is_none() && state.uplinks() == [d0]
    });
    assert_eq!(state.route("198.51.100.1".parse()?).next().expect("the other one").device, d0);
    assert!(state.addresses.iter().all(|address| address.0 != d1));
    Ok(())
}

#[test]
fn next_hops_are_resolved_on_demand() -> Outcome {
    let lab = Lab::new()?;
    let uplink = lab.start()?;
    let mut states = lab.runtime.block_on(uplink.follow())?;
    let d0 = lab.index("host", "d0");
    for address in ["10.8.0.2", "fd08::2"] {
        let address = address.parse()?;
        assert_eq!(states.borrow().neighbor(d0, address), None);
        uplink.resolve(d0, address);
        let state = wait(&lab, &mut states, "a neighbour", |state| state.neighbor(d0, address).is_some());
        assert_eq!(state.neighbor(d0, address), Some(lab.mac("out", "o0")));
    }
    // Its hardware address changes.
    lab.sh("out", "ip link set o0 address 02:00:00:00:00:42");
    lab.sh("host", "ip neigh flush dev d0");
    uplink.resolve(d0, "10.8.0.2".parse()?);
    wait(&lab, &mut states, "the new address", |state| {
        state.neighbor(d0, "10.8.0.2".parse().expect("an address")).is_some_and(|mac| mac.0[5] == 0x42)
    });
    Ok(())
}
