//! `cargo xtask build`

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;

use crate::{cargo, setup};

/// Build the `overlay` binary, with the eBPF programs inside.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask build --release

Needs no root, unless setup has to install something first.")]
pub struct Build {
    /// Optimize; the binary is then target/release/overlay.
    #[arg(long)]
    release: bool,
}

impl Build {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode> {
        setup::ensure(setup::Scope::Build)?;
        let args: &[&str] = if self.release { &["--release"] } else { &[] };
        let products = cargo::build(args)?;
        println!("{}", cargo::binary(&products, "overlay")?.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// Builds the `overlay` binary of the dev profile.
pub fn overlay() -> Result<PathBuf> {
    // The whole workspace is named, so that crates keep the features that they have in other
    // builds.
    cargo::binary(&cargo::build(&["--workspace", "--bin", "overlay"])?, "overlay")
}
