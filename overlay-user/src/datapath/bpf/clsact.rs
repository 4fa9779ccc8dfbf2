//! Attaching to TC before 6.6, where there are no tcx links: a filter of the clsact qdisc at a
//! fixed priority and handle, so that replacing it is one atomic change and removing it exact.

use aya::programs::{
    Link as _, SchedClassifier, TcAttachType, TcError, TcHandle,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions},
};
use nix::libc;

use super::{
    kernel,
    netlink::{self, Filter},
    object::PROGRAMS,
    pins::{LinkKind, Pins, remove_file},
    words,
};
use crate::datapath::DatapathError;

/// The priority before all others: the first filter decides about the packet.
const PRIORITY: u16 = 1;
/// Tells our filter from others of the same priority: the letters "ov".
const HANDLE: u16 = 0x6f76;

/// Attaches or replaces the program, and pins it under the interface's name.
pub(super) fn attach(
    pins: &Pins,
    program: &mut SchedClassifier,
    name: &str,
    iface: (&str, u32),
) -> Result<(), DatapathError> {
    let (iface, ifindex) = iface;
    let action = || format!("attach {name} to {iface} (clsact)");
    let failed = |e: &dyn std::error::Error| kernel(action(), words(e));
    let link = match ours(ifindex).map_err(|e| kernel(action(), e))? {
        Some(filter) if !is_ours(&filter) => {
            let taken = format!("the filter {:?} has our priority and handle", filter.program);
            return Err(kernel(action(), taken));
        }
        Some(_) => {
            let handle = TcHandle::new(0, HANDLE);
            let attached = TcAttachType::Ingress;
            let link = SchedClassifierLink::attached(iface, attached, PRIORITY, handle, None)
                .map_err(|e| failed(&e))?;
            program.attach_to_link(link)
        }
        None => {
            add_qdisc(iface).map_err(|e| failed(&e))?;
            let handle = TcHandle::new(0, HANDLE);
            let options = NlOptions { priority: PRIORITY, handle, classid: None };
            let options = TcAttachOptions::Netlink(options);
            program.attach_with_options(iface, TcAttachType::Ingress, options)
        }
    };
    let link = link.and_then(|id| program.take_link(id)).map_err(|e| failed(&e))?;
    // The filter is to outlive this process; the value holds nothing but its numbers.
    std::mem::forget(link);
    let pin = pins.link(LinkKind::Clsact, iface);
    remove_file(&pin)?;
    program.pin(&pin).map_err(|e| failed(&e))
}

fn add_qdisc(iface: &str) -> Result<(), TcError> {
    match tc::qdisc_add_clsact(iface) {
        Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        outcome => outcome,
    }
}

/// Removes our filter, its pin, and the qdisc when nothing else is in it. A missing interface or
/// filter is no error.
pub(super) fn detach(pins: &Pins, iface: &str) -> Result<(), DatapathError> {
    if let Ok(ifindex) = nix::net::if_::if_nametoindex(iface) {
        let action = || format!("detach from {iface} (clsact)");
        if ours(ifindex).map_err(|e| kernel(action(), e))?.is_some_and(|f| is_ours(&f)) {
            let handle = TcHandle::new(0, HANDLE);
            let attached = TcAttachType::Ingress;
            SchedClassifierLink::attached(iface, attached, PRIORITY, handle, None)
                .map_err(|e| kernel(action(), e))?
                .detach()
                .map_err(|e| kernel(action(), words(&e)))?;
            let (ingress, egress) = netlink::filters(ifindex).map_err(|e| kernel(action(), e))?;
            if ingress.is_empty() && egress.is_empty() {
                netlink::remove_clsact(ifindex).map_err(|e| kernel(action(), e))?;
            }
        }
    }
    pins.remove_link(LinkKind::Clsact, iface)
}

/// Whether our filter is on the interface.
pub(super) fn is_attached(iface: &str) -> Result<bool, DatapathError> {
    let Ok(ifindex) = nix::net::if_::if_nametoindex(iface) else { return Ok(false) };
    let found = ours(ifindex).map_err(|e| kernel(format!("list the filters of {iface}"), e))?;
    Ok(found.is_some_and(|f| is_ours(&f)))
}

/// The filter at our priority and handle.
fn ours(ifindex: u32) -> Result<Option<Filter>, String> {
    let (ingress, _) = netlink::filters(ifindex)?;
    Ok(ingress.into_iter().find(|f| f.priority == PRIORITY && f.handle == u32::from(HANDLE)))
}

fn is_ours(filter: &Filter) -> bool {
    filter.program.as_deref().is_some_and(|name| PROGRAMS.contains(&name))
}
