//! The programs against the reference model, on a fixed set of seeds. `cargo xtask fuzz` runs new
//! ones for longer.

use std::{collections::BTreeSet, ops::RangeFrom};

use overlay_common::Reason;
use overlay_tests::{
    fuzz::{Fuzz, Totals, Underlay},
    patience,
};

/// The seeds of the sequences, in this order.
const SEEDS: RangeFrom<u64> = 0..;

/// The tunnel is all that is different there.
const SEEDS_ON_IPV6: RangeFrom<u64> = 10_000..;

/// The factor by which the number of sequences may grow until every reason is met. A quiet machine
/// meets all reasons in the sequences that are always run.
const MOST: u64 = 10;

/// Reasons that a packet of BPF_PROG_TEST_RUN cannot meet: `conntrack` would have to be out of
/// memory, and an array is never without its element.
const OUT_OF_REACH: [Reason; 3] =
    [Reason::ConntrackFull, Reason::NotConfigured, Reason::SocketBalanced];

/// Runs `count` sequences, or fewer on a slow machine, and continues until packets have met every
/// reason.
fn run(underlay: Underlay, mut seeds: RangeFrom<u64>, count: u64, reasons: &BTreeSet<Reason>) {
    let mut fuzz = Fuzz::on(underlay);
    let least = count / u64::from(patience());
    let missed = |totals: &Totals| -> Vec<Reason> {
        reasons.iter().filter(|reason| !totals.reasons.contains_key(reason)).copied().collect()
    };
    while fuzz.totals.sequences < least || !missed(&fuzz.totals).is_empty() {
        assert!(
            fuzz.totals.sequences < count * MOST,
            "{}: no packet met {:?}, so the test covers less than it says",
            fuzz.totals,
            missed(&fuzz.totals)
        );
        let seed = seeds.next().expect("seeds without end");
        if let Err(failure) = fuzz.sequence(seed) {
            panic!("{failure}");
        }
    }
    println!("{}", fuzz.totals);
    assert!(fuzz.totals.verified > fuzz.totals.packets / 10, "{}", fuzz.totals);
}

#[test]
fn programs_and_model_agree_on_an_ipv6_underlay() {
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
    run(Underlay::Ipv6, SEEDS_ON_IPV6, 150, &met.into());
}

#[test]
fn programs_and_model_agree_on_every_packet_of_the_fixed_seeds() {
    let reasons = Reason::ALL.iter().filter(|reason| !OUT_OF_REACH.contains(reason));
    run(Underlay::Ipv4, SEEDS, 600, &reasons.copied().collect());
}
