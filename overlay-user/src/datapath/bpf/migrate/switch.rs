//! The programs of layout 2 in the links of layout 1.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::{
    Ebpf,
    programs::{ProgramInfo, SchedClassifier, loaded_programs},
};
use nix::libc;

use super::{
    super::{
        attach, bad_pin, clsact, kernel,
        object::missing,
        pins::{LinkKind, Pins},
        sys::{self, Target},
        words,
    },
    Step, Stop,
};
use crate::datapath::DatapathError;

/// A pinned attachment of layout 1.
struct Place {
    kind: LinkKind,
    /// Name of its pin: an interface or a socket program.
    name: String,
    /// The link; none of a filter of clsact.
    link: Option<OwnedFd>,
    /// The program in it. The new one has the same name.
    program: String,
}

/// Replaces the programs of all links, then moves the pins of these.
pub(super) fn switch(
    ebpf: &mut Ebpf,
    (old, new): (&Pins, &Pins),
    reached: &mut dyn FnMut(Step) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let places = places(old)?;
    // Before the first one is replaced.
    for place in &places {
        ebpf.program(&place.program).ok_or_else(|| missing("program", &place.program))?;
    }
    for (number, place) in places.iter().enumerate() {
        place.replace(ebpf, new)?;
        if number == 0 {
            reached(Step::OneSwitched)?;
        }
    }
    reached(Step::AllSwitched)?;
    for (number, place) in places.iter().enumerate() {
        match place.kind {
            // Attaching has pinned it.
            LinkKind::Clsact => super::remove_file(&old.link(place.kind, &place.name))?,
            kind => new.adopt_link(old, (kind, &place.name))?,
        }
        if number == 0 {
            reached(Step::OneMoved)?;
        }
    }
    reached(Step::AllMoved)
}

/// All existing attachments; pins of targets that no longer exist are removed.
fn places(old: &Pins) -> Result<Vec<Place>, DatapathError> {
    let mut places = Vec::new();
    for (kind, name) in old.list_links()? {
        let path = old.link(kind, &name);
        if kind == LinkKind::Clsact {
            if !clsact::is_attached(&name)? {
                super::remove_file(&path)?;
                continue;
            }
            let info = ProgramInfo::from_pin(&path).map_err(|e| bad_pin(&path, &e))?;
            let program = info.name_as_str().unwrap_or_default().to_owned();
            places.push(Place { kind, name, link: None, program });
            continue;
        }
        let Some((link, info)) = old.open_link(kind, &name)? else { continue };
        if info.target == Target::Gone {
            old.remove_link(kind, &name)?;
            continue;
        }
        let program = program_name(info.program)?;
        places.push(Place { kind, name, link: Some(link), program });
    }
    Ok(places)
}

/// The name of the program with this id, of which the kernel keeps 15 bytes.
fn program_name(id: u32) -> Result<String, DatapathError> {
    let failed = |e: String| kernel(format!("find the program {id} of a pinned link"), e);
    for info in loaded_programs() {
        let info = info.map_err(|e| failed(words(&e)))?;
        if info.id() == id {
            return Ok(info.name_as_str().unwrap_or_default().to_owned());
        }
    }
    Err(failed("there is none".to_owned()))
}

impl Place {
    fn replace(&self, ebpf: &mut Ebpf, new: &Pins) -> Result<(), DatapathError> {
        let Self { kind, name, link, program } = self;
        let action = || format!("replace {program} at {}{name}", kind.prefix());
        let loaded = ebpf.program_mut(program).ok_or_else(|| missing("program", program))?;
        let Some(link) = link else {
            let ifindex = attach::ifindex(name, &action)?;
            let loaded: &mut SchedClassifier = loaded
                .try_into()
                .map_err(|_| missing("program of the right type named", program))?;
            return clsact::attach(new, loaded, program, (name, ifindex));
        };
        let fd = loaded.fd().map_err(|e| kernel(action(), words(&e)))?;
        match sys::update_link(link.as_fd(), fd.as_fd()) {
            // Its interface or cgroup went meanwhile; the pin is found to be of nothing later.
            Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
            outcome => outcome.map_err(|e| kernel(action(), e)),
        }
    }
}
