//! What outlives the process: objects by owner, and which devices and port numbers they were given.
//!
//! One redb file in the state directory. A change is one transaction that is on disk when [`Store::save`]
//! returns; front ends are answered after that. Objects are JSON, so that a newer version reads an older one's
//! store by the same rules as the API.
//!
//! One daemon at a time: redb locks the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{
    Document, Egress, FdbEntry, FloatingIp, Network, Object, OverlayPeer, Policy, Port, Publish, Remote,
    Route,
};
use packet::PortId;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::intent::{Intent, Kind, Owned, fdb_key};
use crate::plug::Plugged;

const OBJECTS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("objects");
const PORTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("ports");
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
/// Raised when a store can no longer be read by older versions.
const VERSION: &str = "1";
/// The store is small and rarely read: redb's default of 1 GiB would be of no use.
const CACHE: usize = 1 << 20;

/// What was made for a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRecord {
    /// Its number in the switch.
    pub id: PortId,
    /// What was made.
    pub plugged: Plugged,
}

/// What the store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// The objects.
    pub intent: Intent,
    /// What was made for each port, by name.
    pub ports: BTreeMap<String, PortRecord>,
}

/// The store cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("store {path}: cannot {operation}: {source}")]
pub struct Error {
    path: PathBuf,
    operation: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// The store. See the module header.
#[derive(Debug)]
pub struct Store {
    database: Database,
    path: PathBuf,
}

impl Store {
    /// Opens the store in `directory`, and makes both when there is none.
    ///
    /// # Errors
    /// Names the file and what is wrong: another daemon has it, it is damaged, the disk is full.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("vswitch.redb");
        let fail = |operation| {
            let path = path.clone();
            move |source: Box<dyn std::error::Error + Send + Sync>| Error { path, operation, source }
        };
        std::fs::create_dir_all(directory).map_err(|e| fail("make its directory")(e.into()))?;
        let database = Database::builder()
            .set_cache_size(CACHE)
            .create(&path)
            .map_err(|e| fail("open it (is another vswitchd running?)")(e.into()))?;
        let store = Self { database, path };
        store.prepare().map_err(|source| store.error("prepare it", source))?;
        Ok(store)
    }

    fn error(&self, operation: &'static str, source: Failure) -> Error {
        Error { path: self.path.clone(), operation, source }
    }

    fn prepare(&self) -> Result<(), Failure> {
        let write = self.database.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            let version = meta.get("version")?.map(|found| found.value().to_owned());
            match version.as_deref() {
                None => {
                    meta.insert("version", VERSION)?;
                }
                Some(VERSION) => {}
                Some(other) => {
                    return Err(format!("it has version {other}; this vswitchd reads {VERSION}").into());
                }
            }
            write.open_table(OBJECTS)?;
            write.open_table(PORTS)?;
        }
        write.commit()?;
        Ok(())
    }

    /// Reads everything.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn load(&self) -> Result<Saved, Error> {
        self.read().map_err(|source| self.error("read it", source))
    }

    fn read(&self) -> Result<Saved, Failure> {
        let read = self.database.begin_read()?;
        let mut saved = Saved::default();
        for row in read.open_table(OBJECTS)?.iter()? {
            let (key, value) = row?;
            let (kind, name) = key.value();
            let value = value.value();
            match kind {
                Network::SECTION => restore::<Network>(&mut saved.intent, name, value)?,
                Port::SECTION => restore::<Port>(&mut saved.intent, name, value)?,
                OverlayPeer::SECTION => restore::<OverlayPeer>(&mut saved.intent, name, value)?,
                Remote::SECTION => restore::<Remote>(&mut saved.intent, name, value)?,
                Route::SECTION => restore::<Route>(&mut saved.intent, name, value)?,
                FloatingIp::SECTION => restore::<FloatingIp>(&mut saved.intent, name, value)?,
                Publish::SECTION => restore::<Publish>(&mut saved.intent, name, value)?,
                Egress::SECTION => restore::<Egress>(&mut saved.intent, name, value)?,
                Policy::SECTION => restore::<Policy>(&mut saved.intent, name, value)?,
                "fdb" => {
                    let entry: Owned<FdbEntry> = serde_json::from_slice(value)?;
                    saved.intent.fdb.insert(fdb_key(&entry.object), entry);
                }
                "settings" => {
                    let settings: Document = serde_json::from_slice(value)?;
                    saved.intent.settings = settings;
                }
                other => tracing::warn!(kind = other, name, "the store holds an object of an unknown kind"),
            }
        }
        for row in read.open_table(PORTS)?.iter()? {
            let (name, value) = row?;
            saved.ports.insert(name.value().to_owned(), serde_json::from_slice(value.value())?);
        }
        Ok(saved)
    }

    /// Writes what differs between `old`, which the store holds, and `new`; it is on disk on return.
    ///
    /// # Errors
    /// The disk is full or broken; the store still holds `old`.
    pub fn save(&self, old: &Saved, new: &Saved) -> Result<(), Error> {
        if old == new {
            return Ok(());
        }
        self.write(old, new).map_err(|source| self.error("write it", source))
    }

    fn write(&self, old: &Saved, new: &Saved) -> Result<(), Failure> {
        let (before, after) = (rows(&old.intent)?, rows(&new.intent)?);
        let write = self.database.begin_write()?;
        {
            let mut objects = write.open_table(OBJECTS)?;
            for (kind, name) in before.keys().filter(|key| !after.contains_key(*key)) {
                objects.remove((*kind, name.as_str()))?;
            }
            for ((kind, name), value) in after.iter().filter(|(key, value)| before.get(*key) != Some(value)) {
                objects.insert((*kind, name.as_str()), value.as_slice())?;
            }
            let mut ports = write.open_table(PORTS)?;
            for name in old.ports.keys().filter(|name| !new.ports.contains_key(*name)) {
                ports.remove(name.as_str())?;
            }
            for (name, record) in new.ports.iter().filter(|(name, r)| old.ports.get(*name) != Some(r)) {
                ports.insert(name.as_str(), serde_json::to_vec(record)?.as_slice())?;
            }
        }
        write.commit()?;
        Ok(())
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Objects by kind and name, as the store has them.
type Rows = BTreeMap<(&'static str, String), Vec<u8>>;

fn restore<T: Kind>(intent: &mut Intent, name: &str, value: &[u8]) -> Result<(), serde_json::Error> {
    let owned: Owned<T> = serde_json::from_slice(value)?;
    T::of_mut(intent).insert(name.to_owned(), owned);
    Ok(())
}

fn keep<T: Kind>(rows: &mut Rows, intent: &Intent) -> Result<(), serde_json::Error> {
    for (name, owned) in T::of(intent) {
        rows.insert((T::SECTION, name.clone()), serde_json::to_vec(owned)?);
    }
    Ok(())
}

fn rows(intent: &Intent) -> Result<Rows, serde_json::Error> {
    let mut rows = BTreeMap::new();
    keep::<Network>(&mut rows, intent)?;
    keep::<Port>(&mut rows, intent)?;
    keep::<OverlayPeer>(&mut rows, intent)?;
    keep::<Remote>(&mut rows, intent)?;
    keep::<Route>(&mut rows, intent)?;
    keep::<FloatingIp>(&mut rows, intent)?;
    keep::<Publish>(&mut rows, intent)?;
    keep::<Egress>(&mut rows, intent)?;
    keep::<Policy>(&mut rows, intent)?;
    for ((network, vlan, mac), entry) in &intent.fdb {
        let name = format!("{network}/{}/{mac}", vlan.unwrap_or(0));
        rows.insert(("fdb", name), serde_json::to_vec(entry)?);
    }
    rows.insert(("settings", String::new()), serde_json::to_vec(&intent.settings)?);
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{Device, DeviceKind, Identity};
    use config::Owner;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("vswitch-store-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn record() -> PortRecord {
        let device = Device {
            port: "p".into(),
            kind: DeviceKind::Veth,
            near: "p".into(),
            near_index: 3,
            netns: "c".into(),
            namespace: Identity { device: 4, inode: 5 },
            ifname: "eth0".into(),
            far_index: 2,
            adopted: false,
            notes: Vec::new(),
        };
        let far = crate::plug::far_end(&Port::new("p", "a"), &Network::new("a"));
        let plugged = Plugged { device, far, kind: config::PortKind::Veth, queues: 1 };
        PortRecord { id: PortId(3), plugged }
    }

    fn saved() -> Saved {
        let document = Document {
            networks: vec![Network::new("a")],
            ports: vec![Port::new("p", "a"), Port::new("q", "a")],
            fdb: vec![FdbEntry {
                network: "a".into(),
                mac: packet::MacAddr::local(7),
                port: "p".into(),
                vlan: None,
            }],
            routes: vec![Route {
                network: "a".into(),
                to: config::RouteTo::Default,
                via: Vec::new(),
                kind: config::RouteKind::Blackhole,
            }],
            floating_ips: vec![FloatingIp {
                address: "203.0.113.10".parse().expect("an address"),
                port: "p".into(),
                to: None,
            }],
            publishes: vec![Publish {
                name: None,
                listen: "[::]:80-81/tcp".parse().expect("good"),
                to: "p:80-81".parse().expect("good"),
                allow_from: Vec::new(),
            }],
            egresses: vec![Egress {
                port: "p".into(),
                address: vec!["203.0.113.7".parse().expect("an address")],
                ports: Egress::DEFAULT_PORTS,
            }],
            policies: vec![Policy::new(
                config::Peer::Any,
                config::Peer::Host,
                config::Action::Deny,
                vec![config::Service::Any],
            )],
            ..Document::default()
        };
        let intent = Intent::default().replace(Owner::Cli, &document).expect("free names");
        Saved { intent, ports: [("p".to_owned(), record())].into() }
    }

    #[test]
    fn what_was_saved_is_loaded_after_a_restart() {
        let directory = Directory::new("restart");
        let store = Store::open(&directory.0).expect("a store");
        store.save(&Saved::default(), &saved()).expect("written");
        drop(store);
        let store = Store::open(&directory.0).expect("the store");
        assert_eq!(store.load().expect("read"), saved());
    }

    #[test]
    fn what_went_is_gone_from_the_store() {
        let directory = Directory::new("went");
        let store = Store::open(&directory.0).expect("a store");
        store.save(&Saved::default(), &saved()).expect("written");
        let mut less = saved();
        less.intent.ports.remove("q");
        less.intent.fdb.clear();
        less.intent.policies.clear();
        less.ports.clear();
        store.save(&saved(), &less).expect("written");
        assert_eq!(store.load().expect("read"), less);
    }

    #[test]
    fn a_second_daemon_is_refused() {
        let directory = Directory::new("second");
        let _first = Store::open(&directory.0).expect("a store");
        let error = Store::open(&directory.0).expect_err("locked");
        assert!(error.to_string().contains("is another vswitchd running?"), "{error}");
    }
}
