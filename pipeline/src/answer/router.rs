//! Router advertisements (RFC 4861, 4.2): the gateway says that it is one, and what is on the link.
//!
//! Sent to whoever solicits, and unasked by [`requests`](crate::requests). Addresses come from the switch, so a prefix is
//! by default on the link only, and hosts do not make addresses of it.

use packet::header::{Header, IcmpHeader, Ipv6, Ipv6Header, RouterSolicit, icmp6, nd_option, protocol};
use packet::{Address, Frame, MacAddr, Prefix};

use super::ip::{Envelope, HOPS, address, seal, stations};
use super::neighbor::ALL_NODES;
use crate::headers::Headers;

/// The most prefixes and the most name servers of one advertisement.
const MOST: usize = 4;
/// Seconds for which a prefix is on the link, and its addresses valid (RFC 4861, 6.2.1: 30 days).
const VALID: u32 = 30 * 86_400;
/// Seconds for which addresses made of a prefix are preferred (RFC 4861, 6.2.1: 7 days).
const PREFERRED: u32 = 7 * 86_400;
/// Seconds for which a name server may be asked: three times the longest interval of unsolicited advertisements
/// (RFC 8106, 5.1; RFC 4861, 6.2.1). Not that of the router, which is 0 where there is no way out.
const SERVER_LIFETIME: u32 = 3 * 600;
/// A prefix is on the link.
const ON_LINK: u8 = 0x80;
/// Hosts may make addresses of a prefix.
const AUTONOMOUS: u8 = 0x40;
/// Addresses are to be had by DHCPv6.
const MANAGED: u8 = 0x80;
/// Other things are to be had by DHCPv6.
const OTHER: u8 = 0x40;
/// The bytes behind ICMPv6's first eight: reachable time and retransmission timer, which are left to the host.
const TIMERS_LEN: usize = 8;

/// What a router advertisement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterAdvert {
    source: [u8; 16],
    lifetime: u16,
    flags: u8,
    mtu: u32,
    prefixes: [OnLink; MOST],
    prefix_count: u8,
    servers: [[u8; 16]; MOST],
    server_count: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct OnLink {
    address: [u8; 16],
    len: u8,
    flags: u8,
}

impl RouterAdvert {
    /// Makes the advertisement of a router at `source`, which must be a link-local address (RFC 4861, 4.2), and a default
    /// router for `lifetime` seconds; 0 for none.
    pub fn new(source: Address, lifetime: u16) -> Self {
        Self {
            source: source.octets(),
            lifetime,
            flags: 0,
            mtu: 0,
            prefixes: [OnLink::default(); MOST],
            prefix_count: 0,
            servers: [[0; 16]; MOST],
            server_count: 0,
        }
    }

    /// Says by M and O what hosts shall ask DHCPv6 for: addresses, and other things.
    #[must_use]
    pub fn with_dhcp(mut self, managed: bool, other: bool) -> Self {
        self.flags = if managed { MANAGED } else { 0 } | if other { OTHER } else { 0 };
        self
    }

    /// Gives the link's MTU.
    #[must_use]
    pub fn with_mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// Says that `prefix` is on the link; with `autonomous`, hosts may make addresses of it. Prefixes above the fourth
    /// are left out.
    #[must_use]
    pub fn with_prefix(mut self, prefix: Prefix, autonomous: bool) -> Self {
        if let Some(place) = self.prefixes.get_mut(usize::from(self.prefix_count)) {
            let flags = ON_LINK | if autonomous { AUTONOMOUS } else { 0 };
            *place = OnLink { address: prefix.address().octets(), len: prefix.len(), flags };
            self.prefix_count += 1;
        }
        self
    }

    /// Names a name server (RFC 8106). Those above the fourth are left out.
    #[must_use]
    pub fn with_server(mut self, server: Address) -> Self {
        if let Some(place) = self.servers.get_mut(usize::from(self.server_count)) {
            *place = server.octets();
            self.server_count += 1;
        }
        self
    }

    fn prefixes(&self) -> &[OnLink] {
        self.prefixes.get(..usize::from(self.prefix_count)).unwrap_or_default()
    }

    fn servers(&self) -> &[[u8; 16]] {
        self.servers.get(..usize::from(self.server_count)).unwrap_or_default()
    }

    /// Returns the bytes of the ICMPv6 message.
    fn message_len(&self) -> usize {
        let servers = if self.server_count > 0 { 8 + self.servers().len() * 16 } else { 0 };
        let mtu = if self.mtu > 0 { 8 } else { 0 };
        IcmpHeader::LEN + TIMERS_LEN + 8 + mtu + self.prefixes().len() * 32 + servers
    }

    /// Returns the bytes of the IPv6 packet.
    pub(crate) fn len(&self) -> usize {
        Ipv6Header::LEN + self.message_len()
    }

    /// Writes the message over `to`, which is as long.
    fn write(&self, to: &mut [u8], mac: MacAddr) {
        let mut rest = to;
        let mut put = |bytes: &[u8]| {
            let (place, behind) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            place.copy_from_slice(bytes);
            rest = behind;
        };
        let [a, b] = self.lifetime.to_be_bytes();
        put(&[icmp6::ROUTER_ADVERT, 0, 0, 0, HOPS, self.flags, a, b]);
        put(&[0; TIMERS_LEN]);
        put(&[nd_option::SOURCE_LINK, 1]);
        put(&mac.0);
        if self.mtu > 0 {
            put(&[nd_option::MTU, 1, 0, 0]);
            put(&self.mtu.to_be_bytes());
        }
        for prefix in self.prefixes() {
            put(&[nd_option::PREFIX, 4, prefix.len, prefix.flags]);
            put(&VALID.to_be_bytes());
            put(&PREFERRED.to_be_bytes());
            put(&[0; 4]);
            put(&prefix.address);
        }
        if self.server_count > 0 {
            put(&[nd_option::RDNSS, 1 + 2 * self.server_count, 0, 0]);
            put(&SERVER_LIFETIME.to_be_bytes());
            for server in self.servers() {
                put(server);
            }
        }
    }
}

/// Returns the link-local address that a station makes of its MAC (RFC 4291, 2.5.6 and appendix A).
pub const fn link_local(mac: MacAddr) -> Address {
    let [a, b, c, d, e, f] = mac.0;
    Address::v6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Writes the advertisement at `l3`, to `destination`; the frame ends behind it.
pub(crate) fn advertise(
    frame: &mut Frame,
    l3: usize,
    destination: Address,
    mac: MacAddr,
    advert: &RouterAdvert,
) -> Option<()> {
    let source = Address::v6(advert.source);
    let envelope = Envelope { source, destination, protocol: protocol::ICMPV6, hops: 255, tos: 0 };
    envelope.write(frame, l3, advert.message_len())?;
    advert.write(frame.bytes_mut().get_mut(l3 + Ipv6Header::LEN..)?, mac);
    seal(frame)
}

/// Makes a router solicitation its answer: to the asker, or to all when it has no address yet (RFC 4861, 6.2.6).
pub(super) fn answer(frame: &mut Frame, mac: MacAddr, advert: &RouterAdvert) -> Option<()> {
    let headers = Headers::of(frame.bytes()).ok()??;
    let (sender, _) = stations(frame)?;
    let l3 = usize::from(headers.l3);
    let asker = RouterSolicit::new(&Ipv6::new(frame.bytes().get(l3..)?)?)?.src;
    let (to_mac, to) = if asker.is_unspecified() { ALL_NODES } else { (sender, asker.into()) };
    advertise(frame, l3, to, mac, advert)?;
    address(frame, mac, to_mac)
}
