//! What is around the host: a router that is the next hop of its default routes, a server behind it, and its own devices.
//!
//! ```text
//!  @x  eth0 203.0.113.1/24 -------- up0 203.0.113.2/24  host
//!      eth0 2001:db8:1::1/64        up0 2001:db8:1::2/64
//!      lo   198.51.100.7, 2001:db8:ffff::7
//! ```

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::service::ask_within;
use super::{Net, PATIENCE, Proto, Space, ask, wait_until};

/// The device of the host that leads outside.
pub const UPLINK: &str = "up0";
/// The host's addresses.
pub const HOST: [&str; 2] = ["203.0.113.2", "2001:db8:1::2"];
/// The next hop's addresses; its name is `x`.
pub const ROUTER: [&str; 2] = ["203.0.113.1", "2001:db8:1::1"];
/// Addresses of a server that is no neighbour of the host: the next hop's, too.
pub const SERVER: [&str; 2] = ["198.51.100.7", "2001:db8:ffff::7"];

impl Net {
    /// Makes a switch that runs with `config` on a host that has an outside, and waits until both are up.
    pub fn with_outside(config: &str) -> Self {
        let mut net = Self::new();
        net.make_outside();
        net.write_config(config);
        net.start();
        net.ready();
        net
    }

    /// Makes the outside: the namespace `x` and the host's device and routes that lead there.
    pub fn make_outside(&self) {
        self.lead_to(
            "x",
            UPLINK,
            ["203.0.113.2/24", "2001:db8:1::2/64"],
            ["203.0.113.1/24", "2001:db8:1::1/64"],
        );
        let (host, x) = (self.host(), self.space("x"));
        x.run("ip link set lo up");
        for (server, length) in SERVER.into_iter().zip([32, 128]) {
            let nodad = if length == 128 { "nodad" } else { "" };
            x.run(&format!("ip addr add {server}/{length} dev lo {nodad}"));
        }
        for router in ROUTER {
            let family = if router.contains(':') { "-6" } else { "-4" };
            host.run(&format!("ip {family} route add default via {router}"));
        }
    }

    /// Joins the host by a new `device` to `eth0` of the namespace `name`; addresses are `[IPv4, IPv6]` with lengths.
    pub fn lead_to(&self, name: &str, device: &str, host: [&str; 2], there: [&str; 2]) {
        let (space, far) = (self.space(name), self.host());
        far.run(&format!("ip link add {device} type veth peer name eth0 netns {}", space.name()));
        for (space, device, addresses) in [(&far, device, host), (&space, "eth0", there)] {
            space.run(&format!("ip link set {device} up"));
            for address in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                space.run(&format!("ip addr add {address} dev {device} {nodad}"));
            }
        }
    }

    /// Asks a service until there is an answer, and returns whom it saw. That takes more than one packet when it is
    /// not yet known who is where.
    pub fn seen(&self, from: &Space, protocol: Proto, target: &str) -> IpAddr {
        let mut last = None;
        wait_until(PATIENCE, || {
            last = Some(ask(from, protocol, target));
            matches!(last, Some(Ok(_)))
        });
        match last {
            Some(Ok(peer)) => peer,
            last => panic!(
                "{} does not reach {target}/{}: {last:?}\n{}",
                from.name(),
                protocol.name(),
                self.circumstances()
            ),
        }
    }

    /// Expects that a service does not answer, and returns what happens instead.
    pub fn unheard(&self, from: &Space, protocol: Proto, target: &str) -> io::Error {
        let answer = ask_within(Duration::from_millis(700), from, protocol, target);
        let reached = |peer| panic!("{} reaches {target} as {peer}\n{}", from.name(), self.circumstances());
        answer.map_or_else(|error| error, reached)
    }

    /// Returns what helps to see why something failed: drops and log.
    pub fn circumstances(&self) -> String {
        format!("drops: {:#}\n{}", self.get("/v1/drops"), self.log())
    }
}
