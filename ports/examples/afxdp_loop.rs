use packet::*;
use ports::*;
use std::sync::Arc;
fn var(n: &str, d: u32) -> u32 {
    std::env::var(n).ok().map_or(d, |v| v.parse().unwrap())
}
fn main() {
    let seconds = var("SECS", 5);
    let area = Area::new(var("CHUNKS", 16384) as usize, 64).unwrap();
    let d = afxdp::Options::default();
    let options = afxdp::Options {
        ring: var("RING", d.ring),
        fill: var("FILL", d.fill),
        fill_limit: var("FILLMAX", d.fill_limit),
        in_flight: var("FLIGHT", d.in_flight),
        budget: var("BUDGET", d.budget),
        tx_checksum: var("CSUM", 1) == 1,
        fragments: var("SG", 1) == 1,
        busy_poll: (var("BUSY", 0) > 0).then(|| afxdp::BusyPoll { microseconds: 20, budget: 64 }),
        ..d
    };
    let batch = var("BATCH", 64) as usize;
    let open = |dev: &str| {
        let o = Port::open(
            Spec { name: dev.into(), kind: Kind::Afxdp { device: dev.into(), options: options.clone() } },
            &area,
        )
        .unwrap();
        eprintln!("{} {:?}", o.mode, o.notes);
        o.queues.into_iter().next().unwrap()
    };
    let mut ports = [open("sw0"), open("sw1")];
    let mut queues = [FrameQueue::new(1024), FrameQueue::new(1024)];
    let mut pool = FramePool::new(Arc::clone(&area));
    let start = std::time::Instant::now();
    let mut turns = 0u64;
    let mut busy = 0u64;
    let mut dropped = 0u64;
    while start.elapsed().as_secs() < u64::from(seconds) {
        for _ in 0..64 {
            for side in 0..2 {
                let out = &mut queues[1 - side];
                let mut full = None;
                let n = ports[side].receive(&mut pool, batch, |f| {
                    if let Err(f) = out.push(f) {
                        let _ = full.replace(f).map(std::mem::forget);
                        dropped += 1;
                    }
                });
                if let Some(f) = full {
                    pool.free(f)
                }
                turns += 1;
                if n > 0 {
                    busy += 1
                }
                if n > 0 || ports[1 - side].wants_turn() {
                    ports[1 - side].transmit(&mut queues[1 - side], &mut pool);
                }
            }
        }
    }
    for p in &ports {
        let s = p.stats();
        println!(
            "rx {} drops {} nomem {} tx {} txerr {} syscalls {} csum {}",
            s.rx_frames,
            s.rx_kernel_drops,
            s.rx_no_memory,
            s.tx_frames,
            s.tx_errors,
            s.syscalls,
            s.tx_checksummed
        );
    }
    println!("turns {turns} busy {busy} dropped {dropped}");
    for p in ports {
        p.close(&mut pool)
    }
}
