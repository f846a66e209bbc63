//! Several hosts on one segment, the underlay of an overlay: each has a switch of its own, or the kernel's VXLAN.
//!
//! ```text
//!  host 0  up0 203.0.113.1/24, 2001:db8:1::1/64 --+
//!  host 1  up0 203.0.113.2/24, 2001:db8:1::2/64 --+-- a bridge, in the namespace `wire` of host 0
//!  ...                                           --+
//! ```

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use packet::MacAddr;
use serde_json::Value;

use super::{Ears, Net, PATIENCE, Space, wait_until};

/// What VXLAN adds to a packet, over IPv4 and over IPv6.
pub const OVERHEAD: [u32; 2] = [50, 70];

/// Returns the IPv4 address of a host in the underlay.
pub fn v4(host: usize) -> Ipv4Addr {
    Ipv4Addr::from(0xcb00_7101 + u32::try_from(host).expect("few"))
}

/// Returns the IPv6 address of a host in the underlay.
pub fn v6(host: usize) -> Ipv6Addr {
    Ipv6Addr::from(0x2001_0db8_0001_0000_0000_0000_0000_0001 + host as u128)
}

/// Hosts with switches, and the segment that they are on.
#[derive(Debug)]
pub struct Fabric {
    hosts: Vec<Net>,
}

impl Fabric {
    /// Makes hosts that run with what `config` says of each, and waits until all ports are up.
    pub fn with(count: usize, mtu: u32, config: impl Fn(usize) -> String) -> Self {
        let mut fabric = Self::new(count, mtu);
        fabric.start(config);
        fabric
    }

    /// Starts the switches with what `config` says of each, and waits until all ports are up.
    pub fn start(&mut self, config: impl Fn(usize) -> String) {
        for (n, host) in self.hosts.iter_mut().enumerate() {
            host.write_config(&config(n));
            host.start();
        }
        self.hosts.iter().for_each(Net::ready);
    }

    /// Makes hosts on a segment; no switch runs yet.
    pub fn new(count: usize, mtu: u32) -> Self {
        let first = Net::new();
        let wire = first.space("wire");
        wire.run("ip link add br0 type bridge mcast_snooping 0");
        wire.run(&format!("ip link set br0 mtu {mtu} up"));
        let mut hosts = vec![first];
        for _ in 1..count {
            hosts.push(hosts[0].beside());
        }
        let fabric = Self { hosts };
        for (n, host) in fabric.hosts.iter().enumerate() {
            fabric.plug(&host.host(), n, mtu);
        }
        fabric
    }

    /// Puts a namespace on the segment, as host `n`.
    fn plug(&self, space: &Space, n: usize, mtu: u32) {
        let wire = self.wire();
        wire.run(&format!("ip link add h{n} type veth peer name up0 netns {}", space.name()));
        wire.run(&format!("ip link set h{n} master br0 mtu {mtu} up"));
        space.run(&format!("ip link set up0 mtu {mtu} up"));
        space.run(&format!("ip addr add {}/24 dev up0", v4(n)));
        space.run(&format!("ip addr add {}/64 dev up0 nodad", v6(n)));
    }

    /// Puts a host without a switch on the segment, as number `n`.
    pub fn add_plain(&self, name: &str, n: usize, mtu: u32) -> Arc<Space> {
        let space = self.hosts[0].space(name);
        space.run("ip link set lo up");
        self.plug(&space, n, mtu);
        space
    }

    /// Returns the namespace of the segment.
    pub fn wire(&self) -> Arc<Space> {
        self.hosts[0].space("wire")
    }

    /// Returns a host.
    pub fn host(&self, n: usize) -> &Net {
        &self.hosts[n]
    }

    /// Returns a host, to stop and start its switch.
    pub fn host_mut(&mut self, n: usize) -> &mut Net {
        &mut self.hosts[n]
    }

    /// Returns all hosts that have switches.
    pub fn hosts(&self) -> &[Net] {
        &self.hosts
    }

    /// Changes the MTU of the segment: of the hosts first when it gets smaller, of what is between them when it gets larger.
    pub fn set_mtu(&self, mtu: u32) {
        let wire = self.wire();
        let segment = || {
            for n in 0..self.hosts.len() {
                wire.run(&format!("ip link set h{n} mtu {mtu}"));
            }
            wire.run(&format!("ip link set br0 mtu {mtu}"));
        };
        let grows = mtu > mtu_of(&wire, "br0");
        if grows {
            segment();
        }
        for host in &self.hosts {
            host.host().run(&format!("ip link set up0 mtu {mtu}"));
        }
        if !grows {
            segment();
        }
    }

    /// Starts to listen to what host `n` sends and receives in the underlay.
    pub fn listen(&self, n: usize, filter: &str) -> Ears {
        Ears::listen(&self.wire(), &format!("h{n}"), filter, &self.hosts[0].path(""))
    }

    /// Returns what helps to see why something failed: drops and logs of all hosts.
    pub fn circumstances(&self) -> String {
        let all = self.hosts.iter().enumerate();
        all.map(|(n, host)| format!("host {n}: {}\n", host.circumstances())).collect()
    }

    /// Expects that no host has lost a frame from its books.
    pub fn balance(&self) {
        self.hosts.iter().for_each(|host| drop(host.balance()));
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        // The first one has the turn of this process.
        while self.hosts.pop().is_some() {}
    }
}

/// Returns how many frames a host has dropped for `reason`, whatever port they came by.
pub fn dropped(host: &Net, reason: &str) -> u64 {
    let drops = host.get("/v1/drops");
    let all = drops["drops"].as_array().map_or(&[][..], Vec::as_slice);
    all.iter().filter(|drop| drop["reason"] == reason).filter_map(|drop| drop["frames"].as_u64()).sum()
}

/// Returns the MTU of an interface.
pub fn mtu_of(space: &Space, interface: &str) -> u32 {
    let links: Value = serde_json::from_str(&space.run(&format!("ip -j link show dev {interface}")))
        .expect("ip prints JSON");
    links[0]["mtu"].as_u64().and_then(|mtu| u32::try_from(mtu).ok()).expect("every device has an MTU")
}

/// Returns how many packets an interface has sent and received.
pub fn packets(space: &Space, interface: &str) -> u64 {
    let links: Value = serde_json::from_str(&space.run(&format!("ip -s -j link show dev {interface}")))
        .expect("ip prints JSON");
    let of = |way: &str| links[0]["stats64"][way]["packets"].as_u64().expect("every device counts");
    of("tx") + of("rx")
}

/// Makes the kernel of a host an end of tunnels: a VXLAN device on a bridge, and behind the bridge a container, whose `eth0`
/// has `addresses`. Frames to unknown stations and to groups go to each of `remotes`.
pub fn kernel_vtep(
    host: &Space,
    container: &Space,
    vni: u32,
    ends: (IpAddr, &[IpAddr]),
    addresses: &[&str],
    mtu: u32,
) {
    let (local, remotes) = ends;
    let family = if local.is_ipv6() { "-6" } else { "-4" };
    host.run(&format!("ip {family} link add vx0 type vxlan id {vni} local {local} dev up0 dstport 4789"));
    for remote in remotes {
        host.run(&format!("bridge fdb append 00:00:00:00:00:00 dev vx0 dst {remote}"));
    }
    host.run("ip link add br0 type bridge mcast_snooping 0");
    host.run(&format!("ip link set vx0 mtu {mtu} master br0 up"));
    host.run(&format!(
        "ip link add c0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
        container.name()
    ));
    host.run("ip link set c0 master br0 up");
    host.run("ip link set br0 up");
    container.run("ip link set lo up");
    container.run("ip link set eth0 up");
    for address in addresses {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        container.run(&format!("ip addr add {address} dev eth0 {nodad}"));
    }
}

/// A host as flannel's `vxlan` backend sets it up (flannel, pkg/backend/vxlan: `newVXLANDevice`, `Configure`, `AddFDB`,
/// `AddARP`, `RouteReplace`), with a container behind the bridge of its CNI plugin.
#[derive(Debug)]
pub struct Flannel {
    host: Arc<Space>,
    /// The MAC of `flannel.1`, which it tells the others.
    pub mac: MacAddr,
}

impl Flannel {
    /// Sets up the device for the host's own subnet 10.244.`own`.0/24, and a container with its address .10.
    pub fn new(host: Arc<Space>, container: &Space, local: IpAddr, own: u8) -> Self {
        host.run("sysctl -q -w net.ipv4.ip_forward=1");
        host.run(&format!(
            "ip link add flannel.1 type vxlan id 1 local {local} dev up0 dstport 8472 nolearning"
        ));
        host.run(&format!("ip addr add 10.244.{own}.0/32 dev flannel.1"));
        host.run("ip link set flannel.1 up");
        host.run("ip link add cni0 type bridge");
        host.run(&format!(
            "ip link add c0 mtu 1450 type veth peer name eth0 mtu 1450 netns {}",
            container.name()
        ));
        host.run("ip link set c0 master cni0 up");
        host.run("ip link set cni0 mtu 1450 up");
        host.run(&format!("ip addr add 10.244.{own}.1/24 dev cni0"));
        container.run("ip link set eth0 up");
        container.run(&format!("ip addr add 10.244.{own}.10/24 dev eth0"));
        container.run(&format!("ip route add default via 10.244.{own}.1"));
        let mac = host.mac("flannel.1");
        Self { host, mac }
    }

    /// Adds another host, as flannel does when the host's lease appears: its subnet is 10.244.`subnet`.0/24.
    pub fn add(&self, address: IpAddr, mac: MacAddr, subnet: u8) {
        let router = format!("10.244.{subnet}.0");
        self.host.run(&format!("ip neigh replace {router} lladdr {mac} dev flannel.1 nud permanent"));
        self.host.run(&format!("bridge fdb replace {mac} dev flannel.1 dst {address}"));
        self.host.run(&format!("ip route replace {router}/24 via {router} dev flannel.1 onlink"));
    }
}

/// Someone who hears datagrams to all, or to a group, on L4 port 7777.
#[derive(Debug)]
pub struct Listener {
    socket: UdpSocket,
    name: String,
    heard: Vec<u8>,
}

const GROUP_PORT: u16 = 7777;

impl Listener {
    /// Joins `group` when it is one.
    pub fn new(space: &Space, own: IpAddr, group: IpAddr) -> Self {
        let index = index_of(space);
        let socket = space.inside(|| -> io::Result<UdpSocket> {
            let any: IpAddr = if group.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let socket = UdpSocket::bind((any, GROUP_PORT))?;
            match (group, own) {
                (IpAddr::V4(group), IpAddr::V4(own)) if group.is_multicast() => {
                    socket.join_multicast_v4(&group, &own)?;
                }
                (IpAddr::V6(group), _) => socket.join_multicast_v6(&group, index)?,
                _ => {}
            }
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            Ok(socket)
        });
        let socket = socket.unwrap_or_else(|error| panic!("{} cannot listen: {error}", space.name()));
        Self { socket, name: space.name().to_owned(), heard: Vec::new() }
    }

    /// Takes what has come in.
    fn listen(&mut self) {
        let mut datagram = [0; 16];
        while let Ok(len) = self.socket.recv(&mut datagram) {
            if len > 0 {
                self.heard.push(datagram[0]);
            }
        }
    }
}

fn index_of(space: &Space) -> u32 {
    let links = space.run("ip -o link show dev eth0");
    links.split(':').next().and_then(|index| index.trim().parse().ok()).expect("ip begins with the index")
}

/// Sends numbered datagrams to all or to a group, until each listener has heard one, and then some more. Expects that nobody
/// hears one twice.
pub fn everybody_hears(from: &Space, own: IpAddr, to: IpAddr, listeners: &mut [Listener]) {
    let index = index_of(from);
    let socket = from.inside(|| UdpSocket::bind((own, 0))).expect("the address is there");
    socket.set_broadcast(true).expect("a socket");
    let target = match to {
        IpAddr::V4(v4) => SocketAddr::from((v4, GROUP_PORT)),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, GROUP_PORT, 0, index).into(),
    };
    let end = Instant::now() + PATIENCE;
    let mut sent = 0_u8;
    while listeners.iter().any(|listener| listener.heard.len() < 3) {
        let deaf = || {
            let all = listeners.iter().map(|listener| format!("{}: {:?}", listener.name, listener.heard));
            all.collect::<Vec<_>>().join(", ")
        };
        assert!(Instant::now() < end, "{sent} datagrams from {own} to {to}; heard: {}", deaf());
        sent = sent.wrapping_add(1);
        let _ = from.inside(|| socket.send_to(&[sent], target));
        listeners.iter_mut().for_each(Listener::listen);
    }
    for listener in listeners {
        listener.listen();
        let mut once = listener.heard.clone();
        once.dedup();
        assert_eq!(once, listener.heard, "{} hears datagrams twice", listener.name);
    }
}

/// Returns the word behind `key` in a line of tcpdump.
pub fn after<'l>(line: &'l str, key: &str) -> Option<&'l str> {
    line.split_whitespace().skip_while(|word| *word != key).nth(1).map(|word| word.trim_end_matches(','))
}

/// Waits until an interface has this MTU.
pub fn wait_for_mtu(space: &Space, interface: &str, mtu: u32) {
    let mut last = 0;
    let done = wait_until(PATIENCE, || {
        last = mtu_of(space, interface);
        last == mtu
    });
    assert!(done, "{interface} of {} has MTU {last}, and not {mtu}", space.name());
}
