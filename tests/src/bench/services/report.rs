//! The results of a run: as JSON and as a table.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::{Deserialize, Serialize};

use super::super::{
    report::{Machine, shown, times},
    stats::{Summary, ratio},
};

/// How a backend is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// By its own address.
    Direct,
    /// By nftables, over the kernel's vxlan device.
    Nftables,
    /// By IPVS, over the kernel's vxlan device.
    Ipvs,
    /// By a service of overlay's.
    Overlay,
}

impl Subject {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Direct, Self::Nftables, Self::Ipvs, Self::Overlay];
}

/// One value of one round.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name of the case.
    pub case: String,
    /// Its unit.
    pub unit: &'static str,
    /// How the backend was reached.
    pub subject: Subject,
    /// The value.
    pub value: f64,
}

/// All rounds of one case.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// Without a service.
    pub direct: Option<Summary>,
    /// By nftables.
    pub nftables: Option<Summary>,
    /// By IPVS.
    pub ipvs: Option<Summary>,
    /// Ours.
    pub overlay: Option<Summary>,
    /// Ratio of the medians.
    pub overlay_vs_direct: Option<f64>,
    /// Ratio of the medians.
    pub overlay_vs_nftables: Option<f64>,
    /// Ratio of the medians.
    pub overlay_vs_ipvs: Option<f64>,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Report {
    /// The conditions of the measurement.
    #[serde(flatten)]
    pub machine: Machine,
    /// The cases, in the order of the run.
    pub cases: Vec<Case>,
    /// Rounds that are in no case.
    #[serde(default)]
    pub failed: Vec<Failure>,
}

/// A round of a measurement that does not count.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Failure {
    /// The number of the round; the first is 1.
    pub round: u32,
    /// The measurement.
    pub measurement: String,
    /// How the backend was reached.
    pub subject: Subject,
    /// The reason for the failure.
    pub why: String,
}

impl Failure {
    /// The failure in round `round`; the first is 0.
    pub fn new(round: u32, measurement: &str, subject: Subject, error: &anyhow::Error) -> Self {
        let (measurement, why) = (measurement.to_owned(), format!("{error:#}"));
        Self { round: round + 1, measurement, subject, why }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed: round {}: {}", self.round, self.why)
    }
}

impl Report {
    /// Sums up the samples; `failed` are the rounds that gave none.
    pub fn new(machine: Machine, samples: &[Sample], failed: Vec<Failure>) -> Self {
        let mut names: Vec<(&str, &'static str)> = Vec::new();
        for sample in samples {
            if !names.contains(&(&sample.case, sample.unit)) {
                names.push((&sample.case, sample.unit));
            }
        }
        let cases = names.into_iter().map(|(name, unit)| Case::new(name, unit, samples)).collect();
        Self { machine, cases, failed }
    }

    /// A table in Markdown: medians with the smallest and the largest round.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header([
            "case",
            "unit",
            "direct",
            "nftables",
            "ipvs",
            "overlay",
            "vs direct",
            "vs nftables",
            "vs ipvs",
        ]);
        for case in &self.cases {
            table.add_row([
                case.name.clone(),
                case.unit.clone(),
                shown(case.direct),
                shown(case.nftables),
                shown(case.ipvs),
                shown(case.overlay),
                times(case.overlay_vs_direct),
                times(case.overlay_vs_nftables),
                times(case.overlay_vs_ipvs),
            ]);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string()
    }
}

impl Case {
    fn new(name: &str, unit: &str, samples: &[Sample]) -> Self {
        let of = |subject| {
            let samples = samples.iter().filter(|s| s.case == name && s.subject == subject);
            Summary::of(&samples.map(|sample| sample.value).collect::<Vec<_>>())
        };
        let [direct, nftables, ipvs, overlay] = Subject::ALL.map(of);
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            direct,
            nftables,
            ipvs,
            overlay,
            overlay_vs_direct: ratio(overlay, direct),
            overlay_vs_nftables: ratio(overlay, nftables),
            overlay_vs_ipvs: ratio(overlay, ipvs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_medians_and_ratios_and_null_where_nothing_was_measured() {
        let sample = |case: &str, subject, value| Sample {
            case: case.to_owned(),
            unit: "thousand/s",
            subject,
            value,
        };
        let samples = [
            sample("vip_remote_connect", Subject::Overlay, 9.0),
            sample("vip_remote_connect", Subject::Direct, 10.0),
            sample("vip_remote_connect", Subject::Nftables, 6.0),
            sample("new_flow", Subject::Overlay, 400.0),
        ];
        let kernel = "6.18".to_owned();
        let machine = Machine { kernel, cpus: 2, rounds: 1, placement: "together".to_owned() };
        let error = anyhow::anyhow!("2 answers broke off").context("wrk_vip_local_each of Ipvs");
        let failure = Failure::new(0, "wrk_vip_local_each", Subject::Ipvs, &error);
        assert_eq!(
            failure.to_string(),
            "failed: round 1: wrk_vip_local_each of Ipvs: 2 answers broke off"
        );
        let report = Report::new(machine, &samples, vec![failure]);
        let json = serde_json::to_value(&report).expect("JSON");
        let expected = serde_json::json!({
            "name": "vip_remote_connect",
            "unit": "thousand/s",
            "direct": { "median": 10.0, "min": 10.0, "max": 10.0 },
            "nftables": { "median": 6.0, "min": 6.0, "max": 6.0 },
            "ipvs": null,
            "overlay": { "median": 9.0, "min": 9.0, "max": 9.0 },
            "overlay_vs_direct": 0.9,
            "overlay_vs_nftables": 1.5,
            "overlay_vs_ipvs": null,
        });
        assert_eq!(json["cases"][0], expected);
        assert!(json["cases"][1]["direct"].is_null(), "{json}");
        let expected = serde_json::json!([{
            "round": 1,
            "measurement": "wrk_vip_local_each",
            "subject": "ipvs",
            "why": "wrk_vip_local_each of Ipvs: 2 answers broke off",
        }]);
        assert_eq!(json["failed"], expected);
        assert_eq!(report.table().lines().count(), 4);
        assert_eq!(serde_json::from_value::<Report>(json).expect("a report"), report);
    }
}
