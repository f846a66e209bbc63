//! The far end of a port: addresses, routes and settings of the interface that a container sees.
//!
//! All functions run with a socket (and, for sysctls, a thread) in the far end's namespace. What is there
//! already and right is not touched, so connections of a running container survive an adoption; what its owner
//! added beside ours stays.

use std::fs;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use packet::MacAddr;
use serde::{Deserialize, Serialize};

use super::Error;
use super::link::{self, Link};
use super::namespace::write_sysctl;
use super::netlink::{Netlink, Refusal};

/// How the interface looks from inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FarEnd {
    /// Its name there: `eth0`.
    pub ifname: String,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Its MTU.
    pub mtu: u32,
    /// Its addresses, with the prefix length of their subnet.
    pub addresses: Vec<IpNet>,
    /// Default gateways, at most one per family. One is used only where the namespace has no default route of
    /// that family.
    pub gateways: Vec<IpAddr>,
    /// Further routes: destination, and next hop unless the destination is on the link.
    pub routes: Vec<(IpNet, Option<IpAddr>)>,
    /// Takes IPv6 router advertisements. Off: addresses and routes are those above.
    pub accept_ra: bool,
}

/// Makes interface `link` look as `wanted` says. `previous` is what we set it to before: what is in there and
/// no longer wanted is taken away.
pub(super) fn configure(
    netlink: &mut Netlink,
    link: &Link,
    wanted: &FarEnd,
    previous: Option<&FarEnd>,
) -> Result<(), Error> {
    let name = &link.name;
    let mut attributes = Vec::new();
    if link.mac != wanted.mac {
        attributes.push(LinkAttribute::Address(wanted.mac.0.to_vec()));
    }
    if link.mtu != wanted.mtu {
        attributes.push(LinkAttribute::Mtu(wanted.mtu));
    }
    if !attributes.is_empty() {
        link::set(netlink, link.index, LinkFlags::empty(), LinkFlags::empty(), attributes)
            .map_err(|refusal| Error::refused(format!("set MAC and MTU of '{name}'"), &refusal))?;
    }
    if wanted.addresses.iter().any(|address| matches!(address, IpNet::V6(_))) {
        // Runtimes switch IPv6 off where they know of no address (Docker does).
        sysctl(name, "disable_ipv6", "0")?;
    }
    // Before the interface comes up: the first advertisement would be taken.
    sysctl(name, "accept_ra", if wanted.accept_ra { "2" } else { "0" })?;
    if !link.up {
        link::set(netlink, link.index, LinkFlags::Up, LinkFlags::Up, Vec::new())
            .map_err(|refusal| Error::refused(format!("bring up '{name}'"), &refusal))?;
    }
    if let Some(previous) = previous {
        remove_stale(netlink, link, wanted, previous)?;
    }
    for address in &wanted.addresses {
        add_address(netlink, link.index, *address)
            .map_err(|refusal| Error::refused(format!("add address {address} to '{name}'"), &refusal))?;
    }
    for (destination, via) in &wanted.routes {
        add_route(netlink, link.index, *destination, *via, wanted)
            .map_err(|refusal| Error::refused(format!("add route to {destination} by '{name}'"), &refusal))?;
    }
    for gateway in &wanted.gateways {
        if has_default_route(netlink, *gateway)? {
            continue;
        }
        add_route(netlink, link.index, default_net(*gateway), Some(*gateway), wanted).map_err(|refusal| {
            Error::refused(format!("add default route via {gateway} by '{name}'"), &refusal)
        })?;
    }
    Ok(())
}

pub(super) fn sysctl(ifname: &str, key: &str, value: &str) -> Result<(), Error> {
    let key = format!("ipv6/conf/{ifname}/{key}");
    // Reading first: /proc/sys is read-only in some places where the value is right already.
    match fs::read_to_string(format!("/proc/sys/net/{key}")) {
        Ok(current) if current.trim() == value => Ok(()),
        _ => write_sysctl(&key, value),
    }
}

fn remove_stale(netlink: &mut Netlink, link: &Link, wanted: &FarEnd, previous: &FarEnd) -> Result<(), Error> {
    // ENXIO: an MTU below 1280 switches IPv6 off on the device, and its addresses and routes go with it.
    let is_gone = |errno| matches!(errno, libc::EADDRNOTAVAIL | libc::ESRCH | libc::ENODEV | libc::ENXIO);
    let stale = |what: String, result: Result<(), Refusal>| match result {
        Err(refusal) if !is_gone(refusal.errno) => {
            Err(Error::refused(format!("remove {what} from '{}'", link.name), &refusal))
        }
        _ => Ok(()),
    };
    for gateway in previous.gateways.iter().filter(|gateway| !wanted.gateways.contains(gateway)) {
        let message = route(link.index, default_net(*gateway), Some(*gateway), previous);
        let result = netlink.request(RouteNetlinkMessage::DelRoute(message), 0);
        stale(format!("the default route via {gateway}"), result)?;
    }
    for (destination, via) in previous.routes.iter().filter(|route| !wanted.routes.contains(route)) {
        let message = route(link.index, *destination, *via, previous);
        let result = netlink.request(RouteNetlinkMessage::DelRoute(message), 0);
        stale(format!("the route to {destination}"), result)?;
    }
    for address in previous.addresses.iter().filter(|address| !wanted.addresses.contains(address)) {
        let result = netlink.request(RouteNetlinkMessage::DelAddress(self::address(link.index, *address)), 0);
        stale(format!("address {address}"), result)?;
    }
    Ok(())
}

fn there_is_fine(result: Result<(), Refusal>) -> Result<(), Refusal> {
    match result {
        Err(refusal) if refusal.errno == libc::EEXIST => Ok(()),
        result => result,
    }
}

fn add_address(netlink: &mut Netlink, index: u32, net: IpNet) -> Result<(), Refusal> {
    let message = RouteNetlinkMessage::NewAddress(address(index, net));
    there_is_fine(netlink.request(message, NLM_F_CREATE | NLM_F_EXCL))
}

pub(super) fn address(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    match net {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
        }
        IpNet::V4(_) => {}
        IpNet::V6(_) => {
            // The switch gives out each address once: a second of "tentative" would only delay the container.
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    message
}

fn add_route(
    netlink: &mut Netlink,
    index: u32,
    destination: IpNet,
    via: Option<IpAddr>,
    far: &FarEnd,
) -> Result<(), Refusal> {
    let message = RouteNetlinkMessage::NewRoute(route(index, destination, via, far));
    there_is_fine(netlink.request(message, NLM_F_CREATE | NLM_F_EXCL))
}

fn route(index: u32, destination: IpNet, via: Option<IpAddr>, far: &FarEnd) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.addr());
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if via.is_some() { RouteScope::Universe } else { RouteScope::Link };
    if destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(destination.network().into()));
    }
    if let Some(via) = via {
        if !far.addresses.iter().any(|net| net.contains(&via)) {
            // A gateway outside the subnet, as with /32 addresses: reached on the link all the same.
            message.header.flags = RouteFlags::Onlink;
        }
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(via)));
    }
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

/// Says whether the main table has a default route of `gateway`'s family, by any interface.
fn has_default_route(netlink: &mut Netlink, gateway: IpAddr) -> Result<bool, Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    let answers = netlink
        .dump(RouteNetlinkMessage::GetRoute(message))
        .map_err(|refusal| Error::refused("list routes", &refusal))?;
    Ok(answers.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => {
            route.header.destination_prefix_length == 0
                && route.header.table == RouteHeader::RT_TABLE_MAIN
                && route.header.kind == RouteType::Unicast
        }
        _ => false,
    }))
}

fn default_net(family_of: IpAddr) -> IpNet {
    match family_of {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
