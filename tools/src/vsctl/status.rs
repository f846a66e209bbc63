//! `vsctl status`, `doctor`, `cleanup`: the daemon, and the host it runs on.

use std::process::ExitCode;

use clap::Args;
use config::api::{Check, CleanupReply, CleanupRequest, Status as StatusView, route};

use crate::client::{ApiError, read};
use crate::output::{join, pairs, plural};
use crate::{Context, output, units};

/// Shows the daemon at a glance.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl status")]
pub(crate) struct Status {}

/// Checks the host: what the kernel can do, what is missing, what would hurt; exit code 1 if anything does.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  vsctl doctor\n  vsctl doctor mtu")]
pub(crate) struct Doctor {
    /// What to look at instead of everything: `mtu` sends packets to each peer of the overlay and says how large they
    /// may be
    #[arg(value_enum)]
    what: Option<Subject>,
}

/// What can be looked at by itself.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Subject {
    /// How large packets to each peer of the overlay may be
    Mtu,
}

/// Removes everything that the switch ever made; refused while ports are in use.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl cleanup --force")]
pub(crate) struct Cleanup {
    /// Even while ports are in use
    #[arg(long)]
    force: bool,
}

impl Status {
    /// Shows.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        context.show(&context.client.get(route::STATUS).await?, glance)
    }
}

impl Doctor {
    /// Shows the checks and returns 1 if one failed.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let route = match self.what {
            None => route::DOCTOR,
            Some(Subject::Mtu) => route::DOCTOR_MTU,
        };
        let answer = context.client.get(route).await?;
        let checks: Vec<Check> = read(&answer)?;
        if context.json {
            output::print_json(&answer)?;
        } else {
            output::print(&report(&checks))?;
        }
        Ok(if checks.iter().all(|check| check.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Cleanup {
    /// Cleans up and tells what went.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let request = serde_json::to_value(CleanupRequest { force: self.force })?;
        let answer = context.client.post(route::CLEANUP, &request).await.map_err(|error| match error {
            ApiError::Unreachable { .. } => {
                anyhow::anyhow!("{error}; cleaning up is the daemon's work: start it, then do this again")
            }
            error => error.into(),
        })?;
        context.show(&answer, |reply: &CleanupReply| {
            let lines: String = reply.removed.iter().map(|thing| format!("- {thing}\n")).collect();
            format!("{lines}{} removed\n", plural(reply.removed.len(), "thing"))
        })
    }
}

fn glance(status: &StatusView) -> String {
    let config = match &status.config_file {
        None => "no file, defaults".to_owned(),
        Some(path) if status.config_differs => {
            format!("{}; what runs DIFFERS from it, see `vsctl diff {0}`", path.display())
        }
        Some(path) => path.display().to_string(),
    };
    let confirm = status
        .confirm_seconds
        .map_or_else(String::new, |s| format!("; undone in {s} s unless `vsctl confirm` comes"));
    let (counts, memory) = (&status.counts, &status.memory);
    let with = |there: bool| -> Vec<&str> {
        let features = status.kernel.features.iter();
        features.filter(|(_, has)| **has == there).map(|(name, _)| name.as_str()).collect()
    };
    pairs(&[
        ("switch", format!("{}, vswitchd {}, pid {}", status.name, status.version, status.pid)),
        ("uptime", units::seconds(status.uptime_seconds)),
        ("config", config),
        ("generation", format!("{}{confirm}", status.generation)),
        ("workers", status.workers.to_string()),
        ("networks", counts.networks.to_string()),
        ("ports", format!("{}, {} up", counts.ports, counts.ports_up)),
        ("stations", counts.stations.to_string()),
        ("flows", units::count(counts.flows)),
        (
            "memory",
            format!(
                "{} resident; [limits] memory is {}{}",
                units::bytes(memory.rss_bytes),
                units::bytes(memory.limit_bytes),
                if memory.huge_pages { ", in huge pages" } else { "" }
            ),
        ),
        (
            "chunks",
            format!(
                "{} of {} small and {} of {} large ones free",
                memory.small_free, memory.small_chunks, memory.large_free, memory.large_chunks
            ),
        ),
        ("kernel", status.kernel.release.clone()),
        ("  has", join(&with(true))),
        ("  lacks", join(&with(false))),
    ])
}

fn report(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let mark = if check.ok { "ok  " } else { "FAIL" };
        let detail = if check.detail.is_empty() { String::new() } else { format!(": {}", check.detail) };
        text.push_str(&format!("{mark}  {}{detail}\n", check.name));
        if let (false, Some(fix)) = (check.ok, &check.fix) {
            text.push_str(&format!("      fix: {fix}\n"));
        }
    }
    let failed = checks.iter().filter(|check| !check.ok).count();
    text.push_str(&format!("{}, {failed} failed\n", plural(checks.len(), "check")));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn glance_tells_that_the_file_differs() {
        let status: StatusView = serde_json::from_value(json!({
            "version": "0.1.0", "name": "host-a", "pid": 42, "uptime_seconds": 61,
            "config_file": "/etc/vswitch/vswitch.toml", "config_differs": true, "generation": 7,
            "confirm_seconds": 12, "workers": 1, "counts": {"networks": 2, "ports": 3, "ports_up": 2},
            "memory": {"rss_bytes": 41_943_040, "limit_bytes": 37_748_736},
            "kernel": {"release": "6.18.0", "features": {"tap_uso": true, "udp_tunnel_gso": false}},
        }))
        .expect("a status as the daemon sends it");
        let text = glance(&status);
        for line in [
            "switch      host-a, vswitchd 0.1.0, pid 42",
            "uptime      1 min 1 s",
            "generation  7; undone in 12 s unless `vsctl confirm` comes",
            "ports       3, 2 up",
            "memory      40.0 MiB resident; [limits] memory is 36.0 MiB",
            "  has       tap_uso",
            "  lacks     udp_tunnel_gso",
        ] {
            assert!(text.lines().any(|have| have == line), "no '{line}' in\n{text}");
        }
        assert!(text.contains("DIFFERS from it, see `vsctl diff /etc/vswitch/vswitch.toml`"), "{text}");
    }

    #[test]
    fn report_shows_the_fix_of_what_failed() {
        let checks: Vec<Check> = serde_json::from_value(json!([
            {"name": "kernel", "ok": true, "detail": "6.18"},
            {"name": "memlock", "ok": false, "detail": "64 KiB", "fix": "raise LimitMEMLOCK"},
        ]))
        .expect("checks as the daemon sends them");
        assert_eq!(
            report(&checks),
            "ok    kernel: 6.18\nFAIL  memlock: 64 KiB\n      fix: raise LimitMEMLOCK\n2 checks, 1 failed\n"
        );
    }
}
