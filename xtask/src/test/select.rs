//! Selects the tests of a run: suites, topics of them, and names of tests.
//!
//! The datapath and cluster suites are test targets of one package. A topic is a file of tests: a
//! module `tNN_NAME` of the target `SUITE`, or a target `SUITE_NN_NAME` of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Suite;
use crate::{
    cargo::{self, Product},
    machine,
};

/// The package with the datapath and cluster suites.
const PACKAGE: &str = "overlay-tests";

/// The programs that these suites start.
const STARTED: [&str; 2] = ["overlay", "overlay-testkit"];

/// A file of tests of the datapath or cluster suite.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Topic {
    suite: Suite,
    /// The test target that it is in.
    target: String,
    /// Its module there; a target without modules is a topic itself.
    module: Option<String>,
}

impl Topic {
    /// `cluster_26_vxlan_interop`, whether it is a module or a target.
    fn label(&self) -> String {
        match &self.module {
            None => self.target.clone(),
            Some(module) => {
                format!("{}_{}", self.target, module.strip_prefix('t').unwrap_or(module))
            }
        }
    }
}

/// The tests to build and run.
#[derive(Debug)]
pub struct Selection {
    suites: Vec<Suite>,
    topics: Vec<Topic>,
    /// Test targets of which all topics are run.
    whole: BTreeSet<String>,
    /// Only tests whose names contain this.
    filter: Option<String>,
    targets: Vec<Target>,
}

/// A target of a package of the workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    package: String,
    kind: String,
    name: String,
    /// Whether the target has tests.
    test: bool,
}

/// One run of a test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The suite that it belongs to.
    pub suite: Suite,
    /// A topic's or a suite's name, or the package's for unit tests.
    pub label: String,
    /// The target's name.
    pub target: String,
    /// The program.
    pub executable: PathBuf,
    /// The folder of its package, in which it runs.
    pub package: PathBuf,
    /// Its arguments: which of its tests it runs.
    pub arguments: Vec<String>,
}

impl Selection {
    /// Interprets a filter: it selects the topics whose names begin with it, or the tests of
    /// `suites` with it in their names. A topic's name can be followed by `::` and a part of the
    /// tests' names.
    ///
    /// # Errors
    /// The targets cannot be listed, or one of them belongs to no suite.
    pub fn of(suites: &[Suite], filter: Option<&str>) -> Result<Self> {
        let targets = targets()?;
        let topics = topics(&targets, &overlay_build::workspace_root().join("tests/tests"))?;
        Ok(Self::among(suites, filter, topics, targets))
    }

    fn among(
        suites: &[Suite],
        filter: Option<&str>,
        all: Vec<Topic>,
        targets: Vec<Target>,
    ) -> Self {
        let count = |topics: &[Topic], target: &str| {
            topics.iter().filter(|topic| topic.target == target).count()
        };
        let mut suites = suites.to_vec();
        let mut topics = all.clone();
        topics.retain(|topic| suites.contains(&topic.suite));
        let mut filter = filter.map(str::to_owned);
        if let Some((topic, test)) = filter.as_deref().map(of_topic) {
            let is_meant = |one: &Topic| one.label().starts_with(&topic);
            if topics.iter().any(is_meant) {
                topics.retain(is_meant);
                suites.retain(|suite| topics.iter().any(|topic| topic.suite == *suite));
                filter = test;
            }
        }
        let whole = topics.iter().map(|topic| topic.target.clone());
        let whole = whole.filter(|target| count(&topics, target) == count(&all, target)).collect();
        Self { suites, topics, whole, filter, targets }
    }

    /// The suites that are run, in this order.
    pub fn suites(&self) -> &[Suite] {
        &self.suites
    }

    /// The string that the names of selected tests contain.
    pub fn filter(&self) -> Option<&str> {
        self.filter.as_deref()
    }

    /// Arguments for cargo. One call builds the tests and the programs that they start, and all
    /// calls are of the whole workspace, so that every suite's crates have the same features.
    pub fn build_args(&self) -> Vec<String> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let mut args: Vec<String> = match self.suites[..] {
            [Suite::Unit] => words(&["test", "--no-run", "--workspace", "--lib"]),
            _ => words(&["build", "--workspace", "--keep-going"]),
        };
        if self.suites == [Suite::Unit] {
            // `cargo build` has no word for the test harnesses of libraries alone.
            for target in self.targets.iter().filter(|target| target.test) {
                match target.kind.as_str() {
                    "bin" => args.extend(["--bin".to_owned(), target.name.clone()]),
                    "test" if target.package != PACKAGE => {
                        args.extend(["--test".to_owned(), target.name.clone()]);
                    }
                    _ => {}
                }
            }
        } else if self.suites.contains(&Suite::Unit) {
            args.extend(["--bins".to_owned(), "--tests".to_owned()]);
        } else {
            args.extend(STARTED.iter().flat_map(|name| ["--bin".to_owned(), (*name).to_owned()]));
            let mut tests: Vec<_> = self.topics.iter().map(|topic| topic.target.clone()).collect();
            tests.dedup();
            args.extend(tests.into_iter().flat_map(|name| ["--test".to_owned(), name]));
        }
        args
    }

    /// The runs of test programs, in order. Topics of the cluster suite are processes of their own:
    /// a process keeps its clusters to its end. Those of the datapath suite share one process and
    /// the programs that it has loaded into the kernel, unless some of them are run only.
    ///
    /// # Errors
    /// A program does not list its tests.
    pub fn programs(&self, products: &[Product]) -> Result<Vec<Program>> {
        let mut programs = Vec::new();
        let mut products: Vec<_> = products.iter().filter(|product| product.test).collect();
        // Cargo names them in the order in which they were ready.
        products.sort_by_key(|product| product.label());
        for product in products {
            let suite = suite_of(product)?;
            if !self.suites.contains(&suite) {
                continue;
            }
            let program = |label: String, arguments: Vec<String>| Program {
                suite,
                label,
                target: product.name.clone(),
                executable: product.executable.clone(),
                package: product.package.clone(),
                arguments,
            };
            let filter: Vec<String> = self.filter.iter().cloned().collect();
            if suite == Suite::Unit {
                programs.push(program(product.label(), filter));
                continue;
            }
            let topics = self.topics.iter().filter(|topic| topic.target == product.name);
            let topics: Vec<_> = topics.cloned().collect();
            let alone = topics.iter().all(|topic| topic.module.is_none());
            if alone || suite == Suite::Datapath && self.whole.contains(&product.name) {
                programs.push(program(product.name.clone(), filter));
                continue;
            }
            let tests = match self.filter {
                Some(_) => list(product)?,
                None => Vec::new(),
            };
            for topic in topics {
                let beginning = format!("{}::", topic.module.as_deref().unwrap_or_default());
                if let Some(arguments) = self.arguments(&beginning, &tests) {
                    programs.push(program(topic.label(), arguments));
                }
            }
        }
        programs.sort_by(|a, b| (a.suite, &a.label).cmp(&(b.suite, &b.label)));
        Ok(programs)
    }

    /// The arguments that run those tests of a topic that match the filter; `None` if none does.
    fn arguments(&self, beginning: &str, tests: &[String]) -> Option<Vec<String>> {
        let Some(filter) = &self.filter else { return Some(vec![beginning.to_owned()]) };
        let meant =
            tests.iter().filter(|test| test.starts_with(beginning) && test.contains(filter));
        let names: Vec<_> = meant.cloned().collect();
        (!names.is_empty()).then(|| [vec!["--exact".to_owned()], names].concat())
    }
}

/// The beginning of a topic's name, and what its tests have in theirs. A test's name as the totals
/// print it, `cluster::t26_vxlan_interop::NAME`, is that test's.
fn of_topic(filter: &str) -> (String, Option<String>) {
    let mut filter = filter.to_owned();
    for suite in ["datapath", "cluster"] {
        if let Some(rest) = filter.strip_prefix(&format!("{suite}::t")) {
            filter = format!("{suite}_{rest}");
        }
    }
    match filter.split_once("::") {
        Some((topic, test)) => (topic.to_owned(), Some(test.to_owned())),
        None => (filter, None),
    }
}

/// The suite of a test program.
fn suite_of(product: &Product) -> Result<Suite> {
    let in_package = product.package == overlay_build::workspace_root().join("tests");
    if in_package && product.kind == "test" {
        Suite::of_target(&product.name)
    } else {
        Ok(Suite::Unit)
    }
}

/// The names of a program's tests.
fn list(product: &Product) -> Result<Vec<String>> {
    let mut program = machine::command(&product.executable);
    let output = program.args(["--list", "--format", "terse"]).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {}", product.label()))?;
    if !output.status.success() {
        bail!("{} does not list its tests: {}", product.label(), output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// The topics of the datapath and cluster suites, in order; `folder` has their files.
fn topics(targets: &[Target], folder: &Path) -> Result<Vec<Topic>> {
    let mut topics = BTreeMap::new();
    for target in targets.iter().filter(|t| t.package == PACKAGE && t.kind == "test") {
        let suite = Suite::of_target(&target.name)?;
        let modules = modules(&folder.join(&target.name))?;
        let of = |module| Topic { suite, target: target.name.clone(), module };
        let found = match modules.is_empty() {
            true => vec![of(None)],
            false => modules.into_iter().map(|module| of(Some(module))).collect(),
        };
        topics.extend(found.into_iter().map(|topic| (topic.label(), topic)));
    }
    Ok(topics.into_values().collect())
}

/// The modules `tNN_NAME` of a target's folder.
fn modules(folder: &Path) -> Result<Vec<String>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut modules = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let is_topic = stem.strip_prefix('t').is_some_and(|n| n.starts_with(char::is_numeric));
        if is_topic && path.extension().is_some_and(|extension| extension == "rs") {
            modules.push(stem);
        }
    }
    Ok(modules)
}

/// The targets of the workspace's packages.
fn targets() -> Result<Vec<Target>> {
    let output = cargo::command()
        .args(["metadata", "--no-deps", "--format-version=1"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo metadata")?;
    let metadata = serde_json::from_slice(&output.stdout).context("cargo metadata failed")?;
    Ok(parse_targets(&metadata))
}

fn parse_targets(metadata: &Value) -> Vec<Target> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut targets = Vec::new();
    for package in list(&metadata["packages"]) {
        for target in list(&package["targets"]) {
            let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            targets.push(Target {
                package: word(&package["name"]),
                kind: word(&target["kind"][0]),
                name: word(&target["name"]),
                test: target["test"].as_bool().unwrap_or_default(),
            });
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn target(package: &str, kind: &str, name: &str) -> Target {
        Target { package: package.into(), kind: kind.into(), name: name.into(), test: true }
    }

    fn all() -> Vec<Target> {
        vec![
            target(PACKAGE, "lib", "overlay_tests"),
            target(PACKAGE, "test", "cluster"),
            target(PACKAGE, "test", "datapath"),
            target(PACKAGE, "test", "datapath_60_model"),
            target("overlay-user", "test", "run"),
            target("xtask", "bin", "xtask"),
            Target { test: false, ..target("overlay-user", "bin", "overlay") },
        ]
    }

    fn topic(suite: Suite, target: &str, module: Option<&str>) -> Topic {
        Topic { suite, target: target.into(), module: module.map(str::to_owned) }
    }

    fn selected(suites: &[Suite], filter: Option<&str>) -> Selection {
        let topics = vec![
            topic(Suite::Cluster, "cluster", Some("t26_interop")),
            topic(Suite::Cluster, "cluster", Some("t27_ipv6")),
            topic(Suite::Datapath, "datapath", Some("t20_tunnel")),
            topic(Suite::Datapath, "datapath_60_model", None),
        ];
        Selection::among(suites, filter, topics, all())
    }

    const ALL: [Suite; 3] = [Suite::Unit, Suite::Datapath, Suite::Cluster];

    #[test]
    fn a_filter_is_of_topics_where_it_begins_their_names_and_of_tests_elsewhere() {
        let found = |filter| {
            let selection = selected(&ALL, filter);
            let labels: Vec<_> = selection.topics.iter().map(Topic::label).collect();
            (labels.join(" "), selection.filter.clone(), selection.suites.len())
        };
        let interop = "cluster_26_interop".to_owned();
        assert_eq!(found(Some("cluster_26")), (interop.clone(), None, 1));
        let printed = found(Some("cluster::t26_interop::a_frame"));
        assert_eq!(printed, (interop, Some("a_frame".into()), 1));
        assert_eq!(found(Some("cluster")).0, "cluster_26_interop cluster_27_ipv6");
        assert_eq!(found(Some("datapath_60")).0, "datapath_60_model");
        for filter in [None, Some("backend"), Some("tunnel"), Some("overlay::api")] {
            let (topics, told, suites) = found(filter);
            assert_eq!((topics.split(' ').count(), told.as_deref(), suites), (4, filter, 3));
        }
    }

    #[test]
    fn only_what_is_run_is_built() {
        let args = |suites: &[Suite], filter| selected(suites, filter).build_args().join(" ");
        let programs = "build --workspace --keep-going --bin overlay --bin overlay-testkit";
        assert_eq!(args(&ALL, Some("cluster_26")), format!("{programs} --test cluster"));
        assert_eq!(
            args(&[Suite::Datapath], Some("backend")),
            format!("{programs} --test datapath --test datapath_60_model")
        );
        assert_eq!(
            args(&[Suite::Unit], None),
            "test --no-run --workspace --lib --test run --bin xtask"
        );
        assert_eq!(args(&ALL, None), "build --workspace --keep-going --bins --tests");
    }

    #[test]
    fn a_topics_tests_are_named_one_by_one_where_a_filter_leaves_some_out() {
        let tests = ["t26_interop::a_frame", "t27_ipv6::a_frame", "t26_interop::an_arp"];
        let tests = tests.map(str::to_owned);
        let arguments = |filter| selected(&ALL, filter).arguments("t26_interop::", &tests);
        assert_eq!(arguments(None), Some(vec!["t26_interop::".to_owned()]));
        let frame = ["--exact", "t26_interop::a_frame"].map(str::to_owned).to_vec();
        assert_eq!(arguments(Some("frame")), Some(frame));
        assert_eq!(arguments(Some("backend")), None);
    }

    #[test]
    fn a_target_in_a_folder_has_a_topic_for_each_numbered_module() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("cluster")).unwrap();
        for name in ["main.rs", "t27_ipv6.rs", "t26_interop.rs", "tools.rs", "t30.txt"] {
            fs::write(folder.path().join("cluster").join(name), "").unwrap();
        }
        let topics = topics(&all(), folder.path()).unwrap();
        let labels: Vec<_> = topics.iter().map(Topic::label).collect();
        let expected = ["cluster_26_interop", "cluster_27_ipv6", "datapath", "datapath_60_model"];
        assert_eq!(labels, expected);
        let odd = [target(PACKAGE, "test", "services")];
        assert!(super::topics(&odd, folder.path()).is_err());
    }

    #[test]
    fn targets_come_with_their_packages() {
        let metadata = json!({"packages": [
            {"name": "overlay-user", "targets": [{"kind": ["test"], "name": "run", "test": true}]},
            {"name": "overlay-tests", "targets": []},
        ]});
        assert_eq!(parse_targets(&metadata), [target("overlay-user", "test", "run")]);
    }

    #[test]
    fn the_harness_own_tests_and_other_packages_integration_tests_are_unit_tests() {
        let product = |package: &str, kind: &str, name: &str| Product {
            package: overlay_build::workspace_root().join(package),
            name: name.into(),
            kind: kind.into(),
            test: true,
            executable: "/target/debug/deps/x".into(),
        };
        assert_eq!(suite_of(&product("tests", "lib", "overlay_tests")).unwrap(), Suite::Unit);
        assert_eq!(suite_of(&product("overlay-user", "test", "datapath")).unwrap(), Suite::Unit);
        assert_eq!(suite_of(&product("tests", "test", "datapath")).unwrap(), Suite::Datapath);
        assert!(suite_of(&product("tests", "test", "services")).is_err());
    }
}
