//! `cargo xtask vm-test`

pub mod bench;
mod cpio;
mod debian;
mod emulator;
mod kernel;
mod modules;
mod qemu;
mod userland;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use self::{
    kernel::Kernel,
    qemu::{Boot, Report},
    userland::Step,
};
use crate::{
    cargo::{self, Product},
    root, setup,
    test::{Program, Selection, Suite},
    totals::Totals,
};

/// Run the datapath suites and a cluster of two hosts under other kernels, in QEMU.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask vm-test
  cargo xtask vm-test --kernel 6.1 --suite datapath
  cargo xtask vm-test --kernel ./linux-image-6.6.13-cloud-amd64.deb --suite cluster published

Boots Debian's cloud kernels in QEMU, with KVM when that works here and emulated when not. The
kernels, and QEMU where it is missing, are downloaded and unpacked below target/vm, not installed.
Loads every program and reports what the kernel's verifier says of them, then runs the suites. A
machine that never comes to its first program is started once more. The last line is `N passed, N
failed`, after the names of what failed; the exit status says the same. The kernels' own messages
are in target/vm/console-*.log. Emulated, a machine runs a sixth of the fuzzer's fixed seeds, and
tests of the suites cluster and services one by one; on two cores that other programs wanted too,
the datapath suites and the two hosts took nine minutes for a kernel.")]
pub struct VmTest {
    /// A series of Debian's cloud kernels, its package, or a folder that one is unpacked in; can be
    /// given several times.
    #[arg(long = "kernel", value_name = "6.1|6.12|PATH", default_values = ["6.1", "6.12"])]
    kernels: Vec<String>,
    /// Run one suite only [default: datapath and two-hosts].
    #[arg(long, value_enum, value_name = "NAME")]
    suite: Option<VmSuite>,
    /// Power each machine off after this time and count what has not run as failed [default: 30,
    /// for services 120].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=240))]
    minutes: Option<u64>,
    /// Run only the topics whose names begin with this, or the tests whose names contain it.
    filter: Option<String>,
}

/// The suites that make sense there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum VmSuite {
    /// The eBPF programs, one by one, through BPF_PROG_TEST_RUN.
    Datapath,
    /// A cluster of two hosts, once through everything.
    TwoHosts,
    /// Clusters of a few hosts: networks, and published ports with every XDP mode.
    Cluster,
    /// Clusters of a few hosts whose services balance, change and lose nodes under load.
    Services,
}

/// The step that reports on the verifier.
const VERIFIER: &str = "verifier";

/// The cluster suite that is made for many kernels.
const TWO_HOSTS: &str = "cluster_21_two_hosts";

/// Further cluster suites that test the kernel's behaviour. The other suites behave the same on
/// every kernel.
const CLUSTER: [&str; 2] = ["cluster_20_networks", "cluster_40_published"];

/// The cluster suites of services: every path, what becomes of flows when backends change, and
/// nodes that die.
const SERVICES: [&str; 11] = [
    "cluster_30_services",
    "cluster_31_balance",
    "cluster_32_fragments",
    "cluster_34_services6",
    "cluster_35_dsr",
    "cluster_36_idle",
    "cluster_38_rolling",
    "cluster_39_sockets",
    "cluster_40_published",
    "cluster_46_xdp",
    "cluster_61_node_death",
];

impl VmTest {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode> {
        setup::ensure(match self.suite {
            Some(VmSuite::Services) => setup::Scope::BootIpvs,
            _ => setup::Scope::Boot,
        })?;
        let cache = cache();
        fs::create_dir_all(&cache)?;
        let result = self.run_in(&cache);
        root::give_back(&cache)?;
        result
    }

    fn run_in(&self, cache: &Path) -> Result<ExitCode> {
        let emulator = emulator::find(cache)?;
        let kernels = self
            .kernels
            .iter()
            .map(|asked| kernel::find(asked, cache))
            .collect::<Result<Vec<Kernel>>>()?;
        let selection = Selection::of(&[Suite::Datapath, Suite::Cluster], self.filter.as_deref())?;
        let products = cargo::build(&selection.build_args()[1..])?;
        let (steps, beside) = self.steps(&products, &selection)?;
        let room = tempfile::Builder::new().prefix("run-").tempdir_in(cache)?;
        let probe = room.path().join("probe.cpio");
        userland::write_probe(&probe, &emulator.busybox)?;
        let mut acceleration = None;
        let mut sum = Totals::default();
        let mut tables = Vec::new();
        for kernel in &kernels {
            let by = match acceleration {
                Some(by) => by,
                None => {
                    let console = cache.join("console-probe.log");
                    qemu::probe(&emulator, kernel, &probe, console)?
                }
            };
            acceleration = Some(by);
            let archive = room.path().join(format!("{}.cpio", kernel.name));
            let base = (&*emulator.busybox, &*kernel.modules);
            let also: (&[&str], &[&str]) = match self.suite {
                Some(VmSuite::Services) => (&userland::TO_COMPARE, &modules::IPVS),
                _ => (&[], &[]),
            };
            userland::write(&archive, base, &steps, &beside, also)?;
            let machine = Boot {
                emulator: &emulator,
                kernel,
                archive: &archive,
                acceleration: by,
                console: cache.join(format!("console-{}.log", kernel.name)),
                one_by_one: matches!(self.suite, Some(VmSuite::Cluster | VmSuite::Services)),
                parameters: "",
            };
            let report = self.boot(&machine, &steps)?;
            fs::remove_file(&archive)?;
            println!("{}: {}", kernel.name, report.totals);
            if let (0, 0, Some(filter)) = (report.totals.passed, report.totals.failed, &self.filter)
            {
                bail!("no test has {filter:?} in its name");
            }
            tables.push((kernel.name.clone(), report.table));
            sum.add(report.totals);
        }
        report(&tables, &sum)
    }

    /// The steps that run in the machine, and the files that they need.
    fn steps(
        &self,
        products: &[Product],
        selection: &Selection,
    ) -> Result<(Vec<Step>, Vec<PathBuf>)> {
        let testkit = cargo::binary(products, "overlay-testkit")?;
        let beside = vec![cargo::binary(products, "overlay")?];
        let mut steps = vec![Step {
            name: VERIFIER.to_owned(),
            program: testkit,
            place: "overlay-testkit".to_owned(),
            arguments: vec![VERIFIER.to_owned()],
        }];
        let tests: Vec<Program> =
            selection.programs(products)?.into_iter().filter(|one| self.wants(one)).collect();
        if tests.is_empty() {
            bail!("the build made no test programs for a machine");
        }
        steps.extend(tests.into_iter().map(|program| Step {
            name: program.label,
            program: program.executable,
            place: format!("deps/{}", program.target),
            arguments: program.arguments,
        }));
        Ok((steps, beside))
    }

    fn wants(&self, program: &Program) -> bool {
        let two_hosts = program.label == TWO_HOSTS;
        match self.suite {
            None => program.suite == Suite::Datapath || two_hosts,
            Some(VmSuite::Datapath) => program.suite == Suite::Datapath,
            Some(VmSuite::TwoHosts) => two_hosts,
            Some(VmSuite::Cluster) => CLUSTER.contains(&program.label.as_str()),
            Some(VmSuite::Services) => SERVICES.contains(&program.label.as_str()),
        }
    }

    fn boot(&self, machine: &Boot<'_>, steps: &[Step]) -> Result<Report> {
        println!("\n== Linux {} ==", machine.kernel.name);
        let names: Vec<String> = steps.iter().map(|step| step.name.clone()).collect();
        let start = Instant::now();
        let services = matches!(self.suite, Some(VmSuite::Services));
        let minutes = self.minutes.unwrap_or(if services { 120 } else { 30 });
        let report = qemu::run(machine, &names, Duration::from_secs(minutes * 60));
        println!("vm-test: {} took {} s", machine.kernel.name, start.elapsed().as_secs());
        report
    }
}

/// Kernels, what boots them, and initial file systems are kept here.
fn cache() -> PathBuf {
    overlay_build::workspace_root().join("target").join("vm")
}

fn report(tables: &[(String, Vec<String>)], sum: &Totals) -> Result<ExitCode> {
    for (kernel, table) in tables {
        println!("\nLinux {kernel}, by its verifier:");
        table.iter().for_each(|line| println!("{line}"));
    }
    println!();
    for failure in &sum.failures {
        println!("failed: {failure}");
    }
    println!("{sum}");
    Ok(if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
