//! Large files are read in reasonable time, good or bad.

use std::fmt::Write;
use std::time::{Duration, Instant};

use config::Document;

fn ports(count: usize, network: &str) -> String {
    let mut text = String::from(
        "[limits]\nports = 4078\nnetworks = 1\nstations = 65536\n[[network]]\nname = \"front\"\nsubnets = [\"10.0.0.0/8\"]\n",
    );
    for n in 0..count {
        let (high, low) = (n / 200 + 1, n % 200 + 1);
        writeln!(
            text,
            "[[port]]\nname = \"p{n}\"\nnetwork = \"{network}\"\nnetns = \"ns{n}\"\naddresses = [\"10.0.{high}.{low}\"]\n\
             mac = \"02:00:00:00:{:02x}:{:02x}\"",
            n / 256,
            n % 256
        )
        .expect("a string takes it");
    }
    for n in 0..4096 {
        writeln!(
            text,
            "[[fdb]]\nnetwork = \"front\"\nport = \"p{}\"\nmac = \"02:01:00:00:{:02x}:{:02x}\"",
            n % count,
            n / 256,
            n % 256
        )
        .expect("a string takes it");
    }
    text
}

fn timed(text: &str) -> (usize, Duration) {
    let start = Instant::now();
    let findings = Document::parse(text, "x.toml").map_or_else(|found| found.list().len(), |_| 0);
    (findings, start.elapsed())
}

// The bounds are far above what is needed (some 50 ms), and far below what a quadratic check would take.

#[test]
fn the_largest_good_file_is_read_at_once() {
    let (findings, took) = timed(&ports(4078, "front"));
    assert_eq!(findings, 0);
    assert!(took < Duration::from_secs(5), "{took:?}");
    println!("{took:?}");
}

#[test]
fn a_file_with_a_mistake_in_every_port_is_told_at_once() {
    let (findings, took) = timed(&ports(4078, "back"));
    assert!(findings >= 4078);
    assert!(took < Duration::from_secs(5), "{took:?}");
    println!("{took:?} {findings}");
}

#[test]
fn a_list_of_nothing_but_mistakes_is_told_at_once() {
    let items = vec!["\"x\""; 100_000].join(", ");
    let (findings, took) = timed(&format!("[[network]]\nname = \"front\"\nsubnets = [{items}]\n"));
    assert!((1..100).contains(&findings));
    assert!(took < Duration::from_secs(10), "{took:?}");
    println!("{took:?} {findings}");
}

#[test]
fn lists_that_are_too_long_are_told_at_once() {
    let items: Vec<String> = (0..50_000).map(|n| format!("\"10.{}.{}.0/24\"", n / 256, n % 256)).collect();
    let (list, vlans) = (items.join(", "), vec!["1"; 50_000].join(", "));
    let (findings, took) = timed(&format!(
        "[[network]]\nname = \"front\"\nsubnets = [{list}]\n\
         [[port]]\nname = \"p\"\nnetwork = \"front\"\ntrunk = [{vlans}]\n"
    ));
    assert_eq!(findings, 2);
    assert!(took < Duration::from_secs(10), "{took:?}");
    println!("{took:?} {findings}");
}
