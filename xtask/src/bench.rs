//! `cargo xtask bench`

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::Subcommand;

use crate::{cargo, machine, root, setup, status, vm_test};

/// Measure overlay beside what it stands on and what it replaces.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask bench overlay --rounds 9 --json results.json --svg results.svg
  cargo xtask bench services --json results.json")]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Overlay(Overlay),
    Services(Services),
}

/// Services: by their virtual addresses and published ports, beside the backends' own addresses and
/// beside nftables over the kernel's vxlan device, measured in turns.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask bench services --json results.json --svg results.svg
  cargo xtask bench services --rounds 1 --case vip_remote runs
  cargo xtask bench services --kernel 6.12 --json ipvs.json

Prints a table of medians with the smallest and the largest round. Everything measured is built with
--release. Installs nftables, nginx and wrk where they are missing, and starts no service of the host's.
With --kernel the same is measured beside IPVS, in a machine that boots one of Debian's kernels in QEMU;
emulated, only ratios mean something. Needs two CPUs and root (sudo when you are not), for network
namespaces and eBPF. What else the machine does is in the numbers: compare the ratios, and look at the
spread. A round in which wrk counts an error is no part of the medians: it is listed below the table and
in the file, and the command fails.")]
struct Services {
    /// Write the medians, spreads and ratios to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a plot of the medians to this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// How many rounds [default: 5].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Whether client and server share a CPU: `together` (the default) or `apart`.
    #[arg(long, value_name = "HOW")]
    placement: Option<String>,
    /// Only these measurements; an unknown name lists those there are.
    #[arg(long = "case", value_name = "NAME", num_args = 1..)]
    cases: Vec<String>,
    /// Measure beside IPVS, in a machine with this kernel.
    #[arg(long, value_name = "6.1|6.12|PATH")]
    kernel: Option<String>,
}

/// Two hosts in network namespaces: the bare underlay, the kernel's vxlan device with a bridge
/// (what Docker's overlay uses), and overlay, measured in turns.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask bench overlay --rounds 9 --json results.json --svg results.svg
  cargo xtask bench overlay --case tcp_1 udp_64

Prints a table of medians with the smallest and the largest round. Everything measured is built with
--release. Needs two CPUs and root (sudo when you are not), for network namespaces and eBPF. What
else the machine does is in the numbers: compare the ratios, and look at the spread.")]
struct Overlay {
    /// Write the medians, spreads and ratios to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a plot of the medians to this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// How many rounds, at least 5.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(5..))]
    rounds: Option<u32>,
    /// Whether sender and receiver share a CPU: `together` (the default) or `apart`.
    #[arg(long, value_name = "HOW")]
    placement: Option<String>,
    /// Only these measurements; an unknown name lists those there are.
    #[arg(long = "case", value_name = "NAME", num_args = 1..)]
    cases: Vec<String>,
}

impl Bench {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode> {
        if let What::Services(services) = &self.what
            && let Some(kernel) = &services.kernel
        {
            let files = (services.json.as_deref(), services.svg.as_deref());
            return vm_test::bench::run(kernel, &services.words(), files);
        }
        setup::ensure(match self.what {
            What::Overlay(_) => setup::Scope::Run,
            What::Services(_) => setup::Scope::Compare,
        })?;
        root::require("making network namespaces and loading eBPF programs")?;
        let build = ["--release", "-p", "overlay-user", "-p", "overlay-tests"];
        let products = cargo::build(&build)?;
        let mut bench = machine::command(&cargo::binary(&products, "overlay-bench")?);
        match &self.what {
            What::Overlay(overlay) => overlay.pass(&mut bench)?,
            What::Services(services) => services.pass(&mut bench)?,
        }
        bench.status().map(status).context("cannot run overlay-bench")
    }
}

impl Overlay {
    fn pass(&self, bench: &mut Command) -> Result<()> {
        bench.arg("overlay");
        pass_file(bench, "--json", self.json.as_deref())?;
        pass_file(bench, "--svg", self.svg.as_deref())?;
        pass_rounds(bench, self.rounds, self.placement.as_deref());
        pass_cases(bench, &self.cases);
        Ok(())
    }
}

impl Services {
    /// The arguments for a booted machine.
    fn words(&self) -> Vec<String> {
        let mut command = Command::new("overlay-bench");
        pass_rounds(&mut command, self.rounds, self.placement.as_deref());
        pass_cases(&mut command, &self.cases);
        command.get_args().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    fn pass(&self, bench: &mut Command) -> Result<()> {
        bench.arg("services");
        pass_file(bench, "--json", self.json.as_deref())?;
        pass_file(bench, "--svg", self.svg.as_deref())?;
        pass_rounds(bench, self.rounds, self.placement.as_deref());
        pass_cases(bench, &self.cases);
        Ok(())
    }
}

/// A file name relative to the caller's folder, also after sudo.
fn pass_file(bench: &mut Command, option: &str, file: Option<&Path>) -> Result<()> {
    let folder = env::current_dir().context("cannot tell the current folder")?;
    if let Some(file) = file {
        bench.arg(option).arg(folder.join(file));
    }
    Ok(())
}

fn pass_rounds(bench: &mut Command, rounds: Option<u32>, placement: Option<&str>) {
    if let Some(rounds) = rounds {
        bench.args(["--rounds", &rounds.to_string()]);
    }
    if let Some(placement) = placement {
        bench.args(["--placement", placement]);
    }
}

fn pass_cases(bench: &mut Command, cases: &[String]) {
    for case in cases {
        bench.args(["--case", case]);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        overlay: Overlay,
    }

    #[test]
    fn what_was_asked_reaches_the_program() {
        let words = ["x", "--json", "a.json", "--rounds", "6", "--case", "tcp_1", "udp_64"];
        let mut command = Command::new("overlay-bench");
        Cli::parse_from(words).overlay.pass(&mut command).unwrap();
        let passed: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        assert_eq!(passed[..2], ["overlay", "--json"]);
        assert!(passed[2].starts_with('/') && passed[2].ends_with("/a.json"), "{passed:?}");
        assert_eq!(passed[3..], ["--rounds", "6", "--case", "tcp_1", "--case", "udp_64"]);
    }

    #[test]
    fn too_few_rounds_are_refused() {
        assert!(Cli::try_parse_from(["x", "--rounds", "4"]).is_err());
    }
}
