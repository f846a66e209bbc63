//! The documents say what the code does: every key is in them, and their TOML is read.
//!
//! `BLESS=1` writes the tables of keys into docs/config.md anew.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use config::{
    Action, Assert, Daemon, Document, Egress, FdbEntry, FloatingIp, L4Range, Limits, Mtu, Network, Overlay,
    OverlayPeer, Peer, Policy, Port, Publish, Remote, Route, RouteKind, RouteTo, Service, Uplink, Workers,
    keys,
};
use serde::Serialize;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn names(object: impl Serialize) -> BTreeSet<String> {
    toml::Table::try_from(object).expect("is a table").keys().cloned().collect()
}

/// Every field with a value that is not left out when it is printed.
fn full(section: &str) -> BTreeSet<String> {
    let some = |n| Some(n);
    match section {
        "daemon" => names(Daemon {
            name: Some("a".into()),
            publish_allow_from: vec!["10.0.0.0/24".parse().expect("good")],
            ..Daemon::default()
        }),
        "workers" => names(Workers::default()),
        "limits" => names(Limits::default()),
        "uplink" => names(Uplink {
            addresses: vec!["203.0.113.2/24".parse().expect("good")],
            gateway: vec!["203.0.113.1".parse().expect("good")],
            ..Uplink::default()
        }),
        "network" => names(Network {
            name: "a".into(),
            subnets: vec!["10.0.0.0/24".parse().expect("good")],
            gateways: Some(Vec::new()),
            vni: some(1),
            vxlan_port: Some(8472),
            isolated: true,
            mtu: Mtu::Bytes(1400),
            stations: some(1),
            ageing: 1,
            storm: some(1),
            arp_proxy: false,
            masquerade: false,
            internal: true,
            host: false,
        }),
        "port" => names(Port {
            name: "a".into(),
            network: "a".into(),
            kind: config::PortKind::Tap,
            netns: Some(config::Netns::Pid(1)),
            ifname: Some("a".into()),
            addresses: vec!["10.0.0.2".parse().expect("good")],
            mac: Some(packet::MacAddr::local(1)),
            mtu: Some(1400),
            vlan: Some(1),
            trunk: vec![config::VlanRange { first: 1, last: 2 }],
            native: Some(1),
            guard: Some(true),
            isolated: true,
            storm: some(1),
            stations: some(1),
            quota: some(1),
            half_open: some(1),
            queues: 2,
            labels: [("a".into(), "b".into())].into(),
        }),
        "fdb" => names(FdbEntry {
            network: "a".into(),
            mac: packet::MacAddr::local(1),
            port: "a".into(),
            vlan: Some(1),
        }),
        "overlay" => names(Overlay {
            local: vec!["192.0.2.1".parse().expect("good")],
            peers: vec!["192.0.2.2".parse().expect("good")],
            ..Overlay::default()
        }),
        "peer" => names(OverlayPeer {
            network: Some("a".into()),
            subnets: vec!["10.5.0.0/24".parse().expect("good")],
            mac: Some(packet::MacAddr::local(1)),
            mode: config::PeerMode::Routed,
            ..OverlayPeer::new("192.0.2.2".parse().expect("good"))
        }),
        "remote" => names(Remote {
            network: "a".into(),
            address: "10.0.0.2".parse().expect("good"),
            mac: packet::MacAddr::local(1),
            vtep: "192.0.2.2".parse().expect("good"),
        }),
        "route" => names(Route {
            network: "a".into(),
            to: RouteTo::Default,
            via: vec!["10.0.0.9".parse().expect("good")],
            kind: RouteKind::Prohibit,
        }),
        "floating_ip" => names(FloatingIp {
            address: "203.0.113.10".parse().expect("good"),
            port: "a".into(),
            to: Some("10.0.0.2".parse().expect("good")),
        }),
        "publish" => names(Publish {
            name: Some("a".into()),
            listen: "80/tcp".parse().expect("good"),
            to: "a:80".parse().expect("good"),
            allow_from: vec!["192.0.2.0/24".parse().expect("good")],
        }),
        "egress" => names(Egress {
            port: "a".into(),
            address: vec!["203.0.113.7".parse().expect("good")],
            ports: L4Range { first: 2000, last: 3000 },
        }),
        "policy" => names(Policy {
            name: Some("a".into()),
            allow: vec![Service::Any],
            deny: vec![Service::Any],
            reject: vec![Service::Any],
            both_ways: true,
            priority: 1,
            log: true,
            ..Policy::new(Peer::Any, Peer::Host, Action::Allow, Vec::new())
        }),
        "assert" => {
            names(Assert { from: "a".into(), to: "host:22/tcp".parse().expect("good"), expect: Action::Deny })
        }
        other => panic!("no such section: {other}"),
    }
}

#[test]
fn the_table_of_keys_has_every_field_and_no_other() {
    for section in keys::SECTIONS {
        let told: BTreeSet<String> = keys::of(section).map(|key| key.name.to_owned()).collect();
        assert_eq!(told, full(section), "{section}");
        assert_eq!(keys::of(section).count(), told.len(), "a key of {section} is listed twice");
    }
    assert_eq!(
        keys::SECTIONS.iter().map(|section| keys::of(section).count()).sum::<usize>(),
        keys::KEYS.len()
    );
}

#[test]
fn the_defaults_of_the_table_are_those_of_the_code() {
    for (section, defaults) in [
        ("daemon", toml::Table::try_from(Daemon::default())),
        ("workers", toml::Table::try_from(Workers::default())),
        ("limits", toml::Table::try_from(Limits::default())),
        ("uplink", toml::Table::try_from(Uplink::default())),
        ("overlay", toml::Table::try_from(Overlay::default())),
    ] {
        for (name, value) in defaults.expect("is a table") {
            let key = keys::find(section, &name).expect("every field is listed");
            assert_eq!(key.default, value.to_string(), "{section}.{name}");
        }
    }
    let ageing = keys::find("network", "ageing").expect("listed").default;
    assert_eq!(ageing, Network::DEFAULT_AGEING.to_string());
    let priority = keys::find("policy", "priority").expect("listed").default;
    assert_eq!(priority, Policy::DEFAULT_PRIORITY.to_string());
    let ports = keys::find("egress", "ports").expect("listed").default;
    assert_eq!(ports, format!("\"{}\"", Egress::DEFAULT_PORTS));
}

fn table_of_keys(section: &str) -> String {
    let mut table = String::from("| key | type | default | allowed | meaning |\n|---|---|---|---|---|\n");
    for key in keys::of(section) {
        let cells = [&format!("`{}`", key.name), key.kind, key.default, key.allowed, key.help];
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        table.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    table
}

#[test]
fn the_page_shows_the_table_of_keys() {
    let mut page = read("docs/config.md");
    for section in keys::SECTIONS {
        let (begin, end) = (format!("<!-- keys of {section} -->\n"), "<!-- end -->\n");
        let start = page.find(&begin).unwrap_or_else(|| panic!("no table of {section}")) + begin.len();
        let stop = start + page[start..].find(end).expect("a table has an end");
        if std::env::var_os("BLESS").is_some() {
            page.replace_range(start..stop, &table_of_keys(section));
        } else {
            assert_eq!(page[start..stop], table_of_keys(section), "{section}: BLESS=1 writes the table");
        }
    }
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(top().join("docs/config.md"), page).expect("the source tree is writable");
    }
}

#[test]
fn every_toml_block_of_every_page_is_read() {
    let mut blocks = 0;
    for page in ["docs/config.md", "docs/routing.md", "docs/outside.md", "docs/overlay.md"] {
        let text = read(page);
        for block in text.split("```toml\n").skip(1) {
            let (toml, _) = block.split_once("```").expect("a block has an end");
            blocks += 1;
            if let Err(found) = Document::parse(toml, page) {
                panic!("{page}:\n{toml}\n{}", found.render(false));
            }
        }
    }
    assert!(blocks >= 6, "{blocks} blocks");
}

#[test]
fn every_example_is_read_and_survives_printing() {
    let mut examples = 0;
    for entry in std::fs::read_dir(top().join("examples")).expect("there are examples") {
        let path = entry.expect("readable").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        examples += 1;
        let text = std::fs::read_to_string(&path).expect("readable");
        let document = Document::parse(&text, &path.display().to_string())
            .unwrap_or_else(|found| panic!("{}", found.render(false)));
        assert_eq!(Document::parse(&document.to_toml(), "printed"), Ok(document));
    }
    assert!(examples >= 4);
}
