//! Comment lines end at column 100, where rustfmt ends lines of code.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::tree;

/// The last column of a line.
const COLUMNS: usize = 100;

/// Beginnings of paths that are exempt so far. An entry without a long line is a fault: remove it.
const EXEMPT: [&str; 0] = [];

/// Comment lines that are too long.
#[derive(Debug, Default)]
pub struct Report {
    /// `FILE:LINE: ..`, of files that are held to the limit; and entries of the list of exemptions
    /// that nothing needs.
    pub faults: Vec<String>,
    /// The same, of files that are not held to it yet.
    pub exempt: Vec<String>,
}

/// Reads all sources.
///
/// # Errors
/// A file cannot be read.
pub fn report() -> Result<Report> {
    let mut files = Vec::new();
    for path in tree::files(&["rs", "sh", "toml"])? {
        let long = long_lines(&path, &tree::read(&path)?);
        files.push((path, long));
    }
    Ok(sorted(&files, &EXEMPT))
}

fn sorted(files: &[(PathBuf, Vec<(usize, usize)>)], exempt: &[&str]) -> Report {
    let mut report = Report::default();
    let mut needed = vec![false; exempt.len()];
    for (path, long) in files {
        let name = path.display().to_string();
        let exemption = exempt.iter().position(|beginning| name.starts_with(beginning));
        for (number, columns) in long {
            let line = format!("{name}:{number}: a comment of {columns} columns");
            match exemption {
                None => report.faults.push(line),
                Some(at) => {
                    needed[at] = true;
                    report.exempt.push(line);
                }
            }
        }
    }
    for (beginning, _) in exempt.iter().zip(needed).filter(|(_, needed)| !needed) {
        report
            .faults
            .push(format!("{beginning} has no long comment: take it off EXEMPT in {}", file!()));
    }
    report
}

/// Number and columns of each comment line that is too long.
fn long_lines(path: &Path, text: &str) -> Vec<(usize, usize)> {
    let mark = if path.extension().is_some_and(|extension| extension == "rs") { "//" } else { "#" };
    text.lines()
        .enumerate()
        .filter(|(_, line)| line.trim_start().starts_with(mark))
        .map(|(at, line)| (at + 1, line.chars().count()))
        .filter(|(_, columns)| *columns > COLUMNS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_comment_lines_are_found_and_long_lines_of_code_are_rustfmts() {
        let long = "x".repeat(98);
        let text = format!(
            "//! {long}\n    let x = \"{long}\";\n/// {}\n#[doc = \"{long}\"]\n",
            "ü".repeat(96)
        );
        assert_eq!(long_lines(Path::new("a.rs"), &text), [(1, 102)]);
        assert_eq!(long_lines(Path::new("a.toml"), &format!("# {long}y\n")), [(1, 101)]);
        assert_eq!(long_lines(Path::new("a.toml"), &format!("x = \"{long}\"\n")), []);
    }

    #[test]
    fn an_exemption_covers_what_lies_below_it_and_one_that_nothing_needs_is_a_fault() {
        let files = [("a/b.rs".into(), vec![(1, 101)]), ("c.rs".into(), vec![(2, 102)])];
        let report = sorted(&files, &["a/", "d/"]);
        assert_eq!(report.exempt, ["a/b.rs:1: a comment of 101 columns"]);
        assert_eq!(report.faults[0], "c.rs:2: a comment of 102 columns");
        assert!(report.faults[1].starts_with("d/ has no long comment"), "{report:?}");
        assert_eq!(report.faults.len(), 2);
    }
}
