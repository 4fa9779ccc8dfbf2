//! The choice of the compiler that builds the eBPF programs.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    Error,
    linker::{LINKER_LLVM, LINKER_VERSION},
    variable,
};

/// The environment variable that names a prebuilt object.
pub const OBJECT_VARIABLE: &str = "OVERLAY_BPF_OBJ";

/// Debian's packages with a compiler, its cargo and libcore for BPF.
pub const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// The command that installs a nightly with an LLVM that [`LINKER_VERSION`] of bpf-linker can read.
pub const RUSTUP_COMMAND: &str =
    "rustup toolchain install nightly-2026-05-20 --profile minimal --component rust-src";

/// How the object comes about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The file that [`OBJECT_VARIABLE`] names.
    Prebuilt(PathBuf),
    /// A compiler with libcore for BPF in its sysroot.
    Sysroot(Compiler),
    /// A nightly that compiles libcore first, from its own source.
    BuildStd(Compiler),
}

/// A rustc and the cargo to call it with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    /// The compiler.
    pub rustc: PathBuf,
    /// The cargo.
    pub cargo: PathBuf,
    /// The compiler's `--print sysroot`.
    pub sysroot: PathBuf,
}

/// Finds the way to build the object on this machine.
///
/// # Errors
/// [`Error::NoCompiler`] with the compilers found and the commands that install one;
/// [`Error::Prebuilt`] for a bad [`OBJECT_VARIABLE`].
pub fn choose() -> Result<Toolchain, Error> {
    Surroundings::of_process().choose(&probe)
}

/// The properties that a compiler reports.
#[derive(Clone, Debug)]
struct Facts {
    sysroot: PathBuf,
    /// LLVM's major version.
    llvm: u32,
    nightly: bool,
}

/// The places of compilers and objects. They are apart from the search, so that tests can cover the
/// choice.
#[derive(Debug, Default)]
struct Surroundings {
    /// The value of [`OBJECT_VARIABLE`].
    object: Option<PathBuf>,
    /// Compilers, the preferred first.
    rustcs: Vec<PathBuf>,
    /// Rustup's toolchains, the preferred first.
    toolchains: Vec<PathBuf>,
    /// The cargo that runs us.
    cargo: PathBuf,
}

impl Surroundings {
    fn of_process() -> Self {
        let mut rustcs = vec![PathBuf::from("/usr/bin/rustc")];
        rustcs.extend(find_in_path("rustc"));
        rustcs.dedup();
        let rustup_home = variable("RUSTUP_HOME")
            .map(PathBuf::from)
            .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".rustup")));
        Self {
            object: variable(OBJECT_VARIABLE).map(PathBuf::from),
            rustcs,
            toolchains: rustup_home.map(|home| nightlies(&home)).unwrap_or_default(),
            cargo: variable("CARGO").map_or_else(|| "cargo".into(), PathBuf::from),
        }
    }

    fn choose(&self, probe: &dyn Fn(&Path) -> Option<Facts>) -> Result<Toolchain, Error> {
        if let Some(object) = &self.object {
            return prebuilt(object);
        }
        let mut looked_at = Vec::new();
        let mut with_source = None;
        let in_toolchains = self.toolchains.iter().map(|dir| dir.join("bin/rustc"));
        for rustc in self.rustcs.iter().cloned().chain(in_toolchains) {
            let Some(facts) = probe(&rustc) else { continue };
            match usable(&facts) {
                Ok(Way::Sysroot) => {
                    let cargo = self.cargo.clone();
                    return Ok(Toolchain::Sysroot(Compiler {
                        rustc,
                        cargo,
                        sysroot: facts.sysroot,
                    }));
                }
                // The error is kept, not returned: a later compiler may have libcore ready.
                Ok(Way::BuildStd) if with_source.is_none() => {
                    let cargo = facts.sysroot.join("bin/cargo");
                    let rustc = facts.sysroot.join("bin/rustc");
                    with_source = Some(Compiler { rustc, cargo, sysroot: facts.sysroot });
                }
                Ok(Way::BuildStd) => {}
                Err(lack) => looked_at.push(format!("{} ({lack})", rustc.display())),
            }
        }
        with_source.map(Toolchain::BuildStd).ok_or(Error::NoCompiler { looked_at })
    }
}

/// Relative paths are rejected: a build script runs in its package's folder, not in the user's.
fn prebuilt(object: &Path) -> Result<Toolchain, Error> {
    let checked = if object.is_absolute() {
        crate::check_object(object).map_err(|error| error.to_string())
    } else {
        Err(format!("{} is relative", object.display()))
    };
    match checked {
        Ok(()) => Ok(Toolchain::Prebuilt(object.into())),
        Err(reason) => Err(Error::Prebuilt { reason }),
    }
}

enum Way {
    Sysroot,
    BuildStd,
}

/// The way to build with a compiler, or its deficiency.
fn usable(facts: &Facts) -> Result<Way, String> {
    if facts.llvm > LINKER_LLVM {
        return Err(format!(
            "LLVM {}, and bpf-linker {LINKER_VERSION} reads up to {LINKER_LLVM}",
            facts.llvm
        ));
    }
    let rustlib = facts.sysroot.join("lib/rustlib");
    if has_libcore(&rustlib.join(crate::Target::of_build().triple()).join("lib")) {
        Ok(Way::Sysroot)
    } else if !facts.nightly {
        Err("no libcore for BPF, and not a nightly that could build it".to_owned())
    } else if rustlib.join("src/rust/library/Cargo.lock").is_file() {
        Ok(Way::BuildStd)
    } else {
        Err("a nightly without rust-src".to_owned())
    }
}

fn has_libcore(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libcore-") && name.ends_with(".rlib")
        })
    })
}

/// Rustup's nightlies: the one called `nightly` first, then the dated ones, newest first.
fn nightlies(rustup_home: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(rustup_home.join("toolchains")) else { return Vec::new() };
    let mut found: Vec<(bool, String, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let date = name.strip_prefix("nightly-")?;
            let dated = date.starts_with(|c: char| c.is_ascii_digit());
            Some((!dated, name, entry.path()))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, _, path)| path).collect()
}

fn find_in_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Asks a compiler for its properties. Returns `None` if it does not run: then it is no candidate.
fn probe(rustc: &Path) -> Option<Facts> {
    let ask = |argument: &[&str]| {
        let output = Command::new(rustc)
            .args(argument)
            // Cargo sets it for build scripts. It would hide whether the compiler is a nightly.
            .env_remove("RUSTC_BOOTSTRAP")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (llvm, nightly) = read_version(&ask(&["-vV"])?)?;
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim());
    Some(Facts { sysroot, llvm, nightly })
}

/// LLVM's major version and whether it is a nightly, from `rustc -vV`.
fn read_version(text: &str) -> Option<(u32, bool)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    let release = field("release:")?;
    Some((llvm, release.ends_with("-nightly") || release.ends_with("-dev")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with sysroots in it.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn file(&self, path: &str) -> PathBuf {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            path
        }

        /// Every `NAME/bin/rustc` is a compiler with the sysroot NAME; `nightly*` are nightlies.
        fn choose(&self, rustcs: &[&str], llvm: u32) -> Result<Toolchain, Error> {
            let surroundings = Surroundings {
                rustcs: rustcs.iter().map(|name| self.rustc(name)).collect(),
                toolchains: nightlies(self.0.path()),
                cargo: "/outer/cargo".into(),
                object: None,
            };
            surroundings.choose(&|rustc| {
                let sysroot = rustc.parent()?.parent()?.to_owned();
                let nightly = sysroot.file_name()?.to_string_lossy().starts_with("nightly");
                Some(Facts { sysroot, llvm, nightly })
            })
        }

        fn rustc(&self, name: &str) -> PathBuf {
            self.0.path().join(name).join("bin/rustc")
        }
    }

    const LIBCORE: &str = "lib/rustlib/bpfel-unknown-none/lib/libcore-8056e5e5b270ef4d.rlib";
    const RUST_SRC: &str = "lib/rustlib/src/rust/library/Cargo.lock";

    #[test]
    fn a_compiler_with_libcore_for_bpf_is_called_through_the_outer_cargo() {
        let machine = Machine::new();
        machine.file(&format!("debian/{LIBCORE}"));
        let Toolchain::Sysroot(compiler) = machine.choose(&["stable", "debian"], 22).unwrap()
        else {
            panic!("not chosen by its sysroot");
        };
        assert_eq!(compiler.rustc, machine.rustc("debian"));
        assert_eq!(compiler.cargo, Path::new("/outer/cargo"));
    }

    #[test]
    fn libcore_in_the_sysroot_is_preferred_to_building_it() {
        let machine = Machine::new();
        machine.file(&format!("nightly/{RUST_SRC}"));
        machine.file(&format!("debian/{LIBCORE}"));
        let chosen = machine.choose(&["nightly", "debian"], 22).unwrap();
        assert!(matches!(chosen, Toolchain::Sysroot(_)), "{chosen:?}");
    }

    #[test]
    fn a_rustup_nightly_with_rust_src_brings_its_own_cargo() {
        let machine = Machine::new();
        machine.file(&format!("toolchains/nightly-x86_64-unknown-linux-gnu/{RUST_SRC}"));
        let Toolchain::BuildStd(compiler) = machine.choose(&["stable"], 22).unwrap() else {
            panic!("not chosen for build-std");
        };
        let sysroot = machine.0.path().join("toolchains/nightly-x86_64-unknown-linux-gnu");
        assert_eq!(compiler.cargo, sysroot.join("bin/cargo"));
        assert_eq!(compiler.rustc, sysroot.join("bin/rustc"));
    }

    #[test]
    fn a_stable_compiler_with_rust_src_cannot_build_libcore() {
        let machine = Machine::new();
        machine.file(&format!("stable/{RUST_SRC}"));
        assert!(matches!(machine.choose(&["stable"], 22), Err(Error::NoCompiler { .. })));
    }

    #[test]
    fn a_compiler_with_a_newer_llvm_than_the_linker_is_refused_with_the_reason() {
        let machine = Machine::new();
        machine.file(&format!("debian/{LIBCORE}"));
        let error = machine.choose(&["debian"], LINKER_LLVM + 1).unwrap_err().to_string();
        assert!(error.contains("LLVM 23, and bpf-linker 0.10.3 reads up to 22"), "{error}");
    }

    #[test]
    fn without_a_compiler_the_error_names_what_was_seen_and_both_install_commands() {
        let machine = Machine::new();
        machine.file("toolchains/nightly-x86_64-unknown-linux-gnu/bin/rustc");
        let error = machine.choose(&["stable"], 22).unwrap_err().to_string();
        for part in [
            "stable/bin/rustc (no libcore for BPF",
            "nightly-x86_64-unknown-linux-gnu/bin/rustc (a nightly without rust-src)",
            "apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf",
            "rustup toolchain install nightly",
            "--component rust-src",
            "OVERLAY_BPF_OBJ",
        ] {
            assert!(error.contains(part), "{part:?} is not in:\n{error}");
        }
    }

    #[test]
    fn a_prebuilt_object_that_is_none_is_refused_before_any_compiler_is_looked_for() {
        let machine = Machine::new();
        let missing = machine.0.path().join("missing");
        for (object, reason) in [
            (machine.file("object"), "no ELF header"),
            (missing, "No such file"),
            ("Cargo.toml".into(), "is relative"),
        ] {
            let surroundings = Surroundings {
                object: Some(object),
                rustcs: vec![machine.rustc("stable")],
                ..Surroundings::default()
            };
            let chosen = surroundings.choose(&|_| panic!("a compiler was looked for"));
            let error = chosen.unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("OVERLAY_BPF_OBJ"), "{error}");
        }
    }

    #[test]
    fn nightlies_come_with_the_undated_one_first_and_then_newest_first() {
        let machine = Machine::new();
        for name in ["nightly-2026-01-02-x", "stable-x", "nightly-x", "nightly-2026-05-20-x"] {
            machine.file(&format!("toolchains/{name}/bin/rustc"));
        }
        let names: Vec<_> = nightlies(machine.0.path())
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["nightly-x", "nightly-2026-05-20-x", "nightly-2026-01-02-x"]);
    }

    #[test]
    fn the_version_text_gives_llvm_and_channel() {
        let text = |release: &str| {
            format!("rustc 1.96.0\nbinary: rustc\nrelease: {release}\nLLVM version: 22.1.8\n")
        };
        assert_eq!(read_version(&text("1.96.0")), Some((22, false)));
        assert_eq!(read_version(&text("1.97.0-nightly")), Some((22, true)));
        assert_eq!(read_version("rustc 1.96.0"), None);
    }
}
