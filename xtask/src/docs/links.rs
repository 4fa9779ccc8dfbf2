//! Checks that the targets in the documents exist: the targets of relative links, their headings,
//! and the source files that they mention.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::tree;

/// Broken links, one line each.
///
/// # Errors
/// A document cannot be read.
pub fn broken() -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for path in tree::files(&["md"])? {
        let text = tree::read(&path)?;
        for (number, line) in prose(&text) {
            for target in targets(line) {
                if let Some(lack) = lack(&path, target)? {
                    broken
                        .push(format!("{}:{number}: the link to {target} {lack}", path.display()));
                }
            }
            for named in code(line).filter(|name| is_source(name)) {
                if !overlay_build::workspace_root().join(named).exists() {
                    broken.push(format!("{}:{number}: there is no {named}", path.display()));
                }
            }
        }
    }
    Ok(broken)
}

/// The numbered lines outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(at, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence && !line.starts_with("    ")).then_some((at + 1, line))
    })
}

/// The targets of links, images and their HTML forms that lead to a file or a heading here.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    let markdown = line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let html = ["src=\"", "srcset=\"", "href=\""].into_iter().flat_map(|attribute| {
        line.split(attribute).skip(1).filter_map(|rest| rest.split('"').next())
    });
    markdown.chain(html).filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
}

/// The fault of a link, if it has one.
fn lack(document: &Path, target: &str) -> Result<Option<&'static str>> {
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() {
        document.to_owned()
    } else {
        document.parent().unwrap_or(Path::new("")).join(file)
    };
    if !overlay_build::workspace_root().join(&path).exists() {
        return Ok(Some("leads to no file"));
    }
    let is_document = path.extension().is_some_and(|extension| extension == "md");
    let missing = is_document && !anchor.is_empty() && !has_anchor(&tree::read(&path)?, anchor);
    Ok(missing.then_some("leads to no heading"))
}

fn has_anchor(text: &str, anchor: &str) -> bool {
    let id = format!("id=\"{anchor}\"");
    prose(text)
        .any(|(_, line)| line.contains(&id) || heading(line).is_some_and(|h| slug(h) == anchor))
}

fn heading(line: &str) -> Option<&str> {
    let text = line.trim_start_matches('#');
    (text.len() < line.len()).then(|| text.strip_prefix(' '))?
}

/// The anchor that GitHub and GitLab make of a heading.
fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// The parts of a line between backticks.
fn code(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Whether a word names a source file by its path.
fn is_source(name: &str) -> bool {
    let path = PathBuf::from(name);
    path.extension().is_some_and(|extension| extension == "rs")
        && name.contains('/')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "/_-.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_all_forms_are_seen_and_those_elsewhere_are_left_alone() {
        let line = "[a](b.md#c) ![d](e.svg \"f\") <img src=\"g.svg\"> [h](https://example.com/i)";
        assert_eq!(targets(line).collect::<Vec<_>>(), ["b.md#c", "e.svg", "g.svg"]);
    }

    #[test]
    fn a_missing_file_and_a_missing_heading_are_told_apart() {
        let readme = Path::new("README.md");
        assert_eq!(lack(readme, "docs/architecture.md").unwrap(), None);
        assert_eq!(lack(readme, "docs/architecture.md#parts").unwrap(), None);
        assert_eq!(lack(readme, "docs/no.md").unwrap(), Some("leads to no file"));
        assert_eq!(lack(readme, "docs/architecture.md#no").unwrap(), Some("leads to no heading"));
        assert_eq!(lack(Path::new("docs/guide.md"), "../README.md").unwrap(), None);
    }

    #[test]
    fn headings_have_the_anchors_of_their_words() {
        assert!(has_anchor("## `conntrack`\n", "conntrack"));
        assert!(has_anchor("## What is built, and not\n", "what-is-built-and-not"));
        assert!(has_anchor("<a id=\"type-key\"></a>Key\n", "type-key"));
        assert!(!has_anchor("```\n# a comment\n```\n", "a-comment"));
    }

    #[test]
    fn only_paths_of_sources_are_taken_for_files() {
        let line = "`xtask/src/main.rs`, `main.rs`, `a/{b,c}.rs`, `a/b.md` and `x`";
        let named: Vec<_> = code(line).filter(|name| is_source(name)).collect();
        assert_eq!(named, ["xtask/src/main.rs"]);
    }
}
