//! Options that set keys of an object, the same for `add` and `set`.
//!
//! Both send what was given and nothing else: `add` as the object, whose other keys then have their
//! defaults, `set` as a JSON merge patch (RFC 7396), whose other keys stay. The word `default` takes a key
//! back to its default, which is what `null` means in a merge patch.

use std::fmt::Display;
use std::str::FromStr;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::UsageError;

/// What an option says: a value, or the word `default`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Setting<T> {
    /// Back to the default.
    Default,
    /// This.
    To(T),
}

impl<T> FromStr for Setting<T>
where
    T: FromStr,
    T::Err: Display,
{
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "default" => Ok(Self::Default),
            _ => text.parse().map(Self::To).map_err(|error: T::Err| error.to_string()),
        }
    }
}

/// Collects the keys that were given.
#[derive(Debug, Default)]
pub(crate) struct Patch(Map<String, Value>);

impl Patch {
    /// Sets `key` if it was given.
    pub(crate) fn one<T: Serialize>(&mut self, key: &str, setting: Option<&Setting<T>>) {
        let value = match setting {
            None => return,
            Some(Setting::Default) => Value::Null,
            Some(Setting::To(value)) => json(value),
        };
        self.0.insert(key.to_owned(), value);
    }

    /// Sets the list `key` if it was given; `default` anywhere in the list takes all of it back.
    pub(crate) fn list<T: Serialize>(&mut self, key: &str, settings: &[Setting<T>]) {
        if settings.is_empty() {
            return;
        }
        let values: Option<Vec<Value>> = settings
            .iter()
            .map(|setting| match setting {
                Setting::Default => None,
                Setting::To(value) => Some(json(value)),
            })
            .collect();
        self.0.insert(key.to_owned(), values.map_or(Value::Null, Value::Array));
    }

    /// Sets `key` to `value`.
    pub(crate) fn set<T: Serialize>(&mut self, key: &str, value: &T) {
        self.0.insert(key.to_owned(), json(value));
    }

    /// Forgets the keys that go back to their default: an object that is new has them anyway.
    pub(crate) fn drop_defaults(&mut self) {
        self.0.retain(|_, value| !value.is_null());
    }

    /// Checks that a change says what to change.
    ///
    /// # Errors
    /// Nothing was given.
    pub(crate) fn must_say_something(&self) -> Result<(), UsageError> {
        if self.0.is_empty() {
            Err(UsageError("nothing to change: name at least one option"))
        } else {
            Ok(())
        }
    }

    /// Returns the keys as an object.
    pub(crate) fn into_value(self) -> Value {
        Value::Object(self.0)
    }
}

/// Reads `key=value`.
///
/// # Errors
/// There is no `=`, or nothing before it.
pub(crate) fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("'{text}' is no label: KEY=VALUE is allowed, as in tier=web")),
    }
}

fn json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("settings are numbers, words and lists of them")
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_was_given_is_sent() {
        let mut patch = Patch::default();
        patch.one("mtu", Some(&Setting::To(1400_u16)));
        patch.one::<u16>("vlan", None);
        patch.one::<u16>("storm", Some(&Setting::Default));
        patch.list::<IpAddr>("addresses", &[]);
        patch.list("trunk", &[Setting::To(1), Setting::To(2)]);
        patch.list("native", &[Setting::To(1), Setting::Default]);
        assert_eq!(patch.into_value(), json!({"mtu": 1400, "storm": null, "trunk": [1, 2], "native": null}));
    }

    #[test]
    fn new_objects_need_no_defaults_and_changes_need_something() {
        let mut patch = Patch::default();
        assert!(patch.must_say_something().is_err());
        patch.one::<u16>("mtu", Some(&Setting::Default));
        assert!(patch.must_say_something().is_ok());
        patch.drop_defaults();
        assert_eq!(patch.into_value(), json!({}));
    }

    #[test]
    fn words_are_read_as_their_type_or_default() {
        assert_eq!("default".parse::<Setting<u16>>(), Ok(Setting::Default));
        assert_eq!("7".parse::<Setting<u16>>(), Ok(Setting::To(7)));
        assert!("x".parse::<Setting<u16>>().is_err());
    }

    #[test]
    fn labels_need_a_key_and_an_equals_sign() {
        assert_eq!(parse_label("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(parse_label("a").is_err());
        assert!(parse_label("=b").is_err());
    }
}
