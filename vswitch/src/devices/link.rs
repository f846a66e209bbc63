//! Links over rtnetlink: look-up, veth pairs, changes, deletion, and the drop at tc ingress.

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use packet::MacAddr;

use super::netlink::{Netlink, Refusal};
use super::{Error, Namespace};

/// What the kernel says about a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name there.
    pub name: String,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Its MTU.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The other end is up, or a process has it open.
    pub carrier: bool,
    /// `veth`, `tun`, ...; empty for physical devices.
    pub kind: String,
    /// A veth's peer: its number in its own namespace.
    pub peer: Option<u32>,
    /// The namespace of `peer`, as this namespace numbers them; `None` for its own.
    pub peer_nsid: Option<i32>,
    /// The alias, where we keep the mark of our taps.
    pub alias: Option<String>,
    /// Number of transmit queues.
    pub tx_queues: u32,
    /// Number of receive queues.
    pub rx_queues: u32,
}

impl Link {
    /// Reads what an RTM_NEWLINK or RTM_DELLINK message says.
    pub(super) fn from_message(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Link {
            index: message.header.index,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            ..Link::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(octets) => {
                    link.mac = octets.as_slice().try_into().map_or(MacAddr::ZERO, MacAddr);
                }
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Link(peer) => link.peer = Some(*peer),
                LinkAttribute::LinkNetNsId(nsid) => link.peer_nsid = Some(*nsid),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::NumTxQueues(count) => link.tx_queues = *count,
                LinkAttribute::NumRxQueues(count) => link.rx_queues = *count,
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            link.kind = kind.to_string();
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

/// A veth pair to be made: `near` here, `far` in another namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<'a> {
    pub(super) near: &'a str,
    pub(super) near_mac: MacAddr,
    pub(super) far: &'a str,
    pub(super) far_mac: MacAddr,
    pub(super) far_netns: &'a Namespace,
    pub(super) mtu: u32,
    pub(super) queues: u16,
}

/// Finds the link called `name`, if there is one.
pub(super) fn find(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, Error> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    get(netlink, message).map_err(|refusal| Error::refused(format!("look up interface '{name}'"), &refusal))
}

/// Finds the link number `index`, if there is one.
pub(super) fn find_index(netlink: &mut Netlink, index: u32) -> Result<Option<Link>, Error> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    get(netlink, message)
        .map_err(|refusal| Error::refused(format!("look up interface number {index}"), &refusal))
}

fn get(netlink: &mut Netlink, mut message: LinkMessage) -> Result<Option<Link>, Refusal> {
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    match netlink.get(RouteNetlinkMessage::GetLink(message)) {
        Ok(RouteNetlinkMessage::NewLink(message)) => Ok(Some(Link::from_message(&message))),
        Ok(_) => Ok(None),
        Err(refusal) if matches!(refusal.errno, libc::ENODEV | libc::ENOENT) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// Lists all links of the namespace.
pub(super) fn list(netlink: &mut Netlink) -> Result<Vec<Link>, Error> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let answers = netlink
        .dump(RouteNetlinkMessage::GetLink(message))
        .map_err(|refusal| Error::refused("list interfaces", &refusal))?;
    Ok(answers
        .iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(Link::from_message(message)),
            _ => None,
        })
        .collect())
}

/// Makes the pair in one message, so that nobody ever sees it with other names, addresses or places. Our end
/// comes up at once (without carrier), the far end stays down.
pub(super) fn create_pair(netlink: &mut Netlink, pair: &Pair<'_>) -> Result<(), Refusal> {
    // One queue unless more are asked for: the kernel's default is one per possible CPU, of each kind.
    let attributes = |name: &str, mac: MacAddr| {
        vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(pair.mtu),
            LinkAttribute::NumTxQueues(pair.queues.into()),
            LinkAttribute::NumRxQueues(pair.queues.into()),
        ]
    };
    let mut far = LinkMessage::default();
    far.attributes = attributes(pair.far, pair.far_mac);
    far.attributes.push(LinkAttribute::NetNsFd(pair.far_netns.as_fd().as_raw_fd()));
    let mut near = LinkMessage::default();
    near.header.flags = LinkFlags::Up | LinkFlags::Noarp;
    near.header.change_mask = near.header.flags;
    near.attributes = attributes(pair.near, pair.near_mac);
    near.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
    ]));
    netlink.request(RouteNetlinkMessage::NewLink(near), NLM_F_CREATE | NLM_F_EXCL)
}

/// Changes the link: the `flags` that are in `mask`, and `attributes`.
pub(super) fn set(
    netlink: &mut Netlink,
    index: u32,
    flags: LinkFlags,
    mask: LinkFlags,
    attributes: Vec<LinkAttribute>,
) -> Result<(), Refusal> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = flags;
    message.header.change_mask = mask;
    message.attributes = attributes;
    // RTM_NEWLINK without NLM_F_CREATE: the form that applies all attributes on every kernel.
    netlink.request(RouteNetlinkMessage::NewLink(message), 0)
}

/// Deletes the link number `index`. One that has gone is fine.
pub(super) fn delete(netlink: &mut Netlink, index: u32) -> Result<(), Refusal> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    gone_is_fine(netlink.request(RouteNetlinkMessage::DelLink(message), 0))
}

/// Deletes all links with these `names` at once, and returns each one's result: a deletion waits for RCU, and a
/// group of links waits only once. Those that have gone are fine.
pub(super) fn delete_together(netlink: &mut Netlink, names: &[String]) -> Vec<Result<(), Refusal>> {
    // The group (`ip link show group`) of links that wait for deletion: "vswd" in ASCII.
    const DOOMED: u32 = 0x7673_7764;

    if names.is_empty() {
        return Vec::new();
    }
    let mut results: Vec<_> = names
        .iter()
        .map(|name| {
            let mut message = LinkMessage::default();
            message.attributes = vec![LinkAttribute::IfName(name.clone()), LinkAttribute::Group(DOOMED)];
            gone_is_fine(netlink.request(RouteNetlinkMessage::SetLink(message), 0))
        })
        .collect();
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(DOOMED));
    if let Err(refusal) = gone_is_fine(netlink.request(RouteNetlinkMessage::DelLink(message), 0)) {
        for result in &mut results {
            if result.is_ok() {
                *result = Err(refusal.clone());
            }
        }
    }
    results
}

fn gone_is_fine(result: Result<(), Refusal>) -> Result<(), Refusal> {
    match result {
        Err(refusal) if matches!(refusal.errno, libc::ENODEV | libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// Returns the number by which this namespace knows `other`, if it has one.
pub(super) fn nsid(netlink: &mut Netlink, other: &Namespace) -> Result<Option<i32>, Error> {
    let mut message = NsidMessage::default();
    let fd = other.as_fd().as_raw_fd();
    message.attributes.push(NsidAttribute::Fd(fd.unsigned_abs()));
    let operation = || format!("look up the number of namespace '{}'", other.name());
    match netlink.get(RouteNetlinkMessage::GetNsId(message)) {
        Ok(RouteNetlinkMessage::NewNsId(message)) => {
            Ok(message.attributes.iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                _ => None,
            }))
        }
        Ok(_) => Ok(None),
        Err(refusal) => Err(Error::refused(operation(), &refusal)),
    }
}

/// Takes [`drop_at_ingress`] away again, where it is.
pub(super) fn keep_at_ingress(netlink: &mut Netlink, index: u32) -> Result<(), Refusal> {
    let index = i32::try_from(index).map_err(|_| Refusal { errno: libc::ENODEV, detail: None })?;
    match netlink.request(RouteNetlinkMessage::DelQueueDiscipline(clsact(index)), 0) {
        // EINVAL is what older kernels say where there is none.
        Err(refusal) if matches!(refusal.errno, libc::ENOENT | libc::EINVAL) => Ok(()),
        result => result,
    }
}

pub(super) fn clsact(index: i32) -> TcMessage {
    let mut qdisc = TcMessage::with_index(index);
    qdisc.header.parent = TcHandle::CLSACT;
    qdisc.header.handle = TcHandle { major: 0xffff, minor: 0 };
    qdisc.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    qdisc
}

/// Drops all that arrives at the link at tc ingress. Packet sockets and XDP come before it and still see every
/// frame; the IP stack behind it never does.
///
/// The classifier is one instruction of classic BPF in direct-action mode: kernels without cls_matchall and
/// act_gact take it, and it is loaded by netlink alone.
pub(super) fn drop_at_ingress(netlink: &mut Netlink, index: u32) -> Result<(), Refusal> {
    // linux/pkt_cls.h
    const TCA_BPF_OPS_LEN: u16 = 4;
    const TCA_BPF_OPS: u16 = 5;
    const TC_ACT_SHOT: u32 = 2;
    const BPF_RET_K: u16 = 0x06;
    const ETH_P_ALL: u16 = 3;

    let index = i32::try_from(index).map_err(|_| Refusal { errno: libc::ENODEV, detail: None })?;
    match netlink.request(RouteNetlinkMessage::NewQueueDiscipline(clsact(index)), NLM_F_CREATE | NLM_F_EXCL) {
        // Adopted with its qdisc; the filter is put in place below either way.
        Err(refusal) if refusal.errno == libc::EEXIST => {}
        result => result?,
    }

    let mut instruction = Vec::with_capacity(8);
    instruction.extend(BPF_RET_K.to_ne_bytes());
    instruction.extend([0, 0]); // jump offsets
    instruction.extend(TC_ACT_SHOT.to_ne_bytes());
    let mut filter = TcMessage::with_index(index);
    filter.header.parent = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };
    filter.header.handle = TcHandle { major: 0, minor: 1 };
    // Priority 1, all protocols.
    filter.header.info = (1 << 16) | u32::from(ETH_P_ALL.to_be());
    filter.attributes = vec![
        TcAttribute::Kind("bpf".to_owned()),
        TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::Other(DefaultNla::new(
                TCA_BPF_OPS_LEN,
                1_u16.to_ne_bytes().to_vec(),
            ))),
            TcOption::Bpf(TcFilterBpfOption::Other(DefaultNla::new(TCA_BPF_OPS, instruction))),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]),
    ];
    netlink.request(RouteNetlinkMessage::NewTrafficFilter(filter), NLM_F_CREATE | NLM_F_REPLACE)
}
