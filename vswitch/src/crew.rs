//! The workers as the manager sees them: started, fed with messages and snapshots, listened to, and stopped.
//!
//! [`Crew`] is the manager's handle; [`Crew::start`] also returns a [`Listener`], whose `run` is a task of the
//! manager's runtime: it takes the workers' events, completes what waits for them (a removal, a report) and
//! passes the rest on as [`News`].
//!
//! A port leaves in an order that keeps every frame accounted for: a snapshot without it is published first, so
//! nothing new is decided for it; then every worker forgets it and says so; only then the queues are closed, on
//! a thread that may take its time, and the number may be given to another port.
//!
//! Threads: the manager's runtime, which has one. The locks are never contended and never held across an await.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use packet::{Area, FramePool, FrameQueue, PortId};
use pipeline::{DropLog, DropRecord, Snapshot, Tables};
use ports::{Port, Stats};
use rtrb::{Consumer, Producer, RingBuffer};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use crate::worker::capture::Capture;
use crate::worker::figures::Shared;
use crate::worker::handover::Links;
use crate::worker::mail::{self, Event, Message, Published};
use crate::worker::wake::Doorbell;
use crate::worker::{Parts, Poll, Worker};

/// How long to wait for the answer of a worker that is stuck in a system call before going on without it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Stations that move which the manager hears of, at most, in each [`MOVES_WINDOW`]: in a loop every frame tells of one,
/// and a few are enough to act on.
const MOVES: u32 = 32;
const MOVES_WINDOW: Duration = Duration::from_millis(500);
/// Frames that wait before a port; a device that is full for longer loses frames as `tx_full`.
pub const QUEUE: usize = 1024;
/// Frames that wait for another worker's port within one turn.
const REMOTE_QUEUE: usize = 256;

/// What workers tell that nobody has asked for.
#[derive(Debug)]
pub enum News {
    /// The device behind a port has vanished.
    Gone(PortId),
    /// A queue of the port could not be taken by its worker.
    Refused(PortId),
    /// The pipeline saw something.
    Pipeline(pipeline::Event),
}

/// What all workers are made from.
#[derive(Debug)]
pub struct Plan {
    /// One worker on each of these CPUs; `None` leaves it to the kernel.
    pub cpus: Vec<Option<usize>>,
    /// How they wait for work.
    pub poll: Poll,
    /// Frames that one port may bring in before the next port has its chance.
    pub budget: usize,
    /// Port numbers end here.
    pub ports: usize,
    /// All chunks.
    pub area: Arc<Area>,
    /// The tables that all workers share.
    pub tables: Arc<Tables>,
    /// The first snapshot.
    pub snapshot: Arc<Snapshot>,
}

/// What all workers together answered: their queues, or what those have counted.
type Answer = (Vec<Port>, Vec<Stats>);

/// What has to come in before a question to all workers is answered.
#[derive(Debug)]
struct Question {
    /// Workers that have not answered.
    workers: usize,
    ports: Vec<Port>,
    stats: Vec<Stats>,
    done: Option<oneshot::Sender<Answer>>,
}

#[derive(Debug, Default)]
struct Questions {
    removals: HashMap<PortId, Question>,
    reports: HashMap<PortId, Question>,
}

/// The manager's handle on the workers. See the module header.
#[derive(Debug)]
pub struct Crew {
    area: Arc<Area>,
    tables: Arc<Tables>,
    published: Arc<Published>,
    shared: Vec<Arc<Shared>>,
    cpus: Vec<Option<usize>>,
    mailboxes: Mutex<Vec<Producer<Message>>>,
    questions: Arc<Mutex<Questions>>,
    retired: Mutex<Vec<Arc<Snapshot>>>,
    threads: Mutex<Vec<JoinHandle<Worker>>>,
}

/// Takes the workers' events. See the module header.
#[derive(Debug)]
pub struct Listener {
    events: Vec<Consumer<Event>>,
    bell: Arc<Doorbell>,
    door: pipe::Receiver,
    questions: Arc<Mutex<Questions>>,
    news: mpsc::UnboundedSender<News>,
    area: Arc<Area>,
    moves: (Instant, u32),
}

impl Crew {
    /// Starts the workers.
    ///
    /// # Errors
    /// No descriptor or no thread to be had.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(plan: Plan) -> io::Result<(Self, Listener, mpsc::UnboundedReceiver<News>)> {
        let published = Arc::new(Published::new(plan.snapshot));
        let (bell, door) = Doorbell::new()?;
        let bell = Arc::new(bell);
        let door = pipe::Receiver::from_owned_fd(OwnedFd::from(door))?;
        let shared = plan.cpus.iter().map(|_| Shared::new().map(Arc::new)).collect::<io::Result<Vec<_>>>()?;
        let (mut mailboxes, mut events, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        for (id, links) in Links::mesh(&shared).into_iter().enumerate() {
            let (mailbox, messages) = RingBuffer::new(mail::CAPACITY);
            let (teller, told) = RingBuffer::new(mail::CAPACITY);
            let mut worker = Worker::new(Parts {
                id,
                poll: plan.poll,
                budget: plan.budget,
                ports: plan.ports,
                pool: FramePool::new(Arc::clone(&plan.area)),
                tables: Arc::clone(&plan.tables),
                published: Arc::clone(&published),
                shared: Arc::clone(&shared[id]),
                links,
                mailbox: messages,
                events: teller,
                manager: Arc::clone(&bell),
            })?;
            let cpu = plan.cpus[id];
            let thread = std::thread::Builder::new().name(format!("worker-{id}")).spawn(move || {
                if let Some(id) = cpu {
                    // Unpinned it works as well, only with more jitter; `vsctl doctor` shows where it runs.
                    core_affinity::set_for_current(core_affinity::CoreId { id });
                }
                worker.run();
                worker
            })?;
            mailboxes.push(mailbox);
            events.push(told);
            threads.push(thread);
        }
        let questions = Arc::new(Mutex::new(Questions::default()));
        let (sender, news) = mpsc::unbounded_channel();
        let listener = Listener {
            events,
            bell,
            door,
            questions: Arc::clone(&questions),
            news: sender,
            area: Arc::clone(&plan.area),
            moves: (Instant::now(), 0),
        };
        let crew = Self {
            area: plan.area,
            tables: plan.tables,
            published,
            shared,
            cpus: plan.cpus,
            mailboxes: Mutex::new(mailboxes),
            questions,
            retired: Mutex::new(Vec::new()),
            threads: Mutex::new(threads),
        };
        Ok((crew, listener, news))
    }

    /// Returns what each worker shows.
    pub fn shared(&self) -> &[Arc<Shared>] {
        &self.shared
    }

    /// Returns the CPU of each worker.
    pub fn cpus(&self) -> &[Option<usize>] {
        &self.cpus
    }

    /// Has the workers wait for work, and serve their ports, in another way.
    pub async fn set_poll(&self, poll: Poll, budget: usize) {
        for worker in 0..self.shared.len() {
            self.send(worker, Message::SetPoll { poll, budget }).await;
        }
    }

    /// Gives each worker a log of dropped frames of `records` records, and returns the ends to read.
    pub async fn log_drops(&self, records: usize) -> Vec<Consumer<DropRecord>> {
        let mut readers = Vec::new();
        for worker in 0..self.shared.len() {
            let (log, reader) = DropLog::new(records);
            self.send(worker, Message::SetDropLog(log)).await;
            readers.push(reader);
        }
        readers
    }

    /// Returns the tables that the workers share.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Returns the memory of all frames.
    pub fn area(&self) -> &Arc<Area> {
        &self.area
    }

    /// Gives the queues of a new port to the workers, starting with worker `first`, and returns the worker of
    /// each queue. To be called before a snapshot with the port is published.
    pub async fn add_port(&self, id: PortId, queues: Vec<Port>, first: usize) -> Vec<usize> {
        let workers = self.shared.len();
        let owner = |queue: usize| (first + queue) % workers;
        let owners: Vec<usize> = (0..queues.len()).map(owner).collect();
        let mut has_queue = vec![false; workers];
        for (n, port) in queues.into_iter().enumerate() {
            let worker = owner(n);
            let first_here = !std::mem::replace(&mut has_queue[worker], true);
            let frames = first_here.then(|| FrameQueue::new(QUEUE));
            let queue = u16::try_from(n).unwrap_or(u16::MAX);
            self.send(worker, Message::AddPort { id, queue, port: Box::new(port), frames }).await;
        }
        for worker in (0..workers).filter(|worker| !has_queue[*worker]) {
            let frames = FrameQueue::new(REMOTE_QUEUE);
            self.send(worker, Message::AddRemote { id, worker: owner(0), frames }).await;
        }
        owners
    }

    /// Takes a port away from all workers and closes its queues. To be called after a snapshot without the port
    /// was published. Returns what the port had counted; `None` when a worker did not answer in time.
    pub async fn remove_port(&self, id: PortId) -> Option<Stats> {
        let answer = self.ask(id, |questions| &mut questions.removals);
        for worker in 0..self.shared.len() {
            self.send(worker, Message::RemovePort { id }).await;
        }
        let Ok(Ok((ports, _))) = tokio::time::timeout(PATIENCE, answer).await else {
            tracing::error!(port = id.0, "a worker does not let go of a port");
            return None;
        };
        let area = Arc::clone(&self.area);
        // The kernel waits for a grace period when it closes such a socket.
        let closed = tokio::task::spawn_blocking(move || close(ports, &area));
        closed.await.ok()
    }

    /// Asks for what all queues of a port have counted, together. `None` when a worker did not answer in time.
    pub async fn report(&self, id: PortId) -> Option<Stats> {
        let answer = self.ask(id, |questions| &mut questions.reports);
        for worker in 0..self.shared.len() {
            self.send(worker, Message::Report { id }).await;
        }
        let (_, stats) = tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()?;
        Some(stats.into_iter().fold(Stats::default(), sum))
    }

    /// Has the owner of a port transmit a frame of ours.
    pub async fn inject(&self, id: PortId, worker: usize, bytes: &[u8]) {
        self.send(worker, Message::Inject { id, bytes: bytes.into() }).await;
    }

    /// Starts a capture on the worker.
    pub async fn add_capture(&self, worker: usize, capture: Capture) {
        self.send(worker, Message::AddCapture(Box::new(capture))).await;
    }

    /// Ends a capture on the worker.
    pub async fn remove_capture(&self, worker: usize, number: u64) {
        self.send(worker, Message::RemoveCapture(number)).await;
    }

    /// Publishes a snapshot. Old ones are dropped here, when no worker uses them any more.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        let old = self.published.publish(snapshot);
        lock(&self.retired).push(old);
        self.drop_retired();
        for worker in &self.shared {
            worker.bell.ring();
        }
    }

    /// Returns the snapshot that was published last.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.published.load()
    }

    /// Drops snapshots that no worker uses any more.
    pub fn drop_retired(&self) {
        lock(&self.retired).retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }

    /// Returns how many snapshots wait until a worker has adopted a newer one.
    pub fn retired(&self) -> usize {
        lock(&self.retired).len()
    }

    /// Stops all workers and gives everything back they had.
    pub async fn stop(&self) {
        for worker in 0..self.shared.len() {
            self.send(worker, Message::Stop).await;
        }
        let threads = std::mem::take(&mut *lock(&self.threads));
        // All have ended before the first is taken apart: none hands a frame to one that is gone.
        let stopped = tokio::task::spawn_blocking(move || {
            let workers: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
            workers.into_iter().for_each(Worker::dismantle);
        });
        if stopped.await.is_err() {
            tracing::error!("a worker ended with a panic");
        }
    }

    fn ask(
        &self,
        id: PortId,
        kind: impl FnOnce(&mut Questions) -> &mut HashMap<PortId, Question>,
    ) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        let question =
            Question { workers: self.shared.len(), ports: Vec::new(), stats: Vec::new(), done: Some(sender) };
        kind(&mut lock(&self.questions)).insert(id, question);
        receiver
    }

    /// Puts a message into a worker's mailbox and wakes the worker.
    async fn send(&self, worker: usize, message: Message) {
        let mut message = message;
        loop {
            let sent = lock(&self.mailboxes)[worker].push(message);
            self.shared[worker].bell.ring();
            match sent {
                Ok(()) => return,
                Err(rtrb::PushError::Full(back)) => message = back,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Listener {
    /// Takes events until the runtime ends.
    pub async fn run(mut self) {
        let mut bytes = [0; 64];
        loop {
            self.bell.arm();
            for n in 0..self.events.len() {
                while let Ok(event) = self.events[n].pop() {
                    self.take(event);
                }
            }
            if self.door.read(&mut bytes).await.is_err() {
                return;
            }
        }
    }

    fn take(&mut self, event: Event) {
        if matches!(event, Event::Pipeline(pipeline::Event::StationMoved { .. })) && !self.hears_of_a_move() {
            return;
        }
        let questions = &mut *lock(&self.questions);
        let news = match event {
            Event::Removed { id, port: Some(port) } => match questions.removals.get_mut(&id) {
                Some(question) => {
                    question.ports.push(*port);
                    return;
                }
                None => {
                    close(vec![*port], &self.area);
                    return;
                }
            },
            Event::Removed { id, port: None } => return answer(&mut questions.removals, id),
            Event::Stats { id, stats } => {
                if let Some(question) = questions.reports.get_mut(&id) {
                    question.stats.push(stats);
                }
                return;
            }
            Event::Reported { id } => return answer(&mut questions.reports, id),
            Event::Refused { id, port } => {
                close(vec![*port], &self.area);
                News::Refused(id)
            }
            Event::Gone { id } => News::Gone(id),
            Event::Pipeline(event) => News::Pipeline(event),
        };
        // Without a manager nobody wants news.
        let _ = self.news.send(news);
    }
}

impl Listener {
    /// Counts a move and says whether the manager is to hear of it.
    fn hears_of_a_move(&mut self) -> bool {
        let (start, count) = &mut self.moves;
        if start.elapsed() > MOVES_WINDOW {
            (*start, *count) = (Instant::now(), 0);
        }
        *count += 1;
        *count <= MOVES
    }
}

/// Counts one worker's answer; the last one answers the question.
fn answer(questions: &mut HashMap<PortId, Question>, id: PortId) {
    let Some(question) = questions.get_mut(&id) else { return };
    question.workers = question.workers.saturating_sub(1);
    if question.workers == 0
        && let Some(mut question) = questions.remove(&id)
        && let Some(done) = question.done.take()
    {
        // Who asked may have lost patience.
        let _ = done.send((question.ports, question.stats));
    }
}

fn close(ports: Vec<Port>, area: &Arc<Area>) -> Stats {
    let mut pool = FramePool::new(Arc::clone(area));
    let stats = ports.iter().map(|port| port.stats()).fold(Stats::default(), sum);
    ports.into_iter().for_each(|port| port.close(&mut pool));
    stats
}

fn sum(a: Stats, b: Stats) -> Stats {
    Stats {
        rx_frames: a.rx_frames + b.rx_frames,
        rx_bytes: a.rx_bytes + b.rx_bytes,
        rx_errors: a.rx_errors + b.rx_errors,
        rx_kernel_drops: a.rx_kernel_drops + b.rx_kernel_drops,
        rx_no_memory: a.rx_no_memory + b.rx_no_memory,
        tx_frames: a.tx_frames + b.tx_frames,
        tx_bytes: a.tx_bytes + b.tx_bytes,
        tx_errors: a.tx_errors + b.tx_errors,
        tx_segmented: a.tx_segmented + b.tx_segmented,
        tx_joined: a.tx_joined + b.tx_joined,
        tx_checksummed: a.tx_checksummed + b.tx_checksummed,
        syscalls: a.syscalls + b.syscalls,
        lent_chunks: a.lent_chunks + b.lent_chunks,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
