//! Copies the entries of one layout's maps into the maps of the other layout.

use std::collections::{BTreeMap, HashMap};

use super::{
    super::{bad_pin, kernel, lb_table, pins::Pins, words},
    entry::{Key, Value, Way, flow_bytes, flow_of, last_used, merged},
    layout1,
    table::{Entry, Table, add},
};
use crate::datapath::DatapathError;

/// A map that is carried.
pub struct Carried {
    /// Its name in layout 1.
    pub old: &'static str,
    /// Its name in layout 2.
    pub new: &'static str,
    key: Key,
    value: Value,
    later: Later,
}

/// How to treat an entry that the old programs wrote after it was carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Later {
    /// Only the agent writes the map, or the agent corrects the programs' writes.
    Nothing,
    /// It is carried again if the new programs have none.
    Missing,
    /// The states that both sides have of a flow are merged.
    Merged,
    /// The one that was used last stays.
    Newest,
    /// The counts since then are added.
    Added,
}

const fn same(name: &'static str, later: Later) -> Carried {
    Carried { old: name, new: name, key: Key::Same, value: Value::Longer, later }
}

const fn renamed(old: &'static str, new: &'static str, later: Later) -> Carried {
    Carried { old, new, key: Key::Same, value: Value::Longer, later }
}

/// The maps that are carried as bytes. Those that packets need soonest come first. Some maps are
/// not carried: `epoch`, because the caches begin anew; `watch`, `watched` and `events`, because
/// no watcher is left; `calls`, because the loader fills it; and `lb_tables`, because both layouts
/// share its tables.
pub const CARRIED: [Carried; 40] = [
    Carried { value: Value::Flow, ..renamed("opening", "ct_new", Later::Merged) },
    Carried { value: Value::Flow, ..same("conntrack", Later::Merged) },
    renamed("opening6", "addr6_ids_new", Later::Missing),
    renamed("clients6", "addr6_ids", Later::Missing),
    same("affinity", Later::Newest),
    same("fragments", Later::Missing),
    same("sock_origin", Later::Missing),
    same("sock_flows", Later::Missing),
    renamed("seed6", "addr6_secret", Later::Nothing),
    same("config", Later::Nothing),
    same("networks", Later::Nothing),
    renamed("replicas", "flood", Later::Nothing),
    same("endpoints", Later::Nothing),
    same("endpoints6", Later::Nothing),
    same("addresses6", Later::Nothing),
    same("links", Later::Nothing),
    same("links6", Later::Nothing),
    same("peers", Later::Nothing),
    same("vteps6", Later::Nothing),
    same("services", Later::Nothing),
    same("rr_cursor", Later::Nothing),
    same("slots", Later::Nothing),
    same("active", Later::Nothing),
    same("backends", Later::Nothing),
    same("published", Later::Nothing),
    same("local_addrs", Later::Nothing),
    same("local_addrs6", Later::Nothing),
    renamed("asked6", "frontends6", Later::Nothing),
    same("egress", Later::Nothing),
    same("subnets", Later::Nothing),
    same("subnets6", Later::Nothing),
    renamed("usage", "snat_usage", Later::Nothing),
    renamed("spaces", "netns", Later::Nothing),
    renamed("gone", "stale_backends", Later::Nothing),
    renamed("turnover", "lru_stats", Later::Added),
    Carried { key: Key::Reason, ..same("counters", Later::Added) },
    same("endpoint_counters", Later::Added),
    Carried { key: Key::Drop, ..same("drop_counters", Later::Added) },
    renamed("served", "backend_stats", Later::Added),
    same("lost_events", Later::Added),
];

/// The carried entries of a map, in the old layout.
type Seen = HashMap<Vec<u8>, Vec<u8>>;

/// The entries that were carried so far.
#[derive(Default)]
pub struct Progress {
    seen: BTreeMap<&'static str, Seen>,
}

impl Progress {
    /// For a process that continues after an earlier one was interrupted while it replaced the
    /// programs. The flows that the earlier one carried are unknown, and its counts are not added
    /// again.
    pub fn resumed(old: &Pins) -> Result<Self, DatapathError> {
        let mut progress = Self::default();
        for map in CARRIED.iter().filter(|map| map.later == Later::Added) {
            if old.map(map.old).exists() {
                let entries = Table::open(&old.map(map.old))?.entries()?;
                progress.seen.insert(map.old, entries.into_iter().collect());
            }
        }
        Ok(progress)
    }

    /// Carries the entries of the old maps that are new or have changed since the last time.
    pub fn follow(&mut self, old: &Pins, new: &Pins) -> Result<(), DatapathError> {
        for map in CARRIED.iter().filter(|map| map.later != Later::Nothing) {
            if old.map(map.old).exists() {
                let seen = self.seen.entry(map.old).or_default();
                map.follow(&open(old, map.old)?, &open(new, map.new)?, seen)?;
            }
        }
        self.settle_new_flows(new)
    }

    /// A flow that the old programs found to be in use is no new one any more.
    fn settle_new_flows(&self, new: &Pins) -> Result<(), DatapathError> {
        for (in_use, begins) in [("conntrack", "ct_new"), ("addr6_ids", "addr6_ids_new")] {
            let (in_use, begins) = (open(new, in_use)?, open(new, begins)?);
            for (key, _) in begins.entries()? {
                if in_use.get(&key)?.is_some() {
                    begins.remove(&key)?;
                }
            }
        }
        Ok(())
    }
}

/// Carries all entries of one layout's maps into those of the other, before any program of the
/// other runs. Returns the carried entries.
pub fn carry(way: Way, from: &Pins, to: &Pins) -> Result<Progress, DatapathError> {
    if way == Way::Up {
        make_secret(from)?;
    }
    let mut progress = Progress::default();
    for map in &CARRIED {
        let (name, other) = match way {
            Way::Up => (map.old, map.new),
            Way::Down => (map.new, map.old),
        };
        // An early build of layout 1 had fewer maps.
        if !from.map(name).exists() {
            continue;
        }
        let (from, to) = (open(from, name)?, open(to, other)?);
        let seen = map.carry(way, &from, &to)?;
        if map.later != Later::Nothing {
            progress.seen.insert(map.old, seen);
        }
    }
    share_tables(from, to)?;
    Ok(progress)
}

impl Carried {
    fn carry(&self, way: Way, from: &Table, to: &Table) -> Result<Seen, DatapathError> {
        let mut entries = from.entries()?;
        // The kernel forgets the entries first that were written first.
        entries.sort_by_cached_key(|(_, value)| last_used(self.old, value));
        let fits = |(key, value): &Entry| {
            let key = self.key.convert(way, key).filter(|key| to.has_room_for(key))?;
            Some((key, self.value(way, value, (from, to))))
        };
        let carried: Vec<_> = entries.iter().filter_map(fits).collect();
        let limit = usize::try_from(to.shape().entries).unwrap_or(usize::MAX);
        for (key, value) in &carried[carried.len().saturating_sub(limit)..] {
            to.set(key, value)?;
        }
        Ok(entries.into_iter().collect())
    }

    fn value(&self, way: Way, value: &[u8], (from, to): (&Table, &Table)) -> Vec<u8> {
        from.convert(value, to, |value| self.value.convert(way, value, to.value_size()))
    }

    fn follow(&self, old: &Table, new: &Table, seen: &mut Seen) -> Result<(), DatapathError> {
        for (key, value) in old.entries()? {
            if seen.get(&key) == Some(&value) {
                continue;
            }
            let Some(new_key) = self.key.convert(Way::Up, &key) else { continue };
            let there = new.get(&new_key)?;
            if let Some(value) = self.later(&value, seen.get(&key), there, (old, new)) {
                new.set(&new_key, &value)?;
            }
            seen.insert(key, value);
        }
        Ok(())
    }

    /// The value that replaces `there` in the new map, now that the old map has `value`.
    fn later(
        &self,
        value: &[u8],
        seen: Option<&Vec<u8>>,
        there: Option<Vec<u8>>,
        tables: (&Table, &Table),
    ) -> Option<Vec<u8>> {
        let came = self.value(Way::Up, value, tables);
        let Some(mut there) = there else { return Some(came) };
        match self.later {
            Later::Nothing | Later::Missing => None,
            Later::Merged => {
                let both = merged(flow_of(&there)?, flow_of(&came)?);
                let both = flow_bytes(&both).to_vec();
                (both != there).then_some(both)
            }
            Later::Newest => {
                let is_newer = last_used(self.old, &came) > last_used(self.old, &there);
                is_newer.then_some(came)
            }
            Later::Added => {
                let mut since = came;
                if let Some(seen) = seen {
                    add(&mut since, &self.value(Way::Up, seen, tables), u64::saturating_sub);
                }
                add(&mut there, &since, u64::wrapping_add);
                since.iter().any(|byte| *byte != 0).then_some(there)
            }
        }
    }
}

fn open(pins: &Pins, name: &str) -> Result<Table, DatapathError> {
    Table::open(&pins.map(name))
}

/// The programs make the secret of IPv6 addresses' ids when they first need it. Made now it is the
/// same one for the programs of both layouts.
fn make_secret(old: &Pins) -> Result<(), DatapathError> {
    if !old.map("seed6").exists() {
        return Ok(());
    }
    let table = open(old, "seed6")?;
    let key = 0_u32.to_ne_bytes();
    if table.get(&key)?.is_some_and(|secret| secret.iter().all(|byte| *byte == 0)) {
        table.set(&key, &rand::random::<[u8; 16]>())?;
    }
    Ok(())
}

/// Puts the tables of one layout into the other's `lb_tables`: they are never changed, and their
/// digests are their keys.
fn share_tables(from: &Pins, to: &Pins) -> Result<(), DatapathError> {
    let (old, mut new) = (outer(from)?, outer(to)?);
    let failed = |e: &dyn std::error::Error| kernel("share the tables of lb_tables", words(e));
    for key in old.keys() {
        let key = key.map_err(|e| failed(&e))?;
        let inner = old.get(&key, 0).map_err(|e| failed(&e))?;
        new.insert(key, &inner, 0).map_err(|e| failed(&e))?;
    }
    Ok(())
}

fn outer(pins: &Pins) -> Result<lb_table::Outer, DatapathError> {
    let path = pins.map("lb_tables");
    let map = aya::maps::MapData::from_pin(&path).map_err(|e| bad_pin(&path, &e))?;
    aya::maps::Map::HashOfMaps(map).try_into().map_err(|e| bad_pin(&path, &e))
}

/// Refuses maps that are not those of layout 1.
pub fn check(old: &Pins) -> Result<(), DatapathError> {
    for (name, shape) in layout1::MAPS {
        let path = old.map(name);
        if !path.exists() {
            continue;
        }
        let found = Table::open(&path)?.shape();
        let sizes = |shape: super::super::sys::MapShape| (shape.kind, shape.key, shape.value);
        if sizes(found) != sizes(shape) {
            return Err(DatapathError::Pin {
                path: path.display().to_string(),
                reason: format!(
                    "its type, key and value sizes are {:?}, those of layout 1 are {:?}",
                    sizes(found),
                    sizes(shape)
                ),
            });
        }
    }
    Ok(())
}
