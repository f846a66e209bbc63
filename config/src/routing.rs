//! How packets leave a network: `[uplink]` and `[[route]]`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::document::{Object, is_default};
use crate::services::L4Range;
use crate::values::{ValueError, as_text, one_or_list};

/// `[uplink]`: the way to the outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Uplink {
    /// The devices that lead outside.
    pub device: UplinkDevice,
    /// How packets get from the devices to the switch and back.
    pub mode: UplinkMode,
    /// The devices are the switch's alone: the host has no part in them.
    pub dedicated: bool,
    /// The switch's addresses on them, with their prefix lengths; none: the devices' own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNet>,
    /// The next routers, at most one of each family; none: those of the host's routes.
    #[serde(with = "one_or_list", skip_serializing_if = "Vec::is_empty")]
    pub gateway: Vec<IpAddr>,
    /// L4 ports that connections to the outside get when their source is masqueraded.
    pub ports: L4Range,
}

impl Default for Uplink {
    fn default() -> Self {
        Self {
            device: UplinkDevice::Auto,
            mode: UplinkMode::Steer,
            dedicated: false,
            addresses: Vec::new(),
            gateway: Vec::new(),
            ports: L4Range { first: 49152, last: 65535 },
        }
    }
}

/// Which devices lead outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UplinkDevice {
    /// Those that the host's routes use, as they change. Without a default route there is no outside.
    #[default]
    Auto,
    /// None: the switch is an island.
    None,
    /// These.
    Names(Vec<String>),
}

impl UplinkDevice {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str =
        "\"auto\", \"none\", or one or a list of up to 8 names of devices, as in \"eth0\"";

    /// Returns the names that are given.
    pub fn names(&self) -> &[String] {
        match self {
            UplinkDevice::Auto | UplinkDevice::None => &[],
            UplinkDevice::Names(names) => names,
        }
    }
}

impl Serialize for UplinkDevice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            UplinkDevice::Auto => serializer.serialize_str("auto"),
            UplinkDevice::None => serializer.serialize_str("none"),
            UplinkDevice::Names(names) => one_or_list::serialize(names, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for UplinkDevice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names: Vec<String> = one_or_list::deserialize(deserializer)?;
        Ok(match names.as_slice() {
            [one] if one == "auto" => UplinkDevice::Auto,
            [one] if one == "none" => UplinkDevice::None,
            _ => UplinkDevice::Names(names),
        })
    }
}

/// How packets get from an uplink's device to the switch and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkMode {
    /// A program at the device takes what is the switch's into a tap; large frames stay whole.
    #[default]
    Steer,
    /// AF_XDP sockets: the highest packet rate, without large frames.
    Afxdp,
}

impl fmt::Display for UplinkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UplinkMode::Steer => "steer",
            UplinkMode::Afxdp => "afxdp",
        })
    }
}

/// `[[route]]`: where packets of a network go whose destination is in none of its subnets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The network whose packets it is for.
    pub network: String,
    /// The destinations.
    pub to: RouteTo,
    /// The next hops, all of them alike; flows are spread over them. None unless `kind` is `unicast`.
    #[serde(default, with = "one_or_list", skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<IpAddr>,
    /// What becomes of the packets.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kind: RouteKind,
}

impl Route {
    /// Returns the prefixes it is for, each with its next hops. A default route is for the families of its next
    /// hops, and for both when it has none.
    pub fn prefixes(&self) -> Vec<(IpNet, Vec<IpAddr>)> {
        let of = |v4: bool| self.via.iter().copied().filter(|hop| hop.is_ipv4() == v4).collect::<Vec<_>>();
        match self.to {
            RouteTo::Prefix(net) => vec![(net, of(net.addr().is_ipv4()))],
            RouteTo::Default => [(true, "0.0.0.0/0"), (false, "::/0")]
                .into_iter()
                .map(|(v4, all)| (all.parse().expect("a constant"), of(v4)))
                .filter(|(_, hops)| self.via.is_empty() || !hops.is_empty())
                .collect(),
        }
    }
}

impl Object for Route {
    const SECTION: &'static str = "route";

    /// `front/10.9.0.0/16`
    fn name(&self) -> String {
        format!("{}/{}", self.network, self.to)
    }
}

/// Destinations of a route: a prefix, or `default`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteTo {
    /// Everything that no other route is for.
    Default,
    /// The addresses of a prefix.
    Prefix(IpNet),
}

impl RouteTo {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str = "\"default\" or a prefix without host bits, as in \"10.9.0.0/16\"";
}

impl fmt::Display for RouteTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteTo::Default => f.write_str("default"),
            RouteTo::Prefix(net) => net.fmt(f),
        }
    }
}

impl FromStr for RouteTo {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "default" {
            return Ok(RouteTo::Default);
        }
        text.parse()
            .map(RouteTo::Prefix)
            .map_err(|_| ValueError::new(text, "destination of a route", Self::ALLOWED))
    }
}

as_text!(RouteTo);

/// What becomes of the packets that a route is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    /// They go to the next hops.
    #[default]
    Unicast,
    /// They are dropped, and nobody is told.
    Blackhole,
    /// They are dropped, and their sender is told that the destination cannot be reached.
    Unreachable,
    /// They are dropped, and their sender is told that it is forbidden.
    Prohibit,
}

impl RouteKind {
    /// Returns the kind as the file spells it.
    pub const fn name(self) -> &'static str {
        match self {
            RouteKind::Unicast => "unicast",
            RouteKind::Blackhole => "blackhole",
            RouteKind::Unreachable => "unreachable",
            RouteKind::Prohibit => "prohibit",
        }
    }
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RouteKind {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        [RouteKind::Unicast, RouteKind::Blackhole, RouteKind::Unreachable, RouteKind::Prohibit]
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| {
                ValueError::new(text, "kind of route", "unicast, blackhole, unreachable, prohibit")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_route_is_for_the_families_of_its_next_hops() {
        let route = |via: &[&str]| Route {
            network: "front".into(),
            to: RouteTo::Default,
            via: via.iter().map(|hop| hop.parse().expect("an address")).collect(),
            kind: RouteKind::Unicast,
        };
        let shown = |route: &Route| -> Vec<String> {
            route.prefixes().iter().map(|(net, hops)| format!("{net} {hops:?}")).collect()
        };
        assert_eq!(shown(&route(&["10.1.0.9"])), ["0.0.0.0/0 [10.1.0.9]"]);
        assert_eq!(shown(&route(&["10.1.0.9", "fd00::9"])), ["0.0.0.0/0 [10.1.0.9]", "::/0 [fd00::9]"]);
        assert_eq!(shown(&route(&[])), ["0.0.0.0/0 []", "::/0 []"]);
    }
}
