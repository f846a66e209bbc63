//! What the switch asks of the host's own namespace: its taps there, routes by them, next hops, and classifiers.
//!
//! All that is made here can be told from what is the host's: taps have a mark in their alias, routes the protocol number
//! [`PROTOCOL`]. A change is the difference to what is there, so a start adopts what the daemon before it has left.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressScope, CacheInfo};
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use ports::steer::Classifier;

use super::netlink::{Netlink, Refusal};
use super::{Error, Link, far, link};

/// The protocol of our routes in the host's tables ("vs" as far as eight bits go; above those of iproute2).
pub const PROTOCOL: u8 = 0xf5;

/// Priority and handle of our classifier: whoever else has one keeps it.
const CLASSIFIER: u32 = 0x76;

/// A tap of ours in the host's namespace. It exists already: whoever opens it makes it.
#[derive(Clone, Debug)]
pub struct HostTap<'a> {
    /// Its name.
    pub name: &'a str,
    /// What marks it as ours.
    pub mark: &'a str,
    /// Its MTU, where that matters.
    pub mtu: Option<u32>,
    /// The host's stack takes part: it asks for addresses, is asked, and has IPv6.
    pub stack: bool,
}

/// A route of the host to what is behind a tap of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostRoute {
    /// Where it leads.
    pub to: IpNet,
    /// The source address that the host shows, where it does not choose itself.
    pub source: Option<IpAddr>,
}

/// A socket in the host's namespace. Blocks for as long as the kernel needs; see the header of `netlink.rs`.
#[derive(Debug)]
pub struct Host {
    netlink: Netlink,
}

impl Host {
    /// Opens a socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open() -> Result<Self, Error> {
        let netlink = Netlink::open().map_err(|error| Error::kernel("open a netlink socket", error))?;
        Ok(Self { netlink })
    }

    pub(super) fn netlink(&mut self) -> &mut Netlink {
        &mut self.netlink
    }

    /// Finds the link called `name`.
    ///
    /// # Errors
    /// There is none, or the kernel refuses.
    pub fn link(&mut self, name: &str) -> Result<Link, Error> {
        link::find(&mut self.netlink, name)?.ok_or_else(|| {
            Error::kernel(format!("find interface '{name}'"), io::Error::from_raw_os_error(libc::ENODEV))
        })
    }

    /// Lists the taps whose mark begins with `mark`.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn taps(&mut self, mark: &str) -> Result<Vec<Link>, Error> {
        let is_ours = |link: &Link| {
            link.kind == "tun" && link.alias.as_deref().is_some_and(|alias| alias.starts_with(mark))
        };
        Ok(link::list(&mut self.netlink)?.into_iter().filter(is_ours).collect())
    }

    /// Sets a tap up as `tap` says, and brings it up.
    ///
    /// # Errors
    /// A tap or other interface of somebody else has the name, or the kernel refuses.
    pub fn set_up(&mut self, tap: &HostTap<'_>) -> Result<Link, Error> {
        let name = tap.name;
        let link = self.link(name)?;
        if link.kind != "tun" || link.alias.as_deref().is_some_and(|alias| alias != tap.mark) {
            return Err(Error::IfnameTaken { ifname: name.to_owned(), netns: "the host".to_owned() });
        }
        if tap.stack {
            // Nobody else is on this link: no address is taken, and no router is.
            for key in ["accept_dad", "accept_ra", "router_solicitations"] {
                far::sysctl(name, key, "0")?;
            }
        } else {
            far::sysctl(name, "disable_ipv6", "1")?;
        }
        let mut attributes = vec![LinkAttribute::IfAlias(tap.mark.to_owned())];
        attributes.extend(tap.mtu.filter(|mtu| *mtu != link.mtu).map(LinkAttribute::Mtu));
        let noarp = if tap.stack { LinkFlags::empty() } else { LinkFlags::Noarp };
        link::set(
            &mut self.netlink,
            link.index,
            LinkFlags::Up | noarp,
            LinkFlags::Up | LinkFlags::Noarp,
            attributes,
        )
        .map_err(|refusal| Error::refused(format!("set up tap '{name}'"), &refusal))?;
        self.link(name)
    }

    /// Brings the link called `name` up.
    ///
    /// # Errors
    /// There is none, or the kernel refuses.
    pub fn bring_up(&mut self, name: &str) -> Result<(), Error> {
        let link = self.link(name)?;
        link::set(&mut self.netlink, link.index, LinkFlags::Up, LinkFlags::Up, Vec::new())
            .map_err(|refusal| Error::refused(format!("bring up interface '{name}'"), &refusal))
    }

    /// Deletes the link number `index`. One that has gone is fine.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete(&mut self, index: u32) -> Result<(), Error> {
        link::delete(&mut self.netlink, index)
            .map_err(|refusal| Error::refused(format!("delete interface number {index}"), &refusal))
    }

    /// Gives a link an address that only those use who ask for it: the host chooses it as a source for nobody.
    ///
    /// # Errors
    /// The kernel's refusal. That it is there already is fine.
    pub fn add_quiet_address(&mut self, index: u32, address: IpAddr) -> Result<(), Error> {
        let mut message = far::address(index, IpNet::from(address));
        match address {
            // Routes by this link have the scope "link", and take no source of a smaller one.
            IpAddr::V4(_) => message.header.scope = AddressScope::Host,
            // Deprecated from the start (RFC 6724, rule 3).
            IpAddr::V6(_) => {
                let mut forever = CacheInfo::default();
                forever.ifa_valid = u32::MAX;
                message.attributes.push(AddressAttribute::CacheInfo(forever));
                message.header.flags |= AddressHeaderFlags::Permanent;
            }
        }
        let message = RouteNetlinkMessage::NewAddress(message);
        match self.netlink.request(message, NLM_F_CREATE | NLM_F_EXCL) {
            Err(refusal) if refusal.errno != libc::EEXIST => {
                Err(Error::refused(format!("add address {address} to interface number {index}"), &refusal))
            }
            _ => Ok(()),
        }
    }

    /// Makes our routes by the link number `index` exactly `wanted`.
    ///
    /// # Errors
    /// The first refusal; the others are as wanted. `EEXIST` when somebody else has a route to the same place.
    pub fn set_routes(&mut self, index: u32, wanted: &[HostRoute]) -> Result<(), Error> {
        let wanted: BTreeSet<_> = wanted.iter().copied().collect();
        let is = self.routes(index)?;
        let mut first_error = None;
        for stale in is.difference(&wanted) {
            match self.netlink.request(RouteNetlinkMessage::DelRoute(route(index, stale)), 0) {
                Err(refusal) if refusal.errno != libc::ESRCH => {
                    first_error.get_or_insert_with(|| {
                        Error::refused(format!("remove the host's route to {}", stale.to), &refusal)
                    });
                }
                _ => {}
            }
        }
        for new in wanted.difference(&is) {
            let message = RouteNetlinkMessage::NewRoute(route(index, new));
            if let Err(refusal) = self.netlink.request(message, NLM_F_CREATE | NLM_F_EXCL) {
                first_error.get_or_insert_with(|| {
                    Error::refused(format!("add a route of the host to {}", new.to), &refusal)
                });
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn routes(&mut self, index: u32) -> Result<BTreeSet<HostRoute>, Error> {
        let mut found = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            let answers = self
                .netlink
                .dump(RouteNetlinkMessage::GetRoute(message))
                .map_err(|refusal| Error::refused("list routes", &refusal))?;
            for answer in answers {
                let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
                if message.header.protocol != RouteProtocol::Other(PROTOCOL) {
                    continue;
                }
                let mut to = match family {
                    AddressFamily::Inet => IpAddr::from([0; 4]),
                    _ => IpAddr::from([0; 16]),
                };
                let (mut source, mut by) = (None, 0);
                for attribute in &message.attributes {
                    match attribute {
                        RouteAttribute::Destination(address) => to = ip(address).unwrap_or(to),
                        RouteAttribute::PrefSource(address) => source = ip(address),
                        RouteAttribute::Oif(oif) => by = *oif,
                        _ => {}
                    }
                }
                if by == index
                    && let Ok(to) = IpNet::new(to, message.header.destination_prefix_length)
                {
                    found.insert(HostRoute { to, source });
                }
            }
        }
        Ok(found)
    }

    /// Makes the kernel find out who has the address of a next hop and, from Linux 5.17 on, keep knowing it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn resolve(&mut self, index: u32, address: IpAddr) -> Result<(), Error> {
        let request = |netlink: &mut Netlink, managed: bool| {
            let mut message = NeighbourMessage::default();
            message.header.ifindex = index;
            message.header.flags = NeighbourFlags::Use;
            let (family, destination) = match address {
                IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
                IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
            };
            message.header.family = family;
            message.attributes.push(NeighbourAttribute::Destination(destination));
            if managed {
                message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
            }
            netlink.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
        };
        // Older kernels know neither the attribute nor the flag.
        request(&mut self.netlink, true)
            .or_else(|_| request(&mut self.netlink, false))
            .map_err(|refusal| Error::refused(format!("resolve {address}"), &refusal))
    }
}

impl Classifier for Host {
    fn attach(&mut self, device: u32, program: BorrowedFd<'_>) -> io::Result<()> {
        let index = device.try_into().map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
        let clsact = RouteNetlinkMessage::NewQueueDiscipline(link::clsact(index));
        match self.netlink.request(clsact, NLM_F_CREATE | NLM_F_EXCL) {
            Err(refusal) if refusal.errno != libc::EEXIST => return Err(io_error(&refusal)),
            _ => {}
        }
        let mut filter = classifier(index);
        filter.attributes = vec![
            TcAttribute::Kind("bpf".to_owned()),
            TcAttribute::Options(vec![
                TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned())),
                TcOption::Bpf(TcFilterBpfOption::ProgName("vswitch".to_owned())),
                TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
            ]),
        ];
        let message = RouteNetlinkMessage::NewTrafficFilter(filter);
        self.netlink.request(message, NLM_F_CREATE | NLM_F_REPLACE).map_err(|refusal| io_error(&refusal))
    }

    fn detach(&mut self, device: u32) -> io::Result<()> {
        let index = device.try_into().map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
        let mut filter = classifier(index);
        filter.attributes = vec![TcAttribute::Kind("bpf".to_owned())];
        match self.netlink.request(RouteNetlinkMessage::DelTrafficFilter(filter), 0) {
            // EINVAL: there is no clsact.
            Err(refusal) if !matches!(refusal.errno, libc::ENOENT | libc::EINVAL | libc::ENODEV) => {
                Err(io_error(&refusal))
            }
            _ => Ok(()),
        }
    }
}

fn classifier(index: i32) -> TcMessage {
    const ETH_P_ALL: u16 = 3;

    let mut filter = TcMessage::with_index(index);
    filter.header.parent = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };
    filter.header.handle = TcHandle { major: 0, minor: 0x76 };
    filter.header.info = (CLASSIFIER << 16) | u32::from(ETH_P_ALL.to_be());
    filter
}

fn io_error(refusal: &Refusal) -> io::Error {
    io::Error::from_raw_os_error(refusal.errno)
}

fn route(index: u32, route: &HostRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match route.to {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = route.to.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.scope = match route.to {
        IpNet::V4(_) => RouteScope::Link,
        IpNet::V6(_) => RouteScope::Universe,
    };
    message.attributes =
        vec![RouteAttribute::Destination(RouteAddress::from(route.to.network())), RouteAttribute::Oif(index)];
    message
        .attributes
        .extend(route.source.map(|source| RouteAttribute::PrefSource(RouteAddress::from(source))));
    message
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
