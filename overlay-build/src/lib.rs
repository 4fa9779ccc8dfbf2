//! Chooses the toolchain for the eBPF programs and builds their object with it.
//!
//! The build script of `overlay-user` and `cargo xtask` share this code, so that both give the same
//! answer on the same machine. [`choose`] looks, in this order, for
//!
//! 1. an object that `OVERLAY_BPF_OBJ` names,
//! 2. a rustc whose sysroot holds libcore for BPF (Debian: `libstd-rust-web-dev-bpf`),
//! 3. a nightly with `rust-src`, for `-Z build-std=core`,
//!
//! and otherwise fails with the commands that install either compiler.

mod artifact;
mod call;
mod error;
mod linker;
mod toolchain;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
};

pub use artifact::check_object;
pub use call::{CargoCall, Target};
pub use error::Error;
pub use linker::{LINKER_LLVM, LINKER_VERSION, Linker, find_linker, linker_install_args};
pub use toolchain::{
    Compiler, DEBIAN_PACKAGES, OBJECT_VARIABLE, RUSTUP_COMMAND, Toolchain, choose,
};

/// The package of the eBPF programs.
pub const PACKAGE: &str = "overlay-ebpf";

/// The binary target in [`PACKAGE`]; also the name of the object that [`build_object`] writes.
pub const OBJECT: &str = "overlay-datapath";

/// An object that [`build_object`] has written.
#[derive(Debug)]
pub struct Built {
    /// The toolchain that built it.
    pub toolchain: Toolchain,
    /// The linker that was used; none for a prebuilt object.
    pub linker: Option<Linker>,
    /// The compiler's warnings about the workspace's own code, as rustc renders them.
    pub warnings: Vec<String>,
}

/// The root of the workspace this crate belongs to.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member lies below the root")
}

/// Builds the eBPF programs with `features` of [`PACKAGE`] and writes the object to `out`.
///
/// # Errors
/// Something is missing (compiler, linker, LLVM; the error has the command that installs it), the
/// compiler reports errors, or the object is not one for the kernel.
pub fn build_object(out: &Path, features: &[&str]) -> Result<Built, Error> {
    let toolchain = choose()?;
    let compiler = match &toolchain {
        Toolchain::Prebuilt(object) => {
            copy_object(object, out)?;
            return Ok(Built { toolchain, linker: None, warnings: Vec::new() });
        }
        Toolchain::Sysroot(compiler) | Toolchain::BuildStd(compiler) => compiler,
    };
    let (call, linker) = object_call(&toolchain, compiler, out, features)?;
    let output = call
        .command()
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Start { program: call.program.clone(), source })?;
    let report = artifact::Report::read(&output.stdout);
    if !output.status.success() {
        return Err(Error::Compile {
            rustc: compiler.rustc.clone(),
            messages: report.errors_or(&output.stderr),
        });
    }
    let object = report.executable(OBJECT).ok_or(Error::NoArtifact)?;
    copy_object(&object, out)?;
    Ok(Built { linker: Some(linker), warnings: report.warnings, toolchain })
}

/// Builds the eBPF programs to the place where [`build_object`] looks for them, and lets cargo show
/// its progress on stderr. Cargo hides the output of build scripts, so a build script would be
/// silent for minutes; after this call it has nothing left to compile. `beside` is a file in the
/// target folder of the coming build. A prebuilt object needs no build.
///
/// # Errors
/// Like [`build_object`], but the compiler itself prints its errors and warnings.
pub fn build_ahead(beside: &Path, features: &[&str]) -> Result<(), Error> {
    let toolchain = choose()?;
    let (Toolchain::Sysroot(compiler) | Toolchain::BuildStd(compiler)) = &toolchain else {
        return Ok(());
    };
    let (call, _) = object_call(&toolchain, compiler, beside, features)?;
    call.command()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map(drop)
        .map_err(|source| Error::Start { program: call.program.clone(), source })
}

fn object_call(
    toolchain: &Toolchain,
    compiler: &Compiler,
    beside: &Path,
    features: &[&str],
) -> Result<(CargoCall, Linker), Error> {
    let linker = find_linker()?;
    let target_dir = target_dir_beside(beside, features);
    let llvm_dir = linker::llvm_dir(&compiler.sysroot, &target_dir)?;
    let call = CargoCall::new(toolchain, &Target::of_build(), &linker.path)
        .with_manifest(&workspace_root().join("Cargo.toml"))
        .with_target_dir(&target_dir)
        .with_llvm_dir(&llvm_dir)
        .with_features(features);
    Ok((call, linker))
}

/// The files and folders that the object is built from. After a change of one the object is stale.
pub fn sources() -> Vec<PathBuf> {
    let root = workspace_root();
    [
        "overlay-ebpf/src",
        "overlay-ebpf/Cargo.toml",
        "overlay-common/src",
        "overlay-common/Cargo.toml",
    ]
    .into_iter()
    .chain(["Cargo.toml", "Cargo.lock"])
    .map(|path| root.join(path))
    .collect()
}

fn copy_object(object: &Path, out: &Path) -> Result<(), Error> {
    check_object(object)?;
    fs::copy(object, out).map(drop).map_err(|source| Error::File { path: out.into(), source })
}

/// The nested cargo's own target folder. It must not be the outer one's, since the outer cargo
/// holds the lock of that. It is below that folder, so `cargo clean` removes it too. Each set of
/// features has its own, so that two builds never copy each other's object.
fn target_dir_beside(out: &Path, features: &[&str]) -> PathBuf {
    let name = ["bpf"].into_iter().chain(features.iter().copied()).collect::<Vec<_>>().join("-");
    let outer = out.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    outer.or(out.parent()).unwrap_or(Path::new(".")).join(name)
}

/// The value of an environment variable; an empty value counts as not set.
fn variable(name: &str) -> Option<std::ffi::OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nested_target_folder_lies_in_the_outer_one_and_differs_by_feature() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        let out_dir = target.join("x86_64-unknown-linux-gnu/debug/build/overlay-user-1/out");
        fs::create_dir_all(&out_dir).unwrap();
        fs::write(target.join("CACHEDIR.TAG"), "").unwrap();
        let out = out_dir.join(OBJECT);
        assert_eq!(target_dir_beside(&out, &[]), target.join("bpf"));
        assert_eq!(target_dir_beside(&out, &["log"]), target.join("bpf-log"));
    }

    #[test]
    fn without_an_outer_target_folder_the_objects_own_folder_is_used() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(target_dir_beside(&dir.path().join(OBJECT), &[]), dir.path().join("bpf"));
    }

    #[test]
    fn every_source_of_the_object_exists() {
        for source in sources() {
            assert!(source.exists(), "{} is watched and does not exist", source.display());
        }
    }
}
