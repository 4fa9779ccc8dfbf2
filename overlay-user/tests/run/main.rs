//! `overlay run` with real processes and namespaces. A small daemon of the test's own answers
//! where one is needed, so that no cluster is. Needs root.

mod attached;
mod daemon;
mod plain;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::{self, SigHandler, Signal};

/// A patience that only a failure uses up.
const PATIENCE: Duration = Duration::from_secs(20);

/// `overlay ARGS` with directories of the test's own.
struct Overlay {
    dir: tempfile::TempDir,
}

impl Overlay {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests make namespaces: run them as root");
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_overlay"));
        command.args(args);
        command.env("OVERLAY_STATE_DIR", self.dir.path().join("state"));
        command.env("OVERLAY_RUN_DIR", self.run_dir());
        command.env("OVERLAY_PIN_DIR", self.dir.path().join("pins"));
        command.stdin(Stdio::null());
        // A shell that runs the tests in the background ignores SIGINT and SIGQUIT, nohup SIGHUP,
        // and so would everything below: a shell cannot trap what was ignored when it began.
        let to_default = || {
            for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
                // SAFETY: the default disposition runs no code of ours.
                unsafe { signal::signal(signal, SigHandler::SigDfl) }?;
            }
            Ok(())
        };
        // SAFETY: sigaction is async-signal-safe.
        unsafe { command.pre_exec(to_default) };
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("overlay starts")
    }

    /// Starts it and waits for the first line that the command prints.
    fn start(&self, args: &[&str]) -> Started {
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("overlay starts");
        let mut first_line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut first_line).expect("a line");
        Started { child, first_line: first_line.trim_end().to_owned() }
    }
}

/// A running `overlay run`, killed with the test.
struct Started {
    child: Child,
    first_line: String,
}

impl Started {
    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, signal).expect("it runs");
    }

    fn wait(mut self) -> (Option<i32>, String) {
        let mut stderr = String::new();
        if let Some(mut pipe) = self.child.stderr.take() {
            std::io::Read::read_to_string(&mut pipe, &mut stderr).expect("text");
        }
        (self.child.wait().expect("it ends").code(), stderr)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

/// Whether a process runs; a zombie does not.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < give_up, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn own_netns() -> String {
    fs::read_link("/proc/self/ns/net").expect("a namespace").to_string_lossy().into_owned()
}
