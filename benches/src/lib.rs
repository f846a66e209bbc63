//! Measuring the packet path in memory: clocks by the TSC, instructions by callgrind.
//!
//! A [`Case`] is run in two ways. [`clocks`] times each batch on its own with the TSC and takes the median over
//! many: noise of a shared machine lands in the tail. [`instructions`] runs the same program under callgrind
//! for two different numbers of batches and divides the difference, so that set-up cancels out; the figure is
//! the same on every run of one binary.

use std::process::Command;

/// Something that handles one batch of packets each time it is asked.
pub trait Case {
    /// Prepares the next batch; not measured.
    fn prepare(&mut self);
    /// Handles the batch; measured. Returns how many packets it had.
    fn run(&mut self) -> usize;
    /// Making it would take callgrind too long: instructions are not counted.
    fn is_long(&self) -> bool {
        false
    }
}

/// The name and maker of a case.
pub type Entry = (&'static str, fn() -> Box<dyn Case>);

const WARM_UP: usize = 2_000;
const BATCHES: usize = 20_000;
const CALLGRIND_BATCHES: [usize; 2] = [200, 1200];
const CALLGRIND_WARM_UP: usize = 600;

/// Reads the time stamp counter, after all earlier instructions have finished.
#[cfg(target_arch = "x86_64")]
fn tsc() -> u64 {
    // SAFETY: a fence has no effect on memory; every x86-64 processor has it.
    unsafe { core::arch::x86_64::_mm_lfence() };
    // SAFETY: reading the counter has no effect; every x86-64 processor that runs Linux has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Reads the monotonic clock, in nanoseconds: no TSC on this architecture.
#[cfg(not(target_arch = "x86_64"))]
fn tsc() -> u64 {
    packet::Instant::now().as_nanos()
}

/// Returns the median and the 95th percentile of clocks a packet.
pub fn clocks(case: &mut dyn Case, batches: usize) -> (f64, f64) {
    for _ in 0..WARM_UP.min(batches) {
        case.prepare();
        case.run();
    }
    let mut samples: Vec<f64> = (0..batches)
        .map(|_| {
            case.prepare();
            let start = tsc();
            let packets = case.run();
            let end = tsc();
            (end - start) as f64 / packets as f64
        })
        .collect();
    samples.sort_by(f64::total_cmp);
    (samples[samples.len() / 2], samples[samples.len() * 95 / 100])
}

/// Returns the instructions a packet, or why they could not be counted.
///
/// # Errors
/// When valgrind is not there or its output is not understood.
pub fn instructions(name: &str) -> Result<f64, String> {
    let [few, many] = CALLGRIND_BATCHES.map(|batches| count(name, batches));
    let packets = (CALLGRIND_BATCHES[1] - CALLGRIND_BATCHES[0]) as f64 * packet::Batch::CAPACITY as f64;
    Ok((many? - few?) / packets)
}

fn count(name: &str, batches: usize) -> Result<f64, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=*measured_run*")
        .arg(program)
        .args(["--count", name, &batches.to_string()])
        .output()
        .map_err(|e| format!("cannot run valgrind: {e}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split("Collected :").nth(1));
    collected
        .and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| format!("valgrind printed no count: {text}"))
}

/// The only function that callgrind counts.
#[inline(never)]
fn measured_run(case: &mut dyn Case) -> usize {
    std::hint::black_box(case.run())
}

/// Runs what the command line asks for: all cases, those whose name contains a word, `--quick`, or (for
/// callgrind) `--count NAME BATCHES`.
pub fn main(title: &str, cases: &[Entry]) {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [flag, name, batches] = args.as_slice()
        && flag == "--count"
    {
        let (_, make) = cases.iter().find(|(n, _)| n == name).expect("instructions() passes a known name");
        let mut case = make();
        for _ in 0..CALLGRIND_WARM_UP {
            case.prepare();
            case.run();
        }
        for _ in 0..batches.parse().unwrap_or(0) {
            case.prepare();
            measured_run(&mut *case);
        }
        return;
    }
    let quick = args.iter().any(|arg| arg == "--quick");
    let word = args.iter().find(|arg| !arg.starts_with('-'));
    println!("{title:<44} {:>8} {:>8} {:>8}", "clocks", "p95", "instr");
    for (name, make) in cases.iter().filter(|(name, _)| word.is_none_or(|word| name.contains(word.as_str())))
    {
        let mut case = make();
        let is_long = case.is_long();
        let (median, p95) = clocks(&mut *case, if quick { 200 } else { BATCHES });
        drop(case);
        let count = if quick || is_long { Err("-".to_owned()) } else { instructions(name) };
        let count = match &count {
            Ok(count) => format!("{count:.1}"),
            Err(why) => why.lines().next().unwrap_or("").to_owned(),
        };
        println!("{name:<44} {median:>8.1} {p95:>8.1} {count:>8}");
    }
}
