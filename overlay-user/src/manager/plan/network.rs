//! Networks: makes and removes them.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use jiff::Timestamp;
use overlay_common::INGRESS_VNI;

use super::{
    Planned,
    draft::{Draft, MAX_VNI},
    ipam, ipam6,
};
use crate::{
    api::{ApiError, NetworkCreate, Reference},
    manager::error::{conflict, invalid, not_found},
    model::{ClusterState, Driver, Id, Kind, Multicast, Network, Object, PublishMode, check_name},
};

/// Reserved names: they have another meaning in place of a network's name.
const RESERVED_NAMES: [&str; 3] = ["host", "none", "container"];

const MTU_RANGE: std::ops::RangeInclusive<u32> = 576..=65_485;

/// Makes a network.
pub(in crate::manager) fn create(
    state: &ClusterState,
    request: &NetworkCreate,
    now: Timestamp,
) -> Planned<Network> {
    check_names(state, request)?;
    let mut draft = Draft::new(state, now)?;
    let subnet = match request.subnet {
        Some(subnet) => {
            ipam::check_subnet("subnet", subnet)?;
            ipam::check_free(state, &request.name, subnet)?;
            subnet
        }
        None => {
            let cluster = draft.cluster();
            ipam::free_subnet(state, cluster.default_pool, cluster.pool_prefix)?
        }
    };
    if let Some(mtu) = request.mtu
        && !MTU_RANGE.contains(&mtu)
    {
        return Err(invalid(format!(
            "MTU {mtu} is out of range: {} to {}",
            MTU_RANGE.start(),
            MTU_RANGE.end()
        )));
    }
    let vni = choose_vni(&mut draft, request)?;
    let ipv6 = request.ipv6.map(|asked| ipam6::plan(state, request, vni, asked)).transpose()?;
    let network = with_addresses(
        Network {
            id: Id::random(),
            name: request.name.clone(),
            created: now,
            driver: Driver::Overlay,
            vni,
            subnet,
            ip_range: None,
            gateway: Ipv4Addr::UNSPECIFIED,
            aux_addresses: BTreeMap::new(),
            mtu: request.mtu,
            multicast: request.multicast,
            internal: request.internal,
            // Containers join ingress through services only.
            attachable: request.attachable && !request.ingress,
            ingress: request.ingress,
            labels: request.labels.clone(),
            options: BTreeMap::new(),
            next_address: Ipv4Addr::UNSPECIFIED,
            ipv6,
        },
        request,
    )?;
    let id = network.id.clone();
    draft.put_network(network);
    if request.ingress {
        // Every node has its own address on the ingress network.
        for node in state.nodes.values() {
            let mut node = node.clone();
            node.ingress_ip = draft.allocate(&id, &node.id)?;
            draft.put(Object::Node(node));
        }
    }
    let network = draft.network(&id)?.clone();
    Ok((draft.finish(), network))
}

fn check_names(state: &ClusterState, request: &NetworkCreate) -> Result<(), ApiError> {
    check_name("network", &request.name)?;
    if RESERVED_NAMES.contains(&request.name.as_str()) {
        return Err(invalid(format!(
            "{} is no name for a network: it stands for a mode of `overlay run --network`",
            request.name
        )));
    }
    if let Some(other) = state.networks.values().find(|n| n.name == request.name) {
        return Err(conflict(format!(
            "a network named {} exists already ({})",
            request.name,
            other.id.short()
        ))
        .hint(format!(
            "choose another name, or remove it with `overlay network rm {}`",
            request.name
        )));
    }
    if request.ingress {
        if let Some(other) = state.ingress() {
            return Err(conflict(format!(
                "there is an ingress network already: {} ({})",
                other.name, other.subnet
            ))
            .hint(format!("remove it first with `overlay network rm {}`", other.name)));
        }
        if request.internal {
            return Err(invalid(
                "the ingress network cannot be internal: it carries published ports",
            ));
        }
        if request.multicast == Multicast::Replicate {
            return Err(invalid(
                "the ingress network cannot replicate multicast: it carries published ports alone",
            ));
        }
    }
    Ok(())
}

fn choose_vni(draft: &mut Draft<'_>, request: &NetworkCreate) -> Result<u32, ApiError> {
    match request.vni {
        None if request.ingress => Ok(INGRESS_VNI),
        None => draft.vni(),
        Some(vni) if request.ingress != (vni == INGRESS_VNI) => Err(invalid(format!(
            "VNI {vni} cannot be used: {INGRESS_VNI} is the ingress network's, and its alone"
        ))),
        Some(vni) if !(INGRESS_VNI..=MAX_VNI).contains(&vni) => {
            Err(invalid(format!("VNI {vni} is out of range: {} to {MAX_VNI}", INGRESS_VNI + 1)))
        }
        Some(vni) => match draft.state.networks.values().find(|n| n.vni == vni) {
            Some(other) => Err(conflict(format!("VNI {vni} is in use by network {}", other.name))
                .hint("choose another one, or leave it out for the next free one")),
            None => Ok(vni),
        },
    }
}

/// Completes the addresses of a request and checks each of them.
pub(super) fn with_addresses(
    mut network: Network,
    request: &NetworkCreate,
) -> Result<Network, ApiError> {
    let subnet = network.subnet;
    let usable = ipam::usable(subnet);
    let check = |what: &str, address: Ipv4Addr| {
        if usable.contains(&address.to_bits()) {
            Ok(address)
        } else {
            Err(invalid(format!("{what} {address} is not an address for hosts in subnet {subnet}")))
        }
    };
    network.ip_range = request.ip_range.map(|range| check_range(subnet, range)).transpose()?;
    network.gateway = match request.gateway {
        Some(gateway) => check("gateway", gateway)?,
        None => Ipv4Addr::from_bits(*usable.start()),
    };
    for (name, address) in &request.aux_addresses {
        check_name("auxiliary address", name)?;
        check(&format!("auxiliary address {name}"), *address)?;
        let twice = network.aux_addresses.values().any(|other| other == address);
        if *address == network.gateway || twice {
            return Err(invalid(format!(
                "auxiliary address {name} ({address}) is the gateway's or another one's"
            )));
        }
        network.aux_addresses.insert(name.clone(), *address);
    }
    network.next_address = Ipv4Addr::from_bits(*ipam::range(&network).start());
    let kept = ipam::used(&ClusterState::default(), &network, None);
    if ipam::next_free(&network, &kept).is_none() {
        return Err(invalid(format!(
            "network {} would have no address to hand out: gateway and auxiliary addresses fill {}",
            network.name,
            network.ip_range.unwrap_or(subnet)
        )));
    }
    Ok(network)
}

fn check_range(subnet: Ipv4Net, range: Ipv4Net) -> Result<Ipv4Net, ApiError> {
    if range.addr() != range.network() {
        return Err(invalid(format!("IP range {range} has bits set beyond its prefix"))
            .hint(format!("write {}", range.trunc())));
    }
    if subnet.contains(&range) {
        Ok(range)
    } else {
        Err(invalid(format!("IP range {range} is not in subnet {subnet}")))
    }
}

/// Removes a network that is not in use.
pub(in crate::manager) fn remove(
    state: &ClusterState,
    request: &Reference,
    now: Timestamp,
) -> Planned<Network> {
    let network = find(state, &request.reference)?.clone();
    if network.is_local() {
        return Err(invalid(format!(
            "network {} is part of every cluster and cannot be removed",
            network.name
        )));
    }
    let users = users(state, &network);
    if let Some((first, further)) = users.split_first() {
        let further = match further.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        return Err(conflict(format!("network {} is in use by {first}{further}", network.name))
            .hint("remove or detach what uses it first"));
    }
    let mut draft = Draft::new(state, now)?;
    if network.ingress {
        for node in state.nodes.values() {
            let ingress_ip = Ipv4Addr::UNSPECIFIED;
            draft.put(Object::Node(crate::model::Node { ingress_ip, ..node.clone() }));
        }
    }
    draft.delete(Kind::Network, &network.id);
    Ok((draft.finish(), network))
}

/// Describes the users of a network. Every port in ingress mode also uses the ingress network.
fn users(state: &ClusterState, network: &Network) -> Vec<String> {
    let services = state.services.values().filter(|s| {
        s.networks.iter().any(|on| on.network == network.id)
            || network.ingress && s.ports.iter().any(|p| p.mode == PublishMode::Ingress)
    });
    let services =
        services.filter(|s| s.owner.is_none() || network.ingress).map(|s| match s.owner {
            None => format!("service {}", s.name),
            Some(_) => format!("the published ports of container {}", s.name),
        });
    let containers = state.endpoints_of(&network.id).map(|e| format!("container {}", e.name));
    services.chain(containers).collect()
}

/// Finds the network that the reference names, or returns a clear error.
pub(in crate::manager) fn find<'a>(
    state: &'a ClusterState,
    reference: &str,
) -> Result<&'a Network, ApiError> {
    state.network(reference).ok_or_else(|| {
        not_found(format!("there is no network {reference:?}"))
            .hint("`overlay network ls` lists them, `overlay network create` makes one")
    })
}

/// Finds the networks that the references name, each of them once.
pub(in crate::manager) fn find_all<'a>(
    state: &'a ClusterState,
    references: &[String],
) -> Result<Vec<&'a Network>, ApiError> {
    let mut networks: Vec<&Network> = Vec::with_capacity(references.len());
    for reference in references {
        let network = find(state, reference)?;
        if networks.iter().any(|other| other.id == network.id) {
            return Err(invalid(format!("network {} is given twice", network.name)));
        }
        networks.push(network);
    }
    Ok(networks)
}
