//! The form of errors for the user: `overlay: MESSAGE`, and the remedy on the next line, on stderr.

use std::process::ExitCode;

use crate::api::{ApiError, ErrorCode};

/// A failure with an exit status of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Exit {
    status: u8,
    message: String,
}

/// A failure with an exit status of its own.
pub(super) fn exit_with(status: u8, message: impl Into<String>) -> anyhow::Error {
    Exit { status, message: message.into() }.into()
}

/// A command line that parses but contradicts itself. Exit status 2.
pub(super) fn usage_error(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    exit_with(2, format!("{}\n{}", message.into(), hint.into()))
}

/// A rejected request: the request, the problem and the remedy. Exit status 1.
pub(super) fn refuse(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    ApiError::new(ErrorCode::Invalid, message).hint(hint).into()
}

/// No such object: names the requested one and the command that lists the existing ones.
pub(super) fn not_found(what: &str, name: &str) -> anyhow::Error {
    ApiError::new(ErrorCode::NotFound, format!("there is no {what} {name:?}"))
        .hint(format!("`overlay {what} ls` lists them"))
        .into()
}

/// Prints an error and gives the exit status.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("overlay: {error:#}");
    let own = error.chain().find_map(|cause| cause.downcast_ref::<Exit>());
    ExitCode::from(own.map_or(1, |exit| exit.status))
}

/// Prints the parser's message (help and version included) and returns the exit status.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A reader that has seen enough, such as `head`, is no failure.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    eprint!("overlay: {}", text.strip_prefix("error: ").unwrap_or(&text));
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn an_api_error_in_a_chain_ends_with_its_hint_on_a_line_of_its_own() {
        let error = Err::<(), _>(refuse("no room", "make some")).context("attach").unwrap_err();
        assert_eq!(format!("overlay: {error:#}"), "overlay: attach: no room\nmake some");
    }

    #[test]
    fn usage_exits_with_2_failures_with_their_own_status_and_everything_else_with_1() {
        assert_eq!(report(&usage_error("a", "b")), ExitCode::from(2));
        assert_eq!(report(&exit_with(127, "a").context("b")), ExitCode::from(127));
        assert_eq!(report(&refuse("a", "b")), ExitCode::from(1));
    }
}
