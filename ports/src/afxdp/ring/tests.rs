//! Rings against a dull model, at the wrap of the indices, and between two threads.

use std::collections::VecDeque;

use proptest::prelude::*;
use shuttle::sync::Arc;
use shuttle::sync::Mutex;
use shuttle::sync::atomic::{AtomicU32, Ordering};
use shuttle::thread;

use super::*;

const SIZE: u32 = 4;

/// Ring memory that shuttle watches. A slot is behind a mutex only so that the test needs no `unsafe`; a slot
/// that is read before it was written, or written before it was read, shows as a wrong value.
#[derive(Clone)]
struct Watched {
    producer: Arc<AtomicU32>,
    consumer: Arc<AtomicU32>,
    slots: Arc<Vec<Mutex<Option<u64>>>>,
}

impl Watched {
    fn new(start: u32) -> Self {
        Self {
            producer: Arc::new(AtomicU32::new(start)),
            consumer: Arc::new(AtomicU32::new(start)),
            slots: Arc::new((0..SIZE).map(|_| Mutex::new(None)).collect()),
        }
    }
}

impl Memory for Watched {
    type Item = u64;

    fn load_producer(&self) -> u32 {
        self.producer.load(Ordering::Acquire)
    }
    fn store_producer(&self, index: u32) {
        self.producer.store(index, Ordering::Release);
    }
    fn load_consumer(&self) -> u32 {
        self.consumer.load(Ordering::Acquire)
    }
    fn store_consumer(&self, index: u32) {
        self.consumer.store(index, Ordering::Release);
    }
    fn read(&self, slot: u32) -> u64 {
        let mut slot = self.slots[slot as usize].lock().expect("no thread panics while it holds a slot");
        slot.take().expect("a slot is read once after it was written")
    }
    fn write(&mut self, slot: u32, item: u64) {
        let mut slot = self.slots[slot as usize].lock().expect("no thread panics while it holds a slot");
        assert!(slot.replace(item).is_none(), "a slot was written before it was read");
    }
}

fn hand_over(start: u32) {
    const COUNT: u64 = 10;
    let memory = Watched::new(start);
    let mut producer = Producer::new(memory.clone(), SIZE);
    let mut consumer = Consumer::new(memory, SIZE);
    let sender = thread::spawn(move || {
        let mut next = 0;
        while next < COUNT {
            let room = producer.room(2);
            for _ in 0..room.min(2) {
                if next < COUNT {
                    producer.push(next);
                    next += 1;
                }
            }
            producer.publish();
            thread::yield_now();
        }
    });
    let mut expected = 0;
    while expected < COUNT {
        for _ in 0..consumer.available() {
            assert_eq!(consumer.pop(), expected);
            expected += 1;
        }
        consumer.release();
        thread::yield_now();
    }
    sender.join().expect("the sender ends");
    assert_eq!(consumer.refresh(), 0);
}

#[test]
fn two_threads_hand_over_every_item_once_and_in_order() {
    shuttle::check_random(|| hand_over(0), 2000);
}

#[test]
fn two_threads_hand_over_across_the_wrap_of_the_indices() {
    shuttle::check_random(|| hand_over(u32::MAX - 3), 2000);
    shuttle::check_pct(|| hand_over(u32::MAX - 5), 1000, 3);
}

/// Plain ring memory for one thread.
struct Plain {
    producer: std::cell::Cell<u32>,
    consumer: std::cell::Cell<u32>,
    slots: [u64; SIZE as usize],
}

impl Memory for std::rc::Rc<std::cell::RefCell<Plain>> {
    type Item = u64;

    fn load_producer(&self) -> u32 {
        self.borrow().producer.get()
    }
    fn store_producer(&self, index: u32) {
        self.borrow().producer.set(index);
    }
    fn load_consumer(&self) -> u32 {
        self.borrow().consumer.get()
    }
    fn store_consumer(&self, index: u32) {
        self.borrow().consumer.set(index);
    }
    fn read(&self, slot: u32) -> u64 {
        self.borrow().slots[slot as usize]
    }
    fn write(&mut self, slot: u32, item: u64) {
        self.borrow_mut().slots[slot as usize] = item;
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push(u32),
    Publish,
    Pop(u32),
    Release,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..6u32).prop_map(Step::Push),
        Just(Step::Publish),
        (0..6u32).prop_map(Step::Pop),
        Just(Step::Release),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    /// The model: a queue of what was pushed, and counters of what was published, popped and released.
    #[test]
    fn rings_agree_with_a_queue(start in prop_oneof![Just(0), Just(u32::MAX - 2), any::<u32>()], steps in steps()) {
        let memory = std::rc::Rc::new(std::cell::RefCell::new(Plain {
            producer: start.into(),
            consumer: start.into(),
            slots: [0; SIZE as usize],
        }));
        let mut producer = Producer::new(memory.clone(), SIZE);
        let mut consumer = Consumer::new(memory, SIZE);
        let mut queue = VecDeque::new();
        let (mut pushed, mut published, mut popped, mut released) = (0u64, 0u64, 0u64, 0u64);
        for step in steps {
            match step {
                Step::Push(count) => {
                    let room = producer.room(count);
                    prop_assert!(u64::from(room) <= u64::from(SIZE) - (pushed - released));
                    if room < count {
                        prop_assert_eq!(u64::from(room), u64::from(SIZE) - (pushed - released));
                    }
                    for _ in 0..count.min(room) {
                        producer.push(pushed);
                        queue.push_back(pushed);
                        pushed += 1;
                    }
                }
                Step::Publish => {
                    producer.publish();
                    published = pushed;
                    prop_assert_eq!(u64::from(producer.pending()), published - released);
                }
                Step::Pop(count) => {
                    let available = consumer.refresh();
                    prop_assert_eq!(u64::from(available), published - popped);
                    for ahead in 0..available {
                        prop_assert_eq!(consumer.peek(ahead), queue[ahead as usize]);
                    }
                    for _ in 0..count.min(available) {
                        prop_assert_eq!(Some(consumer.pop()), queue.pop_front());
                        popped += 1;
                    }
                }
                Step::Release => {
                    consumer.release();
                    released = popped;
                }
            }
        }
    }
}
