//! `cargo xtask unload`

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{build, machine, root, setup, status};

/// Detach and unpin what `load` left on this host.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask unload
  cargo xtask unload --pin-dir /sys/fs/bpf/try

Runs as `overlay datapath unload`, with sudo when you are not root.")]
pub struct Unload {
    /// The folder in bpffs that `load` was given.
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
}

impl Unload {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode> {
        setup::ensure(setup::Scope::Run)?;
        root::require("detaching eBPF programs")?;
        let mut overlay = machine::command(&build::overlay()?);
        if let Some(dir) = &self.pin_dir {
            overlay.arg("--pin-dir").arg(dir);
        }
        overlay.args(["datapath", "unload"]).status().map(status).context("cannot run overlay")
    }
}
