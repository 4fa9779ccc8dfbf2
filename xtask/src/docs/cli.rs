//! docs/cli.md: the output of `overlay --help` and of its commands' help.

use std::{
    fmt::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// The path of the page.
pub const PAGE: &str = "docs/cli.md";

/// The page, by the words of this binary.
///
/// # Errors
/// It cannot be run.
pub fn page(overlay: &Path) -> Result<String> {
    let mut page = "# Commands\n\nWhat `--help` says of each command of `overlay`.\n".to_owned();
    add(&mut page, overlay, &mut Vec::new())?;
    Ok(page)
}

/// Adds a command and, behind it, those below it.
fn add(page: &mut String, overlay: &Path, path: &mut Vec<String>) -> Result<()> {
    let help = help(overlay, path)?;
    let level = "#".repeat((path.len() + 2).min(4));
    let name = ["overlay"]
        .into_iter()
        .chain(path.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(" ");
    write!(page, "\n{level} {name}\n\n```text\n{}\n```\n", help.trim_end())?;
    for command in commands(&help) {
        path.push(command);
        add(page, overlay, path)?;
        path.pop();
    }
    Ok(())
}

fn help(overlay: &Path, path: &[String]) -> Result<String> {
    let output = Command::new(overlay)
        .args(path)
        .arg("--help")
        // The width of the lines must not depend on a terminal.
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", overlay.display()))?;
    ensure!(
        output.status.success(),
        "overlay {} --help ended with {}",
        path.join(" "),
        output.status
    );
    let text = String::from_utf8(output.stdout).context("the help is no UTF-8")?;
    Ok(text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"))
}

/// The commands that a help text lists: words indented by two in the part `Commands:`.
fn commands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    lines
        .take_while(|line| line.is_empty() || line.starts_with(' '))
        .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_the_first_words_of_their_part_and_help_is_none() {
        let help = "Text\n\nUsage: x\n\nCommands:\n  init  Make\n        a cluster\n  ls    List\n  help  Print\n\nOptions:\n  -h\n";
        assert_eq!(commands(help), ["init", "ls"]);
        assert!(commands("Usage: x\n\nOptions:\n  -h\n").is_empty());
    }
}
