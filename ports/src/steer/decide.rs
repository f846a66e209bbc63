//! The decision of the steering program: is this packet the switch's, or the host's?
//!
//! One generator makes it for both places, tc ingress (`Place::Tc`) and XDP (`Place::Xdp`); they differ in how bytes are
//! read and how a packet leaves. In words:
//!
//! 1. A packet with our mark was handed back by the switch: the mark goes, the packet passes. So does what has a VLAN
//!    tag or is for another station.
//! 2. ARP, and neighbour discovery to a group: the switch's when it is about a floating address.
//! 3. The address the packet is for: floating or in a routed prefix, all is the switch's; not in the tables, nothing is.
//! 4. On an address shared with the host: TCP, UDP and SCTP to a port in the tables, echo replies with an identifier in
//!    them, VXLAN with a port and a VNI in them, and ICMP errors about a packet that was sent from one of these, or
//!    with VXLAN of ours in it. The source port of VXLAN claims nothing. Of a packet that is too short for a VNI the
//!    port decides.
//! 5. The first fragment of a packet decides for those that follow, by a map; one that nothing is known of is the
//!    switch's, which hands back what it does not want.
//!
//! Bytes are copied to the stack by a helper instead of being read in place: a copy costs some 20 ns, but needs no
//! proof of bounds for the verifier and works on large packets in pieces. `R6` is the context, `R7` scratch that
//! survives calls and in the end the reason, `R8` where the walk through the headers is, `R9` what kind of fragment
//! the packet is.

use super::Reason;
use super::maps::Maps;
use crate::bpf::Map;
use crate::bpf::assembler::{
    Alu, Assembler, FP, Helper, If, Instruction, Label, R0, R1, R2, R3, R4, R6, R7, R8, R9, Register, W1, W2,
    W4, W8, Width,
};

/// Marks a packet that the switch hands back, from its redirection to the host's device until it arrives there.
pub(super) const MARK: i32 = 0x7673_7721;

/// What both action codes of tc and those of tcx mean by -1: the next program, if there is one, decides.
const TC_NEXT: i32 = -1;
const XDP_PASS: i32 = 2;

// struct __sk_buff
const SKB_MARK: i16 = 8;
const SKB_VLAN_PRESENT: i16 = 20;
// struct xdp_md
const XDP_RX_QUEUE_INDEX: i16 = 16;

// The stack.
const ETHERNET: i16 = -16;
const HEADER: i16 = -64;
const DETAIL: i16 = -80;
/// Key of the map of fragments: source, destination, identification, protocol.
const FRAGMENT: i16 = -120;
const FRAGMENT_ID: i16 = FRAGMENT + 32;
const FRAGMENT_PROTOCOL: i16 = FRAGMENT + 36;
/// Key of the maps of addresses (the first 16 bytes), ports (the first 20) and tunnels.
const OURS: i16 = -144;
const SELECTOR: i16 = OURS + 16;
const NETWORK: i16 = SELECTOR + 4;
const PROTOCOL: i16 = -148;
const INDEX: i16 = -152;
const STAMP: i16 = -160;
/// Key of the trie of routed prefixes.
const ROUTED: i16 = -184;

/// An address in the tables that is the switch's alone; the others are shared with the host.
pub(super) const FLOATING: u32 = 1;

/// In the place of a VNI: the port has networks of ours.
pub(super) const ANY_VNI: u32 = u32::MAX;

/// For so long fragments follow the first one (RFC 8200, 4.5: a minute; RFC 791: 15 s), in nanoseconds / 2^30.
const FRAGMENT_LIFE: i32 = 28;

const ETH_P_IP: [u8; 2] = [0x08, 0x00];
const ETH_P_ARP: [u8; 2] = [0x08, 0x06];
const ETH_P_IPV6: [u8; 2] = [0x86, 0xdd];

pub(super) const ICMP: i32 = 1;
pub(super) const TCP: i32 = 6;
pub(super) const UDP: i32 = 17;
pub(super) const ICMPV6: i32 = 58;
pub(super) const SCTP: i32 = 132;

/// Extension headers that are walked; a packet with more of them passes.
const EXTENSIONS: usize = 6;

/// Where the program runs and where it sends what is the switch's.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// tc ingress of a device, into a tap.
    Tc { tap: u32 },
    /// XDP of a device, into AF_XDP sockets; `all` takes every packet.
    Xdp { sockets: &'a Map, all: bool },
}

/// Which end of a packet is ours: of one that arrives its destination, of one that an ICMP error is about its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ours {
    Destination,
    Source,
}

struct Decision<'a> {
    a: Assembler,
    maps: &'a Maps,
    place: Place<'a>,
    /// `R7` has the reason.
    take: Label,
    /// The host's, as a packet that the tables were asked about; a first fragment leaves a note.
    leave: Label,
    pass: Label,
}

/// Makes the program for a device with the hardware address `mac`.
pub(super) fn assemble(maps: &Maps, mac: [u8; 6], place: Place<'_>) -> Vec<Instruction> {
    let mut a = Assembler::default();
    let (take, leave, pass) = (a.label(), a.label(), a.label());
    let mut decision = Decision { a, maps, place, take, leave, pass };
    match place {
        Place::Xdp { all: true, .. } => {
            decision.a.copy(R6, R1);
            decision.a.set(R7, Reason::Dedicated as i32);
        }
        _ => {
            decision.begin(mac);
            decision.end();
        }
    }
    decision.send();
    decision.a.finish()
}

/// Makes the program for the tap: what the switch sends has the device's address as its source and leaves by the device;
/// all else is handed back, and arrives at the device again.
pub(super) fn assemble_out(maps: &Maps, mac: [u8; 6], device: u32) -> Vec<Instruction> {
    const INGRESS: i32 = 1;
    const TC_DROP: i32 = 2;

    let mut a = Assembler::default();
    let (back, drop, go) = (a.label(), a.label(), a.label());
    a.copy(R6, R1);
    load_bytes(&mut a, Helper::SkbLoadBytes, ETHERNET, 6, |a| a.set(R2, 6));
    a.jump_if_failed(drop);
    let [high, low] = halves(mac);
    a.load(W4, R2, FP, ETHERNET);
    a.jump_if(R2, If::NotEqual, high, back);
    a.load(W2, R2, FP, ETHERNET + 4);
    a.jump_if(R2, If::NotEqual, low, back);
    a.set(R7, Reason::Sent as i32);
    a.set(R8, 0);
    a.jump(go);

    a.place(back);
    a.set(R2, MARK);
    a.store(W4, R6, SKB_MARK, R2);
    a.set(R7, Reason::HandedBack as i32);
    a.set(R8, INGRESS);

    a.place(go);
    count(&mut a, maps);
    a.set(R1, device.cast_signed());
    a.copy(R2, R8);
    a.call(Helper::Redirect);
    a.exit();
    a.place(drop);
    a.set(R0, TC_DROP);
    a.exit();
    a.finish()
}

/// The hardware address as two numbers, as loads of four and two bytes give them.
fn halves([a, b, c, d, e, f]: [u8; 6]) -> [i32; 2] {
    [i32::from_ne_bytes([a, b, c, d]), i32::from(u16::from_ne_bytes([e, f]))]
}

/// Copies `len` bytes of the packet, from the offset that `offset` leaves in `R2`, to the stack.
fn load_bytes(a: &mut Assembler, helper: Helper, to: i16, len: i32, offset: impl FnOnce(&mut Assembler)) {
    offset(a);
    a.copy(R1, R6);
    a.stack(R3, to);
    a.set(R4, len);
    a.call(helper);
}

/// Counts the reason in `R7`.
fn count(a: &mut Assembler, maps: &Maps) {
    let none = a.label();
    a.store(W4, FP, INDEX, R7);
    a.map(R1, &maps.counters);
    a.stack(R2, INDEX);
    a.call(Helper::MapLookup);
    a.jump_if_null(R0, none);
    // A CPU's own counter: nothing else runs on it meanwhile, since bottom halves are off.
    a.load(W8, R1, R0, 0);
    a.alu(Alu::Add, R1, 1);
    a.store(W8, R0, 0, R1);
    a.place(none);
}

impl Decision<'_> {
    /// Copies `len` bytes at `R8` plus `offset` to the stack; a packet that has not so many passes.
    fn load(&mut self, offset: i32, to: i16, len: i32) {
        self.load_or(self.pass, offset, to, len);
    }

    fn load_or(&mut self, short: Label, offset: i32, to: i16, len: i32) {
        let helper = match self.place {
            Place::Tc { .. } => Helper::SkbLoadBytes,
            Place::Xdp { .. } => Helper::XdpLoadBytes,
        };
        load_bytes(&mut self.a, helper, to, len, |a| {
            a.copy(R2, R8);
            a.alu(Alu::Add, R2, offset);
        });
        self.a.jump_if_failed(short);
    }

    fn take(&mut self, reason: Reason) {
        self.a.set(R7, reason as i32);
        self.a.jump(self.take);
    }

    /// `R0` = the entry of `map` for the key at `key`.
    fn look_up(&mut self, map: &Map, key: i16) {
        self.a.map(R1, map);
        self.a.stack(R2, key);
        self.a.call(Helper::MapLookup);
    }

    fn copy16(&mut self, to: i16, from: i16) {
        for at in [0, 8] {
            self.a.load(W8, R1, FP, from + at);
            self.a.store(W8, FP, to + at, R1);
        }
    }

    /// The IPv4 address at `from`, which may be unaligned, as an IPv4-mapped one.
    fn copy4(&mut self, to: i16, from: i16) {
        let a = &mut self.a;
        a.store_value(W8, FP, to, 0);
        a.store_value(W4, FP, to + 8, i32::from_ne_bytes([0, 0, 0xff, 0xff]));
        a.load(W2, R1, FP, from);
        a.store(W2, FP, to + 12, R1);
        a.load(W2, R1, FP, from + 2);
        a.store(W2, FP, to + 14, R1);
    }

    fn load_network(&mut self, width: Width, to: Register, from: i16) {
        self.a.load(width, to, FP, from);
        self.a.network_order(to, if width == W4 { 32 } else { 16 });
    }

    fn begin(&mut self, mac: [u8; 6]) {
        self.a.copy(R6, R1);
        self.a.set(R9, 0);
        match self.place {
            Place::Tc { .. } => {
                let fresh = self.a.label();
                self.a.load(W4, R2, R6, SKB_MARK);
                self.a.jump_if(R2, If::NotEqual, MARK, fresh);
                self.a.set(R2, 0);
                self.a.store(W4, R6, SKB_MARK, R2);
                self.a.set(R7, Reason::Returned as i32);
                count(&mut self.a, self.maps);
                self.a.set(R0, TC_NEXT);
                self.a.exit();
                self.a.place(fresh);
                self.a.load(W4, R2, R6, SKB_VLAN_PRESENT);
                self.a.jump_if(R2, If::NotEqual, 0, self.pass);
            }
            Place::Xdp { .. } => {}
        }
        self.a.set(R8, 0);
        self.load(0, ETHERNET, 14);
        self.a.set(R8, 14);

        let (unicast, group) = (self.a.label(), self.a.label());
        let [high, low] = halves(mac);
        self.a.load(W1, R2, FP, ETHERNET);
        self.a.jump_if(R2, If::AnyBit, 1, group);
        self.a.load(W4, R2, FP, ETHERNET);
        self.a.jump_if(R2, If::NotEqual, high, self.pass);
        self.a.load(W2, R2, FP, ETHERNET + 4);
        self.a.jump_if(R2, If::Equal, low, unicast);
        self.a.jump(self.pass);

        let kind = |kind: [u8; 2]| i32::from(u16::from_ne_bytes(kind));
        let (arp, group_v6, v4, v6) = (self.a.label(), self.a.label(), self.a.label(), self.a.label());
        self.a.place(group);
        self.a.load(W2, R2, FP, ETHERNET + 12);
        self.a.jump_if(R2, If::Equal, kind(ETH_P_ARP), arp);
        self.a.jump_if(R2, If::Equal, kind(ETH_P_IPV6), group_v6);
        self.a.jump(self.pass);
        self.a.place(unicast);
        self.a.load(W2, R2, FP, ETHERNET + 12);
        self.a.jump_if(R2, If::Equal, kind(ETH_P_IP), v4);
        self.a.jump_if(R2, If::Equal, kind(ETH_P_IPV6), v6);
        self.a.jump_if(R2, If::Equal, kind(ETH_P_ARP), arp);
        self.a.jump(self.pass);

        self.a.place(arp);
        self.arp();
        self.a.place(group_v6);
        self.load(0, HEADER, 40);
        self.a.load(W1, R2, FP, HEADER + 6);
        self.a.jump_if(R2, If::NotEqual, ICMPV6, self.pass);
        self.a.alu(Alu::Add, R8, 40);
        self.neighbour();
        self.a.jump(self.pass);

        let found = self.a.label();
        self.a.place(v4);
        self.v4(Ours::Destination, R9);
        self.a.jump(found);
        self.a.place(v6);
        self.v6(Ours::Destination, R9);
        self.a.place(found);
        self.match_packet(Ours::Destination, R9);
    }

    /// ARP whose target or sender is floating. The sender is, in an answer to the switch's own probe.
    fn arp(&mut self) {
        self.load(0, HEADER, 28);
        let start = i32::from_ne_bytes([0, 1, 8, 0]);
        self.a.load(W4, R2, FP, HEADER);
        self.a.jump_if(R2, If::NotEqual, start, self.pass);
        for address in [24, 14] {
            self.copy4(OURS, HEADER + address);
            self.take_if_floating(Reason::Arp);
        }
        self.a.jump(self.pass);
    }

    /// A solicitation or advertisement, at `R8`, whose target is floating. Falls through if it is not.
    fn neighbour(&mut self) {
        let (yes, no) = (self.a.label(), self.a.label());
        self.load(0, HEADER, 24);
        self.a.load(W1, R2, FP, HEADER);
        self.a.jump_if(R2, If::Equal, 135, yes);
        self.a.jump_if(R2, If::NotEqual, 136, no);
        self.a.place(yes);
        self.copy16(OURS, HEADER + 8);
        self.take_if_floating(Reason::Neighbor);
        self.a.place(no);
    }

    fn take_if_floating(&mut self, reason: Reason) {
        let no = self.a.label();
        let maps = self.maps;
        self.look_up(&maps.addresses, OURS);
        self.a.jump_if_null(R0, no);
        self.a.load(W4, R2, R0, 0);
        self.a.jump_if(R2, If::NotEqual, FLOATING.cast_signed(), no);
        self.take(reason);
        self.a.place(no);
    }

    /// Reads the IPv4 header at `R8`, and moves that behind it. Leaves the address that is ours, the protocol, and in
    /// `fragment` 1 for a first fragment and 2 for a later one.
    fn v4(&mut self, ours: Ours, fragment: Register) {
        let (whole, done) = (self.a.label(), self.a.label());
        self.load(0, HEADER, 20);
        self.a.load(W1, R1, FP, HEADER);
        self.a.copy(R2, R1);
        self.a.alu(Alu::ShiftRight, R2, 4);
        self.a.jump_if(R2, If::NotEqual, 4, self.pass);
        self.a.alu(Alu::And, R1, 15);
        self.a.jump_if(R1, If::Below, 5, self.pass);
        self.a.alu(Alu::ShiftLeft, R1, 2);
        self.a.alu_with(Alu::Add, R8, R1);
        self.a.load(W1, R2, FP, HEADER + 9);
        self.a.store(W4, FP, PROTOCOL, R2);
        match ours {
            Ours::Destination => {
                self.a.store(W4, FP, FRAGMENT_PROTOCOL, R2);
                self.a.load(W2, R2, FP, HEADER + 4);
                self.a.store(W4, FP, FRAGMENT_ID, R2);
                self.copy4(FRAGMENT, HEADER + 12);
                self.copy4(FRAGMENT + 16, HEADER + 16);
                self.copy4(OURS, HEADER + 16);
            }
            Ours::Source => self.copy4(OURS, HEADER + 12),
        }
        self.load_network(W2, R1, HEADER + 6);
        self.a.jump_if(R1, If::AnyBit, 0x1fff, done);
        self.a.jump_if(R1, If::AnyBit, 0x2000, whole);
        self.a.set(fragment, 0);
        let end = self.a.label();
        self.a.jump(end);
        self.a.place(whole);
        self.a.set(fragment, 1);
        self.a.jump(end);
        self.a.place(done);
        self.a.set(fragment, 2);
        self.a.place(end);
    }

    /// As `v4`, for the IPv6 header at `R8` and the extension headers behind it.
    fn v6(&mut self, ours: Ours, fragment: Register) {
        let end = self.a.label();
        self.load(0, HEADER, 40);
        self.a.load(W1, R1, FP, HEADER);
        self.a.alu(Alu::ShiftRight, R1, 4);
        self.a.jump_if(R1, If::NotEqual, 6, self.pass);
        self.a.alu(Alu::Add, R8, 40);
        self.a.load(W1, R2, FP, HEADER + 6);
        self.a.store(W4, FP, PROTOCOL, R2);
        match ours {
            Ours::Destination => {
                self.copy16(FRAGMENT, HEADER + 8);
                self.copy16(FRAGMENT + 16, HEADER + 24);
                self.copy16(OURS, HEADER + 24);
            }
            Ours::Source => self.copy16(OURS, HEADER + 8),
        }
        self.a.set(fragment, 0);
        for _ in 0..EXTENSIONS {
            let (option, authentication, split, behind) =
                (self.a.label(), self.a.label(), self.a.label(), self.a.label());
            self.a.load(W4, R1, FP, PROTOCOL);
            // Hop-by-hop options, routing, destination options.
            for header in [0, 43, 60] {
                self.a.jump_if(R1, If::Equal, header, option);
            }
            self.a.jump_if(R1, If::Equal, 44, split);
            self.a.jump_if(R1, If::Equal, 51, authentication);
            self.a.jump(end);

            self.a.place(option);
            self.load(0, DETAIL, 2);
            self.a.load(W1, R2, FP, DETAIL + 1);
            self.a.alu(Alu::Add, R2, 1);
            self.a.alu(Alu::ShiftLeft, R2, 3);
            self.a.alu_with(Alu::Add, R8, R2);
            self.a.jump(behind);

            self.a.place(authentication);
            self.load(0, DETAIL, 2);
            self.a.load(W1, R2, FP, DETAIL + 1);
            self.a.alu(Alu::Add, R2, 2);
            self.a.alu(Alu::ShiftLeft, R2, 2);
            self.a.alu_with(Alu::Add, R8, R2);
            self.a.jump(behind);

            self.a.place(split);
            self.load(0, DETAIL, 8);
            self.a.alu(Alu::Add, R8, 8);
            if ours == Ours::Destination {
                self.a.load(W1, R2, FP, DETAIL);
                self.a.store(W4, FP, FRAGMENT_PROTOCOL, R2);
                self.a.load(W4, R2, FP, DETAIL + 4);
                self.a.store(W4, FP, FRAGMENT_ID, R2);
            }
            let (later, first) = (self.a.label(), self.a.label());
            self.load_network(W2, R1, DETAIL + 2);
            self.a.jump_if(R1, If::AnyBit, 0xfff8, later);
            self.a.jump_if(R1, If::AnyBit, 1, first);
            // All in one fragment (RFC 8200, 4.5): as if it were none.
            self.a.jump(behind);
            self.a.place(later);
            self.a.load(W1, R1, FP, DETAIL);
            self.a.store(W4, FP, PROTOCOL, R1);
            self.a.set(fragment, 2);
            self.a.jump(end);
            self.a.place(first);
            self.a.set(fragment, 1);

            self.a.place(behind);
            self.a.load(W1, R1, FP, DETAIL);
            self.a.store(W4, FP, PROTOCOL, R1);
        }
        self.a.place(end);
    }

    /// Decides about a packet whose headers were read, which ends the program.
    fn match_packet(&mut self, ours: Ours, fragment: Register) {
        let maps = self.maps;
        let arriving = ours == Ours::Destination;
        let reason = |reason| if arriving { reason } else { Reason::IcmpError };
        let (unknown, shared, ports, echo) = (self.a.label(), self.a.label(), self.a.label(), self.a.label());

        self.look_up(&maps.addresses, OURS);
        self.a.jump_if_null(R0, unknown);
        self.a.load(W4, R2, R0, 0);
        self.a.jump_if(R2, If::NotEqual, FLOATING.cast_signed(), shared);
        self.take(reason(Reason::Floating));

        self.a.place(unknown);
        self.a.store_value(W4, FP, ROUTED, 128);
        // The key of the trie is 20 bytes: not aligned for copies of eight.
        for at in [0, 4, 8, 12] {
            self.a.load(W4, R1, FP, OURS + at);
            self.a.store(W4, FP, ROUTED + 4 + at, R1);
        }
        self.look_up(&maps.routed, ROUTED);
        self.a.jump_if_null(R0, self.pass);
        self.take(reason(Reason::Routed));

        self.a.place(shared);
        let has_ports = self.a.label();
        self.a.jump_if(fragment, If::NotEqual, 2, has_ports);
        if arriving {
            self.follow_first_fragment();
        } else {
            self.take(Reason::IcmpError);
        }
        self.a.place(has_ports);
        self.a.load(W4, R1, FP, PROTOCOL);
        for protocol in [TCP, UDP, SCTP] {
            self.a.jump_if(R1, If::Equal, protocol, ports);
        }
        let icmp_type = |v6: bool| match (arriving, v6) {
            // Echo replies arrive, and echo requests are what errors are about.
            (true, false) => 0,
            (true, true) => 129,
            (false, false) => 8,
            (false, true) => 128,
        };
        let errors = self.a.label();
        let (icmp, icmpv6) = (self.a.label(), self.a.label());
        self.a.jump_if(R1, If::Equal, ICMP, icmp);
        self.a.jump_if(R1, If::Equal, ICMPV6, icmpv6);
        self.a.jump(self.leave);

        // An ICMP error holds at least eight bytes of what the packet carried (RFC 792): types, ports, identifiers.
        self.a.place(icmp);
        self.load(0, DETAIL, 8);
        self.a.load(W1, R1, FP, DETAIL);
        self.a.jump_if(R1, If::Equal, icmp_type(false), echo);
        if arriving {
            for error in [3, 4, 11, 12] {
                self.a.jump_if(R1, If::Equal, error, errors);
            }
        }
        self.a.jump(self.leave);
        self.a.place(icmpv6);
        self.load(0, DETAIL, 8);
        self.a.load(W1, R1, FP, DETAIL);
        self.a.jump_if(R1, If::Equal, icmp_type(true), echo);
        if arriving {
            for error in [1, 2, 3, 4] {
                self.a.jump_if(R1, If::Equal, error, errors);
            }
            let other = self.a.label();
            self.a.jump_if(R1, If::Below, 135, other);
            self.neighbour();
            self.a.place(other);
        }
        self.a.jump(self.leave);

        self.a.place(echo);
        self.load_network(W2, R7, DETAIL + 4);
        self.take_if_port(reason(Reason::Echo));
        self.a.jump(self.leave);

        self.a.place(ports);
        self.vxlan(reason(Reason::Vxlan));
        self.load(0, DETAIL, 4);
        self.load_network(W2, R7, if arriving { DETAIL + 2 } else { DETAIL });
        self.take_if_port(reason(Reason::Port));
        self.a.jump(self.leave);

        if arriving {
            self.a.place(errors);
            let (v4, v6, embedded) = (self.a.label(), self.a.label(), self.a.label());
            self.a.alu(Alu::Add, R8, 8);
            self.a.load(W4, R1, FP, PROTOCOL);
            self.a.jump_if(R1, If::Equal, ICMPV6, v6);
            self.a.place(v4);
            self.v4(Ours::Source, R7);
            self.a.jump(embedded);
            self.a.place(v6);
            self.v6(Ours::Source, R7);
            self.a.place(embedded);
            self.match_packet(Ours::Source, R7);
        }
    }

    /// Takes VXLAN of our networks. Falls through if it is none. `R1` is the protocol.
    fn vxlan(&mut self, reason: Reason) {
        let maps = self.maps;
        let (ours, no) = (self.a.label(), self.a.label());
        self.a.jump_if(R1, If::NotEqual, UDP, no);
        self.load(0, DETAIL, 4);
        self.load_network(W2, R1, DETAIL + 2);
        self.a.store(W4, FP, SELECTOR, R1);
        self.a.store_value(W4, FP, NETWORK, ANY_VNI.cast_signed());
        self.look_up(&maps.tunnels, OURS);
        self.a.jump_if_null(R0, no);
        // Flags are not looked at: whose a packet with a wrong one is, its VNI says as well. An error may hold no more
        // than ports (RFC 792); the host's tunnels, if there are any at this port, would make little of it either.
        self.load_or(ours, 8, DETAIL, 8);
        self.load_network(W4, R1, DETAIL + 4);
        self.a.alu(Alu::ShiftRight, R1, 8);
        self.a.store(W4, FP, NETWORK, R1);
        self.look_up(&maps.tunnels, OURS);
        self.a.jump_if_null(R0, no);
        self.a.place(ours);
        self.take(reason);
        self.a.place(no);
    }

    /// Takes the packet if the port in `R7` is set in the map, for our address and its protocol.
    fn take_if_port(&mut self, reason: Reason) {
        let maps = self.maps;
        let no = self.a.label();
        self.a.load(W4, R1, FP, PROTOCOL);
        self.a.store(W4, FP, SELECTOR, R1);
        self.look_up(&maps.ports, OURS);
        self.a.jump_if_null(R0, no);
        self.a.alu(Alu::And, R7, 0xffff);
        self.a.copy(R1, R7);
        self.a.alu(Alu::ShiftRight, R1, 3);
        self.a.alu_with(Alu::Add, R0, R1);
        self.a.load(W1, R1, R0, 0);
        self.a.alu(Alu::And, R7, 7);
        self.a.alu_with(Alu::ShiftRight, R1, R7);
        let yes = self.a.label();
        self.a.jump_if(R1, If::AnyBit, 1, yes);
        self.a.jump(no);
        self.a.place(yes);
        self.take(reason);
        self.a.place(no);
    }

    /// Decides about a fragment that is not the first.
    fn follow_first_fragment(&mut self) {
        let maps = self.maps;
        let (unknown, ours) = (self.a.label(), self.a.label());
        self.look_up(&maps.fragments, FRAGMENT);
        self.a.jump_if_null(R0, unknown);
        self.a.load(W8, R7, R0, 0);
        self.a.call(Helper::Time);
        self.a.alu(Alu::ShiftRight, R0, 30);
        self.a.copy(R1, R7);
        self.a.alu(Alu::ShiftRight, R1, 1);
        self.a.alu(Alu::Add, R1, FRAGMENT_LIFE);
        // An old one has the same identification by chance.
        self.a.jump_if_both(R0, If::AtLeast, R1, unknown);
        self.a.jump_if(R7, If::AnyBit, 1, ours);
        self.a.jump(self.pass);
        self.a.place(ours);
        self.take(Reason::Fragment);
        self.a.place(unknown);
        self.take(Reason::LostFragment);
    }

    /// Leaves a note for the fragments behind a first one.
    fn remember(&mut self, taken: i32) {
        let maps = self.maps;
        let no = self.a.label();
        self.a.jump_if(R9, If::NotEqual, 1, no);
        self.a.call(Helper::Time);
        self.a.alu(Alu::ShiftRight, R0, 30);
        self.a.alu(Alu::ShiftLeft, R0, 1);
        self.a.alu(Alu::Or, R0, taken);
        self.a.store(W8, FP, STAMP, R0);
        self.a.map(R1, &maps.fragments);
        self.a.stack(R2, FRAGMENT);
        self.a.stack(R3, STAMP);
        self.a.set(R4, 0);
        self.a.call(Helper::MapUpdate);
        self.a.place(no);
    }

    fn end(&mut self) {
        self.a.place(self.leave);
        self.remember(0);
        self.a.place(self.pass);
        self.a.set(R7, Reason::Passed as i32);
        count(&mut self.a, self.maps);
        self.a.set(R0, if matches!(self.place, Place::Tc { .. }) { TC_NEXT } else { XDP_PASS });
        self.a.exit();

        self.a.place(self.take);
        self.remember(1);
    }

    /// Sends the packet to the switch; `R7` has the reason.
    fn send(&mut self) {
        const XDP_DROP: i32 = 1;

        count(&mut self.a, self.maps);
        match self.place {
            Place::Tc { tap } => {
                self.a.set(R1, tap.cast_signed());
                self.a.set(R2, 0);
                self.a.call(Helper::Redirect);
            }
            Place::Xdp { sockets, .. } => {
                self.a.load(W4, R2, R6, XDP_RX_QUEUE_INDEX);
                self.a.map(R1, sockets);
                // A queue without a socket: nobody is there to take it, and it is not the host's.
                self.a.set(R3, XDP_DROP);
                self.a.call(Helper::RedirectMap);
            }
        }
        self.a.exit();
    }
}
