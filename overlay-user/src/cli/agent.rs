//! `overlay agent`, and the process that keeps sockets open while it is restarted.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::Context;

/// Run this host's daemon in the foreground: what the service unit runs
#[derive(Debug, Args)]
#[command(after_help = "`overlay init` and `overlay join` start it in the background.
It stops on SIGTERM or SIGINT and leaves the datapath forwarding.

Example:
  overlay agent --log-level debug")]
pub(super) struct AgentArgs {}

/// Runs until the daemon is told to stop.
pub(super) fn run(context: &Context, _args: &AgentArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(crate::agent::daemon(context.paths.clone()))
}

/// Keep the containers' DNS sockets open while no daemon runs: what the daemon starts
#[derive(Debug, Args)]
pub(super) struct KeepSocketsArgs {
    /// Socket on which daemons ask for them
    socket: PathBuf,
}

/// Returns when a detached process does.
pub(super) fn keep_sockets(args: &KeepSocketsArgs) -> anyhow::Result<ExitCode> {
    crate::dns::keep_sockets(&std::path::absolute(&args.socket)?)
}
