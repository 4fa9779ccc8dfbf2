//! Turning events on and off, and reading their ring.

use std::{collections::BTreeSet, os::fd::AsFd as _, time::Duration};

use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray, RingBuf},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use overlay_common::{
    event::{EVENT_KINDS, Lost, Watch, Watched},
    observe::COUNTER_INDEXES,
};

use super::{kernel, tables::take, words};
use crate::datapath::DatapathError;

/// Records taken at once, so that whoever waits for the others has a turn.
const BATCH: usize = 1_024;

/// The watched events.
pub(super) struct WatchTables {
    watch: Array<MapData, Watch>,
    watched: Array<MapData, Watched>,
    lost: PerCpuArray<MapData, Lost>,
    /// The counter indexes with a 1 in `watched`; `None` when only the map knows.
    known: Option<BTreeSet<u32>>,
}

impl WatchTables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let (watch, watched) = (take(ebpf, "watch")?, take(ebpf, "watched")?);
        Ok(Self { watch, watched, lost: take(ebpf, "lost_events")?, known: None })
    }

    /// Writes the captured endpoints, then the watched events.
    pub(super) fn set(
        &mut self,
        watch: &Watch,
        counters: &BTreeSet<u32>,
    ) -> Result<(), DatapathError> {
        let failed = |e| kernel("turn events on or off", words(&e));
        let all = 0..u32::try_from(COUNTER_INDEXES).unwrap_or(u32::MAX);
        let known = self.known.take();
        for counter in all {
            let wanted = counters.contains(&counter);
            if known.as_ref().is_none_or(|known| known.contains(&counter) != wanted) {
                self.watched.set(counter, u32::from(wanted), 0).map_err(failed)?;
            }
        }
        self.known = Some(counters.clone());
        self.watch.set(0, *watch, 0).map_err(failed)
    }

    /// How many records did not fit the ring, by kind.
    pub(super) fn lost(&self) -> Result<[u64; EVENT_KINDS], DatapathError> {
        let mut lost = [0; EVENT_KINDS];
        for (kind, sum) in (0..).zip(&mut lost) {
            let values = self
                .lost
                .get(&kind, 0)
                .map_err(|e| kernel("read the map lost_events", words(&e)))?;
            *sum = values.iter().sum();
        }
        Ok(lost)
    }
}

/// The ring. It has one reader.
pub(super) struct EventRing {
    ring: RingBuf<MapData>,
}

impl EventRing {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self { ring: take(ebpf, "events")? })
    }

    /// Waits for records up to `within`, and hands over those that are there.
    pub(super) fn read(
        &mut self,
        within: Duration,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<(), DatapathError> {
        let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(kernel("wait for events", e)),
        }
        for _ in 0..BATCH {
            let Some(record) = self.ring.next() else { break };
            each(&record);
        }
        Ok(())
    }
}
