//! The CPUs and priorities of the traffic programs: the same for every subject.

use std::{
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use nix::{
    errno::Errno,
    libc,
    sched::{CpuSet, sched_setaffinity},
    unistd::{Gid, Pid, Uid, setgid, setgroups, setuid},
};

/// CPU of the sending side.
pub const CLIENT_CPU: usize = 0;

/// Where the two sides run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Placement {
    /// Both on one CPU: no wake-up of another CPU is measured with the path.
    Together,
    /// Each on its own CPU.
    Apart,
}

impl Placement {
    /// CPU of the receiving side.
    pub fn server_cpu(self) -> usize {
        match self {
            Self::Together => CLIENT_CPU,
            Self::Apart => CLIENT_CPU + 1,
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Together => "together",
            Self::Apart => "apart",
        }
    }
}

/// Which side this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// It sends.
    Client = 1,
    /// It receives, and goes first where both are on one CPU: what arrives is taken at once.
    Server = 2,
}

/// Pins this thread, and the threads that it starts, to one CPU, with a priority above all programs
/// without real-time priority (`SCHED_FIFO`). Other work of the machine then disturbs it only
/// through the caches.
///
/// # Errors
/// If there is no such CPU, or without root.
pub fn to_cpu(cpu: usize, side: Side) -> anyhow::Result<()> {
    other_to_cpu(Pid::from_raw(0), cpu, side)
}

/// Like [`to_cpu`], for another thread.
///
/// # Errors
/// The errors of [`to_cpu`], or there is no such thread.
pub fn other_to_cpu(thread: Pid, cpu: usize, side: Side) -> anyhow::Result<()> {
    run_at(thread, cpu, side, libc::SCHED_FIFO)
}

/// Like [`other_to_cpu`], for a thread that stays on its CPU, as the kernel's threads per CPU do.
///
/// # Errors
/// If there is no such thread, or without root.
pub fn ahead(thread: Pid, side: Side) -> anyhow::Result<()> {
    set_policy(thread, side as libc::c_int, libc::SCHED_FIFO)
}

/// Has a thread take its turn with all others again.
///
/// # Errors
/// If there is no such thread, or without root.
pub fn as_others(thread: Pid) -> anyhow::Result<()> {
    set_policy(thread, 0, libc::SCHED_OTHER)
}

fn run_at(thread: Pid, cpu: usize, side: Side, policy: libc::c_int) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(thread, &set).with_context(|| format!("run on CPU {cpu}"))?;
    set_policy(thread, side as libc::c_int, policy)
}

fn set_policy(thread: Pid, priority: libc::c_int, policy: libc::c_int) -> anyhow::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameters live through the call, which only reads them.
    let result =
        unsafe { libc::sched_setscheduler(thread.as_raw(), policy, &raw const parameters) };
    Errno::result(result).context("run ahead of others").map(drop)
}

/// `nobody` and `nogroup` of Debian, and the kernel's overflow user and group.
pub const NOBODY: u32 = 65_534;

/// A program that knows nothing of this, and where it runs.
#[derive(Clone, Debug, Args)]
pub struct PinnedArgs {
    /// CPU to run on.
    #[arg(long)]
    cpu: usize,
    /// Which side it is.
    #[arg(long, value_enum)]
    side: Side,
    /// Without root's rights.
    #[arg(long)]
    nobody: bool,
    /// Where it starts.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Becomes another program, like [`to_cpu`] but with threads that take turns (`SCHED_RR`): a thread
/// that waits for a timer is not delayed by a thread that works.
///
/// # Errors
/// If there is no such CPU or program, or without root.
pub fn become_other(args: &PinnedArgs) -> anyhow::Result<ExitCode> {
    run_at(Pid::from_raw(0), args.cpu, args.side, libc::SCHED_RR)?;
    let (name, words) = args.command.split_first().context("no program")?;
    if let Some(folder) = &args.folder {
        std::env::set_current_dir(folder).with_context(|| folder.display().to_string())?;
    }
    if args.nobody {
        let nobody = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        setgroups(&[]).and_then(|()| setgid(nobody.1)).and_then(|()| setuid(nobody.0))?;
    }
    // It returns only if there is nothing to become.
    Err(Command::new(name).args(words).exec()).with_context(|| name.clone())
}

/// Seconds that all CPUs have worked since the machine started, of user programs that are not
/// niced, of the kernel and of interrupts (/proc/stat, proc(5)). It counts in hundredths.
///
/// # Errors
/// If the kernel's table is another.
pub fn busy_seconds() -> anyhow::Result<f64> {
    let table = std::fs::read_to_string("/proc/stat").context("/proc/stat")?;
    busy_ticks(&table).map(|ticks| ticks as f64 / 100.0).context("/proc/stat has no line `cpu`")
}

/// user nice system idle iowait irq softirq …
fn busy_ticks(table: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    [0, 2, 5, 6].into_iter().map(|index| ticks.get(index).copied()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_niced_time_is_no_work() {
        let table = "cpu  10 1000 20 5000 600 3 4 70 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_ticks(table), Some(37));
        assert_eq!(busy_ticks("cpu0 1 2 3"), None);
        assert_eq!(busy_ticks("cpu  1 2 3"), None);
    }
}
