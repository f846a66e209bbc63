//! Who has a port that we wanted: by the kernel's tables of sockets, and the open files of processes.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use super::Protocol;

/// Says that `address` is in use, and by whom if that can be seen. In the namespace of the calling thread.
pub(super) fn describe(address: SocketAddr, protocol: Protocol) -> String {
    match sockets(address, protocol).into_iter().find_map(process) {
        Some((pid, name)) => format!("is in use by {name} (pid {pid})"),
        None => "is in use".to_owned(),
    }
}

/// Returns the inodes of sockets that keep `address` from us.
fn sockets(address: SocketAddr, protocol: Protocol) -> Vec<u64> {
    let files = match protocol {
        Protocol::Tcp => ["tcp", "tcp6"],
        Protocol::Udp => ["udp", "udp6"],
        Protocol::Sctp => return Vec::new(),
    };
    let mut found = Vec::new();
    for file in files {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        found.extend(table.lines().skip(1).filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let local = parse(fields.get(1)?)?;
            // Connections are no reason: only who listens keeps a TCP port from us.
            let counts = protocol != Protocol::Tcp || *fields.get(3)? == "0A";
            (counts && collide(local, address)).then(|| fields.get(9)?.parse::<u64>().ok()).flatten()
        }));
    }
    found
}

/// Says whether two sockets cannot both have their addresses. One for `::` may leave IPv4 to others or not; here it does
/// not, since this is about why there is a conflict.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    let is_all = |ip: IpAddr| ip.is_unspecified();
    one.port() == other.port() && (a == b || is_all(a) && (a.is_ipv6() || b.is_ipv4()) || is_all(b))
}

/// Reads `0100007F:1F90`: words of the address as the machine has them, and the port.
fn parse(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match address.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let octets = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            IpAddr::from(<[u8; 16]>::try_from(octets).ok()?)
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Finds a process that has the socket open, and its name.
fn process(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        // Those that end meanwhile, or are not ours to look at, have none.
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let has = files
            .flatten()
            .any(|file| fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str()));
        if has {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Some((pid, name.trim().to_owned()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_tables_of_the_kernel_are_read() {
        assert_eq!(parse("0100007F:1F90"), Some("127.0.0.1:8080".parse().expect("an address")));
        let v6 = "B80D0120000000000000000001000000:0035";
        assert_eq!(parse(v6), Some("[2001:db8::1]:53".parse().expect("an address")));
        assert_eq!(parse("x:1"), None);
    }

    #[test]
    fn a_listener_is_found_by_its_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("bound");
        let all = SocketAddr::new([0; 4].into(), address.port());
        let me = std::process::id();
        for address in [address, all] {
            assert!(describe(address, Protocol::Tcp).ends_with(&format!("(pid {me})")), "{address}");
            assert_eq!(describe(address, Protocol::Udp), "is in use");
        }
    }
}
