//! Times in the notation of the command line.

use std::time::Duration;

/// Parses a time such as `24h`, `5s`, `500ms` or `1h30m`.
///
/// # Errors
/// The text is not a time. The error quotes it and shows the notation.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; write it as 24h, 90s or 500ms");
    let duration = text.parse::<jiff::SignedDuration>().map_err(|_| wrong())?;
    Duration::try_from(duration).map_err(|_| wrong())
}

/// Parses a time like [`duration`] and returns it in milliseconds, the unit of the API.
///
/// # Errors
/// Same as [`duration`].
pub fn millis(text: &str) -> Result<u64, String> {
    duration(text).map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
