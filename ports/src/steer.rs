//! Steering: a device shared between the host's stack and the switch.
//!
//! A program at the device's tc ingress takes what is the switch's and redirects it into a tap of ours, where it is
//! received like any frame of a tap, GRO and GSO whole. A program at the tap's ingress, which is where what the switch
//! transmits arrives, redirects it out of the device; or, when its source is not the device's hardware address, back in
//! at the device, with a mark that makes the first program let it pass: so the switch hands back what was not its own.
//!
//! ```text
//!   wire -> device --in--> ours? --yes--> tap -> switch        switch -> tap --out--> device -> wire
//!                           | no                                               | not from the device's address
//!                           v                                                  v
//!                      host's stack <------------ marked, passes ------- device (ingress)
//! ```
//!
//! `decide.rs` is the decision, `maps.rs` the tables it reads. Programs, links and tables are pinned in a directory of a
//! bpffs and go on when the daemon dies: a tap that nobody reads drops what it gets, so a connection of the switch's
//! meets silence and not the host's RST. The next daemon adopts the tables as they are, and replaces the programs
//! without a packet in between that meets none.
//!
//! For packet rate instead of bulk, [`crate::afxdp::Steer`] has the same decision made by an XDP program, which redirects to
//! AF_XDP sockets; the tap then only hands back ([`Steering::attach_out`]). In the driver, that is: where XDP runs in the
//! stack (generic mode), what is handed back meets it once more.
//!
//! From Linux 6.6 on the programs hang on links (tcx); before, the caller attaches them as clsact filters
//! ([`Classifier`]). Both run the same program, whose answer for the host's packets leaves the decision to whatever else
//! is attached there.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use packet::{Address, MacAddr, Prefix};

mod decide;
mod maps;

use crate::afxdp::Steer;
use crate::bpf::assembler::Instruction;
use crate::bpf::{self, Link, Map, PROG_TYPE_SCHED_CLS, Program, TCX_INGRESS};
use decide::Place;
use maps::{Maps, Tables};

/// What is the switch's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Addresses that are the switch's alone, with their ARP and neighbour discovery.
    pub floating: Vec<Address>,
    /// Ports of addresses of the host, with the protocol's number.
    pub published: Vec<(Address, u8, RangeInclusive<u16>)>,
    /// Ports (TCP, UDP, SCTP) and echo identifiers of addresses of the host that masquerading draws from.
    pub snat: Vec<(Address, RangeInclusive<u16>)>,
    /// Networks that are reached without NAT. `::/0` would hold every IPv4 address as well.
    pub routed: Vec<Prefix>,
    /// VXLAN networks: the host's address and UDP port that peers send to, and the VNI.
    pub tunnels: Vec<(Address, u16, u32)>,
}

/// What has become of a packet, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Reason {
    /// Taken: to a floating address.
    Floating = 0,
    /// Taken: ARP about a floating address.
    Arp = 1,
    /// Taken: neighbour discovery about a floating address.
    Neighbor = 2,
    /// Taken: to a published port, or one of the SNAT range.
    Port = 3,
    /// Taken: an echo reply with an identifier of the SNAT range.
    Echo = 4,
    /// Taken: an ICMP error about one of these.
    IcmpError = 5,
    /// Taken: VXLAN with a port and a VNI of ours.
    Vxlan = 6,
    /// Taken: to a network that is reached without NAT.
    Routed = 7,
    /// Taken: a fragment behind a first one that was taken.
    Fragment = 8,
    /// Taken: a fragment whose first one has not come (yet).
    LostFragment = 9,
    /// Taken: the device is the switch's alone.
    Dedicated = 10,
    /// Left to the host.
    Passed = 11,
    /// Arrived at the host after it had been handed back.
    Returned = 12,
    /// Sent out of the device for the switch.
    Sent = 13,
    /// Handed back by the switch.
    HandedBack = 14,
}

const REASONS: u32 = 15;

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Reason; REASONS as usize] = [
        Reason::Floating,
        Reason::Arp,
        Reason::Neighbor,
        Reason::Port,
        Reason::Echo,
        Reason::IcmpError,
        Reason::Vxlan,
        Reason::Routed,
        Reason::Fragment,
        Reason::LostFragment,
        Reason::Dedicated,
        Reason::Passed,
        Reason::Returned,
        Reason::Sent,
        Reason::HandedBack,
    ];

    /// Returns the name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Floating => "floating",
            Reason::Arp => "arp",
            Reason::Neighbor => "neighbor",
            Reason::Port => "port",
            Reason::Echo => "echo",
            Reason::IcmpError => "icmp_error",
            Reason::Vxlan => "vxlan",
            Reason::Routed => "routed",
            Reason::Fragment => "fragment",
            Reason::LostFragment => "lost_fragment",
            Reason::Dedicated => "dedicated",
            Reason::Passed => "passed",
            Reason::Returned => "returned",
            Reason::Sent => "sent",
            Reason::HandedBack => "handed_back",
        }
    }
}

/// A device and the tap that belongs to it, by their numbers in the namespace of the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The device that is shared.
    pub device: u32,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Our tap.
    pub tap: u32,
}

/// How a program is attached where the kernel has no tcx: as the only filter of its priority at a device's clsact
/// ingress. That is done by netlink, which this crate does not speak.
pub trait Classifier {
    /// Attaches `program` at the ingress of `device`, in the place of one that is there.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn attach(&mut self, device: u32, program: BorrowedFd<'_>) -> io::Result<()>;

    /// Detaches what [`Classifier::attach`] has attached; a device that has none, or has gone, is fine.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn detach(&mut self, device: u32) -> io::Result<()>;
}

/// The steering of one switch: its tables, and the devices that they are used at.
#[derive(Debug)]
pub struct Steering {
    pins: PathBuf,
    maps: Maps,
    tables: Tables,
    attached: BTreeMap<u32, Pair>,
    tcx: bool,
}

impl Steering {
    /// Opens the steering whose pins are in the directory `pins` of a bpffs, which is made, or makes a new one. Tables
    /// that are there stay as they are until [`Steering::set_rules`].
    ///
    /// # Errors
    /// `EPERM` without the right, or where there is no bpffs.
    pub fn open(pins: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(pins)?;
        let maps = Maps::adopt(pins)?;
        let tables = Tables::read(&maps)?;
        Ok(Self { pins: pins.to_owned(), maps, tables, attached: BTreeMap::new(), tcx: true })
    }

    /// Attaches by [`Classifier`] from now on, as on a kernel without tcx.
    #[must_use]
    pub fn without_tcx(self) -> Self {
        Self { tcx: false, ..self }
    }

    /// Attaches the programs of a device and its tap, in the place of those that are there. To be called again when the
    /// device's hardware address changes. In the namespace of the devices.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn attach(&mut self, pair: Pair, classifier: &mut dyn Classifier) -> io::Result<()> {
        // First the way out: what is taken can be answered.
        self.put_out(pair, classifier)?;
        let place = Place::Tc { tap: pair.tap };
        self.put("vsw_in", pair.device, &decide::assemble(&self.maps, pair.mac.0, place), classifier)?;
        self.attached.insert(pair.device, pair);
        self.detach_xdp(pair.device)
    }

    /// Attaches only the program of the tap: for a device whose packets come by [`crate::afxdp::Steer`].
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn attach_out(&mut self, pair: Pair, classifier: &mut dyn Classifier) -> io::Result<()> {
        self.put_out(pair, classifier)?;
        self.attached.insert(pair.device, pair);
        self.take_off(pair.device, classifier)
    }

    fn put_out(&self, pair: Pair, classifier: &mut dyn Classifier) -> io::Result<()> {
        let out = decide::assemble_out(&self.maps, pair.mac.0, pair.device);
        self.put("vsw_out", pair.tap, &out, classifier)
    }

    fn put(
        &self,
        name: &str,
        device: u32,
        code: &[Instruction],
        classifier: &mut dyn Classifier,
    ) -> io::Result<()> {
        let program = Program::load(name, PROG_TYPE_SCHED_CLS, 0, 0, code)?;
        let path = self.link(device);
        // The device of a link that cannot be replaced has gone, and another one has its number now.
        if Link::open(&path).and_then(|link| link.replace(&program)).is_ok() {
            return Ok(());
        }
        if !self.tcx {
            return classifier.attach(device, program.as_fd());
        }
        match program.attach(device, TCX_INGRESS, 0) {
            Ok(link) => link.pin(&path),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                classifier.attach(device, program.as_fd())
            }
            Err(error) => Err(error),
        }
    }

    fn link(&self, device: u32) -> PathBuf {
        self.pins.join(format!("link_{device}"))
    }

    /// Detaches the programs of a device and its tap, if it has one: all that arrives is the host's again.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn detach(
        &mut self,
        device: u32,
        tap: Option<u32>,
        classifier: &mut dyn Classifier,
    ) -> io::Result<()> {
        self.detach_xdp(device)?;
        self.detach_tap(device, tap, classifier)
    }

    /// As [`Steering::detach`], but an XDP program stays: that of a device that is the switch's alone.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn detach_tap(
        &mut self,
        device: u32,
        tap: Option<u32>,
        classifier: &mut dyn Classifier,
    ) -> io::Result<()> {
        for device in [Some(device), tap].into_iter().flatten() {
            self.take_off(device, classifier)?;
        }
        self.attached.remove(&device);
        Ok(())
    }

    /// Returns the devices that have an XDP program of ours, also from an earlier run.
    ///
    /// # Errors
    /// What the file system says.
    pub fn xdp_devices(&self) -> io::Result<Vec<u32>> {
        let mut devices = Vec::new();
        for entry in std::fs::read_dir(&self.pins)? {
            let name = entry?.file_name();
            let name = name.to_str().and_then(|name| name.strip_prefix("xdp_"));
            let index: Option<u32> = name.and_then(|name| name.rsplit('_').next()?.parse().ok());
            devices.extend(index);
        }
        Ok(devices)
    }

    fn take_off(&self, device: u32, classifier: &mut dyn Classifier) -> io::Result<()> {
        if unpin(&self.link(device))? { Ok(()) } else { classifier.detach(device) }
    }

    fn detach_xdp(&self, device: u32) -> io::Result<()> {
        for native in [true, false] {
            unpin(&xdp_pin(&self.pins, device, native))?;
        }
        Ok(())
    }

    /// Returns what is attached by this [`Steering`].
    pub fn attached(&self) -> impl Iterator<Item = Pair> {
        self.attached.values().copied()
    }

    /// Makes the tables say what `rules` say, and returns how many elements that changed. What stays is never absent.
    ///
    /// # Errors
    /// `E2BIG` or `ENOSPC` when a table is full; what could be changed is changed, and the next call goes on from there.
    pub fn set_rules(&mut self, rules: &Rules) -> io::Result<usize> {
        self.tables.change(&self.maps, &Tables::of(rules))
    }

    /// Returns how many packets met which fate, since the tables were made.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn counters(&self) -> io::Result<Vec<(Reason, u64)>> {
        let mut values = vec![0; bpf::possible_cpus()? * 8];
        let mut counters = Vec::with_capacity(Reason::ALL.len());
        for reason in Reason::ALL {
            self.maps.counters.read(&(reason as i32).to_ne_bytes(), &mut values)?;
            let (each, _) = values.as_chunks::<8>();
            counters.push((reason, each.iter().map(|value| u64::from_ne_bytes(*value)).sum()));
        }
        Ok(counters)
    }

    /// Detaches everything that is pinned in `pins`, and removes the directory. One that is not there is fine. Filters of
    /// a [`Classifier`] stay: they go with their devices, or by its own means.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(pins: &Path) -> io::Result<()> {
        match std::fs::read_dir(pins) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
            Ok(entries) => {
                for entry in entries {
                    let path = entry?.path();
                    if !unpin(&path)? {
                        std::fs::remove_file(path)?;
                    }
                }
            }
        }
        std::fs::remove_dir(pins)
    }
}

/// Detaches the link that is pinned at `path` and removes the pin; says whether there was one.
fn unpin(path: &Path) -> io::Result<bool> {
    match Link::open(path) {
        // What is no link cannot be detached.
        Ok(link) => {
            link.detach();
            std::fs::remove_file(path)?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the program for [`crate::afxdp`]. What else is returned lives until the program is loaded.
pub(crate) fn xdp_program(
    steer: &Steer,
    sockets: &Map,
) -> io::Result<(Vec<Instruction>, impl Sized + use<>)> {
    std::fs::create_dir_all(&steer.pins)?;
    let maps = Maps::adopt(&steer.pins)?;
    let place = Place::Xdp { sockets, all: steer.dedicated };
    Ok((decide::assemble(&maps, steer.mac.0, place), maps))
}

/// Returns where the link of an XDP program is pinned.
pub(crate) fn xdp_pin(pins: &Path, device: u32, native: bool) -> PathBuf {
    pins.join(format!("xdp_{}_{device}", if native { "native" } else { "generic" }))
}

#[cfg(test)]
mod tests;
