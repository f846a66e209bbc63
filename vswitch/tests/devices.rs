//! The switch's devices against the real kernel, in namespaces of this test's own. Needs root.

use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use packet::MacAddr;
use vswitch::devices::{Device, Devices, FarEnd, LinkEvent, Namespace, VethSpec};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A switch with its own namespace, and namespaces for its ports. All go when it is dropped.
struct Lab {
    name: String,
    devices: Devices,
    spaces: Vec<String>,
    runtime: tokio::runtime::Runtime,
}

impl Lab {
    fn new(ports: &[&str]) -> Result<Self, Box<dyn std::error::Error>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let devices = Devices::start(&name).map_err(|error| format!("this test needs root: {error}"))?;
        let mut lab = Self { name, devices, spaces: Vec::new(), runtime };
        for port in ports {
            let space = lab.space(port);
            lab.spaces.push(space.clone());
            Namespace::open_or_create(&space)?;
        }
        Ok(lab)
    }

    fn space(&self, port: &str) -> String {
        format!("{}-{port}", self.name)
    }

    fn create(&self, spec: VethSpec) -> Result<Device, vswitch::devices::Error> {
        self.runtime.block_on(self.devices.create_veth(spec))
    }

    fn remove(&self, device: Device) -> Result<(), vswitch::devices::Error> {
        self.runtime.block_on(self.devices.remove(device))
    }

    fn veth(&self, port: &str, number: u8) -> VethSpec {
        VethSpec {
            port: port.to_owned(),
            netns: self.space(port),
            near_mac: MacAddr::local(0x100 + u64::from(number)),
            queues: 1,
            drop_ingress: true,
            far: far(number),
            previous: None,
        }
    }

    /// Runs a command inside the namespace of `port` (or of the switch), and returns what it prints.
    fn inside(&self, space: &str, command: &str) -> String {
        let space = if space == "switch" { format!("vswitch-{}", self.name) } else { self.space(space) };
        let mut words = command.split(' ');
        let output = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{space}"))
            .arg(words.next().unwrap_or_default())
            .args(words)
            .output();
        output.map_or_else(
            |error| error.to_string(),
            |output| {
                String::from_utf8_lossy(&output.stdout).into_owned()
                    + &String::from_utf8_lossy(&output.stderr)
            },
        )
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.runtime.block_on(self.devices.remove_all()) {
            eprintln!("{error}");
        }
        for space in &self.spaces {
            let _ = Namespace::remove(space);
        }
    }
}

fn far(number: u8) -> FarEnd {
    FarEnd {
        ifname: "eth0".to_owned(),
        mac: MacAddr::local(u64::from(number)),
        mtu: 1400,
        addresses: [format!("10.1.0.{number}/24"), format!("fd00:1::{number}/64")]
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect(),
        gateways: ["10.1.0.1", "fd00:1::1"].iter().filter_map(|text| text.parse::<IpAddr>().ok()).collect(),
        routes: vec![],
        accept_ra: false,
    }
}

#[test]
fn veth_is_made_with_both_macs_addresses_and_routes_and_removed_again() -> Outcome {
    let lab = Lab::new(&["web"])?;
    let device = lab.create(lab.veth("web", 10))?;
    assert!(!device.adopted && device.notes.is_empty(), "{device:?}");

    let near = lab.inside("switch", "ip -d link show dev web");
    for word in ["02:00:00:00:01:0a", "NOARP", ",UP", "LOWER_UP", "mtu 1400", "numtxqueues 1 "] {
        assert!(near.contains(word), "{word} is not in {near}");
    }
    let link = lab.inside("web", "ip -d link show dev eth0");
    for word in ["02:00:00:00:00:0a", "LOWER_UP", "mtu 1400"] {
        assert!(link.contains(word), "{word} is not in {link}");
    }
    let addresses = lab.inside("web", "ip addr show dev eth0");
    assert!(addresses.contains("10.1.0.10/24 brd 10.1.0.255"), "{addresses}");
    assert!(addresses.contains("fd00:1::10/64 scope global nodad"), "{addresses}");
    let routes = lab.inside("web", "ip route") + &lab.inside("web", "ip -6 route");
    assert!(routes.contains("default via 10.1.0.1 dev eth0"), "{routes}");
    assert!(routes.contains("default via fd00:1::1 dev eth0"), "{routes}");
    assert_eq!(lab.inside("web", "cat /proc/sys/net/ipv6/conf/eth0/accept_ra").trim(), "0");
    let addresses = lab.inside("switch", "ip addr show dev web");
    assert!(!addresses.contains("inet"), "our end has an address: {addresses}");

    lab.remove(device.clone())?;
    assert!(lab.inside("switch", "ip link show dev web").contains("does not exist"));
    assert!(lab.inside("web", "ip link show dev eth0").contains("does not exist"));
    lab.remove(device)?;
    Ok(())
}

#[test]
fn a_deleted_namespace_is_told_within_a_second() -> Outcome {
    let lab = Lab::new(&["web"])?;
    lab.create(lab.veth("web", 10))?;
    let took = lab.runtime.block_on(async {
        let mut watch = lab.devices.watch().await?;
        let start = Instant::now();
        Namespace::remove(&lab.space("web"))?;
        let gone = async {
            loop {
                match watch.next().await {
                    Ok(LinkEvent::Gone(link)) if link.name == "web" => return Ok(start.elapsed()),
                    Ok(_) => {}
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone).await.expect("an event within five seconds")
    })?;
    eprintln!("told after {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    Ok(())
}

#[test]
fn a_thousand_ports_come_and_go_quickly() -> Outcome {
    let lab = Lab::new(&["web"])?;
    const COUNT: u32 = 200;
    let start = Instant::now();
    let mut devices = Vec::new();
    for n in 0..COUNT {
        let mut spec = lab.veth("web", 10);
        spec.port = format!("p{n}");
        spec.far.ifname = format!("e{n}");
        spec.far.addresses = vec![format!("10.{}.{}.10/24", 2 + n / 256, n % 256).parse()?];
        spec.far.gateways = vec![];
        devices.push(lab.create(spec)?);
    }
    let made = start.elapsed();
    let start = Instant::now();
    lab.runtime.block_on(async {
        let removals: Vec<_> = devices.into_iter().map(|device| lab.devices.remove(device)).collect();
        for removal in removals {
            removal.await?;
        }
        Ok::<_, vswitch::devices::Error>(())
    })?;
    eprintln!("one after the other: make {:?} each, remove {:?} each", made / COUNT, start.elapsed() / COUNT);
    Ok(())
}
