//! How large a packet to another host of the overlay may be: asked by echo requests that may not be fragmented.
//!
//! Requests of many sizes are sent at once, and the largest that is answered counts; between that and the next larger one it
//! is asked again, until nothing is between them. The kernel's own knowledge of the path plays no part
//! (`IP_PMTUDISC_PROBE`), so what was learned long ago, or falsely, is found as well.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, socket};
use packet::checksum::Sum;
use packet::header::{icmp4, icmp6};

/// For how long answers are waited for.
const PATIENCE: Duration = Duration::from_millis(400);
/// How often what is not answered is asked again: a packet may get lost.
const TRIES: usize = 2;
/// Sizes that are asked for at once.
const STEPS: u32 = 24;
/// Sizes that paths often have: jumbo frames, Ethernet, PPPoE, tunnels of all kinds.
const USUAL: [u32; 12] = [9000, 8950, 4352, 1500, 1492, 1476, 1450, 1430, 1420, 1400, 1380, 1300];
/// What every link carries (RFC 8200, 5; RFC 791, 3.2 for IPv4 says less, but what cannot do this is no underlay).
const LEAST_V6: u32 = 1280;
const LEAST_V4: u32 = 576;
const ICMP_HEADER: usize = 8;

/// Returns the length of the largest IP packet from `local` that `peer` answers, up to `most`; `None` when it answers none.
/// Blocks for up to some seconds when packets get lost. To be called in the host's namespace.
///
/// # Errors
/// The kernel's refusal.
pub fn largest(local: IpAddr, peer: IpAddr, most: u32) -> io::Result<Option<u32>> {
    let mut prober = Prober::new(local, peer)?;
    let least = if peer.is_ipv4() { LEAST_V4 } else { LEAST_V6 };
    let mut sizes: BTreeSet<u32> = USUAL.into_iter().filter(|size| (least..most).contains(size)).collect();
    sizes.extend([least, most]);
    let (mut found, mut above) = (None, most + 1);
    loop {
        let answered = prober.ask(&sizes)?;
        found = answered.last().copied().or(found);
        let Some(good) = found else { return Ok(None) };
        above = sizes.into_iter().find(|size| *size > good).unwrap_or(above).min(above);
        if above - good <= 1 {
            return Ok(Some(good));
        }
        let step = (above - good).div_ceil(STEPS);
        sizes = (good + 1..above).step_by(step as usize).chain([above - 1]).collect();
    }
}

struct Prober {
    socket: UdpSocket,
    v4: bool,
    identifier: u16,
    sequence: u16,
}

impl Prober {
    fn new(local: IpAddr, peer: IpAddr) -> io::Result<Self> {
        let v4 = peer.is_ipv4();
        let (family, protocol) = if v4 {
            (AddressFamily::Inet, SockProtocol::Icmp)
        } else {
            (AddressFamily::Inet6, SockProtocol::IcmpV6)
        };
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        never_fragment(&raw, v4)?;
        bind(raw.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(local, 0)))?;
        // A socket of another kind all the same: what the standard library does with it is right for this one too.
        let socket = UdpSocket::from(raw);
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        // Like ping does: no other socket of this process or the next has the same.
        let identifier = u16::try_from(std::process::id() & 0xffff).unwrap_or(0) ^ 0x7673;
        socket.connect(SocketAddr::new(peer, 0))?;
        Ok(Self { socket, v4, identifier, sequence: 0 })
    }

    /// Returns those of `sizes` that were answered.
    fn ask(&mut self, sizes: &BTreeSet<u32>) -> io::Result<BTreeSet<u32>> {
        let mut answered = BTreeSet::new();
        for _ in 0..TRIES {
            let mut asked = Vec::new();
            for size in sizes.difference(&answered) {
                self.sequence = self.sequence.wrapping_add(1);
                match self.socket.send(&self.request(*size)) {
                    Ok(_) => asked.push((self.sequence, *size)),
                    // Too large for the device: that is an answer too. And a host that cannot be reached answers nothing.
                    Err(error) if is_no(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            let until = Instant::now() + PATIENCE;
            while asked.iter().any(|(_, size)| !answered.contains(size)) && Instant::now() < until {
                let mut bytes = [0; 1 << 16];
                match self.socket.recv(&mut bytes) {
                    Ok(len) => {
                        let sequence = self.answer(&bytes[..len]);
                        let size =
                            asked.iter().find(|(asked, _)| Some(*asked) == sequence).map(|(_, size)| *size);
                        answered.extend(size);
                    }
                    Err(error)
                        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                    // What an ICMP error told.
                    Err(error) if is_no(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(answered)
    }

    /// Returns an echo request that makes an IP packet of `size` bytes.
    fn request(&self, size: u32) -> Vec<u8> {
        let header = if self.v4 { 20 } else { 40 };
        let mut bytes = vec![0; (size as usize).saturating_sub(header).max(ICMP_HEADER)];
        bytes[0] = if self.v4 { icmp4::ECHO_REQUEST } else { icmp6::ECHO_REQUEST };
        bytes[4..6].copy_from_slice(&self.identifier.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        if self.v4 {
            // Of ICMPv6 the kernel computes it.
            let checksum = Sum::default().bytes(&bytes).checksum();
            bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        bytes
    }

    /// Returns the sequence number that a received packet answers.
    fn answer(&self, packet: &[u8]) -> Option<u16> {
        // Raw sockets of IPv4 see the IP header, those of IPv6 do not (raw(7)).
        let start = if self.v4 { usize::from(packet.first()? & 0x0f) * 4 } else { 0 };
        let head = packet.get(start..)?.first_chunk::<ICMP_HEADER>()?;
        let reply = if self.v4 { icmp4::ECHO_REPLY } else { icmp6::ECHO_REPLY };
        let is_ours = head[0] == reply && head[4..6] == self.identifier.to_be_bytes();
        is_ours.then_some(u16::from_be_bytes([head[6], head[7]]))
    }
}

/// Has packets of a socket leave whole or not at all, whatever the kernel believes about the path (ip(7), ipv6(7)).
fn never_fragment(socket: &OwnedFd, v4: bool) -> io::Result<()> {
    let (level, name, value) = if v4 {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
    };
    let len = libc::socklen_t::try_from(size_of_val(&value)).expect("four bytes");
    // SAFETY: the option's value is `len` bytes at a valid address.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    Errno::result(done).map(drop).map_err(Into::into)
}

/// Says whether an error means that there is no answer, rather than that nothing can be asked.
fn is_no(error: &io::Error) -> bool {
    let known = [libc::EMSGSIZE, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ECONNREFUSED, libc::EHOSTDOWN];
    error.raw_os_error().is_some_and(|errno| known.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_answers_up_to_what_is_asked_for() {
        for local in ["127.0.0.1", "::1"] {
            let local: IpAddr = local.parse().expect("an address");
            for most in [1280, 1499, 9001, 65535] {
                match largest(local, local, most) {
                    Ok(found) => assert_eq!(found, Some(most), "{local} {most}"),
                    // A machine without IPv6.
                    Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL), "{local}"),
                }
            }
        }
    }
}
