//! Validates the health check that a request asks for.

use crate::{
    api::{ApiError, HealthChange},
    manager::error::invalid,
    model::{HealthCheck, Probe},
};

const DAY_MS: u64 = 24 * 3600 * 1000;
/// Shortest interval. Each check costs a connection or a process.
const MIN_INTERVAL_MS: u64 = 100;
/// Longest timeout of a check.
const MAX_TIMEOUT_MS: u64 = 3600 * 1000;
/// Most failures in a row before a backend is unhealthy.
const MAX_RETRIES: u32 = 1000;
/// Longest path and command, in bytes.
const MAX_TEXT: usize = 4096;

/// Applies the requested changes to `before`.
///
/// # Errors
/// Settings that have no meaning or are out of range.
pub(super) fn changed(
    before: Option<&HealthCheck>,
    change: &HealthChange,
) -> Result<Option<HealthCheck>, ApiError> {
    if *change == HealthChange::default() {
        return Ok(before.cloned());
    }
    let HealthChange { remove, probe, interval_ms, timeout_ms, retries, start_period_ms } = change;
    if *remove {
        let rest = HealthChange { remove: false, ..change.clone() };
        if rest != HealthChange::default() {
            return Err(invalid("a health check cannot be removed and changed at once"));
        }
        return Ok(None);
    }
    let mut check = match (before, probe) {
        (Some(before), _) => before.clone(),
        (None, Some(probe)) => HealthCheck::new(probe.clone()),
        (None, None) => {
            return Err(invalid("there is no health check whose times could be set")
                .hint("say what is checked: --health-tcp, --health-http or --health-cmd"));
        }
    };
    if let Some(probe) = probe {
        check.probe = probe.clone();
    }
    check.interval_ms = interval_ms.unwrap_or(check.interval_ms);
    check.timeout_ms = timeout_ms.unwrap_or(check.timeout_ms);
    check.retries = retries.unwrap_or(check.retries);
    check.start_period_ms = start_period_ms.unwrap_or(check.start_period_ms);
    verify(&check)?;
    Ok(Some(check))
}

fn verify(check: &HealthCheck) -> Result<(), ApiError> {
    verify_probe(&check.probe)?;
    for (what, value, range) in [
        ("interval", check.interval_ms, MIN_INTERVAL_MS..=DAY_MS),
        ("timeout", check.timeout_ms, 1..=MAX_TIMEOUT_MS),
        ("start period", check.start_period_ms, 0..=DAY_MS),
    ] {
        if !range.contains(&value) {
            return Err(invalid(format!(
                "health {what} {value} ms is out of range: {} to {} ms",
                range.start(),
                range.end()
            )));
        }
    }
    if !(1..=MAX_RETRIES).contains(&check.retries) {
        return Err(invalid(format!(
            "health retries {} is out of range: 1 to {MAX_RETRIES}",
            check.retries
        )));
    }
    Ok(())
}

fn verify_probe(probe: &Probe) -> Result<(), ApiError> {
    match probe {
        Probe::Tcp(0) | Probe::Http { port: 0, .. } => {
            Err(invalid("a health check cannot connect to port 0: it is not a port"))
        }
        Probe::Tcp(_) => Ok(()),
        Probe::Http { path, .. } => {
            let is_plain = path.bytes().all(|b| b.is_ascii_graphic());
            if path.starts_with('/') && is_plain && path.len() <= MAX_TEXT {
                return Ok(());
            }
            Err(invalid(format!("health path {path:?} is none"))
                .hint("it begins with / and has neither blanks nor letters beyond ASCII"))
        }
        Probe::Command(command) => {
            if !command.trim().is_empty() && !command.contains('\0') && command.len() <= MAX_TEXT {
                return Ok(());
            }
            Err(invalid(format!(
                "health command {command:?} is none: it has 1 to {MAX_TEXT} bytes, none of them zero"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(port: u16) -> HealthChange {
        HealthChange { probe: Some(Probe::Tcp(port)), ..HealthChange::default() }
    }

    #[test]
    fn what_is_not_asked_for_stays() {
        let first = changed(None, &HealthChange { retries: Some(7), ..tcp(80) }).expect("a check");
        let first = first.expect("one");
        assert_eq!(first, HealthCheck { retries: 7, ..HealthCheck::new(Probe::Tcp(80)) });
        assert_eq!(changed(Some(&first), &HealthChange::default()), Ok(Some(first.clone())));
        let second = changed(Some(&first), &tcp(81)).expect("a check").expect("one");
        assert_eq!(second, HealthCheck { probe: Probe::Tcp(81), ..first.clone() });
        let slower = HealthChange { interval_ms: Some(60_000), ..HealthChange::default() };
        let third = changed(Some(&second), &slower).expect("a check").expect("one");
        assert_eq!(third, HealthCheck { interval_ms: 60_000, ..second.clone() });
        let remove = HealthChange { remove: true, ..HealthChange::default() };
        assert_eq!(changed(Some(&second), &remove), Ok(None));
        assert_eq!(changed(None, &remove), Ok(None));
    }

    #[test]
    fn what_means_nothing_or_is_out_of_range_is_refused() {
        let http = |path: &str| HealthChange {
            probe: Some(Probe::Http { port: 80, path: path.to_owned() }),
            ..HealthChange::default()
        };
        let command = |text: &str| HealthChange {
            probe: Some(Probe::Command(text.to_owned())),
            ..HealthChange::default()
        };
        for (change, word) in [
            (HealthChange { retries: Some(3), ..HealthChange::default() }, "no health check"),
            (HealthChange { remove: true, ..tcp(80) }, "at once"),
            (tcp(0), "port 0"),
            (http("x"), "\"x\""),
            (http("/a b"), "\"/a b\""),
            (command(" "), "\" \""),
            (command("a\0b"), "zero"),
            (HealthChange { interval_ms: Some(99), ..tcp(80) }, "99 ms"),
            (HealthChange { timeout_ms: Some(0), ..tcp(80) }, "timeout 0 ms"),
            (HealthChange { retries: Some(0), ..tcp(80) }, "retries 0"),
            (HealthChange { start_period_ms: Some(DAY_MS + 1), ..tcp(80) }, "start period"),
        ] {
            let error = changed(None, &change).expect_err(word).to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
