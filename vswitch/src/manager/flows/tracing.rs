//! Traces: what would become of a packet that a port sends.
//!
//! The frame is made of what was asked for, and walks the workers' stages over the workers' tables without any
//! effect ([`pipeline::trace`]).

use std::net::IpAddr;

use config::api::{TraceReply, TraceRequest, TraceStep, TraceVerdict};
use config::expression::Facts;
use config::probe::Probe;
use config::{Expression, Port};
use packet::{MacAddr, PortId, Tuple};
use pipeline::Snapshot;
use pipeline::trace::Verdict;

use super::probe;
use crate::compile::made_mac;
use crate::manager::Manager;
use crate::refusal::Refusal;

impl Manager {
    /// Says what would become of a packet.
    ///
    /// # Errors
    /// There is no such port, it has no device, or no address of the packet's family to send from.
    pub fn trace(&self, request: &TraceRequest) -> Result<TraceReply, Refusal> {
        let name = &request.from;
        let port = self.saved.intent.ports.get(name).ok_or_else(|| Refusal::unknown("port", name))?;
        let Some(attached) = self.ports.get(name) else {
            return Err(Refusal::conflict(format!("port '{name}' has no device")));
        };
        let Some(probe) = with_source(request.packet, &port.object) else {
            let family = if request.packet.to.is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(Refusal::input(format!(
                "port '{name}' has no {family} address to send from; 'from ADDRESS' in the packet gives one"
            )));
        };
        let destination = self.next_mac(&port.object, probe.to);
        let frame = probe::frame(&probe, attached.mac, destination);
        let snapshot = self.crew.snapshot();
        let (trace, verdict) = self.walk(&snapshot, &frame, attached.id);
        let steps = trace.steps.into_iter();
        let steps = steps.map(|step| TraceStep {
            stage: step.stage.to_owned(),
            notes: step.notes.iter().map(|note| self.named(note)).collect(),
        });
        let reply = TraceReply {
            from: name.clone(),
            packet: probe.to_string(),
            steps: steps.collect(),
            ..TraceReply::default()
        };
        Ok(self.verdict(verdict, reply))
    }

    /// Says what the stages say about a packet that came in by a port, if it matches. The workers have seen it by
    /// then: the first packet of a connection finds the connection that it made.
    pub fn trace_live(&self, wanted: &Expression, from: PortId, frame: &[u8]) -> Option<TraceReply> {
        let headers = pipeline::headers::Headers::of(frame).ok()??;
        let snapshot = self.crew.snapshot();
        let name = self.called_port(from).unwrap_or_else(|| "?".to_owned());
        let network =
            snapshot.port(from).and_then(|port| self.network_name(port.network)).unwrap_or_default();
        let facts = Facts {
            tuples: &[headers.tuple],
            networks: &[network],
            ports: &[&name],
            state: None,
            rule: None,
        };
        if !wanted.matches(&facts) {
            return None;
        }
        let (trace, verdict) = self.walk(&snapshot, frame, from);
        let steps = trace.steps.into_iter();
        let steps = steps.map(|step| TraceStep {
            stage: step.stage.to_owned(),
            notes: step.notes.iter().map(|note| self.named(note)).collect(),
        });
        let packet = format!("{}, {} bytes", headers.tuple, frame.len());
        Some(self.verdict(
            verdict,
            TraceReply { from: name, packet, steps: steps.collect(), ..TraceReply::default() },
        ))
    }

    pub(super) fn walk(
        &self,
        snapshot: &Snapshot,
        frame: &[u8],
        from: PortId,
    ) -> (pipeline::trace::Trace, Verdict) {
        pipeline::trace::trace(snapshot, self.crew.tables(), frame, from, packet::Instant::now())
    }

    /// Returns the MAC that a station behind `port` sends to: the neighbour's own, else the gateway's.
    fn next_mac(&self, port: &Port, to: IpAddr) -> MacAddr {
        let neighbor = self.ports.iter().find_map(|(name, attached)| {
            let other = &self.saved.intent.ports.get(name)?.object;
            (other.network == port.network && other.addresses.contains(&to)).then_some(attached.mac)
        });
        neighbor.unwrap_or_else(|| made_mac("gateway", &port.network))
    }

    fn verdict(&self, verdict: Verdict, reply: TraceReply) -> TraceReply {
        let spelled = |tuple: Tuple| {
            let end = |address: packet::Address, port: u16| match (address.is_v4(), port) {
                (_, 0) => address.to_string(),
                (true, port) => format!("{address}:{port}"),
                (false, port) => format!("[{address}]:{port}"),
            };
            format!(
                "{} > {}",
                end(tuple.source, tuple.source_port),
                end(tuple.destination, tuple.destination_port)
            )
        };
        match verdict {
            Verdict::Forward { to, becomes, mac } => TraceReply {
                verdict: TraceVerdict::Forward,
                to: Some(self.called_port(to).unwrap_or_else(|| "?".to_owned())),
                becomes: becomes.map(spelled),
                note: mac.map(|mac| format!("to station {mac}")),
                ..reply
            },
            Verdict::Flood => TraceReply { verdict: TraceVerdict::Flood, ..reply },
            Verdict::Answer(answer) => {
                let note = Some(format!("by {answer:?}"));
                TraceReply { verdict: TraceVerdict::Answer, note, ..reply }
            }
            Verdict::Hold(address) => {
                let note = Some(format!("until somebody says who has {address}"));
                TraceReply { verdict: TraceVerdict::Hold, note, ..reply }
            }
            Verdict::HandBack => TraceReply { verdict: TraceVerdict::HandBack, ..reply },
            Verdict::Consume => TraceReply { verdict: TraceVerdict::Consume, ..reply },
            Verdict::Drop { reason, because, told } => TraceReply {
                verdict: if told.is_some() { TraceVerdict::Reject } else { TraceVerdict::Drop },
                reason: Some(reason.name().to_owned()),
                rule: because.map(|because| because.to_string()),
                note: Some(reason.help().trim().to_owned()),
                ..reply
            },
        }
    }
}

/// Returns the packet as `port` would send it; `None` when it has no address of the family.
pub(super) fn with_source(probe: Probe, port: &Port) -> Option<Probe> {
    let own = || port.addresses.iter().copied().find(|address| address.is_ipv4() == probe.to.is_ipv4());
    probe.from.or_else(own).map(|source| probe::complete(probe, source))
}
