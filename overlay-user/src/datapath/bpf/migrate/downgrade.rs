//! Back to layout 1, for an older version that knows no other.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use super::{
    super::{
        kernel,
        pins::{LinkKind, Pins, remove_file},
        sys::{self, MapShape},
    },
    MARK, carry,
    entry::Way,
    layout1, mark,
    table::Table,
};
use crate::datapath::DatapathError;

/// The objects that were handed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Downgraded {
    /// Names of the maps of layout 1.
    pub maps: Vec<String>,
    /// How many attachments wait for the older version's programs.
    pub attachments: usize,
}

/// Fills maps of layout 1 from those of layout 2 and hands the pinned attachments over to it. The
/// programs of this version stay in them, with their own maps, until an older version starts, which
/// puts its programs there in one step each. That version does not see entries that the programs
/// make from now on. `None` when nothing of layout 2 is loaded.
///
/// # Errors
/// [`DatapathError::Kernel`]. The datapath of layout 2 then stays in force, and the next start of
/// this version, or the next call, continues.
pub fn downgrade(pin_dir: &Path) -> Result<Option<Downgraded>, DatapathError> {
    let (old, new) = (Pins::of(pin_dir, layout1::VERSION), Pins::new(pin_dir));
    if !new.map("config").exists() {
        return Ok(None);
    }
    mark(&new)?;
    old.make_directories()?;
    make_maps(&old, &new)?;
    carry::carry(Way::Down, &new, &old)?;
    // The kernel empties a program array that is open and pinned nowhere, and programs that are
    // attached look into this one. An older version leaves it alone.
    keep(&old, &new)?;
    let links = new.list_links()?;
    for (kind, name) in &links {
        old.adopt_link(&new, (*kind, name))?;
    }
    let attachments =
        old.list_links()?.iter().filter(|(kind, _)| *kind != LinkKind::Socket).count();
    // From here on the maps of layout 1 are those in force.
    remove_file(&new.map(MARK))?;
    new.forget()?;
    let maps = layout1::MAPS.iter().map(|(name, _)| (*name).to_owned()).collect();
    Ok(Some(Downgraded { maps, attachments }))
}

/// Makes and pins the maps of layout 1, with nothing in them.
fn make_maps(old: &Pins, new: &Pins) -> Result<(), DatapathError> {
    for (name, shape) in layout1::MAPS {
        let path = old.map(name);
        // The leftovers of an interrupted call.
        remove_file(&path)?;
        let shape = MapShape { entries: entries(name, shape.entries, new)?, ..shape };
        make(name, shape)
            .and_then(|map| sys::pin(map.as_fd(), &path))
            .map_err(|e| kernel(format!("make the map {}", path.display()), e))?;
    }
    Ok(())
}

fn make(name: &str, shape: MapShape) -> std::io::Result<OwnedFd> {
    if name != "lb_tables" {
        return sys::create_map(shape, None);
    }
    let inner = sys::create_map(layout1::TABLE, None)?;
    sys::create_map(shape, Some(inner.as_fd()))
}

/// The tables of flows keep their sizes.
fn entries(name: &str, usual: u32, new: &Pins) -> Result<u32, DatapathError> {
    let same = match name {
        "conntrack" => "conntrack",
        "opening" => "ct_new",
        _ => return Ok(usual),
    };
    Ok(Table::open(&new.map(same))?.shape().entries)
}

/// Where the tail calls of this version stay pinned while an older one has the pins.
const KEPT: &str = "tail_calls";

fn keep(old: &Pins, new: &Pins) -> Result<(), DatapathError> {
    let path = old.map(KEPT);
    remove_file(&path)?;
    sys::open_pin(&new.map(KEPT))
        .and_then(|map| sys::pin(map.as_fd(), &path))
        .map_err(|e| kernel(format!("pin the map {}", path.display()), e))
}
