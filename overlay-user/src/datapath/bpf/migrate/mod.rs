//! The change from the datapath of layout 1 to that of layout 2 without interruption, and back.
//!
//! The programs of layout 1 continue with their maps while those of layout 2 are loaded and their
//! maps are filled (`carry`). Then the new programs replace the old ones in the pinned links
//! (`switch`), one atomic step for each, and the entries that the old ones made meanwhile are
//! carried once more. Finally the pins of layout 1 are removed.
//!
//! A mark is pinned among the maps of layout 2 just before the first program is replaced. Without
//! the mark, the maps of layout 1 are in force and those of layout 2 are made anew; with the mark,
//! it is the other way round. So the next process can continue wherever an earlier one was killed.

mod carry;
mod downgrade;
mod entry;
mod layout1;
mod switch;
mod table;

use std::path::Path;

use aya::Ebpf;
pub use downgrade::{Downgraded, downgrade};

use super::{
    kernel,
    pins::{Pins, remove_file},
    sys::{self, MapShape},
};
use crate::datapath::DatapathError;

/// The layout that is migrated from.
pub const FROM: u32 = layout1::VERSION;

/// How far a migration has come: a test has it end there, as if the process were killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The programs are loaded, and the maps of layout 2 made.
    Loaded,
    /// The maps are filled.
    Carried,
    /// The mark is there.
    Marked,
    /// The program of one link is replaced.
    OneSwitched,
    /// The programs of all links are replaced.
    AllSwitched,
    /// The pin of one link has moved.
    OneMoved,
    /// The pins of all links have.
    AllMoved,
    /// Entries that changed meanwhile are carried.
    Followed,
    /// The pins of layout 1 are gone.
    Forgotten,
}

impl Step {
    /// All of them, in their order.
    pub const ALL: [Self; 9] = [
        Self::Loaded,
        Self::Carried,
        Self::Marked,
        Self::OneSwitched,
        Self::AllSwitched,
        Self::OneMoved,
        Self::AllMoved,
        Self::Followed,
        Self::Forgotten,
    ];
}

/// Why a migration went no further.
#[derive(Debug)]
pub(super) enum Stop {
    /// A test wanted it to.
    There,
    /// It failed.
    Failed(DatapathError),
}

impl From<DatapathError> for Stop {
    fn from(error: DatapathError) -> Self {
        Self::Failed(error)
    }
}

/// The map that is pinned as the mark.
const MARK: &str = "migration";

/// A datapath of layout 1, and how far it is migrated.
pub(super) struct Migration {
    old: Pins,
    is_marked: bool,
    until: Option<Step>,
}

impl Migration {
    /// The migration that is to be made, or gone on with, in a pin directory. It ends after
    /// `until`.
    pub(super) fn find(
        pin_dir: &Path,
        new: &Pins,
        until: Option<Step>,
    ) -> Result<Option<Self>, DatapathError> {
        let old = Pins::of(pin_dir, layout1::VERSION);
        let is_marked = new.map(MARK).exists();
        if !old.exist() {
            if is_marked {
                // The earlier process ended at its very last step.
                remove_file(&new.map(MARK))?;
            }
            return Ok(None);
        }
        carry::check(&old)?;
        if !is_marked && new.exist() {
            // Filled in part, and used by no program that is attached.
            new.forget()?;
        }
        Ok(Some(Self { old, is_marked, until }))
    }

    /// The pins of layout 1.
    pub(super) fn old(&self) -> &Pins {
        &self.old
    }

    /// Whether the maps of layout 1 are still those in force.
    pub(super) fn may_begin_anew(&self) -> bool {
        !self.is_marked
    }

    /// How many entries the conntrack of layout 1 has: a pinned table keeps its size.
    pub(super) fn conntrack_size(&self) -> Result<Option<u32>, DatapathError> {
        let path = self.old.map("conntrack");
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(table::Table::open(&path)?.shape().entries))
    }

    /// Lets the programs of layout 2, which are loaded, take over.
    pub(super) fn run(mut self, ebpf: &mut Ebpf, new: &Pins) -> Result<(), Stop> {
        self.reached(Step::Loaded)?;
        let mut progress = if self.is_marked {
            carry::Progress::resumed(&self.old)?
        } else {
            let mut progress = carry::carry(entry::Way::Up, &self.old, new)?;
            self.reached(Step::Carried)?;
            // Again, for entries that came while the large maps were read: with fewer entries left,
            // those that come until the last program is replaced are carried sooner.
            progress.follow(&self.old, new)?;
            self.mark(new)?;
            progress
        };
        self.reached(Step::Marked)?;
        switch::switch(ebpf, (&self.old, new), &mut |step| self.reached(step))?;
        progress.follow(&self.old, new)?;
        self.reached(Step::Followed)?;
        self.old.forget()?;
        self.reached(Step::Forgotten)?;
        remove_file(&new.map(MARK))?;
        tracing::info!("the datapath of layout 1 was taken over, with its flows and counters");
        Ok(())
    }

    fn mark(&mut self, new: &Pins) -> Result<(), DatapathError> {
        mark(new)?;
        self.is_marked = true;
        Ok(())
    }

    fn reached(&self, step: Step) -> Result<(), Stop> {
        if self.until == Some(step) { Err(Stop::There) } else { Ok(()) }
    }
}

/// Says that the maps of layout 2 are those in force.
fn mark(new: &Pins) -> Result<(), DatapathError> {
    let path = new.map(MARK);
    if path.exists() {
        return Ok(());
    }
    let shape = MapShape { kind: 2, key: 4, value: 4, entries: 1, flags: 0 };
    sys::create_map(shape, None)
        .and_then(|map| sys::pin(std::os::fd::AsFd::as_fd(&map), &path))
        .map_err(|e| kernel(format!("pin the mark {}", path.display()), e))
}

/// Whether the maps of layout 2 are those in force while layout 1 is there too.
pub(super) fn is_marked(new: &Pins) -> bool {
    new.map(MARK).exists()
}
