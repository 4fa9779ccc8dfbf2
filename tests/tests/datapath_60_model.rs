//! The programs against the reference model, on a fixed set of seeds. `cargo xtask fuzz` runs
//! fresh ones for longer.

use overlay_common::Reason;
use overlay_tests::fuzz::{Fuzz, Underlay};

/// Enough for every reason to be met; a quiet machine runs a few thousand packets each second.
const SEEDS: std::ops::Range<u64> = 0..600;

/// Reasons that a packet of BPF_PROG_TEST_RUN cannot meet: `conntrack` would have to be out of memory,
/// and an array is never without its element.
const OUT_OF_REACH: [Reason; 2] = [Reason::ConntrackFull, Reason::NotConfigured];

/// The tunnel is all that is different there.
const SEEDS_ON_IPV6: std::ops::Range<u64> = 10_000..10_150;

#[test]
fn programs_and_model_agree_on_an_ipv6_underlay() {
    let mut fuzz = Fuzz::on(Underlay::Ipv6);
    for seed in SEEDS_ON_IPV6 {
        if let Err(failure) = fuzz.sequence(seed) {
            panic!("{failure}");
        }
    }
    println!("{}", fuzz.totals);
    let met = [
        Reason::Encapsulated,
        Reason::Decapsulated,
        Reason::HandedOver,
        Reason::HandedUp,
        Reason::TooBigAnswered,
        Reason::SentToClient,
        Reason::Replicated,
        Reason::NotPeer,
        Reason::InvalidVni,
        Reason::SpoofedInnerSource,
        Reason::NoRoute,
        Reason::EcnUnexpected,
    ];
    let missed: Vec<_> =
        met.iter().filter(|reason| !fuzz.totals.reasons.contains_key(reason)).collect();
    assert!(missed.is_empty(), "no packet met {missed:?}: the test covers less than it says");
    assert!(fuzz.totals.verified > fuzz.totals.packets / 10, "{}", fuzz.totals);
}

#[test]
fn programs_and_model_agree_on_every_packet_of_the_fixed_seeds() {
    let mut fuzz = Fuzz::on(Underlay::Ipv4);
    for seed in SEEDS {
        if let Err(failure) = fuzz.sequence(seed) {
            panic!("{failure}");
        }
    }
    println!("{}", fuzz.totals);
    let missed: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| !fuzz.totals.reasons.contains_key(reason))
        .filter(|reason| !OUT_OF_REACH.contains(reason))
        .collect();
    assert!(missed.is_empty(), "no packet met {missed:?}: the test covers less than it says");
    assert!(fuzz.totals.verified > fuzz.totals.packets / 10, "{}", fuzz.totals);
}
