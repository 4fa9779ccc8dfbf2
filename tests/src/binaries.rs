//! Where the programs under test are.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

/// The `overlay` binary: `OVERLAY_BIN`, or the binary of the same cargo build.
///
/// # Errors
/// Says which command builds it.
pub fn overlay() -> anyhow::Result<PathBuf> {
    built("overlay", "OVERLAY_BIN", "cargo build -p overlay-user")
}

/// The `overlay-testkit` binary: `OVERLAY_TESTKIT_BIN`, or the one of the same build.
///
/// # Errors
/// Says which command builds it.
pub fn testkit() -> anyhow::Result<PathBuf> {
    built("overlay-testkit", "OVERLAY_TESTKIT_BIN", "cargo build -p overlay-tests")
}

/// A test runs from `target/PROFILE/deps/`, a program from `target/PROFILE/`.
fn built(name: &str, variable: &str, command: &str) -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(path);
        }
        bail!("{variable} names {}, which is no file", path.display());
    }
    let executable = std::env::current_exe().context("the path of this program")?;
    for dir in executable.ancestors().skip(1).take(2) {
        let path = dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!(
        "there is no `{name}` beside {}; build it with `{command}` or name it in {variable}",
        executable.display()
    )
}

/// A program of the system, looked for in PATH.
///
/// # Errors
/// Says which Debian package has it.
pub fn system(name: &str, package: &str) -> anyhow::Result<PathBuf> {
    std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "{name} is not in PATH; `cargo xtask setup` installs it (Debian package {package})"
            )
        })
}
