//! Published ports that a program of this host listens on as well: the programs go first, so it hears
//! nobody but those who ask another address.

use std::{path::Path, sync::Arc};

use overlay_common::wire::{PROTO_SCTP, PROTO_TCP, PROTO_UDP};

use crate::{
    agent::{Agent, AgentError, lock},
    {datapath::Datapath, link::Links},
};

const SHADOWING: &str = "published ports";

/// The namespace of the thread that asks.
const OWN: &str = "/proc/thread-self/ns/net";
/// How many ports are named.
const NAMED: usize = 8;

impl<D: Datapath, L: Links> Agent<D, L> {
    /// Notes which published ports are shadowed.
    pub(in crate::agent) async fn look_for_shadowed_ports(self: &Arc<Self>) {
        let agent = self.clone();
        let found = tokio::task::spawn_blocking(move || agent.shadowed_ports()).await;
        match found {
            Ok(Ok(ports)) if ports.is_empty() => self.overcome(SHADOWING),
            Ok(Ok(ports)) => {
                let more = if ports.len() > NAMED { ", …" } else { "" };
                let named = ports.iter().take(NAMED).map(|(protocol, port)| match *protocol {
                    PROTO_TCP => format!("{port}/tcp"),
                    PROTO_UDP => format!("{port}/udp"),
                    PROTO_SCTP => format!("{port}/sctp"),
                    other => format!("{port}/{other}"),
                });
                let named: Vec<_> = named.collect();
                self.trouble(
                    SHADOWING,
                    format!(
                        "programs of this host listen on ports that the cluster publishes, and hear \
                         nobody there: {}{more}; stop them, or publish other ports",
                        named.join(", ")
                    ),
                );
            }
            Ok(Err(error)) => self.trouble(SHADOWING, error),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Protocol numbers and ports.
    fn shadowed_ports(&self) -> Result<Vec<(u8, u16)>, AgentError> {
        let published: Vec<(u8, u16)> = match &lock(&self.applied).known {
            Some(known) => known.published.keys().map(|key| (key.proto, key.port.get())).collect(),
            None => return Ok(Vec::new()),
        };
        let listens = |ports: &[(u8, u16)]| self.links.listens(Path::new(OWN), ports);
        if published.is_empty() || !listens(&published)? {
            return Ok(Vec::new());
        }
        // Rare: one look for each says which.
        let mut shadowed = Vec::new();
        for port in published {
            if listens(&[port])? {
                shadowed.push(port);
            }
        }
        Ok(shadowed)
    }
}
