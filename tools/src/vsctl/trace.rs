//! `vsctl trace`: what would become of a packet, and why.

use clap::Args;
use config::api::{TraceReply, TraceRequest, TraceVerdict, route};
use config::{Expression, Probe};

use crate::client::{read, with_query};
use crate::{Context, events};

/// Says what would become of a packet that a port sends, or what becomes of real ones: every stage, what it found, the verdict.
#[derive(Args, Debug)]
#[command(
    after_help = "Packets:\n  tcp|udp|sctp ADDRESS:PORT, icmp ADDRESS [TYPE], protocol/NUMBER ADDRESS; then, in any order,\n  from ADDRESS[:PORT], syn, ack, fin, rst, ttl N, len N, df\n\nExamples:\n  vsctl trace --from web tcp 10.2.0.5:22\n  vsctl trace --from web udp [fd00:2::5]:514 from [fd00:1::10]:5000 len 1400\n  vsctl trace --from web icmp 10.2.0.5 echo-request ttl 1\n  vsctl trace --live dst=10.2.0.5,dport=22"
)]
pub(crate) struct Trace {
    /// The port that sends the packet
    #[arg(long, value_name = "PORT", required_unless_present = "live")]
    from: Option<String>,
    /// Follow real packets that match EXPR, as src=10.1.0.5,proto=tcp,dport=80, until Ctrl-C
    #[arg(long, value_name = "EXPR", conflicts_with_all = ["from", "packet"])]
    live: Option<Expression>,
    /// The packet, as tcp 10.0.0.2:80; one word or several
    #[arg(required_unless_present = "live", num_args = 1.., value_name = "PACKET")]
    packet: Vec<String>,
}

/// The packet makes no sense: the command line is wrong.
fn parse(words: &[String]) -> Result<Probe, clap::Error> {
    use clap::CommandFactory;
    words.join(" ").parse().map_err(|error: config::probe::ProbeError| {
        crate::Cli::command().error(clap::error::ErrorKind::ValueValidation, error.to_string())
    })
}

impl Trace {
    /// Asks and shows.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        if let Some(expression) = self.live {
            let path = with_query(route::TRACE_LIVE, &[("match", Some(expression.to_string()))]);
            return events::follow(context, &path, |value| Ok(walk(&read(value)?))).await;
        }
        let packet = parse(&self.packet).unwrap_or_else(|error| error.exit());
        let request = TraceRequest { from: self.from.unwrap_or_default(), packet };
        let answer = context.client.post(route::TRACE, &serde_json::to_value(&request)?).await?;
        context.show(&answer, walk)
    }
}

fn walk(reply: &TraceReply) -> String {
    let mut text = format!("{} sends {}\n", reply.from, reply.packet);
    let width = reply.steps.iter().map(|step| step.stage.len()).max().unwrap_or(0);
    for step in &reply.steps {
        let mut stage = step.stage.as_str();
        if step.notes.is_empty() {
            text.push_str(&format!("  {stage:width$}  -\n"));
        }
        for note in &step.notes {
            text.push_str(&format!("  {stage:width$}  {note}\n"));
            stage = "";
        }
    }
    text.push_str(&verdict(reply));
    text
}

fn verdict(reply: &TraceReply) -> String {
    let mut line = match reply.verdict {
        TraceVerdict::Forward => "it leaves",
        TraceVerdict::Flood => "it is flooded to every other port of the network",
        TraceVerdict::Answer => "the switch answers it",
        TraceVerdict::Hold => "it waits",
        TraceVerdict::HandBack => "it goes to the host's own stack",
        TraceVerdict::Consume => "it ends here as meant",
        TraceVerdict::Drop => "it is DROPPED",
        TraceVerdict::Reject => "it is REJECTED, and its sender is told",
    }
    .to_owned();
    if let Some(to) = &reply.to {
        line.push_str(&format!(" by {to}"));
    }
    if let Some(becomes) = &reply.becomes {
        line.push_str(&format!(" as {becomes}"));
    }
    if let Some(reason) = &reply.reason {
        line.push_str(&format!(": {reason}"));
    }
    if let Some(rule) = &reply.rule {
        line.push_str(&format!(" by {rule}"));
    }
    if let Some(note) = &reply.note {
        line.push_str(&format!(" ({note})"));
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_trace_is_a_line_a_stage_and_the_verdict() {
        let reply: TraceReply = serde_json::from_value(json!({
            "from": "web", "packet": "tcp 10.2.0.5:22 syn from 10.1.0.10:40000",
            "steps": [{"stage": "guard"}, {"stage": "policy", "notes": ["rule 'ssh': Reject", "and so on"]}],
            "verdict": "reject", "reason": "policy", "rule": "ssh", "note": "A policy forbids it.",
        }))
        .expect("a trace as the daemon sends it");
        assert_eq!(
            walk(&reply),
            "web sends tcp 10.2.0.5:22 syn from 10.1.0.10:40000\n\
             \x20 guard   -\n\
             \x20 policy  rule 'ssh': Reject\n\
             \x20         and so on\n\
             it is REJECTED, and its sender is told: policy by ssh (A policy forbids it.)\n"
        );
        let reply: TraceReply = serde_json::from_value(json!({
            "verdict": "forward", "to": "eth0", "becomes": "203.0.113.2:50000 > 192.0.2.7:443",
        }))
        .expect("a trace as the daemon sends it");
        assert_eq!(verdict(&reply), "it leaves by eth0 as 203.0.113.2:50000 > 192.0.2.7:443\n");
    }
}
