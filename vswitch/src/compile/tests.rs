//! What the compiler makes of small plans.

use super::*;

fn network() -> Network {
    Network { subnets: vec!["10.1.0.0/24".parse().expect("a subnet")], ..Network::new("n") }
}

fn member(port: &Port, id: u16) -> Member<'_> {
    Member { id: PortId(id), port, mac: made_mac("port", &port.name), up: true }
}

fn compile(
    compiler: &mut Compiler,
    networks: Vec<(NetworkId, &Network)>,
    members: Vec<Member<'_>>,
) -> Arc<Snapshot> {
    let (limits, surroundings) = (Limits::default(), Surroundings::default());
    compiler.compile(&Plan { networks, members, ..Plan::empty(&limits, &surroundings) }).0
}

#[test]
fn defaults_of_a_port_come_from_its_network() {
    let network = Network { mtu: config::Mtu::Bytes(9000), isolated: true, storm: Some(100), ..network() };
    let (plain, own) = (Port::new("p", "n"), Port { mtu: Some(1400), storm: Some(5), ..Port::new("q", "n") });
    let snapshot = compile(
        &mut Compiler::new(),
        vec![(NetworkId(1), &network)],
        vec![member(&plain, 0), member(&own, 1)],
    );
    let port = snapshot.port(PortId(0)).expect("there");
    assert_eq!((port.mtu, port.isolated, port.storm), (9000, true, Some(100)));
    let port = snapshot.port(PortId(1)).expect("there");
    assert_eq!((port.mtu, port.storm), (1400, Some(5)));
}

#[test]
fn a_port_with_addresses_is_guarded_and_answered_for() {
    let address: IpAddr = "10.1.0.5".parse().expect("an address");
    let port = Port { addresses: vec![address], ..Port::new("p", "n") };
    let network = network();
    let snapshot = compile(&mut Compiler::new(), vec![(NetworkId(0), &network)], vec![member(&port, 3)]);
    let mac = made_mac("port", "p");
    assert_eq!(
        snapshot.port(PortId(3)).map(|p| p.guard.clone()),
        Some(Guard { mac: Some(mac), addresses: vec![address] })
    );
    let info = snapshot.network(NetworkId(0)).expect("there");
    assert_eq!(info.neighbors.get(&address), Some(&Neighbor { mac, port: PortId(3) }));
    assert_eq!(
        info.gateway.as_ref().map(|g| g.addresses.clone()),
        Some(vec!["10.1.0.1".parse().expect("an address")])
    );
}

#[test]
fn what_went_is_not_in_the_next_snapshot() {
    let (network, port) = (network(), Port::new("p", "n"));
    let mut compiler = Compiler::new();
    compile(&mut compiler, vec![(NetworkId(0), &network)], vec![member(&port, 0)]);
    let snapshot = compile(&mut compiler, vec![], vec![]);
    assert!(snapshot.port(PortId(0)).is_none() && snapshot.network(NetworkId(0)).is_none());
}

#[test]
fn made_macs_are_stations_and_differ() {
    let macs: HashSet<MacAddr> = (0..10_000).map(|n| made_mac("port", &format!("c{n}"))).collect();
    assert_eq!(macs.len(), 10_000);
    assert!(macs.iter().all(|mac| mac.is_station()));
    assert_eq!(made_mac("port", "web"), made_mac("port", "web"));
}
