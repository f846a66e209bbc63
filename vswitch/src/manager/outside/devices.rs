//! The devices that lead outside: each is used in one of three ways, and goes from one to another while it is used.
//!
//! | way | packets come by | what is the host's goes back by |
//! |---|---|---|
//! | [`Way::Tap`], mode `steer` | a tap | the same tap |
//! | [`Way::Xdp`], mode `afxdp` | AF_XDP sockets | a tap of its own |
//! | [`Way::Dedicated`] | AF_XDP sockets | nothing is the host's |
//!
//! The order of steps is such that in between nothing of ours meets the host's stack, which would reset the connections:
//! the new program takes packets before the old one is taken away, and drops them until its port is open. A device keeps
//! its port number, and so its connections.
//!
//! A device that cannot do `afxdp` is steered instead and says why, unless somebody named it and asked just now.

use std::collections::BTreeSet;
use std::sync::Arc;

use config::{Uplink as Wish, UplinkDevice, UplinkMode};
use packet::PortId;
use ports::afxdp::{Attach, Options, Steer};
use ports::{Kind, Opened, Port, Spec};

use super::{DEVICES, Outside};
use crate::devices::Link;
use crate::devices::follow::HostState;
use crate::manager::Manager;
use crate::refusal::Refusal;
use crate::uplink::{Uplink, Way, pins, tap_name};

/// A device that leads outside.
#[derive(Debug)]
pub(super) struct Device {
    /// The number of its port.
    pub(super) id: PortId,
    /// The port that leads to the host's stack, where that is another one.
    pub(super) back: Option<PortId>,
    /// The device, as it is now.
    pub(super) link: Link,
    /// How it is used.
    pub(super) way: Way,
    /// How it was to be used.
    wanted: Way,
    /// AF_XDP sockets on it.
    pub(super) sockets: usize,
    /// How it is used, for people.
    pub(super) mode: String,
    /// Why it is used otherwise than it was to be.
    pub(super) fell_back: Option<String>,
    /// What the kernel takes no part of.
    pub(super) notes: Vec<String>,
}

/// Returns how devices are to be used.
pub(super) fn way(wish: &Wish) -> Way {
    match wish.mode {
        _ if wish.dedicated => Way::Dedicated,
        UplinkMode::Afxdp => Way::Xdp,
        UplinkMode::Steer => Way::Tap,
    }
}

/// Returns how many AF_XDP sockets the devices that are there now would take.
pub(in crate::manager) fn sockets(wish: &Wish, state: &HostState) -> usize {
    if way(wish) == Way::Tap {
        return 0;
    }
    let names = wanted(wish, state).into_iter().filter_map(|index| Some(&state.link(index)?.name));
    // One that has gone meanwhile takes none.
    let queues = names.filter_map(|name| ports::afxdp::queues(name).ok());
    queues.map(|queues| queues as usize).sum()
}

/// Returns the devices that lead outside, by number.
pub(super) fn wanted(wish: &Wish, state: &HostState) -> BTreeSet<u32> {
    match &wish.device {
        UplinkDevice::None => BTreeSet::new(),
        UplinkDevice::Auto => state.uplinks().into_iter().collect(),
        UplinkDevice::Names(names) => {
            let named = state.links.iter().filter(|link| names.contains(&link.name));
            named.map(|link| link.index).collect()
        }
    }
}

/// What to do about a device that cannot be used as it was to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Otherwise {
    /// Use it as it can be.
    FallBack,
    /// Say so.
    Refuse,
}

impl Manager {
    /// Has named devices used as `wish` says, before anything else follows it.
    ///
    /// # Errors
    /// A device cannot be used so. Then the present intent is to be followed again.
    pub(in crate::manager) async fn try_uplink(&mut self, wish: &Wish) -> Result<(), Refusal> {
        let now = &self.saved.intent.settings.uplink;
        let same = now.device == wish.device && way(now) == way(wish);
        if same || way(wish) == Way::Tap || !matches!(wish.device, UplinkDevice::Names(_)) {
            return Ok(());
        }
        let Some(mut outside) = self.outside.take() else { return Ok(()) };
        let state = outside.host.borrow().clone();
        let mut result = Ok(());
        for index in wanted(wish, &state) {
            let Some(link) = state.link(index) else { continue };
            if let Err(error) = self.share(&mut outside, link, way(wish), Otherwise::Refuse).await {
                let allowed = match way(wish) {
                    Way::Xdp => "mode = \"steer\", which any device can",
                    _ => "dedicated = false",
                };
                let refusal =
                    Refusal::conflict(format!("[uplink] {}: {error:#}; allowed: {allowed}", link.name));
                result = Err(refusal);
                break;
            }
        }
        self.outside = Some(outside);
        result
    }

    /// Uses the devices that lead outside, and gives back those that do not any more. Returns what went wrong.
    pub(super) async fn share_devices(&self, outside: &mut Outside, state: &HostState) -> Vec<String> {
        let wish = &self.saved.intent.settings.uplink;
        // Nobody to go outside: so a cleaned up switch leaves the host alone.
        let nobody = self.saved.intent.networks.is_empty();
        let wanted = if nobody { BTreeSet::new() } else { wanted(wish, state) };
        let mut troubles = Vec::new();
        let gone: Vec<u32> =
            outside.devices.keys().filter(|index| !wanted.contains(index)).copied().collect();
        for index in gone {
            let Some(device) = outside.devices.remove(&index) else { continue };
            self.close(&device).await;
            if let Err(error) = outside.uplink.release(&device.link.name).await {
                troubles.push(error.to_string());
            }
            self.journal.note("uplink_gone", format!("device {}", device.link.name), "no longer shared");
        }
        for index in &wanted {
            let Some(link) = state.link(*index) else { continue };
            let result = match outside.devices.get_mut(index) {
                Some(device) if device.wanted == way(wish) && is_like(&device.link, link) => {
                    device.link = link.clone();
                    Ok(())
                }
                Some(device) if device.way == Way::Tap && way(wish) == Way::Tap => {
                    device.wanted = Way::Tap;
                    device.fell_back = None;
                    let shared = outside.uplink.share(&link.name, Way::Tap).await;
                    device.link = link.clone();
                    shared.map_err(anyhow::Error::from)
                }
                _ => self.share(outside, link, way(wish), Otherwise::FallBack).await,
            };
            troubles.extend(result.err().map(|error| format!("{}: {error:#}", link.name)));
        }
        if !std::mem::replace(&mut outside.looked_for_leftovers, true) {
            match outside.uplink.release_others(wanted.into_iter().collect()).await {
                Ok(released) => {
                    for name in released {
                        self.journal.note("uplink_gone", format!("device {name}"), "of an earlier run");
                    }
                }
                Err(error) => troubles.push(error.to_string()),
            }
        }
        troubles
    }

    /// Closes the ports of a device. Its programs go on, and drop what is ours.
    async fn close(&self, device: &Device) {
        self.crew.remove_port(device.id).await;
        if let Some(back) = device.back {
            self.crew.remove_port(back).await;
        }
    }

    async fn share(
        &self,
        outside: &mut Outside,
        link: &Link,
        way: Way,
        otherwise: Otherwise,
    ) -> anyhow::Result<()> {
        let before = outside.devices.remove(&link.index);
        if let Some(before) = &before {
            self.close(before).await;
        }
        let number = before.as_ref().map(|before| before.id).or_else(|| self.free_number(outside));
        let Some(id) = number else { anyhow::bail!("more than {DEVICES} devices lead outside") };
        let room = self.room_for_sockets(outside);
        let mut opened = self.open_way(&outside.uplink, link, id, way, room).await;
        if let Err(error) = &opened
            && way == Way::Xdp
            && otherwise == Otherwise::FallBack
        {
            let why = format!("mode \"afxdp\" is not possible: {error:#}");
            self.journal.note("uplink_fallback", format!("device {}", link.name), why.clone());
            opened = self.open_way(&outside.uplink, link, id, Way::Tap, room).await;
            opened = opened.map(|device| Device { wanted: way, fell_back: Some(why), ..device });
        }
        match opened {
            Ok(device) => {
                let object = format!("device {}", link.name);
                let text = match device.way {
                    Way::Dedicated => "the switch's alone",
                    _ => "shared with the host",
                };
                self.journal.note("uplink", object, format!("{text}: {}", device.mode));
                outside.devices.insert(link.index, device);
                Ok(())
            }
            Err(error) => {
                if before.is_none() {
                    // Half of it may be there.
                    outside.uplink.release(&link.name).await?;
                }
                Err(error)
            }
        }
    }

    fn free_number(&self, outside: &Outside) -> Option<PortId> {
        let first = self.limits.ports + 1;
        let is_taken = |id: &PortId| outside.devices.values().any(|device| device.id == *id);
        (first..first + DEVICES).map(PortId).find(|id| !is_taken(id))
    }

    /// Returns how many AF_XDP sockets there may be more.
    fn room_for_sockets(&self, outside: &Outside) -> usize {
        let devices = outside.devices.values().map(|device| device.sockets).sum::<usize>();
        self.sockets.saturating_sub(self.port_sockets(&self.saved.intent) + devices)
    }

    async fn open_way(
        &self,
        uplink: &Uplink,
        link: &Link,
        id: PortId,
        way: Way,
        room: usize,
    ) -> anyhow::Result<Device> {
        let name = &link.name;
        let made = Device {
            id,
            back: None,
            link: link.clone(),
            way,
            wanted: way,
            sockets: 0,
            mode: String::new(),
            fell_back: None,
            notes: Vec::new(),
        };
        if way == Way::Tap {
            let Opened { queues, mode, notes } = self.open_tap(uplink, tap_name(name)).await?;
            uplink.share(name, way).await?;
            self.crew.add_port(id, queues, 0).await;
            return Ok(Device { mode: format!("steer,{mode}"), notes, ..made });
        }
        let sockets = ports::afxdp::queues(name)? as usize;
        anyhow::ensure!(
            sockets <= room,
            "its {sockets} queues take as many AF_XDP sockets, and the memory was shared out for {room} more: raise \
             [limits] memory and restart vswitchd, or give the device fewer queues (ethtool -L {name} combined N)"
        );
        let mut back = None;
        if way == Way::Xdp {
            let tap = self.open_tap(uplink, tap_name(name)).await?;
            uplink.set_up_tap(name).await?;
            back = Some((PortId(id.0 + DEVICES), tap.queues));
        } else if !link.up {
            uplink.bring_up(name).await?;
        }
        let Opened { queues, mode, notes } = self.open_afxdp(uplink, link, way).await?;
        uplink.share(name, way).await?;
        if let Some((back, tap)) = back {
            self.crew.add_port(back, tap, 0).await;
        }
        let back = (way == Way::Xdp).then_some(PortId(id.0 + DEVICES));
        self.crew.add_port(id, queues, 0).await;
        let way = if way == Way::Xdp { "afxdp" } else { "dedicated" };
        Ok(Device { back, sockets, mode: format!("{way},{mode}"), notes, ..made })
    }

    async fn open_afxdp(&self, uplink: &Uplink, link: &Link, way: Way) -> anyhow::Result<Opened> {
        let area = Arc::clone(self.crew.area());
        let dedicated = way == Way::Dedicated;
        let mut options = Options {
            steer: Some(Steer { pins: pins(&self.name), mac: link.mac, dedicated }),
            // In the stack the program would meet again what was handed back.
            attach: if dedicated { Attach::Auto } else { Attach::Native },
            ..Options::default()
        };
        options.fill = options.fill.min(self.fill);
        options.fill_limit = options.fill_limit.min(self.fill * 2);
        let (name, device) = (link.name.clone(), link.name.clone());
        let open = move || Port::open(Spec { name, kind: Kind::Afxdp { device, options } }, &area);
        Ok(uplink.run(open).await??)
    }

    pub(super) async fn open_tap(&self, uplink: &Uplink, device: String) -> anyhow::Result<Opened> {
        let area = Arc::clone(self.crew.area());
        let name = device.clone();
        let kind = Kind::Tap { device, queues: 1, persist: true };
        Ok(uplink.run(move || Port::open(Spec { name, kind }, &area)).await??)
    }
}

/// Says whether programs and ports made for the one do for the other.
fn is_like(one: &Link, other: &Link) -> bool {
    (one.mac, one.mtu) == (other.mac, other.mtu)
}
