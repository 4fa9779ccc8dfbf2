//! The fuzzer's command line: `overlay-fuzz`, which `cargo xtask fuzz` starts.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;

use super::Fuzz;

/// Runs random packets through the datapath's programs and through the reference model, and
/// compares.
#[derive(Parser)]
struct Args {
    /// How long, in seconds; by default 60, and with a seed just its sequence.
    #[arg(long)]
    seconds: Option<u64>,
    /// The first seed; the following sequences count up from it.
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs until the time is over or something disagrees.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let seconds = args.seconds.unwrap_or(if args.seed.is_some() { 0 } else { 60 });
    let first = args.seed.unwrap_or_else(rand::random);
    println!("seed {first}");
    let mut fuzz = Fuzz::new();
    let start = Instant::now();
    let mut seed = first;
    let mut told = start;
    while start.elapsed() < Duration::from_secs(seconds) || seed == first {
        if let Err(failure) = fuzz.sequence(seed) {
            eprintln!("{failure}\nagain: cargo xtask fuzz --seed {seed}");
            return ExitCode::FAILURE;
        }
        seed = seed.wrapping_add(1);
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            println!("{}", fuzz.totals);
        }
    }
    for (reason, packets) in &fuzz.totals.reasons {
        println!("{packets:>10}  {}", reason.name());
    }
    let rate = fuzz.totals.packets as f64 / start.elapsed().as_secs_f64();
    println!("{}; {rate:.0} packets/s, no disagreement", fuzz.totals);
    ExitCode::SUCCESS
}
