//! A service as `docker service inspect` shows it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::model::{
    BalanceInspect, ClusterState, Endpoint, EndpointMode, EndpointState, Health, HealthCheck, Port,
    Probe, Protocol, PublishMode, Service,
};

/// A service as `docker service inspect` shows it, with its backends.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceInspect {
    #[serde(rename = "ID")]
    id: String,
    created_at: Timestamp,
    spec: Spec,
    endpoint: EndpointOfService,
    tasks: Vec<Task>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    name: String,
    labels: BTreeMap<String, String>,
    networks: Vec<NetworkTarget>,
    endpoint_spec: EndpointSpec,
    /// Milliseconds a draining backend keeps its flows.
    drain_milliseconds: u64,
    /// How new flows are shared.
    balance: BalanceInspect,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_check: Option<HealthInspect>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct HealthInspect {
    probe: Probe,
    interval_milliseconds: u64,
    timeout_milliseconds: u64,
    retries: u32,
    start_period_milliseconds: u64,
}

impl From<&HealthCheck> for HealthInspect {
    fn from(check: &HealthCheck) -> Self {
        Self {
            probe: check.probe.clone(),
            interval_milliseconds: check.interval_ms,
            timeout_milliseconds: check.timeout_ms,
            retries: check.retries,
            start_period_milliseconds: check.start_period_ms,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkTarget {
    target: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct EndpointSpec {
    mode: EndpointMode,
    ports: Vec<PortInspect>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct PortInspect {
    protocol: Protocol,
    target_port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    published_port: Option<u16>,
    publish_mode: PublishMode,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct EndpointOfService {
    #[serde(rename = "VirtualIPs")]
    virtual_ips: Vec<VirtualIp>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct VirtualIp {
    #[serde(rename = "NetworkID")]
    network_id: String,
    /// Address and prefix length of the subnet.
    #[serde(rename = "Addr")]
    addr: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Task {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    #[serde(rename = "NetworkID")]
    network_id: String,
    #[serde(rename = "EndpointIP")]
    endpoint_ip: String,
    #[serde(rename = "Node")]
    node: String,
    #[serde(rename = "State")]
    state: EndpointState,
    #[serde(rename = "Health", skip_serializing_if = "Option::is_none")]
    health: Option<Health>,
    #[serde(rename = "Weight")]
    weight: u16,
}

impl From<&Port> for PortInspect {
    fn from(port: &Port) -> Self {
        Self {
            protocol: port.protocol,
            target_port: port.target,
            published_port: port.published,
            publish_mode: port.mode,
        }
    }
}

/// A service of the cluster.
pub fn service(state: &ClusterState, service: &Service) -> ServiceInspect {
    let networks = service.networks.iter();
    ServiceInspect {
        id: service.id.to_string(),
        created_at: service.created,
        spec: Spec {
            name: service.name.clone(),
            labels: service.labels.clone(),
            networks: networks.map(|n| NetworkTarget { target: n.network.to_string() }).collect(),
            endpoint_spec: EndpointSpec {
                mode: service.mode,
                ports: service.ports.iter().map(PortInspect::from).collect(),
            },
            drain_milliseconds: service.drain_ms,
            balance: BalanceInspect::from(&service.balance),
            health_check: service.health.as_deref().map(HealthInspect::from),
        },
        endpoint: EndpointOfService { virtual_ips: virtual_ips(state, service) },
        tasks: tasks(state, service),
    }
}

/// The VIPs; the IPv6 one of a network behind its IPv4 one, as an entry of its own.
fn virtual_ips(state: &ClusterState, service: &Service) -> Vec<VirtualIp> {
    let mut vips = Vec::new();
    for on in &service.networks {
        let Some(network) = state.networks.get(&on.network) else { continue };
        let ipv4 = on.vip.map(|vip| format!("{vip}/{}", network.subnet.prefix_len()));
        let ipv6 = on.vip6.zip(network.ipv6.as_ref());
        let ipv6 = ipv6.map(|(vip, ipv6)| format!("{vip}/{}", ipv6.subnet.prefix_len()));
        let entry = |addr| VirtualIp { network_id: on.network.to_string(), addr };
        vips.extend(ipv4.into_iter().chain(ipv6).map(entry));
    }
    vips
}

fn tasks(state: &ClusterState, service: &Service) -> Vec<Task> {
    let mut backends: Vec<&Endpoint> =
        state.endpoints.values().filter(|e| e.service.as_ref() == Some(&service.id)).collect();
    backends.sort_by_key(|endpoint| endpoint.number);
    backends
        .into_iter()
        .map(|endpoint| Task {
            name: endpoint.name.clone(),
            endpoint_id: endpoint.id.to_string(),
            network_id: endpoint.network.to_string(),
            endpoint_ip: endpoint.ip.to_string(),
            node: state.nodes.get(&endpoint.node).map(|n| n.name.clone()).unwrap_or_default(),
            state: endpoint.state,
            health: Some(endpoint.health).filter(|health| *health != Health::Unknown),
            weight: endpoint.weight,
        })
        .collect()
}
