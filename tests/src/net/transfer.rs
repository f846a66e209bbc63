//! TCP between namespaces, with every byte looked at.
//!
//! A byte of the stream follows from its position, so what is lost, doubled, moved or mixed with another connection
//! does not pass for the real thing, and neither does what a wrong checksum offload let through.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Space;

/// How long one read or write may wait.
const STALL: Duration = Duration::from_secs(15);
const PIECE: usize = 64 * 1024;

/// Sends `bytes` bytes from `from` to `address` in `to` and as many back, and compares all of them. Returns how
/// long it took.
///
/// # Errors
/// No connection, a stall, or a byte that is not what was sent.
pub fn transfer(from: &Space, to: &Space, address: IpAddr, bytes: u64) -> Result<Duration, String> {
    let what = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let listener = to.inside(|| TcpListener::bind((address, 0))).map_err(what("cannot listen"))?;
    let target = listener.local_addr().map_err(what("it is bound"))?;
    let start = Instant::now();
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let stream = accept(&listener).map_err(what("nobody comes"))?;
            check(&stream, 1, bytes)?;
            send(&stream, 2, bytes).map_err(what("the way back"))
        });
        let client = || {
            let stream = from.inside(|| TcpStream::connect_timeout(&target, STALL));
            let stream = stream.map_err(what("no connection"))?;
            patient(&stream).map_err(what("a socket"))?;
            send(&stream, 1, bytes).map_err(what("the way there"))?;
            check(&stream, 2, bytes)
        };
        let client = client();
        let server = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        client.and(server)
    })?;
    Ok(start.elapsed())
}

fn patient(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))
}

/// Accepts within the time that a stall may take.
fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + STALL;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                patient(&stream)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Fills `piece` with the bytes of a stream from `position` on, a multiple of 8.
fn fill(piece: &mut [u8], stream: u64, position: u64) {
    for (word, at) in piece.chunks_mut(8).zip((position / 8)..) {
        // splitmix64: neighbours have nothing in common.
        let mut mixed = at.wrapping_add(stream << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes()[..word.len()]);
    }
}

fn send(mut stream: &TcpStream, number: u64, bytes: u64) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut position = 0;
    while position < bytes {
        let len = usize::try_from(bytes - position).unwrap_or(PIECE).min(PIECE);
        fill(&mut piece[..len], number, position);
        stream.write_all(&piece[..len])?;
        position += len as u64;
    }
    stream.shutdown(Shutdown::Write)
}

fn check(mut stream: &TcpStream, number: u64, bytes: u64) -> Result<(), String> {
    let (mut piece, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
    let mut position = 0;
    loop {
        let mut len = 0;
        // Whole pieces, so that positions stay multiples of 8.
        while len < PIECE {
            match stream.read(&mut piece[len..]) {
                Ok(0) => break,
                Ok(count) => len += count,
                Err(error) => {
                    return Err(format!("after {} of {bytes} bytes: {error}", position + len as u64));
                }
            }
        }
        fill(&mut expected[..len], number, position);
        if let Some(at) = (0..len).find(|at| piece[*at] != expected[*at]) {
            return Err(format!("byte {} is wrong", position + at as u64));
        }
        position += len as u64;
        if len < PIECE {
            break;
        }
    }
    if position == bytes { Ok(()) } else { Err(format!("{position} of {bytes} bytes came")) }
}

/// A connection that sends a number every 20 ms and gets it back: shows whether it lives, and since when again.
#[derive(Debug)]
pub struct Pulse {
    beats: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Pulse {
    const INTERVAL: Duration = Duration::from_millis(20);

    /// Connects `from` to `address` in `to`, and starts.
    pub fn start(from: &Space, to: &Space, address: IpAddr) -> Self {
        let listener = to.inside(|| TcpListener::bind((address, 0))).expect("the address is there");
        let target: SocketAddr = listener.local_addr().expect("it is bound");
        let server = thread::spawn(move || {
            let mut stream = accept(&listener)?;
            stream.set_nodelay(true)?;
            let mut word = [0; 8];
            while stream.read_exact(&mut word).is_ok() {
                stream.write_all(&word)?;
            }
            Ok(())
        });
        let stream = from.inside(|| TcpStream::connect_timeout(&target, STALL)).expect("a connection");
        let (beats, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, ended) = (Arc::clone(&beats), Arc::clone(&stop));
        let client = thread::spawn(move || {
            let mut stream = stream;
            patient(&stream)?;
            stream.set_nodelay(true)?;
            while !ended.load(Ordering::Relaxed) {
                let number = count.load(Ordering::Relaxed) + 1;
                stream.write_all(&number.to_be_bytes())?;
                let mut word = [0; 8];
                stream.read_exact(&mut word)?;
                if u64::from_be_bytes(word) != number {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "another number came back"));
                }
                count.store(number, Ordering::Relaxed);
                thread::sleep(Self::INTERVAL);
            }
            Ok(())
        });
        Self { beats, stop, threads: vec![client, server] }
    }

    /// Returns how many numbers have come back.
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// Ends the connection, and expects that it was never broken.
    pub fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let result = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result.expect("the connection was never broken");
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_does_not_depend_on_how_it_is_cut() {
        let (mut whole, mut part) = (vec![0; 100], vec![0; 36]);
        fill(&mut whole, 1, 0);
        fill(&mut part, 1, 64);
        assert_eq!(whole[64..], part[..]);
        fill(&mut part, 2, 64);
        assert_ne!(whole[64..], part[..]);
    }
}
