//! Client of the daemon's API: HTTP/1.1 with JSON bodies over a unix socket.
//!
//! One connection a request: the API is local, a connection costs some microseconds, and nothing has to
//! be said about a connection that idles. Whatever goes wrong becomes an [`ApiError`] that says what was
//! tried, where, and what to do about it.
//!
//! A request that takes longer than [`PATIENCE`] is announced on stderr, so that nobody wonders whether
//! the command hangs; one that takes longer than [`TIMEOUT`] is given up. Streams (capture, events) have
//! no time limit once their first byte is due.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use config::api::{ErrorReply, route};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

/// How long a request may take before the user is told that it is still being worked on.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a request may take at all. Applying thousands of ports takes seconds, not minutes.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Why the daemon did not do what it was asked to.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// There is nobody at the socket.
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The daemon answered, and the answer is no.
    Refused {
        /// One sentence.
        message: String,
        /// Where exactly, one line each.
        details: Vec<String>,
    },
    /// The daemon answered something that this client does not understand.
    Unexpected {
        /// The request, as "GET /v1/status".
        request: String,
        /// What is wrong with the answer.
        cause: String,
    },
    /// The connection ended before the answer did.
    Broken {
        /// The request, as "GET /v1/status".
        request: String,
        /// What ended it.
        cause: String,
    },
    /// The daemon did not answer in time.
    Late {
        /// The request, as "GET /v1/status".
        request: String,
        /// How long it was waited for.
        after: Duration,
    },
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable { socket, cause } => {
                let socket = socket.display();
                match cause.kind() {
                    io::ErrorKind::NotFound => write!(
                        f,
                        "cannot reach the switch at {socket}: no such file; is vswitchd running? \
                         (--socket or VSWITCH_SOCKET names another one)"
                    ),
                    io::ErrorKind::ConnectionRefused => write!(
                        f,
                        "cannot reach the switch at {socket}: nobody listens; vswitchd has ended, start it again"
                    ),
                    io::ErrorKind::PermissionDenied => write!(
                        f,
                        "cannot reach the switch at {socket}: permission denied; run vsctl as root or as a \
                         member of the socket's group"
                    ),
                    _ => write!(f, "cannot reach the switch at {socket}: {cause}"),
                }
            }
            Self::Refused { message, details, .. } => {
                f.write_str(message)?;
                details.iter().try_for_each(|line| write!(f, "\n  {line}"))
            }
            Self::Unexpected { request, cause } => write!(
                f,
                "the switch's answer to {request} is not understood: {cause}; are vsctl and vswitchd of the \
                 same version? (vsctl --version, vsctl status)"
            ),
            Self::Broken { request, cause } => write!(
                f,
                "the switch closed the connection before it had answered {request} ({cause}); has vswitchd ended?"
            ),
            Self::Late { request, after } => write!(
                f,
                "the switch did not answer {request} within {} s; `vsctl status` and the daemon's log tell \
                 whether it is stuck",
                after.as_secs()
            ),
        }
    }
}

impl std::error::Error for ApiError {}

/// Speaks to one daemon.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// Makes a client of the daemon that listens at `socket`; nothing is sent yet.
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Returns what is at `path`.
    ///
    /// # Errors
    /// Every way described by [`ApiError`].
    pub(crate) async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.call(Method::GET, path, None).await
    }

    /// Sends `body` to `path` and returns the answer, `null` when it is empty.
    ///
    /// # Errors
    /// Every way described by [`ApiError`].
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Changes what is at `path` by `body`, a JSON merge patch (RFC 7396), and returns what it is now.
    ///
    /// # Errors
    /// Every way described by [`ApiError`].
    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.call(Method::PATCH, path, Some(body)).await
    }

    /// Removes what is at `path`.
    ///
    /// # Errors
    /// Every way described by [`ApiError`].
    pub(crate) async fn delete(&self, path: &str) -> Result<Value, ApiError> {
        self.call(Method::DELETE, path, None).await
    }

    /// Opens an endless answer: a capture, or a stream of JSON lines.
    ///
    /// # Errors
    /// Every way described by [`ApiError`].
    pub(crate) async fn stream(&self, path: &str) -> Result<Stream, ApiError> {
        let request = format!("GET {path}");
        let response = self.patient(&request, self.send(Method::GET, path, None)).await?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        Ok(Stream { body: response.into_body(), rest: Vec::new(), request })
    }

    /// Returns what is at `path` as text.
    ///
    /// # Errors
    /// Every way described by [`ApiError`].
    pub(crate) async fn text(&self, path: &str) -> Result<String, ApiError> {
        let bytes = self.whole(Method::GET, path, None).await?;
        String::from_utf8(bytes.into()).map_err(|cause| unexpected(&format!("GET {path}"), cause))
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ApiError> {
        let request = format!("{method} {path}");
        let bytes = self.whole(method, path, body).await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|cause| unexpected(&request, cause))
    }

    async fn whole(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes, ApiError> {
        let request = format!("{method} {path}");
        let answer = async {
            let response = self.send(method, path, body).await?;
            if !response.status().is_success() {
                return Err(refusal(response).await);
            }
            let body = response.into_body().collect().await.map_err(|cause| broken(&request, cause))?;
            Ok(body.to_bytes())
        };
        self.patient(&request, answer).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, ApiError> {
        let unreachable = |cause| ApiError::Unreachable { socket: self.socket.clone(), cause };
        let request = format!("{method} {path}");
        let stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|cause| broken(&request, cause))?;
        // The task ends by itself when the answer has been read or the sender is dropped; what goes wrong
        // in it also reaches the reader of the answer.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let bytes = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let http = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "vswitch")
            .header("content-type", "application/json")
            .body(Full::new(bytes))
            .map_err(|cause| unexpected(&request, cause))?;
        sender.send_request(http).await.map_err(|cause| broken(&request, cause))
    }

    /// Waits for `work`, says on a terminal that it goes on when it takes long, and gives up in the end.
    async fn patient<T>(
        &self,
        request: &str,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let start = Instant::now();
        let mut work = std::pin::pin!(work);
        let terminal = io::stderr().is_terminal();
        let mut told = false;
        let result = loop {
            let pause = if told { Duration::from_secs(1) } else { PATIENCE };
            tokio::select! {
                result = &mut work => break result,
                () = tokio::time::sleep(pause) => {
                    if start.elapsed() >= TIMEOUT {
                        break Err(ApiError::Late { request: request.to_owned(), after: TIMEOUT });
                    }
                    let seconds = start.elapsed().as_secs();
                    if terminal {
                        eprint!("\rwaiting for the switch ({request}): {seconds} s ");
                    } else if !told {
                        eprintln!("waiting for the switch ({request}) ...");
                    }
                    let _ = io::stderr().flush();
                    told = true;
                }
            }
        };
        if told && terminal {
            eprintln!();
        }
        result
    }
}

/// An endless answer, read piece by piece.
#[derive(Debug)]
pub(crate) struct Stream {
    body: Incoming,
    /// Bytes after the last whole line.
    rest: Vec<u8>,
    request: String,
}

impl Stream {
    /// Returns the next bytes, `None` at the end: the daemon has stopped, or the object has gone.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(cause)) => return Err(broken(&self.request, cause)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Returns the next object of a stream of JSON lines, `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or a line is no JSON.
    pub(crate) async fn object(&mut self) -> Result<Option<Value>, ApiError> {
        loop {
            if let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|cause| unexpected(&self.request, cause));
            }
            match self.chunk().await? {
                Some(bytes) => self.rest.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }
}

/// Reads `value` as the answer's type.
///
/// # Errors
/// The daemon speaks another version of the API.
pub(crate) fn read<T: DeserializeOwned>(value: &Value) -> Result<T, ApiError> {
    T::deserialize(value).map_err(|cause| unexpected("the request", cause))
}

/// Returns `text` as one segment of a path or one value of a query (RFC 3986, section 2.1).
fn escape(text: &str) -> String {
    route::with_name("{name}", text)
}

/// Returns `path` with those of the `pairs` that have a value as its query.
pub(crate) fn with_query(path: &str, pairs: &[(&str, Option<String>)]) -> String {
    let mut url = path.to_owned();
    let mut mark = '?';
    for (key, value) in pairs {
        if let Some(value) = value {
            let _ = write!(url, "{mark}{key}={}", escape(value));
            mark = '&';
        }
    }
    url
}

fn unexpected(request: &str, cause: impl std::fmt::Display) -> ApiError {
    ApiError::Unexpected { request: request.to_owned(), cause: cause.to_string() }
}

fn broken(request: &str, cause: impl std::fmt::Display) -> ApiError {
    ApiError::Broken { request: request.to_owned(), cause: cause.to_string() }
}

/// Makes the error out of an answer that is no success.
async fn refusal(response: Response<Incoming>) -> ApiError {
    let status = response.status();
    let bytes =
        response.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let (message, details) = match serde_json::from_slice::<ErrorReply>(&bytes) {
        Ok(reply) => (reply.error.message, reply.error.details),
        // Not from the API itself: the HTTP server's own refusals are plain text.
        Err(_) if bytes.is_empty() => (format!("the switch refused the request: {status}"), Vec::new()),
        Err(_) => {
            let text = String::from_utf8_lossy(&bytes);
            (format!("the switch refused the request: {status}: {}", text.trim()), Vec::new())
        }
    };
    ApiError::Refused { message, details }
}

#[cfg(test)]
mod tests;
