//! Makes the rows of a [`PolicySet`] from its rules.
//!
//! Ports and prefixes are swept from the lowest to the highest: where a range of some rule begins or ends, another row
//! begins, and differs from the one before in the bits of those rules only. Identities are taken by the lists that
//! rules have of them, of which there are far fewer than rules.

use hashbrown::HashMap;
use packet::Prefix;

use super::rows::Drawing;
use super::{Action, DETAIL_KNOWN, ICMP, Identity, PROTOCOL_SHIFT, Peer, PolicySet, Rule, Service, Side};
use crate::fib::{Fib, Key, Ranges, Span, Steps, prefix_span_v4, prefix_span_v6};

/// One direction of a rule: what has a bit.
struct Way<'a> {
    rule: u32,
    from: &'a Peer,
    to: &'a Peer,
    services: &'a [Service],
}

pub(super) fn build(rules: Vec<Rule>) -> PolicySet {
    if rules.is_empty() {
        // Without services, nothing else is ever looked up.
        return PolicySet::default();
    }
    let mut ranked: Vec<_> = (0u32..).zip(&rules).collect();
    ranked.sort_by_key(|(_, rule)| (rule.priority, rule.action == Action::Allow));
    let mut ways = Vec::new();
    for (number, rule) in ranked {
        let Rule { from, to, services, .. } = rule;
        ways.push(Way { rule: number, from, to, services });
        if rule.both_ways && from != to {
            ways.push(Way { rule: number, from: to, to: from, services });
        }
    }
    let named = |peer: &Peer| matches!(peer, Peer::Identities(_));
    let concerns_all = ways.iter().any(|way| !named(way.from) && !named(way.to));
    let mut drawing = Drawing::new(ways.len());
    let from = side(&ways, &mut drawing, |way| way.from);
    let to = side(&ways, &mut drawing, |way| way.to);
    let services = services(&ways, &mut drawing);
    let bits = ways.iter().map(|way| way.rule).collect();
    PolicySet { bits, rows: drawing.finish(), from, to, services, concerns_all, rules }
}

fn side<'a>(ways: &[Way<'a>], drawing: &mut Drawing, peer: impl Fn(&Way<'a>) -> &'a Peer) -> Side {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (bit, way) in (0u32..).zip(ways) {
        let Peer::Prefixes(prefixes) = peer(way) else { continue };
        let (short, long): (Vec<&Prefix>, Vec<_>) = prefixes.iter().partition(|prefix| prefix.is_v4());
        v4.extend(short.into_iter().map(|prefix| prefix_span_v4(*prefix, bit)));
        v6.extend(long.into_iter().map(|prefix| prefix_span_v6(*prefix, bit)));
    }
    let prefixes = Fib::from_steps(sweep(&v4, ways.len(), drawing), &sweep(&v6, ways.len(), drawing));
    let (identities, others) = identities(ways, drawing, peer);
    Side { identities, others, prefixes }
}

/// Returns the rows by identity, and that of all who are not named.
fn identities<'a>(
    ways: &[Way<'a>],
    drawing: &mut Drawing,
    peer: impl Fn(&Way<'a>) -> &'a Peer,
) -> (Box<[u32]>, u32) {
    drawing.clear();
    let mut lists: HashMap<&[Identity], Vec<usize>> = HashMap::new();
    for (bit, way) in ways.iter().enumerate() {
        match peer(way) {
            Peer::Any => drawing.draw(bit, true),
            Peer::Identities(list) => lists.entry(list).or_default().push(bit),
            Peer::Prefixes(_) => {}
        }
    }
    let others = drawing.keep();
    let (lists, bits): (Vec<_>, Vec<_>) = lists.into_iter().unzip();
    let mut members: Vec<(Identity, usize)> = lists
        .iter()
        .enumerate()
        .flat_map(|(list, identities)| identities.iter().map(move |identity| (*identity, list)))
        .collect();
    members.sort_unstable();
    members.dedup();
    let len = members.last().map_or(0, |(identity, _)| identity.0 as usize + 1);
    let mut rows = vec![others; len];
    let mut known: HashMap<Vec<usize>, u32> = HashMap::new();
    for group in members.chunk_by(|a, b| a.0 == b.0) {
        let lists: Vec<_> = group.iter().map(|(_, list)| *list).collect();
        let row = known.entry(lists).or_insert_with_key(|lists| {
            let mut all = |on| {
                lists.iter().flat_map(|list| &bits[*list]).for_each(|bit| drawing.draw(*bit, on));
                drawing.keep()
            };
            let row = all(true);
            all(false);
            row
        });
        rows[group[0].0.0 as usize] = *row;
    }
    (rows.into(), others)
}

fn services(ways: &[Way<'_>], drawing: &mut Drawing) -> Ranges<u32> {
    let mut spans = Vec::new();
    for (bit, way) in (0u32..).zip(ways) {
        let mut add = |first: u32, last: u32| spans.push(Span { first, last, value: bit });
        let whole = |protocol: u8| {
            let first = u32::from(protocol) << PROTOCOL_SHIFT;
            (first, first | ((1 << PROTOCOL_SHIFT) - 1))
        };
        let detail = |protocol, detail: u16| whole(protocol).0 | DETAIL_KNOWN | u32::from(detail);
        for service in way.services {
            match *service {
                Service::Any => add(0, whole(u8::MAX).1),
                Service::Protocol(protocol) => add(whole(protocol).0, whole(protocol).1),
                Service::Ports { protocol, first, last } => {
                    if first <= last && !ICMP.contains(&protocol) {
                        add(detail(protocol, first), detail(protocol, last));
                    }
                }
                Service::Icmp { v6, kind, code } => {
                    let of = ICMP[usize::from(v6)];
                    let message = |kind, code| detail(of, u16::from_be_bytes([kind, code]));
                    match (kind, code) {
                        (None, None) => add(whole(of).0, whole(of).1),
                        (Some(kind), None) => add(message(kind, 0), message(kind, u8::MAX)),
                        (Some(kind), Some(code)) => add(message(kind, code), message(kind, code)),
                        (None, Some(code)) => {
                            (0..=u8::MAX).for_each(|kind| add(message(kind, code), message(kind, code)));
                        }
                    }
                }
            }
        }
    }
    Ranges::new(sweep(&spans, ways.len(), drawing))
}

/// Returns where which row begins, when the value of a span is a bit. Spans may overlap, of one bit too.
fn sweep<K: Key>(spans: &[Span<K>], bits: usize, drawing: &mut Drawing) -> Steps<K> {
    let mut steps = Steps::default();
    // At one place what begins comes before what ends, so that no count falls below zero.
    let begins = spans.iter().map(|span| (span.first, false, span.value));
    let ends = spans.iter().filter_map(|span| Some((span.last.next()?, true, span.value)));
    let mut events: Vec<_> = begins.chain(ends).collect();
    events.sort_unstable();
    drawing.clear();
    let mut counts = vec![0u32; bits];
    for group in events.chunk_by(|a, b| a.0 == b.0) {
        for (_, ends, bit) in group {
            let bit = *bit as usize;
            counts[bit] = if *ends { counts[bit] - 1 } else { counts[bit] + 1 };
            drawing.draw(bit, counts[bit] > 0);
        }
        steps.push(group[0].0, drawing.keep());
    }
    steps
}
