//! `cargo xtask demo`

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{cargo, machine, root, setup, status};

/// Run the walk-through: a cluster of hosts in network namespaces, services on it, and checks.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask demo
  cargo xtask demo --keep --hosts 4

Ends with a line `N passed, N failed`. Runs as root (with sudo when you are not), because it makes
network namespaces and loads eBPF programs; what is compiled for it still belongs to you.")]
pub struct Demo {
    /// Leave the cluster up and print the commands to explore it.
    #[arg(long)]
    keep: bool,
    /// How many hosts the cluster has, from 3 to 80 [default: 3].
    #[arg(long, value_name = "N")]
    hosts: Option<u32>,
}

impl Demo {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode> {
        setup::ensure(setup::Scope::Run)?;
        root::require("making network namespaces and loading eBPF programs")?;
        let products = cargo::build::<&str>(&[])?;
        let mut demo = machine::command(&cargo::binary(&products, "overlay-demo")?);
        if self.keep {
            demo.arg("--keep");
        }
        if let Some(hosts) = self.hosts {
            demo.args(["--hosts", &hosts.to_string()]);
        }
        demo.status().map(status).context("cannot run overlay-demo")
    }
}
