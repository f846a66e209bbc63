//! What the host must have, and had better have, for the switch to work well.

pub mod mtu;
pub mod path;

use std::collections::BTreeMap;
use std::fs;

use anyhow::bail;
use config::api::Check;

/// Bits of /proc/PID/status CapEff (linux/capability.h).
const CAPABILITIES: [(u32, &str, &str); 3] = [
    (12, "CAP_NET_ADMIN", "to make and configure interfaces"),
    (13, "CAP_NET_RAW", "to open packet sockets"),
    (21, "CAP_SYS_ADMIN", "to enter network namespaces"),
];
/// Gifts of newer kernels, with the version that brought each.
const FEATURES: [(&str, (u32, u32)); 6] = [
    ("af_xdp_need_wakeup", (5, 4)),
    ("tap_uso", (6, 2)),
    ("tcx", (6, 6)),
    ("xdp_multi_buffer", (6, 6)),
    ("xdp_tx_checksum", (6, 8)),
    ("udp_tunnel_gso", (6, 17)),
];
/// The oldest kernel that the switch works on.
const FLOOR: (u32, u32) = (5, 15);

/// Checks that the process may do what it has to.
///
/// # Errors
/// Names the capabilities that are missing and what they are for.
pub fn check_privileges() -> anyhow::Result<()> {
    let missing = missing_capabilities();
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing.iter().map(|(name, purpose)| format!("{name} {purpose}")).collect();
    bail!("missing privileges: {}; run it as root or grant them", list.join(", "))
}

fn missing_capabilities() -> Vec<(&'static str, &'static str)> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let missing = CAPABILITIES.iter().filter(|(bit, _, _)| effective & (1 << bit) == 0);
    missing.map(|(_, name, purpose)| (*name, *purpose)).collect()
}

/// Returns the kernel's release.
pub fn kernel_release() -> String {
    read("/proc/sys/kernel/osrelease")
}

/// Returns which of the newer kernels' gifts there are, by version; a port finds out by trying.
pub fn kernel_features() -> BTreeMap<String, bool> {
    let version = kernel_version();
    FEATURES.iter().map(|(name, since)| ((*name).to_owned(), version >= *since)).collect()
}

fn kernel_version() -> (u32, u32) {
    let release = kernel_release();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok());
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// Returns the resident bytes of this process.
pub fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Looks at everything that does not need the manager.
pub fn checks() -> Vec<Check> {
    let mut checks = Vec::new();
    let release = kernel_release();
    checks.push(check(
        "kernel",
        kernel_version() >= FLOOR,
        format!("Linux {release}"),
        "Linux 5.15 or later is needed",
    ));
    for (name, there) in kernel_features() {
        let detail = if there { "this kernel has it" } else { "a newer kernel would have it; works without" };
        // Good to have; nothing depends on it.
        checks.push(check(&format!("kernel {name}"), true, detail.to_owned(), ""));
    }
    let missing = missing_capabilities();
    let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
    checks.push(check(
        "capabilities",
        missing.is_empty(),
        if names.is_empty() { "all there".to_owned() } else { format!("missing: {}", names.join(", ")) },
        "run vswitchd as root, or grant the missing capabilities",
    ));
    let tun = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    checks.push(check(
        "/dev/net/tun",
        tun.is_ok(),
        tun.map_or_else(|error| error.to_string(), |_| "can be opened".to_owned()),
        "load the module tun, or give the container the device: tap ports need it",
    ));
    let forward = read("/proc/sys/net/ipv4/ip_forward");
    checks.push(check(
        "ip_forward",
        true,
        format!(
            "the host {}; the switch does not need it to, and its own namespace does not",
            if forward == "1" { "forwards" } else { "does not forward" }
        ),
        "",
    ));
    let memlock = read("/proc/self/limits")
        .lines()
        .find(|line| line.starts_with("Max locked memory"))
        .map(|line| line.split_whitespace().nth(3).unwrap_or("?").to_owned())
        .unwrap_or_default();
    checks.push(check(
        "memlock",
        true,
        format!("{memlock} bytes may be locked; AF_XDP areas of root do not count against it"),
        "",
    ));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    checks.push(check(
        "cpus",
        cpus > 1,
        format!("{cpus} may be used"),
        "with one CPU, workers and containers take turns: [workers] poll = \"interrupt\" suits that best",
    ));
    checks
}

/// Makes a check; `fix` is told when it is not as it should be.
pub fn check(name: &str, ok: bool, detail: String, fix: &str) -> Check {
    Check { name: name.to_owned(), ok, detail, fix: (!ok).then(|| fix.to_owned()) }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_a_version_and_this_process_some_memory() {
        assert!(kernel_version() >= (3, 0), "{}", kernel_release());
        assert!(resident_bytes() > 1 << 20);
        assert!(checks().iter().any(|check| check.name == "kernel"));
    }
}
