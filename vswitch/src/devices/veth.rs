//! Veth pairs: made in one message, or adopted.

use netlink_packet_route::link::{LinkAttribute, LinkFlags};

use super::jobs::Home;
use super::link::{self, Link, Pair};
use super::netlink::Netlink;
use super::{Device, DeviceKind, Error, Namespace, VethSpec, check_ifname, far, near_name};

/// Makes or adopts the pair that `spec` describes.
pub(super) fn create(home: &mut Home, spec: &VethSpec) -> Result<Device, Error> {
    check_ifname(&spec.far.ifname)?;
    let netns = Namespace::resolve(&spec.netns)?;
    let near = near_name(&spec.port);
    if let Some(link) = link::find(&mut home.netlink, &near)? {
        if is_pair(home, &link, spec, &netns)? {
            return adopt(home, &link, spec, &netns);
        }
        // Whatever has our name in our namespace is of our making: for another place or kind than is wanted now.
        link::delete(&mut home.netlink, link.index)
            .map_err(|refusal| Error::refused(format!("replace device '{near}'"), &refusal))?;
    }

    let pair = Pair {
        near: &near,
        near_mac: spec.near_mac,
        far: &spec.far.ifname,
        far_mac: spec.far.mac,
        far_netns: &netns,
        mtu: spec.far.mtu,
        queues: spec.queues.max(1),
    };
    link::create_pair(&mut home.netlink, &pair).map_err(|refusal| {
        if refusal.errno == libc::EEXIST {
            Error::IfnameTaken { ifname: spec.far.ifname.clone(), netns: spec.netns.clone() }
        } else {
            let ifname = &spec.far.ifname;
            Error::refused(format!("create veth pair '{near}' and '{ifname}' in '{}'", spec.netns), &refusal)
        }
    })?;
    let made = link::find(&mut home.netlink, &near)?
        .ok_or_else(|| Error::kernel(format!("find '{near}' again"), nix::errno::Errno::ENODEV))?;
    finish(home, &made, spec, &netns, false).inspect_err(|_| {
        // The first error is the one to tell; a pair whose namespace died meanwhile has gone by itself.
        let _ = link::delete(&mut home.netlink, made.index);
    })
}

/// Says whether `link` is our end of a pair as `spec` wants it, with the other end in `netns`.
fn is_pair(home: &mut Home, link: &Link, spec: &VethSpec, netns: &Namespace) -> Result<bool, Error> {
    if link.kind != "veth" || link.tx_queues != u32::from(spec.queues.max(1)) {
        return Ok(false);
    }
    let nsid = if netns.identity() == home.namespace().identity() {
        None
    } else {
        match link::nsid(&mut home.netlink, netns)? {
            // A namespace that has no number here has no peer of ours.
            None => return Ok(false),
            some => some,
        }
    };
    Ok(link.peer.is_some() && link.peer_nsid == nsid)
}

fn adopt(home: &mut Home, near: &Link, spec: &VethSpec, netns: &Namespace) -> Result<Device, Error> {
    let mut attributes = Vec::new();
    if near.mac != spec.near_mac {
        attributes.push(LinkAttribute::Address(spec.near_mac.0.to_vec()));
    }
    if near.mtu != spec.far.mtu {
        attributes.push(LinkAttribute::Mtu(spec.far.mtu));
    }
    let flags = LinkFlags::Up | LinkFlags::Noarp;
    link::set(&mut home.netlink, near.index, flags, flags, attributes)
        .map_err(|refusal| Error::refused(format!("repair '{}'", near.name), &refusal))?;
    if !spec.drop_ingress {
        link::keep_at_ingress(&mut home.netlink, near.index)
            .map_err(|refusal| Error::refused(format!("repair '{}'", near.name), &refusal))?;
    }
    finish(home, near, spec, netns, true)
}

/// What both new and adopted pairs need: the drop on our side, and the far end as it is wanted.
fn finish(
    home: &mut Home,
    near: &Link,
    spec: &VethSpec,
    netns: &Namespace,
    adopted: bool,
) -> Result<Device, Error> {
    if spec.drop_ingress {
        link::drop_at_ingress(&mut home.netlink, near.index).map_err(|refusal| {
            Error::refused(format!("put a drop at tc ingress of '{}'", near.name), &refusal)
        })?;
    }
    let far = home.visit(netns, |netlink: &mut Netlink| {
        let far = match near.peer {
            Some(index) => link::find_index(netlink, index)?,
            None => link::find(netlink, &spec.far.ifname)?,
        };
        let far = far.ok_or_else(|| {
            Error::kernel(format!("find the far end of '{}'", near.name), nix::errno::Errno::ENODEV)
        })?;
        far::configure(netlink, &far, &spec.far, spec.previous.as_ref())?;
        Ok::<_, Error>(far)
    })?;
    let mut notes = Vec::new();
    if far.name != spec.far.ifname {
        notes.push(format!(
            "the interface is called '{}' inside, '{}' was asked for",
            far.name, spec.far.ifname
        ));
    }
    Ok(Device {
        port: spec.port.clone(),
        kind: DeviceKind::Veth,
        near: near.name.clone(),
        near_index: near.index,
        netns: spec.netns.clone(),
        namespace: netns.identity(),
        ifname: far.name,
        far_index: far.index,
        adopted,
        notes,
    })
}
