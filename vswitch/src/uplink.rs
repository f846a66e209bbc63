//! The way to the outside and to the host itself: what the switch has in the host's own namespace.
//!
//! * A tap `vsw-up-DEVICE` for each device that is shared with the host. Programs at the device and at the tap steer the
//!   switch's packets between them (`ports::steer`, which has the theory). They and their tables are pinned in a bpffs
//!   under [`PINS`], which is mounted when there is none, and go on while no daemon runs.
//! * A tap `vsw-host`, by which the host reaches the networks: routes to the subnets lead there, and the switch answers
//!   for everything behind it. Two addresses on it are the relay's ([`relay_addresses`]).
//! * The ports that are the switch's on the host's addresses, kept from the host's own sockets (`reserve.rs`).
//! * What the host's kernel knows of links, addresses, routes and neighbours: `devices::follow`.
//!
//! Nothing of the host's is changed for it: no forwarding, no filter rule, no sysctl but those of our own taps and
//! `ip_local_reserved_ports`. [`Uplink::remove_all`] takes everything back.
//!
//! # Threads
//! One thread, `uplink`, does all this, in the namespace that [`Uplink::start`] was called in, and among the host's
//! mounts. An [`Uplink`] is the manager's handle to it; jobs are done in their order.

use packet::hash::fnv1a;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use ports::steer::{Pair, Reason, Rules, Steering};
use tokio::sync::{oneshot, watch};

use crate::devices::follow::{HostState, follow};
use crate::devices::host::{Host, HostRoute, HostTap};
use crate::devices::{Error, Link, enter_the_hosts_mounts, near_name};

mod groups;
mod reserve;

use groups::Groups;

/// Where the bpffs is; the pins of a switch are in a directory of its name there.
pub const PINS: &str = "/run/vswitch/bpf";
/// The tap that joins the host to the networks.
pub const HOST_TAP: &str = "vsw-host";

/// Returns the name of the tap that belongs to `device`.
pub fn tap_name(device: &str) -> String {
    let name = format!("vsw-up-{device}");
    // A name of the same kind that fits: `p~` and letters, of which eight are enough to tell a host's devices apart.
    if name.len() <= 15 { name } else { format!("vsw-up-{}", &near_name(&name)[2..10]) }
}

/// Returns the addresses by which the relay reaches containers. They are a function of the switch's name, so a restarted
/// relay goes on with the same.
pub fn relay_addresses(switch: &str) -> (Ipv4Addr, Ipv6Addr) {
    let hash = fnv1a(switch.bytes());
    let [a, b, c, d, e, f, g, _] = hash.to_be_bytes();
    // RFC 3927, 2.1: the first and the last 256 are reserved. From 169 on are the addresses of clouds' services.
    let v4 = Ipv4Addr::new(169, 254, 1 + f % 168, 1 + g % 254);
    // RFC 4193: 40 bits by chance make it one's own.
    let v6 = Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    (v4, v6)
}

/// Returns the group that neighbour solicitations for `address` are sent to (RFC 4291, 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// Returns the directory of a switch's pins.
pub fn pins(switch: &str) -> PathBuf {
    // A bpffs keeps names with dots to itself.
    Path::new(PINS).join(switch.replace('.', "%2e"))
}

/// How packets come from a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By its tap; the device is shared with the host.
    Tap,
    /// By AF_XDP; the device is shared with the host, and the tap only takes what is handed back.
    Xdp,
    /// By AF_XDP; the device is the switch's alone.
    Dedicated,
}

/// A device that is shared with the host, and our tap for it.
#[derive(Clone, Debug)]
pub struct Steered {
    /// The device, as it was then.
    pub device: Link,
    /// The tap.
    pub tap: Link,
}

type Job = Box<dyn FnOnce(&mut Site) + Send>;

/// A handle of the manager's. Dropping it leaves everything as it is, and steering goes on.
#[derive(Clone, Debug)]
pub struct Uplink {
    jobs: Sender<Job>,
}

impl Uplink {
    /// Starts the thread in the namespace of the calling one, and adopts what an earlier daemon of the same `switch` has
    /// left: its steering goes on as it was, until [`Uplink::set_rules`]. Blocks for some milliseconds.
    ///
    /// # Errors
    /// Names what was refused.
    pub fn start(switch: &str) -> Result<Self, Error> {
        let (jobs, queue) = channel::<Job>();
        let (ready, is_ready) = channel();
        let switch = switch.to_owned();
        thread::Builder::new()
            .name("uplink".to_owned())
            .spawn(move || match Site::enter(switch) {
                Ok(mut site) => {
                    let _ = ready.send(Ok(()));
                    for job in queue {
                        job(&mut site);
                    }
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            })
            .map_err(|error| Error::kernel("start thread 'uplink'", error))?;
        is_ready.recv().map_err(|_| ended())??;
        Ok(Self { jobs })
    }

    async fn submit<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Site) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |site| {
            let _ = reply.send(job(site));
        });
        self.jobs.send(job).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Runs `action` in the host's namespace: to open the port of a tap there.
    ///
    /// # Errors
    /// The thread has ended.
    pub async fn run<T: Send + 'static>(
        &self,
        action: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.submit(move |_| Ok(action())).await
    }

    /// Has packets of `device` come by `way`, and takes away what another way needed. To be called again when the device's
    /// hardware address or MTU changes. For [`Way::Tap`] and [`Way::Xdp`] the caller has set up the tap
    /// ([`Uplink::set_up_tap`]), for [`Way::Xdp`] and [`Way::Dedicated`] it has opened the AF_XDP port
    /// ([`Uplink::run`], [`ports::afxdp::Steer`], [`pins`]): so that nothing of ours meets the host's stack in between.
    ///
    /// # Errors
    /// There is no such device, or no tap, or the kernel refuses.
    pub async fn share(&self, device: &str, way: Way) -> Result<(), Error> {
        let device = device.to_owned();
        self.submit(move |site| site.share(&device, way)).await
    }

    /// Sets up the tap of `device`, which the caller has opened (persistent, [`tap_name`]).
    ///
    /// # Errors
    /// There is no such device, or no tap, or the kernel refuses.
    pub async fn set_up_tap(&self, device: &str) -> Result<Steered, Error> {
        let device = device.to_owned();
        self.submit(move |site| site.set_up_tap(&device)).await
    }

    /// Brings `device` up, where that is not done by the host.
    ///
    /// # Errors
    /// There is no such device, or the kernel refuses.
    pub async fn bring_up(&self, device: &str) -> Result<(), Error> {
        let device = device.to_owned();
        self.submit(move |site| site.host.bring_up(&device)).await
    }

    /// Gives devices back to the host that an earlier daemon had and that are not among `keep`, numbers of links. Returns
    /// their names, or numbers where they have none any more.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn release_others(&self, keep: Vec<u32>) -> Result<Vec<String>, Error> {
        self.submit(move |site| site.release_others(&keep)).await
    }

    /// Gives `device` back to the host: removes the programs and deletes the tap.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn release(&self, device: &str) -> Result<(), Error> {
        let device = device.to_owned();
        self.submit(move |site| site.release(&device)).await
    }

    /// Says what is the switch's. Only differences are written. Returns how many there were.
    ///
    /// # Errors
    /// A table is full.
    pub async fn set_rules(&self, rules: Rules) -> Result<usize, Error> {
        self.submit(move |site| {
            site.steering.set_rules(&rules).map_err(|error| Error::kernel("write the steering rules", error))
        })
        .await
    }

    /// Returns what has become of the packets at the shared devices.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn counters(&self) -> Result<Vec<(Reason, u64)>, Error> {
        let counters = |site: &mut Site| site.steering.counters();
        self.submit(move |site| counters(site).map_err(|e| Error::kernel("read the steering counters", e)))
            .await
    }

    /// Has `device` receive what is sent to the solicited-node groups of `addresses`, and no others. They are left when
    /// the daemon ends, for nobody could answer then.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn set_groups(&self, device: u32, addresses: Vec<Ipv6Addr>) -> Result<(), Error> {
        self.submit(move |site| {
            site.groups
                .entry(device)
                .or_default()
                .set(device, addresses.into_iter().map(solicited_node).collect())
                .map_err(|error| Error::kernel(format!("join groups on interface number {device}"), error))
        })
        .await
    }

    /// Sets up the tap [`HOST_TAP`], which the caller has opened (persistent), with the relay's addresses.
    ///
    /// # Errors
    /// There is no such tap, or the kernel refuses.
    pub async fn set_up_host_tap(&self, mtu: Option<u32>) -> Result<Link, Error> {
        self.submit(move |site| {
            let mark = site.mark(HOST_TAP);
            let link = site.host.set_up(&HostTap { name: HOST_TAP, mark: &mark, mtu, stack: true })?;
            let (v4, v6) = relay_addresses(&site.switch);
            site.host.add_quiet_address(link.index, v4.into())?;
            match site.host.add_quiet_address(link.index, v6.into()) {
                // A host without IPv6.
                Err(Error::Kernel {
                    errno: libc::EACCES | libc::EOPNOTSUPP | libc::EAFNOSUPPORT, ..
                }) => {}
                result => result?,
            }
            Ok(link)
        })
        .await
    }

    /// Makes the host's routes by [`HOST_TAP`] exactly these: the subnets of the networks that it reaches, and the
    /// floating addresses.
    ///
    /// # Errors
    /// The first refusal, `EEXIST` where the host has a route to the same place; the others are as wanted.
    pub async fn set_host_routes(&self, routes: Vec<HostRoute>) -> Result<(), Error> {
        self.submit(move |site| {
            let index = site.host.link(HOST_TAP)?.index;
            site.host.set_routes(index, &routes)
        })
        .await
    }

    /// Deletes [`HOST_TAP`], with its routes. One that has gone is fine.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn remove_host_tap(&self) -> Result<(), Error> {
        self.submit(|site| {
            let mark = site.mark(HOST_TAP);
            site.delete_taps(&mark)
        })
        .await
    }

    /// Keeps the host's sockets from being given one of `ports` by chance: adds them to `ip_local_reserved_ports`, and
    /// takes back what was added before and is not among them.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn reserve(&self, ports: Vec<RangeInclusive<u16>>) -> Result<(), Error> {
        self.submit(move |site| reserve::set(&site.notes(), &ports)).await
    }

    /// Follows the host's links, addresses, routes and neighbours.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn follow(&self) -> Result<watch::Receiver<HostState>, Error> {
        self.submit(|_| follow()).await
    }

    /// Makes the kernel find out the hardware address of a next hop and keep knowing it. It comes by
    /// [`Uplink::follow`]. Returns at once.
    pub fn resolve(&self, device: u32, address: IpAddr) {
        let job: Job = Box::new(move |site| {
            let _ = site.host.resolve(device, address);
        });
        let _ = self.jobs.send(job);
    }

    /// Removes everything that the switch has ever made here: programs, tables, taps, routes, reservations.
    ///
    /// # Errors
    /// The first refusal; what could be removed is gone.
    pub async fn remove_all(&self) -> Result<(), Error> {
        self.submit(Site::remove_all).await
    }
}

fn ended() -> Error {
    Error::Kernel {
        operation: "change the uplink".to_owned(),
        reason: "its thread has ended".to_owned(),
        errno: 0,
    }
}

/// What the thread has.
struct Site {
    switch: String,
    pins: PathBuf,
    host: Host,
    steering: Steering,
    groups: BTreeMap<u32, Groups>,
}

impl Site {
    fn enter(switch: String) -> Result<Self, Error> {
        enter_the_hosts_mounts();
        mount_bpffs()?;
        let pins = pins(&switch);
        let steering = open(&pins)?;
        Ok(Self { switch, pins, host: Host::open()?, steering, groups: BTreeMap::new() })
    }

    /// Returns the mark of the tap called `name`.
    fn mark(&self, name: &str) -> String {
        format!("vswitch-host:{}:{name}", self.switch)
    }

    /// Returns where it is written down what was changed of the host's.
    fn notes(&self) -> PathBuf {
        Path::new("/run/vswitch").join(format!("{}.reserved", self.switch))
    }

    fn set_up_tap(&mut self, name: &str) -> Result<Steered, Error> {
        let device = self.host.link(name)?;
        let tap = tap_name(name);
        let mark = self.mark(name);
        let tap = HostTap { name: &tap, mark: &mark, mtu: Some(device.mtu), stack: false };
        let tap = self.host.set_up(&tap)?;
        Ok(Steered { device, tap })
    }

    /// Returns the tap of the device called `name`, if there is one.
    fn tap(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let mark = self.mark(name);
        Ok(self.host.taps(&mark)?.into_iter().find(|tap| tap.alias.as_deref() == Some(&mark)))
    }

    fn share(&mut self, name: &str, way: Way) -> Result<(), Error> {
        let refused = |error| Error::kernel(format!("attach the steering programs to '{name}'"), error);
        if way == Way::Dedicated {
            let (device, tap) = (self.host.link(name)?, self.tap(name)?);
            let index = tap.as_ref().map(|tap| tap.index);
            self.steering.detach_tap(device.index, index, &mut self.host).map_err(refused)?;
            return tap.map_or(Ok(()), |tap| self.host.delete(tap.index));
        }
        let Steered { device, tap } = self.set_up_tap(name)?;
        let pair = Pair { device: device.index, mac: device.mac, tap: tap.index };
        match way {
            Way::Tap => self.steering.attach(pair, &mut self.host),
            _ => self.steering.attach_out(pair, &mut self.host),
        }
        .map_err(refused)
    }

    fn release(&mut self, name: &str) -> Result<(), Error> {
        let tap = self.tap(name)?;
        if let Ok(device) = self.host.link(name) {
            let index = tap.as_ref().map(|tap| tap.index);
            self.steering
                .detach(device.index, index, &mut self.host)
                .map_err(|error| Error::kernel(format!("detach the steering programs of '{name}'"), error))?;
            self.groups.remove(&device.index);
        }
        tap.map_or(Ok(()), |tap| self.host.delete(tap.index))
    }

    fn release_others(&mut self, keep: &[u32]) -> Result<Vec<String>, Error> {
        let prefix = self.mark("");
        let mut released = Vec::new();
        for tap in self.host.taps(&prefix)? {
            let name = tap.alias.as_deref().and_then(|alias| alias.strip_prefix(&prefix)).unwrap_or_default();
            let kept = self.host.link(name).is_ok_and(|device| keep.contains(&device.index));
            if name != HOST_TAP && !kept {
                self.release(name)?;
                released.push(name.to_owned());
            }
        }
        let failed = |error| Error::kernel("look for programs that an earlier run left", error);
        for index in self.steering.xdp_devices().map_err(failed)? {
            if !keep.contains(&index) {
                self.steering.detach(index, None, &mut self.host).map_err(failed)?;
                released.push(format!("number {index}"));
            }
        }
        Ok(released)
    }

    fn delete_taps(&mut self, mark: &str) -> Result<(), Error> {
        for tap in self.host.taps(mark)? {
            self.host.delete(tap.index)?;
        }
        Ok(())
    }

    fn remove_all(&mut self) -> Result<(), Error> {
        let prefix = self.mark("");
        let mut results = Vec::new();
        for tap in self.host.taps(&prefix)? {
            let device =
                tap.alias.as_deref().and_then(|alias| alias.strip_prefix(&prefix)).unwrap_or_default();
            if device != HOST_TAP {
                results.push(self.release(device));
            }
        }
        results.push(self.delete_taps(&prefix));
        results.push(reserve::set(&self.notes(), &[]));
        self.groups.clear();
        let removed = Steering::remove(&self.pins);
        results
            .push(removed.map_err(|error| Error::kernel(format!("remove {}", self.pins.display()), error)));
        results.into_iter().collect()
    }
}

fn open(pins: &Path) -> Result<Steering, Error> {
    Steering::open(pins)
        .map_err(|error| Error::kernel(format!("open the steering tables in {}", pins.display()), error))
}

/// Mounts a bpffs at [`PINS`], where there is none.
fn mount_bpffs() -> Result<(), Error> {
    let operation = || format!("mount a bpffs at {PINS}");
    std::fs::create_dir_all(PINS).map_err(|error| Error::kernel(operation(), error))?;
    // Two daemons that start at once would mount it twice, one over the other's pins.
    let directory = std::fs::File::open(PINS.trim_end_matches("/bpf"));
    let directory = directory.map_err(|error| Error::kernel(operation(), error))?;
    let _lock = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, errno)| Error::kernel(operation(), errno))?;
    let status = statfs(PINS).map_err(|errno| Error::kernel(operation(), errno))?;
    if status.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), PINS, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| Error::kernel(operation(), errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        assert_eq!(tap_name("eth0"), "vsw-up-eth0");
        let (a, b) = (tap_name("enp0s31f6.100"), tap_name("enp0s31f6.101"));
        assert_ne!(a, b);
        assert!(a.len() <= 15 && a.starts_with("vsw-up-"), "{a}");
    }

    #[test]
    fn relay_addresses_are_link_local_and_unique_local() {
        for name in ["host-a", "host-b", "", "x"] {
            let (v4, v6) = relay_addresses(name);
            assert!(v4.is_link_local() && v6.is_unique_local(), "{v4} {v6}");
            assert!((1..169).contains(&v4.octets()[2]));
        }
        assert_ne!(relay_addresses("host-a"), relay_addresses("host-b"));
    }

    #[test]
    fn solicitations_go_to_the_last_three_octets() {
        let address: Ipv6Addr = "2001:db8::1:2345:6789".parse().expect("an address");
        assert_eq!(solicited_node(address).to_string(), "ff02::1:ff45:6789");
    }
}
