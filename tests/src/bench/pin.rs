//! Where and how urgently the traffic programs run: alike for every subject.

use anyhow::Context as _;
use nix::{
    errno::Errno,
    libc,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// CPU of the sending side.
pub const CLIENT_CPU: usize = 0;
/// CPU of the receiving side.
pub const SERVER_CPU: usize = 1;

/// Keeps this thread, and those it starts, on one CPU, ahead of what else runs there.
///
/// # Errors
/// If there is no such CPU, or without root.
pub fn to_cpu(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("run on CPU {cpu}"))?;
    // SAFETY: the call takes and returns plain numbers.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
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
