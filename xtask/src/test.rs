//! `cargo xtask test`

mod select;

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

pub use self::select::{Program, Selection};
use crate::{cargo, machine, root, setup, totals::Totals};

/// Run the test suites: unit, datapath (single programs in the kernel), cluster (namespaces).
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask test
  cargo xtask test --suite datapath backend
  cargo xtask test cluster_26
  cargo xtask test cluster::t26_vxlan_interop::a_frame

The files tests/tests/SUITE/tNN_NAME.rs are topics, called SUITE_NN_NAME. The beginning of a topic's
name runs the topics whose names begin so, and builds nothing else; behind `::` is what the names of
the tests contain. Failures are printed as SUITE::tNN_NAME::TEST, which runs that test again. With
--suite, only that suite is built.

All suites run even when one fails or a part does not compile. The last line is
`N passed, N failed`, after the names of what failed; the exit status says the same. Runs as root
(with sudo when you are not): the compiler still runs as you, the test programs as root, so a file
that a test writes into the checkout (a changed snapshot) belongs to root.")]
pub struct Test {
    /// Run one suite only.
    #[arg(long, value_enum, value_name = "NAME")]
    suite: Option<Suite>,
    /// Run only the topics whose names begin with this, or the tests whose names contain it.
    filter: Option<String>,
}

/// The suites of `cargo xtask test`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Suite {
    /// The crates' own tests and the examples in their documentation.
    Unit,
    /// The eBPF programs, one by one, through BPF_PROG_TEST_RUN.
    Datapath,
    /// Clusters of network namespaces with real traffic.
    Cluster,
}

impl Test {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode> {
        setup::ensure(setup::Scope::Run)?;
        root::require("the tests make network namespaces and load eBPF programs")?;
        let suites = self.suite.map_or(Suite::ALL.to_vec(), |suite| vec![suite]);
        let selection = Selection::of(&suites, self.filter.as_deref())?;
        let (products, complete) = cargo::build_what_can_be(&selection.build_args())?;
        let programs = selection.programs(&products)?;

        let mut sum = Totals::default();
        let mut failed = Vec::new();
        if !complete {
            sum.add(Totals::broken("the build; cargo's messages are above".to_owned()));
            failed.push("build");
        }
        for &suite in selection.suites() {
            println!("\n== {} ==", suite.name());
            let totals = run_suite(suite, &programs, selection.filter())?;
            println!("{}: {totals}", suite.name());
            if totals.failed > 0 {
                failed.push(suite.name());
            }
            sum.add(totals);
        }
        self.report(&sum, &failed)
    }

    fn report(&self, sum: &Totals, failed: &[&str]) -> Result<ExitCode> {
        println!();
        if let (0, 0, Some(filter)) = (sum.passed, sum.failed, &self.filter) {
            bail!("no test has {filter:?} in its name");
        }
        for failure in &sum.failures {
            println!("failed: {failure}");
        }
        if sum.failures.iter().any(|name| Suite::of_target(name).is_ok()) {
            println!("`cargo xtask test cluster::..` or `datapath::..` runs one of them again");
        }
        if !failed.is_empty() {
            println!("failed suites: {}", failed.join(", "));
        }
        println!("{sum}");
        Ok(if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn run_suite(suite: Suite, programs: &[Program], filter: Option<&str>) -> Result<Totals> {
    let mut totals = Totals::default();
    let mut programs = programs.iter().filter(|program| program.suite == suite).peekable();
    if programs.peek().is_none() && filter.is_none() {
        totals.add(Totals::broken(format!("{} has no test programs", suite.name())));
    }
    for program in programs {
        totals.add(run_program(program)?);
    }
    if suite == Suite::Unit {
        totals.add(run_doc_tests(filter)?);
    }
    Ok(totals)
}

fn run_program(program: &Program) -> Result<Totals> {
    let Program { suite, label, target, executable, package, arguments } = program;
    println!("\n{label} ({})", executable.display());
    let mut command = machine::command(executable);
    // Cargo starts it in the same way, but not always as root.
    command.current_dir(package).env("CARGO_MANIFEST_DIR", package);
    command.args(arguments);
    let beginning = match suite {
        Suite::Unit => format!("{label}: "),
        // The filter that selects it again.
        Suite::Datapath | Suite::Cluster => format!("{target}::"),
    };
    follow(label, &beginning, command)
}

fn run_doc_tests(filter: Option<&str>) -> Result<Totals> {
    println!("\nexamples in the documentation");
    let mut cargo = cargo::command();
    cargo.args(["test", "--quiet", "--workspace", "--doc", "--"]).args(filter);
    follow("examples", "examples: ", cargo)
}

impl Suite {
    /// The suites in the order in which they run.
    const ALL: [Self; 3] = [Self::Unit, Self::Datapath, Self::Cluster];

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Datapath => "datapath",
            Self::Cluster => "cluster",
        }
    }

    /// The suite of an integration test of the tests package, by the file's name.
    fn of_target(name: &str) -> Result<Self> {
        if name.starts_with("datapath") {
            Ok(Self::Datapath)
        } else if name.starts_with("cluster") {
            Ok(Self::Cluster)
        } else {
            bail!("the test target {name} belongs to no suite: call it datapath_* or cluster_*")
        }
    }
}

/// Runs a test program, shows its output as it comes and counts. Names of tests that fail get a
/// beginning.
fn follow(name: &str, beginning: &str, mut program: Command) -> Result<Totals> {
    let mut child = program
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let stdout = child.stdout.take().context("the child has a pipe")?;
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            println!("{line}");
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let status = child.wait().with_context(|| format!("cannot wait for {name}"))?;
    // A process that a test left behind may hold the pipe open; it must not hold up the run.
    let grace = Duration::from_secs(2);
    let mut totals = Totals::default();
    while let Ok(line) = lines.recv_timeout(grace) {
        totals.read_line(beginning, &line);
    }
    if reader.is_finished() {
        let _ = reader.join();
    }
    totals.read_status(name, status);
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_name_decides_the_suite_and_an_odd_one_is_refused() {
        assert_eq!(Suite::of_target("datapath_vxlan").unwrap(), Suite::Datapath);
        assert_eq!(Suite::of_target("cluster").unwrap(), Suite::Cluster);
        let error = Suite::of_target("services").unwrap_err().to_string();
        assert!(error.contains("services belongs to no suite"), "{error}");
    }

    #[test]
    fn a_left_over_process_with_the_pipe_open_does_not_hold_up_the_run() {
        let mut shell = Command::new("sh");
        let result = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        shell.args(["-c", &format!("sleep 60 & echo $! >&2; echo '{result}'")]);
        let stderr = tempfile::NamedTempFile::new().unwrap();
        shell.stderr(stderr.reopen().unwrap());
        let totals = follow("shell", "", shell).unwrap();
        let left_over = std::fs::read_to_string(stderr.path()).unwrap();
        let _ = Command::new("kill").arg(left_over.trim()).status();
        assert_eq!(totals.to_string(), "2 passed, 0 failed");
    }
}
