//! The highest rate without loss: a search over trials, as in RFC 2544, section 26.1.

use anyhow::ensure;

/// The result of a trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// Frames a second that were sent.
    pub offered: f64,
    /// The part of them that arrived.
    pub arrived: f64,
}

/// A loss below one per thousand is chance, for example an interruption by a timer.
const LOSSLESS: f64 = 0.999;

/// A rate is too high if it loses packets this many times in a row: other work of the machine makes
/// any rate lose some packets at times.
const TRIES: u32 = 2;

/// The search ends when the remaining interval is at most this part of the rate.
const PRECISION: f64 = 0.02;

/// The search ends here if hardly any frames arrive: at a rate a thousand times smaller than the
/// first.
const HALVINGS: u32 = 10;

impl Trial {
    fn is_lossless(self) -> bool {
        self.arrived >= LOSSLESS
    }
}

/// Frames a second that arrived in the best of the trials without loss. `run` tries a rate, in
/// frames a second, and may offer less; without one it sends as fast as frames go.
///
/// # Errors
/// If a trial fails, or even few frames are lost.
pub fn search(mut run: impl FnMut(Option<f64>) -> anyhow::Result<Trial>) -> anyhow::Result<f64> {
    let mut run = |rate| {
        let mut trial = run(rate)?;
        for _ in 1..TRIES {
            if !trial.is_lossless() {
                trial = run(rate)?;
            }
        }
        anyhow::Ok(trial)
    };
    let unpaced = run(None)?;
    if unpaced.is_lossless() {
        return Ok(unpaced.offered * unpaced.arrived);
    }
    let (mut low, mut high) = (0.0, unpaced.offered);
    let mut best = 0.0f64;
    for _ in 0.. {
        let rate = f64::midpoint(low, high);
        let trial = run(Some(rate))?;
        if trial.is_lossless() {
            low = rate;
            best = best.max(trial.offered * trial.arrived);
        } else {
            high = rate;
        }
        ensure!(
            high > unpaced.offered / f64::from(1 << HALVINGS),
            "of {:.0} frames a second {:.1} % arrived, of {:.0} not all did",
            unpaced.offered,
            unpaced.arrived * 100.0,
            high
        );
        if low > 0.0 && high - low <= low * PRECISION {
            break;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that carries so much, and only `beyond` of the excess.
    fn way(carries: f64, beyond: f64) -> impl Fn(f64) -> Trial {
        move |rate| Trial {
            offered: rate,
            arrived: if rate <= carries { 1.0 } else { carries * beyond / rate },
        }
    }

    #[test]
    fn the_rate_is_found_whatever_becomes_of_more() {
        // Livelock loses nearly all of the excess, and a queue loses the frames beyond its limit.
        for beyond in [0.01, 0.5, 1.0] {
            for carries in [1_000.0, 80_000.0, 249_000.0, 333_333.0] {
                let way = way(carries, beyond);
                let mut trials = 0;
                let found = search(|rate| {
                    trials += 1;
                    Ok(way(rate.unwrap_or(400_000.0)))
                })
                .expect("found");
                assert!(
                    found <= carries * 1.001 && found >= carries * 0.979,
                    "{found} of {carries}"
                );
                assert!(trials <= 32, "{trials} trials");
            }
        }
    }

    #[test]
    fn what_loses_nothing_unpaced_is_as_fast_as_that() {
        let unpaced = Trial { offered: 700_000.0, arrived: 0.9995 };
        let run = |rate: Option<f64>| rate.map_or(Ok(unpaced), |_| anyhow::bail!("a trial"));
        let found = search(run).expect("found");
        assert!((found - 699_650.0).abs() < 1.0, "{found}");
    }

    #[test]
    fn what_could_not_be_offered_is_not_claimed() {
        // The sender reaches no more than 50,000 in paced trials.
        let unpaced = Trial { offered: 400_000.0, arrived: 0.1 };
        let paced = |rate: f64| Trial { offered: rate.min(50_000.0), arrived: 1.0 };
        let run = |rate: Option<f64>| Ok(rate.map_or(unpaced, paced));
        assert_eq!(search(run).expect("found"), 50_000.0);
    }

    #[test]
    fn what_is_lost_once_and_not_again_was_lost_by_chance() {
        let way = way(100_000.0, 0.5);
        let mut trials = 0;
        let found = search(|rate| {
            trials += 1;
            let trial = way(rate.unwrap_or(400_000.0));
            Ok(Trial { arrived: if trials % 3 == 0 { 0.2 } else { trial.arrived }, ..trial })
        })
        .expect("found");
        assert!((97_900.0..=100_100.0).contains(&found), "{found}");
    }

    #[test]
    fn a_way_that_always_loses_has_no_such_rate() {
        let run = |rate: Option<f64>| Ok(Trial { offered: rate.unwrap_or(4e5), arrived: 0.99 });
        let error = search(run).expect_err("none");
        assert!(error.to_string().contains("of 391 not all did"), "{error}");
        assert!(search(|_| anyhow::bail!("no interface")).is_err());
    }
}
