//! Checks which caller may make which call. A node may make only the calls that it needs for
//! itself.

use super::error::{forbidden, unauthenticated};
use crate::{
    api::{ApiError, Identity, Request},
    model::{ClusterState, Id},
};

/// Rejects a call that the caller may not make.
pub(super) fn authorize(
    state: &ClusterState,
    who: &Identity,
    request: &Request,
) -> Result<(), ApiError> {
    match who {
        Identity::Administrator => administrator(request),
        Identity::Node(id) => {
            member(state, id)?;
            node_may(state, id, request)
        }
        Identity::Anonymous => match request {
            Request::Join(_) => Ok(()),
            _ => Err(unauthenticated("this call needs a certificate of the cluster")
                .hint("join the cluster first with `overlay join`")),
        },
    }
}

/// Rejects a caller that may not watch the state.
pub(super) fn may_watch(state: &ClusterState, who: &Identity) -> Result<(), ApiError> {
    authorize(state, who, &Request::State {})
}

/// Returns the calling node. Rejects any other caller.
pub(super) fn node(who: &Identity) -> Result<&Id, ApiError> {
    match who {
        Identity::Node(id) => Ok(id),
        Identity::Administrator | Identity::Anonymous => {
            Err(forbidden("this call is for nodes only"))
        }
    }
}

fn administrator(request: &Request) -> Result<(), ApiError> {
    match request {
        Request::EndpointCreate(_)
        | Request::EndpointUpdate(_)
        | Request::EndpointHealth(_)
        | Request::EndpointRemove(_)
        | Request::NodeAddresses(_)
        | Request::Heartbeat(_) => Err(forbidden(
            "this call is for the node itself: it says what the node's own kernel holds",
        )
        .hint("use `overlay endpoint attach` or `detach` on that host")),
        _ => Ok(()),
    }
}

/// Rejects a node that is no longer in the cluster's state. Its certificate stays valid after that.
fn member(state: &ClusterState, id: &Id) -> Result<(), ApiError> {
    if state.nodes.contains_key(id) {
        return Ok(());
    }
    Err(forbidden(format!("node {} was removed from the cluster", id.short()))
        .hint("run `overlay leave --force` on that host, and `overlay join` to take it in again"))
}

fn node_may(state: &ClusterState, id: &Id, request: &Request) -> Result<(), ApiError> {
    match request {
        // The code that looks up the container also checks that it is on the calling node.
        Request::State {}
        | Request::Sync(_)
        | Request::FlowsLeft(_)
        | Request::EndpointUpdate(_)
        | Request::EndpointHealth(_)
        | Request::EndpointRemove(_) => Ok(()),
        Request::Heartbeat(heartbeat) => same(id, &heartbeat.node),
        Request::NodeAddresses(addresses) => same(id, &addresses.node),
        Request::EndpointCreate(create) => same(id, &create.node),
        Request::NodeRemove(remove) => match state.node(&remove.reference) {
            Some(node) => same(id, &node.id),
            None => Err(forbidden("a node may remove no other than itself")),
        },
        Request::NetworkCreate(_)
        | Request::NetworkRemove(_)
        | Request::ServiceCreate(_)
        | Request::ServiceUpdate(_)
        | Request::ServiceRemove(_)
        | Request::EndpointWeight(_)
        | Request::NodeUpdate(_)
        | Request::TokenCreate(_)
        | Request::TokenList {}
        | Request::TokenRemove(_)
        | Request::Join(_) => Err(forbidden("a node's certificate is not enough for this call")
            .hint("run the command on a manager's host")),
    }
}

fn same(caller: &Id, named: &Id) -> Result<(), ApiError> {
    if caller == named {
        return Ok(());
    }
    Err(forbidden(format!("node {} may not act for node {}", caller.short(), named.short())))
}
