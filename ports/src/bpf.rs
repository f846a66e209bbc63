//! BPF by `bpf(2)` alone: maps, programs, links, and their names on a bpffs. No compiler and no library takes part.
//!
//! Programs are assembled in Rust (`assembler.rs`) by whoever needs one: `afxdp/bpf.rs`, `steer/`. All that is made
//! here lives as long as its descriptor, a link that uses it, or its name on the bpffs.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(crate) mod assembler;

use assembler::Instruction;

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
#[cfg(test)]
const PROG_TEST_RUN: libc::c_long = 10;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

pub(crate) const MAP_TYPE_HASH: u32 = 1;
pub(crate) const MAP_TYPE_PERCPU_ARRAY: u32 = 6;
pub(crate) const MAP_TYPE_LRU_HASH: u32 = 9;
pub(crate) const MAP_TYPE_LPM_TRIE: u32 = 11;
pub(crate) const MAP_TYPE_XSKMAP: u32 = 17;
/// Memory for elements is taken when they are added.
pub(crate) const F_NO_PREALLOC: u32 = 1;

pub(crate) const PROG_TYPE_SCHED_CLS: u32 = 3;
pub(crate) const PROG_TYPE_XDP: u32 = 6;
pub(crate) const XDP: u32 = 37;
pub(crate) const TCX_INGRESS: u32 = 46;

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

    fn long(mut self, offset: usize, value: u64) -> Self {
        self.0[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn descriptor(self, offset: usize, fd: RawFd) -> Self {
        self.word(offset, fd.cast_unsigned())
    }

    /// Stores an address; what it points to must live until the call.
    fn address<T: ?Sized>(self, offset: usize, value: &T) -> Self {
        self.long(offset, std::ptr::from_ref(value).cast::<u8>() as u64)
    }

    /// Stores an address that the kernel writes to; what it points to must live until the call.
    fn room<T: ?Sized>(self, offset: usize, value: &mut T) -> Self {
        self.long(offset, std::ptr::from_mut(value).cast::<u8>() as u64)
    }

    /// Stores a name: letters, digits and underscores, at most 15.
    fn name(mut self, offset: usize, name: &str) -> Self {
        self.0[offset..offset + name.len()].copy_from_slice(name.as_bytes());
        self
    }

    fn call(&mut self, command: libc::c_long) -> io::Result<RawFd> {
        // SAFETY: the kernel reads the 128 bytes of `self` and what its addresses point to, and writes to `self` and to
        // the room that its addresses point to; the functions of this module keep these alive, of the size that they
        // or the map's description say, until the call returns.
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

/// Returns the name of a file as the kernel wants it.
fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Gives an object a name on a bpffs, which keeps it alive. A name that is there already is taken over.
///
/// # Errors
/// `EPERM` where there is no bpffs, or what the kernel says else.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = c_path(path)?;
    let pin = || {
        Attr::new().address(0, name.as_bytes_with_nul()).descriptor(8, fd.as_raw_fd()).call(OBJ_PIN).map(drop)
    };
    match pin() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(path)?;
            pin()
        }
        result => result,
    }
}

/// Opens the object that has a name on a bpffs.
///
/// # Errors
/// `ENOENT` when there is none of that name.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    let name = c_path(path)?;
    Attr::new().address(0, name.as_bytes_with_nul()).create(OBJ_GET)
}

/// What a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapSpec {
    pub(crate) name: &'static str,
    pub(crate) kind: u32,
    pub(crate) key_len: u32,
    pub(crate) value_len: u32,
    pub(crate) entries: u32,
    pub(crate) flags: u32,
}

/// A map: a table that programs and we share.
#[derive(Debug)]
pub(crate) struct Map {
    fd: OwnedFd,
    spec: MapSpec,
}

impl Map {
    /// Makes an empty map.
    ///
    /// # Errors
    /// What the kernel says: `EPERM` without the right, `ENOMEM`.
    pub(crate) fn create(spec: MapSpec) -> io::Result<Self> {
        let fd = Attr::new()
            .word(0, spec.kind)
            .word(4, spec.key_len)
            .word(8, spec.value_len)
            .word(12, spec.entries)
            .word(16, spec.flags)
            .name(28, spec.name)
            .create(MAP_CREATE)?;
        Ok(Self { fd, spec })
    }

    /// Opens the map that is pinned at `path`, if it is what `spec` says; else makes a new one there. Programs that
    /// use the old one keep it until they are replaced.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn adopt(spec: MapSpec, path: &Path) -> io::Result<Self> {
        if let Ok(fd) = open(path)
            && described(&fd)? == [spec.kind, spec.key_len, spec.value_len, spec.entries, spec.flags]
        {
            return Ok(Self { fd, spec });
        }
        let map = Self::create(spec)?;
        pin(map.fd.as_fd(), path)?;
        Ok(map)
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, spec: self.spec })
    }

    /// Sets one element.
    ///
    /// # Errors
    /// `E2BIG` or `ENOSPC` when the map is full, or what the kernel says else.
    pub(crate) fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!((key.len(), value.len()), self.sizes(), "an element is of the map's kind");
        Attr::new().descriptor(0, self.fd()).address(8, key).address(16, value).call(MAP_UPDATE_ELEM)?;
        Ok(())
    }

    /// Takes one element out; one that is not there is fine.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn remove(&self, key: &[u8]) -> io::Result<()> {
        assert_eq!(key.len(), self.sizes().0, "an element is of the map's kind");
        match Attr::new().descriptor(0, self.fd()).address(8, key).call(MAP_DELETE_ELEM) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads an element into `value`; says whether there is one. An element of a per-CPU map has a value, of a multiple
    /// of eight bytes, for each CPU that could ever be there.
    ///
    /// # Errors
    /// What the kernel says.
    ///
    /// # Panics
    /// `value` is smaller than the element.
    pub(crate) fn read(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        let copies = if self.spec.kind == MAP_TYPE_PERCPU_ARRAY { possible_cpus()? } else { 1 };
        let (key_len, value_len) = self.sizes();
        assert_eq!(key.len(), key_len, "an element is of the map's kind");
        assert!(value.len() >= copies * value_len, "the element has room");
        match Attr::new().descriptor(0, self.fd()).address(8, key).room(16, value).call(MAP_LOOKUP_ELEM) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lists the keys. For maps that nobody else changes meanwhile.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn keys(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let mut next = vec![0; self.sizes().0];
            let attr = Attr::new().descriptor(0, self.fd()).room(16, next.as_mut_slice());
            let result = match keys.last() {
                Some(last) => attr.address(8, last.as_slice()).call(MAP_GET_NEXT_KEY),
                None => { attr }.call(MAP_GET_NEXT_KEY),
            };
            match result {
                Ok(_) => keys.push(next),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(error),
            }
        }
    }

    fn sizes(&self) -> (usize, usize) {
        (self.spec.key_len as usize, self.spec.value_len as usize)
    }
}

/// Returns the kind, lengths, entries and flags of a map.
fn described(fd: &OwnedFd) -> io::Result<[u32; 5]> {
    // struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags, ...
    let mut info = [0_u32; 6];
    Attr::new()
        .descriptor(0, fd.as_raw_fd())
        .word(4, u32::try_from(size_of_val(&info)).expect("24"))
        .room(8, &mut info)
        .call(OBJ_GET_INFO_BY_FD)?;
    let [kind, _, key_len, value_len, entries, flags] = info;
    Ok([kind, key_len, value_len, entries, flags])
}

/// Returns the number of CPUs that could ever be there, which is how many values a per-CPU element has.
pub(crate) fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|word| word.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A program that the kernel has verified.
#[derive(Debug)]
pub(crate) struct Program {
    fd: OwnedFd,
}

impl Program {
    /// Loads a program.
    ///
    /// # Errors
    /// `EPERM` without the right. A refusal of the verifier is a defect of ours: the error has the end of its log.
    pub(crate) fn load(
        name: &str,
        kind: u32,
        attach: u32,
        flags: u32,
        code: &[Instruction],
    ) -> io::Result<Self> {
        let attr = || {
            Attr::new()
                .word(0, kind)
                .word(4, u32::try_from(code.len()).expect("programs are short"))
                .address(8, code)
                .address(16, c"Dual MIT/GPL".to_bytes_with_nul())
                .word(44, flags)
                .name(48, name)
                .word(68, attach)
        };
        match attr().create(PROG_LOAD) {
            Ok(fd) => Ok(Self { fd }),
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                let mut log = vec![0_u8; 1 << 20];
                let len = u32::try_from(log.len()).expect("1 MiB");
                let again = attr().word(24, 1).word(28, len).room(32, log.as_mut_slice()).create(PROG_LOAD);
                let text = String::from_utf8_lossy(&log);
                let lines: Vec<_> = text.trim_end_matches('\0').lines().collect();
                let end = lines[lines.len().saturating_sub(30)..].join("\n");
                again.map(|fd| Self { fd }).map_err(|_| io::Error::other(format!("{error}:\n{end}")))
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Attaches the program to a device; it runs until the link is dropped and has no name any more.
    ///
    /// # Errors
    /// `EBUSY` or `EEXIST` when another program is there, `EINVAL` when the kernel does not know the place.
    pub(crate) fn attach(&self, interface: u32, place: u32, flags: u32) -> io::Result<Link> {
        let fd = Attr::new()
            .descriptor(0, self.fd.as_raw_fd())
            .word(4, interface)
            .word(8, place)
            .word(12, flags)
            .create(LINK_CREATE)?;
        Ok(Link { fd })
    }

    /// Runs the program on `frame`, a classifier as if that had the mark; returns its result and the mark it leaves.
    #[cfg(test)]
    pub(crate) fn run(&self, frame: &[u8], mark: Option<u32>) -> io::Result<(u32, u32)> {
        let mut output = vec![0_u8; frame.len() + 256];
        // struct __sk_buff: len, pkt_type, mark, ...
        let mut context = [0_u32; 48];
        context[2] = mark.unwrap_or(0);
        let len = |len: usize| u32::try_from(len).expect("short");
        let mut after = context;
        let mut attr = Attr::new()
            .descriptor(0, self.fd.as_raw_fd())
            .word(8, len(frame.len()))
            .word(12, len(output.len()))
            .address(16, frame)
            .room(24, output.as_mut_slice());
        if mark.is_some() {
            let size = len(size_of_val(&context));
            attr = attr.word(40, size).word(44, size).address(48, &context).room(56, &mut after);
        }
        attr.call(PROG_TEST_RUN)?;
        let result = u32::from_ne_bytes(attr.0[4..8].try_into().expect("four"));
        Ok((result, after[2]))
    }
}

/// A program in its place.
#[derive(Debug)]
pub(crate) struct Link {
    fd: OwnedFd,
}

impl Link {
    /// Opens the link that is pinned at `path`.
    ///
    /// # Errors
    /// `ENOENT` when there is none.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { fd: open(path)? })
    }

    /// Gives the link a name, which keeps it.
    ///
    /// # Errors
    /// See [`pin`].
    pub(crate) fn pin(&self, path: &Path) -> io::Result<()> {
        pin(self.fd.as_fd(), path)
    }

    /// Puts another program in the same place, without a packet in between that meets none.
    ///
    /// # Errors
    /// `ENOLINK` when the device has gone.
    pub(crate) fn replace(&self, program: &Program) -> io::Result<()> {
        Attr::new()
            .descriptor(0, self.fd.as_raw_fd())
            .descriptor(4, program.fd.as_raw_fd())
            .call(LINK_UPDATE)?;
        Ok(())
    }

    /// Takes the program out of its place now; without, the kernel does it some time after the last descriptor and the
    /// name have gone. A device that has gone is fine.
    pub(crate) fn detach(&self) {
        let _ = Attr::new().descriptor(0, self.fd.as_raw_fd()).call(LINK_DETACH);
    }
}
