//! How each subject is set up on the two hosts.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{OVERHEAD, Subject, UNDERLAY, UNDERLAY_MTU, VNI};
use crate::Setting;
use crate::lab::{ADDRESSES, Lab, Running, output, sh, wait_until};

/// Port of a host that its container hangs on.
const PORTS: [&str; 2] = ["p0", "p1"];

impl Subject {
    /// Sets the subject up on two hosts of a new lab, and waits until the containers reach each other.
    pub(crate) fn start(self, setting: &Setting) -> Result<Running> {
        let mut lab = Lab::new()?;
        let second = lab.add_namespace("g")?;
        let hosts = [lab.host.clone(), second];
        underlay(&hosts)?;
        if self != Self::Vswitch {
            containers(&lab, &hosts)?;
        }
        match self {
            Self::Kernel => kernel(&hosts)?,
            Self::Ovs => ovs(&mut lab, setting, &hosts)?,
            Self::Bare => copy_loops(&mut lab, setting, &hosts)?,
            Self::Vswitch => vswitch(&mut lab, setting, &hosts)?,
        }
        lab.wait_for_path()?;
        Ok(Running { lab, setting: setting.clone() })
    }
}

/// The link between the hosts.
fn underlay(hosts: &[String; 2]) -> Result<()> {
    sh(&format!("ip -n {} link add eth1 type veth peer name eth1 netns {}", hosts[0], hosts[1]))?;
    for (host, address) in hosts.iter().zip(UNDERLAY) {
        sh(&format!("ip -n {host} addr add {address}/24 dev eth1"))?;
        sh(&format!("ip -n {host} link set eth1 mtu {UNDERLAY_MTU} up"))?;
    }
    Ok(())
}

/// The containers' interfaces, with room for what the underlay adds.
fn containers(lab: &Lab, hosts: &[String; 2]) -> Result<()> {
    let mtu = UNDERLAY_MTU - OVERHEAD;
    for ((host, end), port) in hosts.iter().zip(&lab.ends).zip(PORTS) {
        sh(&format!(
            "ip -n {host} link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {end}"
        ))?;
        sh(&format!("ip -n {host} link set {port} up"))?;
    }
    lab.configure_ends()
}

/// What a container runtime with a VXLAN network sets up, Docker Swarm say: a bridge on each host, a VXLAN device on it,
/// and the other host as the one that unknown stations are behind.
fn kernel(hosts: &[String; 2]) -> Result<()> {
    for (n, (host, port)) in hosts.iter().zip(PORTS).enumerate() {
        let (local, remote) = (UNDERLAY[n], UNDERLAY[1 - n]);
        sh(&format!("ip -n {host} link add br0 type bridge"))?;
        sh(&format!(
            "ip -n {host} link add vx0 type vxlan id {VNI} local {local} remote {remote} dev eth1 dstport 4789"
        ))?;
        for device in [port, "vx0"] {
            sh(&format!("ip -n {host} link set {device} master br0"))?;
        }
        for device in ["br0", "vx0"] {
            sh(&format!("ip -n {host} link set {device} up"))?;
        }
    }
    Ok(())
}

/// Open vSwitch as its own "Userspace VXLAN" guide sets it up: the underlay's device and address are on a bridge of their own,
/// whose ARP the daemon does itself. Tunnels and TSO do not go together before 3.4, so TSO is off and the ends complete
/// their checksums.
fn ovs(lab: &mut Lab, setting: &Setting, hosts: &[String; 2]) -> Result<()> {
    lab.offload_off("tx")?;
    for (n, (host, port)) in hosts.iter().zip(PORTS).enumerate() {
        let directory = lab.directory.join(format!("ovs{n}"));
        std::fs::create_dir_all(&directory)?;
        let with_directory = |mut command: Command| {
            for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"] {
                command.env(variable, &directory);
            }
            command
        };
        let database = directory.join("conf.db");
        let socket = format!("unix:{}", directory.join("db.sock").display());
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        output(Command::new("ovsdb-tool").arg("create").arg(&database).arg(schema))
            .context("is openvswitch-switch installed?")?;
        let mut server = with_directory(Lab::command(host, None, "ovsdb-server"));
        server.arg(&database).arg(format!("--remote=p{socket}"));
        lab.spawn(server, &format!("ovsdb{n}.log"))?;
        if !wait_until(5, || directory.join("db.sock").exists()) {
            bail!("ovsdb-server did not start: {}", lab.log_tail(&format!("ovsdb{n}.log")));
        }
        let set = |line: &str| {
            let mut command = with_directory(Lab::command(host, None, "ovs-vsctl"));
            command.arg(format!("--db={socket}")).arg("--timeout=10");
            output(command.args(line.split_whitespace())).map(drop)
        };
        set("--no-wait init")?;
        let mut daemon = with_directory(Lab::command(host, Some(setting.switch_cpu), "ovs-vswitchd"));
        daemon.arg(&socket).arg("--pidfile");
        lab.spawn(daemon, &format!("ovs-vswitchd{n}.log"))?;
        set("add-br br-phy -- set bridge br-phy datapath_type=netdev fail_mode=standalone")?;
        set("add-port br-phy eth1")?;
        let (local, remote) = (UNDERLAY[n], UNDERLAY[1 - n]);
        sh(&format!("ip -n {host} addr flush dev eth1"))?;
        sh(&format!("ip -n {host} addr add {local}/24 dev br-phy"))?;
        sh(&format!("ip -n {host} link set br-phy up"))?;
        set("add-br br0 -- set bridge br0 datapath_type=netdev fail_mode=standalone")?;
        set(&format!("add-port br0 {port}"))?;
        set(&format!(
            "add-port br0 vx0 -- set interface vx0 type=vxlan options:remote_ip={remote} options:key={VNI}"
        ))?;
    }
    Ok(())
}

/// Two loops of `vspktgen`, each between a container and the link.
fn copy_loops(lab: &mut Lab, setting: &Setting, hosts: &[String; 2]) -> Result<()> {
    for (n, (host, port)) in hosts.iter().zip(PORTS).enumerate() {
        let program = setting.programs.join("vspktgen");
        let mut command = Lab::command(host, Some(setting.switch_cpu), program);
        command.args(["loop", "--wait", "poll", &format!("veth:{port}"), "shared:eth1"]);
        lab.spawn(command, &format!("loop{n}.log"))?;
    }
    Ok(())
}

/// This switch on both hosts, sharing `eth1` with them, as it does by default.
fn vswitch(lab: &mut Lab, setting: &Setting, hosts: &[String; 2]) -> Result<()> {
    for (n, host) in hosts.iter().enumerate() {
        let name = lab.switch_name(n);
        // The switch keeps its ends of the pairs in a namespace of this name.
        lab.adopt_namespace(format!("vswitch-{name}"));
        let directory = lab.directory.clone();
        let toml = format!(
            "[daemon]\nname = \"{name}\"\nsocket = \"{0}/{name}.sock\"\nstate_dir = \"{0}/state-{n}\"\n\n\
             [workers]\ncpus = [{1}]\npoll = \"interrupt\"\n\n\
             [uplink]\ndevice = \"eth1\"\n\n\
             [overlay]\nlocal = \"{2}\"\npeers = [\"{3}\"]\n\n\
             [[network]]\nname = \"net\"\nsubnets = [\"10.77.0.0/24\"]\nvni = {VNI}\n\n\
             [[port]]\nname = \"web{n}\"\nnetwork = \"net\"\nnetns = \"{4}\"\naddresses = [\"{5}\"]\n",
            directory.display(),
            setting.switch_cpu,
            UNDERLAY[n],
            UNDERLAY[1 - n],
            lab.ends[n],
            ADDRESSES[n],
        );
        let file = directory.join(format!("{name}.toml"));
        std::fs::write(&file, toml)?;
        let mut command = Lab::command(host, None, setting.programs.join("vswitchd"));
        command.arg("--config").arg(&file);
        let log = format!("vswitchd{n}.log");
        lab.spawn(command, &log)?;
        let ready = || sh(&format!("ip -n {} link show eth0 up", lab.ends[n])).is_ok_and(|s| !s.is_empty());
        if !wait_until(20, ready) {
            bail!("vswitchd did not make its port: {}", lab.log_tail(&log));
        }
    }
    Ok(())
}
