//! Prints the row `outside`, with the targets of DESIGN.md section 9 and what was reached.

use std::collections::BTreeMap;

use super::{Subject, Way};
use crate::table::{Spread, ratio_of, shown, verdict};
use crate::{Results, Row};

/// Prints the row, if it was measured.
pub(crate) fn print(results: &Results) {
    if !results.samples.iter().any(|sample| sample.row == Row::Outside) {
        return;
    }
    for (metric, title) in [
        ("out", "Outside: TCP, one flow, out of the container, Gbit/s"),
        ("in", "Outside: TCP, one flow, into the container, Gbit/s"),
        ("connections", "Outside: TCP connections, opened and closed, a second"),
    ] {
        println!("\n{title:76} x bare x Docker  x nftables");
        for (way, subject) in lines() {
            let series = series(results, subject, way, metric);
            let Some(all) = Spread::of_series(series.clone()) else { continue };
            let ratios = ratios(results, subject, way, metric, metric);
            let digits = if metric == "connections" { 0 } else { 2 };
            println!(
                "  {:11}{:40}{:8.digits$} ({:.digits$} - {:.digits$})  {}  {}  {}  {}",
                way.name(),
                subject.title(),
                all.median,
                all.least,
                all.most,
                shown(ratios[0]),
                shown(ratios[1]),
                shown(ratios[2]),
                targets(subject, metric, ratios),
            );
        }
    }
    println!(
        "\n{:76} x bare x Docker  x nftables, p50",
        "Outside: ping-pong, half round trip, us: p50 / p99"
    );
    for (way, subject) in lines() {
        let all = |metric| Spread::of_series(series(results, subject, way, metric));
        let (Some(p50), Some(p99)) = (all("p50"), all("p99")) else { continue };
        let [bare, docker, nftables] = ratios(results, subject, way, "p50", "p50").map(shown);
        println!(
            "  {:11}{:40}{:6.1} / {:.1} ({:.1} - {:.1})  {bare}  {docker}  {nftables}",
            way.name(),
            subject.title(),
            p50.median,
            p99.median,
            p50.least,
            p50.most,
        );
    }
}

fn lines() -> impl Iterator<Item = (Way, Subject)> {
    let all = Way::ALL.into_iter().flat_map(|way| Subject::ALL.map(|subject| (way, subject)));
    all.filter(|(way, subject)| *way != Way::Published || subject.translates())
}

fn series(results: &Results, subject: Subject, way: Way, metric: &str) -> BTreeMap<usize, f64> {
    results.series(&subject.sample(way), Row::Outside, metric)
}

/// To the bare loop, Docker and nftables, by the same way.
fn ratios(results: &Results, subject: Subject, way: Way, mine: &str, theirs: &str) -> [Option<f64>; 3] {
    let own = series(results, subject, way, mine);
    [Subject::Bare, Subject::Docker, Subject::Nftables].map(|other| {
        let base = series(results, other, way, theirs);
        if other == subject { None } else { ratio_of(&own, &base) }
    })
}

fn targets(subject: Subject, metric: &str, [bare, docker, nftables]: [Option<f64>; 3]) -> String {
    if subject != Subject::Busy {
        return String::new();
    }
    // Both have to be reached.
    let both = |least: f64| {
        let all: Vec<f64> = [docker, nftables].into_iter().flatten().collect();
        verdict((!all.is_empty()).then(|| all.iter().all(|ratio| *ratio >= least)))
    };
    if metric == "connections" {
        return format!("kernel >= 2.0: {}", both(2.0));
    }
    format!(
        "bare >= 0.95: {}, kernel >= 0.85: {}, stretch 1.0: {}",
        verdict(bare.map(|ratio| ratio >= 0.95)),
        both(0.85),
        both(1.0)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Figures, Sample};

    #[test]
    fn a_published_port_is_compared_with_the_only_way_in_that_a_bare_loop_has() {
        let mut results = Results::default();
        for (subject, way, value) in [
            (Subject::Busy, Way::Published, 9.0),
            (Subject::Bare, Way::Floating, 10.0),
            (Subject::Bare, Way::Masquerade, 100.0),
            (Subject::Docker, Way::Published, 4.0),
        ] {
            let (subject, figures) = (subject.sample(way), Figures::from([("out", value)]));
            results.samples.push(Sample { subject, row: Row::Outside, round: 1, figures });
        }
        let of = |subject| ratios(&results, subject, Way::Published, "out", "out");
        assert_eq!(of(Subject::Busy), [Some(0.9), Some(2.25), None]);
        assert_eq!(of(Subject::Bare), [None, Some(2.5), None]);
    }

    #[test]
    fn a_target_needs_both_kernels_and_is_open_without_them() {
        let of = |metric, ratios| targets(Subject::Busy, metric, ratios);
        assert_eq!(of("connections", [None, Some(2.1), Some(1.9)]), "kernel >= 2.0: MISSED");
        assert_eq!(of("connections", [None, Some(2.1), Some(2.0)]), "kernel >= 2.0: met");
        assert_eq!(of("connections", [Some(0.9), None, None]), "kernel >= 2.0: ?");
        assert_eq!(
            of("in", [Some(0.96), Some(0.9), Some(1.2)]),
            "bare >= 0.95: met, kernel >= 0.85: met, stretch 1.0: MISSED"
        );
        assert_eq!(targets(Subject::Default, "in", [None; 3]), "");
    }
}
