//! A switch with namespaces for its ports, for one test.

use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use packet::{Area, MacAddr};
use ports::{Kind, Opened, Port, Spec};
use vswitch::devices::{Device, Devices, FarEnd, Namespace, TapSpec, VethSpec};

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Outcome = Result<(), Failure>;

/// A switch with its own namespace, and namespaces for its ports. All go when it is dropped.
pub(crate) struct Lab {
    pub(crate) name: String,
    pub(crate) devices: Devices,
    pub(crate) spaces: Vec<String>,
    pub(crate) runtime: tokio::runtime::Runtime,
}

impl Lab {
    pub(crate) fn new(ports: &[&str]) -> Result<Self, Failure> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let runtime = runtime()?;
        let devices = Devices::start(&name).map_err(|error| format!("this test needs root: {error}"))?;
        let mut lab = Self { name, devices, spaces: Vec::new(), runtime };
        for port in ports {
            let space = lab.space(port);
            lab.spaces.push(space.clone());
            Namespace::open_or_create(&space)?;
        }
        Ok(lab)
    }

    pub(crate) fn space(&self, port: &str) -> String {
        format!("{}-{port}", self.name)
    }

    pub(crate) fn create(&self, spec: VethSpec) -> Result<Device, vswitch::devices::Error> {
        self.runtime.block_on(self.devices.create_veth(spec))
    }

    pub(crate) fn remove(&self, device: Device) -> Result<(), vswitch::devices::Error> {
        self.runtime.block_on(self.devices.remove(device))
    }

    pub(crate) fn veth(&self, port: &str, number: u8) -> VethSpec {
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

    pub(crate) fn tap(&self, port: &str, number: u8) -> TapSpec {
        TapSpec { port: port.to_owned(), netns: self.space(port), far: far(number), previous: None }
    }

    pub(crate) fn create_tap(&self, spec: TapSpec) -> Result<(Device, Opened), Failure> {
        self.runtime.block_on(self.devices.create_tap(spec, |device| {
            let kind = Kind::Tap { device: device.to_owned(), queues: 1, persist: true };
            let area = Area::new(64, 1)?;
            Port::open(Spec { name: "tap".to_owned(), kind }, &area).map_err(Failure::from)
        }))
    }

    /// Runs a command inside the namespace of `port` (or of the switch), and returns what it prints.
    pub(crate) fn inside(&self, space: &str, command: &str) -> String {
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

pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

pub(crate) fn far(number: u8) -> FarEnd {
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
