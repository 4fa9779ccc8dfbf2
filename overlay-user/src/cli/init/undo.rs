//! Removal of the objects that `init` and `join` made.

use std::path::{Path, PathBuf};

use super::daemon::Daemon;
use crate::{
    datapath::BpfDatapath,
    dns::Keeper,
    link::{Links, NetlinkLinks},
    paths::Paths,
};

/// The objects that were made so far.
pub(super) struct Undo {
    paths: Paths,
    /// Directories that were not there before, outermost first.
    new_dirs: Vec<PathBuf>,
    /// The daemon, once it was started: from then on there may be state in the kernel.
    pub daemon: Option<Daemon>,
}

impl Undo {
    /// Makes the state directory.
    ///
    /// # Errors
    /// Names the directory.
    pub(super) fn begin(paths: &Paths) -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let is_new = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
        let mut new_dirs: Vec<_> = [&paths.state_dir, &paths.run_dir, &paths.pin_dir]
            .into_iter()
            .flat_map(|dir| dir.ancestors().take_while(is_new))
            .map(Path::to_owned)
            .collect();
        new_dirs.sort();
        new_dirs.dedup();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&paths.state_dir).map_err(
            |e| {
                let error = format!("cannot make {}: {e}", paths.state_dir.display());
                crate::cli::error::refuse(error, "run as root, or give another --state-dir")
            },
        )?;
        Ok(Self { paths: paths.clone(), new_dirs, daemon: None })
    }

    /// Removes everything again: first the daemon, then its kernel objects, then files.
    pub(super) async fn undo(self) {
        let Self { paths, new_dirs, daemon } = self;
        if let Some(daemon) = daemon {
            daemon.stop().await;
            remove_from_kernel(&paths).await;
        }
        remove_state(&paths);
        for dir in new_dirs.iter().rev() {
            // One that another process uses meanwhile stays.
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// Removes pins, interfaces and keeper of a daemon that has ended. Continues after an error, and
/// reports it. Returns the removed objects.
pub(super) async fn remove_from_kernel(paths: &Paths) -> Vec<String> {
    let warn = |what: &str, error: &dyn std::fmt::Display| {
        eprintln!("overlay: warning: {what} left: {error}");
    };
    let mut removed = BpfDatapath::unload(&paths.pin_dir).unwrap_or_else(|error| {
        warn("pins are", &error);
        Vec::new()
    });
    match Keeper::new(paths.keeper()).end() {
        Ok(keeper) => {
            removed.extend(keeper.map(|pid| format!("keeper of DNS sockets (process {pid})")));
        }
        Err(error) => warn("a process is", &error),
    }
    let links = match NetlinkLinks::new() {
        Ok(links) => links,
        Err(error) => {
            warn("interfaces are", &error);
            return removed;
        }
    };
    let found = links.list("ov").await.unwrap_or_else(|error| {
        warn("interfaces are", &error);
        Vec::new()
    });
    for (name, _) in found.into_iter().filter(|(name, _)| is_ours(name)) {
        // The other end of one removed before is gone already, which is no error.
        match links.remove(&name).await {
            Ok(()) => removed.push(format!("interface {name}")),
            Err(error) => warn(&format!("interface {name} is"), &error),
        }
    }
    removed
}

/// Whether an interface has a name that the daemon gives: `ovl-` and its purpose, or `ov` and the
/// first twelve characters of an endpoint's id.
fn is_ours(name: &str) -> bool {
    let is_id = |id: &str| id.len() == 12 && id.bytes().all(|b| b.is_ascii_alphanumeric());
    name.starts_with("ovl-") || name.strip_prefix("ov").is_some_and(is_id)
}

/// Removes the files of a daemon that has ended. Returns the removed files.
pub(super) fn remove_state(paths: &Paths) -> Vec<String> {
    let files = [
        paths.config(),
        paths.store(),
        paths.cached_state(),
        paths.containers(),
        paths.log(),
        paths.socket(),
        paths.keeper(),
        paths.lock(),
    ];
    let mut removed = Vec::new();
    let mut note = |path: &Path, result: std::io::Result<()>| match result {
        Ok(()) => removed.push(path.display().to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => eprintln!("overlay: warning: {} is left: {e}", path.display()),
    };
    for file in &files {
        note(file, std::fs::remove_file(file));
    }
    note(&paths.pki_dir(), std::fs::remove_dir_all(paths.pki_dir()));
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_of_others_are_told_from_ours() {
        for name in ["ovl-host", "ovl-prog", "ovl-vxlan", "ov0123456789ab"] {
            assert!(is_ours(name), "{name}");
        }
        for name in ["ovs-system", "ovs0", "ov", "ov0123456789abc", "ov-123456789ab", "eth0"] {
            assert!(!is_ours(name), "{name}");
        }
    }
}
