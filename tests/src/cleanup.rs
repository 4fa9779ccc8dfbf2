//! Removes all traces of an instance, and finds those that are left.
//!
//! All objects are found by the instance's prefix, so that another process can remove them: the
//! guardian, or `overlay-demo --clean PREFIX`. Processes are found by the variable in their
//! environment that carries the prefix, never by name.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{binaries, bpffs, netns, process};

/// Names of one instance of the cluster-in-a-box.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The beginning of all its names.
    pub prefix: String,
    /// Its directory.
    pub dir: PathBuf,
}

/// The beginning of all prefixes.
const FAMILY: &str = "ovbox";

impl Instance {
    /// A new one with a random prefix.
    pub fn random() -> Self {
        use rand::RngExt as _;
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let mut rng = rand::rng();
        let suffix: String =
            (0..6).map(|_| char::from(ALPHABET[rng.random_range(0..32)])).collect();
        let prefix = format!("{FAMILY}{suffix}");
        let dir = std::env::temp_dir().join(&prefix);
        Self { prefix, dir }
    }

    /// An existing one.
    ///
    /// # Errors
    /// If that cannot be a prefix of ours.
    pub fn named(prefix: &str) -> anyhow::Result<Self> {
        let suffix = prefix.strip_prefix(FAMILY);
        let good =
            suffix.is_some_and(|s| s.len() == 6 && s.bytes().all(|b| b.is_ascii_alphanumeric()));
        ensure!(good, "{prefix:?} is no prefix of a cluster-in-a-box ({FAMILY} and 6 letters)");
        Ok(Self { prefix: prefix.to_owned(), dir: std::env::temp_dir().join(prefix) })
    }

    /// Name of a namespace, which is also the tag of the processes in it.
    pub fn namespace(&self, machine: &str) -> String {
        format!("{}-{machine}", self.prefix)
    }

    /// Directory of its pins.
    pub fn pin_dir(&self) -> PathBuf {
        Path::new(bpffs::ROOT).join(&self.prefix)
    }

    /// Its namespaces.
    pub fn namespaces(&self) -> Vec<PathBuf> {
        let start = format!("{}-", self.prefix);
        let entries = std::fs::read_dir(netns::DIR).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&start))
            .map(|entry| entry.path())
            .collect()
    }

    /// Its processes.
    pub fn processes(&self) -> Vec<Pid> {
        tagged(|tag| {
            tag.strip_prefix(&self.prefix).is_some_and(|m| m.is_empty() || m.starts_with('-'))
        })
    }

    /// Mounts below its directory, innermost last.
    pub fn mounts(&self) -> Vec<PathBuf> {
        mounts_below(&self.dir)
    }

    /// Everything of it that exists, in words.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> = self.processes().into_iter().map(describe).collect();
        let paths = |what: &str, paths: Vec<PathBuf>| -> Vec<String> {
            paths.iter().map(|path| format!("{what} {}", path.display())).collect()
        };
        found.extend(paths("namespace", self.namespaces()));
        found.extend(paths("mount", self.mounts()));
        found.extend(paths("pin", bpffs::pins(&self.pin_dir())));
        let dirs = [self.pin_dir(), self.dir.clone()];
        found.extend(paths("directory", dirs.into_iter().filter(|dir| dir.exists()).collect()));
        found
    }

    /// Removes it: nodes leave, processes are killed, then namespaces, pins and files go.
    ///
    /// # Errors
    /// The objects that are left nevertheless.
    pub fn clean(&self) -> anyhow::Result<()> {
        self.leave();
        self.kill();
        for mount in self.mounts().iter().rev() {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
        for namespace in self.namespaces() {
            let _ = umount2(&namespace, MntFlags::MNT_DETACH);
            let _ = std::fs::remove_file(&namespace);
        }
        remove_pins(&self.pin_dir());
        if self.dir.exists() {
            std::fs::remove_dir_all(&self.dir).context("removing the instance's directory")?;
        }
        let left = self.leftovers();
        ensure!(left.is_empty(), "left of {}: {}", self.prefix, left.join(", "));
        Ok(())
    }

    /// Runs `overlay leave --force` on every host with a listening daemon, on all at once.
    fn leave(&self) {
        let Ok(overlay) = binaries::overlay() else { return };
        std::thread::scope(|scope| {
            for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
                let paths = HostDirs::new(self, &entry.file_name().to_string_lossy());
                let Some(command) = paths.leave(&overlay) else { continue };
                scope.spawn(|| process::run_to_end(command, Duration::from_secs(10)));
            }
        });
    }

    fn kill(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        // A process in the middle of an exec has no environment for a moment: look twice.
        let mut quiet = 0;
        while quiet < 2 && Instant::now() < deadline {
            let processes = self.processes();
            quiet = if processes.is_empty() { quiet + 1 } else { 0 };
            for pid in processes {
                let _ = kill(pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The directories of one host's daemon.
#[derive(Clone, Debug)]
pub struct HostDirs {
    /// Name of the host's namespace.
    pub namespace: String,
    /// `--state-dir`.
    pub state: PathBuf,
    /// `--run-dir`.
    pub run: PathBuf,
    /// `--pin-dir`.
    pub pins: PathBuf,
}

impl HostDirs {
    /// Those of `host` in `instance`.
    pub fn new(instance: &Instance, host: &str) -> Self {
        let dir = instance.dir.join(host);
        Self {
            namespace: instance.namespace(host),
            state: dir.join("state"),
            run: dir.join("run"),
            pins: instance.pin_dir().join(host),
        }
    }

    /// Arguments for `overlay`.
    pub fn arguments(&self) -> Vec<String> {
        [("--state-dir", &self.state), ("--run-dir", &self.run), ("--pin-dir", &self.pins)]
            .iter()
            .flat_map(|(option, dir)| [(*option).to_owned(), dir.display().to_string()])
            .collect()
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("overlay.sock")
    }

    /// How to enter the host: arguments for `nsenter`.
    pub fn enter(&self) -> Vec<String> {
        vec![format!("--net={}", netns::path(&self.namespace).display())]
    }

    fn leave(&self, overlay: &Path) -> Option<Command> {
        std::os::unix::net::UnixStream::connect(self.socket()).ok()?;
        let mut command = netns::command(&self.namespace, &self.enter(), overlay);
        command.args(self.arguments()).args(["leave", "--force"]);
        Some(command)
    }
}

/// Processes with a tag of interest, without the caller and without zombies.
pub fn tagged(interesting: impl Fn(&str) -> bool) -> Vec<Pid> {
    let key = format!("{}=", netns::TAG);
    let own = Pid::this();
    let is_tagged = |pid: Pid| {
        // A zombie's environment is empty.
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| {
            std::str::from_utf8(variable)
                .is_ok_and(|v| v.strip_prefix(&key).is_some_and(&interesting))
        })
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .filter(|pid| *pid != own && is_tagged(*pid))
        .collect()
}

/// A process in words.
pub fn describe(pid: Pid) -> String {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command: String = String::from_utf8_lossy(&command)
        .chars()
        .map(|c| if c == '\0' { ' ' } else { c })
        .collect();
    format!("process {pid} ({})", command.trim_end())
}

/// Mounts below a directory, innermost last.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut mounts: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|path| path.starts_with(dir))
        .collect();
    mounts.sort();
    mounts
}

fn remove_pins(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            remove_pins(&path);
        } else {
            let _ = std::fs::remove_file(&path);
        }
    }
    let _ = std::fs::remove_dir(dir);
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};

    use super::*;

    #[test]
    fn only_prefixes_of_this_family_can_be_cleaned() {
        assert!(Instance::named(&Instance::random().prefix).is_ok());
        for prefix in ["", "ovbox", "ovbox../..", "ovboxabcdefg", "etc"] {
            assert!(Instance::named(prefix).is_err(), "{prefix:?}");
        }
    }

    #[test]
    fn a_process_is_found_by_its_tag_and_only_while_it_lives() {
        let instance = Instance::random();
        let mut child = Command::new("sleep")
            .arg("60")
            .env(netns::TAG, instance.namespace("h1"))
            .spawn()
            .expect("started");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        // The environment shows a moment after the exec.
        crate::eventually("it is found", Duration::from_secs(5), || {
            ensure!(instance.processes() == [pid], "{:?}", instance.processes());
            Ok(())
        })
        .expect("found");
        let other = Instance::random().processes();
        child.kill().expect("killed");
        // The signal needs a moment: wait until the process is a zombie, and do not reap it.
        let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(pid), ended).expect("a zombie");
        let zombie = instance.processes();
        child.wait().expect("ended");
        assert_eq!(other, []);
        assert_eq!(zombie, []);
    }
}
