//! Medians, spreads and percentiles.

use serde::{Deserialize, Serialize};

/// The rounds of one case on one subject.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Summary {
    /// Half of the rounds are below, half above.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// The statistics of the rounds' values; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }
}

/// The smallest value that at least `percent` of the values do not exceed (nearest rank); `None` if
/// there are no values. Sorts them.
pub fn percentile(values: &mut [u64], percent: u64) -> Option<u64> {
    values.sort_unstable();
    let rank = (values.len() as u64 * percent).div_ceil(100).max(1);
    values.get(usize::try_from(rank - 1).ok()?).copied()
}

/// Mean of the middle half of the values, which clock ticks and disturbed runs do not change; 0 if
/// there are fewer than four. Sorts them.
pub fn middle_mean(values: &mut [u64]) -> f64 {
    values.sort_unstable();
    let middle = &values[values.len() / 4..values.len() * 3 / 4];
    middle.iter().sum::<u64>() as f64 / middle.len().max(1) as f64
}

/// `a / b`, unless there is nothing to divide by.
pub fn ratio(a: Option<Summary>, b: Option<Summary>) -> Option<f64> {
    let (a, b) = (a?.median, b?.median);
    (b != 0.0).then_some(a / b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_two_middles() {
        let odd = Summary::of(&[3.0, 1.0, 9.0]).expect("values");
        assert_eq!(odd, Summary { median: 3.0, min: 1.0, max: 9.0 });
        let even = Summary::of(&[4.0, 1.0, 9.0, 2.0]).expect("values");
        assert_eq!(even, Summary { median: 3.0, min: 1.0, max: 9.0 });
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let mut values: Vec<u64> = (1..=200).rev().collect();
        assert_eq!(percentile(&mut values, 50), Some(100));
        assert_eq!(percentile(&mut values, 99), Some(198));
        assert_eq!(percentile(&mut values, 100), Some(200));
        assert_eq!(percentile(&mut [7], 1), Some(7));
        assert_eq!(percentile(&mut [], 50), None);
    }

    #[test]
    fn the_middle_half_is_what_no_outlier_moves() {
        assert_eq!(middle_mean(&mut [1_000_000, 11, 10, 0]), 10.5);
        assert_eq!(middle_mean(&mut [5; 100]), 5.0);
        assert_eq!(middle_mean(&mut [7]), 0.0);
    }

    #[test]
    fn there_is_no_ratio_to_nothing() {
        let summary = |median| Some(Summary { median, min: 0.0, max: 0.0 });
        assert_eq!(ratio(summary(3.0), summary(2.0)), Some(1.5));
        assert_eq!(ratio(summary(3.0), summary(0.0)), None);
        assert_eq!(ratio(summary(3.0), None), None);
    }
}
