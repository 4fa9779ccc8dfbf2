//! The medians as bars in an SVG picture: every case relative to the underlay.

use std::fmt::Write as _;

use super::report::{Case, Report};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 190.0;
const BAR: f64 = 11.0;
const GROUP: f64 = 3.0 * BAR + 14.0;
const TOP: f64 = 56.0;
/// Bars end here, whatever the ratio; the number beside them tells.
const LONGEST: f64 = 2.5;
const COLOURS: [(&str, &str); 3] =
    [("underlay", "#9aa5b1"), ("kernel vxlan", "#d98c3f"), ("overlay", "#2f6fb0")];

/// Draws the cases that were measured on all three subjects.
pub fn svg(report: &Report) -> String {
    let cases: Vec<&Case> = report.cases.iter().filter(|case| medians(case).is_some()).collect();
    let height = TOP + cases.len() as f64 * GROUP + 10.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\">Medians of {} rounds, relative to the \
         underlay (Linux {}, {} CPUs, {})</text>\n",
        report.machine.rounds,
        escaped(&report.machine.kernel),
        report.machine.cpus,
        report.machine.placement,
    );
    for (index, (name, colour)) in COLOURS.iter().enumerate() {
        let x = LEFT + index as f64 * 120.0;
        text(&mut out, x + 16.0, 42.0, name);
        rectangle(&mut out, (x, 33.0), (10.0, 10.0), colour);
    }
    for (index, case) in cases.iter().enumerate() {
        group(&mut out, TOP + index as f64 * GROUP, case);
    }
    out.push_str("</svg>\n");
    out
}

fn group(out: &mut String, top: f64, case: &Case) {
    let Some(medians) = medians(case) else { return };
    text(out, 10.0, top + 1.5 * BAR, case.name);
    text(out, 10.0, top + 2.7 * BAR, &format!("({})", case.unit));
    for (index, (value, (_, colour))) in medians.iter().zip(COLOURS).enumerate() {
        let y = top + index as f64 * BAR;
        let ratio = (value / medians[0]).min(LONGEST);
        let length = ratio / LONGEST * (WIDTH - LEFT - 130.0);
        rectangle(out, (LEFT, y), (length, BAR - 1.0), colour);
        let label = format!("{value:.1} ({:.2})", value / medians[0]);
        text(out, LEFT + length + 5.0, y + BAR - 1.5, &label);
    }
}

fn medians(case: &Case) -> Option<[f64; 3]> {
    let medians = [case.underlay?.median, case.kernel_vxlan?.median, case.overlay?.median];
    (medians[0] > 0.0).then_some(medians)
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
    use crate::bench::report::{Machine, Sample, Subject};

    #[test]
    fn every_case_measured_on_all_subjects_has_three_bars() {
        let samples = Subject::ALL.map(|subject| Sample {
            case: "udp_64",
            unit: "packets/s",
            subject,
            value: 2.0,
        });
        let kernel = "6.18 <&>".to_owned();
        let machine = Machine { kernel, cpus: 2, rounds: 5, placement: "apart" };
        let report = Report::new(machine.clone(), &samples);
        let picture = svg(&report);
        // The background, three in the legend, three bars.
        assert_eq!(picture.matches("<rect").count(), 7, "{picture}");
        assert!(picture.contains("6.18 &lt;&amp;&gt;"), "{picture}");
        let partial = Report::new(machine, &samples[2..]);
        assert_eq!(svg(&partial).matches("<rect").count(), 4);
    }
}
