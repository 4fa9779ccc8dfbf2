//! Runs programs: to their end with a time limit, or in the background.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::de::DeserializeOwned;

use crate::wait::{check_interrupted, patience};

/// A program that takes longer is killed and counts as failed.
const LIMIT: Duration = Duration::from_secs(90);

/// A program's output and its exit status.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Itself if the program succeeded.
    ///
    /// # Errors
    /// The command line, its status and its output.
    pub fn success(self) -> anyhow::Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!("{}", self.describe())
    }

    /// The output itself if the program failed with an ordinary exit status.
    ///
    /// # Errors
    /// The output, if the program did not fail.
    pub fn failure(self) -> anyhow::Result<Self> {
        match self.status.code() {
            Some(code) if code != 0 => Ok(self),
            _ => bail!("expected a failure: {}", self.describe()),
        }
    }

    /// Standard output as JSON.
    ///
    /// # Errors
    /// If the program failed, or printed something else.
    pub fn json<T: DeserializeOwned>(self) -> anyhow::Result<T> {
        let output = self.success()?;
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("not the JSON expected: {}", output.describe()))
    }

    /// Everything about it, for error messages.
    pub fn describe(&self) -> String {
        let mut text = format!("`{}` ended with {}", self.command, self.status);
        for (name, content) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !content.trim().is_empty() {
                text.push_str(&format!("\n{name}: {}", content.trim_end()));
            }
        }
        text
    }
}

/// The command line as one would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    words.join(" ")
}

/// Runs a program to its end. A program that does not end, or a SIGINT to us, kills it.
///
/// # Errors
/// If it cannot be started or does not end.
pub fn run(command: Command) -> anyhow::Result<Output> {
    run_within(command, LIMIT)
}

/// Like [`run`], with a time limit.
///
/// # Errors
/// If it cannot be started or does not end in time.
pub fn run_within(command: Command, limit: Duration) -> anyhow::Result<Output> {
    run_limited(command, limit, true)
}

/// Like [`run_within`], for tearing down: a SIGINT does not cut it short.
///
/// # Errors
/// If it cannot be started or does not end in time.
pub fn run_to_end(command: Command, limit: Duration) -> anyhow::Result<Output> {
    run_limited(command, limit, false)
}

fn run_limited(
    mut command: Command,
    limit: Duration,
    interruptible: bool,
) -> anyhow::Result<Output> {
    let shown = shown(&command);
    // Files and not pipes: a daemon that keeps the output open cannot make us wait for it.
    let mut stdout = tempfile::tempfile().context("a temporary file")?;
    let mut stderr = tempfile::tempfile().context("a temporary file")?;
    command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    command.process_group(0);
    let mut child = command.spawn().with_context(|| format!("`{shown}` cannot be started"))?;
    let waited = wait(&mut child, limit, interruptible);
    if !matches!(waited, Ok(Some(_))) {
        let _ = child.kill();
        let _ = child.wait();
    }
    let (stdout, stderr) = (contents(&mut stdout)?, contents(&mut stderr)?);
    match waited? {
        Some(status) => Ok(Output { command: shown, status, stdout, stderr }),
        None => bail!(
            "`{shown}` did not end within {} s\nstdout: {stdout}\nstderr: {stderr}",
            (limit * patience()).as_secs()
        ),
    }
}

fn contents(file: &mut File) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn wait(
    child: &mut Child,
    limit: Duration,
    interruptible: bool,
) -> anyhow::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit * patience();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if interruptible {
            check_interrupted()?;
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// A program in the background with its output in a file; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    command: String,
    log: PathBuf,
    ended: Option<ExitStatus>,
    keep: bool,
}

impl Process {
    /// Starts it; both outputs go to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let shown = shown(&command);
        let file = File::create(log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("`{shown}` cannot be started"))?;
        Ok(Self { child, command: shown, log: log.to_owned(), ended: None, keep: false })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The program's output so far.
    pub fn output(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Checks that the program still runs.
    ///
    /// # Errors
    /// The program has ended: its status and its output.
    pub fn check_running(&mut self) -> anyhow::Result<()> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        match self.ended {
            None => Ok(()),
            Some(status) => bail!(
                "`{}` ended early with {status}\nit printed: {}",
                self.command,
                self.output().trim_end()
            ),
        }
    }

    /// Sends a signal; a process that has ended is no error.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none()
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<Output> {
        if self.ended.is_none() {
            self.ended = wait(&mut self.child, limit, true)?;
        }
        match self.ended {
            Some(status) => Ok(Output {
                command: self.command.clone(),
                status,
                stdout: self.output(),
                stderr: String::new(),
            }),
            None => bail!(
                "`{}` did not end within {} s\nit printed: {}",
                self.command,
                (limit * patience()).as_secs(),
                self.output().trim_end()
            ),
        }
    }

    /// SIGTERM, then waits for its end.
    ///
    /// # Errors
    /// If it does not end within 30 seconds.
    pub fn stop(&mut self) -> anyhow::Result<Output> {
        self.signal(Signal::SIGTERM);
        self.wait(Duration::from_secs(30))
    }

    /// SIGKILL, then waits for its end.
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            self.ended = self
                .child
                .wait()
                .ok()
                .or_else(|| Some(ExitStatus::from_raw(Signal::SIGKILL as i32)));
        }
    }

    /// Lets it live on when dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.keep {
            self.kill();
        }
    }
}
