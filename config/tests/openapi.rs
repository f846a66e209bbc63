//! docs/openapi.json describes what api.rs says: routes, methods, and the fields of every type.

use std::collections::BTreeSet;

use config::api::*;
use config::{
    Action, Change, ChangeKind, Document, Egress, FloatingIp, Network, OverlayPeer, Owner, Peer, Policy,
    Port, PortKind, Publish, Remote, Route, RouteKind, RouteTo, keys,
};
use packet::MacAddr;
use serde::Serialize;
use serde_json::Value;

fn openapi() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let text = std::fs::read_to_string(path).expect("docs/openapi.json is there");
    serde_json::from_str(&text).expect("is JSON")
}

#[test]
fn every_route_and_method_is_described_and_no_other() {
    let openapi = openapi();
    assert!(openapi["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
    let paths = openapi["paths"].as_object().expect("has paths");
    let told: BTreeSet<(String, String)> = paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().expect("an object").keys().filter(|key| *key != "parameters");
            methods.map(|method| (path.clone(), method.clone()))
        })
        .collect();
    let served: BTreeSet<(String, String)> = route::ALL
        .iter()
        .flat_map(|(path, methods)| methods.iter().map(|method| ((*path).to_owned(), (*method).to_owned())))
        .collect();
    assert_eq!(told, served);
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk(value: &Value, root: &Value, seen: &mut usize) {
        match value {
            Value::Object(fields) => {
                if let Some(target) = fields.get("$ref").and_then(Value::as_str) {
                    let pointer = target.strip_prefix('#').expect("references stay in the document");
                    assert!(root.pointer(pointer).is_some(), "{target}");
                    *seen += 1;
                }
                fields.values().for_each(|value| walk(value, root, seen));
            }
            Value::Array(items) => items.iter().for_each(|value| walk(value, root, seen)),
            _ => {}
        }
    }
    let openapi = openapi();
    let mut seen = 0;
    walk(&openapi, &openapi, &mut seen);
    assert!(seen > 40);
}

/// Compares the properties of a schema with the fields of an object that leaves none out.
fn same_fields(openapi: &Value, schema: &str, object: impl Serialize) {
    let object = serde_json::to_value(object).expect("has a JSON form");
    let fields: BTreeSet<&String> = object.as_object().expect("an object").keys().collect();
    assert_eq!(properties(openapi, schema), fields, "{schema}");
}

fn properties<'v>(openapi: &'v Value, schema: &str) -> BTreeSet<&'v String> {
    let schema = &openapi["components"]["schemas"][schema];
    schema["properties"].as_object().expect("a schema of an object").keys().collect()
}

#[test]
fn every_schema_has_the_fields_of_its_type() {
    let openapi = openapi();
    let (network, port) = (Network::new("n"), Port::new("p", "n"));
    let mac = MacAddr::local(1);
    let address = "10.0.0.1".parse().expect("good");
    let owner = Owner::File;

    same_fields(&openapi, "ErrorReply", ErrorReply { error: ErrorBody::default() });
    same_fields(&openapi, "ErrorBody", ErrorBody { message: "m".into(), details: vec!["d".into()] });
    same_fields(&openapi, "Status", Status::default());
    same_fields(&openapi, "Counts", Counts::default());
    same_fields(&openapi, "MemoryView", MemoryView::default());
    same_fields(&openapi, "KernelView", KernelView::default());
    same_fields(&openapi, "ApplyRequest", ApplyRequest::default());
    same_fields(&openapi, "ApplyReply", ApplyReply::default());
    let change =
        Change { action: ChangeKind::Add, kind: "port".into(), name: "p".into(), detail: "d".into() };
    same_fields(&openapi, "Change", change);
    let (gateways, ports) = (Vec::new(), Vec::new());
    let view = NetworkView { config: network, owner, gateways, ports, stations: 0, mtu: 1500 };
    same_fields(&openapi, "NetworkView", view);
    let view = PortView {
        config: port,
        id: None,
        owner,
        state: PortState::Up,
        reason: None,
        kind: PortKind::Veth,
        mode: String::new(),
        notes: Vec::new(),
        device: String::new(),
        peer: String::new(),
        mac: None,
        mtu: 1500,
        workers: Vec::new(),
        counters: PortCounters::default(),
        rates: Rates::default(),
    };
    same_fields(&openapi, "PortView", view);
    same_fields(&openapi, "PortCounters", PortCounters::default());
    same_fields(&openapi, "Rates", Rates::default());
    let attach = AttachRequest {
        target: "pid:1".parse().expect("good"),
        network: "n".into(),
        ifname: Some("eth0".into()),
        addresses: vec![address],
        mac: Some(mac),
        vlan: Some(1),
        kind: PortKind::Auto,
        name: Some("p".into()),
    };
    same_fields(&openapi, "AttachRequest", attach);
    let view = FdbView {
        network: "n".into(),
        vlan: 0,
        mac,
        port: "p".into(),
        kind: FdbKind::Learned,
        age_seconds: 0,
        moves: 0,
        peer: None,
    };
    same_fields(&openapi, "FdbView", view);
    same_fields(&openapi, "Flushed", Flushed::default());
    let neighbor = NeighborView {
        network: "n".into(),
        address,
        mac: Some(mac),
        port: None,
        source: NeighborSource::Learned,
        state: NeighborState::Reachable,
        age_seconds: 0,
        peer: None,
    };
    same_fields(&openapi, "NeighborView", neighbor);
    let (name, state, reason) = (String::from("n"), ObjectState::Active, None);
    let config =
        Route { network: "n".into(), to: RouteTo::Default, via: Vec::new(), kind: RouteKind::Unicast };
    same_fields(&openapi, "RouteView", RouteView { name, config, owner, state, reason });
    let (name, reason) = (String::from("n"), None);
    let config = FloatingIp { address, port: "p".into(), to: None };
    same_fields(
        &openapi,
        "FloatingIpView",
        FloatingIpView { name, config, owner, state, reason, inside: None },
    );
    let (name, reason) = (String::from("n"), None);
    let config = Publish {
        name: None,
        listen: "80/tcp".parse().expect("good"),
        to: "p:80".parse().expect("good"),
        allow_from: Vec::new(),
    };
    let view = PublishView { name, config, owner, state, reason, bound: None, inside: Vec::new() };
    same_fields(&openapi, "PublishView", view);
    let (name, reason) = (String::from("n"), None);
    let config = Egress { port: "p".into(), address: vec![address], ports: Egress::DEFAULT_PORTS };
    same_fields(&openapi, "EgressView", EgressView { name, config, owner, state, reason });
    let view = PeerView {
        name: "n".into(),
        config: OverlayPeer::new(address),
        owner: Some(owner),
        origin: PeerOrigin::Peer,
        state,
        reason: None,
        local: None,
        device: None,
        stations: 0,
    };
    same_fields(&openapi, "PeerView", view);
    let mac = MacAddr::local(1);
    let view = RemoteView {
        name: "n".into(),
        config: Remote { network: "n".into(), address, mac, vtep: address },
        owner,
        state,
        reason: None,
    };
    same_fields(&openapi, "RemoteView", view);
    let view = PolicyView {
        name: "n".into(),
        config: Policy::new(Peer::Any, Peer::Host, Action::Allow, Vec::new()),
        owner,
        state,
        reason: None,
        from_ports: Vec::new(),
        to_ports: Vec::new(),
        hits: None,
    };
    same_fields(&openapi, "PolicyView", view);
    let view = AssertView {
        from: "p".into(),
        to: "host:22/tcp".into(),
        expect: Action::Deny,
        found: None,
        reason: String::new(),
    };
    same_fields(&openapi, "AssertView", view);
    let request = TraceRequest { from: "p".into(), packet: "tcp 10.0.0.2:80".parse().expect("good") };
    same_fields(&openapi, "TraceRequest", request);
    same_fields(&openapi, "TraceReply", TraceReply::default());
    same_fields(&openapi, "TraceStep", TraceStep::default());
    let tuple = || TupleView {
        network: "n".into(),
        source: address,
        source_port: 1,
        destination: address,
        destination_port: 2,
    };
    same_fields(&openapi, "TupleView", tuple());
    same_fields(&openapi, "Traffic", Traffic::default());
    let view = ConnectionView {
        protocol: 6,
        state: ConnectionState::Established,
        original: tuple(),
        reply: tuple(),
        from: None,
        to: None,
        translation: None,
        rule: None,
        sent: Traffic::default(),
        received: Traffic::default(),
        age_seconds: 0,
        expires_seconds: 0,
    };
    same_fields(&openapi, "ConnectionView", view);
    same_fields(&openapi, "HostView", HostView::default());
    same_fields(&openapi, "UplinkView", UplinkView::default());
    same_fields(&openapi, "UplinkDeviceView", UplinkDeviceView::default());
    same_fields(&openapi, "Drops", Drops::default());
    let count = DropCount { reason: "r".into(), help: String::new(), port: None, frames: 1 };
    same_fields(&openapi, "DropCount", count);
    same_fields(&openapi, "Ledger", Ledger::default());
    let record =
        DropRecord { time_ms: 0, port: None, reason: "r".into(), rule: None, len: 60, head: String::new() };
    same_fields(&openapi, "DropRecord", record);
    same_fields(&openapi, "WorkerView", WorkerView::default());
    let check = Check { name: "c".into(), ok: true, detail: String::new(), fix: None };
    same_fields(&openapi, "Check", check);
    let event = Event { time_ms: 0, kind: "k".into(), object: String::new(), text: String::new() };
    same_fields(&openapi, "Event", event);
    same_fields(&openapi, "CleanupRequest", CleanupRequest::default());
    same_fields(&openapi, "CleanupReply", CleanupReply::default());
}

#[test]
fn every_schema_of_the_tree_has_its_keys_and_defaults() {
    let openapi = openapi();
    let sections = keys::SECTIONS.into_iter().collect::<BTreeSet<_>>();
    let told: BTreeSet<&str> = properties(&openapi, "Document").into_iter().map(String::as_str).collect();
    assert_eq!(told, sections);
    let schemas = [
        "Daemon",
        "Workers",
        "Limits",
        "Uplink",
        "Overlay",
        "Network",
        "Port",
        "FdbEntry",
        "OverlayPeer",
        "Remote",
        "Route",
        "FloatingIp",
        "Publish",
        "Egress",
        "Policy",
        "Assert",
    ];
    for (section, schema) in keys::SECTIONS.iter().zip(schemas) {
        let known: BTreeSet<&str> = keys::of(section).map(|key| key.name).collect();
        let told: BTreeSet<&str> = properties(&openapi, schema).into_iter().map(String::as_str).collect();
        assert_eq!(told, known, "{schema}");
        let schema = &openapi["components"]["schemas"][schema];
        for key in keys::of(section) {
            if let Some(default) = schema["properties"][key.name].get("default") {
                assert_eq!(default.to_string(), key.default, "{section}.{}", key.name);
            }
            let required =
                schema["required"].as_array().is_some_and(|list| list.iter().any(|name| name == key.name));
            assert_eq!(required, key.default == "required", "{section}.{}", key.name);
        }
    }
    assert_eq!(serde_json::to_value(Document::default()).expect("has a JSON form"), serde_json::json!({}));
}
