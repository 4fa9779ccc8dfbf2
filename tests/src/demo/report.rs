//! Steps as they happen, the table at the end and the count.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

use anyhow::bail;
use comfy_table::{CellAlignment, Table, presets};

use crate::wait::check_interrupted;

/// One check.
struct Item {
    step: usize,
    what: String,
    passed: bool,
    detail: String,
    took: Duration,
}

/// All checks so far.
#[derive(Default)]
pub struct Report {
    steps: Vec<String>,
    items: Vec<Item>,
}

impl Report {
    /// A new step begins.
    pub fn step(&mut self, title: &str) {
        self.steps.push(title.to_owned());
        println!("\n{}. {title}", self.steps.len());
    }

    /// One counted check; its text describes the result. True if it passed.
    ///
    /// # Errors
    /// After SIGINT only: the walk-through then ends.
    pub fn check(
        &mut self,
        what: &str,
        check: impl FnOnce() -> anyhow::Result<String>,
    ) -> anyhow::Result<bool> {
        Ok(self.get(what, || check().map(|detail| ((), detail)))?.is_some())
    }

    /// One counted check that what follows depends on.
    ///
    /// # Errors
    /// If it fails.
    pub fn need<T>(
        &mut self,
        what: &str,
        act: impl FnOnce() -> anyhow::Result<(T, String)>,
    ) -> anyhow::Result<T> {
        match self.get(what, act)? {
            Some(value) => Ok(value),
            None => bail!("what follows needs: {what}"),
        }
    }

    fn get<T>(
        &mut self,
        what: &str,
        act: impl FnOnce() -> anyhow::Result<(T, String)>,
    ) -> anyhow::Result<Option<T>> {
        check_interrupted()?;
        let start = Instant::now();
        let result = act();
        check_interrupted()?;
        let took = start.elapsed();
        let (value, passed, detail) = match result {
            Ok((value, detail)) => (Some(value), true, detail),
            Err(error) => (None, false, format!("{error:#}")),
        };
        let mark = if passed { "ok  " } else { "FAIL" };
        println!("   {mark} {:6.2} s  {what}", took.as_secs_f64());
        for line in detail.lines() {
            println!("                  {line}");
        }
        self.items.push(Item {
            step: self.steps.len(),
            what: what.to_owned(),
            passed,
            detail,
            took,
        });
        Ok(value)
    }

    /// The table.
    pub fn table(&self) {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["step", "passed", "failed", "time"]);
        for (index, title) in self.steps.iter().enumerate() {
            let of_step = || self.items.iter().filter(move |item| item.step == index + 1);
            let passed = of_step().filter(|item| item.passed).count();
            let took: Duration = of_step().map(|item| item.took).sum();
            table.add_row([
                format!("{}. {title}", index + 1),
                passed.to_string(),
                (of_step().count() - passed).to_string(),
                format!("{:.1} s", took.as_secs_f64()),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!("\n{table}");
        for item in self.items.iter().filter(|item| !item.passed) {
            println!("FAILED: {}\n        {}", item.what, item.detail.replace('\n', "\n        "));
        }
    }

    /// The walk-through had to stop: one more failure, unless it was already counted.
    pub fn broken_off(&mut self, error: &anyhow::Error) {
        println!("BROKEN OFF: {error:#}");
        if self.items.iter().all(|item| item.passed) {
            self.items.push(Item {
                step: self.steps.len(),
                what: "the walk-through".to_owned(),
                passed: false,
                detail: format!("{error:#}"),
                took: Duration::ZERO,
            });
        }
    }

    /// The last line; true if all passed.
    pub fn summary(&self) -> bool {
        let failed = self.items.iter().filter(|item| !item.passed).count();
        println!("{} passed, {failed} failed", self.items.len() - failed);
        failed == 0
    }
}

/// Compares the expected value with the real one.
///
/// # Errors
/// Both values.
pub fn expect<T: PartialEq<U> + Debug, U: Debug>(
    what: &str,
    expected: T,
    seen: U,
) -> anyhow::Result<()> {
    if expected == seen {
        return Ok(());
    }
    bail!("{what}\nexpected: {expected:?}\nseen:     {seen:?}")
}
