//! A device to send to and receive from: any kind of port, or a plain packet socket.

use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use packet::{Area, Checksum, Frame, FramePool, FrameQueue, Gso, MacAddr};
use ports::bare::{self, packet::Packets};
use ports::{Kind, Port, Spec, afxdp, memory};

/// Frames that one call moves at most.
pub(crate) const BATCH: usize = 64;
/// Chunks of the area: enough for the rings of a few AF_XDP queues.
const SMALL_CHUNKS: usize = 16384;
/// Large chunks: two full batches of GSO frames.
const LARGE_CHUNKS: usize = 128;
/// Room for one frame: a packet socket may get a 64 KiB one even without `virtio_net_hdr`.
const ROOM: usize = 65536 + 64;

/// `KIND:NAME` as written on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub kind: String,
    pub device: String,
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, device) = text.split_once(':').unwrap_or((text, ""));
        let kinds = ["packet", "veth", "tap", "afxdp", "shared", "memory", "pcap"];
        if !kinds.contains(&kind) {
            return Err(format!("'{kind}' is no kind of device: {}", kinds.join(", ")));
        }
        if device.is_empty() != (kind == "memory") {
            return Err(format!("'{text}' is not KIND:NAME (memory has no name)"));
        }
        Ok(Self { kind: kind.to_owned(), device: device.to_owned() })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.kind)?;
        if self.device.is_empty() { Ok(()) } else { write!(f, ":{}", self.device) }
    }
}

/// An open device with frames on their way in and out.
#[derive(Debug)]
pub(crate) enum Device {
    /// A port of the switch, all its queues; sends on the first.
    Port(Ports),
    /// A packet socket without `virtio_net_hdr`.
    Packet { socket: bare::packet::Socket, out: Packets, into: Packets },
}

/// The queues of a port, and what they need to run.
#[derive(Debug)]
pub(crate) struct Ports {
    queues: Vec<Port>,
    pool: FramePool,
    out: FrameQueue,
    into: Vec<Frame>,
    /// The other end of a port in memory: what was sent is taken out there.
    peer: Option<memory::Peer>,
}

impl Device {
    /// Opens the device, for writing into a capture when it is one and `write` is set.
    pub(crate) fn open(name: &Name, write: bool) -> Result<Self> {
        Self::open_in(&area()?, name, write)
    }

    /// Opens the device with frames in `area`.
    pub(crate) fn open_in(area: &Arc<Area>, name: &Name, write: bool) -> Result<Self> {
        if name.kind == "packet" {
            let socket = bare::packet::Socket::open(&name.device, false)
                .with_context(|| format!("cannot open a packet socket on '{}'", name.device))?;
            let packets = || Packets::new(BATCH, ROOM);
            return Ok(Self::Packet { socket, out: packets(), into: packets() });
        }
        let device = name.device.clone();
        let mut peer = None;
        let kind = match name.kind.as_str() {
            "veth" => Kind::Veth { device },
            "tap" => Kind::Tap { device, queues: 1, persist: false },
            "afxdp" => Kind::Afxdp { device, options: afxdp::Options::default() },
            "memory" => {
                let (end, other) = memory::pair(4 * BATCH);
                peer = Some(other);
                Kind::Memory { end }
            }
            "pcap" if write => Kind::Pcap { input: None, output: Some(device.into()) },
            "pcap" => Kind::Pcap { input: Some(device.into()), output: None },
            "shared" => bail!("{name}: only a loop shares a device"),
            other => bail!("'{other}' is no kind of device"),
        };
        let opened = Port::open(Spec { name: name.to_string(), kind }, area)?;
        for note in &opened.notes {
            eprintln!("vspktgen: {name}: {note}");
        }
        Ok(Self::Port(Ports {
            queues: opened.queues,
            pool: FramePool::new(Arc::clone(area)),
            out: FrameQueue::new(2 * BATCH),
            into: Vec::with_capacity(BATCH),
            peer,
        }))
    }

    /// Adds a frame of `len` bytes, written by `write`, to those that [`Device::flush`] sends. False when
    /// there is no room: flush first.
    pub(crate) fn push(&mut self, len: usize, write: impl FnOnce(&mut [u8])) -> bool {
        self.push_gso(len, None, write)
    }

    /// As [`Device::push`], for a frame that is to be cut. A plain packet socket cannot say so.
    pub(crate) fn push_gso(
        &mut self,
        len: usize,
        gso: Option<(Gso, Checksum)>,
        write: impl FnOnce(&mut [u8]),
    ) -> bool {
        match self {
            Self::Packet { out, .. } => match out.push(len) {
                Some(bytes) => {
                    write(bytes);
                    true
                }
                None => false,
            },
            Self::Port(ports) => {
                if ports.out.room() == 0 {
                    return false;
                }
                let Some(mut frame) = ports.pool.alloc(len) else { return false };
                frame.set_len(len);
                write(frame.bytes_mut());
                if let Some((gso, checksum)) = gso {
                    frame.set_gso(Some(gso));
                    frame.set_checksum(checksum);
                }
                if let Err(frame) = ports.out.push(frame) {
                    ports.pool.free(frame);
                    return false;
                }
                true
            }
        }
    }

    /// Hands what was pushed to the device. Returns how many frames it took and their bytes; the rest stay.
    pub(crate) fn flush(&mut self) -> Result<(u64, u64)> {
        match self {
            Self::Packet { socket, out, .. } => {
                let (mut sent, mut bytes) = (0, 0);
                while sent < out.len() {
                    let took = socket.send(out, sent).with_context(|| {
                        let longest = out.iter().map(<[u8]>::len).max().unwrap_or(0);
                        format!("cannot send frames of up to {longest} bytes (does the MTU allow them?)")
                    })?;
                    if took == 0 {
                        break;
                    }
                    bytes += out.iter().skip(sent).take(took).map(|f| f.len() as u64).sum::<u64>();
                    sent += took;
                }
                // What was refused is gone, as on a wire.
                out.clear();
                Ok((sent as u64, bytes))
            }
            Self::Port(ports) => {
                let before = ports.queues[0].stats();
                ports.queues[0].transmit(&mut ports.out, &mut ports.pool);
                if let Some(peer) = &mut ports.peer {
                    peer.drain(&mut ports.pool);
                }
                let after = ports.queues[0].stats();
                if ports.queues[0].health() == ports::Health::Gone {
                    bail!("the device is gone");
                }
                Ok((after.tx_frames - before.tx_frames, after.tx_bytes - before.tx_bytes))
            }
        }
    }

    /// Passes what has been received to `sink`, which may change it, and returns how many frames that were.
    pub(crate) fn receive(&mut self, mut sink: impl FnMut(&mut [u8])) -> Result<usize> {
        match self {
            Self::Packet { socket, into, .. } => {
                let count = socket.receive(into).context("cannot receive")?;
                into.iter_mut().for_each(sink);
                Ok(count)
            }
            Self::Port(ports) => {
                let mut count = 0;
                for port in &mut ports.queues {
                    let into = &mut ports.into;
                    count += port.receive(&mut ports.pool, BATCH, |frame| into.push(frame));
                    for mut frame in into.drain(..) {
                        sink(frame.bytes_mut());
                        ports.pool.free(frame);
                    }
                    if port.health() == ports::Health::Gone {
                        bail!("the device is gone");
                    }
                }
                Ok(count)
            }
        }
    }

    /// Waits until the device may have frames, at most `millis`.
    pub(crate) fn wait(&self, millis: i32) -> Result<()> {
        let fds = self.fds();
        if fds.is_empty() {
            return Ok(());
        }
        bare::readable(&fds, millis).context("cannot wait for the device").map(drop)
    }

    /// Moves what waits here to `other` and sends it there. Both must be ports in the area of `pool`.
    pub(crate) fn forward_to(&mut self, other: &mut Self, pool: &mut FramePool) -> Result<usize> {
        let (Self::Port(from), Self::Port(to)) = (self, other) else {
            bail!("a plain packet socket is no port: veth is");
        };
        let mut count = 0;
        for port in &mut from.queues {
            let room = to.out.room().min(BATCH);
            let out = &mut to.out;
            count += port.receive(pool, room, |frame| {
                out.push(frame).expect("room was asked for");
            });
            if port.health() == ports::Health::Gone {
                bail!("the device is gone");
            }
        }
        if !to.out.is_empty() || to.queues[0].wants_turn() {
            to.queues[0].transmit(&mut to.out, pool);
        }
        Ok(count)
    }

    /// Waits until one of two ports may have frames, at most `millis`.
    pub(crate) fn wait_for_either(one: &Self, other: &Self, millis: i32) -> Result<()> {
        let fds: Vec<_> = [one, other].iter().flat_map(|device| device.fds()).collect();
        bare::readable(&fds, millis).context("cannot wait for the devices").map(drop)
    }

    fn fds(&self) -> Vec<i32> {
        match self {
            Self::Packet { socket, .. } => vec![socket.raw()],
            Self::Port(ports) => ports.queues.iter().filter_map(Port::fd).collect(),
        }
    }

    /// Returns what the port has counted, all queues together as far as it is asked for here.
    pub(crate) fn stats(&self) -> ports::Stats {
        match self {
            Self::Packet { .. } => ports::Stats::default(),
            Self::Port(ports) => {
                ports.queues.iter().map(Port::stats).fold(ports::Stats::default(), |mut sum, stats| {
                    sum.tx_bytes += stats.tx_bytes;
                    sum.tx_errors += stats.tx_errors;
                    sum
                })
            }
        }
    }

    /// Returns how many frames the kernel dropped before they were read, since the last call.
    pub(crate) fn take_drops(&mut self) -> u64 {
        match self {
            Self::Packet { socket, .. } => socket.take_drops(),
            Self::Port(ports) => ports.queues.iter().map(|port| port.stats().rx_kernel_drops).sum(),
        }
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        while let Some(frame) = self.out.pop() {
            self.pool.free(frame);
        }
        for port in self.queues.drain(..) {
            port.close(&mut self.pool);
        }
    }
}

/// Maps memory for frames.
pub(crate) fn area() -> Result<Arc<Area>> {
    Area::new(SMALL_CHUNKS, LARGE_CHUNKS).context("cannot map memory for frames")
}

/// Returns the device's own MAC address, when it is a network device that has one.
pub(crate) fn mac_of(name: &Name) -> Option<MacAddr> {
    // Not from /sys, which shows another namespace's devices after setns.
    let mut all = nix::ifaddrs::getifaddrs().ok()?.filter(|one| one.interface_name == name.device);
    let octets = all.find_map(|one| one.address?.as_link_addr()?.addr())?;
    Some(MacAddr(octets)).filter(|mac| mac.is_station())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kind_and_device() {
        let name: Name = "packet:eth0".parse().expect("good");
        assert_eq!(name, Name { kind: "packet".into(), device: "eth0".into() });
        assert_eq!(name.to_string(), "packet:eth0");
        assert_eq!("memory".parse::<Name>().expect("good").to_string(), "memory");
        for bad in ["eth0", "packet:", "memory:x", "xdp:eth0", ""] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
