//! Who receives. The kernel goes on receiving on the CPU on which it began to, for as long as packets come:
//! by chance that is the generator's, which then waits for it, or the other one, which loses what it cannot
//! keep up with. A thread of the kernel's for each interface (threaded NAPI, Linux 5.12) can be told where to
//! run.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context as _, ensure};
use nix::unistd::Pid;

use super::{pin, rig::Spot};
use crate::{Place as _, process};

/// Such threads, until this is dropped, on the generator's CPU and in front of it: it goes on when everything
/// that it has sent is received.
#[derive(Debug)]
pub struct Threads<'a> {
    device: &'a str,
    places: Vec<&'a Spot>,
}

impl<'a> Threads<'a> {
    /// For the interfaces of one name at some places, which have NAPI: of a veth these are those with GRO on or
    /// an XDP program.
    ///
    /// # Errors
    /// If the kernel makes none.
    pub fn new(device: &'a str, places: Vec<&'a Spot>) -> anyhow::Result<Self> {
        let before = running(device)?;
        let threads = Self { device, places };
        for place in &threads.places {
            set(place, device, true)?;
        }
        let ours: Vec<i32> = running(device)?.difference(&before).copied().collect();
        ensure!(
            ours.len() >= threads.places.len(),
            "the kernel has {} threads that receive on {} interfaces named {device}",
            ours.len(),
            threads.places.len()
        );
        for thread in ours {
            pin::other_to_cpu(Pid::from_raw(thread), pin::CLIENT_CPU, pin::Side::Server)?;
        }
        Ok(threads)
    }
}

impl Drop for Threads<'_> {
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
