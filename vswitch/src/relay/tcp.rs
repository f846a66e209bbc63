//! Connections: accepted, and carried to the container until both ends are closed.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::{Place, Rule, Shared};

/// A container has so long to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Accepting goes on after this time when it failed, as without a file descriptor to spare.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections for ever.
pub(super) async fn accept(listener: TcpListener, rule: watch::Receiver<Rule>, shared: Rc<Shared>) {
    loop {
        let Ok((stream, client)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let target = rule.borrow().target(client.ip());
        match (target, shared.admit()) {
            (Some(_), Some(place)) => {
                spawn_local(carry(stream, client.ip(), rule.clone(), place));
            }
            // Turned away with an RST, as if nobody listened.
            _ => drop(stream.set_zero_linger()),
        }
    }
}

/// Carries a connection until it ends, or its rule sends it elsewhere.
async fn carry(client: TcpStream, address: std::net::IpAddr, mut rule: watch::Receiver<Rule>, place: Place) {
    let Some(to) = rule.borrow_and_update().target(address) else { return };
    let source = place.0.source.towards(to);
    let connect = async {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(source)?;
        socket.connect(to).await
    };
    let moved = async {
        // An error: the port is held no longer.
        while rule.changed().await.is_ok() && rule.borrow().target(address) == Some(to) {}
    };
    let work = async {
        let Ok(Ok(mut container)) = timeout(PATIENCE, connect).await else {
            let _ = client.set_zero_linger();
            return;
        };
        let mut client = client;
        let _ = client.set_nodelay(true);
        let _ = container.set_nodelay(true);
        let _ = copy_bidirectional(&mut client, &mut container).await;
    };
    tokio::select! {
        () = work => {}
        () = moved => {}
    }
}
