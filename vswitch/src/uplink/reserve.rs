//! Ports that the host's sockets are not given by chance: `ip_local_reserved_ports`.
//!
//! The list is the administrator's too. What we add to it is written into a file before, so that another start, or
//! `cleanup`, can take just that back; a port that was in the list before stays. The kernel's own NAT does not look at the
//! list, nor do sockets that ask for a port: packets for those are handed back.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

use crate::devices::Error;

const LIST: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Makes `ports` the ones that we have added, as written down in `notes`. In the namespace of the calling thread.
pub(super) fn set(notes: &Path, ports: &[RangeInclusive<u16>]) -> Result<(), Error> {
    let failed = |what: String| move |error: io::Error| Error::kernel(what, error);
    let list = fs::read_to_string(LIST).map_err(failed(format!("read {LIST}")))?;
    let before = match fs::read_to_string(notes) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        result => result.map_err(failed(format!("read {}", notes.display())))?,
    };
    let now = Ports::parse(&list);
    let theirs = now.without(&Ports::parse(&before));
    let added = Ports::of(ports).without(&theirs);
    let wanted = theirs.with(&added);
    if added.is_empty() && before.is_empty() {
        return Ok(());
    }
    // Both, until the list is written: a crash in between leaves nothing behind.
    let both = added.with(&Ports::parse(&before)).to_string();
    if let Some(directory) = notes.parent() {
        fs::create_dir_all(directory).map_err(failed(format!("create {}", directory.display())))?;
    }
    let note = |text: &str| fs::write(notes, text).map_err(failed(format!("write {}", notes.display())));
    note(&both)?;
    if wanted != now {
        fs::write(LIST, format!("{wanted}\n")).map_err(failed(format!("write {LIST}")))?;
    }
    if added.is_empty() {
        return fs::remove_file(notes).map_err(failed(format!("remove {}", notes.display())));
    }
    note(&added.to_string())
}

/// A set of ports, one bit each.
#[derive(Clone, PartialEq, Eq)]
struct Ports(Vec<u64>);

impl Ports {
    fn none() -> Self {
        Self(vec![0; 1024])
    }

    fn of(ranges: &[RangeInclusive<u16>]) -> Self {
        let mut ports = Self::none();
        for port in ranges.iter().cloned().flatten() {
            ports.0[usize::from(port / 64)] |= 1 << (port % 64);
        }
        ports
    }

    /// Reads `8080,9000-9010`, as the kernel prints it. What is no port is passed over.
    fn parse(text: &str) -> Self {
        let range = |word: &str| {
            let (from, to) = word.split_once('-').unwrap_or((word, word));
            Some(from.trim().parse().ok()?..=to.trim().parse().ok()?)
        };
        Self::of(&text.split(',').filter_map(range).collect::<Vec<_>>())
    }

    fn with(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a | b).collect())
    }

    fn without(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a & !b).collect())
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|bits| *bits == 0)
    }

    fn has(&self, port: u16) -> bool {
        self.0[usize::from(port / 64)] >> (port % 64) & 1 == 1
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut comma = "";
        let mut next = 0_u32;
        while let Some(start) = (next..=0xffff).filter_map(|p| u16::try_from(p).ok()).find(|p| self.has(*p)) {
            let end = (start..=u16::MAX).take_while(|port| self.has(*port)).last().unwrap_or(start);
            write!(f, "{comma}{start}")?;
            if end > start {
                write!(f, "-{end}")?;
            }
            comma = ",";
            next = u32::from(end) + 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_printed_as_the_kernel_does() {
        for text in ["", "0", "8080", "8080,9000-9010", "1-65535", "49152-65535"] {
            assert_eq!(Ports::parse(&format!("{text}\n")).to_string(), text);
        }
        assert_eq!(Ports::parse("5,4,3,9-8,x").to_string(), "3-5");
    }
}
