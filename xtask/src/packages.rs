//! The Debian packages a machine needs, and their installation.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use overlay_build::{DEBIAN_PACKAGES, Error, RUSTUP_COMMAND};

use crate::{machine, root, setup::Scope};

/// Something that is missing, with the packages that bring it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Debian's packages.
    pub packages: &'static [&'static str],
    /// Its purpose.
    pub why: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// rustc needs `cc` and libc's start files to link host programs.
    CToolchain,
    /// A compiler for the eBPF programs, of whatever origin.
    Compiler,
    /// A program by its name.
    Program(&'static str),
}

const COMPILER: Need = Need {
    packages: &DEBIAN_PACKAGES,
    why: "rustc, cargo and libcore that compile the eBPF programs without a nightly",
    kind: Kind::Compiler,
};

const fn program(name: &'static str, package: &'static [&'static str], why: &'static str) -> Need {
    Need { packages: package, why, kind: Kind::Program(name) }
}

const TO_BUILD: [Need; 2] = [
    Need {
        packages: &["gcc", "libc6-dev"],
        why: "the C compiler and libc that rustc links programs with",
        kind: Kind::CToolchain,
    },
    COMPILER,
];

const TO_RUN: [Need; 7] = [
    program("ip", &["iproute2"], "network namespaces and links of the demo and the tests"),
    program("ethtool", &["ethtool"], "offloads of the links in the tests"),
    program("bpftool", &["bpftool"], "a look at the loaded programs and maps"),
    program("tcpdump", &["tcpdump"], "a look at the packets of a kept demo"),
    program("curl", &["curl"], "requests to the services of a kept demo"),
    program("etcd", &["etcd-server"], "the etcd service of the demo"),
    program("etcdctl", &["etcd-client"], "put and get in the demo's etcd"),
];

/// nftables, which services are compared with.
const TO_COMPARE: Need =
    program("nft", &["nftables"], "load balancing by nftables, which services are compared with");

/// IPVS's tool for a booted machine.
const TO_COMPARE_BOOTED: Need =
    program("ipvsadm", &["ipvsadm"], "load balancing by IPVS, which services are compared with");

/// The client and the server of the comparison of services, also in a booted machine.
const TO_ASK: [Need; 2] = [
    program("nginx", &["nginx"], "the web server that services are compared with"),
    program("wrk", &["wrk"], "requests to that web server"),
];

/// The tools of a booted machine, which are copied from this machine. The emulator is not
/// installed.
const TO_BOOT: [Need; 2] = [
    program("ip", &["iproute2"], "network namespaces and links of the tests"),
    program("ethtool", &["ethtool"], "offloads of the links in the tests"),
];

/// The needs that this machine lacks.
///
/// # Errors
/// `OVERLAY_BPF_OBJ` names something that is no object.
pub fn missing(scope: Scope) -> Result<Vec<Need>> {
    let has_compiler = match overlay_build::choose() {
        Ok(_) => true,
        Err(Error::NoCompiler { .. }) => false,
        Err(error) => return Err(error.into()),
    };
    let is_here = |need: &Need| match need.kind {
        Kind::CToolchain => machine::has_c_toolchain(),
        Kind::Compiler => has_compiler,
        Kind::Program(name) => machine::find_program(name).is_some(),
    };
    Ok(needs(scope).into_iter().filter(|need| !is_here(need)).collect())
}

fn needs(scope: Scope) -> Vec<Need> {
    let further: &[Need] = match scope {
        Scope::Build => &[],
        Scope::Run => &TO_RUN,
        Scope::Compare => {
            let compare = TO_RUN.into_iter().chain([TO_COMPARE]).chain(TO_ASK);
            return TO_BUILD.into_iter().chain(compare).collect();
        }
        Scope::Boot => &TO_BOOT,
        Scope::BootIpvs => {
            return TO_BUILD.into_iter().chain(TO_BOOT).chain([TO_COMPARE_BOOTED]).collect();
        }
        Scope::CompareBooted => {
            let compare = TO_BOOT.into_iter().chain([TO_COMPARE_BOOTED]).chain(TO_ASK);
            return TO_BUILD.into_iter().chain(compare).collect();
        }
    };
    TO_BUILD.into_iter().chain(further.iter().copied()).collect()
}

/// Installs missing packages.
///
/// # Errors
/// This is no Debian, or apt-get fails.
pub fn install(missing: &[Need]) -> Result<()> {
    for need in missing {
        println!("setup: installing {}: {}", need.packages.join(" "), need.why);
    }
    if machine::find_program("apt-get").is_none() {
        bail!(
            "there is no apt-get on this machine: install what is named above by hand. For the \
             compiler of the eBPF programs: {RUSTUP_COMMAND}"
        );
    }
    update_lists()?;
    let mut wanted = missing.to_vec();
    if let Some(at) = wanted.iter().position(|need| *need == COMPILER)
        && !apt_knows(COMPILER.packages)
    {
        wanted.remove(at);
        install_nightly()?;
    }
    let packages: Vec<&str> = wanted.iter().flat_map(|need| need.packages).copied().collect();
    if !packages.is_empty() {
        install_packages(&packages)?;
    }
    Ok(())
}

/// Fetches apt's lists of packages. Old ones will do where that fails.
///
/// # Errors
/// There is no apt-get.
pub fn update_lists() -> Result<()> {
    if !apt(&["update", "-qq"])? {
        eprintln!("setup: apt-get update failed; going on with the package lists that are there");
    }
    Ok(())
}

/// Packages that come with a service of the host's, and its name.
const SERVICES: [(&str, &str); 3] =
    [("etcd-server", "etcd"), ("nginx", "nginx"), ("ipvsadm", "ipvsadm")];

/// Services that come with the packages must not run: the demo starts its own etcd if it needs one,
/// and the comparison of services its own nginx. invoke-rc.d and deb-systemd-invoke ask policy-rc.d
/// before they start a service, and 101 means "no" to them. It does not prevent enabling, so
/// services of newly installed packages are disabled again. The shell's trap removes the file also
/// when the installation is interrupted. The words before `--` are `PACKAGE:SERVICE`, and those
/// after it are the packages.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod 755 "$policy" || exit 1
fi
services=
while [ "$1" != -- ]; do services="$services $1"; shift; done
shift
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends --no-remove \
    -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" || exit 1
for pair in $services; do
    package=${pair%:*} service=${pair#*:}
    if [ -d /run/systemd/system ]; then
        systemctl disable --now --quiet "$service.service"
    else
        # The helper works for nobody but a package's own scripts.
        DPKG_MAINTSCRIPT_PACKAGE=$package deb-systemd-helper disable "$service.service" &&
            update-rc.d "$service" disable
    fi >/dev/null 2>&1 || echo "setup: $service.service could not be disabled" >&2
done
"#;

fn install_packages(packages: &[&str]) -> Result<()> {
    let services = services_of(packages);
    for (package, service) in &services {
        println!(
            "setup: the {service} service of Debian's package {package} is neither started nor \
             enabled; a temporary /usr/sbin/policy-rc.d keeps services from starting meanwhile"
        );
    }
    let status = machine::command(Path::new("sh"))
        .args(["-c", INSTALL, "setup"])
        .args(services.iter().map(|(package, service)| format!("{package}:{service}")))
        .arg("--")
        .args(packages)
        .stdin(Stdio::null())
        .status()
        .context("cannot run sh")?;
    if !status.success() {
        bail!(
            "apt-get could not install {} (its messages are above). It was told to remove nothing: \
             where it would have to, for example the rustc, cargo or rustup packages of the \
             distribution, remove those yourself or use a nightly: {RUSTUP_COMMAND}",
            packages.join(" ")
        );
    }
    Ok(())
}

/// The services that come with packages.
fn services_of(packages: &[&str]) -> Vec<(&'static str, &'static str)> {
    SERVICES.into_iter().filter(|(package, _)| packages.contains(package)).collect()
}

/// Newer distributions have other packages; there rustup's nightly is the way.
fn install_nightly() -> Result<()> {
    println!("setup: apt-get has no {}; {RUSTUP_COMMAND}", COMPILER.packages.join(" "));
    let mut words = RUSTUP_COMMAND.split(' ');
    let program = words.next().unwrap_or_default();
    if machine::find_program(program).is_none() {
        bail!("there is no {program} either: see https://rustup.rs, then run the line above");
    }
    let mut rustup = Command::new(program);
    rustup.args(words).stdin(Stdio::null());
    root::step_down(&mut rustup);
    let status = rustup.status().context("cannot run rustup")?;
    if !status.success() {
        bail!("{RUSTUP_COMMAND} ended with {status}");
    }
    Ok(())
}

fn apt(args: &[&str]) -> Result<bool> {
    let mut apt = machine::command(Path::new("apt-get"));
    apt.args(["-o", "DPkg::Lock::Timeout=300"]).args(args).stdin(Stdio::null());
    Ok(apt.status().context("cannot run apt-get")?.success())
}

/// Whether every package can be installed from the configured sources.
fn apt_knows(packages: &[&str]) -> bool {
    let mut apt = machine::command(Path::new("apt-get"));
    apt.args(["install", "--simulate", "-qq", "--no-install-recommends"]).args(packages);
    let quiet = apt.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_needs_no_more_than_the_compilers() {
        let packages: Vec<&str> =
            needs(Scope::Build).iter().flat_map(|need| need.packages).copied().collect();
        assert_eq!(
            packages,
            ["gcc", "libc6-dev", "rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"]
        );
    }

    #[test]
    fn services_of_the_packages_and_no_others_are_disabled() {
        assert_eq!(services_of(&["curl", "nginx", "wrk"]), [("nginx", "nginx")]);
        let all = services_of(&["etcd-server", "nginx"]);
        assert_eq!(all, [("etcd-server", "etcd"), ("nginx", "nginx")]);
        assert_eq!(services_of(&["ipvsadm"]), [("ipvsadm", "ipvsadm")]);
        assert_eq!(services_of(&["etcd-client"]), []);
    }

    #[test]
    fn every_package_has_its_reason_and_is_named_once() {
        let booted = [Scope::Boot, Scope::BootIpvs, Scope::CompareBooted];
        for scope in [Scope::Run, Scope::Compare].into_iter().chain(booted) {
            let all = needs(scope);
            let mut packages: Vec<&str> =
                all.iter().flat_map(|need| need.packages).copied().collect();
            let count = packages.len();
            packages.sort_unstable();
            packages.dedup();
            assert_eq!(packages.len(), count);
            assert!(all.iter().all(|need| !need.why.is_empty()));
        }
    }
}
