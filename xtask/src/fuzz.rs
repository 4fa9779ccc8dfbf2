//! `cargo xtask fuzz`

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{cargo, machine, root, setup, status};

/// Run random packets through the eBPF programs and through their reference model, and compare.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask fuzz --seconds 60
  cargo xtask fuzz --seed 12345 --underlay ipv6

The first line says the seed, the last one how many packets were run and how fast. When the programs
and the model disagree, it shows the packet and the maps, writes the sequence to
target/fuzz/SEED-UNDERLAY.pcapng and says how to run that sequence again. Runs as root (with sudo when
you are not): it loads eBPF programs in network namespaces of its own.")]
pub struct Fuzz {
    /// How long [default: 60, and with --seed just its sequence].
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// The seed of the first sequence; another one each time by default.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// The family of the nodes' addresses: `ipv4`, `ipv6` or `both` (the default), at once.
    #[arg(long, value_name = "FAMILY", value_parser = ["ipv4", "ipv6", "both"])]
    underlay: Option<String>,
}

impl Fuzz {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode> {
        setup::ensure(setup::Scope::Run)?;
        root::require("the programs are loaded into the kernel")?;
        let products = cargo::build::<&str>(&["--package=overlay-tests", "--bin=overlay-fuzz"])?;
        let mut fuzz = machine::command(&cargo::binary(&products, "overlay-fuzz")?);
        if let Some(seconds) = self.seconds {
            fuzz.args(["--seconds", &seconds.to_string()]);
        }
        if let Some(seed) = self.seed {
            fuzz.args(["--seed", &seed.to_string()]);
        }
        if let Some(underlay) = &self.underlay {
            fuzz.args(["--underlay", underlay]);
        }
        fuzz.status().map(status).context("cannot run overlay-fuzz")
    }
}
