//! What is compared, and how each is set up between the two ends.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::Setting;
use crate::lab::{ADDRESSES, Lab, Running, output, sh, wait_until};

/// The kind of port that the ends hang on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    Veth,
    Tap,
    Afxdp,
}

impl Ends {
    fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Tap => "tap",
            Self::Afxdp => "afxdp",
        }
    }
}

/// One way to join the ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The kernel's bridge over two veth pairs.
    Bridge,
    /// Open vSwitch in userspace; AF_PACKET with TSO, or AF_XDP.
    Ovs(Ends),
    /// A loop that only copies.
    Bare(Ends),
    /// The same loop over the switch's ports: what they cost, without worker and pipeline.
    Ports(Ends),
    /// This switch, spinning.
    Vswitch(Ends),
    /// This switch as it comes: veth ports, adaptive polling.
    VswitchDefault,
}

impl Subject {
    pub(crate) const ALL: [Subject; 13] = [
        Self::Bridge,
        Self::Ovs(Ends::Veth),
        Self::Ovs(Ends::Afxdp),
        Self::Bare(Ends::Veth),
        Self::Ports(Ends::Veth),
        Self::Vswitch(Ends::Veth),
        Self::VswitchDefault,
        Self::Bare(Ends::Tap),
        Self::Ports(Ends::Tap),
        Self::Vswitch(Ends::Tap),
        Self::Bare(Ends::Afxdp),
        Self::Ports(Ends::Afxdp),
        Self::Vswitch(Ends::Afxdp),
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Ovs(Ends::Afxdp) => "ovs-afxdp",
            Self::Ovs(_) => "ovs-packet",
            Self::Bare(Ends::Veth) => "bare-veth",
            Self::Bare(Ends::Tap) => "bare-tap",
            Self::Bare(Ends::Afxdp) => "bare-afxdp",
            Self::Ports(Ends::Veth) => "ports-veth",
            Self::Ports(Ends::Tap) => "ports-tap",
            Self::Ports(Ends::Afxdp) => "ports-afxdp",
            Self::Vswitch(Ends::Veth) => "vswitch-veth",
            Self::Vswitch(Ends::Tap) => "vswitch-tap",
            Self::Vswitch(Ends::Afxdp) => "vswitch-afxdp",
            Self::VswitchDefault => "vswitch-default",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Bridge => "kernel bridge",
            Self::Ovs(Ends::Afxdp) => "Open vSwitch, AF_XDP (tx sum off)",
            Self::Ovs(_) => "Open vSwitch, AF_PACKET with TSO",
            Self::Bare(Ends::Veth) => "bare copy loop, AF_PACKET",
            Self::Bare(Ends::Tap) => "bare copy loop, tap",
            Self::Bare(Ends::Afxdp) => "bare loop, two AF_XDP sockets (tx sum off)",
            Self::Ports(Ends::Veth) => "vswitch's ports alone, veth",
            Self::Ports(Ends::Tap) => "vswitch's ports alone, tap",
            Self::Ports(Ends::Afxdp) => "vswitch's ports alone, afxdp (offloads on)",
            Self::Vswitch(Ends::Veth) => "vswitch, veth",
            Self::Vswitch(Ends::Tap) => "vswitch, tap",
            Self::Vswitch(Ends::Afxdp) => "vswitch, afxdp (offloads on)",
            Self::VswitchDefault => "vswitch, veth, adaptive polling",
        }
    }

    pub(crate) fn is_vswitch(self) -> bool {
        matches!(self, Self::Vswitch(_) | Self::VswitchDefault)
    }

    /// What the ends hang on.
    pub(crate) fn ends(self) -> Ends {
        match self {
            Self::Bridge | Self::VswitchDefault => Ends::Veth,
            Self::Ovs(ends) | Self::Bare(ends) | Self::Ports(ends) | Self::Vswitch(ends) => ends,
        }
    }

    /// The bare loop over the same kind of port.
    pub(crate) fn bare(self) -> Option<Subject> {
        match self {
            Self::Vswitch(ends) | Self::Ports(ends) | Self::Ovs(ends) => Some(Self::Bare(ends)),
            Self::VswitchDefault => Some(Self::Bare(Ends::Veth)),
            Self::Bridge | Self::Bare(_) => None,
        }
    }

    /// Open vSwitch in the mode that this is to be compared with.
    pub(crate) fn ovs(self) -> Option<Subject> {
        match self {
            Self::Vswitch(ends) | Self::Ports(ends) | Self::Bare(ends) => Some(Self::Ovs(match ends {
                Ends::Afxdp => Ends::Afxdp,
                Ends::Veth | Ends::Tap => Ends::Veth,
            })),
            Self::VswitchDefault => Some(Self::Ovs(Ends::Veth)),
            Self::Bridge | Self::Ovs(_) => None,
        }
    }

    /// Sets the subject up between two new namespaces and waits until they reach each other.
    pub(crate) fn start(self, setting: &Setting) -> Result<Running> {
        let mut lab = Lab::new()?;
        match self {
            Self::Bridge => bridge(&lab)?,
            Self::Ovs(ends) => ovs(&mut lab, setting, ends)?,
            Self::Bare(ends) => copy_loop(&mut lab, setting, ends, false)?,
            Self::Ports(ends) => copy_loop(&mut lab, setting, ends, true)?,
            Self::Vswitch(ends) => vswitch(&mut lab, setting, ends.name(), "busy", 0).map(drop)?,
            Self::VswitchDefault => vswitch(&mut lab, setting, "auto", "adaptive", 0).map(drop)?,
        }
        lab.wait_for_path()?;
        Ok(Running { lab, setting: setting.clone() })
    }
}

fn bridge(lab: &Lab) -> Result<()> {
    lab.add_veths()?;
    sh(&format!("ip -n {} link add br0 type bridge", lab.host))?;
    for port in ["p0", "p1"] {
        sh(&format!("ip -n {} link set {port} master br0", lab.host))?;
    }
    sh(&format!("ip -n {} link set br0 up", lab.host)).map(drop)
}

/// Open vSwitch by hand: its own database and run directory, ended with the lab.
fn ovs(lab: &mut Lab, setting: &Setting, ends: Ends) -> Result<()> {
    lab.add_veths()?;
    let directory = lab.directory.clone();
    let host = lab.host.clone();
    let database = directory.join("conf.db");
    let socket = format!("unix:{}", directory.join("db.sock").display());
    let schema = "/usr/share/openvswitch/vswitch.ovsschema";
    output(Command::new("ovsdb-tool").arg("create").arg(&database).arg(schema))
        .context("is openvswitch-switch installed?")?;
    let with_directory = |mut command: Command| {
        for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"] {
            command.env(variable, &directory);
        }
        command
    };
    let mut server = with_directory(Lab::command(&lab.host, None, "ovsdb-server"));
    server.arg(&database).arg(format!("--remote=p{socket}"));
    lab.spawn(server, "ovsdb.log")?;
    let set = |words: &[&str]| {
        let mut command = with_directory(Lab::command(&host, None, "ovs-vsctl"));
        output(command.arg(format!("--db={socket}")).arg("--timeout=10").args(words)).map(drop)
    };
    if !wait_until(5, || directory.join("db.sock").exists()) {
        bail!("ovsdb-server did not start: {}", lab.log_tail("ovsdb.log"));
    }
    let mask = format!("other_config:pmd-cpu-mask={:#x}", 1_u64 << setting.switch_cpu);
    set(&["--no-wait", "init"])?;
    set(&["--no-wait", "set", "Open_vSwitch", ".", &mask])?;
    if ends == Ends::Veth {
        set(&["--no-wait", "set", "Open_vSwitch", ".", "other_config:userspace-tso-enable=true"])?;
    } else {
        lab.offload_off("tx")?;
    }
    let mut daemon = with_directory(Lab::command(&lab.host, Some(setting.switch_cpu), "ovs-vswitchd"));
    daemon.arg(&socket).arg("--pidfile");
    lab.spawn(daemon, "ovs-vswitchd.log")?;
    set(&["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"])?;
    for port in ["p0", "p1"] {
        let mut words = vec!["add-port", "br0", port];
        if ends == Ends::Afxdp {
            words.extend(["--", "set", "interface", port, "type=afxdp", "options:xdp-mode=native"]);
        }
        set(&words)?;
    }
    Ok(())
}

/// A loop of `vspktgen`, bare or over the switch's ports.
fn copy_loop(lab: &mut Lab, setting: &Setting, ends: Ends, ports: bool) -> Result<()> {
    if ends != Ends::Tap {
        lab.add_veths()?;
    }
    if ends == Ends::Afxdp && !ports {
        lab.offload_off("tx")?;
    }
    let kind = ends.name();
    let program = setting.programs.join("vspktgen");
    let mut command = Lab::command(&lab.host, Some(setting.switch_cpu), program);
    command.args(["loop", "--wait", "busy", &format!("{kind}:p0"), &format!("{kind}:p1")]);
    if ports {
        command.arg("--ports");
    }
    lab.spawn(command, "loop.log")?;
    if ends == Ends::Tap {
        for (n, end) in lab.ends.iter().enumerate() {
            let there = || sh(&format!("ip -n {} link show p{n}", lab.host)).is_ok();
            if !wait_until(5, there) {
                bail!("the tap loop did not start: {}", lab.log_tail("loop.log"));
            }
            sh(&format!("ip -n {} link set p{n} netns {end} name eth0", lab.host))?;
        }
        lab.configure_ends()?;
    }
    Ok(())
}

/// This switch, with `idle` more ports in a namespace of their own. Returns its process id.
pub(crate) fn vswitch(lab: &mut Lab, setting: &Setting, kind: &str, poll: &str, idle: usize) -> Result<u32> {
    let program = setting.programs.join("vswitchd");
    if !program.exists() {
        bail!("there is no {}", program.display());
    }
    let name = lab.name();
    // The switch keeps its ends of the pairs in a namespace of this name.
    lab.adopt_namespace(format!("vswitch-{name}"));
    let directory = lab.directory.clone();
    let mut toml = format!(
        "[daemon]\nname = \"{name}\"\nsocket = \"{0}/vswitch.sock\"\nstate_dir = \"{0}/state\"\n\n\
         [workers]\ncpus = [{1}]\npoll = \"{poll}\"\n\n\
         [[network]]\nname = \"net\"\nsubnets = [\"10.77.0.0/24\"]\n",
        directory.display(),
        setting.switch_cpu,
    );
    for ((n, end), address) in lab.ends.iter().enumerate().zip(ADDRESSES) {
        write!(
            toml,
            "\n[[port]]\nname = \"p{n}\"\nnetwork = \"net\"\nkind = \"{kind}\"\nnetns = \"{end}\"\n\
             addresses = [\"{address}\"]\n"
        )?;
    }
    if idle > 0 {
        let namespace = lab.add_namespace("i")?;
        for n in 0..idle {
            write!(
                toml,
                "\n[[port]]\nname = \"i{n}\"\nnetwork = \"net\"\nkind = \"{kind}\"\n\
                 netns = \"{namespace}\"\nifname = \"i{n}\"\n"
            )?;
        }
    }
    let file: PathBuf = directory.join("vswitch.toml");
    std::fs::write(&file, toml)?;
    let mut command = Lab::command(&lab.host, None, program);
    command.arg("--config").arg(&file);
    let pid = lab.spawn(command, "vswitchd.log")?;
    let ready = || lab.ends.iter().all(|end| sh(&format!("ip -n {end} link show eth0 up")).is_ok());
    if !wait_until(20, ready) {
        bail!("vswitchd did not make its ports: {}", lab.log_tail("vswitchd.log"));
    }
    Ok(pid)
}
