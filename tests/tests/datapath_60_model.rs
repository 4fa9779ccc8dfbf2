//! The programs against the reference model, on a fixed set of seeds. `cargo xtask fuzz` runs
//! fresh ones for longer.

use std::{
    io::{self, Write as _},
    ops::Range,
};

use overlay_common::Reason;
use overlay_tests::{
    fuzz::{Fuzz, Totals, Underlay},
    patience,
};

/// Enough for every reason to be met; a quiet machine runs a few thousand packets each second.
const SEEDS: Range<u64> = 0..600;

/// Reasons that a packet of BPF_PROG_TEST_RUN cannot meet: `conntrack` would have to be out of memory,
/// and an array is never without its element.
const OUT_OF_REACH: [Reason; 3] =
    [Reason::ConntrackFull, Reason::NotConfigured, Reason::SocketBalanced];

/// The tunnel is all that is different there.
const SEEDS_ON_IPV6: Range<u64> = 10_000..10_150;

/// Runs the sequences of the seeds. Returns what was run, or `None` where a slow machine has run a part
/// of them only, which need not meet every reason.
fn run(underlay: Underlay, seeds: Range<u64>) -> Option<Totals> {
    let share = u64::from(patience());
    let mut fuzz = Fuzz::on(underlay);
    for seed in seeds.start..seeds.start + (seeds.end - seeds.start) / share {
        if let Err(failure) = fuzz.sequence(seed) {
            panic!("{failure}");
        }
    }
    println!("{}", fuzz.totals);
    if share > 1 {
        // Not by `println`, which of a test that passes nobody sees.
        let _ = writeln!(io::stderr(), "{underlay}: one of {share} fixed seeds, on a slow machine");
        return None;
    }
    assert!(fuzz.totals.verified > fuzz.totals.packets / 10, "{}", fuzz.totals);
    Some(fuzz.totals)
}

#[test]
fn programs_and_model_agree_on_an_ipv6_underlay() {
    let Some(totals) = run(Underlay::Ipv6, SEEDS_ON_IPV6) else { return };
    let met = [
        Reason::Encapsulated,
        Reason::Decapsulated,
        Reason::KernelEncap,
        Reason::KernelDecap,
        Reason::TooBigAnswered,
        Reason::SentToClient,
        Reason::Replicated,
        Reason::NotPeer,
        Reason::InvalidVni,
        Reason::SpoofedInnerSource,
        Reason::NoRoute,
        Reason::EcnUnexpected,
    ];
    let missed: Vec<_> = met.iter().filter(|reason| !totals.reasons.contains_key(reason)).collect();
    assert!(missed.is_empty(), "no packet met {missed:?}: the test covers less than it says");
}

#[test]
fn programs_and_model_agree_on_every_packet_of_the_fixed_seeds() {
    let Some(totals) = run(Underlay::Ipv4, SEEDS) else { return };
    let missed: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| !totals.reasons.contains_key(reason))
        .filter(|reason| !OUT_OF_REACH.contains(reason))
        .collect();
    assert!(missed.is_empty(), "no packet met {missed:?}: the test covers less than it says");
}
