//! Frames as bytes, and a raw socket to send and receive them: what no well-behaved kernel sends by itself.

use std::net::Ipv4Addr;
use std::time::Duration;

use packet::MacAddr;
use ports::bare::packet::{Packets, Socket};

use super::{PATIENCE, Space, wait_until};

const ROOM: usize = 70 * 1024;

/// A packet socket on an interface inside a namespace; sees what arrives there, not what it sends.
#[derive(Debug)]
pub struct Wire {
    socket: Socket,
    out: Packets,
    into: Packets,
}

impl Wire {
    /// Opens the socket.
    pub fn open(space: &Space, interface: &str) -> Self {
        let socket = space.inside(|| Socket::open(interface, false)).expect("the interface is there");
        Self { socket, out: Packets::new(1, ROOM), into: Packets::new(64, ROOM) }
    }

    /// Sends a frame and says whether the kernel took it.
    pub fn try_send(&mut self, frame: &[u8]) -> bool {
        self.out.clear();
        let Some(bytes) = self.out.push(frame.len()) else { return false };
        bytes.copy_from_slice(frame);
        self.socket.send(&mut self.out, 0).unwrap_or(0) == 1
    }

    /// Sends a frame.
    pub fn send(&mut self, frame: &[u8]) {
        assert!(wait_until(PATIENCE, || self.try_send(frame)), "the kernel does not take a frame");
    }

    /// Returns what has arrived and matches.
    pub fn received(&mut self, matches: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while self.socket.receive(&mut self.into).is_ok_and(|count| count > 0) {
            frames.extend(self.into.iter().filter(|frame| matches(frame)).map(<[u8]>::to_vec));
        }
        frames
    }

    /// Waits for a frame that matches, and returns it.
    pub fn receive(&mut self, patience: Duration, matches: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let mut found = None;
        wait_until(patience, || {
            found = self.received(&matches).into_iter().next();
            found.is_some()
        });
        found
    }
}

/// Returns a frame with this Ethernet header.
pub fn ethernet(to: MacAddr, from: MacAddr, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.extend_from_slice(&to.0);
    frame.extend_from_slice(&from.0);
    frame.extend_from_slice(&ether_type.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Returns `frame` with an 802.1Q tag.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let mut with_tag = frame[..12].to_vec();
    with_tag.extend_from_slice(&0x8100_u16.to_be_bytes());
    with_tag.extend_from_slice(&vlan.to_be_bytes());
    with_tag.extend_from_slice(&frame[12..]);
    with_tag
}

/// Returns a broadcast ARP request.
pub fn arp_request(mac: MacAddr, address: Ipv4Addr, wanted: Ipv4Addr) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend_from_slice(&mac.0);
    arp.extend_from_slice(&address.octets());
    arp.extend_from_slice(&[0; 6]);
    arp.extend_from_slice(&wanted.octets());
    ethernet(MacAddr::BROADCAST, mac, 0x0806, &arp)
}

/// Returns a UDP packet without UDP checksum.
pub fn udp4(macs: [MacAddr; 2], from: Ipv4Addr, to: Ipv4Addr, port: u16, data: &[u8]) -> Vec<u8> {
    let len = u16::try_from(28 + data.len()).expect("it fits an IPv4 packet");
    let mut ip = vec![0x45, 0];
    ip.extend_from_slice(&len.to_be_bytes());
    ip.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend_from_slice(&from.octets());
    ip.extend_from_slice(&to.octets());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    // Ten words: the carry is far below 16 bits, and adding it may carry once more.
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend_from_slice(&port.to_be_bytes());
    ip.extend_from_slice(&port.to_be_bytes());
    ip.extend_from_slice(&(len - 20).to_be_bytes());
    ip.extend_from_slice(&[0, 0]);
    ip.extend_from_slice(data);
    ethernet(macs[1], macs[0], 0x0800, &ip)
}
