//! The XDP program that hands frames to our sockets: made, loaded and attached by `bpf(2)` alone.
//!
//! For a container six instruction slots: look the receive queue up in a map of sockets and redirect there; a queue without a
//! socket gets the default action. No compiler, no library and no mounted file system takes part. The program
//! hangs on a `bpf_link` file descriptor, so the kernel detaches it when the last copy of that descriptor is
//! closed, which it also is when the process is killed.
//!
//! On a device that is shared with the host the program is that of [`crate::steer`], and the link is pinned: the next
//! process puts its own program, with its own map of sockets, in the place of the one that it finds.

use std::io;
use std::os::fd::RawFd;

use super::{Options, Steer, Unclaimed};
use crate::bpf::assembler::{Assembler, Helper, Instruction, R1, R2, R3, W4};
use crate::bpf::{self, MAP_TYPE_XSKMAP, Map, MapSpec, PROG_TYPE_XDP};
use crate::steer;

const F_XDP_HAS_FRAGS: u32 = 1 << 5;

const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const XDP_FLAGS_SKB_MODE: u32 = 2;
const XDP_FLAGS_DRV_MODE: u32 = 4;

/// Where `struct xdp_md` keeps the number of the receive queue.
const RX_QUEUE_INDEX: i16 = 16;

fn assemble(map: &Map, unclaimed: Unclaimed) -> Vec<Instruction> {
    let mut a = Assembler::default();
    a.load(W4, R2, R1, RX_QUEUE_INDEX);
    a.map(R1, map);
    // What to return when the map has no socket for the queue.
    let unclaimed = match unclaimed {
        Unclaimed::Drop => XDP_DROP,
        Unclaimed::Pass => XDP_PASS,
    };
    a.set(R3, unclaimed);
    a.call(Helper::RedirectMap);
    a.exit();
    a.finish()
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Run by the driver.
    Native,
    /// Run by the stack, on a socket buffer.
    Generic,
}

/// The loaded program and its map of sockets; not attached yet.
#[derive(Debug)]
pub(super) struct Program {
    map: Map,
    program: bpf::Program,
    fragments: bool,
    steer: Option<Steer>,
}

impl Program {
    /// Loads the program for queues `0..queues`.
    ///
    /// # Errors
    /// What the kernel says: `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN`.
    pub(super) fn load(queues: u32, options: &Options) -> io::Result<Self> {
        let name = "vswitch_xsk";
        let spec =
            MapSpec { name, kind: MAP_TYPE_XSKMAP, key_len: 4, value_len: 4, entries: queues, flags: 0 };
        let map = Map::create(spec)?;
        let steer = options.steer.clone();
        let _tables;
        let code = match &steer {
            None => assemble(&map, options.unclaimed),
            Some(steer) => {
                let (code, tables) = steer::xdp_program(steer, &map)?;
                _tables = tables;
                code
            }
        };
        let load = |flags| bpf::Program::load(name, PROG_TYPE_XDP, bpf::XDP, flags, &code);
        // Kernels before 5.18 do not know the flag; then a frame has to fit into one page.
        let (program, fragments) = match load(F_XDP_HAS_FRAGS) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => (load(0)?, false),
            result => (result?, true),
        };
        Ok(Self { map, program, fragments, steer })
    }

    /// Says whether the program takes frames of more than one page.
    pub(super) fn fragments(&self) -> bool {
        self.fragments
    }

    /// Attaches the program to a device.
    ///
    /// # Errors
    /// What the kernel says: `EBUSY` or `EEXIST` when another program is attached, `EOPNOTSUPP`, `ERANGE` or
    /// `ENOSPC` when the driver cannot.
    pub(super) fn attach(&self, interface: u32, mode: Mode) -> io::Result<Link> {
        let flags = match mode {
            Mode::Native => XDP_FLAGS_DRV_MODE,
            Mode::Generic => XDP_FLAGS_SKB_MODE,
        };
        let pin =
            self.steer.as_ref().map(|steer| steer::xdp_pin(&steer.pins, interface, mode == Mode::Native));
        if let Some(pin) = &pin
            && let Ok(link) = bpf::Link::open(pin)
            && link.replace(&self.program).is_ok()
        {
            return Ok(Link { map: self.map.try_clone()?, _link: link });
        }
        let link = self.program.attach(interface, bpf::XDP, flags)?;
        if let Some(pin) = &pin {
            link.pin(pin)?;
        }
        Ok(Link { map: self.map.try_clone()?, _link: link })
    }
}

/// The attachment: the program runs until this is dropped.
#[derive(Debug)]
pub(super) struct Link {
    map: Map,
    _link: bpf::Link,
}

impl Link {
    /// Sends the frames of `queue` to the socket from now on, until that is closed.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn claim(&self, queue: u32, socket: RawFd) -> io::Result<()> {
        self.map.set(&queue.to_ne_bytes(), &socket.to_ne_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_what_the_assembler_would_make() -> io::Result<()> {
        let spec =
            MapSpec { name: "test", kind: MAP_TYPE_XSKMAP, key_len: 4, value_len: 4, entries: 1, flags: 0 };
        let map = Map::create(spec)?;
        let bytes = |code: Vec<Instruction>| -> Vec<[u8; 8]> {
            code.iter()
                .map(|i| {
                    let (o, v) = (i.offset.to_le_bytes(), i.immediate.to_le_bytes());
                    [i.code, i.registers, o[0], o[1], v[0], v[1], v[2], v[3]]
                })
                .collect()
        };
        let [a, b, c, d] = map.fd().to_le_bytes();
        // r2 = *(u32 *)(r1 + 16); r1 = map; r3 = 1; call 51; exit
        let expected = [
            [0x61, 0x12, 16, 0, 0, 0, 0, 0],
            [0x18, 0x11, 0, 0, a, b, c, d],
            [0, 0, 0, 0, 0, 0, 0, 0],
            [0xb7, 0x03, 0, 0, 1, 0, 0, 0],
            [0x85, 0, 0, 0, 51, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(bytes(assemble(&map, Unclaimed::Drop)), expected);
        assert_eq!(assemble(&map, Unclaimed::Pass)[3].immediate, 2);
        Ok(())
    }
}
