//! The differential test: random maps and packets, run through the real programs and through the
//! [`model`], which must agree on the verdict, every byte, every counter and every
//! conntrack entry.

mod check;
mod failure;
mod run;
mod traffic;
mod traffic6;
mod world;
mod world6;

use std::{collections::BTreeMap, fmt};

use overlay_common::{Reason, event::Watch};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};

pub use failure::Failure;
pub use run::main;

use crate::{
    model::{self, Host, Predicted, Program, Tables, Verdict, maps::Maps},
    rig::{IFINDEX, Ran, Rig},
};

/// Packets of one sequence, and of a long one. Conntrack and cursors are carried from packet to
/// packet.
const STEPS: [usize; 2] = [80, 400];

/// The number of runs.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Sequences, each with its own maps.
    pub sequences: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with right checksums on arrival, which were verified from scratch afterwards.
    pub verified: u64,
    /// Packets by reason.
    pub reasons: BTreeMap<Reason, u64>,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequences, packets, verified, .. } = self;
        write!(f, "{sequences} sequences, {packets} packets, checksums of {verified} verified; ")?;
        write!(f, "{} of {} reasons met", self.reasons.len(), Reason::ALL.len())
    }
}

impl Totals {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        let Self { sequences, packets, verified, reasons } = other;
        self.sequences += sequences;
        self.packets += packets;
        self.verified += verified;
        for (reason, count) in reasons {
            *self.reasons.entry(*reason).or_default() += count;
        }
    }
}

/// The family of the nodes' addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// 50 bytes of outer headers.
    Ipv4,
    /// 70 bytes.
    Ipv6,
}

impl fmt::Display for Underlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        })
    }
}

/// The rig with the programs, and the known content of its maps.
pub struct Fuzz {
    rig: Rig,
    host: Host,
    tables: Tables,
    /// Whether the programs report all events.
    watched: bool,
    /// The number of runs so far.
    pub totals: Totals,
}

/// One run of a program on a packet.
#[derive(Clone, Debug)]
pub struct Step {
    /// The program.
    pub program: Program,
    /// The packet.
    pub packet: Vec<u8>,
    /// Bytes of payload in each segment of an aggregate; 0 for a single packet.
    pub segment: u16,
}

impl Fuzz {
    /// Loads the programs in a fresh network namespace of this thread.
    pub fn on(underlay: Underlay) -> Self {
        let rig = match underlay {
            Underlay::Ipv4 => Rig::new(),
            Underlay::Ipv6 => Rig::on_ipv6(),
        };
        let host = Host::of(&rig);
        let mut fuzz = Self {
            rig,
            host,
            tables: Tables::default(),
            watched: false,
            totals: Totals::default(),
        };
        fuzz.tables.config = fuzz.rig.config();
        fuzz.tables.ipv6 = fuzz.rig.is_ipv6();
        fuzz
    }

    /// Runs the sequence of a seed: random maps, then packets with changes to the maps in between.
    ///
    /// # Errors
    /// The first disagreement.
    pub fn sequence(&mut self, seed: u64) -> Result<(), Box<Failure>> {
        let mut rng = SmallRng::seed_from_u64(seed);
        self.clear();
        let world = world::random(&mut rng, &self.rig);
        self.watched = rng.random_bool(0.3);
        self.rig.watch(if self.watched { check::WATCH } else { Watch::default() }, &[]);
        self.install(world);
        let mut steps: Vec<Step> = Vec::new();
        let [usual, long] = STEPS;
        let count = if rng.random_bool(0.02) { long } else { usual };
        while steps.len() < count {
            if rng.random_bool(0.15) {
                let mut tables = self.tables.clone();
                world::change(&mut rng, &self.rig, &mut tables);
                self.install(tables);
            }
            // Repeats an earlier packet, on the tables as they are by now.
            let step = match steps.choose(&mut rng) {
                Some(step) if rng.random_bool(0.2) => step.clone(),
                _ => traffic::random(&mut rng, &self.tables),
            };
            if is_refused_by_the_kernel(&step) {
                continue;
            }
            steps.push(step);
            if let Err(disagreement) = self.step(steps.last().expect("just pushed")) {
                let tables = self.tables.clone();
                return Err(Box::new(Failure { seed, disagreement, steps, tables }));
            }
        }
        self.totals.sequences += 1;
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        let before = check::now();
        let ran =
            self.rig.run_aggregate(step.program.name(self.tables.ipv6), &step.packet, step.segment);
        let events = if self.watched { self.rig.events() } else { Vec::new() };
        let after = check::now();
        let real = Real { ran, maps: Maps::read(&self.rig, world::SERVICES) };
        // A tick of the clock may fall between the two readings; the program saw one of them.
        let first = self.compare(step, before, (before, after), &real);
        let (mut tables, predicted) = match first {
            Ok(agreed) => agreed,
            Err(disagreement) if before == after => return Err(disagreement),
            Err(disagreement) => {
                self.compare(step, after, (before, after), &real).map_err(|_| disagreement)?
            }
        };
        if self.watched {
            check::events(step, &predicted, &self.tables, &events)?;
        }
        real.maps.tell_times(&mut tables);
        self.tables = tables;
        self.totals.packets += 1;
        for reason in predicted.moved.keys() {
            *self.totals.reasons.entry(*reason).or_default() += 1;
        }
        if predicted.verdict == Verdict::Sent {
            let is_verified = check::checksums(step, &real.ran, self.tables.ipv6)?;
            self.totals.verified += u64::from(is_verified);
        }
        Ok(())
    }

    fn compare(
        &self,
        step: &Step,
        now: u64,
        span: (u64, u64),
        real: &Real,
    ) -> Result<(Tables, Predicted), String> {
        let mut tables = self.tables.clone();
        let clock = (&self.host, now);
        let packet = model::Packet { ifindex: IFINDEX, frame: &step.packet, segment: step.segment };
        let predicted = model::run(&mut tables, clock, step.program, packet);
        check::packet(step.program, &predicted, (&real.ran, tables.ipv6))?;
        Maps::of(&tables).check(&real.maps, now, span)?;
        Ok((tables, predicted))
    }

    fn clear(&mut self) {
        self.tables = Tables {
            agent: std::mem::take(&mut self.tables.agent),
            ids: world::ids(),
            ipv6: self.rig.is_ipv6(),
            ..Tables::default()
        };
        Maps::clear(&mut self.rig, &self.tables.ids);
    }

    /// Makes the maps hold what `tables` say.
    fn install(&mut self, tables: Tables) {
        self.rig.set_config(&tables.config);
        self.rig.set(|state| *state = tables.agent.clone());
        let before = Maps::of(&self.tables);
        Maps::of(&tables).write(&mut self.rig, &before, world::SERVICES);
        self.tables = tables;
    }
}

/// The kernel's results.
struct Real {
    ran: Ran,
    maps: Maps,
}

/// BPF_PROG_TEST_RUN rejects skbs with a cut IP header (Linux 6.18).
fn is_refused_by_the_kernel(step: &Step) -> bool {
    let shortest = match step.packet[12..14] {
        [0x08, 0x00] => 34,
        [0x86, 0xdd] => 54,
        _ => 14,
    };
    step.program != Program::Xdp && step.packet.len() < shortest
}
