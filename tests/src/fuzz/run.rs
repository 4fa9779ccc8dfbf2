//! The fuzzer's command line: `overlay-fuzz`, which `cargo xtask fuzz` starts.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};

use super::{Failure, Fuzz, Totals, Underlay};

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
    /// The family of the nodes' addresses.
    #[arg(long, value_enum, default_value_t = Choice::Both)]
    underlay: Choice,
}

/// Which underlays to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// Either, at once.
    Both,
}

impl Choice {
    fn underlays(self) -> &'static [Underlay] {
        match self {
            Self::Ipv4 => &[Underlay::Ipv4],
            Self::Ipv6 => &[Underlay::Ipv6],
            Self::Both => &[Underlay::Ipv4, Underlay::Ipv6],
        }
    }
}

/// How long, from which seed on.
#[derive(Clone, Copy)]
struct Plan {
    start: Instant,
    duration: Duration,
    first: u64,
}

/// Runs until the time is over or a disagreement is found.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let seconds = args.seconds.unwrap_or(if args.seed.is_some() { 0 } else { 60 });
    let first = args.seed.unwrap_or_else(rand::random);
    println!("seed {first}");
    let plan = Plan { start: Instant::now(), duration: Duration::from_secs(seconds), first };
    let over = AtomicBool::new(false);
    // Each runs in a thread of its own, because each has its own network namespace.
    let results: thread::Result<Vec<Result<Totals, Box<Failure>>>> = thread::scope(|scope| {
        let run = |underlay: &Underlay| {
            let (underlay, over) = (*underlay, &over);
            scope.spawn(move || run_on(underlay, plan, over))
        };
        let threads: Vec<_> = args.underlay.underlays().iter().map(run).collect();
        threads.into_iter().map(thread::ScopedJoinHandle::join).collect::<Result<_, _>>()
    });
    // A thread that panicked has already printed the reason and its sequence.
    let Ok(results) = results else { return ExitCode::FAILURE };
    let mut totals = Totals::default();
    for result in results {
        match result {
            Ok(more) => totals.add(&more),
            Err(failure) => {
                let (seed, underlay) = (failure.seed, failure.underlay());
                eprintln!("{failure}\nagain: cargo xtask fuzz --seed {seed} --underlay {underlay}");
                return ExitCode::FAILURE;
            }
        }
    }
    for (reason, packets) in &totals.reasons {
        println!("{packets:>10}  {}", reason.name());
    }
    let rate = totals.packets as f64 / plan.start.elapsed().as_secs_f64();
    println!("{totals}; {rate:.0} packets/s, no disagreement");
    ExitCode::SUCCESS
}

/// The sequence that runs. It is printed if the model or the rig panics.
struct Current {
    seed: u64,
    underlay: Underlay,
}

impl Drop for Current {
    fn drop(&mut self) {
        if thread::panicking() {
            let Self { seed, underlay } = self;
            eprintln!("again: cargo xtask fuzz --seed {seed} --underlay {underlay}");
        }
    }
}

/// Runs sequences on one underlay until the time is over or another thread has found a
/// disagreement.
fn run_on(underlay: Underlay, plan: Plan, over: &AtomicBool) -> Result<Totals, Box<Failure>> {
    let mut fuzz = Fuzz::on(underlay);
    let mut seed = plan.first;
    let mut told = plan.start;
    while seed == plan.first
        || (plan.start.elapsed() < plan.duration && !over.load(Ordering::Relaxed))
    {
        let _current = Current { seed, underlay };
        fuzz.sequence(seed).inspect_err(|_| over.store(true, Ordering::Relaxed))?;
        seed = seed.wrapping_add(1);
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            println!("{underlay}: {}", fuzz.totals);
        }
    }
    Ok(fuzz.totals)
}
