//! The nested call of cargo, which this module builds but does not run.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{OBJECT, PACKAGE, Toolchain, variable};

/// The machine the programs run on: BPF of its byte order, with its registers in `PtRegs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `x86_64`, `aarch64`, ..
    pub arch: String,
    /// Whether the target stores the high byte first.
    pub big_endian: bool,
}

impl Target {
    /// The target machine in a build script; this machine elsewhere.
    pub fn of_build() -> Self {
        let text = |name| variable(name).and_then(|value| value.into_string().ok());
        Self {
            arch: text("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|| env::consts::ARCH.to_owned()),
            big_endian: text("CARGO_CFG_TARGET_ENDIAN")
                .map_or(cfg!(target_endian = "big"), |endian| endian == "big"),
        }
    }

    /// The compiler's name for it.
    pub fn triple(&self) -> &'static str {
        if self.big_endian { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
    }
}

/// A call of cargo that builds the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CargoCall {
    /// The cargo.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables of its environment, besides those that `is_inherited` accepts.
    pub env: Vec<(OsString, OsString)>,
}

impl CargoCall {
    /// The call for a toolchain that compiles.
    ///
    /// # Panics
    /// `None` for a prebuilt object, which needs no call.
    pub fn new(toolchain: &Toolchain, target: &Target, linker: &Path) -> Self {
        let (compiler, build_std) = match toolchain {
            Toolchain::Prebuilt(object) => panic!("{} is built already", object.display()),
            Toolchain::Sysroot(compiler) => (compiler, false),
            Toolchain::BuildStd(compiler) => (compiler, true),
        };
        let triple = target.triple();
        let mut call = Self { program: compiler.cargo.clone(), args: Vec::new(), env: Vec::new() };
        call.args(["build", "--release", "--locked", "--package", PACKAGE, "--bin", OBJECT]);
        call.args(["--message-format=json", "--target", triple]);
        if build_std {
            call.args(["-Z", "build-std=core"]);
        } else {
            // aya-ebpf uses asm_experimental_arch. The value must be exactly this name: with `1`
            // aya's build scripts would consider the compiler a nightly.
            call.env("RUSTC_BOOTSTRAP", "aya_ebpf");
        }
        call.env("RUSTC", &compiler.rustc);
        let linker_variable = triple.to_uppercase().replace('-', "_");
        call.env(format!("CARGO_TARGET_{linker_variable}_LINKER"), linker);
        call.env("CARGO_ENCODED_RUSTFLAGS", rustflags(target).join("\x1f"));
        // The profile is set here and not in Cargo.toml, where it would change host builds as well.
        // BTF is made from full debug information; one codegen unit keeps it in one piece.
        for (key, value) in
            [("DEBUG", "2"), ("CODEGEN_UNITS", "1"), ("STRIP", "none"), ("LTO", "false")]
        {
            call.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
        }
        call
    }

    /// Names the workspace's manifest.
    #[must_use]
    pub fn with_manifest(mut self, manifest: &Path) -> Self {
        self.args([OsStr::new("--manifest-path"), manifest.as_os_str()]);
        self
    }

    /// Names the folder for everything that cargo writes.
    #[must_use]
    pub fn with_target_dir(mut self, dir: &Path) -> Self {
        self.args([OsStr::new("--target-dir"), dir.as_os_str()]);
        self
    }

    /// Names the folder with the LLVM for bpf-linker.
    #[must_use]
    pub fn with_llvm_dir(mut self, dir: &Path) -> Self {
        self.env("LD_LIBRARY_PATH", dir);
        self
    }

    /// Switches features of the eBPF package on.
    #[must_use]
    pub fn with_features(mut self, features: &[&str]) -> Self {
        if !features.is_empty() {
            self.args(["--features".to_owned(), features.join(",")]);
        }
        self
    }

    /// The call with this process's environment, without the variables that must not reach the
    /// nested cargo.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear();
        command.envs(env::vars_os().filter(|(name, _)| is_inherited(name)));
        command.envs(self.env.iter().cloned());
        command
    }

    fn args<I: IntoIterator<Item: Into<OsString>>>(&mut self, args: I) {
        self.args.extend(args.into_iter().map(Into::into));
    }

    fn env(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        self.env.push((name.into(), value.into()));
    }
}

fn rustflags(target: &Target) -> [String; 4] {
    // The names aya-ebpf knows carry no extension letters (riscv64gc).
    let arch = if target.arch.starts_with("riscv64") { "riscv64" } else { target.arch.as_str() };
    [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // bpf-linker's default leaves every memset and memmove to a loop over bytes. Headers are
        // so short that this took a tenth of a program's time.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
    ]
}

/// Whether the nested cargo may see a variable of the outer one's environment.
///
/// The outer cargo tells a build script the host's compiler, flags, wrappers and profile; the
/// user's own settings for host builds come the same way. The accepted variables are cargo's
/// folders, its access to a registry, and the job server. So a build script and `cargo xtask` give
/// the nested cargo the same environment, and neither recompiles the other's work: aya's build
/// scripts watch HOST, which cargo sets for build scripts only.
pub fn is_inherited(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    const KEPT: [&str; 7] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "RUSTUP_HOME",
    ];
    const OUTER: [&str; 15] = [
        "AYA_BPF_TARGET_ARCH",
        "CARGO",
        "CLIPPY_",
        "DEBUG",
        "HOST",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "TARGET",
    ];
    let starts_with = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    starts_with(&KEPT) || !starts_with(&OUTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Compiler;

    fn compiler() -> Compiler {
        Compiler {
            rustc: "/tools/rustc".into(),
            cargo: "/tools/cargo".into(),
            sysroot: "/tools".into(),
        }
    }

    fn call(toolchain: &Toolchain) -> CargoCall {
        let target = Target { arch: "x86_64".into(), big_endian: false };
        CargoCall::new(toolchain, &target, Path::new("/bin/bpf-linker"))
    }

    fn value<'a>(call: &'a CargoCall, name: &str) -> Option<&'a str> {
        let (_, value) = call.env.iter().find(|(key, _)| key == name)?;
        value.to_str()
    }

    #[test]
    fn with_libcore_in_the_sysroot_only_aya_ebpf_may_use_unstable_features() {
        let call = call(&Toolchain::Sysroot(compiler()));
        assert_eq!(call.program, Path::new("/tools/cargo"));
        assert_eq!(
            call.args,
            [
                "build",
                "--release",
                "--locked",
                "--package",
                "overlay-ebpf",
                "--bin",
                "overlay-datapath",
                "--message-format=json",
                "--target",
                "bpfel-unknown-none",
            ]
        );
        assert_eq!(value(&call, "RUSTC_BOOTSTRAP"), Some("aya_ebpf"));
        assert_eq!(value(&call, "RUSTC"), Some("/tools/rustc"));
    }

    #[test]
    fn a_nightly_with_rust_src_builds_core_and_needs_no_bootstrap() {
        let call = call(&Toolchain::BuildStd(compiler()));
        assert_eq!(call.program, Path::new("/tools/cargo"));
        assert!(call.args.windows(2).any(|pair| pair == ["-Z", "build-std=core"]));
        assert_eq!(value(&call, "RUSTC_BOOTSTRAP"), None);
        assert_eq!(value(&call, "RUSTC"), Some("/tools/rustc"));
    }

    #[test]
    fn the_linker_the_flags_and_the_profile_concern_the_bpf_target_alone() {
        let call = call(&Toolchain::Sysroot(compiler()));
        let linker = value(&call, "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER");
        assert_eq!(linker, Some("/bin/bpf-linker"));
        assert_eq!(
            value(&call, "CARGO_ENCODED_RUSTFLAGS"),
            Some(
                "--cfg=bpf_target_arch=\"x86_64\"\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f-Clink-arg=--disable-expand-memcpy-in-order"
            )
        );
        assert_eq!(value(&call, "CARGO_PROFILE_RELEASE_DEBUG"), Some("2"));
        assert_eq!(value(&call, "CARGO_PROFILE_RELEASE_CODEGEN_UNITS"), Some("1"));
    }

    #[test]
    fn folders_and_features_become_arguments() {
        let call = call(&Toolchain::Sysroot(compiler()))
            .with_manifest(Path::new("/with space/Cargo.toml"))
            .with_target_dir(Path::new("/with space/target/bpf"))
            .with_llvm_dir(Path::new("/llvm"))
            .with_features(&["log", "more"]);
        let tail: Vec<_> = call.args[call.args.len() - 6..].to_vec();
        assert_eq!(
            tail,
            [
                "--manifest-path",
                "/with space/Cargo.toml",
                "--target-dir",
                "/with space/target/bpf",
                "--features",
                "log,more",
            ]
        );
        assert_eq!(value(&call, "LD_LIBRARY_PATH"), Some("/llvm"));
    }

    #[test]
    fn a_big_endian_machine_gets_its_own_target() {
        let target = Target { arch: "s390x".into(), big_endian: true };
        let call =
            CargoCall::new(&Toolchain::Sysroot(compiler()), &target, Path::new("/bin/bpf-linker"));
        assert!(call.args.contains(&"bpfeb-unknown-none".into()));
        assert!(value(&call, "CARGO_TARGET_BPFEB_UNKNOWN_NONE_LINKER").is_some());
    }

    #[test]
    fn the_outer_builds_compiler_and_flags_do_not_reach_the_nested_cargo() {
        for name in [
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_BOOTSTRAP",
            "RUSTFLAGS",
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "CARGO_PROFILE_RELEASE_DEBUG",
            "CARGO_FEATURE_LOG",
            "CARGO_INCREMENTAL",
            "RUSTUP_TOOLCHAIN",
            "LD_LIBRARY_PATH",
            "OUT_DIR",
            "HOST",
            "TARGET",
            "PROFILE",
            "CLIPPY_ARGS",
        ] {
            assert!(!is_inherited(OsStr::new(name)), "{name} is passed on");
        }
    }

    #[test]
    fn where_cargo_lives_and_how_it_reaches_a_registry_is_passed_on() {
        for name in [
            "PATH",
            "HOME",
            "CARGO_HOME",
            "RUSTUP_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_MAKEFLAGS",
            "CARGO_HTTP_PROXY",
            "CARGO_REGISTRIES_MIRROR_INDEX",
            "CARGO_SOURCE_CRATES_IO_REPLACE_WITH",
            "https_proxy",
            "RUST_BACKTRACE",
        ] {
            assert!(is_inherited(OsStr::new(name)), "{name} is held back");
        }
    }
}
