//! The decision of `decide.rs` once more, as plainly as it can be said.

use std::collections::HashMap;

use super::*;

/// What first fragments said of the ones behind them.
pub(super) type Notes = HashMap<(Address, Address, Vec<u8>, u8), bool>;

struct Ip {
    source: Address,
    destination: Address,
    protocol: u8,
    /// Identification, and the protocol as the fragment has it.
    fragment: (Vec<u8>, u8),
    /// 1: the first of several; 2: a later one.
    part: u8,
    at: usize,
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

fn v4(frame: &[u8], at: usize) -> Option<Ip> {
    let header = frame.get(at..at + 20)?;
    let words = usize::from(header[0] & 15);
    if header[0] >> 4 != 4 || words < 5 {
        return None;
    }
    let address = |at: usize| Address::v4(header[at..at + 4].try_into().expect("four"));
    let part = match be16(&header[6..]) {
        flags if flags & 0x1fff != 0 => 2,
        flags if flags & 0x2000 != 0 => 1,
        _ => 0,
    };
    Some(Ip {
        source: address(12),
        destination: address(16),
        protocol: header[9],
        fragment: (header[4..6].to_vec(), header[9]),
        part,
        at: at + 4 * words,
    })
}

fn v6(frame: &[u8], at: usize) -> Option<Ip> {
    let header = frame.get(at..at + 40)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let address = |at: usize| Address::v6(header[at..at + 16].try_into().expect("sixteen"));
    let mut ip = Ip {
        source: address(8),
        destination: address(24),
        protocol: header[6],
        fragment: (Vec::new(), 0),
        part: 0,
        at: at + 40,
    };
    for _ in 0..6 {
        let len = match ip.protocol {
            0 | 43 | 60 => 8 * (usize::from(frame.get(ip.at..ip.at + 2)?[1]) + 1),
            51 => 4 * (usize::from(frame.get(ip.at..ip.at + 2)?[1]) + 2),
            44 => {
                let header = frame.get(ip.at..ip.at + 8)?;
                ip.fragment = (header[4..].to_vec(), header[0]);
                let flags = be16(&header[2..]);
                if flags & 0xfff8 != 0 {
                    ip.part = 2;
                } else if flags & 1 != 0 {
                    ip.part = 1;
                }
                8
            }
            _ => break,
        };
        ip.protocol = frame[ip.at];
        ip.at += len;
        if ip.part == 2 {
            break;
        }
    }
    Some(ip)
}

/// Says whose a frame is; the notes are those of the frames before.
pub(super) fn whose(frame: &[u8], rules: &Rules, us: MacAddr, notes: &mut Notes) -> Reason {
    decide(frame, rules, us, notes).unwrap_or(Reason::Passed)
}

fn decide(frame: &[u8], rules: &Rules, us: MacAddr, notes: &mut Notes) -> Option<Reason> {
    let group = frame[0] & 1 != 0;
    if !group && frame[..6] != us.0 {
        return None;
    }
    let floating = |address: Address| rules.floating.contains(&address);
    let neighbour = |at: usize| -> Option<bool> {
        let message = frame.get(at..at + 24)?;
        let target = Address::v6(message[8..].try_into().expect("sixteen"));
        Some(matches!(message[0], 135 | 136) && floating(target))
    };
    let ip = match (be16(&frame[12..]), group) {
        (0x0806, _) => {
            let arp = frame.get(14..42)?;
            let address = |at: usize| Address::v4(arp[at..at + 4].try_into().expect("four"));
            let ours = arp[..4] == [0, 1, 8, 0] && (floating(address(24)) || floating(address(14)));
            return ours.then_some(Reason::Arp);
        }
        (0x86dd, true) => {
            let ours = frame.get(14..54)?[6] == 58 && neighbour(54)?;
            return ours.then_some(Reason::Neighbor);
        }
        (0x0800, false) => v4(frame, 14)?,
        (0x86dd, false) => v6(frame, 14)?,
        _ => return None,
    };
    let key = (ip.source, ip.destination, ip.fragment.0.clone(), ip.fragment.1);
    let known = |address: Address| {
        rules.snat.iter().any(|rule| rule.0 == address)
            || rules.published.iter().any(|rule| rule.0 == address)
            || rules.tunnels.iter().any(|rule| rule.0 == address)
    };
    let shared = known(ip.destination) && !floating(ip.destination);
    if shared && ip.part == 2 {
        return match notes.get(&key) {
            Some(true) => Some(Reason::Fragment),
            Some(false) => None,
            None => Some(Reason::LostFragment),
        };
    }
    // A packet that is too short to be decided leaves no note.
    let reason = match matches(frame, &ip, rules, ip.destination, true) {
        Ok(reason) => reason,
        Err(Short) => return None,
    };
    if ip.part == 1 && (shared || reason.is_some()) {
        notes.insert(key, reason.is_some());
    }
    reason
}

struct Short;

fn matches(
    frame: &[u8],
    ip: &Ip,
    rules: &Rules,
    ours: Address,
    arriving: bool,
) -> Result<Option<Reason>, Short> {
    let error = |reason| Ok(Some(if arriving { reason } else { Reason::IcmpError }));
    let get = |at: usize, len: usize| frame.get(at..at + len).ok_or(Short);
    if rules.floating.contains(&ours) {
        return error(Reason::Floating);
    }
    let has = |protocol: u8, port: u16| {
        let snat = [6, 17, 132, if ours.is_v4() { 1 } else { 58 }].contains(&protocol)
            && rules.snat.iter().any(|(address, ports)| *address == ours && ports.contains(&port));
        snat || rules
            .published
            .iter()
            .any(|(address, of, ports)| (*address, *of) == (ours, protocol) && ports.contains(&port))
    };
    let known = rules.snat.iter().any(|rule| rule.0 == ours)
        || rules.published.iter().any(|rule| rule.0 == ours)
        || rules.tunnels.iter().any(|rule| rule.0 == ours);
    if !known {
        let routed = rules.routed.iter().any(|prefix| prefix.contains(ours));
        return if routed { error(Reason::Routed) } else { Err(Short) };
    }
    if ip.part == 2 {
        return Ok(Some(Reason::IcmpError));
    }
    match ip.protocol {
        6 | 17 | 132 => {
            let to = be16(&get(ip.at, 4)?[2..]);
            let mut networks = rules.tunnels.iter().filter(|rule| (rule.0, rule.1) == (ours, to)).peekable();
            if ip.protocol == 17 && networks.peek().is_some() {
                let vni = |header: &[u8]| u32::from_be_bytes([0, header[4], header[5], header[6]]);
                let vni = frame.get(ip.at + 8..ip.at + 16).map(vni);
                if networks.any(|rule| vni.is_none_or(|vni| vni == rule.2)) {
                    return error(Reason::Vxlan);
                }
            }
            let ports = get(ip.at, 4)?;
            let port = be16(if arriving { &ports[2..] } else { ports });
            if has(ip.protocol, port) { error(Reason::Port) } else { Ok(None) }
        }
        protocol @ (1 | 58) => {
            let v6 = protocol == 58;
            let message = get(ip.at, 8)?;
            let echo = match (arriving, v6) {
                (true, false) => 0,
                (true, true) => 129,
                (false, false) => 8,
                (false, true) => 128,
            };
            if message[0] == echo {
                return if has(protocol, be16(&message[4..])) { error(Reason::Echo) } else { Ok(None) };
            }
            let is_error =
                if v6 { (1..=4).contains(&message[0]) } else { [3, 4, 11, 12].contains(&message[0]) };
            if arriving && is_error {
                let at = ip.at + 8;
                let about = if v6 { v6_of(frame, at) } else { v4(frame, at) }.ok_or(Short)?;
                return matches(frame, &about, rules, about.source, false);
            }
            if arriving && v6 && message[0] >= 135 {
                let message = get(ip.at, 24)?;
                let target = Address::v6(message[8..].try_into().expect("sixteen"));
                if matches!(message[0], 135 | 136) && rules.floating.contains(&target) {
                    return Ok(Some(Reason::Neighbor));
                }
            }
            Ok(None)
        }
        _ => Ok(None),
    }
}

fn v6_of(frame: &[u8], at: usize) -> Option<Ip> {
    v6(frame, at)
}
