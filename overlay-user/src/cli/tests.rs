//! The command line as a whole.

use clap::CommandFactory as _;

use super::*;

fn commands(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
    let path = format!("{path} {}", command.get_name()).trim().to_owned();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        commands(sub, &path, found);
    }
    found.push((path, command.clone()));
}

fn all_commands() -> Vec<(String, clap::Command)> {
    let mut command = Cli::command();
    command.build();
    let mut found = Vec::new();
    commands(&command, "", &mut found);
    found
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_help_of_every_command_has_an_example_that_parses() {
    for (path, command) in all_commands() {
        if path.contains(" help") {
            continue;
        }
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let (_, examples) = help
            .split_once("Example")
            .unwrap_or_else(|| panic!("{path} has no example in its help"));
        let examples = examples.lines().filter_map(|line| line.split_once("overlay "));
        for (_, example) in examples {
            // What a shell would leave of the line: enough of it for our own examples.
            let words = example.split([';', '|', '>']).next().unwrap_or("");
            let args = std::iter::once("overlay").chain(words.split_whitespace());
            if let Err(error) = Cli::try_parse_from(args) {
                panic!("{path}: the example {example:?} does not parse: {error}");
            }
        }
    }
}

#[test]
fn the_directories_can_be_set_before_and_after_the_command() {
    for args in [
        ["overlay", "--state-dir", "/s", "network", "ls"],
        ["overlay", "network", "--state-dir", "/s", "ls"],
        ["overlay", "network", "ls", "--state-dir", "/s"],
    ] {
        let cli = Cli::try_parse_from(args).expect("parsed");
        assert_eq!(cli.global.state_dir, PathBuf::from("/s"));
    }
}

#[test]
fn an_unknown_command_is_an_error_of_usage() {
    let args = ["overlay", "netwrok", "ls"].map(OsString::from);
    assert_eq!(run(args).expect("told by itself"), ExitCode::from(2));
}
