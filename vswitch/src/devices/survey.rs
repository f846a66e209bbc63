//! What exists: live namespaces, and devices that are or look like ours.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::jobs::Home;
use super::{Error, Identity, Link, Namespace, link, tap};

/// A device that is ours, or looks so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The path of its namespace; `None` for the switch's own.
    pub netns: Option<String>,
    /// The device.
    pub link: Link,
}

/// See [`super::Devices::live_namespaces`].
pub(super) fn live_namespaces() -> Result<HashSet<Identity>, Error> {
    Ok(find_namespaces()?.into_keys().collect())
}

/// Returns the namespaces that processes are in and mounts name, each with a path that leads there.
fn find_namespaces() -> Result<HashMap<Identity, String>, Error> {
    let mut found = HashMap::new();
    let mut note = |path: String| {
        // What goes while we look is not alive.
        if let Ok(metadata) = fs::metadata(&path) {
            found.entry(Identity { device: metadata.dev(), inode: metadata.ino() }).or_insert(path);
        }
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| Error::kernel("read /proc/self/mountinfo", error))?;
    for line in mounts.lines() {
        // "36 35 0:4 net:[4026532231] /run/netns/web rw - nsfs nsfs rw"; octal escapes do not occur in what
        // runtimes call their namespaces.
        let mut fields = line.split(' ').skip(3);
        if let (Some(root), Some(path)) = (fields.next(), fields.next())
            && root.starts_with("net:[")
        {
            note(path.to_owned());
        }
    }
    let processes = fs::read_dir("/proc").map_err(|error| Error::kernel("read /proc", error))?;
    for entry in processes.flatten() {
        if let Some(pid) = entry.file_name().to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        {
            note(format!("/proc/{pid}/ns/net"));
        }
    }
    Ok(found)
}

/// See [`super::Devices::leftovers`].
pub(super) fn leftovers(home: &mut Home) -> Result<Vec<Leftover>, Error> {
    let mut found: Vec<Leftover> = link::list(&mut home.netlink)?
        .into_iter()
        .filter(|link| !is_furniture(link))
        .map(|link| Leftover { netns: None, link })
        .collect();
    let prefix = tap::mark_prefix(home.switch());
    for (identity, path) in find_namespaces()? {
        if identity == home.namespace().identity() {
            continue;
        }
        // A namespace may go, or refuse us, while we look: it holds nothing then that we could remove.
        let Ok(namespace) = Namespace::resolve(&path) else { continue };
        let Ok(links) = home.visit(&namespace, link::list) else { continue };
        found.extend(
            links
                .into_iter()
                .filter(|link| link.kind == "tun")
                .filter(|link| link.alias.as_deref().is_some_and(|alias| alias.starts_with(&prefix)))
                .map(|link| Leftover { netns: Some(path.clone()), link }),
        );
    }
    Ok(found)
}

/// Says whether every namespace has such a link from the start: the loopback, and the tunnels' own devices of
/// kernels with those drivers built in.
fn is_furniture(link: &Link) -> bool {
    link.name == "lo" || !matches!(link.kind.as_str(), "veth" | "tun")
}

/// See [`super::Devices::remove_leftover`].
pub(super) fn remove(home: &mut Home, leftover: &Leftover) -> Result<(), Error> {
    let operation = || format!("remove leftover '{}'", leftover.link.name);
    match &leftover.netns {
        None => link::delete(&mut home.netlink, leftover.link.index)
            .map_err(|refusal| Error::refused(operation(), &refusal)),
        Some(path) => {
            let Ok(namespace) = Namespace::resolve(path) else { return Ok(()) };
            home.visit(&namespace, |netlink| {
                link::delete(netlink, leftover.link.index)
                    .map_err(|refusal| Error::refused(operation(), &refusal))
            })
        }
    }
}

/// See [`super::Devices::remove_all`].
pub(super) fn remove_all(home: &mut Home) -> Result<(), Error> {
    let mut first_error = None;
    let (near, taps): (Vec<_>, Vec<_>) =
        leftovers(home)?.into_iter().partition(|found| found.netns.is_none());
    let names: Vec<_> = near.into_iter().map(|found| found.link.name).collect();
    for result in link::delete_together(&mut home.netlink, &names) {
        if let Err(refusal) = result {
            first_error.get_or_insert_with(|| Error::refused("remove the switch's devices", &refusal));
        }
    }
    for tap in taps {
        if let Err(error) = remove(home, &tap) {
            first_error.get_or_insert(error);
        }
    }
    let name = home.namespace().name().to_owned();
    if let Err(error) = Namespace::remove(&name) {
        first_error.get_or_insert(error);
    }
    first_error.map_or(Ok(()), Err)
}
