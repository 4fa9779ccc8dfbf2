//! `overlay-bench services`: services of overlay beside their backends' own addresses and beside
//! nftables or IPVS over the kernel's vxlan device, in rounds like the other comparison.

mod cases;
mod floods;
mod plot;
mod report;
mod rig;
mod routed;
pub mod runs;
mod web;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;

use self::{
    cases::Measurement,
    report::{Failure, Report, Sample, Subject},
    rig::Rig,
    routed::Against,
};
use super::{machine, pin::Placement, require_cpus};
use crate::{binaries, cluster::require_root, on_interrupt};

/// Parameters of the comparison.
#[derive(Clone, Debug, clap::Args)]
pub struct ServicesArgs {
    /// Write the medians, spreads and ratios to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a plot of the medians to a file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// How many rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Whether client and server share a CPU.
    #[arg(long, value_enum, default_value_t = Placement::Together)]
    placement: Placement,
    /// What balances on the other side.
    #[arg(long, value_enum, default_value_t = Against::Nftables)]
    against: Against,
    /// Only these measurements.
    #[arg(long = "case", value_name = "NAME", num_args = 1.., value_parser = names())]
    cases: Vec<String>,
}

fn names() -> clap::builder::PossibleValuesParser {
    cases::ALL.map(|measurement| measurement.name).into()
}

/// Runs the comparison.
///
/// # Errors
/// Without root, a tool or two CPUs, and if the traffic does not get through.
pub fn compare(args: &ServicesArgs) -> anyhow::Result<ExitCode> {
    on_interrupt()?;
    require_root()?;
    binaries::overlay()?;
    for (program, package) in [
        ("ip", "iproute2"),
        ("bridge", "iproute2"),
        ("ethtool", "ethtool"),
        ("nsenter", "util-linux"),
        args.against.tool(),
    ] {
        binaries::system(program, package)?;
    }
    let wanted: Vec<&Measurement> = cases::ALL
        .iter()
        .filter(|m| args.cases.is_empty() || args.cases.iter().any(|name| name == m.name))
        .collect();
    let with_web = wanted.iter().any(|measurement| measurement.is_web());
    for (program, package) in web::PROGRAMS.into_iter().filter(|_| with_web) {
        binaries::system(program, package)?;
    }
    require_cpus()?;
    let rig = Rig::new(args.placement, args.against, with_web)?;
    let (mut samples, mut failed) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        eprintln!("round {} of {}", round + 1, args.rounds);
        for measurement in &wanted {
            for subject in order(round, args.against) {
                let values = match measurement.run(&rig, subject) {
                    // The other rounds count. The failure of this round is part of the result.
                    Err(error) if error.is::<web::Failed>() => {
                        let failure = Failure::new(round, measurement.name, subject, &error);
                        eprintln!("{failure}");
                        failed.push(failure);
                        continue;
                    }
                    ran => ran?,
                };
                samples.extend(values.into_iter().map(|(case, unit, value)| Sample {
                    case,
                    unit,
                    subject,
                    value,
                }));
            }
        }
    }
    drop(rig);
    let report = Report::new(machine(args.rounds, args.placement)?, &samples, failed);
    println!("{}", report.table());
    for failure in &report.failed {
        println!("{failure}");
    }
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, json).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, plot::svg(&report)).with_context(|| path.display().to_string())?;
    }
    Ok(if report.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Draws a picture of the results in a file.
///
/// # Errors
/// If they are no comparison of services.
pub fn draw(results: &Path, picture: &Path) -> anyhow::Result<ExitCode> {
    let json = std::fs::read_to_string(results).with_context(|| results.display().to_string())?;
    let report: Report =
        serde_json::from_str(&json).with_context(|| results.display().to_string())?;
    let svg = plot::svg(&report);
    std::fs::write(picture, svg).with_context(|| picture.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// Begins with another subject each time.
fn order(round: u32, against: Against) -> [Subject; 3] {
    let mut subjects = [Subject::Direct, against.subject(), Subject::Overlay];
    subjects.rotate_left(round as usize % 3);
    subjects
}
