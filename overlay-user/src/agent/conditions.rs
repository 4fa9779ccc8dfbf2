//! The agent's current failures, for its status and its log.

use std::{collections::BTreeMap, fmt::Display, sync::Mutex};

use crate::lock::lock;

/// Failures that last, by the activity that fails.
#[derive(Default)]
pub struct Conditions(Mutex<BTreeMap<&'static str, String>>);

impl Conditions {
    /// Records how an activity ended.
    pub fn note<E: Display>(&self, activity: &'static str, outcome: Result<(), E>) {
        match outcome {
            Ok(()) => self.clear(activity),
            Err(error) => self.fail(activity, error),
        }
    }

    /// Records a failure until [`Conditions::clear`], and logs it when it is new.
    pub fn fail(&self, activity: &'static str, what: impl ToString) {
        let what = what.to_string();
        let mut failures = lock(&self.0);
        if failures.get(activity) != Some(&what) {
            tracing::warn!("{activity}: {what}");
            failures.insert(activity, what);
        }
    }

    /// Forgets the failure of an activity.
    pub fn clear(&self, activity: &'static str) {
        if lock(&self.0).remove(activity).is_some() {
            tracing::info!("{activity}: overcome");
        }
    }

    /// All failures in one line; `None` when nothing fails.
    pub fn summary(&self) -> Option<String> {
        let failures = lock(&self.0);
        let lines: Vec<_> =
            failures.iter().map(|(doing, what)| format!("{doing}: {what}")).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_shown_until_its_activity_succeeds() {
        let conditions = Conditions::default();
        assert_eq!(conditions.summary(), None);
        conditions.fail("reading", "no file");
        conditions.note("writing", Err("no room"));
        conditions.fail("reading", "no access");
        assert_eq!(conditions.summary().as_deref(), Some("reading: no access; writing: no room"));
        conditions.note("reading", Ok::<(), &str>(()));
        conditions.clear("writing");
        assert_eq!(conditions.summary(), None);
    }
}
