//! `overlay-bench`: overlay beside the bare underlay and the kernel's own vxlan device.
//!
//! All three are measured on one pair of hosts, in rounds. Every round runs every case on every
//! subject and begins with another subject, so that a disturbance of the machine affects all of
//! them.

mod cases;
mod drive;
mod flat;
mod flood;
mod floods;
mod frames;
mod kernel;
mod lossless;
mod paced;
mod pin;
mod plot;
mod receive;
mod report;
mod rig;
mod serve;
mod services;
mod single;
mod stats;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};

use self::{
    cases::Measurement,
    pin::Placement,
    report::{Machine, Report, Sample, Subject},
    rig::Rig,
};
use crate::{binaries, cluster::require_root, on_interrupt};

/// Measures overlay beside the bare underlay and the kernel's vxlan device.
#[derive(Debug, Parser)]
#[command(name = "overlay-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The comparison of the tunnel.
    Overlay(OverlayArgs),
    /// The comparison of services.
    Services(services::ServicesArgs),
    /// The receiving side.
    #[command(hide = true)]
    Serve {
        /// CPU to run on.
        #[arg(long)]
        cpu: usize,
    },
    /// The sending side.
    #[command(hide = true)]
    Drive(drive::DriveArgs),
    /// Another program, where the traffic programs run.
    #[command(hide = true)]
    Pinned(pin::PinnedArgs),
    /// Sends live frames.
    #[command(hide = true)]
    Flood(flood::FloodArgs),
    /// Counts what an interface receives.
    #[command(hide = true)]
    Count {
        /// The interface.
        device: String,
        /// Take what the other end of a veth sends back by XDP.
        #[arg(long)]
        by_xdp: bool,
    },
    /// Times the programs beside few and many endpoints.
    #[command(hide = true)]
    Flat,
    /// Times the programs on packets to services.
    #[command(hide = true)]
    ServiceRuns,
    /// Draws what a comparison of services has found.
    #[command(hide = true)]
    Draw {
        /// Its JSON.
        results: PathBuf,
        /// The picture to write.
        picture: PathBuf,
    },
    /// Times single runs of a program.
    #[command(hide = true)]
    Single(single::SingleArgs),
}

/// Parameters of the comparison.
#[derive(Clone, Debug, clap::Args)]
struct OverlayArgs {
    /// Write the medians, spreads and ratios to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a plot of the medians to a file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// How many rounds.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(5..=1000))]
    rounds: u32,
    /// Whether sender and receiver share a CPU.
    #[arg(long, value_enum, default_value_t = Placement::Together)]
    placement: Placement,
    /// Only these measurements.
    #[arg(long = "case", value_name = "NAME", num_args = 1.., value_parser = measurement_names())]
    cases: Vec<String>,
}

fn measurement_names() -> clap::builder::PossibleValuesParser {
    cases::ALL.map(|measurement| measurement.name).into()
}

/// The program.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Overlay(args) => compare(&args),
        Command::Services(args) => services::compare(&args),
        Command::Draw { results, picture } => services::draw(&results, &picture),
        Command::ServiceRuns => services::runs::main(),
        Command::Serve { cpu } => serve::main(cpu),
        Command::Drive(args) => drive::main(&args),
        Command::Pinned(args) => pin::become_other(&args),
        Command::Flood(args) => flood::send(&args),
        Command::Count { device, by_xdp } => flood::receive(&device, by_xdp),
        Command::Flat => flat::main(),
        Command::Single(args) => single::main(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("overlay-bench: {error:#}");
        ExitCode::FAILURE
    })
}

fn compare(args: &OverlayArgs) -> anyhow::Result<ExitCode> {
    on_interrupt()?;
    require_root()?;
    binaries::overlay()?;
    for (program, package) in [
        ("ip", "iproute2"),
        ("bridge", "iproute2"),
        ("ethtool", "ethtool"),
        ("nsenter", "util-linux"),
    ] {
        binaries::system(program, package)?;
    }
    require_cpus()?;
    let wanted: Vec<&Measurement> = cases::ALL
        .iter()
        .filter(|m| args.cases.is_empty() || args.cases.iter().any(|name| name == m.name))
        .collect();
    let rig = Rig::new(args.placement)?;
    let mut samples = Vec::new();
    for round in 0..args.rounds {
        eprintln!("round {} of {}", round + 1, args.rounds);
        samples.extend(one_round(&rig, &wanted, round)?);
    }
    drop(rig);
    let report = Report::new(machine(args.rounds, args.placement)?, &samples);
    println!("{}", report.table());
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, json).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, plot::svg(&report)).with_context(|| path.display().to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How many CPUs there are, which must be two.
fn require_cpus() -> anyhow::Result<usize> {
    let cpus = std::thread::available_parallelism().context("the number of CPUs")?.get();
    ensure!(cpus >= 2, "the sender and the receiver need a CPU each, and there is {cpus}");
    Ok(cpus)
}

/// The conditions of the measurement.
fn machine(rounds: u32, placement: Placement) -> anyhow::Result<Machine> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel")?;
    let (kernel, placement) = (kernel.trim().to_owned(), placement.name().to_owned());
    Ok(Machine { kernel, cpus: require_cpus()?, rounds, placement })
}

/// Runs every case on every subject, and begins with another subject each time.
fn one_round(rig: &Rig, wanted: &[&Measurement], round: u32) -> anyhow::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for measurement in wanted {
        for subject in order(round) {
            let values = measurement.run(rig, subject)?;
            samples.extend(values.into_iter().map(|(case, unit, value)| Sample {
                case,
                unit,
                subject,
                value,
            }));
        }
    }
    Ok(samples)
}

fn order(round: u32) -> [Subject; 3] {
    let mut subjects = Subject::ALL;
    subjects.rotate_left(round as usize % Subject::ALL.len());
    subjects
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let parsed = Cli::try_parse_from(["overlay-bench", "overlay", "--rounds", "4"]);
        assert!(parsed.is_err(), "fewer than five rounds have no median worth the name");
        let parsed = Cli::try_parse_from(["overlay-bench", "overlay", "--case", "tcp_1", "udp_64"]);
        assert!(parsed.is_ok());
    }

    #[test]
    fn every_subject_is_first_in_some_round() {
        let firsts: Vec<Subject> = (0..3).map(|round| order(round)[0]).collect();
        assert_eq!(firsts, Subject::ALL);
        assert_eq!(order(3), order(0));
    }
}
