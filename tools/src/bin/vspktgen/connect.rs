//! `vspktgen connect`: TCP connections that are opened and closed again, as many a second as it goes.
//!
//! The server (`--serve`) closes what it accepts; the client has a connection when it reads that end, closes too, and
//! opens the next in its place. So a connection is whole, about seven packets, and its TIME_WAIT stays with the server:
//! the client's ports are free again. Both use the kernel's TCP; what is between them is measured beside it.
//!
//! Limits: one thread each; IPv4 and IPv6 targets can be mixed. A client has the ports of
//! `net.ipv4.ip_local_port_range` for each target.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, accept4, bind, connect, listen, setsockopt,
    socket, sockopt,
};
use nix::unistd::read;
use serde::Serialize;

use crate::report::{Latency, histogram};
use crate::stop::{seconds, stop_after, stopped};

/// Events that one wait reports.
const EVENTS: usize = 256;
/// Milliseconds that a wait lasts at most: the end of the run is noticed then.
const LOOK: u8 = 20;

/// Options of the command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Where to connect to, ADDRESS:PORT, one after the other; or, with --serve, where to listen.
    #[arg(required = true)]
    addresses: Vec<SocketAddr>,
    /// Accept and close.
    #[arg(long)]
    serve: bool,
    /// Connections that are being opened or closed at the same time.
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// Stop after so many.
    #[arg(long)]
    count: Option<u64>,
    /// Stop after this many seconds.
    #[arg(long, value_parser = seconds)]
    duration: Option<Duration>,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub connections: u64,
    pub failed: u64,
    pub seconds: f64,
    pub connections_per_second: f64,
    /// From the call to the end that was read; only at the client.
    pub latency: Option<Latency>,
}

impl Report {
    fn new(connections: u64, failed: u64, time: Duration, latency: Option<&Histogram<u64>>) -> Self {
        let seconds = time.as_secs_f64();
        Self {
            connections,
            failed,
            seconds,
            connections_per_second: if seconds > 0.0 { connections as f64 / seconds } else { 0.0 },
            latency: latency.map(|histogram| Latency::new(histogram, 1.0)),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} connections in {:.3} s: {:.0} a second; {} failed",
            self.connections, self.seconds, self.connections_per_second, self.failed
        )?;
        self.latency.map_or(Ok(()), |latency| write!(f, "latency   {latency}"))
    }
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<Report> {
    stop_after(options.duration);
    if options.serve { serve(options) } else { Client::new(options)?.run() }
}

fn stream_socket(address: &SocketAddr) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
}

fn epoll() -> Result<(Epoll, Vec<EpollEvent>)> {
    Ok((Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, vec![EpollEvent::empty(); EVENTS]))
}

fn serve(options: &Options) -> Result<Report> {
    let (epoll, mut events) = epoll()?;
    let mut listeners = Vec::new();
    for (n, address) in options.addresses.iter().enumerate() {
        let fd = stream_socket(address)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(*address))
            .with_context(|| format!("cannot bind to {address}"))?;
        listen(&fd, Backlog::MAXCONN).with_context(|| format!("cannot listen on {address}"))?;
        epoll.add(fd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, n as u64))?;
        listeners.push(fd);
    }
    let (mut accepted, mut failed) = (0, 0);
    let start = Instant::now();
    while !stopped() && options.count.is_none_or(|count| accepted < count) {
        let found = wait(&epoll, &mut events)?;
        for event in &events[..found] {
            let Some(fd) = usize::try_from(event.data()).ok().and_then(|n| listeners.get(n)) else {
                continue;
            };
            loop {
                match accept4(fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                    Ok(raw) => {
                        accepted += 1;
                        let _ = nix::unistd::close(raw);
                    }
                    Err(Errno::EAGAIN) => break,
                    // The client has given up, or no descriptor is left.
                    Err(_) => {
                        failed += 1;
                        break;
                    }
                }
            }
        }
    }
    Ok(Report::new(accepted, failed, start.elapsed(), None))
}

fn wait(epoll: &Epoll, events: &mut [EpollEvent]) -> Result<usize> {
    match epoll.wait(events, EpollTimeout::from(LOOK)) {
        Err(Errno::EINTR) => Ok(0),
        result => Ok(result?),
    }
}

/// A connection on its way.
struct Flight {
    fd: OwnedFd,
    since: Instant,
}

struct Client {
    targets: Vec<(SocketAddr, SockaddrStorage)>,
    flights: Vec<Option<Flight>>,
    epoll: Epoll,
    events: Vec<EpollEvent>,
    opened: usize,
    limit: u64,
    done: u64,
    failed: u64,
    last_error: Option<Errno>,
    times: Histogram<u64>,
}

impl Client {
    fn new(options: &Options) -> Result<Self> {
        ensure!(options.in_flight > 0, "--in-flight 0 opens no connection");
        let (epoll, events) = epoll()?;
        let targets = options.addresses.iter().map(|address| (*address, SockaddrStorage::from(*address)));
        Ok(Self {
            targets: targets.collect(),
            flights: (0..options.in_flight).map(|_| None).collect(),
            epoll,
            events,
            opened: 0,
            limit: options.count.unwrap_or(u64::MAX),
            done: 0,
            failed: 0,
            last_error: None,
            times: histogram(),
        })
    }

    fn run(mut self) -> Result<Report> {
        let start = Instant::now();
        for place in 0..self.flights.len() {
            self.open(place)?;
        }
        let mut byte = [0];
        while !stopped() && self.done < self.limit {
            let found = wait(&self.epoll, &mut self.events)?;
            for n in 0..found {
                let Ok(place) = usize::try_from(self.events[n].data()) else { continue };
                let Some(flight) = self.flights[place].take() else { continue };
                match read(&flight.fd, &mut byte) {
                    Ok(_) => {
                        self.done += 1;
                        let nanos = u64::try_from(flight.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
                        self.times.saturating_record(nanos);
                    }
                    Err(Errno::EAGAIN) => {
                        self.flights[place] = Some(flight);
                        continue;
                    }
                    Err(error) => self.failed(error),
                }
                drop(flight);
                self.open(place)?;
            }
            ensure!(
                self.done > 0 || self.failed < 1000,
                "nobody accepts: {}",
                self.last_error.map_or("", Errno::desc)
            );
        }
        Ok(Report::new(self.done, self.failed, start.elapsed(), Some(&self.times)))
    }

    fn failed(&mut self, error: Errno) {
        self.failed += 1;
        self.last_error = Some(error);
    }

    /// Opens a connection to the next target. One that is refused at once has failed, and another is tried at the end of
    /// the queue: when none of the targets can be opened, that is an error.
    fn open(&mut self, place: usize) -> Result<()> {
        for _ in 0..=self.targets.len() {
            let (address, target) = &self.targets[self.opened % self.targets.len()];
            self.opened += 1;
            let fd = stream_socket(address).context("cannot open a socket")?;
            match connect(fd.as_raw_fd(), target) {
                Ok(()) | Err(Errno::EINPROGRESS) => {
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, place as u64);
                    self.epoll.add(fd.as_fd(), event)?;
                    self.flights[place] = Some(Flight { fd, since: Instant::now() });
                    return Ok(());
                }
                Err(error) => self.failed(error),
            }
        }
        let why = self.last_error.map_or("", Errno::desc);
        anyhow::bail!("no target can be connected to: {why}")
    }
}
