//! What happens to links in the switch's namespace, as it happens.
//!
//! When a container's namespace dies, the kernel deletes its ends of veth pairs and with them ours; the event
//! reaches the manager within milliseconds. A tap that was moved to its namespace is not seen here: its open
//! files fail when it goes.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use tokio::runtime::Handle;

use super::{Error, Link, netlink};

/// RTMGRP_LINK (linux/rtnetlink.h).
const LINK_GROUP: u32 = 1;
/// Room in the kernel for the news of some thousand links that change at once.
const RECEIVE_BUFFER: usize = 8 << 20;

/// What happened to a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is new, or something about it changed (also without a difference to what is known).
    Changed(Link),
    /// It was deleted.
    Gone(Link),
    /// Events were lost: look at everything anew.
    Lost,
}

/// A stream of [`LinkEvent`]s.
pub struct Watch {
    socket: TokioSocket,
    buffer: Vec<u8>,
    waiting: VecDeque<LinkEvent>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Watch {
    /// Hears about links in the namespace of the calling thread, on behalf of the tasks of `runtime`.
    pub(super) fn open(runtime: &Handle) -> Result<Self, Error> {
        let open = || {
            let _context = runtime.enter();
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            // Beyond net.core.rmem_max where we may; a smaller buffer only means "lost" sooner.
            let _ = setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &RECEIVE_BUFFER);
            socket.socket_mut().bind(&SocketAddr::new(0, LINK_GROUP))?;
            Ok(socket)
        };
        let socket = open().map_err(|error: io::Error| Error::kernel("watch links", error))?;
        Ok(Self { socket, buffer: Vec::with_capacity(64 * 1024), waiting: VecDeque::new() })
    }

    /// Waits for the next event. Safe to cancel.
    ///
    /// # Errors
    /// The socket failed for good.
    pub async fn next(&mut self) -> Result<LinkEvent, Error> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(event);
            }
            self.buffer.clear();
            match poll_fn(|context| self.socket.poll_recv(context, &mut self.buffer)).await {
                Ok(()) => collect(&self.buffer, &mut self.waiting),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(LinkEvent::Lost),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::kernel("watch links", error)),
            }
        }
    }
}

fn collect(datagram: &[u8], events: &mut VecDeque<LinkEvent>) {
    for message in netlink::messages(datagram) {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else {
            // Better to look once too often than to miss something.
            events.push_back(LinkEvent::Lost);
            continue;
        };
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                events.push_back(LinkEvent::Changed(Link::from_message(&link)));
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) if !was_moved(&link) => {
                events.push_back(LinkEvent::Gone(Link::from_message(&link)));
            }
            _ => {}
        }
    }
}

/// A link that moves to another namespace is reported as deleted too, with its new whereabouts.
fn was_moved(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::NewNetnsId(_)))
}
