//! Network namespaces: entering one for a moment, making a named one, removing it.
//!
//! A namespace belongs to a thread, so everything that must happen inside one runs on a thread of
//! its own that ends afterwards: no thread of a pool is ever left in a foreign namespace. A socket
//! opened inside stays there, whichever thread uses it later.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use super::LinkError;

/// The namespace of the thread that opens it.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace: as long as it is held the namespace lives on.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    name: String,
}

impl Namespace {
    /// Opens the namespace at `path`, e.g. `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// [`LinkError::NoNamespace`] when there is none.
    pub fn open(path: &Path) -> Result<Self, LinkError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => LinkError::NoNamespace(name.clone()),
            _ => kernel(format!("open the network namespace {name}"), e),
        })?;
        Ok(Self { file, name })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// [`LinkError::Kernel`] when /proc is not mounted.
    pub fn current() -> Result<Self, LinkError> {
        Self::open(Path::new(OWN))
    }

    /// Where it was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The open namespace, for netlink attributes that name one by descriptor.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` on a thread inside the namespace and waits for it.
    ///
    /// # Errors
    /// [`LinkError::NoNamespace`] when the file is no network namespace (one that was unmounted
    /// leaves an empty file), [`LinkError::Kernel`] when it cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LinkError> {
        let inside = || {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|e| match e {
                nix::Error::EINVAL => LinkError::NoNamespace(self.name.clone()),
                e => kernel(format!("enter the network namespace {}", self.name), e),
            })?;
            Ok(work())
        };
        on_own_thread(inside)?
    }
}

/// Runs `work` inside the namespace at `path`; see [`Namespace::run`].
///
/// # Errors
/// [`LinkError::NoNamespace`] when there is none, [`LinkError::Kernel`] when it cannot be entered.
pub fn in_netns<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, LinkError> {
    Namespace::open(path)?.run(work)
}

/// Makes a network namespace that lives as long as the file `path`, as `ip netns add` does.
/// Directories above it are made when missing.
///
/// # Errors
/// [`LinkError::Kernel`]; nothing is left behind. A file that exists is an error.
pub fn create(path: &Path) -> Result<(), LinkError> {
    let action = || format!("make the network namespace {}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| kernel(action(), e))?;
    }
    File::options().write(true).create_new(true).open(path).map_err(|e| kernel(action(), e))?;
    let made = on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    });
    let outcome = made.and_then(|mounted| mounted.map_err(|e| kernel(action(), e)));
    if outcome.is_err() {
        // The first error is the one to report; a file that stays is found by the next attempt.
        let _ = std::fs::remove_file(path);
    }
    outcome
}

/// Removes a namespace made by [`create`]. A missing one is no error. Processes and sockets inside
/// keep the namespace itself alive until they end.
///
/// # Errors
/// [`LinkError::Kernel`] when the mount or the file cannot be removed.
pub fn remove(path: &Path) -> Result<(), LinkError> {
    let action = || format!("remove the network namespace {}", path.display());
    match umount2(path, MntFlags::MNT_DETACH) {
        // EINVAL: the file is there and nothing is mounted on it, after a reboot for instance.
        Ok(()) | Err(nix::Error::EINVAL) => {}
        Err(nix::Error::ENOENT) => return Ok(()),
        Err(e) => return Err(kernel(action(), e)),
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(kernel(action(), e)),
        _ => Ok(()),
    }
}

/// The files in `dir`, sorted: namespaces that [`create`] made there. A missing directory has
/// none.
///
/// # Errors
/// [`LinkError::Kernel`] when the directory cannot be read.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>, LinkError> {
    let failed = |e| kernel(format!("list the network namespaces in {}", dir.display()), e);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let paths = entries.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>();
    let mut paths = paths.map_err(failed)?;
    paths.sort();
    Ok(paths)
}

/// Runs `work` on a thread that ends with it.
fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, LinkError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|e| kernel("start a thread for a network namespace".to_owned(), e))?;
        match thread.join() {
            Ok(outcome) => Ok(outcome),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Makes a [`LinkError::Kernel`] from the operation and the kernel's error.
pub(super) fn kernel(action: String, reason: impl std::fmt::Display) -> LinkError {
    LinkError::Kernel { action, reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::testing::{is_root, unique};

    fn inode(path: &str) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(path).expect("a namespace").ino()
    }

    #[test]
    fn a_named_namespace_is_made_entered_listed_and_removed() {
        if !is_root("making network namespaces") {
            return;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("netns").join(unique("ns"));
        create(&path).expect("made");
        let outside = inode(OWN);
        let inside = in_netns(&path, || inode(OWN)).expect("entered");
        assert_ne!(inside, outside, "the work runs in the namespace made");
        assert_eq!(inode(OWN), outside, "the caller stays where it was");
        assert_eq!(list(&dir.path().join("netns")).expect("listed"), vec![path.clone()]);
        assert!(create(&path).is_err(), "a second one under the same name is refused");
        assert_eq!(in_netns(&path, || inode(OWN)).expect("entered"), inside, "and harmless");
        remove(&path).expect("removed");
        assert!(!path.exists());
        remove(&path).expect("removing a missing one is no error");
    }

    #[test]
    fn what_is_no_namespace_is_refused_with_its_path() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let missing = dir.path().join("missing");
        assert!(matches!(in_netns(&missing, || ()), Err(LinkError::NoNamespace(p))
            if p == missing.display().to_string()));
        let empty = dir.path().join("empty");
        File::create(&empty).expect("a file");
        assert!(matches!(in_netns(&empty, || ()), Err(LinkError::NoNamespace(_))));
        assert!(list(&missing).expect("a missing directory has none").is_empty());
    }
}
