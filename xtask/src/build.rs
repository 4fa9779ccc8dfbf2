//! `cargo xtask build`

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{cargo, machine, root, setup};

/// Build the `overlay` binary, with the eBPF programs inside.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask build --release

With --release the binary has no symbols. They are in overlay.debug beside it, where backtraces, gdb and
perf find them as long as both files lie in one folder. Needs no root, unless setup has to install
something first.")]
pub struct Build {
    /// Optimize; the binary is then target/release/overlay.
    #[arg(long)]
    release: bool,
}

/// The build of the binary alone, without the tests' programs. The workspace is named, so that
/// crates keep the features that they have in other builds.
const BINARY: [&str; 3] = ["--workspace", "--bin", "overlay"];

impl Build {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode> {
        setup::ensure(setup::Scope::Build)?;
        let profile: &[&str] = if self.release { &["--release"] } else { &[] };
        let binary = cargo::binary(&cargo::build(&[&BINARY, profile].concat())?, "overlay")?;
        println!("{}", binary.display());
        if self.release {
            println!("{}", split_symbols(&binary)?.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Builds the `overlay` binary of the dev profile.
pub fn overlay() -> Result<PathBuf> {
    cargo::binary(&cargo::build(&BINARY)?, "overlay")
}

/// Moves the symbols of a binary to a file beside it, and returns that. The binary names the file
/// in its section `.gnu_debuglink`. Cargo's own copy in `deps` keeps the symbols.
fn split_symbols(binary: &Path) -> Result<PathBuf> {
    let symbols = binary.with_extension("debug");
    let stripped = binary.with_extension("stripped");
    objcopy([OsStr::new("--only-keep-debug"), binary.as_os_str(), symbols.as_os_str()])?;
    let mut link = std::ffi::OsString::from("--add-gnu-debuglink=");
    link.push(&symbols);
    objcopy([OsStr::new("--strip-all"), &link, binary.as_os_str(), stripped.as_os_str()])?;
    fs::rename(&stripped, binary)
        .with_context(|| format!("cannot replace {}", binary.display()))?;
    Ok(symbols)
}

/// Runs objcopy of binutils, which gcc needs as well.
fn objcopy<const N: usize>(args: [&OsStr; N]) -> Result<()> {
    let mut objcopy = machine::command(Path::new("objcopy"));
    objcopy.args(args).stdin(Stdio::null());
    root::step_down(&mut objcopy);
    let status = run(&mut objcopy)?;
    if !status.success() {
        bail!("objcopy ended with {status}");
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<std::process::ExitStatus> {
    command.status().with_context(|| format!("cannot run {command:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_without_symbols_runs_and_names_the_file_that_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("main.c");
        let binary = dir.path().join("program");
        fs::write(&source, "int answer(void) { return 3; } int main(void) { return answer(); }\n")
            .unwrap();
        let mut cc = Command::new("cc");
        assert!(cc.args(["-g", "-o"]).args([&binary, &source]).status().unwrap().success());
        let before = fs::metadata(&binary).unwrap().len();

        let symbols = split_symbols(&binary).unwrap();

        let has = |path: &Path, text: &str| {
            fs::read(path).unwrap().windows(text.len()).any(|bytes| bytes == text.as_bytes())
        };
        assert_eq!(Command::new(&binary).status().unwrap().code(), Some(3));
        assert!(fs::metadata(&binary).unwrap().len() < before);
        assert!(has(&symbols, "answer") && !has(&binary, "answer"));
        assert!(has(&binary, "program.debug"));
    }
}
