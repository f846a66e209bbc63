//! Routes, floating IPs, published ports, egress addresses and policies: kept, shown, changed, refused.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use super::host::{Host, wait_for};

const FILE: &str = r#"
[[network]]
name = "front"
subnets = ["10.1.0.0/24"]
[[network]]
name = "mgmt"
subnets = ["10.2.0.0/24"]
[[policy]]
from = "front"
to = "mgmt"
allow = ["tcp/514", "514/udp"]
"#;

fn running() -> Host {
    let host = Host::new();
    host.write_config(FILE);
    let mut host = host;
    host.start();
    host
}

#[test]
fn every_kind_of_object_is_added_changed_removed_and_outlives_a_restart() {
    let mut host = running();
    for (path, object, name) in [
        (
            "/v1/routes",
            json!({"network": "front", "to": "10.9.0.0/16", "via": "10.1.0.9"}),
            "front%2F10.9.0.0%2F16",
        ),
        ("/v1/floating_ips", json!({"address": "203.0.113.10", "port": "web"}), "203.0.113.10"),
        ("/v1/publishes", json!({"listen": "8080-8081", "to": "web:80-81"}), "8080-8081%2Ftcp"),
        ("/v1/egresses", json!({"port": "web", "address": "203.0.113.7"}), "web"),
        (
            "/v1/policies",
            json!({"name": "ssh", "from": "port:web", "to": "mgmt", "reject": ["tcp/22"]}),
            "ssh",
        ),
    ] {
        let view = host.post(path, &object);
        assert_eq!(view["owner"], "cli", "{view}");
        let single = format!("{path}/{name}");
        assert_eq!(host.get(&single), view, "{single}");
        let (status, again) = host.request("POST", path, &object.to_string());
        assert_eq!(status, 409, "{path}: {again}");
        assert_eq!(host.request("PATCH", &single, "{\"no such key\": 1}").0, 400);
    }
    let kept = host.get("/v1/config");
    host.stop(Signal::SIGTERM);
    host.start();
    assert_eq!(host.get("/v1/config"), kept);

    // A change of what a name is made from changes the name.
    let (status, view) =
        host.request("PATCH", "/v1/publishes/8080-8081%2Ftcp", r#"{"listen": "9080-9081/tcp"}"#);
    assert_eq!((status, &view["name"]), (200, &json!("9080-9081/tcp")), "{view}");
    assert_eq!(host.request("GET", "/v1/publishes/8080-8081%2Ftcp", "").0, 404);
    let (status, view) =
        host.request("PATCH", "/v1/policies/ssh", r#"{"reject": null, "allow": ["22/tcp"]}"#);
    assert_eq!((status, &view["config"]["allow"]), (200, &json!(["tcp/22"])), "{view}");
    for (path, why) in [
        ("/v1/networks/mgmt", "policy front->mgmt, policy ssh"),
        ("/v1/networks/front", "route front/10.9.0.0/16"),
    ] {
        let (status, reply) = host.request("DELETE", path, "");
        assert_eq!(status, 409, "{reply}");
        assert!(
            reply.to_string().contains("from the configuration file") || reply.to_string().contains(why),
            "{reply}"
        );
    }
    for single in [
        "/v1/routes/front%2F10.9.0.0%2F16",
        "/v1/floating_ips/203.0.113.10",
        "/v1/publishes/9080-9081%2Ftcp",
        "/v1/egresses/web",
        "/v1/policies/ssh",
    ] {
        assert_eq!(host.request("DELETE", single, "").0, 200, "{single}");
        assert_eq!(host.request("GET", single, "").0, 404, "{single}");
    }
    // The file's own stays.
    assert_eq!(host.request("DELETE", "/v1/policies/front-%3Emgmt", "").0, 409);
    assert_eq!(host.get("/v1/policies")[0]["config"]["allow"], json!(["tcp/514", "udp/514"]));
}

#[test]
fn what_names_a_port_that_comes_later_is_pending_until_it_comes() {
    let mut host = running();
    host.post("/v1/floating_ips", &json!({"address": "203.0.113.10", "port": "web"}));
    host.post("/v1/publishes", &json!({"listen": "8080", "to": "web:80"}));
    host.post("/v1/policies", &json!({"name": "p", "from": "tier=web", "to": "port:web", "deny": ["any"]}));
    let view = host.get("/v1/floating_ips/203.0.113.10");
    assert_eq!((&view["state"], &view["reason"]), (&json!("pending"), &json!("there is no port 'web' yet")));
    assert_eq!(host.get("/v1/policies/p")["state"], "pending");

    let web = host.container("web");
    let port = json!({"name": "web", "network": "front", "netns": web, "addresses": ["10.1.0.10"],
                      "labels": {"tier": "web"}});
    host.post("/v1/ports", &port);
    let view = host.get("/v1/floating_ips/203.0.113.10");
    assert_eq!((&view["state"], &view["inside"]), (&json!("active"), &json!("10.1.0.10")), "{view}");
    let view = host.get("/v1/publishes/8080%2Ftcp");
    assert_eq!(
        (&view["state"], &view["inside"], &view["bound"]),
        (&json!("active"), &json!(["10.1.0.10"]), &json!(8080))
    );
    let view = host.get("/v1/policies/p");
    assert_eq!((&view["state"], &view["from_ports"]), (&json!("active"), &json!(["web"])), "{view}");

    assert_eq!(host.request("DELETE", "/v1/ports/web", "").0, 200);
    assert_eq!(host.get("/v1/publishes/8080%2Ftcp")["state"], "pending");
}

#[test]
fn what_clashes_is_refused_and_names_the_other() {
    let host = running();
    host.post("/v1/publishes", &json!({"name": "shop", "listen": "8080-8090", "to": "web:80-90"}));
    for (path, object, why) in [
        (
            "/v1/publishes",
            json!({"listen": "203.0.113.2:8085/tcp", "to": "db:80"}),
            "publish 'shop': listen: '8080-8090/tcp' overlaps '203.0.113.2:8085/tcp' of publish",
        ),
        ("/v1/publishes", json!({"listen": "7000-7001", "to": "web:80"}), "has 1 L4 ports"),
        (
            "/v1/floating_ips",
            json!({"address": "10.1.0.7", "port": "web"}),
            "a subnet of network 'front' holds it",
        ),
        (
            "/v1/routes",
            json!({"network": "nowhere", "to": "default", "via": "10.1.0.9"}),
            "there is no network 'nowhere'",
        ),
        ("/v1/policies", json!({"name": "q", "from": "front", "to": "mgmt"}), "one of allow, deny, reject"),
        (
            "/v1/policies",
            json!({"name": "q", "from": "front", "to": "mgmt", "allow": ["tpc/80"]}),
            "'tpc/80' is no service",
        ),
        ("/v1/egresses", json!({"port": "web", "address": []}), "there is no address"),
    ] {
        let before = host.get("/v1/config");
        let (status, reply) = host.request("POST", path, &object.to_string());
        assert_eq!(status, 400, "{object}: {reply}");
        assert!(reply.to_string().contains(why), "{object}: {reply}");
        assert_eq!(host.get("/v1/config"), before);
    }
}

#[test]
fn an_apply_shows_and_makes_the_difference_of_all_kinds() {
    let host = running();
    let more = format!("{FILE}[[publish]]\nlisten = \"80\"\nto = \"web:80\"\n[uplink]\ndevice = \"none\"\n");
    let toml = host.toml(&more.replace("tcp/514", "tcp/515"));
    let lines = |reply: &serde_json::Value| {
        let changes = reply["changes"].as_array().expect("a list").clone();
        changes
            .iter()
            .map(|c| format!("{} {} {}", c["action"], c["kind"], c["name"]))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let dry = host.post("/v1/apply", &json!({"toml": toml, "dry_run": true}));
    let expected = r#""change" "uplink" "", "add" "publish" "80/tcp", "change" "policy" "front->mgmt""#;
    assert_eq!(lines(&dry), expected);
    let reply = host.post("/v1/apply", &json!({"toml": toml}));
    assert_eq!(lines(&reply), expected);
    let reply = host.post("/v1/apply", &json!({"toml": host.toml(FILE)}));
    assert!(lines(&reply).starts_with(r#""remove" "publish" "80/tcp""#), "{reply}");
}

#[test]
fn a_roll_back_leaves_what_commands_made_and_what_was_confirmed() {
    let host = running();
    let toml = |more: &str| host.toml(&format!("{FILE}{more}"));
    host.post("/v1/apply", &json!({"toml": toml("[[network]]\nname = \"one\"\n"), "confirm": 60}));
    // Nobody confirmed the first: it is nothing to go back to.
    host.post(
        "/v1/apply",
        &json!({"toml": toml("[[network]]\nname = \"two\"\n"), "confirm": 1, "save": true}),
    );
    host.post("/v1/policies", &json!({"name": "kept", "from": "front", "to": "outside", "deny": ["any"]}));
    wait_for("the roll-back", Duration::from_secs(5), || {
        host.request("GET", "/v1/networks/two", "").0 == 404
    });
    assert_eq!(host.request("GET", "/v1/networks/one", "").0, 404);
    host.get("/v1/policies/kept");
    // What was not confirmed was not saved either.
    assert_eq!(host.get("/v1/status")["config_differs"], false);

    host.post(
        "/v1/apply",
        &json!({"toml": toml("[[network]]\nname = \"two\"\n"), "confirm": 60, "save": true}),
    );
    assert_eq!(host.get("/v1/status")["config_differs"], true);
    host.post("/v1/confirm", &json!({}));
    assert_eq!(host.get("/v1/status")["config_differs"], false);
}

/// A host with a web container in one network and a log container in another.
fn two_networks() -> (Host, String, String) {
    let mut host = Host::new();
    let (web, log) = (host.container("web"), host.container("log"));
    let file = containers(&web, &log);
    host.write_config(&file);
    host.start();
    (host, web, file)
}

fn containers(web: &str, log: &str) -> String {
    format!(
        "{FILE}
[[policy]]
name = \"ping\"
from = \"front\"
to = \"mgmt\"
allow = [\"icmp\"]
[[policy]]
name = \"no-telnet\"
from = \"port:web\"
to = \"mgmt\"
reject = [\"tcp/23\"]
[[port]]
name = \"web\"
network = \"front\"
netns = \"{web}\"
addresses = [\"10.1.0.10\"]
[[port]]
name = \"log\"
network = \"mgmt\"
netns = \"{log}\"
addresses = [\"10.2.0.5\"]
"
    )
}

fn assertion(to: &str, expect: &str) -> String {
    format!("[[assert]]\nfrom = \"web\"\nto = \"{to}\"\nexpect = \"{expect}\"\n")
}

#[test]
fn a_trace_says_what_would_become_of_a_packet() {
    let (host, _, _) = two_networks();
    let trace = |packet: &str| host.post("/v1/trace", &json!({"from": "web", "packet": packet}));
    let reply = trace("tcp 10.2.0.5:514");
    assert_eq!((&reply["verdict"], &reply["to"]), (&json!("forward"), &json!("log")), "{reply}");
    assert_eq!(reply["packet"], "tcp 10.2.0.5:514 syn from 10.1.0.10:40000");
    assert!(reply["steps"].to_string().contains("front->mgmt"), "{reply}");
    let reply = trace("tcp 10.2.0.5:22");
    assert_eq!((&reply["verdict"], &reply["reason"]), (&json!("drop"), &json!("policy")), "{reply}");
    let reply = trace("tcp 10.2.0.5:23");
    assert_eq!((&reply["verdict"], &reply["rule"]), (&json!("reject"), &json!("no-telnet")), "{reply}");
    assert_eq!(trace("icmp 10.1.0.1")["verdict"], "answer");
    assert_eq!(trace("icmp 10.2.0.5 ttl 1")["reason"], "ttl");
    assert_eq!(trace("tcp 10.2.0.5:514 from 10.1.0.66:5")["reason"], "spoof");
    // Nothing was done: there is no connection.
    assert_eq!(host.get("/v1/connections"), json!([]));
    for (body, status, why) in [
        (json!({"from": "nobody", "packet": "tcp 10.2.0.5:22"}), 404, "there is no port 'nobody'"),
        (json!({"from": "web", "packet": "tcp 10.2.0.5"}), 400, "has no L4 port, which tcp needs"),
        (json!({"from": "web", "packet": "tcp [fd00::1]:22"}), 400, "has no IPv6 address to send from"),
    ] {
        let (found, reply) = host.request("POST", "/v1/trace", &body.to_string());
        assert_eq!(found, status, "{reply}");
        assert!(reply.to_string().contains(why), "{reply}");
    }
}

#[test]
fn connections_are_listed_by_what_they_match_and_ended() {
    let (host, web, _) = two_networks();
    assert_eq!(host.ping(&web, "10.2.0.5", 1), 1);
    let all = host.get("/v1/connections");
    assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
    let found = &all[0];
    assert_eq!((&found["state"], &found["rule"]), (&json!("replied"), &json!("ping")), "{all}");
    assert_eq!((&found["from"], &found["to"]), (&json!("web"), &json!("log")), "{all}");
    assert_eq!(
        (&found["original"]["network"], &found["reply"]["network"]),
        (&json!("front"), &json!("mgmt"))
    );
    let count = |expression: &str| {
        let list = host.get(&format!("/v1/connections?match={expression}"));
        list.as_array().map_or(0, Vec::len)
    };
    assert_eq!(count("src%3D10.1.0.10,proto%3Dicmp,network%3Dmgmt,port%3Dlog,rule%3Dping"), 1);
    assert_eq!(count("src!%3D10.1.0.0/24"), 0);
    assert_eq!(count("state%3Destablished"), 0);
    let (status, reply) = host.request("GET", "/v1/connections?match=dpotr%3D1", "");
    assert_eq!(status, 400);
    assert!(reply.to_string().contains("did you mean 'dport'?"), "{reply}");
    assert_eq!(host.request("DELETE", "/v1/connections?match=proto%3Dtcp", "").1["entries"], 0);
    assert_eq!(host.request("DELETE", "/v1/connections?match=port%3Dweb", "").1["entries"], 1);
    assert_eq!(host.get("/v1/connections"), json!([]));
    assert_eq!(host.ping(&web, "10.2.0.5", 1), 1);
}

#[test]
fn an_apply_after_which_an_assertion_would_not_hold_is_refused() {
    let (host, _, file) = two_networks();
    let apply = |more: &str, dry: bool| {
        let body = json!({"toml": host.toml(&format!("{file}{more}")), "dry_run": dry});
        host.request("POST", "/v1/apply", &body.to_string())
    };
    let good = [
        assertion("mgmt:22/tcp", "deny"),
        assertion("10.2.0.5:514/tcp", "allow"),
        assertion("port:log:23/tcp", "reject"),
        assertion("port:log:icmp", "allow"),
        assertion("port:later:22/tcp", "deny"),
    ]
    .concat();
    for dry in [true, false] {
        let (status, reply) = apply(&good, dry);
        assert_eq!(status, 200, "{reply}");
        let found: Vec<_> =
            reply["asserts"].as_array().expect("a list").iter().map(|a| &a["found"]).collect();
        assert_eq!(json!(found), json!(["deny", "allow", "reject", "allow", null]), "{reply}");
        assert_eq!(reply["asserts"][4]["reason"], "there is no port 'later' yet");
    }
    // A policy that would make it untrue is refused with it, also for ports that are not made yet.
    let before = host.get("/v1/config");
    let ssh = "[[policy]]\nname = \"ssh\"\nfrom = \"front\"\nto = \"mgmt\"\nallow = [\"tcp/22\"]\n";
    for dry in [true, false] {
        let (status, reply) = apply(&format!("{good}{ssh}"), dry);
        assert_eq!(status, 409, "{reply}");
        assert!(reply.to_string().contains("assert web->mgmt:22/tcp: expected deny, found allow"), "{reply}");
        assert_eq!(host.get("/v1/config"), before);
    }
}

#[test]
fn the_host_and_the_neighbours_are_shown() {
    let (host, web, _) = two_networks();
    let view = host.get("/v1/host");
    assert_eq!(view["networks"], json!(["front", "mgmt"]), "{view}");
    assert_eq!(
        view["uplink"]["config"],
        json!({"device": "auto", "mode": "steer", "dedicated": false, "ports": "49152-65535"})
    );
    let known = host.get("/v1/neighbors?network=front");
    assert!(known.to_string().contains("10.1.0.10") && !known.to_string().contains("10.2.0.5"), "{known}");
    // Somebody is asked for who is not there.
    assert_eq!(host.ping(&web, "10.2.0.77", 1), 0);
    let asked = host.get("/v1/neighbors?address=10.2.0.77");
    assert_eq!((&asked[0]["network"], &asked[0]["mac"]), (&json!("mgmt"), &json!(null)), "{asked}");
    assert_eq!(host.request("DELETE", "/v1/neighbors?address=10.2.0.77", "").1["entries"], 1);
    assert_eq!(host.request("DELETE", "/v1/neighbors?network=nowhere", "").0, 404);
}
