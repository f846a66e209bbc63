//! Datagrams: each client of a published port has a socket towards the container, until both have been silent for
//! [`IDLE`].
//!
//! A client is an address and port, and the address of ours that it sent to, from which it is answered. All sockets of
//! the thread share one buffer: between receiving a datagram and sending it on, nothing waits. What cannot be sent at
//! once is dropped, as UDP may.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, send, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Place, Rule, Shared};

/// A client that neither sent nor received for so long is forgotten (RFC 4787, REQ-5: not below two minutes).
const IDLE: Duration = Duration::from_secs(120);
/// Datagrams of one socket that are handled before others have their turn.
const ROUND: usize = 64;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 1 << 16]);
}

/// Who sent, and to which of our addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Client {
    address: SocketAddr,
    /// `None` when the kernel did not say.
    to: Option<IpAddr>,
}

struct Session {
    socket: UdpSocket,
    to: SocketAddr,
    last: std::cell::Cell<Instant>,
}

/// A session in the table: its task, which answers the client, ends with it.
struct Entry {
    session: Rc<Session>,
    task: AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Sessions = Rc<RefCell<HashMap<Client, Entry>>>;

/// Receives datagrams for ever. The sessions end with the task.
pub(super) async fn receive(socket: UdpSocket, rule: watch::Receiver<Rule>, shared: Rc<Shared>) {
    let socket = Rc::new(socket);
    let sessions: Sessions = Rc::default();
    loop {
        if socket.readable().await.is_err() {
            sleep(Duration::from_millis(100)).await;
            continue;
        }
        for _ in 0..ROUND {
            let more = BUFFER.with_borrow_mut(|buffer| {
                let received = socket.try_io(Interest::READABLE, || receive_from(&socket, buffer));
                match received {
                    Ok(Some((client, len))) => {
                        hand_over(&socket, client, &buffer[..len], &rule, &sessions, &shared);
                        true
                    }
                    Ok(None) => true,
                    Err(_) => false,
                }
            });
            if !more {
                break;
            }
        }
        tokio::task::yield_now().await;
    }
}

fn hand_over(
    listener: &Rc<UdpSocket>,
    client: Client,
    data: &[u8],
    rule: &watch::Receiver<Rule>,
    sessions: &Sessions,
    shared: &Rc<Shared>,
) {
    let target = rule.borrow().target(client.address.ip());
    let known = sessions.borrow().get(&client).map(|entry| Rc::clone(&entry.session));
    let session = match (known, target) {
        (Some(session), Some(to)) if session.to == to => session,
        (known, target) => {
            // The rule has changed: the client's next packet goes where it says now.
            if known.is_some() {
                sessions.borrow_mut().remove(&client);
            }
            let (Some(to), Some(place)) = (target, shared.admit()) else { return };
            let Ok(session) = open(to, shared) else { return };
            let session = Rc::new(session);
            let back =
                answer(Rc::clone(listener), client, Rc::clone(&session), Rc::downgrade(sessions), place);
            let task = spawn_local(back).abort_handle();
            sessions.borrow_mut().insert(client, Entry { session: Rc::clone(&session), task });
            session
        }
    };
    session.last.set(Instant::now());
    // Not by the runtime, which does not know yet that a new socket is writable. An error is about an earlier datagram
    // (nobody listens there), or there is no room.
    let _ = send(session.socket.as_raw_fd(), data, MsgFlags::MSG_DONTWAIT);
}

fn open(to: SocketAddr, shared: &Shared) -> io::Result<Session> {
    let socket = std::net::UdpSocket::bind(shared.source.towards(to))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    Ok(Session { socket: UdpSocket::from_std(socket)?, to, last: std::cell::Cell::new(Instant::now()) })
}

/// Gives the client what the container answers, until there is silence.
async fn answer(
    listener: Rc<UdpSocket>,
    client: Client,
    session: Rc<Session>,
    sessions: std::rc::Weak<RefCell<HashMap<Client, Entry>>>,
    _place: Place,
) {
    loop {
        let end = session.last.get() + IDLE;
        tokio::select! {
            ready = session.socket.readable() => {
                if ready.is_err() {
                    break;
                }
            }
            () = sleep_until(end) => {
                if session.last.get() + IDLE <= Instant::now() {
                    break;
                }
                continue;
            }
        }
        for _ in 0..ROUND {
            let more = BUFFER.with_borrow_mut(|buffer| match session.socket.try_recv(buffer) {
                Ok(len) => {
                    session.last.set(Instant::now());
                    let _ = send_to(&listener, client, &buffer[..len]);
                    true
                }
                // "Nobody listens there" is told once, and is no reason to end.
                Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
            });
            if !more {
                break;
            }
        }
        tokio::task::yield_now().await;
    }
    if let Some(sessions) = sessions.upgrade() {
        sessions.borrow_mut().remove(&client);
    }
}

/// Reads a datagram; `None` when its sender has no address.
fn receive_from(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<(Client, usize)>> {
    let mut space = nix::cmsg_space!(libc::in6_pktinfo);
    let mut pieces = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut pieces,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let to = message.cmsgs().ok().and_then(|mut messages| {
        messages.find_map(|message| match message {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr))))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
            _ => None,
        })
    });
    let address = message.address.as_ref().and_then(socket_address);
    Ok(address.map(|address| (Client { address, to }, message.bytes)))
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    // With the zone: a link-local client is answered by the link that it came by.
    address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into()))
}

/// Sends to the client from the address that it sent to.
fn send_to(socket: &UdpSocket, client: Client, data: &[u8]) -> io::Result<usize> {
    let to = SockaddrStorage::from(client.address);
    let pieces = [IoSlice::new(data)];
    let from = |control: &[ControlMessage<'_>]| {
        sendmsg(socket.as_raw_fd(), &pieces, control, MsgFlags::MSG_DONTWAIT, Some(&to))
            .map_err(io::Error::from)
    };
    match client.to {
        Some(IpAddr::V4(address)) => {
            let source = libc::in_addr { s_addr: u32::from(address).to_be() };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: source };
            from(&[ControlMessage::Ipv4PacketInfo(&info)])
        }
        Some(IpAddr::V6(address)) => {
            let source = libc::in6_addr { s6_addr: address.octets() };
            let info = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: 0 };
            from(&[ControlMessage::Ipv6PacketInfo(&info)])
        }
        None => from(&[]),
    }
}
