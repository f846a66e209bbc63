//! Prints the figures with their ratios, and the targets of DESIGN.md section 9 with what was reached.

use std::collections::BTreeMap;

use crate::outside::table as outside;
use crate::overlay::table as overlay;
use crate::subjects::{Ends, Subject};
use crate::{Results, Row};

/// Prints everything that was measured.
pub(crate) fn print(results: &Results) {
    let of = |key: &str| results.machine.get(key).cloned().unwrap_or_default();
    println!("\n{} x{}, kernel {}, {}", of("cpu"), of("cpus"), of("kernel"), of("date"));
    println!("Medians of the rounds, (least - most). Ratios are medians of each round's ratio.");
    println!(
        "x bare: to the bare loop over the same kind of port. Load of the machine at the start: {}",
        of("load")
    );
    let load = of("load").split(' ').next().and_then(|load| load.parse::<f64>().ok());
    if load.is_some_and(|load| load > 0.7) {
        println!("THE MACHINE WAS NOT IDLE: trust neither figures nor ratios, least of all p99.");
    }
    tcp(results);
    rate(results);
    latency(results);
    idle(results);
    ports(results);
    outside::print(results);
    overlay::print(results);
    for (subject, why) in &results.failures {
        println!("\nnot measured: {subject}: {why}");
    }
}

fn has(results: &Results, row: Row) -> bool {
    results.samples.iter().any(|sample| sample.row == row)
}

fn tcp(results: &Results) {
    if !has(results, Row::Tcp) {
        return;
    }
    println!("\nTCP, one flow, Gbit/s{:53}x bare  x bridge  x OVS", "");
    for subject in Subject::ALL {
        let Some(all) = Spread::of(results, subject, Row::Tcp, "gigabits") else { continue };
        let ratio = |other| ratio(results, subject, other, Row::Tcp, "gigabits", "gigabits");
        let (bare, bridge) = (ratio(subject.bare()), ratio(Some(Subject::Bridge)));
        let targets = match subject {
            Subject::Vswitch(Ends::Tap) => tcp_target(bare, bridge, 0.9),
            Subject::Vswitch(Ends::Veth) => tcp_target(bare, bridge, 0.85),
            _ => String::new(),
        };
        println!(
            "  {:48}{:6.2} ({:5.2} - {:5.2})  {}  {}    {}  {targets}",
            subject.title(),
            all.median,
            all.least,
            all.most,
            shown(bare),
            shown(bridge),
            shown(ratio(subject.ovs())),
        );
    }
}

fn tcp_target(bare: Option<f64>, bridge: Option<f64>, least: f64) -> String {
    format!(
        "bare >= 0.97: {}, bridge >= {least}: {}, stretch 1.0: {}",
        verdict(bare.map(|r| r >= 0.97)),
        verdict(bridge.map(|r| r >= least)),
        verdict(bridge.map(|r| r >= 1.0))
    )
}

fn rate(results: &Results) {
    if !has(results, Row::Rate) {
        return;
    }
    println!("\n64-byte frames, 1000 a second: offered / delivered{:24}x bare  x bridge  x OVS", "");
    for subject in Subject::ALL {
        let Some(all) = Spread::of(results, subject, Row::Rate, "delivered") else { continue };
        let Some(offered) = Spread::of(results, subject, Row::Rate, "offered") else { continue };
        let ratio = |other| ratio(results, subject, other, Row::Rate, "delivered", "delivered");
        let (bare, ovs) = (ratio(subject.bare()), ratio(subject.ovs()));
        let targets = match subject {
            Subject::Vswitch(Ends::Afxdp) => format!(
                "bare >= 0.95: {}, OVS >= 1.0: {}, stretch 1.2: {}",
                verdict(bare.map(|r| r >= 0.95)),
                verdict(ovs.map(|r| r >= 1.0)),
                verdict(ovs.map(|r| r >= 1.2))
            ),
            _ => String::new(),
        };
        println!(
            "  {:44}{:5.0} /{:5.0} ({:4.0} - {:4.0})  {}  {}    {}  {targets}",
            subject.title(),
            offered.median / 1e3,
            all.median / 1e3,
            all.least / 1e3,
            all.most / 1e3,
            shown(bare),
            shown(ratio(Some(Subject::Bridge))),
            shown(ovs),
        );
    }
}

fn latency(results: &Results) {
    if !has(results, Row::Latency) {
        return;
    }
    println!("\nPing-pong, half round trip, us: p50 / p99{:23}x bare p50   p99  x bridge on two CPUs", "");
    let bridge = Subject::Bridge;
    for (title, p50, p99) in [
        ("kernel bridge, ends on two CPUs", "p50_two_cpus", "p99_two_cpus"),
        ("kernel bridge, ends on one CPU", "p50", "p99"),
    ] {
        let all = |metric| Spread::of(results, bridge, Row::Latency, metric);
        if let (Some(p50), Some(p99)) = (all(p50), all(p99)) {
            println!(
                "  {title:44}{:5.1} /{:6.1} ({:.1} - {:.1})",
                p50.median, p99.median, p50.least, p50.most
            );
        }
    }
    for subject in Subject::ALL.into_iter().filter(|subject| *subject != bridge) {
        let all = |metric| Spread::of(results, subject, Row::Latency, metric);
        let (Some(p50), Some(p99)) = (all("p50"), all("p99")) else { continue };
        let ratio = |other, mine, theirs| ratio(results, subject, other, Row::Latency, mine, theirs);
        let bare50 = ratio(subject.bare(), "p50", "p50");
        let bare99 = ratio(subject.bare(), "p99", "p99");
        let kernel = ratio(Some(bridge), "p50", "p50_two_cpus");
        let targets = if matches!(subject, Subject::Vswitch(_)) {
            format!(
                "bare <= 1.15: p50 {}, p99 {}; bridge <= 0.5: {}, stretch 0.4: {}",
                verdict(bare50.map(|r| r <= 1.15)),
                verdict(bare99.map(|r| r <= 1.15)),
                verdict(kernel.map(|r| r <= 0.5)),
                verdict(kernel.map(|r| r <= 0.4))
            )
        } else {
            String::new()
        };
        println!(
            "  {:44}{:5.1} /{:6.1} ({:.1} - {:.1})  {}  {}  {}  {targets}",
            subject.title(),
            p50.median,
            p99.median,
            p50.least,
            p50.most,
            shown(bare50),
            shown(bare99),
            shown(kernel),
        );
    }
}

fn idle(results: &Results) {
    let all = |metric| Spread::of(results, Subject::VswitchDefault, Row::Idle, metric);
    let (Some(cpu), Some(wake), Some(rss)) = (all("cpu_percent"), all("wake_up"), all("rss_mib")) else {
        return;
    };
    println!("\nvswitch without traffic, three ports, adaptive polling");
    println!("  CPU      {:7.3} %     under 1 %: {}", cpu.median, verdict(Some(cpu.median < 1.0)));
    // Below zero by more than noise: something else had the CPUs, and the difference means nothing.
    let trusted = (wake.median > -10.0).then_some(wake.median < 50.0);
    println!("  wake-up  {:7.1} us    under 50 us: {}", wake.median, verdict(trusted));
    println!("  memory   {:7.1} MiB   under 64 MiB: {}", rss.median, verdict(Some(rss.median < 64.0)));
}

fn ports(results: &Results) {
    let of = |metric| Spread::of(results, Subject::Vswitch(Ends::Veth), Row::Ports, metric);
    let (Some(alone), Some(beside)) = (of("p50_alone"), of("p50_beside")) else { return };
    let veth = Subject::Vswitch(Ends::Veth);
    let Some(growth) = ratio(results, veth, Some(veth), Row::Ports, "p50_beside", "p50_alone") else {
        return;
    };
    println!(
        "\nvswitch, veth, 200 idle ports beside two busy ones: p50 {:.1} us, alone {:.1} us: {:+.1} %   under +5 %: {}",
        beside.median,
        alone.median,
        (growth - 1.0) * 100.0,
        verdict(Some(growth < 1.05))
    );
}

/// Median and range of a metric.
pub(crate) struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    fn of(results: &Results, subject: Subject, row: Row, metric: &str) -> Option<Self> {
        Self::of_series(results.series(subject.name(), row, metric))
    }

    pub(crate) fn of_series(series: BTreeMap<usize, f64>) -> Option<Self> {
        let values: Vec<f64> = series.into_values().collect();
        let least = values.iter().copied().min_by(f64::total_cmp)?;
        let most = values.iter().copied().max_by(f64::total_cmp)?;
        Some(Self { median: median(values)?, least, most })
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// The median of the ratios of `mine` to `theirs`, round by round.
fn ratio(
    results: &Results,
    subject: Subject,
    other: Option<Subject>,
    row: Row,
    mine: &str,
    theirs: &str,
) -> Option<f64> {
    let other = other?;
    if other == subject && mine == theirs {
        return None;
    }
    ratio_of(&results.series(subject.name(), row, mine), &results.series(other.name(), row, theirs))
}

/// The median of the ratios of two series, round by round.
pub(crate) fn ratio_of(series: &BTreeMap<usize, f64>, base: &BTreeMap<usize, f64>) -> Option<f64> {
    median(series.iter().filter_map(|(round, value)| Some(value / base.get(round)?)).collect())
}

pub(crate) fn shown(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "     -".to_owned(), |ratio| format!("{ratio:6.2}"))
}

pub(crate) fn verdict(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Figures, Sample};

    #[test]
    fn ratios_are_taken_round_by_round() {
        let mut results = Results::default();
        for (round, (mine, theirs)) in [(9.0, 10.0), (4.0, 5.0), (19.0, 20.0)].into_iter().enumerate() {
            for (subject, value) in [("vswitch-tap", mine), ("bridge", theirs)] {
                let figures = Figures::from([("gigabits", value)]);
                let subject = subject.to_owned();
                results.samples.push(Sample { subject, row: Row::Tcp, round, figures });
            }
        }
        let tap = Subject::Vswitch(Ends::Tap);
        let of = |other| ratio(&results, tap, other, Row::Tcp, "gigabits", "gigabits");
        assert_eq!(of(Some(Subject::Bridge)), Some(0.9));
        assert_eq!(of(Some(Subject::Bare(Ends::Tap))), None);
        assert_eq!(of(None), None);
    }

    #[test]
    fn an_even_number_of_rounds_has_a_median() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }
}
