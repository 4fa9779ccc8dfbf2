//! Where and how urgently the traffic programs run: alike for every subject.

use anyhow::Context as _;
use clap::ValueEnum;
use nix::{
    errno::Errno,
    libc,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It sends.
    Client = 1,
    /// It receives, and goes first where both are on one CPU: what arrives is taken at once.
    Server = 2,
}

/// Keeps this thread, and those it starts, on one CPU, ahead of everything that is no real-time
/// program (`SCHED_FIFO`): other work of the machine then disturbs by the caches only.
///
/// # Errors
/// If there is no such CPU, or without root.
pub fn to_cpu(cpu: usize, side: Side) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("run on CPU {cpu}"))?;
    let parameters = libc::sched_param { sched_priority: side as libc::c_int };
    // SAFETY: the parameters live through the call, which only reads them.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    Errno::result(result).context("run ahead of others").map(drop)
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
