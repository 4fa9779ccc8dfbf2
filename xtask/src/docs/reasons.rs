//! docs/reasons.md: every reason for which a packet is forwarded or dropped.

use std::fmt::Write as _;

use overlay_common::{Direction, Reason};

/// The path of the page.
pub const PAGE: &str = "docs/reasons.md";

/// The page.
pub fn page() -> String {
    let mut page = "# Reasons\n\n\
         The programs count every packet under one of these reasons, forwarded or dropped, in packets \
         and bytes. `overlay bpf counters` shows them, `--by endpoint` and `--by network` show whose \
         packets they were, and `overlay monitor` shows drops as they happen. A reason keeps its \
         number for as long as the map layout keeps its version.\n\n\
         | number | name | direction | meaning |\n|---:|---|---|---|\n"
        .to_owned();
    for reason in Reason::ALL {
        let direction = match reason.direction() {
            Direction::Forward => "forward",
            Direction::Drop => "drop",
        };
        let (number, name, meaning) = (*reason as u32, reason.name(), reason.description());
        let _ = writeln!(page, "| {number} | `{name}` | {direction} | {meaning} |");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_line() {
        let page = page();
        assert!(
            page.contains(
                "| 11 | `truncated` | drop | The packet is shorter than its headers say. |"
            )
        );
        assert_eq!(page.lines().filter(|line| line.contains(" | `")).count(), Reason::ALL.len());
    }
}
