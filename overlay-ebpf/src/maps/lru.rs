//! LRU maps that count their entries. The kernel does not report the entries that it evicts from a
//! full map, and some kernels do not let programs trace its functions. So the programs count the
//! entries that they make and remove, and the agent counts the entries in the map and computes the
//! rest ([`LruStats`]).

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_EXIST, BPF_NOEXIST},
    btf_maps::LruHashMap,
};
use overlay_common::maps::{Lru, LruStats};

use crate::maps::LRU_STATS;

/// An LRU map that counts the entries that programs make and remove.
pub struct Counted<K: 'static, V: 'static, const ENTRIES: usize> {
    map: &'static LruHashMap<K, V, ENTRIES>,
    lru: Lru,
}

impl<K, V, const ENTRIES: usize> Counted<K, V, ENTRIES> {
    /// Wraps a map and its index in `lru_stats`.
    pub const fn new(map: &'static LruHashMap<K, V, ENTRIES>, lru: Lru) -> Self {
        Self { map, lru }
    }

    /// The value under `key`. The kernel may reuse its map entry for another key.
    #[inline(always)]
    pub fn get_ptr(self, key: &K) -> Option<*const V> {
        self.map.get_ptr(key)
    }

    /// As [`Counted::get_ptr`].
    #[inline(always)]
    pub fn get_ptr_mut(self, key: &K) -> Option<*mut V> {
        self.map.get_ptr_mut(key)
    }

    /// Writes an entry: with [`BPF_NOEXIST`] only if there is none, with [`BPF_ANY`] also over one.
    /// Replacing an entry is not counted. The kernel does not say which of the two it did, so the
    /// first call asks for a new entry.
    #[inline(always)]
    pub fn insert(self, key: &K, value: &V, flags: u64) -> Result<(), i32> {
        let made = self.map.insert(key, value, u64::from(BPF_NOEXIST));
        if made.is_ok() {
            self.count(|lru_stats| lru_stats.made += 1);
            return made;
        }
        if flags == u64::from(BPF_ANY) { self.map.insert(key, value, flags) } else { made }
    }

    /// As [`Counted::insert`] with [`BPF_ANY`]. It is faster if the entry exists.
    ///
    /// # Errors
    /// As [`Counted::insert`].
    #[inline(always)]
    pub fn replace(self, key: &K, value: &V) -> Result<(), i32> {
        let replaced = self.map.insert(key, value, u64::from(BPF_EXIST));
        if replaced.is_ok() { replaced } else { self.insert(key, value, u64::from(BPF_ANY)) }
    }

    /// Removes an entry.
    ///
    /// # Errors
    /// The kernel's error number, usually because there is no entry.
    #[inline(always)]
    pub fn remove(self, key: &K) -> Result<(), i32> {
        let removed = self.map.remove(key);
        if removed.is_ok() {
            self.count(|lru_stats| lru_stats.removed += 1);
        }
        removed
    }

    #[inline(always)]
    fn count(self, add: impl FnOnce(&mut LruStats)) {
        if let Some(lru_stats) = LRU_STATS.get_ptr_mut(self.lru as u32) {
            // SAFETY: this CPU's own value, from a successful look-up.
            add(unsafe { &mut *lru_stats });
        }
    }
}

impl<K, V, const ENTRIES: usize> Clone for Counted<K, V, ENTRIES> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V, const ENTRIES: usize> Copy for Counted<K, V, ENTRIES> {}
