//! Replies that go on until the client closes: events, dropped frames, captures.
//!
//! Each is a task that looks into the workers' rings now and then and feeds a short queue, which is the reply's
//! body. A client that does not read fills the queue, then the ring, and then loses records; workers never
//! wait for it. When the client closes, the queue does, and the task ends and takes the ring away.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use config::Expression;
use config::api::{CaptureQuery, Direction as Wanted, DropRecord};
use packet::PortId;
use serde::Serialize;
use tokio::sync::{broadcast, mpsc};

use super::pcapng;
use crate::crew::Crew;
use crate::manager::Shared;
use crate::refusal::Refusal;
use crate::worker::capture::{Capture, Reader};

/// How often rings are looked into.
const LOOK: Duration = Duration::from_millis(20);
/// Pieces of a body that wait for the client.
const QUEUE: usize = 64;
/// Bytes of a worker's ring for one capture.
const CAPTURE_RING: usize = 4 << 20;
/// Records of a worker's ring for dropped frames.
const DROP_RING: usize = 256;
/// Packets of a worker that are looked at in one go for a live trace.
const TRACES: usize = 256;
/// A packet is never longer.
const SNAPLEN: u32 = 1 << 18;

/// Makes a body of what comes through the queue.
fn body(receiver: mpsc::Receiver<Bytes>) -> Body {
    Body::from_stream(futures_util::stream::unfold(receiver, async |mut receiver| {
        let piece = receiver.recv().await?;
        Some((Ok::<Bytes, Infallible>(piece), receiver))
    }))
}

fn line(value: &impl Serialize) -> Option<Bytes> {
    let mut line = serde_json::to_vec(value).ok()?;
    line.push(b'\n');
    Some(line.into())
}

/// Returns a body of one JSON line for each value of a channel.
pub fn lines<T: Clone + Send + Serialize + 'static>(mut values: broadcast::Receiver<T>) -> Body {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        loop {
            let value = tokio::select! {
                value = values.recv() => value,
                () = sender.closed() => return,
            };
            match value {
                Ok(value) => {
                    let Some(line) = line(&value) else { continue };
                    if sender.send(line).await.is_err() {
                        return;
                    }
                }
                // The client was too slow; it goes on with what is there.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    });
    body(receiver)
}

/// Gives everybody who follows drops the same records. Workers write none while nobody does.
#[derive(Debug)]
pub struct DropHub {
    records: broadcast::Sender<DropRecord>,
}

impl DropHub {
    /// Makes the hub and the task that feeds it.
    pub async fn start(manager: Shared, crew: Arc<Crew>) -> Self {
        let readers = crew.log_drops(DROP_RING).await;
        let (records, _) = broadcast::channel(1024);
        tokio::spawn(feed(manager, crew, readers, records.clone()));
        Self { records }
    }

    /// Returns a body of one JSON line for each dropped frame.
    pub fn follow(&self) -> Body {
        lines(self.records.subscribe())
    }
}

async fn feed(
    manager: Shared,
    crew: Arc<Crew>,
    mut readers: Vec<rtrb::Consumer<pipeline::DropRecord>>,
    records: broadcast::Sender<DropRecord>,
) {
    let mut on = false;
    loop {
        let wanted = records.receiver_count() > 0;
        if wanted != on {
            on = wanted;
            crew.tables().set_logs_drops(on);
        }
        if readers.iter().any(|reader| !reader.is_empty()) {
            let names = port_names(&manager).await;
            let epoch = epoch_nanos();
            for reader in &mut readers {
                while let Ok(record) = reader.pop() {
                    // An error means that the last follower has just gone.
                    let _ = records.send(DropRecord {
                        time_ms: record.time.as_nanos().wrapping_add(epoch) / 1_000_000,
                        port: names.get(&record.port).cloned(),
                        reason: record.reason.name().to_owned(),
                        rule: record.because.as_deref().map(str::to_owned),
                        len: record.len,
                        head: record.head().iter().map(|byte| format!("{byte:02x}")).collect(),
                    });
                }
            }
        }
        tokio::time::sleep(if on { LOOK } else { 10 * LOOK }).await;
    }
}

async fn port_names(manager: &Shared) -> HashMap<PortId, String> {
    manager.lock().await.port_names()
}

/// Returns a body with the frames of a port as pcapng.
///
/// # Errors
/// There is no such port, or it has no device.
pub async fn capture(manager: &Shared, query: CaptureQuery) -> Result<Body, Refusal> {
    let locked = manager.lock().await;
    let crew = Arc::clone(&locked.crew);
    let Some(attached) = locked.ports.get(&query.port) else {
        return Err(match locked.waiting.get(&query.port) {
            Some(waiting) => {
                Refusal::conflict(format!("port '{}' has no device: {}", query.port, waiting.reason))
            }
            None => Refusal::unknown("port", &query.port),
        });
    };
    let id = attached.id;
    drop(locked);
    let snaplen = query.snaplen.filter(|n| *n > 0).unwrap_or(SNAPLEN);
    let (rx, tx) = match query.direction {
        Wanted::Rx => (true, false),
        Wanted::Tx => (false, true),
        Wanted::Both => (true, true),
    };
    // Any worker may transmit for the port.
    let number = packet::Instant::now().as_nanos();
    let mut readers = Vec::new();
    for worker in 0..crew.shared().len() {
        let kept = usize::try_from(snaplen).unwrap_or(usize::MAX);
        let (capture, reader) = Capture::new(number, Some(id), (rx, tx), kept, CAPTURE_RING);
        crew.add_capture(worker, capture).await;
        readers.push(reader);
    }
    let (sender, receiver) = mpsc::channel(QUEUE);
    let name = query.port;
    tokio::spawn(async move {
        copy(&mut readers, &sender, &name, snaplen).await;
        for worker in 0..crew.shared().len() {
            crew.remove_capture(worker, number).await;
        }
        let lost: u64 = readers.iter().map(Reader::lost).sum();
        if lost > 0 {
            tracing::warn!(port = name, lost, "a capture was read too slowly");
        }
    });
    Ok(body(receiver))
}

async fn copy(readers: &mut [Reader], sender: &mpsc::Sender<Bytes>, name: &str, snaplen: u32) {
    let epoch = epoch_nanos();
    if sender.send(pcapng::header(name, snaplen).into()).await.is_err() {
        return;
    }
    loop {
        let mut piece = Vec::new();
        for reader in &mut *readers {
            while let Some(record) = reader.read() {
                pcapng::frame(&mut piece, &record, epoch);
                if piece.len() > 1 << 20 {
                    break;
                }
            }
        }
        if piece.is_empty() {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = sender.closed() => return,
            }
        } else if sender.send(piece.into()).await.is_err() {
            return;
        }
        if readers.iter().all(Reader::is_over) {
            return;
        }
    }
}

/// Returns a body of one JSON line for each packet that comes in and matches: what the stages say about it. Workers
/// copy their packets only while somebody follows.
pub async fn trace(manager: &Shared, expression: Expression) -> Body {
    let crew = Arc::clone(&manager.lock().await.crew);
    let number = packet::Instant::now().as_nanos();
    let mut readers = Vec::new();
    for worker in 0..crew.shared().len() {
        let kept = usize::try_from(SNAPLEN).unwrap_or(usize::MAX);
        let (capture, reader) = Capture::new(number, None, (true, false), kept, CAPTURE_RING);
        crew.add_capture(worker, capture).await;
        readers.push(reader);
    }
    let (sender, receiver) = mpsc::channel(QUEUE);
    let manager = Arc::clone(manager);
    tokio::spawn(async move {
        while !sender.is_closed() {
            let mut replies = Vec::new();
            {
                let manager = manager.lock().await;
                for reader in &mut readers {
                    // Some at a time: the manager has other things to do.
                    for record in std::iter::from_fn(|| reader.read()).take(TRACES) {
                        replies.extend(manager.trace_live(&expression, record.port, &record.head));
                    }
                }
            }
            for reply in &replies {
                let Some(line) = line(reply) else { continue };
                if sender.send(line).await.is_err() {
                    break;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = sender.closed() => {}
            }
        }
        for worker in 0..crew.shared().len() {
            crew.remove_capture(worker, number).await;
        }
    });
    body(receiver)
}

/// Returns what the start of the workers' clock is after 1970, in nanoseconds.
fn epoch_nanos() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix = u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX);
    unix.wrapping_sub(packet::Instant::now().as_nanos())
}
