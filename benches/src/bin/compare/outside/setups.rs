//! How each subject is set up between the container, the host and the outside.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::{CONTAINER, FLOATING, HOST, QUOTA, SERVICES, STATION, STATIONS, Subject, Way};
use crate::Setting;
use crate::lab::{Lab, Running, output, sh, wait_until};

impl Subject {
    /// Sets the subject up in a new lab, and waits until the container reaches the outside.
    pub(crate) fn start(self, setting: &Setting, way: Way) -> Result<Running> {
        let mut lab = Lab::new()?;
        outside(&lab)?;
        match self {
            Self::Docker => docker(&lab, way)?,
            Self::Nftables => nftables(&lab, way)?,
            Self::Bare => copy_loop(&mut lab, setting, false)?,
            Self::Ports => copy_loop(&mut lab, setting, true)?,
            Self::Busy => vswitch(&mut lab, setting, "busy", way)?,
            Self::Default => vswitch(&mut lab, setting, "adaptive", way)?,
        }
        Lab::wait_for(&lab.ends[0], STATION)?;
        if way == Way::Floating {
            Lab::wait_for(&lab.ends[1], FLOATING)?;
        }
        Ok(Running { lab, setting: setting.clone() })
    }
}

/// The host's link to the outside, and the stations behind it.
fn outside(lab: &Lab) -> Result<()> {
    let (host, [_, outside]) = (&lab.host, &lab.ends);
    sh(&format!("ip -n {host} link add eth1 type veth peer name eth0 netns {outside}"))?;
    for (namespace, device, address) in [(host, "eth1", HOST), (outside, "eth0", "203.0.113.1")] {
        sh(&format!("ip -n {namespace} addr add {address}/24 dev {device}"))?;
        sh(&format!("ip -n {namespace} link set {device} up"))?;
    }
    for n in STATIONS {
        sh(&format!("ip -n {outside} addr add 198.51.100.{n}/32 dev lo"))?;
    }
    sh(&format!("ip -n {host} route add default via 203.0.113.1"))?;
    for end in &lab.ends {
        // Short connections use more ports than the 28 k that are there by default.
        set(end, "net/ipv4/ip_local_port_range", "1024 65535")?;
    }
    Ok(())
}

fn set(namespace: &str, sysctl: &str, value: &str) -> Result<()> {
    let line = format!("echo {value} >/proc/sys/{sysctl}");
    output(Lab::command(namespace, None, "sh").args(["-c", &line])).map(drop)
}

/// The container's interface, its other end being `p0` of the host.
fn container(lab: &Lab, address: &str, gateway: &str) -> Result<()> {
    let (host, [container, _]) = (&lab.host, &lab.ends);
    sh(&format!("ip -n {host} link add p0 type veth peer name eth0 netns {container}"))?;
    sh(&format!("ip -n {host} link set p0 up"))?;
    sh(&format!("ip -n {container} addr add {address}/24 dev eth0"))?;
    sh(&format!("ip -n {container} link set eth0 up"))?;
    sh(&format!("ip -n {container} route add default via {gateway}")).map(drop)
}

/// Runs a program in the host's namespace with `text` as its input.
fn feed(lab: &Lab, program: &str, arguments: &[&str], text: &str) -> Result<()> {
    let mut command = Lab::command(&lab.host, None, program);
    let mut child = command.args(arguments).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe was asked for")?.write_all(text.as_bytes())?;
    let done = child.wait_with_output()?;
    if !done.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

/// What Docker Engine 20.10 to 26 sets up for its default bridge (`iptables-save` shows it on any host that runs one;
/// moby, libnetwork/drivers/bridge/setup_ip_tables.go and libnetwork/iptables): a bridge with the gateway's address,
/// `ip_forward`, FORWARD closed but for what the chains accept, and one DNAT, one ACCEPT and one hairpin rule for each
/// published port. Docker has no floating addresses; what comes nearest is `-p 203.0.113.10:80:80` on an address that
/// the host has been given.
fn docker(lab: &Lab, way: Way) -> Result<()> {
    let host = &lab.host;
    container(lab, CONTAINER, "10.77.0.1")?;
    sh(&format!("ip -n {host} link add docker0 type bridge"))?;
    sh(&format!("ip -n {host} addr add 10.77.0.1/24 dev docker0"))?;
    sh(&format!("ip -n {host} link set p0 master docker0"))?;
    sh(&format!("ip -n {host} link set docker0 up"))?;
    set(host, "net/ipv4/ip_forward", "1")?;
    let (mut hairpin, mut translate, mut accept) = (String::new(), String::new(), String::new());
    let destination = match way {
        Way::Floating => {
            sh(&format!("ip -n {host} addr add {FLOATING}/24 dev eth1"))?;
            format!("-d {FLOATING}/32 ")
        }
        _ => String::new(),
    };
    for (protocol, port) in SERVICES.into_iter().filter(|_| way != Way::Masquerade) {
        let matching = format!("-p {protocol} -m {protocol} --dport {port}");
        writeln!(hairpin, "-A POSTROUTING -s {CONTAINER}/32 -d {CONTAINER}/32 {matching} -j MASQUERADE")?;
        writeln!(
            translate,
            "-A DOCKER {destination}! -i docker0 {matching} -j DNAT --to-destination {CONTAINER}:{port}"
        )?;
        writeln!(accept, "-A DOCKER -d {CONTAINER}/32 ! -i docker0 -o docker0 {matching} -j ACCEPT")?;
    }
    let rules = format!(
        "*nat\n\
         :DOCKER - [0:0]\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A POSTROUTING -s 10.77.0.0/24 ! -o docker0 -j MASQUERADE\n\
         {hairpin}\
         -A DOCKER -i docker0 -j RETURN\n\
         {translate}\
         COMMIT\n\
         *filter\n\
         :FORWARD DROP [0:0]\n\
         :DOCKER - [0:0]\n\
         :DOCKER-ISOLATION-STAGE-1 - [0:0]\n\
         :DOCKER-ISOLATION-STAGE-2 - [0:0]\n\
         :DOCKER-USER - [0:0]\n\
         -A FORWARD -j DOCKER-USER\n\
         -A FORWARD -j DOCKER-ISOLATION-STAGE-1\n\
         -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A FORWARD -o docker0 -j DOCKER\n\
         -A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n\
         -A FORWARD -i docker0 -o docker0 -j ACCEPT\n\
         {accept}\
         -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2\n\
         -A DOCKER-ISOLATION-STAGE-1 -j RETURN\n\
         -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP\n\
         -A DOCKER-ISOLATION-STAGE-2 -j RETURN\n\
         -A DOCKER-USER -j RETURN\n\
         COMMIT\n"
    );
    // Whichever the distribution prefers is what Docker would use here: iptables-nft, or the old one.
    feed(lab, "iptables-restore", &[], &rules)
}

/// Routing, and the translation alone: no rule that filters.
fn nftables(lab: &Lab, way: Way) -> Result<()> {
    let host = &lab.host;
    container(lab, CONTAINER, "10.77.0.1")?;
    sh(&format!("ip -n {host} addr add 10.77.0.1/24 dev p0"))?;
    set(host, "net/ipv4/ip_forward", "1")?;
    let (mut inwards, mut outwards) = (String::new(), String::new());
    match way {
        Way::Masquerade => {}
        Way::Published => {
            for (protocol, port) in SERVICES {
                writeln!(inwards, "ip daddr {HOST} {protocol} dport {port} dnat to {CONTAINER}")?;
            }
        }
        Way::Floating => {
            sh(&format!("ip -n {host} addr add {FLOATING}/24 dev eth1"))?;
            writeln!(inwards, "ip daddr {FLOATING} dnat to {CONTAINER}")?;
            writeln!(outwards, "ip saddr {CONTAINER} oifname eth1 snat to {FLOATING}")?;
        }
    }
    let rules = format!(
        "table ip nat {{\n\
         chain prerouting {{\ntype nat hook prerouting priority dstnat;\n{inwards}}}\n\
         chain postrouting {{\ntype nat hook postrouting priority srcnat;\n{outwards}\
         ip saddr 10.77.0.0/24 oifname eth1 masquerade\n}}\n}}\n"
    );
    feed(lab, "nft", &["-f", "-"], &rules)
}

/// A loop of `vspktgen`, bare or over the switch's ports: the container is on the outside's link.
fn copy_loop(lab: &mut Lab, setting: &Setting, ports: bool) -> Result<()> {
    container(lab, FLOATING, "203.0.113.1")?;
    let program = setting.programs.join("vspktgen");
    let mut command = Lab::command(&lab.host, Some(setting.switch_cpu), program);
    command.args(["loop", "--wait", "busy", "veth:p0", "shared:eth1"]);
    if ports {
        command.arg("--ports");
    }
    lab.spawn(command, "loop.log").map(drop)
}

/// This switch, sharing `eth1` with the host, as it does by default.
fn vswitch(lab: &mut Lab, setting: &Setting, poll: &str, way: Way) -> Result<()> {
    let name = lab.name();
    // The switch keeps its ends of the pairs in a namespace of this name.
    lab.adopt_namespace(format!("vswitch-{name}"));
    let directory = lab.directory.clone();
    let mut toml = format!(
        "[daemon]\nname = \"{name}\"\nsocket = \"{0}/vswitch.sock\"\nstate_dir = \"{0}/state\"\n\n\
         [workers]\ncpus = [{1}]\npoll = \"{poll}\"\n\n\
         [[network]]\nname = \"net\"\nsubnets = [\"10.77.0.0/24\"]\n\n\
         [[port]]\nname = \"web\"\nnetwork = \"net\"\nnetns = \"{2}\"\naddresses = [\"{CONTAINER}\"]\n\
         quota = {QUOTA}\n",
        directory.display(),
        setting.switch_cpu,
        lab.ends[0],
    );
    match way {
        Way::Masquerade => {}
        Way::Published => {
            for (protocol, port) in SERVICES {
                write!(toml, "\n[[publish]]\nlisten = \"{HOST}:{port}/{protocol}\"\nto = \"web:{port}\"\n")?;
            }
        }
        Way::Floating => write!(toml, "\n[[floating_ip]]\naddress = \"{FLOATING}\"\nport = \"web\"\n")?,
    }
    let file = directory.join("vswitch.toml");
    std::fs::write(&file, toml)?;
    let mut command = Lab::command(&lab.host, None, setting.programs.join("vswitchd"));
    command.arg("--config").arg(&file);
    lab.spawn(command, "vswitchd.log")?;
    let ready = || sh(&format!("ip -n {} link show eth0 up", lab.ends[0])).is_ok();
    if !wait_until(20, ready) {
        bail!("vswitchd did not make its port: {}", lab.log_tail("vswitchd.log"));
    }
    Ok(())
}
