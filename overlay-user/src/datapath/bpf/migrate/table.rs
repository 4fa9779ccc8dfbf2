//! A pinned map as bytes, whatever it holds.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::{maps::MapInfo, util::nr_cpus};

use super::super::{
    bad_pin, kernel,
    sys::{self, MapShape},
};
use crate::datapath::DatapathError;

/// Bytes of a key and of a value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// An open map.
pub struct Table {
    /// Its name, which is that of its pin.
    pub name: String,
    fd: OwnedFd,
    shape: MapShape,
    /// How many values an entry has: one for each possible CPU, or one.
    values: usize,
}

/// `BPF_MAP_TYPE_*` of linux/bpf.h.
const ARRAY: u32 = 2;
const PER_CPU_HASH: u32 = 5;
const PER_CPU_ARRAY: u32 = 6;
const LPM_TRIE: u32 = 11;

impl Table {
    /// Opens a pinned map.
    pub fn open(path: &Path) -> Result<Self, DatapathError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let info = MapInfo::from_pin(path).map_err(|e| bad_pin(path, &e))?;
        let kind = info.map_type().map_err(|e| bad_pin(path, &e))? as u32;
        let shape = MapShape {
            kind,
            key: info.key_size(),
            value: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags(),
        };
        let failed = |e: io::Error| kernel(format!("open the pinned map {}", path.display()), e);
        let fd = sys::open_pin(path).map_err(failed)?;
        let values = match kind {
            PER_CPU_HASH | PER_CPU_ARRAY => nr_cpus().map_err(|(_, e)| failed(e))?,
            _ => 1,
        };
        Ok(Self { name, fd, shape, values })
    }

    /// The attributes that it was made with.
    pub const fn shape(&self) -> MapShape {
        self.shape
    }

    /// Bytes of one value.
    pub const fn value_size(&self) -> usize {
        self.shape.value as usize
    }

    /// Bytes from one CPU's value to the next one's.
    const fn stride(&self) -> usize {
        if self.values > 1 { self.value_size().next_multiple_of(8) } else { self.value_size() }
    }

    /// Bytes of an entry's values together.
    const fn all_values(&self) -> usize {
        match self.shape.kind {
            PER_CPU_HASH | PER_CPU_ARRAY => self.value_size().next_multiple_of(8) * self.values,
            _ => self.value_size(),
        }
    }

    /// Whether a key is one that the map can have: an array has those below its size.
    pub fn has_room_for(&self, key: &[u8]) -> bool {
        let is_array = matches!(self.shape.kind, ARRAY | PER_CPU_ARRAY);
        let index = key.try_into().map_or(u32::MAX, u32::from_ne_bytes);
        !is_array || index < self.shape.entries
    }

    /// All entries.
    pub fn entries(&self) -> Result<Vec<Entry>, DatapathError> {
        let outcome = match self.shape.kind {
            ARRAY | PER_CPU_ARRAY => self.elements(),
            LPM_TRIE => self.prefixes(),
            _ => self.hashed(),
        };
        outcome.map_err(|e| kernel(format!("read the map {}", self.name), e))
    }

    fn hashed(&self) -> io::Result<Vec<Entry>> {
        let sizes = (self.shape.key as usize, self.all_values());
        let mut entries = Vec::new();
        sys::read_entries(self.fd.as_fd(), sizes, |keys, values| {
            let both = keys.chunks_exact(sizes.0).zip(values.chunks_exact(sizes.1));
            entries.extend(both.map(|(key, value)| (key.to_vec(), value.to_vec())));
        })?;
        Ok(entries)
    }

    fn elements(&self) -> io::Result<Vec<Entry>> {
        let element = |index: u32| {
            let key = index.to_ne_bytes().to_vec();
            let mut value = vec![0; self.all_values()];
            sys::get(self.fd.as_fd(), &key, &mut value)?;
            Ok((key, value))
        };
        (0..self.shape.entries).map(element).collect()
    }

    fn prefixes(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut key: Option<Vec<u8>> = None;
        loop {
            let mut next = vec![0; self.shape.key as usize];
            if !sys::next_key(self.fd.as_fd(), key.as_deref(), &mut next)? {
                return Ok(entries);
            }
            let mut value = vec![0; self.value_size()];
            if sys::get(self.fd.as_fd(), &next, &mut value)? {
                entries.push((next.clone(), value));
            }
            key = Some(next);
        }
    }

    /// The value under a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DatapathError> {
        let mut value = vec![0; self.all_values()];
        let found = sys::get(self.fd.as_fd(), key, &mut value);
        let found = found.map_err(|e| kernel(format!("read the map {}", self.name), e))?;
        Ok(found.then_some(value))
    }

    /// Writes an entry, whether there is one or not.
    pub fn set(&self, key: &[u8], value: &[u8]) -> Result<(), DatapathError> {
        let written = sys::set(self.fd.as_fd(), key, value, 0);
        written.map_err(|e| kernel(format!("write the map {}", self.name), e))
    }

    /// Removes an entry; a missing one is no error.
    pub fn remove(&self, key: &[u8]) -> Result<(), DatapathError> {
        let removed = sys::remove(self.fd.as_fd(), key);
        removed.map_err(|e| kernel(format!("write the map {}", self.name), e))
    }

    /// An entry's value for another map of as many values, each of them made by `convert`.
    pub fn convert(&self, value: &[u8], to: &Self, convert: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
        let mut converted = vec![0; to.all_values()];
        let parts =
            value.chunks(self.stride().max(1)).zip(converted.chunks_mut(to.stride().max(1)));
        for (old, new) in parts {
            let value = convert(&old[..self.value_size()]);
            new[..value.len()].copy_from_slice(&value);
        }
        converted
    }
}

/// Adds up counters, 64 bits each.
pub fn add(to: &mut [u8], value: &[u8], of: impl Fn(u64, u64) -> u64) {
    for (to, value) in to.chunks_exact_mut(8).zip(value.chunks_exact(8)) {
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
        let sum = of(word(to), word(value));
        to.copy_from_slice(&sum.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_added_each_by_itself() {
        let words = |words: [u64; 2]| words.map(u64::to_ne_bytes).concat();
        let mut sum = words([u64::MAX, 5]);
        add(&mut sum, &words([1, 2]), u64::wrapping_add);
        assert_eq!(sum, words([0, 7]));
        add(&mut sum, &words([9, 3]), u64::saturating_sub);
        assert_eq!(sum, words([0, 4]));
    }
}
