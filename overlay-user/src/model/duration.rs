//! Times as users write them.

use std::time::Duration;

/// A time such as `24h`, `5s`, `500ms` or `1h30m`.
///
/// # Errors
/// The text is no time; the error quotes it and shows how to write one.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; write it as 24h, 90s or 500ms");
    let duration = text.parse::<jiff::SignedDuration>().map_err(|_| wrong())?;
    Duration::try_from(duration).map_err(|_| wrong())
}

/// As [`duration`], in milliseconds, in which the API has times.
///
/// # Errors
/// As [`duration`].
pub fn millis(text: &str) -> Result<u64, String> {
    duration(text).map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
