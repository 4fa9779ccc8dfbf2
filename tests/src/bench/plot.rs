//! Medians as bars in an SVG picture.

use std::fmt::Write as _;

use super::report::{Case, Machine, Report, number};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 230.0;
const BAR: f64 = 11.0;
const GAP: f64 = 14.0;
const TOP: f64 = 56.0;
/// Bars end here, whatever the ratio; the number beside a bar gives the ratio.
const LONGEST: f64 = 2.5;

/// A subject of the comparison: its name and its colour.
pub type Subject = (&'static str, &'static str);

/// The colours of the base of the comparison, of the subject that overlay replaces, and of overlay.
pub const COLOURS: [&str; 3] = ["#9aa5b1", "#d98c3f", "#2f6fb0"];

/// One case: a bar for each subject that was measured, all relative to the first of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// The medians, in the order of the subjects.
    pub medians: Vec<Option<f64>>,
}

/// Draws the cases of the tunnel that were measured on all three subjects.
pub fn svg(report: &Report) -> String {
    let of = |case: &Case| {
        let medians = [case.underlay?.median, case.kernel_vxlan?.median, case.overlay?.median];
        let medians = medians.map(Some).to_vec();
        Some(Group { name: case.name.to_owned(), unit: case.unit.to_owned(), medians })
    };
    let names = ["underlay", "kernel vxlan", "overlay"];
    let subjects: Vec<Subject> = names.into_iter().zip(COLOURS).collect();
    let groups: Vec<Group> = report.cases.iter().filter_map(of).collect();
    draw("the underlay", &report.machine, &subjects, &groups)
}

/// Draws the groups with a first bar longer than zero. `relative` is the name of that bar.
pub fn draw(relative: &str, machine: &Machine, subjects: &[Subject], groups: &[Group]) -> String {
    let groups: Vec<&Group> = groups.iter().filter(|group| base(group).is_some()).collect();
    let height = TOP + groups.iter().map(|group| height_of(group)).sum::<f64>() + 10.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\">Medians of {} rounds, relative to {} \
         (Linux {}, {} CPUs, {})</text>\n",
        machine.rounds,
        escaped(relative),
        escaped(&machine.kernel),
        machine.cpus,
        machine.placement,
    );
    for (index, (name, colour)) in subjects.iter().enumerate() {
        let x = LEFT + index as f64 * 120.0;
        text(&mut out, x + 16.0, 42.0, name);
        rectangle(&mut out, (x, 33.0), (10.0, 10.0), colour);
    }
    let mut top = TOP;
    for group in groups {
        bars(&mut out, top, group, subjects);
        top += height_of(group);
    }
    out.push_str("</svg>\n");
    out
}

/// The value that its bars are relative to.
fn base(group: &Group) -> Option<f64> {
    group.medians.iter().flatten().next().copied().filter(|base| *base > 0.0)
}

fn height_of(group: &Group) -> f64 {
    // The name takes two lines.
    group.medians.iter().flatten().count().max(2) as f64 * BAR + GAP
}

fn bars(out: &mut String, top: f64, group: &Group, subjects: &[Subject]) {
    let Some(base) = base(group) else { return };
    text(out, 10.0, top + BAR - 1.5, &group.name);
    text(out, 10.0, top + 2.2 * BAR, &format!("({})", group.unit));
    let measured = group.medians.iter().zip(subjects);
    let measured = measured.filter_map(|(median, (_, colour))| Some(((*median)?, colour)));
    for (index, (median, colour)) in measured.enumerate() {
        let y = top + index as f64 * BAR;
        let ratio = (median / base).min(LONGEST);
        let length = ratio / LONGEST * (WIDTH - LEFT - 130.0);
        rectangle(out, (LEFT, y), (length, BAR - 1.0), colour);
        let label = format!("{} ({:.2})", number(median), median / base);
        text(out, LEFT + length + 5.0, y + BAR - 1.5, &label);
    }
}

fn rectangle(out: &mut String, (x, y): (f64, f64), (width, height): (f64, f64), colour: &str) {
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
         fill=\"{colour}\"/>"
    );
}

fn text(out: &mut String, x: f64, y: f64, words: &str) {
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escaped(words));
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Sample, Subject};

    fn machine() -> Machine {
        let kernel = "6.18 <&>".to_owned();
        Machine { kernel, cpus: 2, rounds: 5, placement: "apart".to_owned() }
    }

    #[test]
    fn every_case_measured_on_all_subjects_has_three_bars() {
        let samples = Subject::ALL.map(|subject| Sample {
            case: "udp_64",
            unit: "packets/s",
            subject,
            value: 2.0,
        });
        let picture = svg(&Report::new(machine(), &samples));
        // The background, three in the legend, three bars.
        assert_eq!(picture.matches("<rect").count(), 7, "{picture}");
        assert!(picture.contains("6.18 &lt;&amp;&gt;"), "{picture}");
        let partial = Report::new(machine(), &samples[2..]);
        assert_eq!(svg(&partial).matches("<rect").count(), 4);
    }

    #[test]
    fn bars_are_relative_to_the_first_that_was_measured_and_end_somewhere() {
        let subjects = [("direct", "red"), ("nftables", "green"), ("overlay", "blue")];
        let group = |medians: [Option<f64>; 3]| Group {
            name: "flood".to_owned(),
            unit: "million/s".to_owned(),
            medians: medians.to_vec(),
        };
        let all = draw("x", &machine(), &subjects, &[group([Some(2.0), Some(1.0), Some(3.0)])]);
        for label in ["2.00 (1.00)", "1.00 (0.50)", "3.00 (1.50)"] {
            assert!(all.contains(label), "{all}");
        }
        let two = draw("x", &machine(), &subjects, &[group([None, Some(0.35), Some(1.4)])]);
        assert!(two.contains("0.35 (1.00)") && two.contains("1.40 (4.00)"), "{two}");
        assert!(two.contains("width=\"500.0\" height=\"10.0\" fill=\"blue\""), "{two}");
        // The colour is in the legend only.
        assert_eq!(two.matches("\"red\"").count(), 1, "{two}");
        let none = draw("x", &machine(), &subjects, &[group([Some(0.0), Some(1.0), None])]);
        assert!(!none.contains("flood"), "{none}");
    }
}
