//! The CPU that receives. The kernel continues to receive on the CPU on which it began, as long as
//! packets arrive. By chance that is the generator's CPU, and the generator then waits; or it is
//! the other CPU, which loses packets that are too many for it. A kernel thread for each interface
//! (threaded NAPI, Linux 5.12) can be pinned to a CPU.
//!
//! Until Linux 6.5, once `ksoftirqd` has been woken, the kernel leaves all other receiving to it,
//! and the generator leaves it no time. On such kernels that thread also gets a higher priority
//! than the generator during a measurement.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context as _, ensure};
use nix::unistd::Pid;
use overlay::datapath::host::kernel_version;

use super::{pin, rig::Spot};
use crate::{Place as _, process};

/// The first kernel that continues to receive although its `ksoftirqd` has been woken.
const LEAVES_NOTHING: (u32, u32) = (6, 5);

/// The threads that receive on interfaces with a given name, without those that existed before.
#[derive(Debug)]
pub struct Threads<'a> {
    device: &'a str,
    before: BTreeSet<i32>,
}

/// Such threads at some places, until this value is dropped.
#[derive(Debug)]
pub struct Started<'a> {
    device: &'a str,
    places: Vec<&'a Spot>,
    softirqs: Option<Pid>,
}

impl<'a> Threads<'a> {
    /// Those that begin from now on.
    ///
    /// # Errors
    /// If the kernel does not show its threads.
    pub fn of(device: &'a str) -> anyhow::Result<Self> {
        Ok(Self { device, before: running(device)? })
    }

    /// Makes threads receive from interfaces, on the generator's CPU and with a higher priority:
    /// the generator continues when all its frames are received. The interfaces must have NAPI: a
    /// veth has it with GRO on or with an XDP program.
    ///
    /// # Errors
    /// If the kernel has no threads for them.
    pub fn start(&self, places: Vec<&'a Spot>) -> anyhow::Result<Started<'a>> {
        let mut started = Started { device: self.device, places, softirqs: None };
        for place in &started.places {
            set(place, self.device, true)?;
        }
        // Linux 6.12 keeps an idle thread, and uses it again.
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
        if kernel_version() < LEAVES_NOTHING {
            let thread = of_softirqs()?;
            pin::ahead(thread, pin::Side::Server)?;
            started.softirqs = Some(thread);
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
        if let Some(thread) = self.softirqs {
            // It ran before, so it does now.
            let _ = pin::as_others(thread);
        }
    }
}

/// The kernel's thread that receives on the generator's CPU.
fn of_softirqs() -> anyhow::Result<Pid> {
    let name = format!("ksoftirqd/{}", pin::CLIENT_CPU);
    let thread = threads(|comm| comm == name)?.first().copied();
    thread
        .map(Pid::from_raw)
        .with_context(|| format!("the kernel's thread {name} is not to be seen"))
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
    threads(|name| name.starts_with(&start))
}

/// Processes and threads of the kernel by their names.
fn threads(is_one: impl Fn(&str) -> bool) -> anyhow::Result<BTreeSet<i32>> {
    let entries = std::fs::read_dir("/proc").context("/proc")?;
    let is_one = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| is_one(name.trim_end()))
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(is_one).collect())
}
