//! bpf-linker and the LLVM it loads.

use std::{
    env, fs,
    io::{self, Read as _},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Error, variable};

/// The version of bpf-linker for these compilers. Later versions need LLVM 23, which is newer than
/// the LLVM of Debian's compiler.
pub const LINKER_VERSION: &str = "0.10.3";

/// The major version of LLVM that [`LINKER_VERSION`] is built for: it reads bitcode up to this one.
pub const LINKER_LLVM: u32 = 22;

/// A bpf-linker of [`LINKER_VERSION`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linker {
    /// The program.
    pub path: PathBuf,
}

/// Cargo's arguments that install bpf-linker.
pub fn linker_install_args() -> [&'static str; 8] {
    [
        "install",
        "bpf-linker",
        "--version",
        LINKER_VERSION,
        "--locked",
        "--no-default-features",
        "--features",
        "llvm-22,rust-llvm-22",
    ]
}

/// Finds bpf-linker in cargo's own folder and in PATH; other versions are skipped.
///
/// # Errors
/// [`Error::NoLinker`] with the linkers found and the commands that install one.
pub fn find_linker() -> Result<Linker, Error> {
    let cargo_home = variable("CARGO_HOME").map(PathBuf::from);
    let in_home = variable("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = [cargo_home, in_home]
        .into_iter()
        .flatten()
        .map(|home| home.join("bin"))
        .chain(env::split_paths(&path))
        .collect::<Vec<_>>();
    pick_linker(&folders, &version_of)
}

fn pick_linker(
    folders: &[PathBuf],
    version_of: &dyn Fn(&Path) -> Option<String>,
) -> Result<Linker, Error> {
    let mut found = "it is not installed".to_owned();
    for path in folders.iter().map(|dir| dir.join("bpf-linker")).filter(|path| path.is_file()) {
        match version_of(&path) {
            Some(version) if version == LINKER_VERSION => return Ok(Linker { path }),
            Some(version) => found = format!("{} is version {version}", path.display()),
            None => found = format!("{} does not run", path.display()),
        }
    }
    Err(Error::NoLinker { found })
}

/// The version in `bpf-linker 0.10.3`.
fn version_of(path: &Path) -> Option<String> {
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace().nth(1).map(str::to_owned)
}

/// Makes a folder inside `target_dir` that contains only a link to the LLVM that bpf-linker must
/// load.
///
/// bpf-linker opens the first `libLLVM*` that it meets in the folders of LD_LIBRARY_PATH. Debian
/// keeps the libraries of several LLVMs in one folder, so only a folder of our own is unambiguous.
pub(crate) fn llvm_dir(sysroot: &Path, target_dir: &Path) -> Result<PathBuf, Error> {
    let searched = llvm_search_path(sysroot);
    let Some(library) = searched.iter().find_map(|dir| find_llvm(dir)) else {
        return Err(Error::NoLlvm { searched });
    };
    let dir = target_dir.join("llvm");
    link_alone(&library, &dir).map_err(|source| Error::File { path: dir.clone(), source })?;
    Ok(dir)
}

/// The compiler's own library first; then the distributions' folders.
fn llvm_search_path(sysroot: &Path) -> Vec<PathBuf> {
    let arch = env::consts::ARCH;
    vec![
        sysroot.join("lib"),
        format!("/usr/lib/llvm-{LINKER_LLVM}/lib").into(),
        format!("/usr/lib/{arch}-linux-gnu").into(),
        "/usr/lib64".into(),
        "/usr/lib".into(),
    ]
}

fn find_llvm(dir: &Path) -> Option<PathBuf> {
    let mut libraries: Vec<PathBuf> = fs::read_dir(dir)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            llvm_major(&name) == Some(LINKER_LLVM) && is_elf(path)
        })
        .collect();
    libraries.sort();
    libraries.pop()
}

/// 22 for `libLLVM.so.22.1`, `libLLVM-22.so` and `libLLVM.so.22.1-rust-1.95.0-stable`.
fn llvm_major(name: &str) -> Option<u32> {
    let version = name.strip_prefix("libLLVM")?;
    let version = version.strip_prefix('-').or_else(|| version.strip_prefix(".so."))?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Rustup ships a linker script under a library's name.
fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && magic == *b"\x7fELF"
}

fn link_alone(library: &Path, dir: &Path) -> io::Result<()> {
    let link = dir.join(library.file_name().unwrap_or_default());
    fs::create_dir_all(dir)?;
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.path() != link || fs::read_link(&link)? != library {
            fs::remove_file(entry.path())?;
        }
    }
    match symlink(library, &link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_every_name_a_distribution_uses() {
        for (name, major) in [
            ("libLLVM.so.22.1", Some(22)),
            ("libLLVM-22.so", Some(22)),
            ("libLLVM.so.22.1-rust-1.95.0-stable", Some(22)),
            ("libLLVM-14.0.6.so.1", Some(14)),
            ("libLLVM.so", None),
            ("libLLVMCore.a", None),
            ("libc.so.6", None),
        ] {
            assert_eq!(llvm_major(name), major, "{name}");
        }
    }

    #[test]
    fn among_several_llvms_the_linkers_is_found_and_linker_scripts_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("libLLVM-14.so.1"), b"\x7fELF").unwrap();
        fs::write(dir.path().join("libLLVM-22-rust-1.95.0-stable.so"), b"INPUT(..)").unwrap();
        assert_eq!(find_llvm(dir.path()), None);
        let library = dir.path().join("libLLVM.so.22.1-rust-1.95.0-stable");
        fs::write(&library, b"\x7fELF").unwrap();
        assert_eq!(find_llvm(dir.path()), Some(library));
    }

    #[test]
    fn the_linkers_folder_holds_one_library_also_after_the_compiler_changed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("llvm");
        for library in ["/one/libLLVM.so.22.1", "/two/libLLVM.so.22.1", "/two/libLLVM-22.so"] {
            link_alone(Path::new(library), &folder).unwrap();
            link_alone(Path::new(library), &folder).unwrap();
            let links: Vec<_> = fs::read_dir(&folder)
                .unwrap()
                .map(|entry| fs::read_link(entry.unwrap().path()).unwrap())
                .collect();
            assert_eq!(links, [Path::new(library)]);
        }
    }

    #[test]
    fn a_linker_of_another_version_is_passed_over_and_named_when_there_is_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let folders: Vec<PathBuf> = ["old", "right"].map(|name| dir.path().join(name)).into();
        let version = |path: &Path| {
            Some(if path.starts_with(&folders[0]) { "0.9.15" } else { LINKER_VERSION }.to_owned())
        };
        let missing = pick_linker(&folders, &version).unwrap_err().to_string();
        assert!(missing.contains("it is not installed"), "{missing}");

        fs::create_dir(&folders[0]).unwrap();
        fs::write(folders[0].join("bpf-linker"), "").unwrap();
        let old = pick_linker(&folders, &version).unwrap_err().to_string();
        assert!(old.contains("old/bpf-linker is version 0.9.15"), "{old}");
        assert!(old.contains("cargo xtask setup"), "{old}");

        fs::create_dir(&folders[1]).unwrap();
        fs::write(folders[1].join("bpf-linker"), "").unwrap();
        assert_eq!(pick_linker(&folders, &version).unwrap().path, folders[1].join("bpf-linker"));
    }
}
