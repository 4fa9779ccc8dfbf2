//! The duration of one run of a program: BPF_PROG_TEST_RUN, on the daemon's own programs and maps.
//!
//! A program that changes its packet would see its own output when the kernel repeats it, so every
//! run is a separate call. The same is done with a program that does nothing: the difference is the
//! cost of the program.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{
    kernel::{self, ProgramType},
    pin,
    stats::middle_mean,
};

/// `enum bpf_prog_type`, for the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A TC program.
    Tc,
    /// An XDP program.
    Xdp,
}

/// Which program, and on what.
#[derive(Clone, Debug, Args)]
pub struct SingleArgs {
    /// What the program is attached to.
    kind: Kind,
    /// Where it is pinned.
    program: PathBuf,
    /// A file with the frame.
    frame: PathBuf,
    /// The interface that the frame seems to come in by.
    device: String,
    /// The verdict that the program must give.
    #[arg(long)]
    verdict: u32,
    /// How often.
    #[arg(long, default_value_t = 20_000)]
    runs: u32,
}

/// Means of the middle halves, in nanoseconds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Single {
    /// Duration of the program.
    pub program: f64,
    /// Duration of a program that does nothing.
    pub empty: f64,
}

/// Runs it and prints a [`Single`].
///
/// # Errors
/// If the program is not there or gives another verdict.
pub fn main(args: &SingleArgs) -> anyhow::Result<ExitCode> {
    pin::to_cpu(pin::CLIENT_CPU, pin::Side::Client)?;
    let frame = std::fs::read(&args.frame).context("the frame")?;
    let ifindex = nix::net::if_::if_nametoindex(args.device.as_str())
        .with_context(|| format!("interface {}", args.device))?;
    let program = kernel::pinned(&args.program)?;
    let kind = match args.kind {
        Kind::Tc => ProgramType::Tc,
        Kind::Xdp => ProgramType::Xdp,
    };
    let empty = kernel::empty(kind)?;
    let run = |program| match kind {
        ProgramType::Tc => kernel::run_tc(program, &frame, ifindex),
        ProgramType::Xdp => kernel::run_xdp(program, &frame),
    };
    let (mut took, mut nothing) = (Vec::new(), Vec::new());
    // The runs alternate, so that a disturbance affects both.
    for _ in 0..args.runs {
        let (verdict, nanoseconds) = run(&program)?;
        ensure!(
            verdict == args.verdict,
            "{} gave verdict {verdict} and not {}",
            args.program.display(),
            args.verdict
        );
        took.push(u64::from(nanoseconds));
        nothing.push(u64::from(run(&empty)?.1));
    }
    let single = Single { program: middle_mean(&mut took), empty: middle_mean(&mut nothing) };
    println!("{}", serde_json::to_string(&single)?);
    Ok(ExitCode::SUCCESS)
}
