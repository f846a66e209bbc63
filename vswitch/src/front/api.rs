//! The API: HTTP/1.1 with JSON over a unix socket.
//!
//! A handler reads its request, takes the manager's lock, and lets the manager do it. What changes anything runs
//! in a task of its own: a client that goes away in the middle of it does not leave it half done. Paths and
//! types are those of [`config::api`].
//!
//! Only the socket's owner may connect (mode 0600). Who it was is asked of the kernel and noted with every
//! change.

use std::future::Future;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::connect_info::Connected;
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, Path as Name, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use axum::serve::IncomingStream;
use config::api::{
    CaptureQuery, CleanupReply, CleanupRequest, ConnectionQuery, ErrorBody, ErrorReply, FdbQuery, LogQuery,
    NeighborQuery, route,
};
use config::{Egress, FloatingIp, OverlayPeer, Policy, Publish, Remote, Route};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;

use super::streams::{self, DropHub};
use crate::doctor::{self, mtu};
use crate::manager::change::Who;
use crate::manager::object_views::Shown;
use crate::manager::{Manager, Shared};
use crate::refusal::{Fault, Refusal};

/// Makes the socket at `path`, with its directory. The socket of a daemon that died is replaced.
///
/// # Errors
/// Another daemon answers there, something else has the name, or the path cannot be made.
pub async fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make directory {}", directory.display()))?;
    }
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            bail!("{} is in the way: it is no socket", path.display());
        }
        if UnixStream::connect(path).await.is_ok() {
            bail!("another vswitchd answers at {}: stop it, or give this one --socket", path.display());
        }
        std::fs::remove_file(path).with_context(|| format!("cannot remove stale {}", path.display()))?;
    }
    // The mode is right from the first moment: nobody connects before it is.
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(mask);
    let listener = listener.with_context(|| format!("cannot listen at {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the API until the task is aborted.
pub async fn serve(listener: UnixListener, manager: Shared) -> JoinHandle<()> {
    let crew = Arc::clone(&manager.lock().await.crew);
    let drops = Arc::new(DropHub::start(Arc::clone(&manager), crew).await);
    let service = router(Api { manager, drops }).into_make_service_with_connect_info::<Peer>();
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, service).await {
            tracing::error!(%error, "the API has ended");
        }
    })
}

#[derive(Clone, Debug)]
struct Api {
    manager: Shared,
    drops: Arc<DropHub>,
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
struct Peer(Who);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        // The kernel always knows; if it did not, nobody is the safest guess for an audit trail.
        let uid = stream.io().peer_cred().map_or(u32::MAX, |credentials| credentials.uid());
        Peer(Who::User(uid))
    }
}

type From = ConnectInfo<Peer>;
type Reply = Result<Response, Refusal>;

fn router(api: Api) -> Router {
    Router::new()
        .route(route::STATUS, get(status))
        .route(route::CONFIG, get(configuration))
        .route(route::APPLY, post(apply))
        .route(route::CONFIRM, post(confirm))
        .route(route::NETWORKS, get(networks).post(add_network))
        .route(route::NETWORK, get(network).patch(change_network).delete(remove_network))
        .route(route::PORTS, get(ports).post(add_port))
        .route(route::PORT, get(port).patch(change_port).delete(remove_port))
        .route(route::ATTACH, post(attach))
        .route(route::DETACH, delete(remove_port))
        .route(route::FDB, get(stations).post(add_station).delete(flush))
        .route(route::NEIGHBORS, get(neighbors).delete(flush_neighbors))
        .route(route::CONNECTIONS, get(connections).delete(flush_connections))
        .route(route::TRACE, post(trace))
        .route(route::TRACE_LIVE, get(trace_live))
        .route(route::HOST, get(host))
        .route(route::ROUTES, get(objects::<Route>).post(add_object::<Route>))
        .route(route::ROUTE, single::<Route>())
        .route(route::FLOATING_IPS, get(objects::<FloatingIp>).post(add_object::<FloatingIp>))
        .route(route::FLOATING_IP, single::<FloatingIp>())
        .route(route::PUBLISHES, get(objects::<Publish>).post(add_object::<Publish>))
        .route(route::PUBLISH, single::<Publish>())
        .route(route::EGRESSES, get(objects::<Egress>).post(add_object::<Egress>))
        .route(route::EGRESS, single::<Egress>())
        .route(route::PEERS, get(objects::<OverlayPeer>).post(add_object::<OverlayPeer>))
        .route(route::PEER, single::<OverlayPeer>())
        .route(route::REMOTES, get(objects::<Remote>).post(add_object::<Remote>))
        .route(route::REMOTE, single::<Remote>())
        .route(route::POLICIES, get(objects::<Policy>).post(add_object::<Policy>))
        .route(route::POLICY, single::<Policy>())
        .route(route::DROPS, get(drops))
        .route(route::DROPS_FOLLOW, get(follow_drops))
        .route(route::CAPTURE, get(capture))
        .route(route::WORKERS, get(workers))
        .route(route::DOCTOR, get(examine))
        .route(route::DOCTOR_MTU, get(examine_mtu))
        .route(route::EVENTS, get(events))
        .route(route::LOG, get(log))
        .route(route::CLEANUP, post(cleanup))
        .fallback(async || Refusal::unknown("such path", "it").with_details(paths()))
        .method_not_allowed_fallback(async || {
            let refusal = Refusal::input("this path does not take that method").with_details(paths());
            (StatusCode::METHOD_NOT_ALLOWED, refusal)
        })
        .with_state(api)
}

fn paths() -> Vec<String> {
    route::ALL.iter().map(|(path, methods)| format!("{path}: {}", methods.join(", "))).collect()
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self.fault {
            Fault::Input => StatusCode::BAD_REQUEST,
            Fault::Unknown => StatusCode::NOT_FOUND,
            Fault::Conflict => StatusCode::CONFLICT,
            Fault::Ours => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let error = ErrorBody { message: self.message, details: self.details };
        (status, axum::Json(ErrorReply { error })).into_response()
    }
}

impl Api {
    async fn manager(&self) -> OwnedMutexGuard<Manager> {
        Arc::clone(&self.manager).lock_owned().await
    }
}

/// Lets a change run to its end even if the client goes away meanwhile.
async fn finish<T: Send + 'static>(
    change: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::spawn(change)
        .await
        .unwrap_or_else(|error| Err(Refusal::ours(format!("the change failed: {error}"))))
}

fn json(value: &impl Serialize) -> Reply {
    Ok(axum::Json(value).into_response())
}

/// Reads a request's body; an empty one stands for a request with nothing said.
fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    let bytes: &[u8] = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(bytes).map_err(|error| Refusal::input(format!("the request's body: {error}")))
}

fn asked<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Refusal> {
    query.map(|Query(query)| query).map_err(|error| Refusal::input(error.body_text()))
}

async fn status(State(api): State<Api>) -> Reply {
    json(&api.manager().await.status())
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Format {
    #[serde(default)]
    format: Option<String>,
}

async fn configuration(State(api): State<Api>, query: Result<Query<Format>, QueryRejection>) -> Reply {
    let document = api.manager().await.document();
    match asked(query)?.format.as_deref() {
        None | Some("json") => json(&document),
        Some("toml") => {
            Ok(([(header::CONTENT_TYPE, "application/toml")], document.to_toml()).into_response())
        }
        Some(other) => Err(Refusal::input(format!("format '{other}' is not known; allowed: json, toml"))),
    }
}

async fn apply(State(api): State<Api>, ConnectInfo(Peer(who)): From, body: Bytes) -> Reply {
    let (request, mut manager) = (read(&body)?, api.manager().await);
    json(&finish(async move { manager.apply(request, who).await }).await?)
}

async fn confirm(State(api): State<Api>, ConnectInfo(Peer(who)): From) -> Reply {
    api.manager().await.confirm(who)?;
    json(&serde_json::json!({}))
}

async fn networks(State(api): State<Api>) -> Reply {
    json(&api.manager().await.network_views())
}

async fn network(State(api): State<Api>, Name(name): Name<String>) -> Reply {
    json(&api.manager().await.network_view(&name)?)
}

async fn add_network(State(api): State<Api>, ConnectInfo(Peer(who)): From, body: Bytes) -> Reply {
    let (network, mut manager): (config::Network, _) = (read(&body)?, api.manager().await);
    let view = finish(async move {
        let name = network.name.clone();
        manager.add_network(network, who).await?;
        manager.network_view(&name)
    });
    json(&view.await?)
}

async fn change_network(
    State(api): State<Api>,
    Name(name): Name<String>,
    ConnectInfo(Peer(who)): From,
    body: Bytes,
) -> Reply {
    let (fields, mut manager) = (read(&body)?, api.manager().await);
    let view = finish(async move {
        manager.change_network(&name, fields, who).await?;
        manager.network_view(&name)
    });
    json(&view.await?)
}

async fn remove_network(
    State(api): State<Api>,
    Name(name): Name<String>,
    ConnectInfo(Peer(who)): From,
) -> Reply {
    let mut manager = api.manager().await;
    finish(async move { manager.remove_network(&name, who).await }).await?;
    json(&serde_json::json!({}))
}

async fn ports(State(api): State<Api>) -> Reply {
    json(&api.manager().await.port_views().await)
}

async fn port(State(api): State<Api>, Name(name): Name<String>) -> Reply {
    json(&api.manager().await.port_view(&name).await?)
}

async fn add_port(State(api): State<Api>, ConnectInfo(Peer(who)): From, body: Bytes) -> Reply {
    let (port, mut manager): (config::Port, _) = (read(&body)?, api.manager().await);
    let view = finish(async move {
        let name = port.name.clone();
        manager.add_port(port, who).await?;
        manager.port_view(&name).await
    });
    json(&view.await?)
}

async fn change_port(
    State(api): State<Api>,
    Name(name): Name<String>,
    ConnectInfo(Peer(who)): From,
    body: Bytes,
) -> Reply {
    let (fields, mut manager) = (read(&body)?, api.manager().await);
    let view = finish(async move {
        manager.change_port(&name, fields, who).await?;
        manager.port_view(&name).await
    });
    json(&view.await?)
}

async fn remove_port(
    State(api): State<Api>,
    Name(name): Name<String>,
    ConnectInfo(Peer(who)): From,
) -> Reply {
    let mut manager = api.manager().await;
    finish(async move { manager.remove_port(&name, who).await }).await?;
    json(&serde_json::json!({}))
}

async fn objects<T: Shown>(State(api): State<Api>) -> Reply {
    json(&api.manager().await.object_views::<T>())
}

/// Serves one object of a kind.
fn single<T: Shown>() -> MethodRouter<Api> {
    get(object::<T>).patch(change_object::<T>).delete(remove_object::<T>)
}

async fn object<T: Shown>(State(api): State<Api>, Name(name): Name<String>) -> Reply {
    json(&api.manager().await.object_view::<T>(&name)?)
}

async fn add_object<T: Shown>(State(api): State<Api>, ConnectInfo(Peer(who)): From, body: Bytes) -> Reply {
    let (object, mut manager): (T, _) = (read(&body)?, api.manager().await);
    let view = finish(async move {
        let name = manager.add_object(object, who).await?;
        manager.object_view::<T>(&name)
    });
    json(&view.await?)
}

async fn change_object<T: Shown>(
    State(api): State<Api>,
    Name(name): Name<String>,
    ConnectInfo(Peer(who)): From,
    body: Bytes,
) -> Reply {
    let (fields, mut manager) = (read(&body)?, api.manager().await);
    let view = finish(async move {
        let name = manager.change_object::<T>(&name, fields, who).await?;
        manager.object_view::<T>(&name)
    });
    json(&view.await?)
}

async fn remove_object<T: Shown>(
    State(api): State<Api>,
    Name(name): Name<String>,
    ConnectInfo(Peer(who)): From,
) -> Reply {
    let mut manager = api.manager().await;
    finish(async move { manager.remove_object::<T>(&name, who).await }).await?;
    json(&serde_json::json!({}))
}

async fn attach(State(api): State<Api>, ConnectInfo(Peer(who)): From, body: Bytes) -> Reply {
    let (request, mut manager) = (read(&body)?, api.manager().await);
    let view = finish(async move {
        let name = manager.attach(request, who).await?;
        manager.port_view(&name).await
    });
    json(&view.await?)
}

async fn stations(State(api): State<Api>, query: Result<Query<FdbQuery>, QueryRejection>) -> Reply {
    json(&api.manager().await.stations(&asked(query)?)?)
}

async fn add_station(State(api): State<Api>, ConnectInfo(Peer(who)): From, body: Bytes) -> Reply {
    let (entry, mut manager): (config::FdbEntry, _) = (read(&body)?, api.manager().await);
    let view = finish(async move {
        let query = FdbQuery {
            network: Some(entry.network.clone()),
            port: Some(entry.port.clone()),
            mac: Some(entry.mac),
        };
        manager.add_station(entry, who).await?;
        manager.stations(&query)
    });
    json(&view.await?)
}

async fn flush(
    State(api): State<Api>,
    ConnectInfo(Peer(who)): From,
    query: Result<Query<FdbQuery>, QueryRejection>,
) -> Reply {
    let (query, mut manager) = (asked(query)?, api.manager().await);
    json(&finish(async move { manager.flush(&query, who).await }).await?)
}

async fn neighbors(State(api): State<Api>, query: Result<Query<NeighborQuery>, QueryRejection>) -> Reply {
    json(&api.manager().await.neighbors(&asked(query)?))
}

async fn flush_neighbors(
    State(api): State<Api>,
    ConnectInfo(Peer(who)): From,
    query: Result<Query<NeighborQuery>, QueryRejection>,
) -> Reply {
    json(&api.manager().await.flush_neighbors(&asked(query)?, who)?)
}

async fn connections(State(api): State<Api>, query: Result<Query<ConnectionQuery>, QueryRejection>) -> Reply {
    json(&api.manager().await.connections(&asked(query)?))
}

async fn flush_connections(
    State(api): State<Api>,
    ConnectInfo(Peer(who)): From,
    query: Result<Query<ConnectionQuery>, QueryRejection>,
) -> Reply {
    json(&api.manager().await.flush_connections(&asked(query)?, who)?)
}

async fn trace(State(api): State<Api>, body: Bytes) -> Reply {
    let request = read(&body)?;
    json(&api.manager().await.trace(&request)?)
}

async fn host(State(api): State<Api>) -> Reply {
    json(&api.manager().await.host_view())
}

async fn drops(State(api): State<Api>) -> Reply {
    json(&api.manager().await.drops().await)
}

async fn follow_drops(State(api): State<Api>) -> Reply {
    Ok(stream("application/x-ndjson", api.drops.follow()))
}

async fn trace_live(State(api): State<Api>, query: Result<Query<ConnectionQuery>, QueryRejection>) -> Reply {
    let body = streams::trace(&api.manager, asked(query)?.expression).await;
    Ok(stream("application/x-ndjson", body))
}

async fn capture(State(api): State<Api>, query: Result<Query<CaptureQuery>, QueryRejection>) -> Reply {
    let body = streams::capture(&api.manager, asked(query)?).await?;
    Ok(stream("application/x-pcapng", body))
}

async fn workers(State(api): State<Api>) -> Reply {
    json(&api.manager().await.worker_views())
}

async fn examine(State(api): State<Api>) -> Reply {
    let mut checks = doctor::checks();
    checks.extend(api.manager().await.checks().await);
    json(&checks)
}

async fn examine_mtu(State(api): State<Api>) -> Reply {
    // Others are served while answers are waited for.
    let questions = api.manager().await.mtu_questions();
    json(&mtu::answers(questions).await)
}

async fn events(State(api): State<Api>) -> Reply {
    let events = api.manager().await.journal.follow();
    Ok(stream("application/x-ndjson", streams::lines(events)))
}

async fn log(State(api): State<Api>, query: Result<Query<LogQuery>, QueryRejection>) -> Reply {
    let limit = asked(query)?.limit.unwrap_or(usize::MAX);
    json(&api.manager().await.journal.last(limit))
}

async fn cleanup(State(api): State<Api>, ConnectInfo(Peer(who)): From, body: Bytes) -> Reply {
    let (CleanupRequest { force }, mut manager) = (read(&body)?, api.manager().await);
    let removed = finish(async move { manager.cleanup(force, who).await }).await?;
    json(&CleanupReply { removed })
}

fn stream(kind: &'static str, body: Body) -> Response {
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}
