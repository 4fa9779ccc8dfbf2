//! `overlay node`.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Context,
    error::not_found,
    format::{FormatArg, JsonArg, json, print, print_rows},
    inspect,
    progress::settle,
};
use crate::{
    api::{NodeRemove, NodeUpdate, Request},
    model::{Availability, ClusterState, Id, Node, NodeState, Role},
};

/// The verbs.
#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    Ls(LsArgs),
    Inspect(InspectArgs),
    Drain(DrainArgs),
    Activate(ActivateArgs),
    Rm(RmArgs),
}

/// List the hosts; the one asked has a star
#[derive(Debug, Args)]
#[command(
    visible_alias = "list",
    after_help = "Example:
  overlay node ls"
)]
pub(super) struct LsArgs {
    #[command(flatten)]
    format: FormatArg,
}

/// Show hosts as Docker does
#[derive(Debug, Args)]
#[command(after_help = "Example:
  overlay node inspect h2")]
pub(super) struct InspectArgs {
    /// Names, ids or beginnings of ids; `self` is this host
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    #[command(flatten)]
    _format: JsonArg,
}

/// Give the backends on a host no new flows; those in flight go on
#[derive(Debug, Args)]
#[command(after_help = "Example, before maintenance of h2:
  overlay node drain h2")]
pub(super) struct DrainArgs {
    /// Name, id or beginning of an id
    node: String,
}

/// Give the backends on a drained host new flows again
#[derive(Debug, Args)]
#[command(after_help = "Example:
  overlay node activate h2")]
pub(super) struct ActivateArgs {
    /// Name, id or beginning of an id
    node: String,
}

/// Remove a host that is down, with its endpoints
#[derive(Debug, Args)]
#[command(
    visible_alias = "remove",
    after_help = "A host that is up leaves by itself: \
`overlay leave`, run there.

Example:
  overlay node rm h3"
)]
pub(super) struct RmArgs {
    /// Name, id or beginning of an id
    node: String,
    /// Also when it is ready
    #[arg(short, long)]
    force: bool,
}

/// Runs a verb.
pub(super) async fn run(context: &Context, command: NodeCommand) -> anyhow::Result<()> {
    match command {
        NodeCommand::Ls(args) => ls(context, &args).await,
        NodeCommand::Inspect(args) => inspect(context, &args).await,
        NodeCommand::Drain(DrainArgs { node }) => update(context, node, Availability::Drain).await,
        NodeCommand::Activate(ActivateArgs { node }) => {
            update(context, node, Availability::Active).await
        }
        NodeCommand::Rm(RmArgs { node, force }) => {
            let request = Request::NodeRemove(NodeRemove { reference: node, force });
            let removed: Node = context.client().call(request).await?;
            settle(context).await;
            print(&format!("{}\n", removed.name))
        }
    }
}

async fn update(
    context: &Context,
    reference: String,
    availability: Availability,
) -> anyhow::Result<()> {
    let request = Request::NodeUpdate(NodeUpdate { reference, availability });
    let node: Node = context.client().call(request).await?;
    settle(context).await;
    print(&format!("{}\n", node.name))
}

/// One line of `node ls`.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    node: Node,
    /// Whether it is the host asked.
    #[serde(rename = "self")]
    here: bool,
    /// Endpoints on it.
    endpoints: usize,
}

fn rows(state: &ClusterState, here: &Id) -> Vec<Row> {
    let mut rows: Vec<_> = state
        .nodes
        .values()
        .map(|node| Row {
            here: node.id == *here,
            endpoints: state.endpoints.values().filter(|e| e.node == node.id).count(),
            node: node.clone(),
        })
        .collect();
    rows.sort_by(|a, b| a.node.name.cmp(&b.node.name));
    rows
}

fn columns(row: &Row) -> Vec<String> {
    let Row { node, here, endpoints } = row;
    let status = match node.state {
        NodeState::Ready => "ready",
        NodeState::Down => "down",
    };
    let availability = match node.availability {
        Availability::Active => "active",
        Availability::Drain => "drain",
    };
    let role = match node.role {
        Role::Manager => "manager",
        Role::Agent => "agent",
    };
    vec![
        format!("{}{}", node.id.short(), if *here { " *" } else { "" }),
        node.name.clone(),
        status.to_owned(),
        availability.to_owned(),
        role.to_owned(),
        node.data_path_addr.to_string(),
        node.ingress_ip.to_string(),
        endpoints.to_string(),
    ]
}

async fn ls(context: &Context, args: &LsArgs) -> anyhow::Result<()> {
    let here = context.status().await?.node;
    let rows = rows(&context.state().await?, &here);
    let header =
        ["id", "name", "status", "availability", "role", "address", "ingress ip", "endpoints"];
    print_rows(args.format.format, &rows, &header, columns)
}

async fn inspect(context: &Context, args: &InspectArgs) -> anyhow::Result<()> {
    let here = context.status().await?.node;
    let state = context.state().await?;
    let look = |name: &String| match name.as_str() {
        "self" => state.nodes.get(&here),
        name => state.node(name),
    };
    print(&json(&args.nodes.iter().filter_map(look).map(inspect::node).collect::<Vec<_>>())?)?;
    match args.nodes.iter().find(|name| look(name).is_none()) {
        Some(missing) => Err(not_found("node", missing)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::format::table;

    #[test]
    fn the_listing_marks_this_host() {
        let state = crate::cli::inspect::testing::three_nodes();
        let rows = rows(&state, &Id::from_text("node1"));
        assert_eq!(
            table(
                &["id", "name", "status", "availability", "role", "address", "in", "endpoints"],
                rows.iter().map(columns)
            ),
            "\
ID        NAME   STATUS   AVAILABILITY   ROLE      ADDRESS       IN           ENDPOINTS
node1 *   h1     ready    active         manager   172.16.1.10   10.255.0.2   2
node2     h2     ready    active         agent     172.16.1.11   10.255.0.3   2
node3     h3     ready    active         agent     172.16.1.12   10.255.0.4   0
"
        );
    }
}
