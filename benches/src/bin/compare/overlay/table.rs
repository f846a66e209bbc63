//! Prints the row `overlay`, with the targets of DESIGN.md section 9 and what was reached.

use std::collections::BTreeMap;

use super::Subject;
use crate::table::{Spread, ratio_of, shown, verdict};
use crate::{Results, Row};

/// Prints the row, if it was measured.
pub(crate) fn print(results: &Results) {
    if !results.samples.iter().any(|sample| sample.row == Row::Overlay) {
        return;
    }
    for (metric, title) in [
        ("there", "Two hosts: TCP, one flow, from the first to the second, Gbit/s"),
        ("back", "Two hosts: TCP, one flow, from the second to the first, Gbit/s"),
        ("delivered", "Two hosts: 64-byte frames delivered, 1000 a second"),
    ] {
        println!("\n{title:68} x bare  x kernel  x OVS");
        let scale = if metric == "delivered" { 1e-3 } else { 1.0 };
        for subject in Subject::ALL {
            let Some(all) = Spread::of_series(series(results, subject, metric)) else { continue };
            let ratios = ratios(results, subject, metric);
            let digits = if metric == "delivered" { 0 } else { 2 };
            println!(
                "  {:42}{:6.digits$} ({:.digits$} - {:.digits$})  {}  {}  {}  {}",
                subject.title(),
                all.median * scale,
                all.least * scale,
                all.most * scale,
                shown(ratios[0]),
                shown(ratios[1]),
                shown(ratios[2]),
                targets(subject, metric, ratios),
            );
        }
    }
}

fn series(results: &Results, subject: Subject, metric: &str) -> BTreeMap<usize, f64> {
    results.series(subject.name(), Row::Overlay, metric)
}

/// To the bare loops, the kernel and Open vSwitch.
fn ratios(results: &Results, subject: Subject, metric: &str) -> [Option<f64>; 3] {
    let own = series(results, subject, metric);
    [Subject::Bare, Subject::Kernel, Subject::Ovs].map(|other| {
        let base = series(results, other, metric);
        if other == subject { None } else { ratio_of(&own, &base) }
    })
}

fn targets(subject: Subject, metric: &str, [bare, kernel, ovs]: [Option<f64>; 3]) -> String {
    if subject != Subject::Vswitch {
        return String::new();
    }
    if metric == "delivered" {
        return format!("OVS >= 1.3: {}", verdict(ovs.map(|ratio| ratio >= 1.3)));
    }
    format!(
        "bare >= 0.95: {}, kernel >= 0.85: {}, stretch 1.0: {}",
        verdict(bare.map(|ratio| ratio >= 0.95)),
        verdict(kernel.map(|ratio| ratio >= 0.85)),
        verdict(kernel.map(|ratio| ratio >= 1.0))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_switchs_alone_and_open_without_what_they_compare_with() {
        let of = |metric, ratios| targets(Subject::Vswitch, metric, ratios);
        assert_eq!(of("delivered", [None, None, Some(1.3)]), "OVS >= 1.3: met");
        assert_eq!(of("delivered", [Some(2.0), Some(2.0), None]), "OVS >= 1.3: ?");
        assert_eq!(
            of("back", [Some(0.9), Some(0.9), None]),
            "bare >= 0.95: MISSED, kernel >= 0.85: met, stretch 1.0: MISSED"
        );
        assert_eq!(targets(Subject::Ovs, "there", [Some(1.0); 3]), "");
    }
}
