//! The programs that a machine is made of: QEMU, and busybox as its first process.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use super::debian;
use crate::machine;

/// The packages that have them.
const PACKAGES: [&str; 2] = ["qemu-system-x86", "busybox-static"];
const QEMU: &str = "qemu-system-x86_64";
const BUSYBOX: &str = "busybox";

/// QEMU and busybox, this machine's own or unpacked.
#[derive(Clone, Debug)]
pub struct Emulator {
    /// QEMU.
    pub qemu: PathBuf,
    /// Busybox.
    pub busybox: PathBuf,
    /// The folder that the packages are unpacked in, if they are.
    root: Option<PathBuf>,
}

/// The installed programs. If one is missing, Debian's packages are unpacked below `cache`. They
/// are not installed, because apt might have to remove other packages for them, for example on an
/// image with a newer qemu-utils than its sources have.
///
/// # Errors
/// They cannot be fetched.
pub fn find(cache: &Path) -> Result<Emulator> {
    if let (Some(qemu), Some(busybox)) =
        (machine::find_program(QEMU), machine::find_program(BUSYBOX))
    {
        return Ok(Emulator { qemu, busybox, root: None });
    }
    let root = cache.join("emulator");
    if let Some(emulator) = unpacked(&root) {
        return Ok(emulator);
    }
    println!("vm-test: downloading {} to run them from target/vm", PACKAGES.join(" and "));
    debian::fetch(&debian::with_dependencies(&PACKAGES)?, &root)?;
    match unpacked(&root) {
        Some(emulator) => Ok(emulator),
        None => bail!("the packages {} have no {QEMU} or no {BUSYBOX}", PACKAGES.join(", ")),
    }
}

fn unpacked(root: &Path) -> Option<Emulator> {
    let here = |name: &str| {
        let places = ["usr/bin", "bin"].map(|folder| root.join(folder).join(name));
        places.into_iter().find(|path| path.is_file()).or_else(|| machine::find_program(name))
    };
    Some(Emulator { qemu: here(QEMU)?, busybox: here(BUSYBOX)?, root: Some(root.to_owned()) })
}

impl Emulator {
    /// LD_LIBRARY_PATH for QEMU. Its firmware and modules it finds by its own place.
    pub fn ld_library_path(&self) -> OsString {
        let own = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let Some(root) = &self.root else { return own };
        let folders = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        let all = folders.iter().map(|folder| root.join(folder)).chain(env::split_paths(&own));
        // Only a folder with a colon in its name cannot be joined.
        env::join_paths(all).unwrap_or(own)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn unpacked_programs_are_found_and_bring_their_libraries() {
        let root = tempfile::tempdir().unwrap();
        for (folder, name) in [("usr/bin", QEMU), ("bin", BUSYBOX)] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
            fs::write(root.path().join(folder).join(name), "").unwrap();
        }
        let emulator = unpacked(root.path()).unwrap();
        assert_eq!(emulator.qemu, root.path().join("usr/bin/qemu-system-x86_64"));
        assert_eq!(emulator.busybox, root.path().join("bin/busybox"));
        let libraries = emulator.ld_library_path().into_string().unwrap();
        let first = root.path().join("usr/lib/x86_64-linux-gnu");
        assert!(libraries.starts_with(first.to_str().unwrap()), "{libraries}");
    }
}
