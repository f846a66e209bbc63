//! The XDP program that hands frames to our sockets: made, loaded and attached by `bpf(2)` alone.
//!
//! Six instruction slots: look the receive queue up in a map of sockets and redirect there; a queue without a
//! socket gets the default action. No compiler, no library and no mounted file system takes part. The program
//! hangs on a `bpf_link` file descriptor, so the kernel detaches it when the last copy of that descriptor is
//! closed, which it also is when the process is killed.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::Unclaimed;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;

const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const BPF_FUNC_REDIRECT_MAP: i32 = 51;
const BPF_PSEUDO_MAP_FD: u8 = 1;

const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const XDP_FLAGS_SKB_MODE: u32 = 2;
const XDP_FLAGS_DRV_MODE: u32 = 4;

/// Where `struct xdp_md` keeps the number of the receive queue.
const RX_QUEUE_INDEX: i16 = 16;

/// `union bpf_attr`, filled in by offset (`uapi/linux/bpf.h`); the kernel takes any length and wants the rest 0.
#[repr(C, align(8))]
struct Attr([u8; 128]);

impl Attr {
    fn new() -> Self {
        Self([0; 128])
    }

    fn word(mut self, offset: usize, value: u32) -> Self {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn descriptor(self, offset: usize, fd: RawFd) -> Self {
        self.word(offset, fd.cast_unsigned())
    }

    /// Stores an address; what it points to must live until the call.
    fn address<T: ?Sized>(mut self, offset: usize, value: &T) -> Self {
        let address = std::ptr::from_ref(value).cast::<u8>() as u64;
        self.0[offset..offset + 8].copy_from_slice(&address.to_ne_bytes());
        self
    }

    fn name(mut self, offset: usize, name: &[u8]) -> Self {
        self.0[offset..offset + name.len()].copy_from_slice(name);
        self
    }

    fn call(&mut self, command: libc::c_long) -> io::Result<RawFd> {
        // SAFETY: the kernel reads the 128 bytes of `self` and what its addresses point to, which the callers
        // below keep alive; it writes at most to `self`.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        RawFd::try_from(result).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn create(&mut self, command: libc::c_long) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        // SAFETY: the commands that reach this line return a new descriptor, which nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

fn assemble(map: RawFd, unclaimed: Unclaimed) -> [Instruction; 6] {
    let action = match unclaimed {
        Unclaimed::Drop => XDP_DROP,
        Unclaimed::Pass => XDP_PASS,
    };
    [
        // r2 = context->rx_queue_index
        instruction(0x61, 2, 1, RX_QUEUE_INDEX, 0),
        // r1 = the map: an instruction of two slots, the loader replaces the descriptor by the address
        instruction(0x18, 1, BPF_PSEUDO_MAP_FD, 0, map),
        instruction(0, 0, 0, 0, 0),
        // r3 = what to return when the map has no socket for the queue
        instruction(0xb7, 3, 0, 0, action),
        instruction(0x85, 0, 0, 0, BPF_FUNC_REDIRECT_MAP),
        instruction(0x95, 0, 0, 0, 0),
    ]
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
    map: OwnedFd,
    program: OwnedFd,
    fragments: bool,
}

impl Program {
    /// Loads the program for queues `0..queues`.
    ///
    /// # Errors
    /// What the kernel says: `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN`.
    pub(super) fn load(queues: u32, unclaimed: Unclaimed) -> io::Result<Self> {
        let map = Attr::new()
            .word(0, BPF_MAP_TYPE_XSKMAP)
            .word(4, 4)
            .word(8, 4)
            .word(12, queues)
            .name(28, b"vswitch_xsk")
            .create(BPF_MAP_CREATE)?;
        let code = assemble(map.as_raw_fd(), unclaimed);
        let load = |flags| {
            Attr::new()
                .word(0, BPF_PROG_TYPE_XDP)
                .word(4, u32::try_from(code.len()).expect("six"))
                .address(8, &code)
                .address(16, c"Dual MIT/GPL".to_bytes_with_nul())
                .word(44, flags)
                .name(48, b"vswitch_xsk")
                .word(68, BPF_XDP)
                .create(BPF_PROG_LOAD)
        };
        // Kernels before 5.18 do not know the flag; then a frame has to fit into one page.
        let (program, fragments) = match load(BPF_F_XDP_HAS_FRAGS) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => (load(0)?, false),
            result => (result?, true),
        };
        Ok(Self { map, program, fragments })
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
        let link = Attr::new()
            .descriptor(0, self.program.as_raw_fd())
            .word(4, interface)
            .word(8, BPF_XDP)
            .word(12, flags)
            .create(BPF_LINK_CREATE)?;
        Ok(Link { map: self.map.try_clone()?, _link: link })
    }
}

/// The attachment: the program runs until this is dropped.
#[derive(Debug)]
pub(super) struct Link {
    map: OwnedFd,
    _link: OwnedFd,
}

impl Link {
    /// Sends the frames of `queue` to the socket from now on, until that is closed.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn claim(&self, queue: u32, socket: RawFd) -> io::Result<()> {
        let value = socket.cast_unsigned();
        Attr::new()
            .descriptor(0, self.map.as_raw_fd())
            .address(8, &queue)
            .address(16, &value)
            .call(BPF_MAP_UPDATE_ELEM)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_what_the_assembler_would_make() {
        let code = assemble(7, Unclaimed::Drop);
        let bytes: Vec<[u8; 8]> = code
            .iter()
            .map(|i| {
                let (o, v) = (i.offset.to_le_bytes(), i.immediate.to_le_bytes());
                [i.code, i.registers, o[0], o[1], v[0], v[1], v[2], v[3]]
            })
            .collect();
        // r2 = *(u32 *)(r1 + 16); r1 = map[fd 7]; r3 = 1; call 51; exit
        assert_eq!(
            bytes,
            [
                [0x61, 0x12, 16, 0, 0, 0, 0, 0],
                [0x18, 0x11, 0, 0, 7, 0, 0, 0],
                [0, 0, 0, 0, 0, 0, 0, 0],
                [0xb7, 0x03, 0, 0, 1, 0, 0, 0],
                [0x85, 0, 0, 0, 51, 0, 0, 0],
                [0x95, 0, 0, 0, 0, 0, 0, 0],
            ]
        );
        assert_eq!(assemble(7, Unclaimed::Pass)[3].immediate, 2);
    }
}
