//! Map `lb_tables`: an array for each table, made and filled before it is put into the map.

use std::{
    borrow::{Borrow, BorrowMut},
    collections::BTreeMap,
    os::fd::AsFd as _,
};

use aya::maps::{HashOfMaps, MapData, MapError};
use aya_obj::{
    Map,
    generated::{BPF_F_INNER_MAP, bpf_map_type},
};
use nix::libc;
use overlay_common::maps::{Slot, TableKey};

use super::{kernel, sys, tables::errno, words};
use crate::datapath::{DatapathError, LbTable};

/// The outer map.
pub(super) type Outer<T = MapData> = HashOfMaps<T, TableKey, MapData>;

/// Puts a table into the map or, with `None`, removes it.
///
/// # Errors
/// The kernel's error.
pub fn set<T: BorrowMut<MapData>>(
    tables: &mut HashOfMaps<T, TableKey, MapData>,
    key: TableKey,
    table: &Option<LbTable>,
) -> Result<(), MapError> {
    let Some(table) = table else {
        return match tables.remove(&key) {
            Err(e) if errno(&e) == Some(libc::ENOENT) => Ok(()),
            outcome => outcome,
        };
    };
    let entries = table.fill();
    // The kernel makes no empty arrays.
    let size = table.size().max(1);
    let array = Map::new_from_params(
        bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
        size_of::<u32>() as u32,
        size_of::<Slot>() as u32,
        size,
        BPF_F_INNER_MAP,
    );
    let inner = MapData::create(array, "lb_table", None)?;
    sys::fill_array(inner.fd().as_fd(), &entries).map_err(MapError::IoError)?;
    // A key contains the digest of its table, so an existing key has the same contents.
    sys::freeze(inner.fd().as_fd()).map_err(MapError::IoError)?;
    tables.insert(key, &inner, 0)
}

/// The tables in the map: keys and sizes.
pub(super) fn read_all<T: Borrow<MapData>>(
    tables: &HashOfMaps<T, TableKey, MapData>,
) -> Result<BTreeMap<TableKey, LbTable>, DatapathError> {
    let mut found = BTreeMap::new();
    for key in tables.keys() {
        let key = key.map_err(|e| failed(&e))?;
        if let Some(inner) = get(tables, key)? {
            let info = inner.info().map_err(|e| failed(&e))?;
            found.insert(key, LbTable::found(info.max_entries()));
        }
    }
    Ok(found)
}

/// The entries of one table.
pub(super) fn read<T: Borrow<MapData>>(
    tables: &HashOfMaps<T, TableKey, MapData>,
    key: TableKey,
) -> Result<Option<Vec<Slot>>, DatapathError> {
    let Some(inner) = get(tables, key)? else { return Ok(None) };
    let size = inner.info().map_err(|e| failed(&e))?.max_entries();
    let entries = sys::read_array(inner.fd().as_fd(), size);
    entries.map(Some).map_err(|e| kernel("read a table of the map lb_tables", e))
}

fn get<T: Borrow<MapData>>(
    tables: &HashOfMaps<T, TableKey, MapData>,
    key: TableKey,
) -> Result<Option<MapData>, DatapathError> {
    match tables.get(&key, 0) {
        Ok(inner) => Ok(Some(inner)),
        Err(e) if errno(&e) == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(failed(&e)),
    }
}

fn failed(error: &MapError) -> DatapathError {
    kernel("read the map lb_tables", words(error))
}
