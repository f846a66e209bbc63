//! `vsctl worker`: the threads that move frames.

use clap::{Args, Subcommand};
use config::Poll;
use config::api::{WorkerView, route};

use crate::output::{Table, join, pairs};
use crate::{Context, units};

/// Shows the threads that move frames.
#[derive(Debug, Subcommand)]
pub(crate) enum Worker {
    Show(Show),
}

/// Shows the workers, or everything about one.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  vsctl worker show\n  vsctl worker show 0")]
pub(crate) struct Show {
    /// The worker's number
    id: Option<u32>,
}

impl Worker {
    /// Shows.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self::Show(show) = self;
        let answer = context.client.get(route::WORKERS).await?;
        let Some(id) = show.id else { return context.show(&answer, table) };
        let one = answer.as_array().and_then(|all| all.iter().find(|worker| worker["id"] == id));
        let Some(one) = one else {
            anyhow::bail!("there is no worker {id}; `vsctl worker show` lists those that run");
        };
        context.show(one, details)
    }
}

/// Returns the workers as a table; `vsctl top` shows it too.
pub(crate) fn table(workers: &Vec<WorkerView>) -> String {
    let mut table = Table::new(&[
        "WORKER",
        ">CPU",
        "POLL",
        ">BUSY",
        ">RX/S",
        ">RX",
        ">TX/S",
        ">TX",
        ">BATCH",
        ">CACHE HITS",
        ">FLOWS",
        ">PORTS",
    ]);
    for worker in workers {
        table.row([
            worker.id.to_string(),
            worker.cpu.to_string(),
            poll(worker.poll).to_owned(),
            units::percent(worker.busy),
            units::rate(worker.rates.rx_frames),
            units::bits(worker.rates.rx_bits),
            units::rate(worker.rates.tx_frames),
            units::bits(worker.rates.tx_bits),
            mean_batch(&worker.batches),
            hit_share(worker),
            units::count(worker.cache_entries),
            worker.ports.len().to_string(),
        ]);
    }
    table.or("No workers.")
}

fn details(worker: &WorkerView) -> String {
    let turns: u64 = worker.batches.iter().sum();
    let batches: Vec<String> = worker
        .batches
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(index, count)| {
            let first = 1_u64 << index;
            let range = match index {
                0 => "1".to_owned(),
                _ if index + 1 == worker.batches.len() => format!("{first} and more"),
                _ => format!("{first}-{}", 2 * first - 1),
            };
            format!("{range:<12} {:>8} turns  {}", units::count(*count), share(*count, turns))
        })
        .collect();
    pairs(&[
        ("worker", worker.id.to_string()),
        ("cpu", worker.cpu.to_string()),
        ("poll", poll(worker.poll).to_owned()),
        ("busy", units::percent(worker.busy)),
        ("turns", format!("{}, {} of them moved nothing", worker.turns, worker.idle_turns)),
        ("waits", worker.waits.to_string()),
        ("rx", format!("{}/s, {}", units::rate(worker.rates.rx_frames), units::bits(worker.rates.rx_bits))),
        ("tx", format!("{}/s, {}", units::rate(worker.rates.tx_frames), units::bits(worker.rates.tx_bits))),
        ("batches", batches.join("\n")),
        (
            "flow cache",
            format!(
                "{} entries, {} hits, {} misses, {} hit",
                worker.cache_entries,
                worker.cache_hits,
                worker.cache_misses,
                hit_share(worker)
            ),
        ),
        ("ports", join(&worker.ports)),
    ])
}

fn poll(poll: Poll) -> &'static str {
    match poll {
        Poll::Adaptive => "adaptive",
        Poll::Busy => "busy",
        Poll::Interrupt => "interrupt",
    }
}

fn hit_share(worker: &WorkerView) -> String {
    match worker.cache_hits + worker.cache_misses {
        0 => String::new(),
        all => share(worker.cache_hits, all),
    }
}

fn share(part: u64, all: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    units::percent(part as f64 / all.max(1) as f64)
}

/// Returns the mean size of the batches that were not empty, from the middle of each class.
fn mean_batch(batches: &[u64]) -> String {
    let turns: u64 = batches.iter().sum();
    if turns == 0 {
        return String::new();
    }
    #[expect(clippy::cast_precision_loss, reason = "an estimate, shown as a whole number")]
    let frames: f64 = batches
        .iter()
        .enumerate()
        .map(
            |(index, count)| {
                if index == 0 { *count as f64 } else { 1.5 * (1_u64 << index) as f64 * *count as f64 }
            },
        )
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "an estimate, shown as a whole number")]
    let mean = frames / turns as f64;
    format!("{mean:.0}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view() -> WorkerView {
        serde_json::from_value(json!({
            "id": 0, "cpu": 1, "poll": "adaptive", "busy": 0.425, "turns": 1000, "idle_turns": 100, "waits": 5,
            "batches": [100, 0, 0, 0, 0, 300], "ports": ["a", "b"], "cache_hits": 990, "cache_misses": 10,
            "cache_entries": 4, "rates": {"rx_frames": 1.5e6, "rx_bits": 1e9, "tx_frames": 0.0, "tx_bits": 0.0},
        }))
        .expect("a worker as the daemon sends it")
    }

    #[test]
    fn table_shows_a_line_a_worker() {
        assert_eq!(
            table(&vec![view()]),
            "WORKER  CPU  POLL        BUSY    RX/S           RX  TX/S       TX  BATCH  CACHE HITS  FLOWS  PORTS\n\
             0         1  adaptive  42.5 %  1.50 M  1.00 Gbit/s     0  0 bit/s     36      99.0 %      4      2\n"
        );
    }

    #[test]
    fn details_show_the_batches_as_classes() {
        let text = details(&view());
        assert!(text.contains("batches     1                 100 turns  25.0 %\n"), "{text}");
        assert!(text.contains("            32 and more       300 turns  75.0 %\n"), "{text}");
        assert!(text.contains("ports       a b\n"), "{text}");
    }
}
