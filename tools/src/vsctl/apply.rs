//! `vsctl apply`, `diff`, `confirm`, `config`: what the switch is meant to do, as a whole.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use config::api::{ApplyReply, ApplyRequest, AssertView, route};

use crate::client::with_query;
use crate::output::plural;
use crate::{Context, output, units};

/// Makes the switch do what a file says: shows the difference, commits all of it or nothing.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  vsctl apply vswitch.toml --dry-run\n  vsctl apply vswitch.toml --confirm 30s --save"
)]
pub(crate) struct Apply {
    /// The file, or `-` for stdin
    file: PathBuf,
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
    /// Undo the change after this time unless `vsctl confirm` comes
    #[arg(long, value_name = "TIME", value_parser = parse_confirm, conflicts_with = "dry_run")]
    confirm: Option<u32>,
    /// Keep it for the next start: write it to the daemon's configuration file
    #[arg(long, conflicts_with = "dry_run")]
    save: bool,
}

/// Shows what applying a file would change.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl diff vswitch.toml")]
pub(crate) struct Diff {
    /// The file, or `-` for stdin
    file: PathBuf,
}

/// Keeps the last `apply --confirm`, which would be undone otherwise.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl confirm")]
pub(crate) struct Confirm {}

/// Shows the configuration that runs.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    Show(ConfigShow),
}

/// Prints the configuration that runs as a TOML file, or as JSON with --json.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl config show > running.toml")]
pub(crate) struct ConfigShow {}

impl Apply {
    /// Sends the file and tells what changed.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let request = ApplyRequest {
            dry_run: self.dry_run,
            save: self.save,
            confirm: self.confirm,
            ..read_file(&self.file)?
        };
        let answer = context.client.post(route::APPLY, &serde_json::to_value(&request)?).await?;
        context
            .show(&answer, |reply| if self.dry_run { difference(reply) } else { applied(reply, self.save) })
    }
}

impl Diff {
    /// Sends the file and tells what would change.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let request = ApplyRequest { dry_run: true, ..read_file(&self.file)? };
        let answer = context.client.post(route::APPLY, &serde_json::to_value(&request)?).await?;
        context.show(&answer, difference)
    }
}

impl Confirm {
    /// Confirms.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let answer = context.client.post(route::CONFIRM, &serde_json::Value::Null).await?;
        context.done(&answer, "confirmed: the change stays")
    }
}

impl Config {
    /// Prints the running configuration.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self::Show(_) = self;
        if context.json {
            return Ok(output::print_json(&context.client.get(route::CONFIG).await?)?);
        }
        let query = [("format", Some("toml".to_owned()))];
        Ok(output::print(&context.client.text(&with_query(route::CONFIG, &query)).await?)?)
    }
}

/// Reads the file here, not in the daemon: paths and permissions are those of who calls.
fn read_file(path: &Path) -> anyhow::Result<ApplyRequest> {
    if path == Path::new("-") {
        let mut toml = String::new();
        std::io::stdin().read_to_string(&mut toml).context("cannot read stdin")?;
        return Ok(ApplyRequest { toml, path: "stdin".to_owned(), ..ApplyRequest::default() });
    }
    let toml = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(ApplyRequest { toml, path: path.display().to_string(), ..ApplyRequest::default() })
}

fn parse_confirm(text: &str) -> Result<u32, String> {
    let time = units::parse_duration(text)?;
    match u32::try_from(time.as_secs()) {
        Ok(seconds @ 1..=86_400) => Ok(seconds),
        _ => Err(format!("'{text}' is out of range: 1s to 1d is allowed")),
    }
}

fn lines(reply: &ApplyReply) -> String {
    reply.changes.iter().map(|change| format!("{change}\n")).collect()
}

/// Returns a line for each assertion of the file.
fn asserts(reply: &ApplyReply) -> String {
    let line = |assert: &AssertView| {
        let AssertView { from, to, expect, found, reason } = assert;
        match found {
            Some(found) => format!("assert {from} -> {to}: {found}, as expected ({reason})\n"),
            None => format!("assert {from} -> {to}: {expect} is expected, NOT CHECKED: {reason}\n"),
        }
    };
    // Those that do not hold are refused.
    reply.asserts.iter().map(line).collect()
}

fn difference(reply: &ApplyReply) -> String {
    asserts(reply)
        + &match reply.changes.len() {
            0 => "Nothing would change.\n".to_owned(),
            count => format!("{}{} to make\n", lines(reply), plural(count, "change")),
        }
}

fn applied(reply: &ApplyReply, saved: bool) -> String {
    let mut text = asserts(reply);
    text += &match reply.changes.len() {
        0 => format!("Nothing to change, generation {}.\n", reply.generation),
        count => {
            format!("{}{} made, generation {}\n", lines(reply), plural(count, "change"), reply.generation)
        }
    };
    if saved && reply.confirm_deadline.is_some() {
        text.push_str("saved for the next start when it is confirmed\n");
    } else if saved {
        text.push_str("saved: the next start takes it too\n");
    }
    if let Some(seconds) = reply.confirm_deadline {
        text.push_str(&format!("undone in {seconds} s unless `vsctl confirm` comes\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reply(changes: serde_json::Value) -> ApplyReply {
        serde_json::from_value(json!({"changes": changes, "generation": 4, "confirm_deadline": 30}))
            .expect("a reply as the daemon sends it")
    }

    #[test]
    fn every_change_is_a_line() {
        let reply = reply(json!([
            {"action": "remove", "kind": "port", "name": "old"},
            {"action": "change", "kind": "network", "name": "front", "detail": "mtu: 1500 -> 9000"},
            {"action": "add", "kind": "port", "name": "web", "detail": "network: \"front\""},
        ]));
        let lines = "- port old\n~ network front: mtu: 1500 -> 9000\n+ port web: network: \"front\"\n";
        assert_eq!(difference(&reply), format!("{lines}3 changes to make\n"));
        assert_eq!(
            applied(&reply, true),
            format!(
                "{lines}3 changes made, generation 4\nsaved for the next start when it is confirmed\n\
                 undone in 30 s unless `vsctl confirm` comes\n"
            )
        );
    }

    #[test]
    fn assertions_are_told_first() {
        let mut reply = reply(json!([]));
        reply.asserts = serde_json::from_value(json!([
            {"from": "web", "to": "mgmt:22/tcp", "expect": "deny", "found": "deny", "reason": "no policy allows it"},
            {"from": "db", "to": "mgmt:22/tcp", "expect": "deny", "reason": "there is no port 'db' yet"},
        ]))
        .expect("assertions as the daemon sends them");
        assert_eq!(
            difference(&reply),
            "assert web -> mgmt:22/tcp: deny, as expected (no policy allows it)\n\
             assert db -> mgmt:22/tcp: deny is expected, NOT CHECKED: there is no port 'db' yet\n\
             Nothing would change.\n"
        );
    }

    #[test]
    fn no_change_is_said() {
        assert_eq!(difference(&reply(json!([]))), "Nothing would change.\n");
        assert!(applied(&reply(json!([])), false).starts_with("Nothing to change, generation 4."));
    }

    #[test]
    fn time_to_confirm_is_a_second_to_a_day() {
        assert_eq!(parse_confirm("30s"), Ok(30));
        assert_eq!(parse_confirm("2m"), Ok(120));
        for text in ["0", "500ms", "2d", "soon"] {
            assert!(parse_confirm(text).is_err(), "{text}");
        }
    }
}
