//! Changes while the switch runs: applied whole or not at all.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use super::host::{Host, run, wait_for};

fn running() -> (Host, String, String) {
    let mut host = Host::new();
    let (a, b) = (host.container("a"), host.container("b"));
    host.write_config(&file(&a, &b, ""));
    host.start();
    (host, a, b)
}

fn file(a: &str, b: &str, more: &str) -> String {
    format!(
        r#"
[[network]]
name = "front"
subnets = ["10.1.0.0/24"]
[[port]]
name = "a"
network = "front"
netns = "{a}"
addresses = ["10.1.0.10"]
[[port]]
name = "b"
network = "front"
netns = "{b}"
addresses = ["10.1.0.11"]
{more}"#
    )
}

/// Devices and addresses, but for link-local ones: the kernel makes them by itself, some time after the start.
fn everything(host: &Host, netns: &[&str]) -> String {
    let links: String =
        netns.iter().map(|n| run(&format!("ip -n {n} -o addr show; ip -n {n} -o link show"))).collect();
    let switch = run(&format!("ip -n vswitch-{} -o link show", host.tag));
    let devices: Vec<&str> =
        links.lines().chain(switch.lines()).filter(|line| !line.contains(" fe80::")).collect();
    format!("{}\n{}", host.get("/v1/config"), devices.join("\n"))
}

#[test]
fn a_bad_configuration_changes_nothing_and_names_the_place() {
    let (mut host, a, b) = running();
    let c = host.container("c");
    let gone = format!("{}nobody", host.tag);
    let good = format!("[[port]]\nname = \"c\"\nnetwork = \"front\"\nnetns = \"{c}\"\n");
    wait_for("carriers", Duration::from_secs(20), || {
        !everything(&host, &[&a, &b, &c]).contains("NO-CARRIER")
    });
    let before = everything(&host, &[&a, &b, &c]);
    for (more, expected) in [
        ("[[port]]\nname = \"x\"\nnetwrk = \"front\"\n".to_owned(), "new.toml:21:1"),
        ("[[port]]\nname = \"a\"\nnetwork = \"front\"\n".to_owned(), "'a'"),
        (
            "[[port]]\nname = \"x\"\nnetwork = \"front\"\naddresses = [\"10.1.0.10\"]\n".to_owned(),
            "10.1.0.10",
        ),
        // The first new port can be made, the second cannot: the first must go again.
        (format!("{good}[[port]]\nname = \"d\"\nnetwork = \"front\"\nnetns = \"{gone}\"\n"), "not found"),
        (format!("{good}[[port]]\nname = \"d\"\nnetwork = \"front\"\nnetns = \"{a}\"\n"), "eth0"),
    ] {
        let toml = host.toml(&file(&a, &b, &more));
        let (status, reply) =
            host.request("POST", "/v1/apply", &json!({"toml": toml, "path": "new.toml"}).to_string());
        assert!((400..500).contains(&status), "{more}: {reply}");
        assert!(reply.to_string().contains(expected), "{more}: {reply}");
        let after = everything(&host, &[&a, &b, &c]);
        for (left, right) in before.lines().zip(after.lines()) {
            assert_eq!(left, right, "{more}");
        }
        assert_eq!(after, before, "{more}");
        assert_eq!(host.ping(&a, "10.1.0.11", 1), 1);
    }
}

#[test]
fn an_apply_changes_what_differs_and_disturbs_nothing_else() {
    let (mut host, a, b) = running();
    let c = host.container("c");
    let index = run(&format!("ip -n {a} -o link show eth0"));
    let more = format!(
        "[[network]]\nname = \"back\"\n[[port]]\nname = \"c\"\nnetwork = \"front\"\nnetns = \"{c}\"\naddresses = [\"10.1.0.12\"]\n"
    );
    let toml = host.toml(&file(&a, &b, &more));
    let dry = host.post("/v1/apply", &json!({"toml": toml, "dry_run": true}));
    assert_eq!(dry["changes"].as_array().expect("a list").len(), 2, "{dry}");
    assert_eq!(host.request("GET", "/v1/ports/c", "").0, 404);
    let reply = host.post("/v1/apply", &json!({"toml": toml}));
    assert_eq!(reply["changes"], dry["changes"]);
    assert_eq!(host.ping(&c, "10.1.0.11", 2), 2);
    assert_eq!(run(&format!("ip -n {a} -o link show eth0")), index);
    assert_eq!(host.get("/v1/status")["config_differs"], true);

    // An address and an MTU change in place.
    let toml = host.toml(&file(
        &a,
        &b,
        &more.replace("10.1.0.12", "10.1.0.13").replace("[[port]]", "[[port]]\nmtu = 1400"),
    ));
    host.post("/v1/apply", &json!({"toml": toml}));
    assert_eq!(host.ping(&c, "10.1.0.11", 2), 2);
    let inside = run(&format!("ip -n {c} -o addr show eth0; ip -n {c} -o link show eth0"));
    assert!(
        inside.contains("10.1.0.13/24") && !inside.contains("10.1.0.12") && inside.contains("mtu 1400"),
        "{inside}"
    );

    // SIGHUP goes back to the file.
    host.signal(Signal::SIGHUP);
    wait_for("the file", Duration::from_secs(5), || host.request("GET", "/v1/ports/c", "").0 == 404);
    assert!(!run(&format!("ip -n {c} -o link show")).contains("eth0"));
    assert_eq!(host.get("/v1/status")["config_differs"], false);
    assert_eq!(host.ping(&a, "10.1.0.11", 2), 2);
}

#[test]
fn an_apply_that_nobody_confirms_is_undone() {
    let (host, a, b) = running();
    let toml = host.toml(&file(&a, &b, "[[network]]\nname = \"back\"\n"));
    host.post("/v1/apply", &json!({"toml": toml, "confirm": 1}));
    host.get("/v1/networks/back");
    wait_for("the roll-back", Duration::from_secs(5), || {
        host.request("GET", "/v1/networks/back", "").0 == 404
    });

    host.post("/v1/apply", &json!({"toml": toml, "confirm": 2}));
    host.post("/v1/confirm", &json!({}));
    std::thread::sleep(Duration::from_millis(3200));
    host.get("/v1/networks/back");
    assert_eq!(host.request("POST", "/v1/confirm", "").0, 409);
}

#[test]
fn commands_change_what_they_own_and_nothing_of_the_files() {
    let (mut host, a, _) = running();
    let c = host.container("c");
    host.post("/v1/ports", &json!({"name": "c", "network": "front", "netns": c, "addresses": ["10.1.0.12"]}));
    assert_eq!(host.ping(&a, "10.1.0.12", 2), 2);
    let (status, view) =
        host.request("PATCH", "/v1/ports/c", r#"{"isolated": true, "labels": {"tier": "web"}}"#);
    assert_eq!((status, &view["config"]["isolated"]), (200, &json!(true)), "{view}");
    for (method, path, body, expected) in [
        ("PATCH", "/v1/ports/a", "{\"isolated\": true}", 409),
        ("DELETE", "/v1/ports/a", "", 409),
        ("PATCH", "/v1/ports/c", "{\"isoleted\": true}", 400),
        ("PATCH", "/v1/ports/c", "{\"name\": \"d\"}", 400),
        ("POST", "/v1/ports", "{\"name\": \"c\", \"network\": \"front\"}", 409),
        ("POST", "/v1/ports", "{\"name\": \"d\", \"network\": \"nowhere\"}", 404),
        ("POST", "/v1/ports", "{", 400),
        ("DELETE", "/v1/networks/front", "", 409),
        ("GET", "/v1/ports/d", "", 404),
        ("GET", "/v1/nothing", "", 404),
        ("PUT", "/v1/ports", "", 405),
        ("GET", "/v1/fdb?network=nowhere", "", 404),
        ("GET", "/v1/fdb?mac=xyz", "", 400),
    ] {
        let (status, reply) = host.request(method, path, body);
        assert_eq!(status, expected, "{method} {path}: {reply}");
        assert!(!reply["error"]["message"].as_str().expect("a message").is_empty());
    }
    assert_eq!(host.request("DELETE", "/v1/attach/c", "").0, 200);
    assert!(!run(&format!("ip -n {c} -o link show")).contains("eth0"));
    let log = host.get("/v1/log").to_string();
    assert!(log.contains("by uid 0"), "{log}");
}

#[test]
fn static_stations_are_set_listed_and_flushed() {
    let (host, a, _) = running();
    let mac = "02:00:00:00:00:77";
    let entry = json!({"network": "front", "mac": mac, "port": "b"});
    host.post("/v1/fdb", &entry);
    assert_eq!(host.request("POST", "/v1/fdb", &entry.to_string()).0, 409);
    let found = host.get(&format!("/v1/fdb?mac={mac}"));
    assert_eq!(
        (found[0]["kind"].as_str(), found[0]["port"].as_str()),
        (Some("static"), Some("b")),
        "{found}"
    );
    let (status, flushed) = host.request("DELETE", &format!("/v1/fdb?mac={mac}"), "");
    assert_eq!((status, flushed["entries"].as_u64()), (200, Some(1)));
    assert_eq!(host.get(&format!("/v1/fdb?mac={mac}")), json!([]));
    assert_eq!(host.ping(&a, "10.1.0.11", 1), 1);
}
