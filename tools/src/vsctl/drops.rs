//! `vsctl drops`: every frame that came to nothing, with its reason, and whether the books balance.

use clap::Args;
use config::api::{DropRecord, Drops as DropsView, PortView, route};

use crate::client::read;
use crate::output::Table;
use crate::{Context, events, frame, output, units};

/// Shows the frames that were dropped and why; with -f each one as it happens, and the policy that dropped it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  vsctl drops\n  vsctl drops -f")]
pub(crate) struct Drops {
    /// Show dropped frames as they happen, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
}

impl Drops {
    /// Shows the counts, or follows.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        if self.follow {
            return events::follow(context, route::DROPS_FOLLOW, |value| Ok(line(&read(value)?))).await;
        }
        let drops = context.client.get(route::DROPS).await?;
        if context.json {
            return Ok(output::print_json(&drops)?);
        }
        let ports = read(&context.client.get(route::PORTS).await?)?;
        Ok(output::print(&format!("{}{}", report(&read(&drops)?), outside(&ports)))?)
    }
}

fn report(drops: &DropsView) -> String {
    let mut table = Table::new(&["REASON", "PORT", ">FRAMES", "MEANING"]);
    for drop in &drops.drops {
        let port = drop.port.clone().unwrap_or_default();
        table.row([drop.reason.clone(), port, units::count(drop.frames), drop.help.clone()]);
    }
    let l = &drops.ledger;
    let verdict = match l.balances() {
        true => "every frame is accounted for".to_owned(),
        // A snapshot of running workers is not taken at one instant: some frames are between two counters.
        false => format!(
            "{} frames between two counters; it must not stay so on a quiet switch",
            (l.received.wrapping_add(l.created)).abs_diff(l.sent + l.dropped + l.consumed + l.queued)
        ),
    };
    format!(
        "{}\nreceived {} + created {} = sent {} + dropped {} + consumed {} + queued {}: {verdict}\n",
        table.or("No drops."),
        l.received,
        l.created,
        l.sent,
        l.dropped,
        l.consumed,
        l.queued
    )
}

/// Returns what devices lost before or after the switch had it, empty when that is nothing.
fn outside(ports: &Vec<PortView>) -> String {
    let mut table =
        Table::new(&["PORT", ">BY THE KERNEL", ">NOT ACCEPTED", ">NO MEMORY", ">REFUSED BY THE DEVICE"]);
    let mut all = 0;
    for port in ports {
        let c = &port.counters;
        let lost = [c.rx_kernel_drops, c.rx_errors, c.rx_no_memory, c.tx_errors];
        if lost.iter().any(|count| *count > 0) {
            table.row([vec![port.config.name.clone()], lost.map(units::count).to_vec()].concat());
            all += lost.iter().sum::<u64>();
        }
    }
    if all == 0 {
        return String::new();
    }
    format!("\nLost outside the switch, by devices and queues that were full or refused:\n{}", table.lines())
}

fn line(record: &DropRecord) -> String {
    let port = record.port.as_deref().unwrap_or("-");
    let time = events::clock(record.time_ms * 1000);
    let reason = match &record.rule {
        Some(rule) => format!("{} ({rule})", record.reason),
        None => record.reason.clone(),
    };
    format!("{time} {port} {reason} {} B {}\n", record.len, frame::summary(&from_hex(&record.head)))
}

/// Reads as many whole octets as there are.
fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().map_while(|c| c.to_digit(16)).filter_map(|digit| u8::try_from(digit).ok()).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn drops(sent: u64) -> DropsView {
        serde_json::from_value(json!({
            "drops": [{"reason": "spoof", "help": "Source is not the port's own.", "port": "web", "frames": 12345}],
            "ledger": {"received": 10, "created": 2, "sent": sent, "dropped": 1, "consumed": 2, "queued": 0},
        }))
        .expect("drops as the daemon sends them")
    }

    #[test]
    fn report_names_reasons_and_balances() {
        assert_eq!(
            report(&drops(9)),
            "REASON  PORT  FRAMES  MEANING\n\
             spoof   web   12.3 k  Source is not the port's own.\n\n\
             received 10 + created 2 = sent 9 + dropped 1 + consumed 2 + queued 0: every frame is accounted for\n"
        );
    }

    #[test]
    fn report_says_what_is_missing() {
        assert!(report(&drops(4)).contains("5 frames between two counters"));
    }

    #[test]
    fn losses_of_devices_are_shown_when_there_are_any() {
        let port = |kernel: u64| -> PortView {
            serde_json::from_value(json!({
                "config": {"name": "web", "network": "front"}, "owner": "cli", "state": "up", "kind": "afxdp",
                "counters": {"rx_kernel_drops": kernel},
            }))
            .expect("a port as the daemon sends it")
        };
        assert_eq!(outside(&vec![port(0)]), "");
        assert!(outside(&vec![port(0), port(7660)]).ends_with(
            "PORT  BY THE KERNEL  NOT ACCEPTED  NO MEMORY  REFUSED BY THE DEVICE\n\
             web          7.66 k             0          0                      0\n"
        ));
    }

    #[test]
    fn a_dropped_frame_is_a_line() {
        let mut record: DropRecord = serde_json::from_value(json!({
            "time_ms": 1000, "port": "web", "reason": "spoof", "len": 60,
            "head": "02000000000202000000000108060001",
        }))
        .expect("a record as the daemon sends it");
        assert_eq!(
            line(&record),
            "00:00:01.000000 web spoof 60 B 02:00:00:00:00:01 > 02:00:00:00:00:02 ARP, cut\n"
        );
        record.reason = "policy".to_owned();
        record.rule = Some("front->mgmt:deny".to_owned());
        assert!(line(&record).contains(" web policy (front->mgmt:deny) 60 B "));
        assert_eq!(from_hex("0aFf1"), [10, 255]);
        assert_eq!(from_hex("0axx"), [10]);
    }
}
