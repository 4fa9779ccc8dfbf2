//! The uplinks of this host: the programs on the interfaces that lead outside.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::HostSetup;
use crate::{
    agent::{
        error::AgentError,
        interfaces::{OWN_PREFIX, is_endpoint_link},
    },
    datapath::Datapath,
    link::{Links, WayOut},
};

const ATTACHING: &str = "attaching to the interfaces that lead outside";
const PORTS: &str = "choosing source ports for flows to the outside";

impl<D: Datapath, L: Links> HostSetup<D, L> {
    /// Attaches to the interfaces by which packets come from outside. Returns those by which flows
    /// may leave, with their addresses. Replies through an interface without the program would be
    /// lost.
    pub(super) fn attach_egress(&self, ways: &[WayOut]) -> BTreeMap<u32, Ipv4Addr> {
        let mut failures = Vec::new();
        let mut usable = BTreeMap::new();
        for way in ways {
            // The underlay's interface has a program of its own.
            if way.name != self.context.config.iface
                && let Err(error) = self.context.datapath.attach_outside(&way.name)
            {
                failures.push(error.to_string());
                continue;
            }
            usable.extend(way.address.map(|address| (way.ifindex, address)));
        }
        let outcome = if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) };
        self.context.conditions.note(ATTACHING, outcome);
        usable
    }

    /// Detaches from interfaces that no longer lead outside.
    ///
    /// # Errors
    /// [`AgentError::Datapath`] when a pin cannot be removed.
    pub(super) fn detach_former_egress(&self, ways: &[WayOut]) -> Result<(), AgentError> {
        let now: BTreeSet<&str> = ways.iter().map(|way| way.name.as_str()).collect();
        for name in self.context.datapath.attachments()? {
            let ours = name == self.context.config.iface
                || name.starts_with(OWN_PREFIX)
                || is_endpoint_link(&name);
            if !ours && !now.contains(name.as_str()) {
                tracing::info!("{name} leads outside no more");
                self.context.datapath.detach(&name)?;
            }
        }
        Ok(())
    }

    /// Warns when the host's own sockets may be given ports that flows to the outside use.
    pub(super) fn check_egress_ports(&self) {
        let [first, last] = self.context.config.outside_ports;
        match self.context.host.local_ports() {
            Some((low, high)) if low <= last && first <= high => self.context.conditions.fail(
                PORTS,
                format!(
                    "containers' flows leave from the ports {first} to {last}, and the kernel \
                     gives sockets of the host those from {low} to {high} \
                     (net.ipv4.ip_local_port_range): change one of the two (`\"outside_ports\"` \
                     in agent.json)"
                ),
            ),
            _ => self.context.conditions.clear(PORTS),
        }
    }
}
