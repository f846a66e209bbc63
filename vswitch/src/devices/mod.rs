//! The switch's devices: veth pairs and taps between its own namespace and those of its ports.
//!
//! Our ends live in a namespace of the switch's own, where the host's IP stack, udev and NetworkManager never
//! see a container's frame. A veth pair is made by one netlink message with its names, both hardware addresses,
//! and the far end born in its final place; a drop at tc ingress of our end keeps frames from the IP input
//! behind the packet socket. Devices outlive the daemon: the next one finds them by name and by the relation of
//! their ends, and repairs only what differs.
//!
//! # Threads
//! The kernel works inside the system call that asks it to, and deleting a device waits for RCU, 16 ms or so.
//! The manager's thread therefore only sends jobs to two threads of this module: `devices` makes and changes,
//! one job after the other (the kernel's own lock allows no more); `devices-remove` deletes, and deletes all
//! that is waiting at once. Jobs are as many as the manager has requests under way; no other bound is needed.
//! `devices` lives in the switch's namespace and visits another one for the length of a job.
//!
//! # Limits
//! Closing a packet socket, an AF_XDP socket or a tap's file waits for RCU as well, 8 to 20 ms: that is for whoever
//! opened them to do in a thread that may wait. A name is free again when `remove` has returned, not before. While a process holds an open file of a tap
//! that it opened inside a port's namespace (as after a restart), that namespace cannot die; see
//! [`Devices::live_namespaces`].

use std::collections::HashSet;
use std::sync::Arc;

use packet::MacAddr;
use ports::ethtool::{self, Offload};
use serde::{Deserialize, Serialize};

mod error;
mod far;
pub mod follow;
pub mod host;
mod jobs;
mod link;
mod names;
mod namespace;
mod netlink;
mod survey;
mod tap;
mod veth;
mod watch;

pub use error::Error;
pub use far::FarEnd;
pub use link::Link;
pub use names::{IFNAME_MAX, check_ifname, near_name};
pub(crate) use namespace::enter_the_hosts_mounts;
pub use namespace::{Identity, Namespace};
pub use survey::Leftover;
pub use watch::{LinkEvent, Watch};

use jobs::Jobs;

/// A veth pair to be made or adopted.
#[derive(Clone, Debug)]
pub struct VethSpec {
    /// The port's name; our end is called [`near_name`] of it.
    pub port: String,
    /// Where the far end goes, as for [`Namespace::resolve`].
    pub netns: String,
    /// Hardware address of our end.
    pub near_mac: MacAddr,
    /// Queues of both ends, at least 1. More are of use to AF_XDP only.
    pub queues: u16,
    /// Drops at tc ingress of our end what packet sockets and XDP have seen: nothing reaches the IP input.
    pub drop_ingress: bool,
    /// The far end.
    pub far: FarEnd,
    /// What the far end was set to before, where that is known.
    pub previous: Option<FarEnd>,
}

/// A tap to be made or adopted.
#[derive(Clone, Debug)]
pub struct TapSpec {
    /// The port's name.
    pub port: String,
    /// Where the tap goes, as for [`Namespace::resolve`].
    pub netns: String,
    /// The tap as it looks from inside.
    pub far: FarEnd,
    /// What it was set to before, where that is known.
    pub previous: Option<FarEnd>,
}

/// What kind a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A veth pair: one end in the switch's namespace.
    Veth,
    /// A tap, which lives in the port's namespace.
    Tap,
}

/// A device of ours, as it was when it was made or adopted. To be remembered, and given back for removal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The port's name.
    pub port: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Name of our end in the switch's namespace. A tap has none there once it has been moved.
    pub near: String,
    /// Number of our end there; 0 for a tap.
    pub near_index: u32,
    /// Where the far end is, as the configuration names it.
    pub netns: String,
    /// Which namespace that was.
    pub namespace: Identity,
    /// Name of the far end there.
    pub ifname: String,
    /// Number of the far end there.
    pub far_index: u32,
    /// It was there before.
    pub adopted: bool,
    /// What differs from the wish and was left alone, one sentence each.
    pub notes: Vec<String>,
}

impl Device {
    /// Opens the namespace of the far end, if it is still the one where that was put.
    fn far_namespace(&self) -> Result<Namespace, Error> {
        let namespace = Namespace::resolve(&self.netns)?;
        if namespace.identity() == self.namespace {
            return Ok(namespace);
        }
        let tried = format!("{} (another namespace has that name now)", self.netns);
        Err(Error::NamespaceNotFound { target: self.netns.clone(), tried })
    }
}

/// The switch's devices. A handle of the manager's: cheap to clone, and dropping it leaves all devices alone.
#[derive(Clone, Debug)]
pub struct Devices {
    jobs: Arc<Jobs>,
}

impl Devices {
    /// Makes or finds the namespace of the switch called `name`, and starts the threads. Blocks for some
    /// milliseconds.
    ///
    /// # Errors
    /// Names the operation that was refused.
    pub fn start(name: &str) -> Result<Self, Error> {
        Ok(Self { jobs: Arc::new(Jobs::start(name)?) })
    }

    /// Returns the switch's own namespace.
    pub fn namespace(&self) -> &Namespace {
        self.jobs.namespace()
    }

    /// Runs `action` inside the switch's namespace, for instance to open a port there. It delays the jobs behind
    /// it.
    ///
    /// # Errors
    /// The devices' thread has ended.
    pub async fn run<T: Send + 'static>(
        &self,
        action: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.jobs.submit(move |_| Ok(action())).await
    }

    /// Makes the veth pair of a port, or adopts the one that is there and repairs what differs.
    ///
    /// # Errors
    /// Names the object and the reason. What was made on the way is removed; what was there before stays.
    pub async fn create_veth(&self, spec: VethSpec) -> Result<Device, Error> {
        self.jobs.submit(move |home| veth::create(home, &spec)).await
    }

    /// Makes the tap of a port, or adopts the one that is there.
    ///
    /// `open` attaches to the tap of the given name in the namespace of its thread, and makes a persistent one
    /// when there is none. A new tap is made in the switch's namespace and moved: so its open files do not keep
    /// the port's namespace alive. One that is there already is attached where it is.
    ///
    /// # Errors
    /// As for [`Devices::create_veth`], or what `open` said.
    pub async fn create_tap<T, E>(
        &self,
        spec: TapSpec,
        open: impl FnOnce(&str) -> Result<T, E> + Send + 'static,
    ) -> Result<(Device, T), E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.jobs.submit(move |home| Ok(tap::create(home, &spec, open))).await?
    }

    /// Removes a device, both ends. One that has gone, alone or with its namespace, is fine. Devices whose
    /// removal is asked for meanwhile go together.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn remove(&self, device: Device) -> Result<(), Error> {
        self.jobs.remove(device).await
    }

    /// Reads the offloads of a device's far end; those it does not know are left out.
    ///
    /// # Errors
    /// The far end has gone.
    pub async fn offloads(&self, device: Device) -> Result<Vec<(Offload, bool)>, Error> {
        self.jobs
            .submit(move |home| {
                let read = |offload| Some((offload, ethtool::is_on(&device.ifname, offload).ok()?));
                home.visit(&device.far_namespace()?, |_| {
                    Ok(Offload::ALL.into_iter().filter_map(read).collect())
                })
            })
            .await
    }

    /// Switches an offload of a device's far end. Switching TX checksums off is what makes a container's
    /// checksums complete before AF_XDP sees them, where the kernel cannot tell which are not.
    ///
    /// # Errors
    /// The far end has gone, or refuses.
    pub async fn set_offload(&self, device: Device, offload: Offload, on: bool) -> Result<(), Error> {
        self.jobs
            .submit(move |home| {
                let word = if on { "on" } else { "off" };
                home.visit(&device.far_namespace()?, |_| {
                    ethtool::set(&device.ifname, offload, on).map_err(|error| {
                        Error::kernel(format!("switch {offload} {word} on '{}'", device.ifname), error)
                    })
                })
            })
            .await
    }

    /// Watches the links in the switch's namespace. To be called in a tokio runtime.
    ///
    /// # Errors
    /// The kernel's refusal of a socket.
    pub async fn watch(&self) -> Result<Watch, Error> {
        let runtime = tokio::runtime::Handle::current();
        self.jobs.submit(move |_| Watch::open(&runtime)).await
    }

    /// Returns the namespaces that a process is in or a mount names. A namespace that is not among them lives
    /// only because a file of ours is open in it: the owner of an adopted tap there has gone, and the tap is to
    /// be closed and removed.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub async fn live_namespaces(&self) -> Result<HashSet<Identity>, Error> {
        self.jobs.submit(|_| survey::live_namespaces()).await
    }

    /// Lists every device that is or looks like ours: all in the switch's namespace, and taps with our mark
    /// in any namespace that can be found.
    ///
    /// # Errors
    /// The kernel's refusal to list.
    pub async fn leftovers(&self) -> Result<Vec<Leftover>, Error> {
        self.jobs.submit(survey::leftovers).await
    }

    /// Removes a device that [`Devices::leftovers`] found.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn remove_leftover(&self, leftover: Leftover) -> Result<(), Error> {
        self.jobs.submit(move |home| survey::remove(home, &leftover)).await
    }

    /// Removes every device of the switch and the name of its namespace.
    ///
    /// # Errors
    /// The first refusal; what could be removed is gone.
    pub async fn remove_all(&self) -> Result<(), Error> {
        self.jobs.submit(survey::remove_all).await
    }
}
