//! `vsctl connection`: who talks to whom.

use clap::{Args, Subcommand};
use config::Expression;
use config::api::{ConnectionView, Flushed, Traffic, TupleView, route};
use config::expression::protocol_name;

use crate::client::with_query;
use crate::output::{Table, plural};
use crate::{Context, units};

/// Shows and ends connections.
#[derive(Debug, Subcommand)]
pub(crate) enum Connection {
    List(List),
    Flush(Flush),
}

/// Lists the connections, those with the most bytes first.
#[derive(Args, Debug)]
#[command(
    after_help = "Fields: src, dst, addr (addresses or prefixes), sport, dport (L4 ports or ranges), proto, network, port,\nstate, rule; = or !=, joined by commas.\n\nExamples:\n  vsctl connection list -n 20\n  vsctl connection list --match src=10.1.0.5,proto=tcp,dport=80,state!=established"
)]
pub(crate) struct List {
    /// Only those that it matches
    #[arg(long = "match", value_name = "EXPR")]
    expression: Option<Expression>,
    /// At most COUNT connections
    #[arg(short = 'n', long, value_name = "COUNT")]
    limit: Option<u32>,
}

/// Ends connections: all, or those that match; a packet that comes later begins a new one, if it may.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl connection flush --match port=web,dport=443")]
pub(crate) struct Flush {
    /// Only those that it matches
    #[arg(long = "match", value_name = "EXPR")]
    expression: Option<Expression>,
}

fn path(expression: Option<&Expression>, limit: Option<u32>) -> String {
    let pairs = [("match", expression.map(ToString::to_string)), ("limit", limit.map(|n| n.to_string()))];
    with_query(route::CONNECTIONS, &pairs)
}

impl Connection {
    /// Does what was asked for.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::List(only) => {
                let answer = context.client.get(&path(only.expression.as_ref(), only.limit)).await?;
                context.show(&answer, list)
            }
            Self::Flush(only) => {
                let answer = context.client.delete(&path(only.expression.as_ref(), None)).await?;
                context.show(&answer, |flushed: &Flushed| {
                    let count = flushed.entries.try_into().unwrap_or(usize::MAX);
                    format!("{} ended\n", plural(count, "connection"))
                })
            }
        }
    }
}

/// Returns both ends of a packet, with the network.
fn ends(tuple: &TupleView) -> String {
    let end = |address: std::net::IpAddr, port: u16| match (address.is_ipv4(), port) {
        (_, 0) => address.to_string(),
        (true, port) => format!("{address}:{port}"),
        (false, port) => format!("[{address}]:{port}"),
    };
    let TupleView { network, source, source_port, destination, destination_port } = tuple;
    format!("{network} {} > {}", end(*source, *source_port), end(*destination, *destination_port))
}

fn list(connections: &Vec<ConnectionView>) -> String {
    let mut table = Table::new(&[
        "PROTO",
        "STATE",
        "AS IT CAME",
        "ANSWERS COME AS",
        "FROM",
        "TO",
        "BY",
        ">SENT",
        ">RECEIVED",
        ">AGE",
        ">EXPIRES",
    ]);
    let traffic =
        |traffic: &Traffic| format!("{} / {}", units::count(traffic.packets), units::bytes(traffic.bytes));
    for view in connections {
        let by = [view.rule.as_deref(), view.translation.as_deref()];
        let by: Vec<&str> = by.into_iter().flatten().collect();
        table.row([
            protocol_name(view.protocol),
            view.state.name().to_owned(),
            ends(&view.original),
            ends(&view.reply),
            view.from.clone().unwrap_or_default(),
            view.to.clone().unwrap_or_default(),
            by.join(", "),
            traffic(&view.sent),
            traffic(&view.received),
            units::seconds(view.age_seconds),
            units::seconds(view.expires_seconds),
        ]);
    }
    table.or("No connections.")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_connection_is_a_line_with_both_its_forms() {
        let views: Vec<ConnectionView> = serde_json::from_value(json!([{
            "protocol": 6, "state": "established",
            "original": {"network": "front", "source": "10.1.0.5", "source_port": 4000,
                         "destination": "192.0.2.7", "destination_port": 443},
            "reply": {"network": "outside", "source": "192.0.2.7", "source_port": 443,
                      "destination": "203.0.113.2", "destination_port": 50000},
            "from": "web", "to": "eth0", "rule": "p", "sent": {"packets": 3, "bytes": 2048},
            "received": {"packets": 2, "bytes": 100}, "age_seconds": 75, "expires_seconds": 7200,
        }]))
        .expect("connections as the daemon sends them");
        let text = list(&views);
        let line = text.lines().nth(1).expect("a line");
        for part in [
            "tcp    established  front 10.1.0.5:4000 > 192.0.2.7:443  outside 192.0.2.7:443 > 203.0.113.2:50000",
            "web   eth0  p",
            "3 / 2.00 KiB",
            "1 min 15 s",
            "2 h 0 min",
        ] {
            assert!(line.contains(part), "no '{part}' in\n{text}");
        }
        assert_eq!(list(&Vec::new()), "No connections.\n");
    }

    #[test]
    fn an_expression_becomes_the_query() {
        let expression: Expression = "src=10.1.0.5,dport!=80".parse().expect("good");
        assert_eq!(
            path(Some(&expression), Some(5)),
            "/v1/connections?match=src%3D10.1.0.5%2Cdport%21%3D80&limit=5"
        );
        assert_eq!(path(None, None), "/v1/connections");
    }
}
