//! `overlay-demo`: the walk-through. Three hosts, one overlay, real processes, real sockets.

mod change;
mod explore;
mod form;
mod isolation;
mod reach;
mod removal;
mod report;
mod services;

use std::process::ExitCode;

use anyhow::ensure;
use clap::Parser;
use report::Report;
use services::Services;

use crate::{
    binaries,
    cleanup::Instance,
    cluster::{Cluster, Options, require_root},
    on_interrupt,
};

/// Builds a cluster of hosts in network namespaces, runs services on it and checks what a user
/// relies on, step by step.
#[derive(Debug, Parser)]
#[command(name = "overlay-demo", version)]
struct Args {
    /// Leave the cluster up at the end and say how to explore it.
    #[arg(long)]
    keep: bool,
    /// Number of hosts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=80))]
    hosts: u8,
    /// Remove what an earlier run with --keep left, and do nothing else.
    #[arg(long, value_name = "PREFIX", conflicts_with_all = ["keep", "hosts"])]
    clean: Option<String>,
}

/// The program.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let result = match &args.clean {
        Some(prefix) => clean(prefix).map(|()| true),
        None => on_interrupt().and_then(|()| walk(&args)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("overlay-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn clean(prefix: &str) -> anyhow::Result<()> {
    let instance = Instance::named(prefix)?;
    ensure!(!instance.leftovers().is_empty(), "there is nothing of {prefix} on this machine");
    instance.clean()?;
    println!("{prefix} is removed");
    Ok(())
}

/// True if every check passed.
fn walk(args: &Args) -> anyhow::Result<bool> {
    require_root()?;
    binaries::overlay()?;
    for (program, package) in [
        ("etcd", "etcd-server"),
        ("etcdctl", "etcd-client"),
        ("ip", "iproute2"),
        ("tc", "iproute2"),
        ("nsenter", "util-linux"),
    ] {
        binaries::system(program, package)?;
    }
    let mut report = Report::default();
    let outcome = steps(args, &mut report);
    report.table();
    if let Err(error) = &outcome {
        report.broken_off(error);
    }
    // The last line, whatever happened.
    Ok(report.summary())
}

/// After a failed step, later steps that depend on it are not tried: the error says so.
fn steps(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let cluster = Cluster::new(usize::from(args.hosts), Options::default())?;
    form::form(&cluster, report)?;
    let mut services = Services::start(&cluster, report)?;
    reach::from_client(&cluster, report)?;
    reach::from_hosts(&cluster, report)?;
    reach::from_container(&services, report)?;
    isolation::other_network(&cluster, &services, report)?;
    change::transfer(&cluster, report)?;
    change::scale(&cluster, &mut services, report)?;
    change::agents_killed(&cluster, &services, report)?;
    if args.keep {
        explore::keep(cluster, services)
    } else {
        removal::remove(cluster, services, report)
    }
}
