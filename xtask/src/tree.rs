//! The files of the workspace.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Every file of the workspace with one of these `extensions`, in order, as paths from its root.
/// Hidden folders and cargo's output are left out.
///
/// # Errors
/// A folder cannot be read.
pub fn files(extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let root = overlay_build::workspace_root();
    let mut found = Vec::new();
    walk(root, &mut |path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        if extension.is_some_and(|extension| extensions.contains(&extension)) {
            found.push(path.strip_prefix(root).unwrap_or(path).to_owned());
        }
    })?;
    found.sort();
    Ok(found)
}

/// Reads a file of the workspace.
///
/// # Errors
/// The file is missing, or is no text.
pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(overlay_build::workspace_root().join(path))
        .with_context(|| path.display().to_string())
}

fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry.with_context(|| dir.display().to_string())?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_symlink() || name.starts_with('.') || is_target(&path) {
            continue;
        }
        if path.is_dir() {
            walk(&path, visit)?;
        } else {
            visit(&path);
        }
    }
    Ok(())
}

/// Cargo marks its target folders, whatever they are called.
fn is_target(path: &Path) -> bool {
    path.join("CACHEDIR.TAG").is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_file_is_found_and_what_cargo_builds_is_not() {
        let files = files(&["rs"]).unwrap();
        assert!(files.contains(&PathBuf::from("xtask/src/tree.rs")));
        assert!(!files.iter().any(|path| path.starts_with("target")), "{files:?}");
    }
}
