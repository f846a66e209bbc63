//! The relay: holds the host's ports that the switch publishes, and carries what reaches them past the steering.
//!
//! A published port is the switch's: packets to it from outside are steered away before the host's stack sees them. A
//! socket of ours is bound to it all the same, for two reasons. The host's own programs are refused the port, and one
//! that has it already is named. And what comes by a way without steering, `lo` above all or docker0, arrives at this
//! socket and is relayed to the container over `vsw-host`, from an address of the relay's own, so that answers come back.
//!
//! * TCP: a listener; each connection is carried by a task, both ways, until both ends are closed.
//! * UDP: a socket; each client has a socket of its own towards the container (`udp.rs`).
//! * SCTP: bound where the kernel has SCTP, and not relayed.
//!
//! `allow` is looked at here, since the container's side shows the relay's address and no longer the client's.
//!
//! # Threads and limits
//! A thread `relay` with an asynchronous runtime of its own, in the namespace that [`Relay::start`] was called in: its
//! work never holds up the manager. A published port costs a file descriptor, a kernel socket and about 1 KiB; ten
//! thousand of them a tenth of a second to bind. A connection costs two descriptors, a UDP client one; of both together
//! there are at most [`CLIENTS`], and who comes then is turned away. The process's limit of open files has to allow for
//! it; where it does not, the ports that could not be held are reported.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, LocalSet, spawn_local};

mod owner;
mod sockets;
mod tcp;
mod udp;

/// Connections and UDP clients that are relayed at the same time.
pub const CLIENTS: usize = 4096;

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// A port of the host that is the switch's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The host's address, or one of all zeros for all of that family, and the port.
    pub listen: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The container's address and port; `None` holds the port and answers nobody.
    pub to: Option<SocketAddr>,
    /// The clients that may; none means all.
    pub allow: Arc<[IpNet]>,
}

/// A port that could not be held. The next [`Relay::set`] tries again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The address and port.
    pub listen: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// Whose it is, or what else the kernel said.
    pub reason: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {}/{} {}", self.listen, self.protocol, self.reason)
    }
}

/// The addresses that containers see.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// For IPv4.
    pub v4: Ipv4Addr,
    /// For IPv6.
    pub v6: Ipv6Addr,
}

impl Source {
    fn towards(self, to: SocketAddr) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(_) => SocketAddr::new(self.v4.into(), 0),
            IpAddr::V6(_) => SocketAddr::new(self.v6.into(), 0),
        }
    }
}

type Order = (Vec<Published>, oneshot::Sender<Vec<Conflict>>);

/// A handle of the manager's to the relay, which ends, and lets go of all ports, when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Relay {
    orders: mpsc::UnboundedSender<Order>,
}

impl Relay {
    /// Starts the relay in the namespace of the calling thread. Containers see `source`.
    ///
    /// # Errors
    /// There can be no thread or runtime.
    pub fn start(source: Source) -> io::Result<Self> {
        let (orders, mut queue) = mpsc::unbounded_channel::<Order>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("relay".to_owned()).spawn(move || {
            let mut held = Held { ports: BTreeMap::new(), shared: Rc::new(Shared::new(source)) };
            LocalSet::new().block_on(&runtime, async {
                while let Some((published, reply)) = queue.recv().await {
                    let _ = reply.send(held.set(published));
                }
            });
        })?;
        Ok(Self { orders })
    }

    /// Holds exactly these ports. What is held already is not let go for a moment, and only its target changes:
    /// connections and clients of the old target end. Returns the ports that could not be held.
    pub async fn set(&self, published: Vec<Published>) -> Vec<Conflict> {
        let (reply, answer) = oneshot::channel();
        let ended = |published: &Published| Conflict {
            listen: published.listen,
            protocol: published.protocol,
            reason: "cannot be held: the relay has ended".to_owned(),
        };
        match self.orders.send((published, reply)) {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(mpsc::error::SendError((published, _))) => published.iter().map(ended).collect(),
        }
    }
}

/// Where to relay to, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    to: Option<SocketAddr>,
    allow: Arc<[IpNet]>,
}

impl Rule {
    /// Returns the target for a client.
    fn target(&self, client: IpAddr) -> Option<SocketAddr> {
        let may = self.allow.is_empty() || self.allow.iter().any(|net| net.contains(&client.to_canonical()));
        self.to.filter(|_| may)
    }
}

/// What all tasks of the thread have in common.
struct Shared {
    source: Source,
    clients: Cell<usize>,
}

impl Shared {
    fn new(source: Source) -> Self {
        Self { source, clients: Cell::new(0) }
    }

    /// Takes one of the places for clients, if there is one; it is free again when the result is dropped.
    fn admit(self: &Rc<Self>) -> Option<Place> {
        let clients = self.clients.get();
        (clients < CLIENTS).then(|| {
            self.clients.set(clients + 1);
            Place(Rc::clone(self))
        })
    }
}

struct Place(Rc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.clients.set(self.0.clients.get() - 1);
    }
}

/// A port that is held. Its tasks end with it.
struct Port {
    /// The tasks see a change, and the end.
    rule: watch::Sender<Rule>,
    /// Accepts or receives; for SCTP there is nothing to do.
    task: Option<AbortHandle>,
    /// An SCTP socket.
    _socket: Option<std::os::fd::OwnedFd>,
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

struct Held {
    ports: BTreeMap<(SocketAddr, Protocol), Port>,
    shared: Rc<Shared>,
}

impl Held {
    fn set(&mut self, published: Vec<Published>) -> Vec<Conflict> {
        let wanted: BTreeSet<_> = published.iter().map(|port| (port.listen, port.protocol)).collect();
        self.ports.retain(|key, _| wanted.contains(key));
        let mut conflicts = Vec::new();
        for Published { listen, protocol, to, allow } in published {
            let rule = Rule { to, allow };
            if let Some(port) = self.ports.get(&(listen, protocol)) {
                port.rule.send_if_modified(|now| {
                    let changed = *now != rule;
                    *now = rule;
                    changed
                });
                continue;
            }
            match self.hold(listen, protocol, rule) {
                Ok(port) => {
                    self.ports.insert((listen, protocol), port);
                }
                Err(error) => {
                    let reason = match error.raw_os_error() {
                        Some(libc::EADDRINUSE) => owner::describe(listen, protocol),
                        _ => format!("cannot be held: {error}"),
                    };
                    conflicts.push(Conflict { listen, protocol, reason });
                }
            }
        }
        conflicts
    }

    fn hold(&self, listen: SocketAddr, protocol: Protocol, rule: Rule) -> io::Result<Port> {
        let (rule, changes) = watch::channel(rule);
        let shared = Rc::clone(&self.shared);
        let (task, socket) = match protocol {
            Protocol::Tcp => {
                let listener = sockets::tcp(listen)?;
                (Some(spawn_local(tcp::accept(listener, changes, shared)).abort_handle()), None)
            }
            Protocol::Udp => {
                let socket = sockets::udp(listen)?;
                (Some(spawn_local(udp::receive(socket, changes, shared)).abort_handle()), None)
            }
            Protocol::Sctp => (None, sockets::sctp(listen)?),
        };
        Ok(Port { rule, task, _socket: socket })
    }
}
