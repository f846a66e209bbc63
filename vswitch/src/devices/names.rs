//! Interface names: which ones the kernel takes, and how our ends are called.

use super::Error;
use packet::hash::fnv1a;

/// Longest name of an interface: IFNAMSIZ (16) less the terminating zero.
pub const IFNAME_MAX: usize = 15;

/// Checks that the kernel takes `ifname` as the name of an interface.
///
/// # Errors
/// Says which rule the name breaks (`dev_valid_name` in the kernel; `%` makes a template of a name).
pub fn check_ifname(ifname: &str) -> Result<(), Error> {
    let reason = if ifname.is_empty() {
        "it is empty"
    } else if ifname.len() > IFNAME_MAX {
        "it is longer than 15 bytes"
    } else if ifname == "." || ifname == ".." {
        "it is a directory's name"
    } else if ifname == "all" || ifname == "default" {
        "/proc/sys/net has another meaning for it"
    } else if ifname.chars().any(|c| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control())
    {
        "'/', ':', '%' and white space are not allowed"
    } else {
        return Ok(());
    };
    Err(Error::BadIfname { ifname: ifname.to_owned(), reason })
}

/// Returns the name of our end of the device of `port`: the port's own name where an interface may have it,
/// else `p~` and 13 characters of its hash.
///
/// The same port has the same name in every run and version, which is how a restart finds its devices. Own
/// names hold letters, digits, `_`, `.` and `-` only, so they never equal a hashed one.
pub fn near_name(port: &str) -> String {
    // Names that `/proc/sys/net/*/conf` or the namespace itself uses.
    let reserved = matches!(port, "" | "." | ".." | "lo" | "all" | "default");
    let clean = port.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if clean && !reserved && port.len() <= IFNAME_MAX {
        return port.to_owned();
    }
    // Fixed for ever, unlike the standard library's hasher. 64 bits are 13 digits of base 32.
    let mut hash = fnv1a(port.bytes());
    let mut name = String::from("p~");
    for _ in 0..13 {
        name.push(char::from(b"abcdefghijklmnopqrstuvwxyz234567"[(hash & 31) as usize]));
        hash >>= 5;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_clean_names_are_kept_and_others_are_hashed() {
        for name in ["web", "a.b-c_d", "fifteen-letters"] {
            assert_eq!(near_name(name), name);
        }
        for name in
            ["", "lo", "all", "default", ".", "..", "sixteen--letters", "with space", "ünïcode", "a/b", "a~b"]
        {
            let near = near_name(name);
            assert!(near.starts_with("p~") && near.len() == IFNAME_MAX, "{name}: {near}");
            check_ifname(&near).expect("a valid name");
        }
    }

    #[test]
    fn hashed_names_are_stable_and_differ() {
        assert_eq!(near_name("lo"), near_name("lo"));
        assert_eq!(near_name("a-port-with-a-long-name"), "p~wtj4peztaqetd");
        let names: std::collections::HashSet<_> =
            (0..10_000).map(|n| near_name(&format!("a-rather-long-name-{n}"))).collect();
        assert_eq!(names.len(), 10_000);
    }

    #[test]
    fn names_that_the_kernel_refuses_are_refused() {
        for name in
            ["", ".", "..", "all", "default", "sixteen--letters", "a b", "a/b", "a:b", "eth%d", "a\nb"]
        {
            assert!(check_ifname(name).is_err(), "{name:?}");
        }
        for name in ["eth0", "p~abc", "veth.10", "é"] {
            assert!(check_ifname(name).is_ok(), "{name:?}");
        }
    }
}
