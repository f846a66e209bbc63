//! Taps: made at home and moved, so that the switch's open files do not hold the port's namespace.
//!
//! The kernel ties an open /dev/net/tun to the namespace it was opened in, and that namespace lives as long as
//! the file. A tap that is made at home and then moved goes when its new namespace goes, and its files say so.
//! A tap that is found after a restart can only be attached from inside; then the namespace is held until the
//! manager sees that nobody else is in it.
//!
//! A tap of ours carries a mark in its alias, `vswitch:SWITCH:PORT`: after a restart it tells our taps from
//! those of others that have the same name.

use netlink_packet_route::link::{LinkAttribute, LinkFlags};

use super::jobs::Home;
use super::link::{self, Link};
use super::{Device, DeviceKind, Error, Namespace, TapSpec, check_ifname, far, near_name};

/// Begins the mark of every tap of the switch called `switch`.
pub(super) fn mark_prefix(switch: &str) -> String {
    format!("vswitch:{switch}:")
}

fn is_ours(link: &Link, switch: &str, port: &str) -> bool {
    link.kind == "tun"
        && link.alias.as_deref().and_then(|alias| alias.strip_prefix(&mark_prefix(switch))) == Some(port)
}

/// Makes or adopts the tap that `spec` describes; `open` attaches to it.
pub(super) fn create<T, E: From<Error>>(
    home: &mut Home,
    spec: &TapSpec,
    open: impl FnOnce(&str) -> Result<T, E>,
) -> Result<(Device, T), E> {
    let ifname = &spec.far.ifname;
    check_ifname(ifname)?;
    let netns = Namespace::resolve(&spec.netns)?;
    let taken = || Error::IfnameTaken { ifname: ifname.clone(), netns: spec.netns.clone() };
    let there = home.visit(&netns, |netlink| link::find(netlink, ifname))?;
    if let Some(link) = there {
        if !is_ours(&link, home.switch(), &spec.port) {
            return Err(taken().into());
        }
        return home.visit(&netns, |netlink| {
            let opened = open(ifname)?;
            far::configure(netlink, &link, &spec.far, spec.previous.as_ref())?;
            Ok((device(spec, &netns, link.index, true), opened))
        });
    }

    let near = near_name(&spec.port);
    if let Some(link) = link::find(&mut home.netlink, &near)? {
        // Left by a creation that was interrupted, or by a port of another kind.
        link::delete(&mut home.netlink, link.index)
            .map_err(|refusal| Error::refused(format!("replace device '{near}'"), &refusal))?;
    }
    let opened = open(&near)?;
    match place(home, spec, &netns, &near) {
        Ok(index) => Ok((device(spec, &netns, index, false), opened)),
        Err(error) => {
            drop(opened);
            // It is persistent: closing it does not remove it.
            if let Ok(Some(link)) = link::find(&mut home.netlink, &near) {
                let _ = link::delete(&mut home.netlink, link.index);
            }
            Err(error.into())
        }
    }
}

/// Marks the new tap called `near`, moves it to its place and sets it up there. Returns its number there.
fn place(home: &mut Home, spec: &TapSpec, netns: &Namespace, near: &str) -> Result<u32, Error> {
    use std::os::fd::{AsFd, AsRawFd};

    let ifname = &spec.far.ifname;
    let made = link::find(&mut home.netlink, near)?
        .ok_or_else(|| Error::kernel(format!("find tap '{near}' again"), nix::errno::Errno::ENODEV))?;
    let attributes = vec![
        LinkAttribute::IfAlias(format!("{}{}", mark_prefix(home.switch()), spec.port)),
        LinkAttribute::Address(spec.far.mac.0.to_vec()),
    ];
    link::set(&mut home.netlink, made.index, LinkFlags::empty(), LinkFlags::empty(), attributes)
        .map_err(|refusal| Error::refused(format!("mark tap '{near}'"), &refusal))?;
    let attributes =
        vec![LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd()), LinkAttribute::IfName(ifname.clone())];
    link::set(&mut home.netlink, made.index, LinkFlags::empty(), LinkFlags::empty(), attributes).map_err(
        |refusal| {
            if refusal.errno == libc::EEXIST {
                Error::IfnameTaken { ifname: ifname.clone(), netns: spec.netns.clone() }
            } else {
                Error::refused(format!("move tap '{near}' to '{}' as '{ifname}'", spec.netns), &refusal)
            }
        },
    )?;
    let switch = home.switch();
    home.visit(netns, |netlink| {
        let moved = link::find(netlink, ifname)?
            .filter(|link| is_ours(link, switch, &spec.port))
            .ok_or_else(|| {
                Error::kernel(format!("find tap '{ifname}' in '{}'", spec.netns), nix::errno::Errno::ENODEV)
            })?;
        far::configure(netlink, &moved, &spec.far, None).inspect_err(|_| {
            let _ = link::delete(netlink, moved.index);
        })?;
        Ok(moved.index)
    })
}

fn device(spec: &TapSpec, netns: &Namespace, index: u32, adopted: bool) -> Device {
    Device {
        port: spec.port.clone(),
        kind: DeviceKind::Tap,
        near: near_name(&spec.port),
        near_index: 0,
        netns: spec.netns.clone(),
        namespace: netns.identity(),
        ifname: spec.far.ifname.clone(),
        far_index: index,
        adopted,
        notes: Vec::new(),
    }
}

/// Removes the tap from where it was put. It has gone when its namespace has, or another one has its name now.
pub(super) fn remove(home: &Home, device: &Device) -> Result<(), Error> {
    let netns = match device.far_namespace() {
        Ok(netns) => netns,
        Err(Error::NamespaceNotFound { .. } | Error::NotANamespace { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    home.visit(&netns, |netlink| match link::find_index(netlink, device.far_index)? {
        Some(link) if is_ours(&link, home.switch(), &device.port) => link::delete(netlink, link.index)
            .map_err(|refusal| {
                Error::refused(format!("remove tap '{}' of port '{}'", link.name, device.port), &refusal)
            }),
        _ => Ok(()),
    })
}
