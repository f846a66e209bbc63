//! A blocking rtnetlink socket.
//!
//! The kernel carries a request out inside `sendmsg`, in the sender's thread, so an asynchronous client would
//! stop the manager's whole runtime for as long as the kernel waits for RCU when a device is deleted. Devices
//! are therefore handled by threads of their own, and there a plain blocking socket is simplest: send, then
//! read the answer that is already there. Messages are those of `netlink-packet-route`.
//!
//! A socket belongs to the namespace its thread was in when it was opened, and keeps that namespace alive as
//! long as it is open: sockets of a port's namespace are closed when the operation is done.

use std::fmt;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{Socket, protocols::NETLINK_ROUTE};

/// Room for the largest datagram of a dump (the kernel uses up to 32 KiB).
const BUFFER_LEN: usize = 64 * 1024;
/// Length of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;

/// The kernel's answer to a request that it did not carry out.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// The error number.
    pub(super) errno: i32,
    /// The kernel's own explanation ("extended ack"), where there is one.
    pub(super) detail: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = io::Error::from_raw_os_error(self.errno);
        match &self.detail {
            Some(detail) => write!(f, "{error}: {detail}"),
            None => error.fmt(f),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self { errno, detail: None },
            None => Self { errno: libc::EIO, detail: Some(error.to_string()) },
        }
    }
}

/// An rtnetlink socket. See the module header.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // Explanations in acknowledgements, and no copy of the request in them. Kernels without know neither.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        // Dumps filtered by what the request's header says; ignored before 4.20, so answers are checked too.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER_LEN) })
    }

    /// Has the kernel carry out `message`; `flags` are NLM_F_CREATE and the like.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(super) fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Refusal> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags).map(drop)
    }

    /// Asks for one object.
    ///
    /// # Errors
    /// The kernel's refusal; ENODEV or ENOENT when there is no such object.
    pub(super) fn get(&mut self, message: RouteNetlinkMessage) -> Result<RouteNetlinkMessage, Refusal> {
        let mut answers = self.exchange(message, NLM_F_REQUEST | NLM_F_ACK)?;
        answers.pop().ok_or(Refusal { errno: libc::ENOENT, detail: None })
    }

    /// Asks for all objects that `message` selects.
    ///
    /// # Errors
    /// The kernel's refusal. A list that changed while it was read is returned as it is.
    pub(super) fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        self.buffer.clear();
        self.buffer.resize(request.buffer_len(), 0);
        request.serialize(&mut self.buffer);
        self.socket.send(&self.buffer, 0)?;

        let mut answers = Vec::new();
        loop {
            self.buffer.clear();
            self.buffer.reserve(BUFFER_LEN);
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            if parse(&self.buffer, self.sequence, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// Cuts `datagram` into its messages, header included.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let len = (u32::from_ne_bytes(*rest.first_chunk()?) as usize).max(HEADER_LEN);
        let message = rest.get(..len)?;
        // Messages are aligned to four bytes; the last may lack its padding.
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Appends the answers in `datagram` to `answers`, and returns whether the last one has come.
fn parse(datagram: &[u8], sequence: u32, answers: &mut Vec<RouteNetlinkMessage>) -> Result<bool, Refusal> {
    for message in messages(datagram) {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else {
            // An object of another owner with attributes that the library does not know: none that we look for.
            continue;
        };
        if message.header.sequence_number != sequence {
            continue;
        }
        match message.payload {
            NetlinkPayload::Error(error) => {
                return match error.code {
                    None => Ok(true),
                    Some(code) => {
                        Err(Refusal { errno: code.get().abs(), detail: explanation(&error.header) })
                    }
                };
            }
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::InnerMessage(inner) => answers.push(inner),
            _ => {}
        }
    }
    Ok(false)
}

/// Finds NLMSGERR_ATTR_MSG behind the request's header in an acknowledgement.
fn explanation(acknowledgement: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let attributes = acknowledgement.get(HEADER_LEN..)?;
    let found = NlasIterator::new(attributes).flatten().find(|nla| nla.kind() == NLMSGERR_ATTR_MSG)?;
    let text = found.value();
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_cut_at_the_length_of_each_message() {
        let message = |len: u32, room: usize| {
            let mut bytes = vec![0; room];
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            bytes
        };
        let datagram = [message(18, 20), message(16, 16), message(21, 21)].concat();
        assert_eq!(messages(&datagram).map(<[u8]>::len).collect::<Vec<_>>(), [18, 16, 21]);
        for cut in 0..datagram.len() {
            assert!(messages(&datagram[..cut]).all(|message| message.len() >= HEADER_LEN));
        }
        // A length that cannot be ends the list: nothing is read twice or beyond the end.
        assert_eq!(messages(&message(0, 32)).count(), 2);
        assert_eq!(messages(&message(u32::MAX, 32)).count(), 0);
    }

    #[test]
    fn the_kernel_explains_its_refusals() {
        let header = [0; HEADER_LEN];
        let attribute = [&[13, 0, 1, 0][..], b"no reason\0", &[0; 3]].concat();
        assert_eq!(explanation(&[&header[..], &attribute].concat()).as_deref(), Some("no reason"));
        assert_eq!(explanation(&header), None);
        assert_eq!(explanation(&[]), None);
    }
}
