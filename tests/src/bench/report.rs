//! The results of a run: as JSON and as a table.

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::{Deserialize, Serialize};

use super::stats::{Summary, ratio};

/// The subjects of measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The two hosts themselves.
    Underlay,
    /// Containers on the kernel's vxlan device, a bridge and a veth.
    KernelVxlan,
    /// Containers on overlay.
    Overlay,
}

impl Subject {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Underlay, Self::KernelVxlan, Self::Overlay];
}

/// One value of one round.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name of the case.
    pub case: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// The subject of the measurement.
    pub subject: Subject,
    /// The value.
    pub value: f64,
}

/// All rounds of one case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// The hosts themselves.
    pub underlay: Option<Summary>,
    /// The kernel's vxlan device.
    pub kernel_vxlan: Option<Summary>,
    /// Ours.
    pub overlay: Option<Summary>,
    /// Ratio of the medians.
    pub overlay_vs_kernel_vxlan: Option<f64>,
    /// Ratio of the medians.
    pub overlay_vs_underlay: Option<f64>,
}

/// The conditions of the measurement.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// Number of CPUs.
    pub cpus: usize,
    /// How many rounds.
    pub rounds: u32,
    /// Whether sender and receiver shared a CPU: `together` or `apart`.
    pub placement: String,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The conditions of the measurement.
    #[serde(flatten)]
    pub machine: Machine,
    /// The cases, in the order of the run.
    pub cases: Vec<Case>,
}

impl Report {
    /// Sums up the samples.
    pub fn new(machine: Machine, samples: &[Sample]) -> Self {
        let mut names: Vec<(&str, &str)> = Vec::new();
        for sample in samples {
            if !names.contains(&(sample.case, sample.unit)) {
                names.push((sample.case, sample.unit));
            }
        }
        let cases = names.into_iter().map(|(name, unit)| Case::new(name, unit, samples)).collect();
        Self { machine, cases }
    }

    /// A table in Markdown: medians with the smallest and the largest round.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header([
            "case",
            "unit",
            "underlay",
            "kernel vxlan",
            "overlay",
            "vs kernel vxlan",
            "vs underlay",
        ]);
        for case in &self.cases {
            table.add_row([
                case.name.to_owned(),
                case.unit.to_owned(),
                shown(case.underlay),
                shown(case.kernel_vxlan),
                shown(case.overlay),
                times(case.overlay_vs_kernel_vxlan),
                times(case.overlay_vs_underlay),
            ]);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string()
    }
}

impl Case {
    fn new(name: &'static str, unit: &'static str, samples: &[Sample]) -> Self {
        let of = |subject| {
            let values: Vec<f64> = samples
                .iter()
                .filter(|sample| sample.case == name && sample.subject == subject)
                .map(|sample| sample.value)
                .collect();
            Summary::of(&values)
        };
        let (underlay, kernel_vxlan) = (of(Subject::Underlay), of(Subject::KernelVxlan));
        let overlay = of(Subject::Overlay);
        Self {
            name,
            unit,
            underlay,
            kernel_vxlan,
            overlay,
            overlay_vs_kernel_vxlan: ratio(overlay, kernel_vxlan),
            overlay_vs_underlay: ratio(overlay, underlay),
        }
    }
}

/// Three digits that matter.
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 || v == 0.0 => 2,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

/// A median with the smallest and the largest round, or a dash.
pub fn shown(summary: Option<Summary>) -> String {
    summary.map_or_else(
        || "-".to_owned(),
        |s| format!("{} ({} to {})", number(s.median), number(s.min), number(s.max)),
    )
}

/// A ratio with two decimals, or a dash.
pub fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let sample = |case, subject, value| Sample { case, unit: "Gbit/s", subject, value };
        let samples = [
            sample("tcp_1_stream", Subject::Overlay, 24.0),
            sample("tcp_1_stream", Subject::Underlay, 32.0),
            sample("tcp_1_stream", Subject::KernelVxlan, 16.0),
            sample("tcp_1_stream", Subject::Overlay, 20.0),
            sample("tcp_1_stream", Subject::Overlay, 28.0),
            sample("from_container", Subject::Overlay, 200.0),
        ];
        let kernel = "6.18".to_owned();
        Report::new(Machine { kernel, cpus: 2, rounds: 3, placement: "apart".to_owned() }, &samples)
    }

    #[test]
    fn numbers_have_the_digits_that_matter() {
        let shown = [123.4, 12.34, 1.234, 0.1234, 0.01234, 0.0].map(number);
        assert_eq!(shown, ["123", "12.3", "1.23", "0.12", "0.0123", "0.00"]);
    }

    #[test]
    fn json_has_medians_spreads_and_ratios_of_every_case() {
        let json = serde_json::to_value(report()).expect("JSON");
        let expected = serde_json::json!({
            "name": "tcp_1_stream",
            "unit": "Gbit/s",
            "underlay": { "median": 32.0, "min": 32.0, "max": 32.0 },
            "kernel_vxlan": { "median": 16.0, "min": 16.0, "max": 16.0 },
            "overlay": { "median": 24.0, "min": 20.0, "max": 28.0 },
            "overlay_vs_kernel_vxlan": 1.5,
            "overlay_vs_underlay": 0.75,
        });
        assert_eq!(json["cases"][0], expected);
        assert_eq!(json["cases"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn a_subject_that_was_not_measured_is_null_and_a_dash() {
        let report = report();
        let json = serde_json::to_value(&report).expect("JSON");
        let case = &json["cases"][1];
        assert!(case["kernel_vxlan"].is_null() && case["overlay_vs_underlay"].is_null(), "{case}");
        let row = report.table();
        let row = row.lines().last().expect("a row");
        assert_eq!(row.matches(" - ").count(), 4, "{row}");
        assert!(row.contains("200 (200 to 200)"), "{row}");
    }
}
