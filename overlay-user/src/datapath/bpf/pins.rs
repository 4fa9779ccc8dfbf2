//! Where things are pinned: `PIN_DIR/v2/{maps,links,progs}/NAME`.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{maps::MapInfo, programs::ProgramInfo};
use overlay_common::LAYOUT_VERSION;

use super::{clsact, kernel, sys};
use crate::datapath::DatapathError;

/// How a program is held at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LinkKind {
    /// A tcx link on an interface.
    Tcx,
    /// A filter of an interface's clsact qdisc, which has no link: the pin holds the program and
    /// says where the filter is.
    Clsact,
    /// An XDP link on an interface.
    Xdp,
    /// A cgroup link of a socket program.
    Socket,
}

impl LinkKind {
    const ALL: [Self; 4] = [Self::Tcx, Self::Clsact, Self::Xdp, Self::Socket];

    pub(super) const fn prefix(self) -> &'static str {
        match self {
            Self::Tcx => "tc-",
            Self::Clsact => "clsact-",
            Self::Xdp => "xdp-",
            Self::Socket => "sock-",
        }
    }
}

/// The pins of this version in a pin directory.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    pub(super) fn new(pin_dir: &Path) -> Self {
        Self::of(pin_dir, LAYOUT_VERSION)
    }

    /// The pins of a version of the layout.
    pub(super) fn of(pin_dir: &Path, version: u32) -> Self {
        Self { root: pin_dir.join(format!("v{version}")) }
    }

    /// Makes the directories. Refuses when the datapath of a version is loaded that is neither this
    /// one nor `from`, which is to be migrated from: both would handle every packet.
    pub(super) fn create(&self, pin_dir: &Path, from: Option<&Self>) -> Result<(), DatapathError> {
        for other in versions(pin_dir)? {
            if other != self.root && from.is_none_or(|from| from.root != other) {
                return Err(DatapathError::Pin {
                    path: other.display().to_string(),
                    reason: format!("this program's layout is version {LAYOUT_VERSION}"),
                });
            }
        }
        self.make_directories()
    }

    pub(super) fn make_directories(&self) -> Result<(), DatapathError> {
        for dir in [self.maps(), self.links(), self.programs()] {
            std::fs::create_dir_all(&dir)
                .map_err(|e| kernel(format!("make the pin directory {}", dir.display()), e))?;
        }
        Ok(())
    }

    /// Whether a datapath of this version was loaded.
    pub(super) fn exist(&self) -> bool {
        self.root.exists()
    }

    fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    fn programs(&self) -> PathBuf {
        self.root.join("progs")
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    pub(super) fn link(&self, kind: LinkKind, name: &str) -> PathBuf {
        self.links().join(format!("{}{}", kind.prefix(), encode(name)))
    }

    /// All pinned attachments, sorted.
    pub(super) fn list_links(&self) -> Result<Vec<(LinkKind, String)>, DatapathError> {
        let parse = |file: &String| {
            LinkKind::ALL
                .into_iter()
                .find_map(|kind| Some((kind, decode(file.strip_prefix(kind.prefix())?))))
        };
        let mut links: Vec<_> = names(&self.links())?.iter().filter_map(parse).collect();
        links.sort();
        Ok(links)
    }

    /// Opens a pinned link and returns its target. `None` when there is no such pin.
    pub(super) fn open_link(
        &self,
        kind: LinkKind,
        name: &str,
    ) -> Result<Option<(OwnedFd, sys::LinkInfo)>, DatapathError> {
        let path = self.link(kind, name);
        let opened = sys::open_pin(&path).and_then(|fd| {
            let info = sys::link_info(fd.as_fd())?;
            Ok((fd, info))
        });
        match opened {
            Ok(found) => Ok(Some(found)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(kernel(format!("open the pinned link {}", path.display()), e)),
        }
    }

    /// Moves the pin of an attachment here, without any effect on the attachment.
    pub(super) fn adopt_link(
        &self,
        from: &Self,
        (kind, name): (LinkKind, &str),
    ) -> Result<(), DatapathError> {
        let (old, new) = (from.link(kind, name), self.link(kind, name));
        std::fs::rename(&old, &new)
            .map_err(|e| kernel(format!("move the pin {} to {}", old.display(), new.display()), e))
    }

    /// Removes the pins of maps and programs, and the directories. Attachments stay.
    pub(super) fn forget(&self) -> Result<(), DatapathError> {
        let mut errors = Vec::new();
        for dir in [self.programs(), self.maps()] {
            for name in names(&dir)? {
                errors.extend(remove_file(&dir.join(name)).err());
            }
        }
        for dir in [self.programs(), self.maps(), self.links(), self.root.clone()] {
            errors.extend(remove_dir(&dir).err());
        }
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// Detaches a pinned link and removes its pin; a missing one is no error.
    pub(super) fn remove_link(&self, kind: LinkKind, name: &str) -> Result<(), DatapathError> {
        let path = self.link(kind, name);
        // The pin of a clsact attachment holds a program, not a link.
        if kind != LinkKind::Clsact
            && let Some((link, info)) = self.open_link(kind, name)?
            && info.target != sys::Target::Gone
        {
            match sys::detach_link(link.as_fd()) {
                // It went in between.
                Err(e) if e.raw_os_error() == Some(nix::libc::ENOLINK) => {}
                outcome => {
                    outcome.map_err(|e| kernel(format!("detach the link {}", path.display()), e))?
                }
            }
        }
        remove_file(&path)
    }
}

/// bpffs keeps names with a dot for itself (kernel/bpf/inode.c, bpf_lookup), and interfaces like
/// `eth0.100` have one.
fn encode(name: &str) -> String {
    name.replace('%', "%25").replace('.', "%2e")
}

fn decode(name: &str) -> String {
    name.replace("%2e", ".").replace("%25", "%")
}

/// Removes a pin; a missing one is no error.
pub(super) fn remove_file(path: &Path) -> Result<(), DatapathError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(kernel(format!("remove the pin {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

/// Names in a directory, sorted; none when it is missing.
fn names(dir: &Path) -> Result<Vec<String>, DatapathError> {
    let failed = |e| kernel(format!("list the pins in {}", dir.display()), e);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The directories of all layout versions.
fn versions(pin_dir: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    let is_version = |name: &String| {
        name.strip_prefix('v')
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    Ok(names(pin_dir)?.iter().filter(|n| is_version(n)).map(|n| pin_dir.join(n)).collect())
}

/// Removes everything pinned in `pin_dir`, of any layout version, together with its attachments.
/// Continues after an error, and reports the first ones. Returns the removed objects.
pub(super) fn remove_all(pin_dir: &Path) -> Result<Vec<String>, DatapathError> {
    let mut removed = Vec::new();
    let mut errors = Vec::new();
    for root in versions(pin_dir)? {
        let pins = Pins { root };
        for (kind, name) in pins.list_links()? {
            let outcome = match kind {
                LinkKind::Clsact => clsact::detach(&pins, &name),
                _ => pins.remove_link(kind, &name),
            };
            match outcome {
                Ok(()) => removed.push(format!("link {}{name}", kind.prefix())),
                Err(e) => errors.push(e),
            }
        }
        // Among the links only those of kinds that another version had are left now.
        let parts = [("link", pins.links()), ("program", pins.programs()), ("map", pins.maps())];
        for (what, dir) in parts {
            for name in names(&dir)? {
                match remove_file(&dir.join(&name)) {
                    Ok(()) => removed.push(format!("{what} {name}")),
                    Err(e) => errors.push(e),
                }
            }
            errors.extend(remove_dir(&dir).err());
        }
        errors.extend(remove_dir(&pins.root).err());
    }
    // The mount itself, or a directory that holds something of others, stays.
    let _ = std::fs::remove_dir(pin_dir);
    match errors.into_iter().next() {
        None => Ok(removed),
        Some(first) => Err(first),
    }
}

fn remove_dir(dir: &Path) -> Result<(), DatapathError> {
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(kernel(format!("remove the pin directory {}", dir.display()), e))
        }
        _ => Ok(()),
    }
}

/// A readable description of the pins.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Inventory {
    /// The pinned maps.
    pub maps: Vec<PinnedMap>,
    /// The pinned programs.
    pub programs: Vec<PinnedProgram>,
    /// The pinned attachments.
    pub links: Vec<PinnedAttachment>,
}

/// A pinned map.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct PinnedMap {
    /// Its name.
    pub name: String,
    /// Its path.
    pub path: PathBuf,
    /// Its id, as bpftool shows it.
    pub id: u32,
    /// Its type.
    pub kind: String,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Most entries it can hold.
    pub max_entries: u32,
}

/// A pinned program.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct PinnedProgram {
    /// Its name.
    pub name: String,
    /// Its path.
    pub path: PathBuf,
    /// Its id, as bpftool shows it.
    pub id: u32,
    /// Its type.
    pub kind: String,
    /// Instructions of the kernel's own form, in bytes.
    pub size: u32,
    /// Bytes of machine code; 0 without the JIT.
    pub jited: u32,
}

/// A pinned attachment.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct PinnedAttachment {
    /// Interface, or socket program.
    pub name: String,
    /// Its path.
    pub path: PathBuf,
    /// `tcx`, `clsact`, `xdp` or `cgroup`.
    pub kind: String,
    /// Id of the attached program.
    pub program: Option<u32>,
    /// False when the interface or cgroup is gone.
    pub attached: bool,
}

impl Inventory {
    /// Reads the pins in `pin_dir`; empty when nothing is loaded.
    ///
    /// # Errors
    /// [`DatapathError::Pin`] when a pin does not hold the expected object.
    pub fn read(pin_dir: &Path) -> Result<Self, DatapathError> {
        let pins = Pins::new(pin_dir);
        let maps = names(&pins.maps())?.into_iter().map(|n| pinned_map(&pins, n));
        let programs = names(&pins.programs())?.into_iter().map(|n| pinned_program(&pins, n));
        let links = pins.list_links()?.into_iter().map(|(k, n)| pinned_attachment(&pins, k, n));
        Ok(Self {
            maps: maps.collect::<Result<_, _>>()?,
            programs: programs.collect::<Result<_, _>>()?,
            links: links.collect::<Result<_, _>>()?,
        })
    }
}

fn pinned_map(pins: &Pins, name: String) -> Result<PinnedMap, DatapathError> {
    let path = pins.map(&name);
    let info = MapInfo::from_pin(&path).map_err(|e| super::bad_pin(&path, &e))?;
    let kind = info.map_type().map_or_else(|_| "unknown".to_owned(), |t| format!("{t:?}"));
    Ok(PinnedMap {
        id: info.id(),
        kind,
        key_size: info.key_size(),
        value_size: info.value_size(),
        max_entries: info.max_entries(),
        name,
        path,
    })
}

fn pinned_program(pins: &Pins, name: String) -> Result<PinnedProgram, DatapathError> {
    let path = pins.program(&name);
    let info = ProgramInfo::from_pin(&path).map_err(|e| super::bad_pin(&path, &e))?;
    let kind = format!("{:?}", info.program_type()).replace("BPF_PROG_TYPE_", "").to_lowercase();
    Ok(PinnedProgram {
        id: info.id(),
        kind,
        size: info.size_translated().unwrap_or_default(),
        jited: info.size_jitted(),
        name,
        path,
    })
}

fn pinned_attachment(
    pins: &Pins,
    kind: LinkKind,
    name: String,
) -> Result<PinnedAttachment, DatapathError> {
    let path = pins.link(kind, &name);
    let (program, attached) = match kind {
        LinkKind::Clsact => {
            let info = ProgramInfo::from_pin(&path).map_err(|e| super::bad_pin(&path, &e))?;
            (Some(info.id()), clsact::is_attached(&name)?)
        }
        _ => match pins.open_link(kind, &name)? {
            Some((_, info)) => (Some(info.program), info.target != sys::Target::Gone),
            None => (None, false),
        },
    };
    let kind = match kind {
        LinkKind::Tcx => "tcx",
        LinkKind::Clsact => "clsact",
        LinkKind::Xdp => "xdp",
        LinkKind::Socket => "cgroup",
    };
    Ok(PinnedAttachment { name, path, kind: kind.to_owned(), program, attached })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces_survive_what_bpffs_does_not_allow() {
        for name in ["eth0", "eth0.100", "a%2eb", "a-b.c%"] {
            let encoded = encode(name);
            assert!(!encoded.contains('.'), "{encoded}");
            assert_eq!(decode(&encoded), name);
        }
    }

    #[test]
    fn links_are_told_apart_by_their_prefix_only() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let pins = Pins::new(dir.path());
        pins.create(dir.path(), None).expect("made");
        for (kind, name) in [(LinkKind::Tcx, "xdp-1"), (LinkKind::Xdp, "eth0.7")] {
            std::fs::write(pins.link(kind, name), "").expect("a file");
        }
        let expected =
            vec![(LinkKind::Tcx, "xdp-1".to_owned()), (LinkKind::Xdp, "eth0.7".to_owned())];
        assert_eq!(pins.list_links().expect("listed"), expected);
    }

    #[test]
    fn another_versions_pins_are_refused_and_can_be_removed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let pin_dir = dir.path().join("pins");
        std::fs::create_dir_all(pin_dir.join("v0/maps")).expect("made");
        std::fs::write(pin_dir.join("v0/maps/config"), "").expect("a file");
        let refused = Pins::new(&pin_dir).create(&pin_dir, Some(&Pins::of(&pin_dir, 1)));
        assert!(matches!(refused, Err(DatapathError::Pin { path, .. }) if path.ends_with("v0")));
        assert_eq!(remove_all(&pin_dir).expect("removed"), vec!["map config".to_owned()]);
        assert!(!pin_dir.exists());
        assert!(remove_all(&pin_dir).expect("nothing left").is_empty());
    }
}
