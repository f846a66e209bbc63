//! The keeper: writes down which connections there are, so that they outlive the daemon.
//!
//! A porter's book by the door. Whoever comes is entered at once; now and then the porter goes through the rooms, corrects
//! what has changed and strikes out who has left. Should the house be closed without notice, the next porter knows
//! from the book who was expected where.
//!
//! The book is `/run/vswitch/NAME.connections`, a file of places of one length ([`record`]): a connection's place is that
//! of its slot in the table, so the file is never longer than the table and needs no index. What is written without the kernel
//! having been stopped is there after `kill -9`, and a place that was torn has a wrong checksum.
//!
//! * Every [`TURN`] the table is asked what is new ([`Connections::news`]) and that is written: a translated connection
//!   is in the file within 100 ms.
//! * Each turn also looks at a part of what is known, all of it once in [`ROUND`]: states that have changed are written
//!   again, and ended connections struck out. What is not translated comes into the file here, when both sides have been
//!   heard.
//! * A stop writes all once more.
//!
//! Workers are not held up: the keeper takes one shard's or one connection's lock at a time, for as long as it takes to copy it.
//!
//! **Start.** [`Keeper::start`] returns what the file says, and begins a new one beside it, `NAME.connections.new`. The
//! manager makes the connections anew before workers hear of the ports that they go by (`manager/restore.rs`). Until
//! it says that it is through ([`Keeper::settled`]) the old file stays: a daemon that is killed while it starts loses nothing.
//!
//! **Memory.** 8 bytes a slot here, 128 a connection in /run.

pub mod record;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use packet::{NetworkId, PortId};
use pipeline::Tables;
use pipeline::tables::connections::{Connections, Marks, Saved, State};

use record::{LEN, Name, Place, Record};

/// How often new connections are written.
pub const TURN: Duration = Duration::from_millis(50);
/// How often each known connection is looked at.
pub const ROUND: Duration = Duration::from_secs(1);
const PARTS: usize = (ROUND.as_millis() / TURN.as_millis()) as usize;
/// A slot with a connection that is not in the file; no checksum, but for one in 2^64.
const SEEN: u64 = 1;
/// Places that are read or written at once.
const BLOCK: usize = 512;
/// Longer files are not ours: no table has more slots.
const LONGEST: u64 = (1 << 23) * LEN as u64;

/// Which number of this run is whose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Networks.
    pub networks: HashMap<NetworkId, Name>,
    /// Ports.
    pub ports: HashMap<PortId, Name>,
}

/// What the file of the run before says.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The connections.
    pub records: Vec<Record>,
    /// Places that could not be read.
    pub damaged: usize,
    /// Why it was not read, or not to its end.
    pub trouble: Option<String>,
}

#[derive(Debug, Default)]
struct Common {
    names: Mutex<Names>,
    stop: AtomicBool,
    settled: AtomicBool,
}

/// The manager's handle. See the module header.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    common: Arc<Common>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Reads what an earlier daemon of the same `switch` has left in `directory`, and starts to write.
    ///
    /// # Errors
    /// No file can be made, or no thread; what was left has been read.
    pub fn start(directory: &Path, switch: &str, tables: Arc<Tables>) -> (Loaded, io::Result<Self>) {
        let path = directory.join(format!("{switch}.connections"));
        let boot = boot();
        let loaded = load(&path, boot);
        (loaded, Self::begin(directory, path, boot, tables))
    }

    fn begin(directory: &Path, path: PathBuf, boot: u64, tables: Arc<Tables>) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let new = new_path(&path);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all_at(&record::header(boot), 0)?;
        let common = Arc::new(Common::default());
        let book = Book {
            file,
            path: path.clone(),
            written: vec![0; tables.connections.slots() as usize],
            marks: Marks::default(),
            cursor: 0,
            moved: false,
            failed: false,
        };
        let shared = Arc::clone(&common);
        let thread = std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || run(book, &shared, &tables))?;
        Ok(Self { path, common, thread: Some(thread) })
    }

    /// Says whose the numbers are from now on. To be called before connections of a new number can be made.
    pub fn name(&self, names: Names) {
        *lock(&self.common.names) = names;
    }

    /// Says that what was left by the run before is in the table, as far as it can be.
    pub fn settled(&self) {
        self.common.settled.store(true, Ordering::Release);
    }

    /// Writes everything once more and ends. Blocks for some milliseconds.
    pub fn stop(&mut self) {
        self.common.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }

    /// Stops, and removes what was written.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove(mut self) -> io::Result<()> {
        self.stop();
        for path in [new_path(&self.path), self.path.clone()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn new_path(path: &Path) -> PathBuf {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    new.into()
}

/// Returns a number for the host's present boot.
fn boot() -> u64 {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
}

/// Reads the file and, if the daemon before did not come to settle, the one beside it.
fn load(path: &Path, boot: u64) -> Loaded {
    let mut loaded = Loaded::default();
    for path in [path.to_owned(), new_path(path)] {
        match File::open(&path) {
            Ok(file) => read(file, boot, &mut loaded),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => loaded.trouble = Some(error.to_string()),
        }
    }
    loaded
}

/// Reads a file as far as it is good.
fn read(source: impl Read, boot: u64, loaded: &mut Loaded) {
    let mut source = io::BufReader::with_capacity(BLOCK * LEN, source.take(LONGEST));
    let mut bytes = [0; LEN];
    let mut is_header = true;
    loop {
        match fill(&mut source, &mut bytes) {
            Ok(LEN) => {}
            Ok(0) if !is_header => return,
            Ok(_) if is_header => {
                loaded.trouble = Some(record::Foreign::Unknown.to_string());
                return;
            }
            // The daemon was killed in the middle of a write.
            Ok(_) => {
                loaded.damaged += 1;
                return;
            }
            Err(error) => {
                loaded.trouble = Some(error.to_string());
                return;
            }
        }
        if std::mem::take(&mut is_header) {
            if let Err(why) = record::check_header(&bytes, boot) {
                loaded.trouble = Some(why.to_string());
                return;
            }
            continue;
        }
        match Record::decode(&bytes) {
            Place::Empty => {}
            Place::Taken(record) => loaded.records.push(record),
            Place::Damaged => loaded.damaged += 1,
        }
    }
}

/// Reads until `bytes` is full or the source ends, and returns how many came.
fn fill(source: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < bytes.len() {
        match source.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

fn run(mut book: Book, common: &Common, tables: &Tables) {
    let connections = &tables.connections;
    loop {
        let stop = common.stop.load(Ordering::Acquire);
        let settled = common.settled.load(Ordering::Acquire);
        let names = lock(&common.names).clone();
        book.enter_news(connections, &names);
        let part = if stop { book.written.len() } else { book.written.len().div_ceil(PARTS) };
        book.go_through(connections, &names, part);
        if settled {
            book.replace();
        }
        if stop {
            return;
        }
        std::thread::park_timeout(TURN);
    }
}

/// The file, and what is in it.
struct Book {
    file: File,
    /// Where it is to be in the end.
    path: PathBuf,
    /// By slot: the checksum of what its place holds; 0: nothing is there, and nothing known.
    written: Vec<u64>,
    marks: Marks,
    cursor: usize,
    moved: bool,
    failed: bool,
}

impl Book {
    fn enter_news(&mut self, connections: &Connections, names: &Names) {
        let mut marks = std::mem::take(&mut self.marks);
        connections.news(&mut marks, |slot| self.look(connections, names, slot));
        self.marks = marks;
    }

    /// Looks at the next `count` slots in which something is.
    fn go_through(&mut self, connections: &Connections, names: &Names, count: usize) {
        for _ in 0..count {
            let slot = self.cursor;
            self.cursor = if slot + 1 == self.written.len() { 0 } else { slot + 1 };
            if self.written.get(slot).is_some_and(|sum| *sum != 0) {
                self.look(connections, names, u32::try_from(slot).unwrap_or(u32::MAX));
            }
        }
    }

    /// Makes a slot's place say what the table says.
    fn look(&mut self, connections: &Connections, names: &Names, slot: u32) {
        let saved = connections.saved(slot);
        let bytes = saved.as_ref().and_then(|saved| written_as(saved, names)).map(|record| record.encode());
        let sum = match (&bytes, saved) {
            (Some(bytes), _) => record::checksum(bytes).max(SEEN + 1),
            (None, Some(_)) => SEEN,
            (None, None) => 0,
        };
        let Some(before) = self.written.get_mut(slot as usize) else { return };
        if *before == sum {
            return;
        }
        let is_there = *before > SEEN;
        *before = sum;
        if bytes.is_none() && !is_there {
            return;
        }
        let place = (u64::from(slot) + 1) * LEN as u64;
        let done = self.file.write_all_at(&bytes.unwrap_or([0; LEN]), place);
        if let Err(error) = done {
            // To be tried again when the slot is looked at next.
            *before = SEEN + 1;
            if !std::mem::replace(&mut self.failed, true) {
                tracing::error!(%error, path = %self.path.display(), "connections are not written down");
            }
        } else {
            self.failed = false;
        }
    }

    /// Puts the file in the place of that of the run before.
    fn replace(&mut self) {
        if !std::mem::replace(&mut self.moved, true)
            && let Err(error) = fs::rename(new_path(&self.path), &self.path)
        {
            tracing::error!(%error, path = %self.path.display(), "the file of connections cannot be replaced");
        }
    }
}

/// Returns what is written of a connection; `None`: nothing, at least for now.
fn written_as(saved: &Saved, names: &Names) -> Option<Record> {
    let Saved { original, reply, owner, state, details } = saved;
    let is_translated = original.tuple != reply.tuple.inverted();
    let is_over = matches!(state, State::Closed | State::Reset);
    // What nobody has answered and nobody has translated can begin anew.
    if is_over || !is_translated && state.is_half_open() {
        return None;
    }
    let network = |id| names.networks.get(&id).copied();
    let port = |id| names.ports.get(&id).copied();
    Some(Record {
        from: network(original.network)?,
        to: network(reply.network)?,
        owner: port(*owner)?,
        peer: port(details.peer_port)?,
        original: original.tuple,
        reply: reply.tuple,
        state: *state,
        leased: details.nat_port.is_some(),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests;
