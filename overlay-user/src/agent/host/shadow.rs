//! Published ports on which a program of this host listens as well. The datapath takes their
//! packets first, so that program gets only packets to other addresses.

use std::{path::Path, sync::Arc};

use overlay_common::wire::{PROTO_SCTP, PROTO_TCP, PROTO_UDP};

use super::HostSetup;
use crate::{
    agent::{blocking::blocking, error::AgentError},
    datapath::{Datapath, DatapathState},
    link::Links,
};

const SHADOWING: &str = "published ports";

/// The network namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";
/// How many ports the warning names.
const NAMED: usize = 8;

impl<D: Datapath, L: Links> HostSetup<D, L> {
    /// Notes which published ports are shadowed.
    pub async fn look_for_shadowed_ports(self: &Arc<Self>) {
        let setup = self.clone();
        let conditions = &self.context.conditions;
        match blocking(move || setup.shadowed_ports()).await {
            Ok(ports) if ports.is_empty() => conditions.clear(SHADOWING),
            Ok(ports) => conditions.fail(SHADOWING, warning(&ports)),
            Err(error) => conditions.fail(SHADOWING, error),
        }
    }

    /// Protocol numbers and ports.
    fn shadowed_ports(&self) -> Result<Vec<(u8, u16)>, AgentError> {
        let ports = |held: &DatapathState| {
            held.published.keys().map(|key| (key.proto, key.port.get())).collect()
        };
        let published: Vec<(u8, u16)> = self.reconciler.applied(ports).unwrap_or_default();
        let listens = |ports: &[(u8, u16)]| self.context.links.listens(Path::new(OWN), ports);
        if published.is_empty() || !listens(&published)? {
            return Ok(Vec::new());
        }
        // This is rare: one look for each port finds the shadowed ones.
        let mut shadowed = Vec::new();
        for port in published {
            if listens(&[port])? {
                shadowed.push(port);
            }
        }
        Ok(shadowed)
    }
}

fn warning(ports: &[(u8, u16)]) -> String {
    let more = if ports.len() > NAMED { ", …" } else { "" };
    let named = ports.iter().take(NAMED).map(|(protocol, port)| match *protocol {
        PROTO_TCP => format!("{port}/tcp"),
        PROTO_UDP => format!("{port}/udp"),
        PROTO_SCTP => format!("{port}/sctp"),
        other => format!("{port}/{other}"),
    });
    let named: Vec<_> = named.collect();
    format!(
        "programs of this host listen on ports that the cluster publishes, and get no packets \
         there: {}{more}; stop them, or publish other ports",
        named.join(", ")
    )
}
