//! Ways to peers that take less than the device that leads there (RFC 1191, RFC 8201).
//!
//! A router that cannot pass an outer packet on says so to its sender, which is us. Tunnels to that peer take less from then
//! on: senders of larger packets are told, as at any router, and the MSS of new connections is clamped. Interfaces keep
//! their MTU. After [`KEPT`] it is tried again whether the way has become wider.
//!
//! Anybody may pretend to be a router, so nothing is believed that would be less than every way takes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Manager;

/// How long what a router said is believed (RFC 1191, 6.3: ten minutes).
const KEPT: Duration = Duration::from_secs(600);
/// What every way takes: of IPv6 by definition (RFC 8200, 5), of IPv4 in practice (RFC 791, 3.1).
const LEAST_V4: u32 = 576;
const LEAST_V6: u32 = 1280;

/// What routers have said.
#[derive(Debug, Default)]
pub(super) struct Paths(BTreeMap<IpAddr, (u32, Instant)>);

impl Paths {
    /// Takes note of what a router said, and says whether that is news.
    fn note(&mut self, to: IpAddr, mtu: u32, now: Instant) -> bool {
        let mtu = mtu.max(if to.is_ipv4() { LEAST_V4 } else { LEAST_V6 });
        let before = self.0.get(&to).map(|(mtu, _)| *mtu);
        if before.is_some_and(|before| before < mtu) {
            return false;
        }
        self.0.insert(to, (mtu, now + KEPT));
        before != Some(mtu)
    }

    /// Forgets what is old, and says whether anything was.
    fn forget(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0.retain(|_, (_, until)| *until > now);
        self.0.len() != before
    }

    /// Returns what ways take.
    pub(super) fn mtus(&self) -> BTreeMap<IpAddr, u32> {
        self.0.iter().map(|(to, (mtu, _))| (*to, *mtu)).collect()
    }
}

impl Manager {
    /// Has tunnels to a peer take no more than a router on the way does.
    pub(super) fn learn_path(&mut self, to: IpAddr, mtu: u32) {
        let is_peer = self.endpoints.keys().any(|key| key.address.ip() == to);
        if !is_peer || !self.paths.note(to, mtu, Instant::now()) {
            return;
        }
        self.journal.note("path_mtu", format!("peer {to}"), format!("a router on the way takes {mtu} bytes"));
        self.follow_paths();
    }

    /// Tries ways again that took less, long ago.
    pub(super) fn forget_paths(&mut self) {
        if self.paths.forget(Instant::now()) {
            self.follow_paths();
        }
    }

    fn follow_paths(&mut self) {
        self.surroundings.path_mtus = self.paths.mtus();
        self.publish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_gets_narrower_at_once_and_wider_after_ten_minutes() {
        let (mut paths, start) = (Paths::default(), Instant::now());
        let [a, b] = ["192.0.2.2", "2001:db8::2"].map(|peer| peer.parse::<IpAddr>().expect("an address"));
        assert!(paths.note(a, 1400, start));
        assert!(!paths.note(a, 1400, start + Duration::from_secs(300)), "nothing new");
        assert!(!paths.note(a, 1450, start), "one router is not all");
        assert!(paths.note(a, 1300, start));
        assert!(paths.note(b, 1400, start + Duration::from_secs(60)));
        assert_eq!(paths.mtus(), [(a, 1300), (b, 1400)].into());
        assert!(!paths.forget(start + KEPT - Duration::from_secs(1)));
        assert!(paths.forget(start + KEPT));
        assert_eq!(paths.mtus(), [(b, 1400)].into());
    }

    #[test]
    fn nobody_can_make_a_way_narrower_than_any_is() {
        let (mut paths, now) = (Paths::default(), Instant::now());
        let [a, b] = ["192.0.2.2", "2001:db8::2"].map(|peer| peer.parse::<IpAddr>().expect("an address"));
        paths.note(a, 68, now);
        paths.note(b, 68, now);
        assert_eq!(paths.mtus(), [(a, 576), (b, 1280)].into());
    }
}
