//! `overlay join`.

use std::net::{SocketAddr, ToSocketAddrs as _};

use clap::Args;

use super::{
    HostOptions, daemon::Daemon, interrupted, preflight, refuse_member, refuse_occupied, underlay,
    underlay::Underlay, undo::Undo,
};
use crate::{
    agent::{AgentConfig, CONFIG_FORMAT},
    api::{NodeRemove, Request},
    cli::{
        Context, args,
        error::{refuse, usage_error},
        format::print,
        progress::wait_for,
    },
    link::NetlinkLinks,
    manager::{JoinRequest, RemoteManager, join as join_cluster},
    model::{ClusterState, Id, Node, Role},
    pki::NodePki,
};

/// Port that managers listen on unless told otherwise.
pub(super) const MANAGER_PORT: u16 = 2377;

/// Add this host to a cluster
#[derive(Debug, Args)]
#[command(after_help = "`overlay init` and `overlay token create` print this command with its \
token.

Example:
  overlay join --token TOKEN 172.16.1.10:2377")]
pub(in crate::cli) struct JoinArgs {
    /// A manager's address
    #[arg(value_name = "MANAGER[:PORT]")]
    manager: String,
    /// Join token
    #[arg(long, env = "OVERLAY_TOKEN", hide_env_values = true)]
    token: String,
    #[command(flatten)]
    host: HostOptions,
}

/// Joins, starts the daemon and says so.
pub(in crate::cli) async fn run(context: &Context, args: JoinArgs) -> anyhow::Result<()> {
    let plan = Plan::new(context, &args).await?;
    let manager = plan.manager;
    let mut undo = Undo::begin(&context.paths)?;
    let mut member = None;
    let joined = tokio::select! {
        joined = join(context, &args, plan, (&mut undo, &mut member)) => joined,
        () = interrupted() => Err(refuse("interrupted", "this host has not joined")),
    };
    match joined {
        Ok(node) => print(&format!(
            "This host is {} of the cluster of {manager}, with data-path address {}.\n{}",
            node.name,
            node.data_path_addr,
            if args.host.no_start {
                "The daemon was not started: run `overlay agent`, or enable overlay.service.\n"
            } else {
                ""
            }
        )),
        Err(error) => {
            undo.undo().await;
            if let Some(member) = member {
                member.resign().await;
            }
            Err(error)
        }
    }
}

/// The decisions before any manager is called.
struct Plan {
    manager: SocketAddr,
    underlay: Underlay,
    config: AgentConfig,
}

impl Plan {
    async fn new(context: &Context, args: &JoinArgs) -> anyhow::Result<Self> {
        // First of all: without the rights nothing else can be found out.
        if !args.host.no_start {
            preflight(context)?;
        }
        refuse_member(&context.paths)?;
        let manager = manager_address(&args.manager)?;
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
            (None, None, None) => {
                let addr = underlay::towards(manager)?;
                underlay::with_address(&links, "--advertise-addr", addr, None).await?
            }
        };
        if let Some(advertised) = host.advertise_addr {
            underlay::with_address(&links, "--advertise-addr", advertised, None).await?;
        }
        let config = AgentConfig {
            format: CONFIG_FORMAT,
            cluster: Id::default(),
            node: Id::default(),
            name: host.node_name()?,
            role: Role::Agent,
            data_path_addr: underlay.addr,
            iface: underlay.iface.clone(),
            data_path_port: overlay_common::DEFAULT_DATA_PATH_PORT,
            listen: None,
            managers: vec![manager],
            xdp: host.xdp,
            conntrack_size: host.conntrack_size,
            outside_ports: host.nat_ports,
            outside_flows: host.flow_limit,
            cgroup: host.cgroup()?,
            socket_lb: !host.no_socket_lb,
            dns_upstreams: host.dns.clone(),
        };
        Ok(Self { manager, underlay, config })
    }
}

/// A manager by address or by name, with the port managers have by default.
fn manager_address(text: &str) -> anyhow::Result<SocketAddr> {
    if let Some(address) = args::address_and_port(text, MANAGER_PORT) {
        return Ok(address);
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().ok().filter(|port| *port != 0)),
        None => (text, Some(MANAGER_PORT)),
    };
    let is_name = crate::model::check_name("host", name).is_ok()
        && !name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let (Some(port), true) = (port, is_name) else {
        return Err(usage_error(
            format!("{text:?} is no address of a manager"),
            "write it as 172.16.1.10 or 172.16.1.10:2377",
        ));
    };
    let unknown = |why: String| {
        refuse(
            format!("the manager's name {name:?} does not resolve: {why}"),
            "check the name, or give the manager's address",
        )
    };
    let mut found = (name, port).to_socket_addrs().map_err(|e| unknown(e.to_string()))?;
    found.find(SocketAddr::is_ipv4).ok_or_else(|| unknown("it has no IPv4 address".to_owned()))
}

/// The host as a member of the cluster, for as long as it may have to resign.
struct Member {
    manager: SocketAddr,
    node: Id,
    pki: NodePki,
}

impl Member {
    /// The managers as this node reaches them.
    fn manager(&self) -> anyhow::Result<RemoteManager> {
        Ok(RemoteManager::new(vec![self.manager], &self.pki)?)
    }

    /// Takes the node out of the cluster again. If that fails an administrator has to.
    async fn resign(self) {
        let node = self.node.to_string();
        let request = Request::NodeRemove(NodeRemove { reference: node.clone(), force: true });
        let removed = async { Ok(self.manager()?.call::<Node>(request).await?) };
        if let Err(error) = removed.await as anyhow::Result<Node> {
            eprintln!(
                "overlay: warning: the cluster still has this host as node {node}: {error}\nRun \
                 `overlay node rm --force {node}` on a manager."
            );
        }
    }
}

async fn join(
    context: &Context,
    args: &JoinArgs,
    plan: Plan,
    (undo, member): (&mut Undo, &mut Option<Member>),
) -> anyhow::Result<Node> {
    let paths = &context.paths;
    let Plan { manager, underlay, config } = plan;
    let request = JoinRequest { name: config.name.clone(), data_path_addr: underlay.addr };
    let joining = join_cluster(manager, &args.token, request);
    let (joined, pki) = wait_for("asking the manager", joining).await?;
    pki.save(&paths.pki_dir())?;
    let member = member.insert(Member { manager, node: joined.node.id.clone(), pki });
    // The first call with the new certificate.
    let state: ClusterState = member.manager()?.call(Request::State {}).await?;
    let config = AgentConfig {
        cluster: state.cluster.map(|cluster| cluster.id).unwrap_or_default(),
        node: joined.node.id.clone(),
        data_path_port: joined.data_path_port,
        ..config
    };
    // Last, because this step makes the host a member.
    config.save(&paths.config())?;
    if !args.host.no_start {
        let daemon = undo.daemon.insert(Daemon::start(context)?);
        wait_for("starting the daemon", daemon.ready(context)).await?;
    }
    Ok(joined.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_managers_address_may_leave_out_the_port() {
        for (text, expected) in [
            ("172.16.1.10", "172.16.1.10:2377"),
            ("172.16.1.10:2400", "172.16.1.10:2400"),
            ("localhost:2400", "127.0.0.1:2400"),
            ("fd00::10", "[fd00::10]:2377"),
            ("[fd00::10]:2400", "[fd00::10]:2400"),
        ] {
            let address = manager_address(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(address.to_string(), expected);
        }
    }

    #[test]
    fn what_is_no_address_is_quoted() {
        for text in
            ["", "172.16.1", "172.16.1.10:0", "172.16.1.10:x", "h1:99999", "a b", "300.1.1.1"]
        {
            let error = manager_address(text).expect_err(text).to_string();
            assert!(error.contains(&format!("{text:?} is no address")), "{text}: {error}");
        }
    }
}
