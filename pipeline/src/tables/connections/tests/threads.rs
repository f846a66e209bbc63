//! Two threads on one table.

use std::sync::atomic::AtomicU32;

use packet::header::protocol::UDP;

use super::*;

/// Both make the same connections at the same time, look both directions up, and end them again.
#[test]
fn of_two_makers_one_wins_and_nothing_is_left_over() {
    const ROUNDS: u32 = 20_000;
    let table = table(512, 2);
    let won = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for worker in 0..2usize {
            let (table, won) = (&table, &won);
            scope.spawn(move || {
                for n in 0..ROUNDS {
                    let now = Instant::from_nanos(u64::from(n) << 24);
                    let new = plain(n % 97, UDP, PortId(u16::try_from(worker).expect("two")));
                    if let Ok(id) = table.create(&new, now) {
                        won.fetch_add(1, Ordering::Relaxed);
                        let _ = table.track(id, Direction::Original, PACKET, now);
                    }
                    let (one, two) = (table.find(&new.original), table.find(&new.reply));
                    if let (Some(one), Some(two)) = (one, two)
                        && one.id == two.id
                    {
                        assert_eq!((one.original, two.reply), (new.original, new.reply));
                        let _ = table.track(one.id, Direction::Reply, PACKET, now);
                        if n % 3 == 0 {
                            table.kill(one.id, End::Cut);
                        }
                    }
                    table.passed(worker, now);
                    table.sweep(worker, now, 16, &mut |_: &Ended| {});
                }
                table.passed(worker, NEVER);
            });
        }
    });
    let stats = table.stats();
    assert_eq!(stats.created, u64::from(won.load(Ordering::Relaxed)));
    table.kill_where(at(1000), |_| true, End::Flushed);
    sweep(&table, at(1000));
    let stats = table.stats();
    assert_eq!((stats.open, stats.limbo, stats.half_open), (0, 0, 0), "{stats:?}");
    assert_eq!(stats.ended.iter().sum::<u64>(), stats.created);
    assert_eq!((table.port(A).open, table.port(B).open), (0, 0));
    let free = (0..97).all(|n| table.find(&plain(n, UDP, A).original).is_none());
    assert!(free);
    for n in 0..512 {
        table.create(&plain(n, UDP, A), at(1000)).expect("every slot is free again");
    }
}
