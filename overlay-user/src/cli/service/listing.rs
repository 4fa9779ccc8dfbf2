//! `overlay service ls`, `inspect` and `ps`.

use clap::Args;
use serde::Serialize;

use crate::{
    cli::{
        Context,
        error::not_found,
        format::{FormatArg, JsonArg, ago, json, list, print, print_rows},
        inspect,
    },
    model::{
        ClusterState, EndpointMode, EndpointState, Health, Id, Port, Scheduler, Service, Standing,
    },
};

/// List the services
#[derive(Debug, Args)]
#[command(
    visible_alias = "list",
    after_help = "Example:
  overlay service ls"
)]
pub(in crate::cli) struct LsArgs {
    #[command(flatten)]
    format: FormatArg,
}

/// Show services as Docker does, with their backends
#[derive(Debug, Args)]
#[command(after_help = "Example:
  overlay service inspect hello")]
pub(in crate::cli) struct InspectArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    _format: JsonArg,
}

/// List the backends of a service
#[derive(Debug, Args)]
#[command(after_help = "Example:
  overlay service ps hello")]
pub(in crate::cli) struct PsArgs {
    /// Name, id or beginning of an id
    service: String,
    #[command(flatten)]
    format: FormatArg,
}

/// One line of `service ls`.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    id: Id,
    name: String,
    mode: EndpointMode,
    lb: Scheduler,
    /// Containers that take flows.
    running: usize,
    /// Containers that serve it in any state.
    backends: usize,
    networks: Vec<String>,
    ports: Vec<Port>,
}

/// The services by name. Those that only carry a container's `-p` are none to the user.
fn rows(state: &ClusterState) -> Vec<Row> {
    let row = |service: &Service| {
        // A container has an endpoint on each network; one of them counts.
        let first = service.networks.first();
        let backends = || {
            let of = |on: &crate::model::ServiceNetwork| on.network.clone();
            let network = first.map(of).unwrap_or_default();
            let backends = state.backends_of(&service.id, &network);
            backends.map(|e| state.standing(e)).collect::<Vec<_>>()
        };
        let states = backends();
        let name_of = |id: &Id| state.networks.get(id).map_or(id.to_string(), |n| n.name.clone());
        Row {
            id: service.id.clone(),
            name: service.name.clone(),
            mode: service.mode,
            lb: service.balance.scheduler,
            running: states.iter().filter(|s| **s == Standing::Running).count(),
            backends: states.len(),
            networks: service.networks.iter().map(|on| name_of(&on.network)).collect(),
            ports: service.ports.clone(),
        }
    };
    let mut rows: Vec<_> = state.services.values().filter(|s| s.owner.is_none()).map(row).collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

fn mode_word(mode: EndpointMode) -> &'static str {
    match mode {
        EndpointMode::Vip => "vip",
        EndpointMode::Dnsrr => "dnsrr",
    }
}

pub(super) async fn ls(context: &Context, args: &LsArgs) -> anyhow::Result<()> {
    let rows = rows(&context.state().await?);
    let header = ["id", "name", "mode", "lb", "backends", "networks", "ports"];
    print_rows(args.format.format, &rows, &header, |row| {
        vec![
            row.id.short().to_owned(),
            row.name.clone(),
            mode_word(row.mode).to_owned(),
            row.lb.to_string(),
            format!("{}/{}", row.running, row.backends),
            list(&row.networks),
            list(&row.ports),
        ]
    })
}

pub(super) async fn inspect(context: &Context, args: &InspectArgs) -> anyhow::Result<()> {
    let state = context.state().await?;
    let found = args.services.iter().filter_map(|name| state.service(name));
    print(&json(&found.map(|s| inspect::service(&state, s)).collect::<Vec<_>>())?)?;
    match args.services.iter().find(|name| state.service(name).is_none()) {
        Some(missing) => Err(not_found("service", missing)),
        None => Ok(()),
    }
}

/// One line of `service ps`.
#[derive(Debug, Serialize)]
struct Backend {
    id: Id,
    container: String,
    network: String,
    node: String,
    address: std::net::Ipv4Addr,
    weight: u16,
    state: EndpointState,
    health: Health,
    /// Whether it takes new flows, and if not, why.
    standing: Standing,
    created: jiff::Timestamp,
}

fn backends(state: &ClusterState, service: &Service) -> Vec<Backend> {
    let mut endpoints: Vec<_> =
        state.endpoints.values().filter(|e| e.service.as_ref() == Some(&service.id)).collect();
    endpoints.sort_by_key(|endpoint| endpoint.number);
    let network = |id: &Id| state.networks.get(id).map(|n| n.name.clone()).unwrap_or_default();
    let node = |id: &Id| state.nodes.get(id).map(|n| n.name.clone()).unwrap_or_default();
    endpoints
        .into_iter()
        .map(|e| Backend {
            id: e.id.clone(),
            container: e.name.clone(),
            network: network(&e.network),
            node: node(&e.node),
            address: e.ip,
            weight: e.weight,
            state: e.state,
            health: e.health,
            standing: state.standing(e),
            created: e.created,
        })
        .collect()
}

pub(super) async fn ps(context: &Context, args: &PsArgs) -> anyhow::Result<()> {
    let state = context.state().await?;
    let service =
        state.service(&args.service).ok_or_else(|| not_found("service", &args.service))?;
    let header = ["id", "name", "network", "node", "address", "weight", "state", "created"];
    print_rows(args.format.format, &backends(&state, service), &header, |backend| {
        vec![
            backend.id.short().to_owned(),
            backend.container.clone(),
            backend.network.clone(),
            backend.node.clone(),
            backend.address.to_string(),
            backend.weight.to_string(),
            backend.standing.to_string(),
            ago(backend.created),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listing_counts_containers_and_hides_carriers_of_published_ports() {
        let state = crate::cli::inspect::testing::three_nodes();
        let rows = rows(&state);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].running, rows[0].backends), (2, 2));
        assert_eq!(rows[0].networks, ["mynet"]);
        assert_eq!(list(&rows[0].ports), "*:8080->80/tcp");
    }

    #[test]
    fn backends_are_listed_with_their_nodes() {
        let state = crate::cli::inspect::testing::three_nodes();
        let service = state.service("hello").expect("hello");
        let listed: Vec<_> =
            backends(&state, service).into_iter().map(|b| (b.container, b.node)).collect();
        assert_eq!(
            listed,
            [("hello.1", "h1"), ("hello.2", "h2")].map(|(c, n)| (c.to_owned(), n.to_owned()))
        );
    }
}
