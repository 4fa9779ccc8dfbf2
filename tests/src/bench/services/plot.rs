//! The medians of services in a picture.

use super::{
    super::plot::{COLOURS, Group, Subject, draw},
    report::{Case, Report},
};

/// Draws the measurements through services and beside them. The share of a flood that arrived is in
/// the table.
pub fn svg(report: &Report) -> String {
    let is_shown = |case: &&Case| {
        let beside = case.direct.or(case.nftables).or(case.ipvs);
        case.unit != "%" && beside.is_some() && case.overlay.is_some()
    };
    let cases: Vec<&Case> = report.cases.iter().filter(is_shown).collect();
    let by_ipvs = cases.iter().any(|case| case.ipvs.is_some());
    let against = if by_ipvs { "ipvs" } else { "nftables" };
    let names = ["direct", against, "overlay"];
    let subjects: Vec<Subject> = names.into_iter().zip(COLOURS).collect();
    let of = |case: &&Case| {
        let against = if by_ipvs { case.ipvs } else { case.nftables };
        let medians = [case.direct, against, case.overlay];
        let medians = medians.map(|summary| summary.map(|summary| summary.median)).to_vec();
        Group { name: case.name.clone(), unit: case.unit.clone(), medians }
    };
    let groups: Vec<Group> = cases.iter().map(of).collect();
    draw(&format!("direct, or else {against}"), &report.machine, &subjects, &groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        report::Machine,
        services::report::{Sample, Subject},
    };

    fn picture(against: Subject) -> String {
        let sample = |case: &str, unit, subject, value| Sample {
            case: case.to_owned(),
            unit,
            subject,
            value,
        };
        let samples = [
            sample("vip_remote_connect", "thousand/s", Subject::Direct, 10.0),
            sample("vip_remote_connect", "thousand/s", against, 5.0),
            sample("vip_remote_connect", "thousand/s", Subject::Overlay, 9.0),
            sample("published_flood", "million/s", against, 0.5),
            sample("published_flood", "million/s", Subject::Overlay, 1.0),
            sample("published_flood_arrived", "%", against, 100.0),
            sample("published_flood_arrived", "%", Subject::Overlay, 100.0),
            sample("new_flow", "ns", Subject::Overlay, 900.0),
        ];
        let kernel = "6.12".to_owned();
        let machine = Machine { kernel, cpus: 2, rounds: 5, placement: "together".to_owned() };
        svg(&Report::new(machine, &samples, vec![]))
    }

    #[test]
    fn what_was_measured_beside_something_is_drawn_beside_it() {
        for (against, name) in [(Subject::Nftables, "nftables"), (Subject::Ipvs, "ipvs")] {
            let picture = picture(against);
            // The background, three in the legend, three bars and two.
            assert_eq!(picture.matches("<rect").count(), 9, "{picture}");
            assert!(picture.contains(&format!("direct, or else {name}")), "{picture}");
            assert!(
                picture.contains("5.00 (0.50)") && picture.contains("1.00 (2.00)"),
                "{picture}"
            );
            assert!(!picture.contains("arrived") && !picture.contains("new_flow"), "{picture}");
        }
    }
}
