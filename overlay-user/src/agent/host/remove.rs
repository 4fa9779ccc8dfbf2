//! Takes everything of the agent out of the kernel.

use crate::{
    agent::{
        context::Context,
        error::AgentError,
        interfaces::{OWN_PREFIX, VXLAN},
    },
    datapath::Datapath,
    link::Links,
};

/// Removes programs, pins and interfaces. Goes on after failures.
pub async fn remove_from_kernel<D: Datapath, L: Links>(
    context: &Context<D, L>,
) -> (Vec<String>, Vec<AgentError>) {
    let (mut removed, mut failures) = (Vec::new(), Vec::new());
    match context.host.unload() {
        Ok(pins) => removed.extend(pins),
        Err(error) => failures.push(error.into()),
    }
    let mut links = match context.links.list(OWN_PREFIX).await {
        Ok(links) => links,
        Err(error) => {
            failures.push(error.into());
            Vec::new()
        }
    };
    // Both ends of the host link go with the first one.
    links.sort_by_key(|(name, _)| name == VXLAN);
    for (name, _) in links {
        match context.links.remove(&name).await {
            Ok(()) => removed.push(format!("interface {name}")),
            Err(error) => failures.push(error.into()),
        }
    }
    (removed, failures)
}
