//! `vsctl top`: workers and ports as they go, refreshed.
//!
//! On a terminal the screen is redrawn from its upper left corner; on a dumb terminal, in a pipe and with
//! `--once`, tables follow one another. The rates are the daemon's own, so the first screen has them too.

use std::cmp::Reverse;
use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;
use config::api::{PortView, Status, WorkerView, route};
use serde_json::json;

use crate::client::read;
use crate::output::{Table, plural};
use crate::{Context, output, units, worker};

/// Shows what workers and ports do now, busiest ports first, refreshed until Ctrl-C.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  vsctl top\n  vsctl top --once")]
pub(crate) struct Top {
    /// Show it once and end
    #[arg(long)]
    once: bool,
    /// Time between two refreshes
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_interval)]
    interval: Duration,
    /// At most COUNT ports
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 20)]
    ports: usize,
}

impl Top {
    /// Shows until Ctrl-C, or once.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let redraw = !self.once
            && !context.json
            && io::stdout().is_terminal()
            && std::env::var("TERM").is_ok_and(|term| !term.is_empty() && term != "dumb");
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        loop {
            let status = context.client.get(route::STATUS).await?;
            let workers = context.client.get(route::WORKERS).await?;
            let ports = context.client.get(route::PORTS).await?;
            if context.json {
                output::print(&format!(
                    "{}\n",
                    json!({"status": status, "workers": workers, "ports": ports})
                ))?;
            } else {
                let text = screen(&read(&status)?, &read(&workers)?, read(&ports)?, self.ports);
                // Home, then clear to the end of each line and of the screen: nothing flickers.
                let text =
                    if redraw { format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")) } else { text };
                output::print(&text)?;
            }
            if self.once {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                _ = &mut interrupt => return Ok(()),
            }
        }
    }
}

fn screen(status: &Status, workers: &Vec<WorkerView>, mut ports: Vec<PortView>, at_most: usize) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a saturating sort key")]
    ports.sort_by_key(|port| Reverse((port.rates.rx_frames + port.rates.tx_frames) as u64));
    let mut table = Table::new(&["PORT", "NETWORK", "KIND", ">RX/S", ">RX", ">TX/S", ">TX", ">DROPS"]);
    for port in ports.iter().take(at_most) {
        table.row([
            port.config.name.clone(),
            port.config.network.clone(),
            port.kind.to_string(),
            units::rate(port.rates.rx_frames),
            units::bits(port.rates.rx_bits),
            units::rate(port.rates.tx_frames),
            units::bits(port.rates.tx_bits),
            units::count(port.counters.dropped),
        ]);
    }
    let more = match ports.len().saturating_sub(at_most) {
        0 => String::new(),
        more => format!("and {}\n", plural(more, "quieter port")),
    };
    let memory = &status.memory;
    format!(
        "{} up {}, {} of {} up, {} flows, memory {}, chunks free {} of {}\n\n{}\n{}{more}\n",
        status.name,
        units::seconds(status.uptime_seconds),
        status.counts.ports_up,
        plural(ports.len(), "port"),
        units::count(status.counts.flows),
        units::bytes(memory.rss_bytes),
        memory.small_free,
        memory.small_chunks,
        worker::table(workers),
        table.or("No ports."),
    )
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    match units::parse_duration(text)? {
        time if time >= Duration::from_millis(100) => Ok(time),
        _ => Err(format!("'{text}' is too short: at least 100ms is allowed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, rate: f64) -> PortView {
        serde_json::from_value(json!({
            "config": {"name": name, "network": "front"}, "owner": "file", "state": "up", "kind": "tap",
            "rates": {"rx_frames": rate, "rx_bits": 0.0, "tx_frames": 0.0, "tx_bits": 0.0},
        }))
        .expect("a port as the daemon sends it")
    }

    #[test]
    fn busiest_ports_come_first_and_the_rest_is_counted() {
        let ports = vec![port("slow", 1.0), port("fast", 9.0), port("idle", 0.0)];
        let text = screen(&Status::default(), &Vec::new(), ports, 2);
        let names: Vec<_> =
            text.lines().filter(|line| line.contains(" tap ")).map(|line| &line[..4]).collect();
        assert_eq!(names, ["fast", "slow"]);
        assert!(text.contains("\nand 1 quieter port\n"), "{text}");
    }

    #[test]
    fn interval_has_a_floor() {
        assert_eq!(parse_interval("2s"), Ok(Duration::from_secs(2)));
        assert!(parse_interval("10ms").is_err());
    }
}
