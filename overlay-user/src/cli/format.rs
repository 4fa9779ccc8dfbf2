//! Tables like Docker's, JSON for programs, and times in words.

use std::io::Write as _;

use clap::{Args, ValueEnum};
use comfy_table::Table;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

/// How a listing is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns for people
    #[default]
    Table,
    /// JSON for programs
    Json,
}

/// `--format` of a listing.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct FormatArg {
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// The one format of what is JSON in any case.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum JsonOnly {
    /// JSON for programs
    Json,
}

/// `--format` of what is JSON in any case; taken so that scripts need not tell commands apart.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct JsonArg {
    /// How to print it
    #[arg(long, value_enum, default_value = "json", hide_default_value = true)]
    format: JsonOnly,
}

/// Columns without borders, three spaces apart, the header in capitals; ends with a line feed.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.iter().map(|title| title.to_uppercase()));
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// JSON with indentation; ends with a line feed.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Prints rows as the user asked for.
pub(super) fn print_rows<T: Serialize>(
    format: Format,
    rows: &[T],
    header: &[&str],
    columns: impl Fn(&T) -> Vec<String>,
) -> anyhow::Result<()> {
    match format {
        Format::Table => print(&table(header, rows.iter().map(columns))),
        Format::Json => print(&json(&rows)?),
    }
}

/// Writes to stdout. A reader that has seen enough, such as `head`, is no failure.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// A time in words: `2 minutes ago`.
pub(super) fn ago(then: Timestamp) -> String {
    relative(then, Timestamp::now())
}

/// A time to come or past in words, seen from `now`: `in 3 hours`, `2 minutes ago`.
pub(super) fn relative(then: Timestamp, now: Timestamp) -> String {
    let distance = now.duration_since(then);
    let words = in_words(distance.abs());
    match words {
        None => "now".to_owned(),
        Some(words) if distance.is_negative() => format!("in {words}"),
        Some(words) => format!("{words} ago"),
    }
}

/// The largest unit alone, as Docker does; `None` below a second.
fn in_words(distance: SignedDuration) -> Option<String> {
    const UNITS: [(i64, &str); 5] =
        [(604_800, "week"), (86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let seconds = distance.as_secs();
    let (size, unit) = UNITS.into_iter().find(|(size, _)| seconds >= *size)?;
    let count = seconds / size;
    Some(format!("{count} {unit}{}", if count == 1 { "" } else { "s" }))
}

/// Joins the items of one cell; `-` when there is none.
pub(super) fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "-".to_owned() } else { items.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_its_columns_and_has_no_trailing_blanks() {
        let rows = [("1", "ingress", "overlay"), ("22", "a", "bridge"), ("3", "long-name", "")];
        let rows = rows.map(|(a, b, c)| vec![a.to_owned(), b.to_owned(), c.to_owned()]);
        assert_eq!(
            table(&["network id", "name", "driver"], rows),
            "NETWORK ID   NAME        DRIVER\n\
             1            ingress     overlay\n\
             22           a           bridge\n\
             3            long-name\n"
        );
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_eq!(table(&["id", "name"], []), "ID   NAME\n");
    }

    #[test]
    fn times_are_told_by_their_largest_unit() {
        let now: Timestamp = "2025-03-01T12:00:00Z".parse().expect("a timestamp");
        for (seconds, words) in [
            (0, "now"),
            (1, "1 second ago"),
            (59, "59 seconds ago"),
            (60, "1 minute ago"),
            (150, "2 minutes ago"),
            (7_200, "2 hours ago"),
            (86_400, "1 day ago"),
            (1_300_000, "2 weeks ago"),
            (-86_399, "in 23 hours"),
        ] {
            let then = now - SignedDuration::from_secs(seconds);
            assert_eq!(relative(then, now), words, "{seconds} s");
        }
    }

    #[test]
    fn an_empty_list_is_a_dash() {
        assert_eq!(list(Vec::<String>::new()), "-");
        assert_eq!(list([1, 2]), "1, 2");
    }
}
