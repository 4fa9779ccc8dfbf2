//! Starting the daemon in the background, and telling whether it came up.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    api::{ApiError, LocalRequest, Request, Status},
    cli::{Context, error::refuse},
    model::{ClusterState, NodeState},
};

/// How long the daemon may take until the node is ready: on a slow machine the kernel's verifier
/// takes a minute. One that ends is seen at once.
const READY_WITHIN: Duration = Duration::from_secs(180);

/// How long the daemon may take to end after SIGTERM.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// A daemon that was just started.
pub(super) struct Daemon {
    child: Child,
    log: PathBuf,
    /// Length of the log before.
    log_start: u64,
}

impl Daemon {
    /// Starts `overlay agent` in a session of its own, with its output in the log.
    pub(super) fn start(context: &Context) -> anyhow::Result<Self> {
        let Context { paths, log_level } = context;
        let log = paths.log();
        let output = OpenOptions::new().create(true).append(true).mode(0o600).open(&log);
        let output = output.with_context(|| format!("open {}", log.display()))?;
        let log_start = output.metadata()?.len();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--state-dir").arg(&paths.state_dir);
        command.arg("--run-dir").arg(&paths.run_dir);
        command.arg("--pin-dir").arg(&paths.pin_dir);
        if let Some(level) = log_level {
            command.arg("--log-level").arg(level);
        }
        command.arg("agent").current_dir("/");
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // SAFETY: setsid is one system call.
        unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into)) };
        let child = command.spawn().context("start `overlay agent`")?;
        Ok(Self { child, log, log_start })
    }

    /// Waits until its socket answers and the cluster has the node as ready.
    pub(super) async fn ready(&mut self, context: &Context) -> anyhow::Result<Status> {
        let give_up = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(self.died(&status.to_string()));
            }
            let why = match is_ready(context).await {
                Ok(Ok(status)) => return Ok(status),
                Ok(Err(why)) => why,
                Err(error) => error.message,
            };
            if Instant::now() > give_up {
                return Err(refuse(
                    format!(
                        "the daemon was not ready within {} s: {why}\nIts last lines were:\n{}",
                        READY_WITHIN.as_secs(),
                        self.log_tail()
                    ),
                    "run `overlay agent --log-level debug` in the foreground to see more",
                ));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The error of a daemon that ended: its own words, where it had some.
    fn died(&self, status: &str) -> anyhow::Error {
        let said = self.said();
        match reason(&said) {
            Some(reason) => anyhow::anyhow!("the daemon did not start: {reason}"),
            None => refuse(
                format!(
                    "the daemon did not start ({status}). Its last lines were:\n{}",
                    last_lines(&said)
                ),
                "run `overlay agent --log-level debug` in the foreground to see more",
            ),
        }
    }

    /// Its output in the log.
    fn said(&self) -> String {
        let read = || {
            let mut file = File::open(&self.log)?;
            file.seek(SeekFrom::Start(self.log_start))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_else(|error| format!("({}: {error})", self.log.display()))
    }

    fn log_tail(&self) -> String {
        last_lines(&self.said())
    }

    /// Ends it and waits for its end.
    pub(super) async fn stop(mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let give_up = Instant::now() + STOP_WITHIN;
        // A failure means that it has ended, which the wait tells.
        let _ = kill(pid, Signal::SIGTERM);
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > give_up {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Whether the node is ready; if not, the reason why it waits.
async fn is_ready(context: &Context) -> Result<Result<Status, String>, ApiError> {
    let client = context.client();
    let status: Status = client.local(LocalRequest::Status {}).await?;
    if let Some(error) = &status.last_error {
        return Ok(Err(error.clone()));
    }
    if !status.connected {
        return Ok(Err("it reaches no manager".to_owned()));
    }
    let state: ClusterState = client.call(Request::State {}).await?;
    match state.nodes.get(&status.node) {
        Some(node) if node.state == NodeState::Ready => Ok(Ok(status)),
        Some(_) => Ok(Err("the manager has not heard of it yet".to_owned())),
        None => Ok(Err("the manager does not know it".to_owned())),
    }
}

/// The daemon's own last error and hint, without the log around it.
fn reason(log: &str) -> Option<&str> {
    let start = log.rfind("\noverlay: ").map(|at| at + 1).or_else(|| {
        // The very first line.
        log.starts_with("overlay: ").then_some(0)
    })?;
    Some(log[start..].trim_start_matches("overlay: ").trim_end())
}

fn last_lines(log: &str) -> String {
    const LINES: usize = 15;
    let lines: Vec<_> = log.lines().collect();
    let from = lines.len().saturating_sub(LINES);
    lines[from..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_own_error_is_found_with_its_hint() {
        let log = "INFO start\noverlay: UDP port 4789 is taken\nchoose another\n";
        assert_eq!(reason(log), Some("UDP port 4789 is taken\nchoose another"));
        assert_eq!(reason("overlay: no\n"), Some("no"));
        assert_eq!(reason("INFO start\n"), None);
    }

    #[test]
    fn only_the_last_lines_of_a_long_log_are_shown() {
        let log: String = (0..40).map(|n| format!("line {n}\n")).collect();
        let shown = last_lines(&log);
        assert!(shown.starts_with("  line 25\n"), "{shown}");
        assert!(shown.ends_with("  line 39"), "{shown}");
    }
}
