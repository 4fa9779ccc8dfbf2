//! `cargo xtask docs`

mod cli;
mod links;
mod maps;
mod reasons;
mod source;

use std::{fs, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{build, setup};

/// Write the pages that are made from the sources, and check the links of all pages.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask docs
  cargo xtask docs --check

Makes docs/maps.md from the maps' declarations and doc comments, docs/reasons.md from the reasons, and
docs/cli.md from the help of `overlay`. Then it checks that relative links in *.md lead to a file and a
heading, and that source files which are named there by their path exist. Needs no root.")]
pub struct Docs {
    /// Write nothing; fail when a page is not what the sources say.
    #[arg(long)]
    check: bool,
}

impl Docs {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode> {
        setup::ensure(setup::Scope::Build)?;
        let faults = if self.check { faults()? } else { write()? };
        for fault in &faults {
            println!("{fault}");
        }
        Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The faults of the pages, one line each.
///
/// # Errors
/// A page cannot be made or read.
pub fn faults() -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for (path, page) in PAGES {
        let wanted = marked(&page()?);
        let found =
            fs::read_to_string(overlay_build::workspace_root().join(path)).unwrap_or_default();
        if let Some(line) = first_difference(&found, &wanted) {
            faults.push(format!("{path}:{line}: not what the sources say; run cargo xtask docs"));
        }
    }
    faults.extend(links::broken()?);
    Ok(faults)
}

fn write() -> Result<Vec<String>> {
    for (path, page) in PAGES {
        let text = marked(&page()?);
        let file = overlay_build::workspace_root().join(path);
        if fs::read_to_string(&file).is_ok_and(|found| found == text) {
            continue;
        }
        println!("writing {path}");
        fs::write(&file, text).with_context(|| path.to_owned())?;
    }
    links::broken()
}

/// A page that is made from the sources: its path, and its content.
type Page = (&'static str, fn() -> Result<String>);

/// The pages. Those that need a build come last, so that faults of the others show at once.
const PAGES: [Page; 3] = [
    (reasons::PAGE, || Ok(reasons::page())),
    (maps::PAGE, maps::page),
    (cli::PAGE, || cli::page(&build::overlay()?)),
];

/// Adds the page's sources below the heading.
fn marked(text: &str) -> String {
    let (heading, rest) = text.split_once('\n').unwrap_or((text, ""));
    format!(
        "{heading}\n\n<!-- Written by `cargo xtask docs`: change the sources, not this file. -->\n{rest}"
    )
}

/// The number of the first line that differs.
fn first_difference(found: &str, wanted: &str) -> Option<usize> {
    if found == wanted {
        return None;
    }
    let same = found.lines().zip(wanted.lines()).take_while(|(found, wanted)| found == wanted);
    Some(same.count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_differs_is_told_with_its_first_line_that_does() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some(2));
        assert_eq!(first_difference("", "a\n"), Some(1));
        assert_eq!(first_difference("a\n", "a\nb\n"), Some(2));
    }
}
