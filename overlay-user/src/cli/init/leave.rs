//! `overlay leave`.

use std::time::{Duration, Instant};

use clap::Args;

use super::undo::{remove_from_kernel, remove_state};
use crate::{
    agent::{AgentConfig, ConfigError},
    api::{ErrorCode, Leave, Left, LocalRequest},
    cli::{Context, error::refuse, format::print, progress::wait_for},
};

/// Take this host out of its cluster and remove everything that overlay made on it
#[derive(Debug, Args)]
#[command(after_help = "Example:
  overlay leave")]
pub(in crate::cli) struct LeaveArgs {
    /// Also when containers are attached, this is the last manager, or the daemon does not run
    #[arg(short, long)]
    force: bool,
}

/// How long the daemon may take to end after it has left.
const END_WITHIN: Duration = Duration::from_secs(15);

/// Leaves, and prints the removed objects.
pub(in crate::cli) async fn run(context: &Context, args: &LeaveArgs) -> anyhow::Result<()> {
    let name = match AgentConfig::load(&context.paths.config()) {
        Ok(config) => Some(config.name),
        // Its remains can be removed whatever state they are in.
        Err(_) if args.force => None,
        Err(error @ ConfigError::Missing(_)) => return Err(error.into()),
        Err(error) => {
            return Err(refuse(error.to_string(), "`overlay leave --force` removes it as it is"));
        }
    };
    let client = context.client();
    let daemon = context.status().await.map(|status| status.pid).ok();
    let leave = client.local::<Left>(LocalRequest::Leave(Leave { force: args.force }));
    let removed = match wait_for("leaving the cluster", leave).await {
        Ok(Left { removed }) => {
            if let Some(daemon) = daemon {
                wait_for("waiting for the daemon to end", ended(daemon)).await?;
            }
            [removed, remove_state(&context.paths)].concat()
        }
        Err(error) if error.code == ErrorCode::Unavailable && args.force => {
            let removed = remove_from_kernel(&context.paths).await;
            let removed = [removed, remove_state(&context.paths)].concat();
            if name.is_some() {
                eprintln!(
                    "overlay: warning: the daemon does not run, so the cluster was not told: \
                     remove this node on a manager with `overlay node rm --force`"
                );
            }
            removed
        }
        Err(error) if error.code == ErrorCode::Unavailable => {
            return Err(refuse(
                error.message,
                "start it (`overlay agent`) so that the cluster learns of it, or use --force",
            ));
        }
        Err(error) => return Err(error.into()),
    };
    let _ = std::fs::remove_dir(&context.paths.run_dir);
    let lines: String = removed.iter().map(|what| format!("removed {what}\n")).collect();
    let who = name.map_or("This host".to_owned(), |name| format!("Node {name}"));
    print(&format!("{lines}{who} is in no cluster any more.\n"))
}

/// Waits until the daemon's process has ended: only then are all its resources free.
async fn ended(daemon: u32) -> anyhow::Result<()> {
    let give_up = Instant::now() + END_WITHIN;
    while runs(daemon) {
        if Instant::now() > give_up {
            return Err(refuse(
                format!(
                    "the daemon (process {daemon}) has left but runs on after {} s",
                    END_WITHIN.as_secs()
                ),
                "stop it, then `overlay leave --force` removes what is left",
            ));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Whether a process runs. One that only waits for its parent to notice its end does not: the
/// state follows the name in parentheses (proc_pid_stat(5)).
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_ended_does_not_run_even_if_nobody_has_noticed() {
        assert!(runs(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().expect("started");
        let pid = child.id();
        let give_up = Instant::now() + END_WITHIN;
        while runs(pid) {
            assert!(Instant::now() < give_up, "it ends by itself");
            std::thread::yield_now();
        }
        child.wait().expect("waited for");
        assert!(!runs(pid));
    }
}
