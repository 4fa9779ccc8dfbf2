//! The tables of schedulers: which backend is behind each number that a pick comes to.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

/// Most entries of a table by turns: weights with a larger sum are scaled down to it.
pub const MAX_TURNS: u32 = 1 << 16;
/// Sizes of Maglev tables: primes, so that every step through one visits all of it. The smallest
/// that has 100 entries for each backend is taken, which keeps the backends' shares within a few
/// percent. There are few of them, because another size gives nearly every client another backend.
const MAGLEV_SIZES: [u32; 7] = [16_381, 32_749, 65_521, 131_071, 262_139, 524_287, 1_048_573];
/// Entries for each backend.
const MAGLEV_SHARE: usize = 100;
/// Part of the digest: a table that is filled in another way is another one.
const VERSION: u64 = 1;

/// How a table is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filling {
    /// Every backend in turn, as often as its weight says and evenly spread.
    Turns,
    /// Maglev hashing (D. Eisenbud et al., NSDI 2016, section 3.4): most entries stay when backends
    /// come and go.
    Maglev,
}

/// The inputs of a table of `lb_tables`: the table is filled when it is written.
///
/// Two tables are equal if they have the same size. They are only compared under the same key,
/// which contains a digest of the rest ([`LbTable::digest`]).
#[derive(Clone, Debug)]
pub struct LbTable {
    filling: Filling,
    /// Numbers and weights, sorted by number.
    backends: Arc<[(u32, u16)]>,
    size: u32,
}

impl PartialEq for LbTable {
    fn eq(&self, other: &Self) -> bool {
        self.size == other.size
    }
}

impl Eq for LbTable {}

impl LbTable {
    /// A table of backends with their weights. Weights of 0 have no place in it.
    pub fn new(filling: Filling, backends: &[(u32, u16)]) -> Self {
        let mut backends: Vec<_> = backends.iter().copied().filter(|(_, w)| *w > 0).collect();
        backends.sort_unstable();
        let size = match filling {
            Filling::Turns => turns(&backends).iter().map(|(_, turns)| turns).sum(),
            Filling::Maglev => maglev_size(backends.len()),
        };
        Self { filling, backends: backends.into(), size }
    }

    /// A table as it is found in the map: of this size, whatever is in it.
    pub(crate) fn found(size: u32) -> Self {
        Self { filling: Filling::Turns, backends: Arc::new([]), size }
    }

    /// Its number of entries; 0 without backends.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// A digest of its inputs, never 0.
    pub fn digest(&self) -> u32 {
        let kind = match self.filling {
            Filling::Turns => 1,
            Filling::Maglev => 2,
        };
        let start = mixed(VERSION << 8 | kind);
        let digest = self.backends.iter().fold(start, |digest, (number, weight)| {
            mixed(digest ^ (u64::from(*number) << 16 | u64::from(*weight)))
        });
        (digest as u32).max(1)
    }

    /// The entries: numbers of backends.
    pub fn fill(&self) -> Vec<u32> {
        match self.filling {
            Filling::Turns => interleaved(&turns(&self.backends)),
            Filling::Maglev => maglev(&self.backends, self.size),
        }
    }
}

/// The finalizer of SplitMix64.
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// How many turns each backend has: its weight in lowest terms, scaled where that is too much.
fn turns(backends: &[(u32, u16)]) -> Vec<(u32, u32)> {
    let divisor = backends.iter().fold(0, |divisor, (_, weight)| gcd(divisor, (*weight).into()));
    let least = |weight: u16| u32::from(weight) / divisor.max(1);
    let sum: u64 = backends.iter().map(|(_, weight)| u64::from(least(*weight))).sum();
    let limit = u64::from(MAX_TURNS);
    let scaled = |turns: u32| {
        if sum <= limit {
            return turns;
        }
        let turns = u64::from(turns) * limit / sum;
        // Whoever has a weight has a turn.
        u32::try_from(turns.max(1)).unwrap_or(u32::MAX)
    };
    backends.iter().map(|(number, weight)| (*number, scaled(least(*weight)))).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The backends in an order that spreads the turns of each one evenly. The backend with the
/// earliest due turn comes next; of two, the one with the smaller number.
fn interleaved(turns: &[(u32, u32)]) -> Vec<u32> {
    // The k-th of n turns is due at (2k + 1) / 2n of the way.
    let due = |taken: u32, of: u32| (u64::from(2 * taken + 1) << 32) / u64::from(2 * of);
    let first = turns.iter().map(|(number, of)| Reverse((due(0, *of), *number, 0, *of)));
    let mut queue: BinaryHeap<_> = first.collect();
    let mut order = Vec::new();
    while let Some(Reverse((_, number, taken, of))) = queue.pop() {
        order.push(number);
        if taken + 1 < of {
            queue.push(Reverse((due(taken + 1, of), number, taken + 1, of)));
        }
    }
    order
}

fn maglev_size(backends: usize) -> u32 {
    if backends == 0 {
        return 0;
    }
    let enough = |size: &&u32| **size as usize >= backends * MAGLEV_SHARE;
    let largest = MAGLEV_SIZES[MAGLEV_SIZES.len() - 1];
    MAGLEV_SIZES.iter().find(enough).copied().unwrap_or(largest)
}

/// Where a backend goes next in the table.
struct Walk {
    number: u32,
    next: u64,
    step: u64,
    weight: u64,
    /// It has a turn when this reaches the largest weight.
    credit: u64,
}

/// Fills the table: each backend in turn takes the next free place in its own permutation of the
/// places. Its permutation depends only on its number, so that few places move when other backends
/// come or go.
fn maglev(backends: &[(u32, u16)], size: u32) -> Vec<u32> {
    let (size, largest) = (u64::from(size), backends.iter().map(|(_, w)| *w).max().unwrap_or(0));
    let largest = u64::from(largest);
    let walk = |(number, weight): &(u32, u16)| Walk {
        number: *number,
        next: mixed(u64::from(*number)) % size,
        step: mixed(u64::from(*number) | 1 << 32) % (size - 1) + 1,
        weight: u64::from(*weight),
        // All have their first turn in the first round, however small their weights.
        credit: largest - u64::from(*weight),
    };
    let mut walks: Vec<Walk> = backends.iter().map(walk).collect();
    // Backends are numbered from 1.
    let mut table = vec![0; size as usize];
    let mut left = if walks.is_empty() { 0 } else { size };
    while left > 0 {
        for walk in &mut walks {
            walk.credit += walk.weight;
            if walk.credit < largest || left == 0 {
                continue;
            }
            walk.credit -= largest;
            while table[walk.next as usize] != 0 {
                walk.next = (walk.next + walk.step) % size;
            }
            table[walk.next as usize] = walk.number;
            left -= 1;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn equal(numbers: impl IntoIterator<Item = u32>) -> Vec<(u32, u16)> {
        numbers.into_iter().map(|number| (number, 1)).collect()
    }

    fn shares(table: &[u32]) -> BTreeMap<u32, usize> {
        let mut shares = BTreeMap::new();
        for number in table {
            *shares.entry(*number).or_default() += 1;
        }
        shares
    }

    #[test]
    fn turns_are_as_many_as_weights_in_lowest_terms_and_evenly_spread() {
        let table = LbTable::new(Filling::Turns, &[(1, 40), (2, 10), (3, 10), (4, 0)]);
        assert_eq!(table.size(), 6);
        let order = table.fill();
        assert_eq!(order, [1, 1, 2, 3, 1, 1]);
    }

    #[test]
    fn no_backend_waits_for_more_than_its_share_of_turns() {
        let weights = [(1, 5), (2, 3), (3, 1)];
        let order = LbTable::new(Filling::Turns, &weights).fill();
        assert_eq!(shares(&order), BTreeMap::from([(1, 5), (2, 3), (3, 1)]));
        // In any run of turns each one has its share, but for one more or less at either end.
        let twice = [&order[..], &order[..]].concat();
        for (number, weight) in weights {
            for start in 0..order.len() {
                for length in 1..=order.len() {
                    let run = &twice[start..start + length];
                    let has = run.iter().filter(|n| **n == number).count() as f64;
                    let fair = f64::from(weight) * length as f64 / order.len() as f64;
                    assert!((has - fair).abs() < 2.0, "{number}: {has} of {fair} in {run:?}");
                }
            }
        }
    }

    #[test]
    fn weights_that_need_too_large_a_table_are_scaled_and_nobody_is_left_out() {
        let table = LbTable::new(Filling::Turns, &[(1, 65_535), (2, 65_534), (3, 1)]);
        assert!((MAX_TURNS - 2..=MAX_TURNS + 3).contains(&table.size()), "{}", table.size());
        let shares = shares(&table.fill());
        assert_eq!(shares[&3], 1);
        assert!(shares[&1].abs_diff(shares[&2]) <= 1, "{shares:?}");
    }

    #[test]
    fn a_maglev_table_has_a_hundred_entries_for_each_backend_and_equal_shares() {
        for (backends, size) in [(1, 16_381), (163, 16_381), (164, 32_749), (1_000, 131_071)] {
            let table = LbTable::new(Filling::Maglev, &equal(1..=backends));
            assert_eq!(table.size(), size, "{backends} backends");
            let order = table.fill();
            assert_eq!(order.len(), size as usize);
            let shares = shares(&order);
            assert_eq!(shares.len(), backends as usize);
            let (least, most) =
                (shares.values().min().expect("some"), shares.values().max().expect("some"));
            // They take turns, so that no two differ by more than one.
            assert!(most - least <= 1, "{least} to {most}");
        }
    }

    #[test]
    fn a_maglev_table_follows_the_weights_and_leaves_nobody_out() {
        let order = LbTable::new(Filling::Maglev, &[(1, 300), (2, 100), (3, 1)]).fill();
        let shares = shares(&order);
        let ratio = shares[&1] as f64 / shares[&2] as f64;
        assert!((2.95..3.05).contains(&ratio), "{shares:?}");
        assert!((20..=80).contains(&shares[&3]), "{shares:?}");
        let extreme = LbTable::new(Filling::Maglev, &[(1, 65_535), (2, 1)]).fill();
        assert_eq!(super::tests::shares(&extreme)[&2], 1);
    }

    /// How many entries of those that need not change have changed, in percent of the table.
    fn disturbed(before: &[u32], after: &[u32], excused: impl Fn(u32, u32) -> bool) -> f64 {
        assert_eq!(before.len(), after.len());
        let moved = before.iter().zip(after).filter(|(a, b)| a != b && !excused(**a, **b));
        100.0 * moved.count() as f64 / before.len() as f64
    }

    #[test]
    fn few_clients_move_when_a_backend_of_a_maglev_table_comes_or_goes() {
        for count in [2, 10, 100] {
            let all = LbTable::new(Filling::Maglev, &equal(1..=count)).fill();
            let without = LbTable::new(Filling::Maglev, &equal((1..=count).filter(|n| *n != 2)));
            let gone = disturbed(&all, &without.fill(), |was, _| was == 2);
            let come = disturbed(&without.fill(), &all, |_, is| is == 2);
            println!(
                "{count} backends: {gone:.2} % move when one goes, {come:.2} % when one comes"
            );
            assert!(gone < 3.0 && come < 3.0, "{count}: {gone} %, {come} %");
        }
    }

    #[test]
    fn a_digest_tells_tables_apart_and_is_the_same_in_every_order() {
        let new = |filling, backends: &[(u32, u16)]| LbTable::new(filling, backends).digest();
        let one = new(Filling::Turns, &[(1, 2), (2, 3)]);
        assert_eq!(one, new(Filling::Turns, &[(2, 3), (1, 2)]));
        for other in [
            new(Filling::Maglev, &[(1, 2), (2, 3)]),
            new(Filling::Turns, &[(1, 2), (2, 4)]),
            new(Filling::Turns, &[(1, 2), (3, 3)]),
            new(Filling::Turns, &[(1, 2)]),
        ] {
            assert_ne!(one, other);
            assert_ne!(other, 0);
        }
    }

    #[test]
    fn without_backends_there_is_no_table() {
        for filling in [Filling::Turns, Filling::Maglev] {
            let table = LbTable::new(filling, &[(1, 0)]);
            assert_eq!((table.size(), table.fill().len()), (0, 0));
        }
    }
}
