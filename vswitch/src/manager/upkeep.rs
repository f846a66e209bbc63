//! What happens without a request: devices that vanish and come back, ageing, rates, loops, time-outs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use config::Poll as Wish;
use config::api::Rates;
use packet::PortId;
use pipeline::{DropReason, Tables};
use tokio::sync::{mpsc, watch};

use super::{Condition, Manager, Shared};
use crate::crew::News;
use crate::devices::follow::HostState;
use crate::devices::{DeviceKind, LinkEvent, Watch};
use crate::worker::Poll;

/// How often the manager looks after things.
const TICK: Duration = Duration::from_secs(1);
/// Places a shard of the FDB that one tick looks at: with 64 shards, all of the largest table in five minutes,
/// the usual ageing time, and all of the default one in two seconds.
const SWEEP: usize = 256;

/// The pipeline's counters of a port, all workers together, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Frames that came in.
    pub rx_frames: u64,
    /// Bytes that came in.
    pub rx_bytes: u64,
    /// Frames queued for it.
    pub tx_frames: u64,
    /// Bytes queued for it.
    pub tx_bytes: u64,
    /// Drops by reason.
    pub drops: Vec<u64>,
}

impl Sample {
    /// Reads the counters of a port number.
    pub fn take(tables: &Tables, id: PortId) -> Self {
        let mut sample = Sample { drops: vec![0; DropReason::COUNT], ..Sample::default() };
        for counters in tables.all_counters() {
            let port = counters.port(id);
            sample.rx_frames += port.rx_frames.get();
            sample.rx_bytes += port.rx_bytes.get();
            sample.tx_frames += port.tx_frames.get();
            sample.tx_bytes += port.tx_bytes.get();
            for (sum, reason) in sample.drops.iter_mut().zip(DropReason::ALL) {
                *sum += counters.drops(id, *reason);
            }
        }
        sample
    }

    /// Returns the counts since `base`.
    pub fn since(&self, base: &Sample) -> Sample {
        Sample {
            rx_frames: self.rx_frames.wrapping_sub(base.rx_frames),
            rx_bytes: self.rx_bytes.wrapping_sub(base.rx_bytes),
            tx_frames: self.tx_frames.wrapping_sub(base.tx_frames),
            tx_bytes: self.tx_bytes.wrapping_sub(base.tx_bytes),
            drops: self.drops.iter().zip(&base.drops).map(|(now, then)| now.wrapping_sub(*then)).collect(),
        }
    }

    fn rates_over(&self, time: Duration) -> Rates {
        let a_second = |count: u64| count as f64 / time.as_secs_f64().max(1e-3);
        Rates {
            rx_frames: a_second(self.rx_frames),
            rx_bits: a_second(self.rx_bytes) * 8.0,
            tx_frames: a_second(self.tx_frames),
            tx_bits: a_second(self.tx_bytes) * 8.0,
        }
    }
}

/// How busy a worker was in the last second.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Part of the time in turns that moved frames, 0 to 1.
    pub busy: f64,
    /// What its pipeline received and queued.
    pub rates: Rates,
    busy_nanos: u64,
    total_nanos: u64,
    sample: Sample,
}

/// Runs the manager's own part until the daemon ends.
pub async fn run(manager: Shared, mut news: mpsc::UnboundedReceiver<News>, mut watch: Option<Watch>) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut look = tokio::time::interval(super::loops::LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut host = manager.lock().await.outside.as_ref().map(super::outside::Outside::changes);
    loop {
        tokio::select! {
            () = changed(&mut host) => manager.lock().await.follow_outside().await,
            _ = tick.tick() => manager.lock().await.tick().await,
            _ = look.tick() => manager.lock().await.look_for_storms().await,
            Some(news) = news.recv() => manager.lock().await.hear(news).await,
            event = next(&mut watch) => match event {
                Some(event) => manager.lock().await.link_event(event).await,
                None => watch = None,
            },
        }
    }
}

/// Returns when the host has changed; never, without anybody who follows it.
async fn changed(host: &mut Option<watch::Receiver<HostState>>) {
    let alive = match host {
        Some(receiver) => receiver.changed().await.is_ok(),
        None => std::future::pending().await,
    };
    if !alive {
        tracing::error!("changes of the host's addresses and routes are not noticed from now on");
        *host = None;
    }
}

/// Returns the next event; never, without a watch; `None` when the watch has failed.
async fn next(watch: &mut Option<Watch>) -> Option<LinkEvent> {
    match watch {
        Some(watch) => match watch.next().await {
            Ok(event) => Some(event),
            Err(error) => {
                tracing::error!(%error, "devices that vanish are noticed late from now on");
                None
            }
        },
        None => std::future::pending().await,
    }
}

impl Manager {
    async fn tick(&mut self) {
        self.undo_unconfirmed().await;
        self.retry_waiting().await;
        self.probe_addresses().await;
        self.retry_outside().await;
        self.forget_paths();
        self.tell_restored();
        self.sample();
        self.sweep();
        self.crew.drop_retired();
        self.enable_again();
        self.let_namespaces_die().await;
        if self.outside.is_none() {
            let addresses = host_addresses();
            if addresses != self.surroundings.addresses {
                self.surroundings.addresses = addresses;
                self.publish();
            }
        }
    }

    async fn hear(&mut self, news: News) {
        match news {
            News::Gone(id) => {
                if let Some(name) = self.port_name(id).map(str::to_owned) {
                    self.lose(&name, "the device has vanished".to_owned()).await;
                }
            }
            News::Refused(id) => {
                if let Some(name) = self.port_name(id).map(str::to_owned) {
                    self.lose(&name, "its worker has no room for another queue".to_owned()).await;
                }
            }
            News::Pipeline(pipeline::Event::StationMoved { station, from, to, .. }) => {
                self.station_moved(station, from, to).await;
            }
            News::Pipeline(pipeline::Event::Resolve { port, address }) => {
                if !self.is_probed(address.ip()) {
                    self.have_resolved(port, address.ip()).await;
                }
            }
            News::Pipeline(pipeline::Event::Policy { rule, from, tuple }) => {
                let (policy, _) = self.compiler.policy();
                let Some(rule) = policy.rules().get(rule as usize) else { return };
                let (name, action) = (rule.name.to_string(), rule.action);
                let from = self.port_name(from).unwrap_or("outside").to_owned();
                self.journal.note(
                    "policy",
                    format!("policy {name}"),
                    format!("{action:?}: {tuple} from {from}"),
                );
            }
            News::Pipeline(pipeline::Event::PathMtu { to, mtu }) => self.learn_path(to.ip(), mtu),
            News::Pipeline(pipeline::Event::LoopSeen { network, sent_by, seen_at }) => {
                self.loop_seen(network, sent_by, seen_at);
            }
        }
    }

    async fn link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Gone(link) => {
                let lost = self.ports.iter().find(|(_, attached)| {
                    let device = &attached.plugged.device;
                    device.near == link.name && device.near_index == link.index
                });
                if let Some((name, attached)) = lost {
                    let reason = format!(
                        "its interface is gone, or namespace '{}' with it",
                        attached.plugged.device.netns
                    );
                    let name = name.clone();
                    self.lose(&name, reason).await;
                }
            }
            LinkEvent::Changed(link) => {
                let changed = self.ports.values_mut().find(|attached| {
                    let device = &attached.plugged.device;
                    device.near == link.name && device.near_index == link.index
                });
                if let Some(attached) = changed
                    && !matches!(attached.condition, Condition::Disabled { .. })
                {
                    attached.condition =
                        if link.up && link.carrier { Condition::Up } else { Condition::Down };
                }
            }
            // A port whose device has gone meanwhile is noticed by its worker.
            LinkEvent::Lost => tracing::warn!("events about links were lost"),
        }
    }

    /// Loses adopted taps whose namespace has no other user: our open file, made inside it, is all that keeps it
    /// alive.
    async fn let_namespaces_die(&mut self) {
        let adopted = |attached: &super::Attached| {
            let device = &attached.plugged.device;
            device.kind == DeviceKind::Tap && device.adopted
        };
        if !self.ports.values().any(adopted) {
            return;
        }
        let Ok(alive) = self.devices.live_namespaces().await else { return };
        let dead: Vec<String> = self
            .ports
            .iter()
            .filter(|(_, a)| adopted(a) && !alive.contains(&a.plugged.device.namespace))
            .map(|(name, _)| name.clone())
            .collect();
        for name in dead {
            self.lose(&name, "its namespace is gone".to_owned()).await;
        }
    }

    /// Takes the rates of ports and workers.
    fn sample(&mut self) {
        let tables = Arc::clone(self.crew.tables());
        for attached in self.ports.values_mut() {
            let (now, sample) = (Instant::now(), Sample::take(&tables, attached.id));
            attached.rates = sample.since(&attached.last).rates_over(now - attached.sampled);
            attached.last = sample;
            attached.sampled = now;
        }
        self.loads.resize(self.crew.shared().len(), Load::default());
        for (n, load) in self.loads.iter_mut().enumerate() {
            let figures = &self.crew.shared()[n].figures;
            let (busy, total) = (figures.busy_nanos.get(), figures.total_nanos.get());
            let mut sample = Sample { drops: vec![0; DropReason::COUNT], ..Sample::default() };
            let counters = tables.counters(n);
            for id in self.ports.values().map(|attached| attached.id) {
                sample.rx_frames += counters.port(id).rx_frames.get();
                sample.rx_bytes += counters.port(id).rx_bytes.get();
                sample.tx_frames += counters.port(id).tx_frames.get();
                sample.tx_bytes += counters.port(id).tx_bytes.get();
            }
            // A worker that sleeps writes no figures: it was not busy.
            let spent = total.saturating_sub(load.total_nanos).max(1_000_000_000);
            load.busy = (busy.saturating_sub(load.busy_nanos) as f64 / spent as f64).min(1.0);
            // A port that went took its counts along: no rates until the next look.
            let last = &load.sample;
            let is_less = sample.rx_frames < last.rx_frames
                || sample.rx_bytes < last.rx_bytes
                || sample.tx_frames < last.tx_frames
                || sample.tx_bytes < last.tx_bytes;
            load.rates = if last.drops.is_empty() || is_less {
                Rates::default()
            } else {
                sample.since(&load.sample).rates_over(TICK)
            };
            (load.busy_nanos, load.total_nanos, load.sample) = (busy, total, sample);
        }
    }

    /// Forgets stations that have not sent for their network's ageing time.
    fn sweep(&self) {
        let ageing = |network| {
            let name = self.network_name(network)?;
            let network = &self.saved.intent.networks.get(name)?.object;
            Some(Duration::from_secs(u64::from(network.ageing)))
        };
        self.crew.tables().fdb.sweep(packet::Instant::now(), SWEEP, ageing);
    }

    /// Gives poll mode and budget to the workers, as far as they are news.
    pub(super) async fn apply_poll(&mut self) {
        let workers = &self.saved.intent.settings.workers;
        let wish = (poll(workers.poll), usize::from(workers.budget));
        if wish != self.polling {
            self.polling = wish;
            self.crew.set_poll(wish.0, wish.1).await;
        }
    }
}

/// Returns the worker's word for a poll mode.
pub fn poll(wish: Wish) -> Poll {
    match wish {
        Wish::Adaptive => Poll::Adaptive,
        Wish::Busy => Poll::Busy,
        Wish::Interrupt => Poll::Interrupt,
    }
}

/// Returns the addresses of the host itself: those of the daemon's namespace, but for loopback and link-local ones,
/// which mean another machine to everybody who asks.
pub fn host_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let addresses: BTreeSet<IpAddr> = interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        })
        .collect();
    addresses.into_iter().collect()
}
