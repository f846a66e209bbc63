//! Multicast groups that a device listens to for us: those of neighbour discovery for addresses that are not the host's.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv6Addr, UdpSocket};

/// The multicast groups that a device listens to for us. A socket can be in so many; then there is one more.
#[derive(Debug, Default)]
pub(super) struct Groups {
    sockets: Vec<UdpSocket>,
    joined: BTreeMap<Ipv6Addr, usize>,
}

impl Groups {
    /// Joins the groups that are wanted, and leaves the others.
    ///
    /// # Errors
    /// The kernel's refusal; those that were joined before it are.
    pub(super) fn set(&mut self, device: u32, wanted: BTreeSet<Ipv6Addr>) -> io::Result<()> {
        let stale: Vec<_> = self.joined.keys().filter(|group| !wanted.contains(*group)).copied().collect();
        for group in stale {
            if let Some(socket) = self.joined.remove(&group) {
                // Fails when the device has gone, and the membership with it.
                let _ = self.sockets[socket].leave_multicast_v6(&group, device);
            }
        }
        for group in wanted {
            if self.joined.contains_key(&group) {
                continue;
            }
            if let Some(socket) = self.sockets.last()
                && socket.join_multicast_v6(&group, device).is_ok()
            {
                self.joined.insert(group, self.sockets.len() - 1);
                continue;
            }
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
            socket.join_multicast_v6(&group, device)?;
            self.sockets.push(socket);
            self.joined.insert(group, self.sockets.len() - 1);
        }
        Ok(())
    }
}
