//! Services that tell who asked: by TCP and UDP they answer with the address that they saw.
//!
//! A TCP connection begins with the peer's address in a line, and then gives back what it is sent. A UDP packet is
//! answered by one that has the peer's address in a line and behind it what came.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Net, PATIENCE, Space, wait_until};

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Proto {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// Returns the name that configurations use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Returns an address with an L4 port, as a target.
pub fn at(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// How often a service looks whether it should end.
const TURN: Duration = Duration::from_millis(5);

impl Net {
    /// Starts services on L4 ports of a namespace's addresses, by both protocols.
    pub fn serve(&self, name: &str, addresses: [&str; 2], ports: &[u16]) -> Vec<Service> {
        let space = self.space(name);
        let places = ports.iter().flat_map(|port| addresses.map(|address| at(address, *port)));
        let all = places.flat_map(|place| Proto::ALL.map(|protocol| (protocol, place.clone())));
        all.map(|(protocol, place)| Service::start(&space, protocol, &place)).collect()
    }
}

/// Binds a socket inside a namespace. An address that was just given to it may not be usable yet.
fn bound<T: Send>(space: &Space, address: SocketAddr, bind: impl Fn() -> io::Result<T> + Sync) -> T {
    let mut socket = None;
    wait_until(PATIENCE, || {
        let result = space.inside(&bind);
        let later = matches!(&result, Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable);
        socket = Some(result);
        !later
    });
    let socket = socket.expect("it was tried");
    socket.unwrap_or_else(|error| panic!("{}: {address}: {error}", space.name()))
}

/// A service that runs until it is dropped. See the module header.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts a service at an address (`10.1.0.10:80`, `[::]:80`) of a namespace.
    pub fn start(space: &Space, protocol: Proto, address: &str) -> Self {
        let address: SocketAddr = address.parse().expect("an address with an L4 port");
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let (address, thread) = match protocol {
            Proto::Tcp => {
                let listener = bound(space, address, || TcpListener::bind(address));
                let bound = listener.local_addr().expect("it is bound");
                (bound, thread::spawn(move || serve_tcp(&listener, &ended)))
            }
            Proto::Udp => {
                let socket = bound(space, address, || UdpSocket::bind(address));
                let bound = socket.local_addr().expect("it is bound");
                (bound, thread::spawn(move || serve_udp(&socket, &ended)))
            }
        };
        Self { address, stop, thread: Some(thread) }
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve_tcp(listener: &TcpListener, ended: &AtomicBool) {
    listener.set_nonblocking(true).expect("a socket");
    while !ended.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, peer)) => {
                thread::spawn(move || echo(stream, peer));
            }
            Err(_) => thread::sleep(TURN),
        }
    }
}

fn echo(mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    writeln!(stream, "{peer}")?;
    let mut piece = vec![0; 64 * 1024];
    loop {
        let len = stream.read(&mut piece)?;
        if len == 0 {
            return Ok(());
        }
        stream.write_all(&piece[..len])?;
    }
}

fn serve_udp(socket: &UdpSocket, ended: &AtomicBool) {
    socket.set_read_timeout(Some(TURN)).expect("a socket");
    let mut packet = vec![0; 64 * 1024];
    while !ended.load(Ordering::Relaxed) {
        if let Ok((len, peer)) = socket.recv_from(&mut packet) {
            let mut answer = format!("{peer}\n").into_bytes();
            answer.extend_from_slice(&packet[..len]);
            let _ = socket.send_to(&answer, peer);
        }
    }
}

/// How long a client waits.
const WAIT: Duration = Duration::from_secs(3);

/// Asks a service from a namespace, and returns whom it saw.
///
/// # Errors
/// No connection or no answer within some seconds; or something else answers.
pub fn ask(space: &Space, protocol: Proto, target: &str) -> io::Result<IpAddr> {
    ask_within(WAIT, space, protocol, target)
}

/// [`ask`] that waits no longer than `wait` for a connection and for an answer.
pub(super) fn ask_within(wait: Duration, space: &Space, protocol: Proto, target: &str) -> io::Result<IpAddr> {
    Ok(match protocol {
        Proto::Tcp => Call::connect_within(wait, space, target)?.peer().ip(),
        Proto::Udp => Caller::new(space, target)?.ask(b"who?", wait)?.ip(),
    })
}

/// A TCP connection to a [`Service`].
#[derive(Debug)]
pub struct Call {
    stream: BufReader<TcpStream>,
    peer: SocketAddr,
}

impl Call {
    /// Connects from a namespace.
    ///
    /// # Errors
    /// No connection, or no service there.
    pub fn connect(space: &Space, target: &str) -> io::Result<Self> {
        Self::connect_within(WAIT, space, target)
    }

    fn connect_within(wait: Duration, space: &Space, target: &str) -> io::Result<Self> {
        let target: SocketAddr = target.parse().expect("an address with an L4 port");
        let stream = space.inside(|| TcpStream::connect_timeout(&target, wait))?;
        stream.set_read_timeout(Some(wait))?;
        stream.set_write_timeout(Some(wait))?;
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line)?;
        Ok(Self { stream, peer: parse(&line)? })
    }

    /// Returns whom the service saw.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Returns the client's own address.
    pub fn local(&self) -> SocketAddr {
        self.stream.get_ref().local_addr().expect("a connected socket")
    }

    /// Sends bytes and gets them back, within `wait`.
    ///
    /// # Errors
    /// The connection is broken, or nothing comes in time.
    pub fn echo(&mut self, bytes: &[u8], wait: Duration) -> io::Result<()> {
        let mut back = vec![0; bytes.len()];
        self.stream.get_ref().set_read_timeout(Some(wait))?;
        let mut writer = self.stream.get_ref().try_clone()?;
        let written = thread::scope(|scope| {
            let written = scope.spawn(move || writer.write_all(bytes));
            self.stream.read_exact(&mut back)?;
            written.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        written?;
        if back == bytes { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "other bytes")) }
    }
}

/// A UDP socket that asks one [`Service`] again and again, from the same L4 port.
#[derive(Debug)]
pub struct Caller {
    socket: UdpSocket,
}

impl Caller {
    /// Makes the socket in a namespace.
    ///
    /// # Errors
    /// There is no route.
    pub fn new(space: &Space, target: &str) -> io::Result<Self> {
        let target: SocketAddr = target.parse().expect("an address with an L4 port");
        let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = space.inside(|| UdpSocket::bind((any, 0)))?;
        socket.connect(target)?;
        Ok(Self { socket })
    }

    /// Sends a packet, and returns whom the service saw when the same bytes have come back.
    ///
    /// # Errors
    /// Nothing comes within `wait`, or other bytes do.
    pub fn ask(&self, bytes: &[u8], wait: Duration) -> io::Result<SocketAddr> {
        self.socket.send(bytes)?;
        self.socket.set_read_timeout(Some(wait))?;
        let mut packet = vec![0; 64 * 1024];
        let len = self.socket.recv(&mut packet)?;
        let end = packet[..len].iter().position(|byte| *byte == b'\n').unwrap_or(len);
        let peer = parse(&String::from_utf8_lossy(&packet[..end]))?;
        if packet.get(end + 1..len) != Some(bytes) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "other bytes"));
        }
        Ok(peer)
    }
}

fn parse(line: &str) -> io::Result<SocketAddr> {
    line.trim()
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("no service: {line:?}")))
}
