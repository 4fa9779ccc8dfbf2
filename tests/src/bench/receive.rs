//! Who receives. The kernel goes on receiving on the CPU on which it began to, for as long as
//! packets come: by chance that is the generator's, which then waits for it, or the other one,
//! which loses what it cannot keep up with. A thread of the kernel's for each interface (threaded
//! NAPI, Linux 5.12) can be told where to run.
//!
//! Until Linux 6.5 a kernel whose `ksoftirqd` has been woken leaves everything else that is
//! received to that, for which the generator leaves no time. There that thread goes before the
//! generator too, meanwhile.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context as _, ensure};
use nix::unistd::Pid;
use overlay::datapath::host::kernel_version;

use super::{pin, rig::Spot};
use crate::{Place as _, process};

/// The first kernel that goes on with what is received although its `ksoftirqd` has been woken.
const LEAVES_NOTHING: (u32, u32) = (6, 5);

/// The threads that receive on interfaces of a name, but for those that were there before and are
/// nobody's business.
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

    /// Has interfaces received from by threads, on the generator's CPU and in front of it: it goes
    /// on when everything that it has sent is received. They must have NAPI: of a veth these are
    /// those with GRO on or an XDP program.
    ///
    /// # Errors
    /// If the kernel has no threads for them.
    pub fn start(&self, places: Vec<&'a Spot>) -> anyhow::Result<Started<'a>> {
        let mut started = Started { device: self.device, places, softirqs: None };
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

/// The kernel's thread for what is received on the generator's CPU.
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
