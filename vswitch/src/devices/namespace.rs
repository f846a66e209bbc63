//! Network namespaces: found by name, path or process, entered for one operation, and one of our own.
//!
//! The switch's own namespace is made as `ip netns add` makes one (a bind mount under /run/netns), so that
//! `ip netns exec vswitch-NAME` shows what is inside. In it forwarding is off, IPv6 is off for every new
//! device, and no ARP request is answered: nothing in it may ever act on a container's frame.
//!
//! An open [`Namespace`] keeps the kernel's namespace alive, devices included. Whoever holds one for longer than
//! an operation keeps dead containers' devices around; what is to be remembered is the [`Identity`].

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};

use super::Error;

/// Where `ip netns` keeps its namespaces.
const NETNS_DIR: &str = "/run/netns";

/// Which namespace, whatever path leads to it. An inode number may come back after the namespace died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Device number of the namespace file system.
    pub device: u64,
    /// Inode number there: the number in `net:[4026531840]`.
    pub inode: u64,
}

/// An open network namespace. See the module header.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    name: String,
    identity: Identity,
}

impl Namespace {
    /// Opens the namespace that `target` names: an absolute path, `pid:N`, a name under /run/netns, or else a
    /// process number.
    ///
    /// # Errors
    /// Names what was tried, each with the reason.
    pub fn resolve(target: &str) -> Result<Self, Error> {
        let mut paths = Vec::with_capacity(2);
        if target.starts_with('/') {
            paths.push(PathBuf::from(target));
        } else if let Some(pid) = target.strip_prefix("pid:") {
            paths.extend(pid.parse::<u32>().ok().map(process_path));
        } else if !target.is_empty() && !target.contains('/') && target != "." && target != ".." {
            paths.push(Path::new(NETNS_DIR).join(target));
            paths.extend(target.parse::<u32>().ok().map(process_path));
        }
        let mut tried = Vec::with_capacity(2);
        for path in paths {
            match File::open(&path) {
                Ok(file) => return Self::from_file(file, target, &path),
                Err(error) => tried.push(format!("{} ({error})", path.display())),
            }
        }
        if tried.is_empty() {
            tried.push("nothing: a name, an absolute path, or pid:N is allowed".to_owned());
        }
        Err(Error::NamespaceNotFound { target: target.to_owned(), tried: tried.join(", ") })
    }

    /// Opens the namespace that the calling thread is in.
    ///
    /// # Errors
    /// /proc is not there.
    pub fn current() -> Result<Self, Error> {
        let path = Path::new("/proc/thread-self/ns/net");
        let file = File::open(path).map_err(|error| Error::kernel("open /proc/thread-self/ns/net", error))?;
        Self::from_file(file, "current", path)
    }

    /// Opens the switch's own namespace `vswitch-NAME`, and makes it when there is none.
    ///
    /// # Errors
    /// Names the operation that was refused; a namespace that was half made is removed.
    pub fn switch(name: &str) -> Result<Self, Error> {
        let name = format!("vswitch-{name}");
        let namespace = Self::open_or_create(&name)?;
        namespace.run(|| {
            for (key, value) in [
                ("ipv4/ip_forward", "0"),
                ("ipv4/conf/all/arp_ignore", "8"),
                ("ipv4/conf/default/arp_ignore", "8"),
                ("ipv6/conf/all/disable_ipv6", "1"),
                ("ipv6/conf/default/disable_ipv6", "1"),
            ] {
                write_sysctl(key, value)?;
            }
            Ok(())
        })??;
        Ok(namespace)
    }

    /// Opens the host's /run/netns/NAME, and makes a new namespace there when there is none.
    ///
    /// # Errors
    /// Names the operation that was refused.
    pub fn open_or_create(name: &str) -> Result<Self, Error> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(Error::kernel(format!("create network namespace '{name}'"), Errno::EINVAL));
        }
        among_the_hosts_mounts(|| Self::open_or_create_here(name))?
    }

    fn open_or_create_here(name: &str) -> Result<Self, Error> {
        let _lock = prepare_directory()?;
        let path = Path::new(NETNS_DIR).join(name);
        match Self::resolve(name) {
            Ok(namespace) => return Ok(namespace),
            // A file that a killed creator (or a reboot of the mount namespace) left without its mount.
            Err(Error::NotANamespace { .. }) => {
                fs::remove_file(&path)
                    .map_err(|error| Error::kernel(format!("remove stale {}", path.display()), error))?;
            }
            Err(_) => {}
        }
        let operation = || format!("create network namespace {}", path.display());
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)
            .map_err(|error| Error::kernel(operation(), error))?;
        // A thread of its own: this one stays where it is.
        let made = in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        let made = made.and_then(|result| result.map_err(|errno| Error::kernel(operation(), errno)));
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Self::resolve(name)
    }

    /// Takes the name of this namespace away from the host's /run/netns; it dies with its last user. A namespace that has
    /// gone already is fine.
    ///
    /// # Errors
    /// Names the operation that was refused.
    pub fn remove(name: &str) -> Result<(), Error> {
        among_the_hosts_mounts(|| Self::remove_here(name))?
    }

    fn remove_here(name: &str) -> Result<(), Error> {
        let path = Path::new(NETNS_DIR).join(name);
        match umount2(&path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(Error::kernel(format!("unmount {}", path.display()), errno)),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::kernel(format!("remove {}", path.display()), error))
            }
            _ => Ok(()),
        }
    }

    /// Returns which namespace this is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Returns the name that it was asked for by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `action` inside the namespace, in a thread that ends with it, and waits.
    ///
    /// # Errors
    /// The namespace cannot be entered; `action` has not run.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> Result<T, Error> {
        in_thread(|| {
            self.join()?;
            Ok(action())
        })?
    }

    /// Moves the calling thread into the namespace, for good.
    pub(super) fn join(&self) -> Result<(), Error> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::kernel(format!("enter network namespace '{}'", self.name), errno))
    }

    fn from_file(file: File, target: &str, path: &Path) -> Result<Self, Error> {
        let operation = || format!("look at {}", path.display());
        let status = fstatfs(&file).map_err(|errno| Error::kernel(operation(), errno))?;
        if status.filesystem_type() != NSFS_MAGIC {
            return Err(Error::NotANamespace { path: path.display().to_string() });
        }
        let metadata = file.metadata().map_err(|error| Error::kernel(operation(), error))?;
        let identity = Identity { device: metadata.dev(), inode: metadata.ino() };
        Ok(Self { file, name: target.to_owned(), identity })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Writes a value under /proc/sys/net of the calling thread's namespace.
pub(super) fn write_sysctl(key: &str, value: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/net/{key}");
    match fs::write(&path, value) {
        // A kernel without IPv6 has nothing to switch off.
        Err(error) if error.kind() == io::ErrorKind::NotFound && key.starts_with("ipv6/") => Ok(()),
        Err(error) => Err(Error::kernel(format!("write {value} to {path}"), error)),
        Ok(()) => Ok(()),
    }
}

fn process_path(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// Runs `action` in a thread of its own and waits. Its namespaces end with the thread.
fn in_thread<T: Send>(action: impl FnOnce() -> T + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, action)
            .map_err(|error| Error::kernel("start a thread", error))?;
        thread.join().map_err(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `action` in a thread that sees the host's mounts, and waits.
///
/// A daemon with mounts of its own (`ip netns exec` gives it some, and so may a service manager) would take the name
/// of the switch's namespace, and with it every device, into its grave. The host's mounts are those of process 1, or of
/// the oldest ancestor within reach; without one the daemon's own have to do.
fn among_the_hosts_mounts<T: Send>(action: impl FnOnce() -> T + Send) -> Result<T, Error> {
    in_thread(|| {
        enter_the_hosts_mounts();
        action()
    })
}

/// Has the calling thread, for good, see the host's mounts as [`among_the_hosts_mounts`] has it.
pub(crate) fn enter_the_hosts_mounts() {
    if let Some(mounts) = oldest_ancestors_mounts() {
        // Threads share their root and working directory, and one that does cannot change its mounts.
        let _ = unshare(CloneFlags::CLONE_FS).and_then(|()| setns(mounts, CloneFlags::CLONE_NEWNS));
    }
}

/// Returns the mount namespace of the oldest ancestor that lets us have it, unless the calling thread is in it.
fn oldest_ancestors_mounts() -> Option<File> {
    let identity = |file: &File| file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let parent = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
        (parent != 0).then_some(parent)
    };
    let ancestors = std::iter::successors(parent(std::process::id()), |pid| parent(*pid));
    let mounts = ancestors.filter_map(|pid| File::open(format!("/proc/{pid}/ns/mnt")).ok()).last()?;
    let own = File::open("/proc/thread-self/ns/mnt").ok()?;
    (identity(&mounts)? != identity(&own)?).then_some(mounts)
}

/// Makes /run/netns a shared mount, as `ip netns add` does, and locks it while the result lives: two creators
/// at once would mount it twice over.
fn prepare_directory() -> Result<Flock<File>, Error> {
    let operation = || format!("prepare {NETNS_DIR}");
    fs::create_dir_all(NETNS_DIR).map_err(|error| Error::kernel(operation(), error))?;
    let directory = File::open(NETNS_DIR).map_err(|error| Error::kernel(operation(), error))?;
    let lock = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, errno)| Error::kernel(operation(), errno))?;
    let share =
        || mount(None::<&str>, NETNS_DIR, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Err(Errno::EINVAL) => {
            mount(Some(NETNS_DIR), NETNS_DIR, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
                .and_then(|()| share())
        }
        done => done,
    }
    .map_err(|errno| Error::kernel(operation(), errno))?;
    Ok(lock)
}
