//! `overlay init`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use clap::Args;
use ipnet::Ipv4Net;
use serde::Serialize;

use super::{
    HostOptions, daemon::Daemon, interrupted, preflight, refuse_member, refuse_occupied, underlay,
    underlay::Underlay, undo::Undo,
};
use crate::{
    agent::{AgentConfig, CONFIG_FORMAT},
    api::{Identity, Request, Token, TokenCreate},
    cli::{
        Context, args,
        error::refuse,
        format::{Format, FormatArg, json, print},
        progress::wait_for,
        token::join_command,
    },
    link::NetlinkLinks,
    manager::{InitCluster, Initialized, Manager},
    model::{Id, Role},
    store::RedbStore,
};

/// Make a new cluster with this host as its manager
#[derive(Debug, Args)]
#[command(after_help = "Starts the daemon in the background and prints the command that joins \
other hosts. To run it under systemd, give --no-start and enable overlay.service.

Examples:
  overlay init --advertise-addr 172.16.1.10
  overlay init --iface eth1 --default-addr-pool 10.20.0.0/16 --no-start")]
pub(in crate::cli) struct InitArgs {
    #[command(flatten)]
    host: HostOptions,
    /// UDP port of VXLAN on every host
    #[arg(long, value_name = "PORT", default_value_t = overlay_common::DEFAULT_DATA_PATH_PORT)]
    #[arg(value_parser = clap::value_parser!(u16).range(1024..=49151))]
    data_path_port: u16,
    /// TCP port that this manager listens on
    #[arg(long, value_name = "PORT", default_value_t = super::join::MANAGER_PORT)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    listen_port: u16,
    /// Networks without a --subnet get theirs from here
    #[arg(long, value_name = "CIDR", default_value = "10.0.0.0/8", value_parser = args::subnet)]
    default_addr_pool: Ipv4Net,
    /// Prefix length of such subnets
    #[arg(long, value_name = "LENGTH", default_value_t = 24)]
    #[arg(value_parser = clap::value_parser!(u8).range(8..=29))]
    default_addr_pool_mask_length: u8,
    /// Subnet of the ingress network [default: 10.255.0.0/16, or from the pool if one is given]
    #[arg(long, value_name = "CIDR", value_parser = args::subnet)]
    ingress_subnet: Option<Ipv4Net>,
    /// Subnet of the node-local bridge network
    #[arg(long, value_name = "CIDR", default_value = "172.17.0.0/16", value_parser = args::subnet)]
    bridge_subnet: Ipv4Net,
    /// How long a silent agent's node counts as ready; where its host does not answer either, 3/10
    /// of it
    #[arg(long, value_name = "TIME", default_value = "5s", hide = true)]
    #[arg(value_parser = args::positive_duration)]
    node_timeout: Duration,
    #[command(flatten)]
    format: FormatArg,
}

/// The output of `init --format json`.
#[derive(Debug, Serialize)]
struct Made {
    cluster: Id,
    node: Id,
    name: String,
    manager: SocketAddr,
    token: String,
    expires: jiff::Timestamp,
    join: String,
}

/// How long the first join token works.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);

/// Makes the cluster, starts the daemon and prints the join command.
pub(in crate::cli) async fn run(context: &Context, args: InitArgs) -> anyhow::Result<()> {
    let plan = Plan::new(context, &args).await?;
    let mut undo = Undo::begin(&context.paths)?;
    let made = tokio::select! {
        made = create(context, &args, plan, &mut undo) => made,
        () = interrupted() => Err(refuse("interrupted", "nothing was made")),
    };
    match made {
        Ok(made) => print(&match args.format.format {
            Format::Json => json(&made)?,
            Format::Table => words(&made, args.host.no_start),
        }),
        Err(error) => {
            undo.undo().await;
            Err(error)
        }
    }
}

/// The decisions before anything is made.
struct Plan {
    underlay: Underlay,
    manager: SocketAddr,
    name: String,
    config: AgentConfig,
}

impl Plan {
    async fn new(context: &Context, args: &InitArgs) -> anyhow::Result<Self> {
        // First of all: without the rights nothing else can be found out.
        if !args.host.no_start {
            preflight(context)?;
        }
        refuse_member(&context.paths)?;
        let host = &args.host;
        let links = NetlinkLinks::new()?;
        if !host.no_start {
            refuse_occupied(&links).await?;
        }
        let iface = host.iface.as_deref();
        let underlay = match (host.data_path_addr, host.advertise_addr, iface) {
            (Some(addr), _, _) => {
                underlay::with_address(&links, "--data-path-addr", addr, iface).await?
            }
            (None, Some(addr), _) => {
                underlay::with_address(&links, "--advertise-addr", addr, iface).await?
            }
            (None, None, Some(iface)) => underlay::on_interface(&links, iface).await?,
            (None, None, None) => underlay::only(&links).await?,
        };
        let advertised = host.advertise_addr.unwrap_or(underlay.addr);
        underlay::with_address(&links, "--advertise-addr", advertised, None).await?;
        let manager = SocketAddr::from((advertised, args.listen_port));
        if !host.no_start {
            refuse_taken(manager)?;
        }
        let name = host.node_name()?;
        let config = AgentConfig {
            format: CONFIG_FORMAT,
            cluster: Id::default(),
            node: Id::default(),
            name: name.clone(),
            role: Role::Manager,
            data_path_addr: underlay.addr,
            iface: underlay.iface.clone(),
            data_path_port: args.data_path_port,
            listen: Some(manager),
            managers: vec![manager],
            xdp: host.xdp,
            conntrack_size: host.conntrack_size,
            outside_ports: host.nat_ports,
            outside_flows: host.flow_limit,
            cgroup: host.cgroup()?,
            socket_lb: !host.no_socket_lb,
            dns_upstreams: host.dns.clone(),
        };
        Ok(Self { underlay, manager, name, config })
    }
}

/// Rejects an address on which another process listens.
fn refuse_taken(manager: SocketAddr) -> anyhow::Result<()> {
    match std::net::TcpListener::bind(manager) {
        Ok(_) => Ok(()),
        Err(e) => Err(refuse(
            format!("the manager cannot listen on {manager}: {e}"),
            format!(
                "`ss -ltnp 'sport = :{}'` shows who does; or give --listen-port",
                manager.port()
            ),
        )),
    }
}

async fn create(
    context: &Context,
    args: &InitArgs,
    plan: Plan,
    undo: &mut Undo,
) -> anyhow::Result<Made> {
    let paths = &context.paths;
    let Plan { underlay, manager, name, config } = plan;
    let store = RedbStore::create(paths.store())?;
    let Initialized { node, cluster, pki } = Manager::init(
        &store,
        InitCluster {
            name,
            data_path_addr: underlay.addr,
            api_addr: manager,
            default_pool: args.default_addr_pool,
            pool_prefix: args.default_addr_pool_mask_length,
            data_path_port: args.data_path_port,
            ingress_subnet: args.ingress_subnet,
            bridge_subnet: args.bridge_subnet,
            node_timeout_ms: args::millis(args.node_timeout),
        },
    )?;
    let token = first_token(store).await?;
    pki.save(&paths.pki_dir())?;
    // Last, because this step makes the host a member.
    let config = AgentConfig { cluster: cluster.id.clone(), node: node.id.clone(), ..config };
    config.save(&paths.config())?;
    if !args.host.no_start {
        let daemon = undo.daemon.insert(Daemon::start(context)?);
        wait_for("starting the daemon", daemon.ready(context)).await?;
    }
    Ok(Made {
        cluster: cluster.id,
        node: node.id,
        name: node.name,
        manager,
        join: join_command(&token.token, manager),
        token: token.token,
        expires: token.info.expires,
    })
}

/// Makes a join token before the daemon has the store, and gives the store up for it.
async fn first_token(store: RedbStore) -> anyhow::Result<Token> {
    let store = Arc::new(store);
    let in_use = Arc::downgrade(&store);
    let manager = Manager::open(store)?;
    let request = Request::TokenCreate(TokenCreate { ttl_secs: TOKEN_TTL.as_secs() });
    let token = manager.call(&Identity::Administrator, request).await?;
    drop(manager);
    // Its background duties end with it, but not at once, and the file is locked until then.
    while in_use.strong_count() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(serde_json::from_value(token)?)
}

fn words(made: &Made, no_start: bool) -> String {
    let started = if no_start {
        "\nThe daemon was not started: run `overlay agent`, or enable overlay.service.\n"
    } else {
        ""
    };
    format!(
        "Cluster {} made; this host is its manager {} at {}.\n{started}\n\
         To add a host, run on it within 24 hours:\n\n    {}\n\n\
         `overlay token create` makes another token.\n",
        made.cluster.short(),
        made.name,
        made.manager,
        made.join
    )
}
