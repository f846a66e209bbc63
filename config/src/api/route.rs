//! The paths of the API, with what each method takes and returns. `{name}` is the name of an object,
//! percent-encoded.

/// GET: [`Status`](super::Status).
pub const STATUS: &str = "/v1/status";
/// GET: the whole intent, a [`Document`](crate::Document); `?format=toml` for text.
pub const CONFIG: &str = "/v1/config";
/// POST [`ApplyRequest`](super::ApplyRequest): [`ApplyReply`](super::ApplyReply).
pub const APPLY: &str = "/v1/apply";
/// POST: keeps the last apply that waits for it; 409 when none waits.
pub const CONFIRM: &str = "/v1/confirm";
/// GET: list of [`NetworkView`](super::NetworkView). POST [`Network`](crate::Network): the view.
pub const NETWORKS: &str = "/v1/networks";
/// GET: [`NetworkView`](super::NetworkView). PATCH (fields of [`Network`](crate::Network), null for the
/// default): the view. DELETE.
pub const NETWORK: &str = "/v1/networks/{name}";
/// GET: list of [`PortView`](super::PortView). POST [`Port`](crate::Port): the view.
pub const PORTS: &str = "/v1/ports";
/// GET: [`PortView`](super::PortView). PATCH (fields of [`Port`](crate::Port), null for the default):
/// the view. DELETE.
pub const PORT: &str = "/v1/ports/{name}";
/// POST [`AttachRequest`](super::AttachRequest): [`PortView`](super::PortView).
pub const ATTACH: &str = "/v1/attach";
/// DELETE: takes the attached port away.
pub const DETACH: &str = "/v1/attach/{name}";
/// GET [`FdbQuery`](super::FdbQuery): list of [`FdbView`](super::FdbView). POST
/// [`FdbEntry`](crate::FdbEntry): adds a static one. DELETE [`FdbQuery`](super::FdbQuery):
/// [`Flushed`](super::Flushed).
pub const FDB: &str = "/v1/fdb";
/// GET [`NeighborQuery`](super::NeighborQuery): list of [`NeighborView`](super::NeighborView). DELETE
/// [`NeighborQuery`](super::NeighborQuery): forgets those that were learned, [`Flushed`](super::Flushed).
pub const NEIGHBORS: &str = "/v1/neighbors";
/// GET [`ConnectionQuery`](super::ConnectionQuery): list of [`ConnectionView`](super::ConnectionView). DELETE
/// [`ConnectionQuery`](super::ConnectionQuery): ends them, [`Flushed`](super::Flushed).
pub const CONNECTIONS: &str = "/v1/connections";
/// POST [`TraceRequest`](super::TraceRequest): [`TraceReply`](super::TraceReply).
pub const TRACE: &str = "/v1/trace";
/// GET, the expression as in [`ConnectionQuery`](super::ConnectionQuery): a line of JSON,
/// [`TraceReply`](super::TraceReply), for each packet that matches.
pub const TRACE_LIVE: &str = "/v1/trace/live";
/// GET: [`HostView`](super::HostView).
pub const HOST: &str = "/v1/host";
/// GET: list of [`RouteView`](super::RouteView). POST [`Route`](crate::Route): the view.
pub const ROUTES: &str = "/v1/routes";
/// As [`NETWORK`], for a [`Route`](crate::Route).
pub const ROUTE: &str = "/v1/routes/{name}";
/// GET: list of [`FloatingIpView`](super::FloatingIpView). POST [`FloatingIp`](crate::FloatingIp): the view.
pub const FLOATING_IPS: &str = "/v1/floating_ips";
/// As [`NETWORK`], for a [`FloatingIp`](crate::FloatingIp).
pub const FLOATING_IP: &str = "/v1/floating_ips/{name}";
/// GET: list of [`PublishView`](super::PublishView). POST [`Publish`](crate::Publish): the view.
pub const PUBLISHES: &str = "/v1/publishes";
/// As [`NETWORK`], for a [`Publish`](crate::Publish).
pub const PUBLISH: &str = "/v1/publishes/{name}";
/// GET: list of [`EgressView`](super::EgressView). POST [`Egress`](crate::Egress): the view.
pub const EGRESSES: &str = "/v1/egresses";
/// As [`NETWORK`], for an [`Egress`](crate::Egress).
pub const EGRESS: &str = "/v1/egresses/{name}";
/// GET: list of [`PeerView`](super::PeerView), those that were learned among them. POST
/// [`OverlayPeer`](crate::OverlayPeer): the view.
pub const PEERS: &str = "/v1/peers";
/// As [`NETWORK`], for an [`OverlayPeer`](crate::OverlayPeer).
pub const PEER: &str = "/v1/peers/{name}";
/// GET: list of [`RemoteView`](super::RemoteView). POST [`Remote`](crate::Remote): the view.
pub const REMOTES: &str = "/v1/remotes";
/// As [`NETWORK`], for a [`Remote`](crate::Remote).
pub const REMOTE: &str = "/v1/remotes/{name}";
/// GET: list of [`PolicyView`](super::PolicyView). POST [`Policy`](crate::Policy): the view.
pub const POLICIES: &str = "/v1/policies";
/// As [`NETWORK`], for a [`Policy`](crate::Policy).
pub const POLICY: &str = "/v1/policies/{name}";
/// GET: [`Drops`](super::Drops).
pub const DROPS: &str = "/v1/drops";
/// GET: a line of JSON, [`DropRecord`](super::DropRecord), for each dropped frame that is sampled.
pub const DROPS_FOLLOW: &str = "/v1/drops/follow";
/// GET [`CaptureQuery`](super::CaptureQuery): pcapng until the client closes.
pub const CAPTURE: &str = "/v1/capture";
/// GET: list of [`WorkerView`](super::WorkerView).
pub const WORKERS: &str = "/v1/workers";
/// GET: list of [`Check`](super::Check).
pub const DOCTOR: &str = "/v1/doctor";
/// GET: list of [`Check`](super::Check), one a peer of the overlay: whether its packets fit the way there. Takes up to some
/// seconds.
pub const DOCTOR_MTU: &str = "/v1/doctor/mtu";
/// GET: a line of JSON, [`Event`](super::Event), for each thing that happens.
pub const EVENTS: &str = "/v1/events";
/// GET [`LogQuery`](super::LogQuery): list of the last [`Event`](super::Event)s, oldest first.
pub const LOG: &str = "/v1/log";
/// POST [`CleanupRequest`](super::CleanupRequest): [`CleanupReply`](super::CleanupReply).
pub const CLEANUP: &str = "/v1/cleanup";

/// Every route with the methods it answers.
pub const ALL: [(&str, &[&str]); 39] = [
    (STATUS, &["get"]),
    (CONFIG, &["get"]),
    (APPLY, &["post"]),
    (CONFIRM, &["post"]),
    (NETWORKS, &["get", "post"]),
    (NETWORK, &["get", "patch", "delete"]),
    (PORTS, &["get", "post"]),
    (PORT, &["get", "patch", "delete"]),
    (ATTACH, &["post"]),
    (DETACH, &["delete"]),
    (FDB, &["get", "post", "delete"]),
    (NEIGHBORS, &["get", "delete"]),
    (CONNECTIONS, &["get", "delete"]),
    (TRACE, &["post"]),
    (TRACE_LIVE, &["get"]),
    (HOST, &["get"]),
    (ROUTES, &["get", "post"]),
    (ROUTE, &["get", "patch", "delete"]),
    (FLOATING_IPS, &["get", "post"]),
    (FLOATING_IP, &["get", "patch", "delete"]),
    (PUBLISHES, &["get", "post"]),
    (PUBLISH, &["get", "patch", "delete"]),
    (EGRESSES, &["get", "post"]),
    (EGRESS, &["get", "patch", "delete"]),
    (PEERS, &["get", "post"]),
    (PEER, &["get", "patch", "delete"]),
    (REMOTES, &["get", "post"]),
    (REMOTE, &["get", "patch", "delete"]),
    (POLICIES, &["get", "post"]),
    (POLICY, &["get", "patch", "delete"]),
    (DROPS, &["get"]),
    (DROPS_FOLLOW, &["get"]),
    (CAPTURE, &["get"]),
    (WORKERS, &["get"]),
    (DOCTOR, &["get"]),
    (DOCTOR_MTU, &["get"]),
    (EVENTS, &["get"]),
    (LOG, &["get"]),
    (CLEANUP, &["post"]),
];

/// Returns `route` with `name` in the place of `{name}`, percent-encoded (RFC 3986, 2.1).
pub fn with_name(route: &str, name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    route.replace("{name}", &encoded)
}
