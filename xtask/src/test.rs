//! `cargo xtask test`

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    cargo::{self, Product},
    machine, root, setup,
    totals::Totals,
};

/// Run the test suites: unit, datapath (single programs in the kernel), cluster (namespaces).
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask test
  cargo xtask test --suite datapath backend
  cargo xtask test cluster_26

All suites run even when one fails or a part does not compile. The last line is
`N passed, N failed`, after the names of what failed; the exit status says the same. Runs as root
(with sudo when you are not): the compiler still runs as you, the test programs as root, so a file
that a test writes into the checkout (a changed snapshot) belongs to root.")]
pub struct Test {
    /// Run one suite only.
    #[arg(long, value_enum, value_name = "NAME")]
    suite: Option<Suite>,
    /// Run only tests whose name contains this, or all of the files of datapath and cluster tests whose
    /// names begin with it.
    filter: Option<String>,
}

/// The suites of `cargo xtask test`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    /// The crates' own tests and the examples in their documentation.
    Unit,
    /// The eBPF programs, one by one, through BPF_PROG_TEST_RUN.
    Datapath,
    /// Clusters of network namespaces with real traffic.
    Cluster,
}

/// The package with the datapath and cluster suites.
const PACKAGE: &str = "overlay-tests";

impl Test {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode> {
        setup::ensure(setup::Scope::Run)?;
        root::require("the tests make network namespaces and load eBPF programs")?;
        let all = [Suite::Unit, Suite::Datapath, Suite::Cluster];
        let mut suites = self.suite.map_or(all.to_vec(), |suite| vec![suite]);
        let targets = test_targets()?;
        let args = build_args(self.suite, &targets)?;
        let (mut products, complete) = cargo::build_what_can_be(&args)?;
        // Cargo names them in the order in which they were ready.
        products.sort_by_key(Product::label);
        let filter = filter_for(self.filter.as_deref(), &mut products);
        if filter.is_none() && self.filter.is_some() {
            suites.retain(|suite| products.iter().any(|product| suite.owns(product)));
        }

        let mut sum = Totals::default();
        let mut failed = Vec::new();
        if !complete {
            sum.add(Totals::broken("the build; cargo's messages are above".to_owned()));
            failed.push("build");
        }
        for suite in suites {
            println!("\n== {} ==", suite.name());
            let totals = run_suite(suite, &products, filter)?;
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
        if !failed.is_empty() {
            println!("failed suites: {}", failed.join(", "));
        }
        println!("{sum}");
        Ok(if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// What the programs are told to run. A filter that is the beginning of files' names leaves these
/// files alone, all of whose tests run.
pub fn filter_for<'a>(filter: Option<&'a str>, products: &mut Vec<Product>) -> Option<&'a str> {
    let filter = filter?;
    let is_meant = |product: &Product| {
        product.test
            && product.kind == "test"
            && Suite::of_target(&product.name).is_ok()
            && product.name.starts_with(filter)
    };
    if !products.iter().any(is_meant) {
        return Some(filter);
    }
    products.retain(|product| !product.test || is_meant(product));
    None
}

fn run_suite(suite: Suite, products: &[Product], filter: Option<&str>) -> Result<Totals> {
    let mut totals = Totals::default();
    let mut programs = 0;
    for product in products.iter().filter(|product| suite.owns(product)) {
        programs += 1;
        totals.add(run_program(product, filter)?);
    }
    if programs == 0 {
        totals.add(Totals::broken(format!("{} has no test programs", suite.name())));
    }
    if suite == Suite::Unit {
        totals.add(run_doc_tests(filter)?);
    }
    Ok(totals)
}

fn run_program(product: &Product, filter: Option<&str>) -> Result<Totals> {
    let name = product.label();
    println!("\n{name} ({})", product.executable.display());
    let mut program = machine::command(&product.executable);
    // As cargo starts it, but as root where cargo is not.
    program.current_dir(&product.package).env("CARGO_MANIFEST_DIR", &product.package);
    program.args(filter);
    follow(&name, program)
}

fn run_doc_tests(filter: Option<&str>) -> Result<Totals> {
    println!("\nexamples in the documentation");
    let mut cargo = cargo::command();
    cargo.args(["test", "--quiet", "--workspace", "--doc", "--"]).args(filter);
    follow("examples", cargo)
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Datapath => "datapath",
            Self::Cluster => "cluster",
        }
    }

    /// The suite of an integration test of [`PACKAGE`], by the file's name.
    fn of_target(name: &str) -> Result<Self> {
        if name.starts_with("datapath") {
            Ok(Self::Datapath)
        } else if name.starts_with("cluster_") {
            Ok(Self::Cluster)
        } else {
            bail!("tests/tests/{name}.rs belongs to no suite: call it datapath_* or cluster_*")
        }
    }

    /// Whether a program belongs to it.
    pub fn owns(self, product: &Product) -> bool {
        let in_package = product.package == overlay_build::workspace_root().join("tests");
        let suite = if in_package && product.kind == "test" {
            Self::of_target(&product.name).ok()
        } else {
            Some(Self::Unit)
        };
        product.test && suite == Some(self)
    }
}

/// The integration tests of [`PACKAGE`].
pub fn test_targets() -> Result<Vec<String>> {
    let output = cargo::command()
        .args(["metadata", "--no-deps", "--format-version=1"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo metadata")?;
    let metadata = serde_json::from_slice(&output.stdout).context("cargo metadata failed")?;
    Ok(parse_targets(&metadata))
}

fn parse_targets(metadata: &Value) -> Vec<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    list(&metadata["packages"])
        .iter()
        .filter(|package| package["name"] == PACKAGE)
        .flat_map(|package| list(&package["targets"]))
        .filter(|target| target["kind"][0] == "test")
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect()
}

/// One call builds the tests and the programs that they start, so that both share their crates.
pub fn build_args(suite: Option<Suite>, targets: &[String]) -> Result<Vec<String>> {
    let mut args = ["--workspace", "--bins", "--keep-going"].map(str::to_owned).to_vec();
    let suite_of = |name: &String| Suite::of_target(name).map(|suite| (suite, name.clone()));
    let targets = targets.iter().map(suite_of).collect::<Result<Vec<_>>>()?;
    match suite {
        None | Some(Suite::Unit) => args.push("--tests".to_owned()),
        Some(suite) => {
            for (_, name) in targets.into_iter().filter(|(of, _)| *of == suite) {
                args.extend(["--test".to_owned(), name]);
            }
        }
    }
    Ok(args)
}

/// Runs a test program, shows its output as it comes and counts.
fn follow(name: &str, mut program: Command) -> Result<Totals> {
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
        totals.read_line(name, &line);
    }
    if reader.is_finished() {
        let _ = reader.join();
    }
    totals.read_status(name, status);
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn product(package: &str, kind: &str, name: &str) -> Product {
        Product {
            package: overlay_build::workspace_root().join(package),
            name: name.into(),
            kind: kind.into(),
            test: true,
            executable: "/target/debug/deps/x".into(),
        }
    }

    #[test]
    fn the_file_name_decides_the_suite_and_an_odd_one_is_refused() {
        assert_eq!(Suite::of_target("datapath_vxlan").unwrap(), Suite::Datapath);
        assert_eq!(Suite::of_target("cluster_services").unwrap(), Suite::Cluster);
        let error = Suite::of_target("services").unwrap_err().to_string();
        assert!(error.contains("tests/tests/services.rs belongs to no suite"), "{error}");
    }

    #[test]
    fn the_harness_own_tests_and_other_packages_integration_tests_are_unit_tests() {
        assert!(Suite::Unit.owns(&product("tests", "lib", "overlay_tests")));
        assert!(Suite::Unit.owns(&product("overlay-user", "test", "datapath_apply")));
        assert!(Suite::Datapath.owns(&product("tests", "test", "datapath_arp")));
        assert!(!Suite::Unit.owns(&product("tests", "test", "datapath_arp")));
        let binary = Product { test: false, ..product("tests", "bin", "overlay-demo") };
        assert!(!Suite::Unit.owns(&binary), "a binary is no test");
    }

    #[test]
    fn a_filter_is_of_files_where_it_begins_their_names_and_of_tests_elsewhere() {
        let all = || {
            let mut all: Vec<_> = ["datapath_20_tunnel", "cluster_26_interop", "cluster_27_ipv6"]
                .iter()
                .map(|name| product("tests", "test", name))
                .collect();
            all.push(product("overlay-user", "lib", "overlay"));
            all
        };
        let left = |filter| {
            let mut products = all();
            let filter = filter_for(filter, &mut products);
            (filter, products.into_iter().map(|product| product.name).collect::<Vec<_>>())
        };
        assert_eq!(left(Some("cluster_26")), (None, vec!["cluster_26_interop".to_owned()]));
        assert_eq!(left(Some("cluster")).1.len(), 2);
        for filter in [None, Some("backend"), Some("overlay"), Some("tunnel")] {
            let (told, products) = left(filter);
            assert_eq!((told, products.len()), (filter, 4));
        }
    }

    #[test]
    fn one_suite_builds_only_its_own_tests() {
        let targets = names(&["cluster_dns", "datapath_arp", "datapath_vxlan"]);
        assert_eq!(
            build_args(Some(Suite::Datapath), &targets).unwrap(),
            names(&["--workspace", "--bins", "--keep-going"])
                .into_iter()
                .chain(names(&["--test", "datapath_arp", "--test", "datapath_vxlan"]))
                .collect::<Vec<_>>()
        );
        assert_eq!(build_args(None, &targets).unwrap()[3..], ["--tests"]);
        assert!(build_args(None, &names(&["other"])).is_err());
    }

    #[test]
    fn the_targets_come_from_the_tests_package_alone() {
        let metadata = json!({"packages": [
            {"name": "overlay-user", "targets": [{"kind": ["test"], "name": "api"}]},
            {"name": "overlay-tests", "targets": [
                {"kind": ["lib"], "name": "overlay_tests"},
                {"kind": ["test"], "name": "cluster_dns"},
            ]},
        ]});
        assert_eq!(parse_targets(&metadata), ["cluster_dns"]);
    }

    #[test]
    fn a_left_over_process_with_the_pipe_open_does_not_hold_up_the_run() {
        let mut shell = Command::new("sh");
        let result = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        shell.args(["-c", &format!("sleep 60 & echo $! >&2; echo '{result}'")]);
        let stderr = tempfile::NamedTempFile::new().unwrap();
        shell.stderr(stderr.reopen().unwrap());
        let totals = follow("shell", shell).unwrap();
        let left_over = std::fs::read_to_string(stderr.path()).unwrap();
        let _ = Command::new("kill").arg(left_over.trim()).status();
        assert_eq!(totals.to_string(), "2 passed, 0 failed");
    }
}
