//! A node as `docker node inspect` shows it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use jiff::Timestamp;
use serde::Serialize;

use crate::model::{Availability, Node, NodeState, Role};

/// A node as `docker node inspect` shows it, with its address on the ingress network.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeInspect {
    #[serde(rename = "ID")]
    id: String,
    created_at: Timestamp,
    spec: Spec,
    description: Description,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    manager_status: Option<ManagerStatus>,
    ingress_address: Ipv4Addr,
    /// On which it answers published ports.
    #[serde(rename = "IPv6Addresses")]
    ipv6_addresses: Vec<Ipv6Addr>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    role: Role,
    availability: Availability,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Description {
    hostname: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    state: NodeState,
    addr: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ManagerStatus {
    addr: SocketAddr,
}

/// A node of the cluster.
pub fn node(node: &Node) -> NodeInspect {
    NodeInspect {
        id: node.id.to_string(),
        created_at: node.created,
        spec: Spec { role: node.role, availability: node.availability },
        description: Description { hostname: node.name.clone() },
        status: Status { state: node.state, addr: node.data_path_addr },
        manager_status: node.api_addr.map(|addr| ManagerStatus { addr }),
        ingress_address: node.ingress_ip,
        ipv6_addresses: node.addresses6.clone(),
    }
}
