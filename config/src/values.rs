//! Values that have a text form of their own: sizes, CPU lists, MTUs, namespaces, VLAN ranges.
//!
//! Each reads what its documentation says and prints one form, which it reads again. An error says what was
//! found and what is allowed, because serde hands it on to the user as it is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// The text is no value of its kind; the message names it and says what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{found}' is no {kind}; allowed: {allowed}")]
pub struct ValueError {
    found: String,
    kind: &'static str,
    allowed: &'static str,
}

impl ValueError {
    pub(crate) fn new(found: impl Into<String>, kind: &'static str, allowed: &'static str) -> Self {
        Self { found: found.into(), kind, allowed }
    }
}

/// A number of bytes, as in `"64 MiB"`.
///
/// Units are `B`, `KiB`, `MiB` and `GiB`; the space may be left out; a plain integer counts bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const BYTE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl ByteSize {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str =
        "a whole number with B, KiB, MiB or GiB, as in \"64 MiB\", or a number of bytes";

    /// Returns `count` mebibytes.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// Returns the number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = BYTE_UNITS
            .into_iter()
            .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor))
            .unwrap_or(("B", 1));
        write!(f, "{} {unit}", self.0 / factor)
    }
}

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let factor = BYTE_UNITS.into_iter().find(|(name, _)| *name == unit.trim_start()).map(|(_, f)| f);
        number
            .parse::<u64>()
            .ok()
            .zip(factor)
            .and_then(|(number, factor)| number.checked_mul(factor))
            .map(Self)
            .ok_or_else(|| ValueError { found: text.to_owned(), kind: "size", allowed: Self::ALLOWED })
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_integer(deserializer, ByteSize::ALLOWED, |number| u64::try_from(number).ok().map(ByteSize))
    }
}

/// Which CPUs workers are pinned to: `"auto"` or a list, one worker each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cpus {
    /// One worker, on a CPU of the daemon's choice: the last one it may run on.
    #[default]
    Auto,
    /// One worker on each of these CPUs.
    List(Vec<u16>),
}

impl Cpus {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str = "\"auto\" or a list of CPU numbers, as in [1, 2]";

    /// Returns how many workers this makes.
    pub fn workers(&self) -> usize {
        match self {
            Cpus::Auto => 1,
            Cpus::List(cpus) => cpus.len(),
        }
    }
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Cpus::Auto => serializer.serialize_str("auto"),
            Cpus::List(cpus) => cpus.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CpusVisitor;
        impl<'de> Visitor<'de> for CpusVisitor {
            type Value = Cpus;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Cpus::ALLOWED)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Cpus, E> {
                if text == "auto" {
                    Ok(Cpus::Auto)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Cpus, A::Error> {
                let mut cpus = Vec::new();
                while let Some(cpu) = seq.next_element()? {
                    cpus.push(cpu);
                }
                Ok(Cpus::List(cpus))
            }
        }
        deserializer.deserialize_any(CpusVisitor)
    }
}

/// The largest IP packet of a network, in bytes, or `"auto"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mtu {
    /// What fits everywhere: 1500.
    #[default]
    Auto,
    /// This many bytes.
    Bytes(u16),
}

impl Mtu {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str = "\"auto\" or a number of bytes from 68 to 65535";

    /// Returns the bytes; `auto` is 1500.
    pub const fn bytes(self) -> u16 {
        match self {
            Mtu::Auto => 1500,
            Mtu::Bytes(bytes) => bytes,
        }
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mtu::Auto => f.write_str("auto"),
            Mtu::Bytes(bytes) => bytes.fmt(f),
        }
    }
}

impl FromStr for Mtu {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "auto" {
            return Ok(Mtu::Auto);
        }
        text.parse().map(Mtu::Bytes).map_err(|_| ValueError {
            found: text.to_owned(),
            kind: "MTU",
            allowed: Self::ALLOWED,
        })
    }
}

impl Serialize for Mtu {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Mtu::Auto => serializer.serialize_str("auto"),
            Mtu::Bytes(bytes) => serializer.serialize_u16(*bytes),
        }
    }
}

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_integer(deserializer, Mtu::ALLOWED, |number| u16::try_from(number).ok().map(Mtu::Bytes))
    }
}

/// A network namespace: `"web"` (a name under `/run/netns`), `"/proc/12/ns/net"` (a path), `"pid:12"` or
/// `12` (the namespace of a process).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Netns {
    /// A name, as `ip netns` knows it.
    Name(String),
    /// A path that can be opened and is a network namespace.
    Path(PathBuf),
    /// The namespace that this process is in.
    Pid(u32),
}

impl Netns {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str =
        "the name of a namespace (letters, digits, '.', '_', '-'), an absolute path, or \"pid:N\"";

    /// Returns the file that names the namespace.
    pub fn path(&self) -> PathBuf {
        match self {
            Netns::Name(name) => PathBuf::from("/run/netns").join(name),
            Netns::Path(path) => path.clone(),
            Netns::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Netns::Name(name) => f.write_str(name),
            Netns::Path(path) => path.display().fmt(f),
            Netns::Pid(pid) => write!(f, "pid:{pid}"),
        }
    }
}

impl FromStr for Netns {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError { found: text.to_owned(), kind: "namespace", allowed: Self::ALLOWED };
        if let Some(pid) = text.strip_prefix("pid:") {
            // `parse` takes a sign too, which would not print again.
            let digits = pid.bytes().all(|b| b.is_ascii_digit());
            return pid.parse().ok().filter(|pid| digits && *pid > 0).map(Netns::Pid).ok_or_else(bad);
        }
        if text.starts_with('/') {
            return if text.contains('\0') { Err(bad()) } else { Ok(Netns::Path(PathBuf::from(text))) };
        }
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if text.is_empty() || text.len() > 255 || matches!(text, "." | "..") || !text.chars().all(good) {
            return Err(bad());
        }
        Ok(Netns::Name(text.to_owned()))
    }
}

impl Serialize for Netns {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Netns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_integer(deserializer, Netns::ALLOWED, |number| {
            u32::try_from(number).ok().filter(|pid| *pid > 0).map(Netns::Pid)
        })
    }
}

/// VLANs in a row: `10` or `"100-199"`. First and last belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanRange {
    /// The first VLAN.
    pub first: u16,
    /// The last VLAN, at least `first`.
    pub last: u16,
}

impl VlanRange {
    /// What is allowed, for error texts.
    pub const ALLOWED: &'static str = "a VLAN from 1 to 4094, or a range of them as in \"100-199\"";

    /// Says whether `vlan` is in the range.
    pub const fn contains(self, vlan: u16) -> bool {
        self.first <= vlan && vlan <= self.last
    }
}

impl fmt::Display for VlanRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl FromStr for VlanRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = first.trim().parse().ok().zip(last.trim().parse().ok());
        range
            .map(|(first, last)| Self { first, last })
            .filter(|range| {
                (1..=4094).contains(&range.first) && range.first <= range.last && range.last <= 4094
            })
            .ok_or_else(|| ValueError { found: text.to_owned(), kind: "VLAN range", allowed: Self::ALLOWED })
    }
}

impl Serialize for VlanRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last {
            serializer.serialize_u16(self.first)
        } else {
            serializer.collect_str(self)
        }
    }
}

impl<'de> Deserialize<'de> for VlanRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_integer(deserializer, VlanRange::ALLOWED, |number| {
            let vlan = u16::try_from(number).ok().filter(|vlan| (1..=4094).contains(vlan))?;
            Some(VlanRange { first: vlan, last: vlan })
        })
    }
}

/// Writes values as their text, and reads them from it.
macro_rules! as_text {
    ($($kind:ty),+) => {
        $($crate::values::by_text!($kind, <$kind>::ALLOWED);)+
    };
}
pub(crate) use as_text;

/// The same for one type, and what is allowed.
macro_rules! by_text {
    ($kind:ty, $allowed:expr) => {
        impl serde::Serialize for $kind {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $kind {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::values::text(deserializer, $allowed)
            }
        }
    };
}
pub(crate) use by_text;

/// Reads a value that is written as text.
pub(crate) fn text<'de, D, T>(deserializer: D, allowed: &'static str) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    struct Text<T>(&'static str, std::marker::PhantomData<T>);
    impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Text<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Text(allowed, std::marker::PhantomData))
}

/// A list whose only item may stand for it: `via = "10.1.0.9"` and `via = ["10.1.0.8", "10.1.0.9"]`.
pub(crate) mod one_or_list {
    use std::fmt;
    use std::marker::PhantomData;

    use serde::de::value::StrDeserializer;
    use serde::de::{self, Deserializer, SeqAccess, Visitor};
    use serde::{Deserialize, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer, T: Serialize>(
        list: &[T],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match list {
            [one] => one.serialize(serializer),
            list => list.serialize(serializer),
        }
    }

    pub(crate) fn deserialize<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: Deserialize<'de>,
    {
        struct OneOrList<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrList<T> {
            type Value = Vec<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text or a list of texts")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
                Ok(vec![T::deserialize(StrDeserializer::new(text))?])
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = seq.next_element()? {
                    list.push(item);
                }
                Ok(list)
            }
        }
        deserializer.deserialize_any(OneOrList(PhantomData))
    }
}

/// Reads a value that is written as text or as an integer.
pub(crate) fn text_or_integer<'de, D, T>(
    deserializer: D,
    allowed: &'static str,
    integer: impl FnOnce(i128) -> Option<T>,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = ValueError>,
{
    struct Both<F, T> {
        allowed: &'static str,
        integer: F,
        value: std::marker::PhantomData<T>,
    }
    impl<F, T> Both<F, T>
    where
        F: FnOnce(i128) -> Option<T>,
    {
        fn number<E: de::Error>(self, number: i128) -> Result<T, E> {
            let allowed = self.allowed;
            (self.integer)(number)
                .ok_or_else(|| E::custom(format_args!("{number} is out of range; allowed: {allowed}")))
        }
    }
    impl<F, T> Visitor<'_> for Both<F, T>
    where
        F: FnOnce(i128) -> Option<T>,
        T: FromStr<Err = ValueError>,
    {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.allowed)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
            self.number(i128::from(number))
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
            self.number(i128::from(number))
        }
        fn visit_i128<E: de::Error>(self, number: i128) -> Result<T, E> {
            self.number(number)
        }
    }
    deserializer.deserialize_any(Both { allowed, integer, value: std::marker::PhantomData })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_what_they_read() {
        for (text, bytes, printed) in [
            ("64 MiB", 64 << 20, "64 MiB"),
            ("64MiB", 64 << 20, "64 MiB"),
            ("1024 KiB", 1 << 20, "1 MiB"),
            ("1 B", 1, "1 B"),
            ("1537 B", 1537, "1537 B"),
            ("0 B", 0, "0 B"),
        ] {
            let size: ByteSize = text.parse().expect(text);
            assert_eq!((size.0, size.to_string().as_str()), (bytes, printed));
            assert_eq!(size.to_string().parse(), Ok(size));
        }
    }

    #[test]
    fn bad_sizes_are_refused() {
        for text in ["", "64", "64 MB", "-1 B", "1.5 MiB", "MiB", "99999999999 GiB", "64 MiB "] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn namespaces_print_what_they_read() {
        for (text, netns) in [
            ("web", Netns::Name("web".into())),
            ("/proc/7/ns/net", Netns::Path("/proc/7/ns/net".into())),
            ("pid:7", Netns::Pid(7)),
        ] {
            assert_eq!(text.parse(), Ok(netns.clone()));
            assert_eq!(netns.to_string(), text);
        }
        for text in ["", ".", "..", "a/b", "pid:", "pid:0", "pid:-1", "pid:+1", "a b", "/a\0"] {
            assert!(text.parse::<Netns>().is_err(), "{text}");
        }
    }

    #[test]
    fn vlan_ranges_print_what_they_read() {
        for text in ["1", "4094", "100-199"] {
            let range: VlanRange = text.parse().expect(text);
            assert_eq!(range.to_string(), text);
        }
        for text in ["0", "4095", "5-4", "1-4095", "a", "-", "1-2-3"] {
            assert!(text.parse::<VlanRange>().is_err(), "{text}");
        }
    }
}
