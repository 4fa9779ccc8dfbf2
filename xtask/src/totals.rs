//! Adding up what test programs report.

use std::{fmt, process::ExitStatus};

/// The counts of one or more test programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, and programs that gave no result.
    pub failed: u64,
    /// Tests that were left out by their own mark.
    pub skipped: u64,
    /// The names of what failed.
    pub failures: Vec<String>,
}

impl Totals {
    /// Adds another's counts.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
    }

    /// Counts something that was to run and did not as one failure.
    pub fn broken(what: String) -> Self {
        Self { failed: 1, failures: vec![what], ..Self::default() }
    }

    /// Takes in one line of a test program's output. `beginning` goes before a failed test's name.
    pub fn read_line(&mut self, beginning: &str, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ").and_then(parse_result) {
            let [passed, failed, skipped] = counts;
            self.passed += passed;
            self.failed += failed;
            self.skipped += skipped;
        } else if let Some(test) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(format!("{beginning}{test}"));
        }
    }

    /// Reads the exit status of a test program. A failure that the program did not count is one
    /// failure.
    pub fn read_status(&mut self, program: &str, status: ExitStatus) {
        if !status.success() && self.failed == 0 {
            self.add(Self::broken(format!("{program} ended with {status} and no failed test")));
        }
    }
}

/// `3 passed, 1 failed`, with `, 2 skipped` if there are some.
impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// Passed, failed and ignored of `ok. 3 passed; 0 failed; 1 ignored; 0 measured; ..`.
fn parse_result(text: &str) -> Option<[u64; 3]> {
    let (_, counts) = text.split_once(". ")?;
    let count = |what: &str| {
        let field = counts.split(';').find_map(|field| field.trim().strip_suffix(what))?;
        field.trim().parse().ok()
    };
    Some([count("passed")?, count("failed")?, count("ignored")?])
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    const FAILING: &str = "\
running 3 tests
test arp::answers_for_the_gateway ... ok
test vxlan::decaps ... FAILED
test vxlan::slow ... ignored

failures:

---- vxlan::decaps stdout ----
test result: the words of a test, not a result

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";

    fn read(text: &str) -> Totals {
        let mut totals = Totals::default();
        text.lines().for_each(|line| totals.read_line("datapath::", line));
        totals
    }

    #[test]
    fn counts_and_names_come_from_the_test_programs_own_lines() {
        let totals = read(FAILING);
        assert_eq!(totals.failures, ["datapath::vxlan::decaps"]);
        assert_eq!(totals.to_string(), "1 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn programs_add_up_and_no_skipped_test_is_not_mentioned() {
        let ok = "test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 1.00s";
        let mut totals = read(ok);
        totals.add(read(ok));
        assert_eq!(totals.to_string(), "80 passed, 0 failed");
    }

    #[test]
    fn a_program_that_dies_without_a_result_is_a_failure() {
        let mut totals = read("running 3 tests\ntest one ... ok");
        totals.read_status("cluster_dns", ExitStatus::from_raw(6));
        assert_eq!(totals.to_string(), "0 passed, 1 failed");
        assert!(totals.failures[0].starts_with("cluster_dns ended with signal: 6"), "{totals:?}");
    }

    #[test]
    fn a_failing_status_is_not_counted_twice() {
        let mut totals = read(FAILING);
        totals.read_status("datapath", ExitStatus::from_raw(101 << 8));
        assert_eq!(totals.failed, 1);
    }
}
