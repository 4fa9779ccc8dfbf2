//! Reasons for which the object cannot be built, with remedies.

use std::{io, path::PathBuf};

use crate::linker::{LINKER_LLVM, LINKER_VERSION, linker_install_args};
use crate::toolchain::{DEBIAN_PACKAGES, OBJECT_VARIABLE, RUSTUP_COMMAND};

/// Why there is no object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No compiler can build for BPF.
    #[error(
        "no compiler for the eBPF programs. {}\nInstall one of these:\n  \
         Debian: apt-get install {}   (cargo xtask setup does it)\n  \
         rustup: {RUSTUP_COMMAND}\n\
         or name a prebuilt object: {OBJECT_VARIABLE}=FILE",
        seen(.looked_at), DEBIAN_PACKAGES.join(" ")
    )]
    NoCompiler {
        /// Each compiler found, with its deficiency.
        looked_at: Vec<String>,
    },
    /// There is no bpf-linker of the version that fits the compilers.
    #[error(
        "bpf-linker {LINKER_VERSION} is needed to link the eBPF programs, and {found}. \
         Run `cargo xtask setup`, or: cargo {}",
        linker_install_args().join(" ")
    )]
    NoLinker {
        /// The linkers found instead.
        found: String,
    },
    /// bpf-linker would not find its LLVM.
    #[error(
        "bpf-linker needs the shared library of LLVM {LINKER_LLVM}, and none was found in {}. \
         Debian: apt-get install libllvm{LINKER_LLVM}",
        .searched.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoLlvm {
        /// The folders that were searched.
        searched: Vec<PathBuf>,
    },
    /// The value of the variable for a prebuilt object is not usable.
    #[error("{OBJECT_VARIABLE} must be the absolute path of an eBPF object: {reason}")]
    Prebuilt {
        /// The object that it names.
        reason: String,
    },
    /// A file is not an object for the kernel.
    #[error("{} is not an eBPF object: {found}", .path.display())]
    NotAnObject {
        /// The file.
        path: PathBuf,
        /// A description of the file.
        found: String,
    },
    /// The programs do not compile or link.
    #[error("the eBPF programs do not build with {}:\n{messages}", .rustc.display())]
    Compile {
        /// The compiler.
        rustc: PathBuf,
        /// The compiler's errors, or the end of cargo's output if there are none.
        messages: String,
    },
    /// Cargo succeeded and named no object.
    #[error(
        "cargo built no binary named {} in the package {}; is it still declared in {}/Cargo.toml?",
        crate::OBJECT,
        crate::PACKAGE,
        crate::PACKAGE
    )]
    NoArtifact,
    /// A program could not be started.
    #[error("cannot run {}: {source}", .program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn seen(compilers: &[String]) -> String {
    if compilers.is_empty() {
        "No rustc was found.".to_owned()
    } else {
        format!("Looked at {}.", compilers.join("; "))
    }
}
