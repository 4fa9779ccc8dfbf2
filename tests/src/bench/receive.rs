//! Who receives. The kernel goes on receiving on the CPU on which it began to, for as long as packets come:
//! by chance that is the generator's, which then waits for it, or the other one, which loses what it cannot
//! keep up with. A thread of the kernel's for each interface (threaded NAPI, Linux 5.12) can be told where to
//! run.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context as _, ensure};
use nix::unistd::Pid;

use super::{pin, rig::Spot};
use crate::{Place as _, process};

/// The threads that receive on interfaces of a name, but for those that were there before and are nobody's
/// business.
#[derive(Debug)]
pub struct Threads<'a> {
    device: &'a str,
    before: BTreeSet<i32>,
}

/// Such threads at some places, until this is dropped.
#[derive(Debug)]
pub struct Started<'a> {
    device: &'a str,
    places: Vec<&'a Spot>,
}

impl<'a> Threads<'a> {
    /// Those that begin from now on.
    ///
    /// # Errors
    /// If the kernel does not show its threads.
    pub fn of(device: &'a str) -> anyhow::Result<Self> {
        Ok(Self { device, before: running(device)? })
    }

    /// Has interfaces received from by threads, on the generator's CPU and in front of it: it goes on when
    /// everything that it has sent is received. They must have NAPI: of a veth these are those with GRO on or
    /// an XDP program.
    ///
    /// # Errors
    /// If the kernel has no threads for them.
    pub fn start(&self, places: Vec<&'a Spot>) -> anyhow::Result<Started<'a>> {
        let started = Started { device: self.device, places };
        for place in &started.places {
            set(place, self.device, true)?;
        }
        // Linux 6.12 keeps one that has nothing to do, and takes it again.
        let now = running(self.device)?;
        let ours: Vec<i32> = now.difference(&self.before).copied().collect();
        ensure!(
            ours.len() >= started.places.len(),
            "the kernel has {} threads that receive on {} interfaces named {}",
            ours.len(),
            started.places.len(),
            self.device
        );
        for thread in ours {
            pin::other_to_cpu(Pid::from_raw(thread), pin::CLIENT_CPU, pin::Side::Server)?;
        }
        Ok(started)
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        for place in &self.places {
            // The interface goes with its namespace.
            let _ = set(place, self.device, false);
        }
    }
}

fn set(place: &Spot, device: &str, threaded: bool) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    let line = format!("echo {} > /sys/class/net/{device}/threaded", u8::from(threaded));
    // This sees the /sys of the namespace.
    command.args(["netns", "exec", place.tag(), "sh", "-c", &line]);
    process::run(command)?.success().map(drop)
}

/// The kernel's threads that receive on interfaces of a name.
fn running(device: &str) -> anyhow::Result<BTreeSet<i32>> {
    let start = format!("napi/{device}-");
    let entries = std::fs::read_dir("/proc").context("/proc")?;
    let is_one = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.starts_with(&start))
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(is_one).collect())
}
