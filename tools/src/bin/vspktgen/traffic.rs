//! The frames that are generated: Ethernet, IPv4 or IPv6, UDP, and a [`Tag`] at the start of the payload.
//!
//! A flow is a number; it is added to each field that `--vary` names, so flows differ in as many headers as a
//! test wants to stress. The IPv4 UDP checksum is left out (zero), that of IPv6 is computed.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::SystemTime;

use clap::{Args, ValueEnum};
use packet::{Checksum, Gso, GsoKind, MacAddr};

const ETHERNET: usize = 14;
const VLAN: usize = 4;
const UDP: usize = 8;
const MAGIC: u16 = 0x7673;
/// Bytes of a [`Tag`] in a payload.
const TAG: usize = 22;

/// What tells a generated frame from any other, and from its siblings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub flow: u32,
    /// Number of the frame in its flow.
    pub number: u64,
    /// When it was made, by the machine's clock.
    pub nanos: u64,
}

/// Reads the machine's clock, in nanoseconds, the same for every process.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A header field that differs from flow to flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Field {
    SrcMac,
    DstMac,
    SrcIp,
    DstIp,
    SrcPort,
    DstPort,
}

/// Sizes that frames take in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sizes(Vec<usize>);

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "imix" {
            // The common 7:4:1 mix, spread out; an IP packet of 1500 bytes is the longest.
            return Ok(Self(vec![64, 590, 64, 64, 590, 64, 1514, 64, 590, 64, 590, 64]));
        }
        text.split(',')
            .map(|part| match part.trim().parse() {
                Ok(size) if (60..=65_535).contains(&size) => Ok(size),
                _ => Err(format!("'{part}' is not a frame size: 60 to 65535 bytes, or imix")),
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// What to generate.
#[derive(Clone, Debug, Args)]
pub(crate) struct Traffic {
    /// Bytes of a frame without FCS: a size, several taken in turn (64,512), or imix.
    #[arg(long, default_value = "64")]
    pub size: Sizes,
    /// How many flows to take in turn.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub flows: u32,
    /// What differs between flows.
    #[arg(long, value_delimiter = ',', default_value = "src-port")]
    pub vary: Vec<Field>,
    /// Take flows in random order instead of one after the other.
    #[arg(long)]
    pub random: bool,
    /// Source MAC address; the device's own when it has one.
    #[arg(long)]
    pub src_mac: Option<MacAddr>,
    /// Destination MAC address.
    #[arg(long, default_value = "02:00:00:00:00:02")]
    pub dst_mac: MacAddr,
    /// Source address.
    #[arg(long, default_value = "198.18.0.1")]
    pub src_ip: IpAddr,
    /// Destination address.
    #[arg(long, default_value = "198.18.0.2")]
    pub dst_ip: IpAddr,
    /// UDP source port.
    #[arg(long, default_value_t = 1024)]
    pub src_port: u16,
    /// UDP destination port.
    #[arg(long, default_value_t = 9)]
    pub dst_port: u16,
    /// Send this many frames as one that the device or the kernel cuts (UDP segmentation offload); over veth
    /// and tap. Generates more than one core otherwise can.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(2..=128))]
    pub gso: Option<u16>,
    /// VLAN tag to put in.
    #[arg(long, value_parser = clap::value_parser!(u16).range(0..4095))]
    pub vlan: Option<u16>,
}

/// Makes frames of `Traffic`, one after the other.
#[derive(Debug)]
pub(crate) struct Maker {
    traffic: Traffic,
    src_mac: [u8; 6],
    headers: usize,
    next_flow: u32,
    next_size: usize,
    /// Frames made so far, by flow.
    numbers: Vec<u64>,
    random: u64,
}

impl Maker {
    /// Makes frames that come from `own` unless the traffic says otherwise.
    ///
    /// # Errors
    /// When source and destination are of two families, or frames are too small for them.
    pub(crate) fn new(traffic: &Traffic, own: Option<MacAddr>) -> Result<Self, String> {
        let ip = match (traffic.src_ip, traffic.dst_ip) {
            (IpAddr::V4(_), IpAddr::V4(_)) => 20,
            (IpAddr::V6(_), IpAddr::V6(_)) => 40,
            (src, dst) => return Err(format!("{src} and {dst} are of two address families")),
        };
        let headers = ETHERNET + if traffic.vlan.is_some() { VLAN } else { 0 } + ip + UDP;
        if let Some(size) = traffic.size.0.iter().find(|size| **size < headers + TAG) {
            return Err(format!("frames of {size} bytes are too small: {} is the least", headers + TAG));
        }
        if traffic.gso.is_some() && (traffic.size.0.len() > 1 || traffic.size.0[0] > 508) {
            return Err("--gso takes one size, of at most 508 bytes".to_owned());
        }
        let default = MacAddr::local(1);
        Ok(Self {
            src_mac: traffic.src_mac.or(own).unwrap_or(default).0,
            headers,
            next_flow: 0,
            next_size: 0,
            numbers: vec![0; traffic.flows as usize],
            random: 0x9e37_79b9_7f4a_7c15,
            traffic: traffic.clone(),
        })
    }

    /// Returns the bytes of the next frame.
    pub(crate) fn next_len(&self) -> usize {
        let size = self.traffic.size.0[self.next_size];
        size + (size - self.headers) * (usize::from(self.traffic.gso.unwrap_or(1)) - 1)
    }

    /// Returns how the frames are to be cut, when they are.
    pub(crate) fn gso(&self) -> Option<(Gso, Checksum)> {
        self.traffic.gso?;
        let size = low16(self.traffic.size.0[0] - self.headers);
        let gso = Gso { kind: GsoKind::Udp, size, header_len: low16(self.headers), ecn: false, tunnel: None };
        Some((gso, Checksum::Partial { start: low16(self.headers - UDP), offset: 6 }))
    }

    /// Returns how many frames one of [`Maker::next_len`] bytes stands for.
    pub(crate) fn frames_each(&self) -> u64 {
        u64::from(self.traffic.gso.unwrap_or(1))
    }

    /// Writes the next frame into `bytes`, which are as many as [`Maker::next_len`] said.
    pub(crate) fn write(&mut self, bytes: &mut [u8], nanos: u64) {
        let flow = self.next_flow;
        self.next_size = (self.next_size + 1) % self.traffic.size.0.len();
        self.next_flow = self.pick_flow();
        let payload = self.traffic.size.0[0] - self.headers;
        self.write_headers(bytes, flow);
        let whole = bytes.len() - self.headers;
        let each = if self.traffic.gso.is_some() { payload } else { whole };
        for payload in bytes[self.headers..].chunks_mut(each) {
            let number = self.numbers[flow as usize];
            self.numbers[flow as usize] += 1;
            payload[TAG..].fill(0);
            write_tag(payload, &Tag { flow, number, nanos });
        }
        if self.traffic.gso.is_some() {
            // The sum of the pseudo header; whoever cuts the frame adds the rest to each piece.
            let start = self.headers - UDP;
            let addresses = if self.traffic.src_ip.is_ipv6() { 32 } else { 8 };
            let sum = sum(&bytes[start - addresses..start]) + (bytes.len() - start) as u64 + 17;
            bytes[start + 6..start + 8].copy_from_slice(&fold(sum).to_be_bytes());
        } else if self.traffic.src_ip.is_ipv6() {
            let start = self.headers - UDP;
            let sum = udp_checksum(bytes, start);
            bytes[start + 6..start + 8].copy_from_slice(&sum.to_be_bytes());
        }
    }

    fn pick_flow(&mut self) -> u32 {
        if !self.traffic.random {
            return (self.next_flow + 1) % self.traffic.flows;
        }
        // xorshift64*: fast, and good enough to defeat a cache.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let high = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        u32::try_from((high * u64::from(self.traffic.flows)) >> 32).expect("below a u32")
    }

    fn write_headers(&self, bytes: &mut [u8], flow: u32) {
        let traffic = &self.traffic;
        let varies = |field| if traffic.vary.contains(&field) { flow } else { 0 };
        let len = bytes.len();
        bytes[0..6].copy_from_slice(&add(traffic.dst_mac.0, varies(Field::DstMac)));
        bytes[6..12].copy_from_slice(&add(self.src_mac, varies(Field::SrcMac)));
        let mut at = 12;
        if let Some(vlan) = traffic.vlan {
            bytes[12..14].copy_from_slice(&[0x81, 0x00]);
            bytes[14..16].copy_from_slice(&vlan.to_be_bytes());
            at = 16;
        }
        let (src_flow, dst_flow) = (varies(Field::SrcIp), varies(Field::DstIp));
        match (traffic.src_ip, traffic.dst_ip) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                bytes[at..at + 2].copy_from_slice(&[0x08, 0x00]);
                let ip = &mut bytes[at + 2..at + 22];
                ip.copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                ip[2..4].copy_from_slice(&low16(len - at - 2).to_be_bytes());
                ip[12..16].copy_from_slice(&add(src.octets(), src_flow));
                ip[16..20].copy_from_slice(&add(dst.octets(), dst_flow));
                let sum = fold(sum(ip));
                ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
                at += 22;
            }
            (src, dst) => {
                bytes[at..at + 2].copy_from_slice(&[0x86, 0xdd]);
                let ip = &mut bytes[at + 2..at + 42];
                ip[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, 17, 64]);
                ip[4..6].copy_from_slice(&low16(len - at - 42).to_be_bytes());
                for (place, (address, flow)) in [(8, (src, src_flow)), (24, (dst, dst_flow))] {
                    if let IpAddr::V6(address) = address {
                        ip[place..place + 16].copy_from_slice(&add(address.octets(), flow));
                    }
                }
                at += 42;
            }
        }
        let port = |base: u16, field| base.wrapping_add(low16(varies(field) as usize));
        bytes[at..at + 2].copy_from_slice(&port(traffic.src_port, Field::SrcPort).to_be_bytes());
        bytes[at + 2..at + 4].copy_from_slice(&port(traffic.dst_port, Field::DstPort).to_be_bytes());
        bytes[at + 4..at + 6].copy_from_slice(&low16(len - at).to_be_bytes());
        bytes[at + 6..at + 8].fill(0);
    }
}

/// Returns the tag of a generated frame, or `None` for any other.
pub(crate) fn read_tag(frame: &[u8]) -> Option<Tag> {
    let payload = frame.get(payload_at(frame)?..)?.get(..TAG)?;
    let (magic, rest) = payload.split_first_chunk()?;
    let (flow, rest) = rest.split_first_chunk()?;
    let (number, rest) = rest.split_first_chunk()?;
    let (nanos, _) = rest.split_first_chunk()?;
    (u16::from_be_bytes(*magic) == MAGIC).then_some(Tag {
        flow: u32::from_be_bytes(*flow),
        number: u64::from_be_bytes(*number),
        nanos: u64::from_be_bytes(*nanos),
    })
}

fn write_tag(payload: &mut [u8], tag: &Tag) {
    payload[0..2].copy_from_slice(&MAGIC.to_be_bytes());
    payload[2..6].copy_from_slice(&tag.flow.to_be_bytes());
    payload[6..14].copy_from_slice(&tag.number.to_be_bytes());
    payload[14..22].copy_from_slice(&tag.nanos.to_be_bytes());
}

/// Turns a generated frame round: swaps addresses and ports. All checksums stay right.
pub(crate) fn turn_round(frame: &mut [u8]) -> Option<()> {
    let udp = payload_at(frame)?.checked_sub(UDP)?;
    let v4 = frame.get(udp.checked_sub(20)?)? >> 4 == 4 && !is_v6(frame);
    let (first, len) = if v4 { (udp - 8, 4) } else { (udp.checked_sub(32)?, 16) };
    frame[..12].rotate_left(6);
    frame[first..first + 2 * len].rotate_left(len);
    frame[udp..udp + 4].rotate_left(2);
    Some(())
}

fn is_v6(frame: &[u8]) -> bool {
    let at = if frame[12..14] == [0x81, 0x00] { 16 } else { 12 };
    frame.get(at..at + 2) == Some(&[0x86, 0xdd])
}

/// Returns where the UDP payload of `frame` starts, if that is what it is.
fn payload_at(frame: &[u8]) -> Option<usize> {
    let at = if frame.get(12..14)? == [0x81, 0x00] { 16 } else { 12 };
    match frame.get(at..at + 2)? {
        [0x08, 0x00] => (frame.get(at + 2)? == &0x45 && frame.get(at + 11)? == &17).then_some(at + 30),
        [0x86, 0xdd] => (frame.get(at + 8)? == &17).then_some(at + 50),
        _ => None,
    }
}

/// Adds a number to the low end of a big-endian field, wrapping.
fn add<const N: usize>(mut field: [u8; N], number: u32) -> [u8; N] {
    let mut carry = u64::from(number);
    for byte in field.iter_mut().rev() {
        carry += u64::from(*byte);
        *byte = carry.to_le_bytes()[0];
        carry >>= 8;
    }
    field
}

/// Returns the low 16 bits.
fn low16(value: usize) -> u16 {
    let [a, b, ..] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).expect("folded")
}

/// The checksum of the UDP datagram at `start`, behind IPv6 addresses. Never zero, which would mean none.
fn udp_checksum(bytes: &[u8], start: usize) -> u16 {
    let pseudo = sum(&bytes[start - 32..start]) + (bytes.len() - start) as u64 + 17;
    match !fold(pseudo + sum(&bytes[start..])) {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Wrapper {
        #[command(flatten)]
        traffic: Traffic,
    }

    fn maker(arguments: &[&str]) -> Maker {
        let all = ["test"].iter().chain(arguments);
        Maker::new(&Wrapper::parse_from(all).traffic, None).expect("good traffic")
    }

    fn frame(maker: &mut Maker) -> Vec<u8> {
        let mut bytes = vec![0xaa; maker.next_len()];
        maker.write(&mut bytes, 7);
        bytes
    }

    #[test]
    fn a_frame_carries_its_flow_number_and_time() {
        let mut maker = maker(&["--flows", "2"]);
        for (flow, number) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            let tag = read_tag(&frame(&mut maker));
            assert_eq!(tag, Some(Tag { flow, number, nanos: 7 }));
        }
        assert_eq!(read_tag(&[0; 64]), None);
        assert_eq!(read_tag(&[0; 5]), None);
    }

    #[test]
    fn flows_differ_where_asked() {
        let mut maker = maker(&["--flows", "300", "--vary", "src-mac,dst-ip,dst-port"]);
        let first = frame(&mut maker);
        let last = (1..300).map(|_| frame(&mut maker)).last().expect("299 frames");
        assert_eq!(first[0..6], last[0..6]);
        assert_eq!(last[6..12], [2, 0, 0, 0, 1, 0x2c]);
        assert_eq!(last[30..34], [198, 18, 1, 45]);
        assert_eq!(first[34..36], last[34..36]);
        assert_ne!(first[36..38], last[36..38]);
    }

    #[test]
    fn sums_are_right_both_ways() {
        for (arguments, ip) in [
            (&["--size", "100"][..], 20),
            (&["--size", "101", "--src-ip", "fd00::1", "--dst-ip", "fd00::2"][..], 40),
            (&["--size", "130", "--vlan", "7", "--src-ip", "fd00::1", "--dst-ip", "fd00::2"][..], 40),
        ] {
            let mut bytes = frame(&mut maker(arguments));
            for _ in 0..2 {
                let start = payload_at(&bytes).expect("UDP") - UDP;
                if ip == 20 {
                    assert_eq!(fold(sum(&bytes[start - 20..start])), 0xffff);
                } else {
                    let pseudo = sum(&bytes[start - 32..start]) + (bytes.len() - start) as u64 + 17;
                    assert_eq!(fold(pseudo + sum(&bytes[start..])), 0xffff);
                }
                assert!(read_tag(&bytes).is_some());
                turn_round(&mut bytes).expect("a generated frame");
            }
            assert_eq!(bytes, frame(&mut maker(arguments)), "twice round is the same");
        }
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        let refused = |arguments: &[&str]| {
            let all = ["test"].iter().chain(arguments);
            Maker::new(&Wrapper::parse_from(all).traffic, None).expect_err("refused")
        };
        assert!(refused(&["--size", "60"]).contains("64 is the least"));
        assert!(refused(&["--dst-ip", "::1"]).contains("families"));
        assert!("12".parse::<Sizes>().is_err());
        assert_eq!("imix".parse::<Sizes>().expect("known").0.len(), 12);
    }
}
