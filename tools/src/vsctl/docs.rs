//! What is made out of the command tree itself: shell completions, man pages, docs/commands.md.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use crate::{Cli, output};

/// Heading of the options that every command has.
pub(crate) const GLOBAL: &str = "Options of every command";

/// Prints a completion script for a shell.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl completions bash > /etc/bash_completion.d/vsctl")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Prints the script.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "vsctl", &mut script);
        Ok(output::print(&String::from_utf8_lossy(&script))?)
    }
}

/// Writes the man pages, one a command.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl man /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// The directory they are written to; it is made when it is absent
    directory: PathBuf,
}

impl Man {
    /// Writes `vsctl.1`, `vsctl-port.1`, `vsctl-port-add.1` and so on.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let directory = &self.directory;
        std::fs::create_dir_all(directory)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
            .with_context(|| format!("cannot write man pages to {}", directory.display()))
    }
}

/// Returns docs/commands.md: every command with its help.
pub(crate) fn commands() -> String {
    let mut root = Cli::command().term_width(100);
    root.build();
    let mut text = String::from(
        "# Commands\n\n\
         `vsctl` is the command tool of vswitch. This page is what `vsctl docs` prints: the help of every command.\n\n\
         Exit codes: 0 done, 1 refused or failed (the reason is on stderr), 2 wrong usage. With `--json` every\n\
         command prints what the switch answered, and an error is an object on stderr.\n",
    );
    section(&mut text, &mut root, "");
    text
}

fn section(text: &mut String, command: &mut Command, parents: &str) {
    let name = format!("{parents}{}", command.get_name());
    let help = command.render_help().to_string();
    // What holds for every command is said once, with the first.
    let paragraphs = help.split("\n\n").filter(|text| parents.is_empty() || !text.starts_with(GLOBAL));
    let help = paragraphs.collect::<Vec<_>>().join("\n\n");
    let help: String = help.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    let _ = write!(text, "\n## {name}\n\n```text\n{}\n```\n", help.trim_end());
    for child in command.get_subcommands_mut() {
        if !child.is_hide_set() && child.get_name() != "help" {
            section(text, child, &format!("{name} "));
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// Every command that can be run, as its path of names.
    fn leaves(command: &Command, path: &str, all: &mut Vec<(String, Command)>) {
        let path = format!("{path} {}", command.get_name()).trim().to_owned();
        if command.has_subcommands() {
            command.get_subcommands().filter(|c| c.get_name() != "help").for_each(|c| leaves(c, &path, all));
        } else {
            all.push((path, command.clone()));
        }
    }

    fn all() -> Vec<(String, Command)> {
        let mut root = Cli::command();
        root.build();
        let mut all = Vec::new();
        leaves(&root, "", &mut all);
        all.retain(|(path, _)| path != "vsctl docs");
        all
    }

    #[test]
    fn command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_of_every_command_ends_with_an_example_that_parses() {
        for (path, command) in all() {
            let help = command.clone().render_help().to_string();
            let last = help.trim_end().lines().last().unwrap_or_default().trim().to_owned();
            assert!(last.starts_with(&path), "the help of `{path}` ends with '{last}'");
            let examples = help.lines().filter(|line| line.starts_with("  vsctl "));
            for example in examples {
                // What comes after a pipe or a redirection is the shell's.
                let words = example.split_whitespace().take_while(|word| !["|", ">"].contains(word));
                Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{example}: {error}"));
            }
        }
    }

    #[test]
    fn commands_are_those_of_the_design() {
        let names: Vec<String> = all().into_iter().map(|(path, _)| path.replacen("vsctl ", "", 1)).collect();
        assert_eq!(names.join(", "), include_str!("commands.txt").trim());
    }

    #[test]
    fn page_of_commands_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/commands.md");
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(
            page,
            commands(),
            "docs/commands.md is old: cargo run -p tools --bin vsctl -- docs > docs/commands.md"
        );
    }

    #[test]
    fn completions_and_man_pages_are_made() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "vsctl", &mut script);
            assert!(String::from_utf8_lossy(&script).contains("capture"), "{shell}");
        }
        let directory = std::env::temp_dir().join(format!("vsctl-man-{}", std::process::id()));
        Man { directory: directory.clone() }.run().expect("the temporary directory can be written");
        let page = std::fs::read_to_string(directory.join("vsctl-port-add.1"));
        std::fs::remove_dir_all(&directory).expect("made above");
        assert!(page.expect("a page a command").contains("far end"));
    }
}
