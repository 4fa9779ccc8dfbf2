//! `overlay init`, `overlay join` and `overlay leave`: this host's membership of a cluster.
//!
//! `init` and `join` are all-or-nothing: when the daemon does not come up, everything they made is
//! removed again and the reason is shown.

mod create;
mod daemon;
mod join;
mod leave;
mod underlay;
mod undo;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::Args;

pub(super) use self::{
    create::{InitArgs, run as init},
    join::{JoinArgs, run as join},
    leave::{LeaveArgs, run as leave},
};
use super::{Context, args, error::refuse};
use crate::{
    agent::{AgentConfig, ConfigError},
    datapath::XdpMode,
    model::check_name,
    paths::Paths,
};

/// What `init` and `join` ask about this host.
#[derive(Clone, Debug, Args)]
struct HostOptions {
    /// Address of this host that the others reach it at [default: the only one, or for `join` the
    /// one that is used towards the manager]
    #[arg(long, value_name = "IP")]
    advertise_addr: Option<IpAddr>,
    /// Address of this host for traffic between containers, of the same family on all nodes
    /// [default: the advertised one]
    #[arg(long, value_name = "IP")]
    data_path_addr: Option<IpAddr>,
    /// Underlay interface [default: the one with the address]
    #[arg(long, value_name = "IF")]
    iface: Option<String>,
    /// Name of this node [default: the host's name]
    #[arg(long, value_parser = args::node_name)]
    name: Option<String>,
    /// XDP on the underlay interface
    #[arg(long, value_enum, default_value_t)]
    xdp: XdpMode,
    /// Most flows that are tracked at once
    #[arg(long, value_name = "N", default_value_t = CONNTRACK_SIZE)]
    #[arg(value_parser = clap::value_parser!(u32).range(1024..=1 << 26))]
    conntrack_size: u32,
    /// Source ports of this host for what containers send outside; the host's own sockets and
    /// published ports should use others
    #[arg(long, value_name = "FIRST-LAST", default_value = "61000-65535")]
    #[arg(value_parser = args::port_range)]
    nat_ports: [u16; 2],
    /// Most flows to the outside that a container's interface may have at a time; a closed
    /// connection counts for 30 s more
    #[arg(long, value_name = "N", default_value_t = crate::agent::OUTSIDE_FLOWS)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    flow_limit: u32,
    /// cgroup v2 directory for the socket programs [default: where it is mounted]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Balance also containers' TCP connections to VIPs packet by packet, not once when they are
    /// made
    #[arg(long)]
    no_socket_lb: bool,
    /// Where names outside the cluster are asked [default: /etc/resolv.conf]
    #[arg(long, value_name = "IP[:PORT]", value_parser = args::dns_server)]
    dns: Vec<SocketAddr>,
    /// Only make the state; start nothing
    #[arg(long)]
    no_start: bool,
}

/// Default of `--conntrack-size`.
#[expect(clippy::cast_possible_truncation, reason = "a constant of 2^18")]
const CONNTRACK_SIZE: u32 = overlay_common::maps::CONNTRACK_ENTRIES as u32;

impl HostOptions {
    /// The node's name: as given, or the host's.
    fn node_name(&self) -> anyhow::Result<String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
        match check_name("node", &host) {
            Ok(()) => Ok(host),
            Err(error) => {
                Err(refuse(format!("the host's name: {error}"), "give a name with --name"))
            }
        }
    }

    /// The cgroup directory as the daemon is to use it.
    fn cgroup(&self) -> anyhow::Result<Option<PathBuf>> {
        let Some(dir) = &self.cgroup else { return Ok(None) };
        let dir = std::path::absolute(dir)?;
        // cgroup.controllers is in every directory of cgroup v2 and in none of v1.
        if !dir.join("cgroup.controllers").is_file() {
            return Err(refuse(
                format!("--cgroup {}: that is no cgroup v2 directory", dir.display()),
                "`findmnt -t cgroup2` shows where cgroup v2 is mounted",
            ));
        }
        Ok(Some(dir))
    }
}

/// Refuses a host that is in a cluster, or has the remains of one.
fn refuse_member(paths: &Paths) -> anyhow::Result<()> {
    match AgentConfig::load(&paths.config()) {
        Ok(config) => {
            return Err(refuse(
                format!(
                    "this host is in a cluster already, as node {:?} ({})",
                    config.name,
                    paths.config().display()
                ),
                "run `overlay leave` first, or give other --state-dir, --run-dir and --pin-dir",
            ));
        }
        Err(ConfigError::Missing(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let remains = [paths.store(), paths.pki_dir(), paths.cached_state(), paths.containers()];
    match remains.iter().find(|path| path.exists()) {
        Some(path) => Err(refuse(
            format!("{} is left from an earlier cluster", path.display()),
            format!(
                "move it away if it may still be needed, else `overlay leave --force` removes all \
                 of it from {}",
                paths.state_dir.display()
            ),
        )),
        None => Ok(()),
    }
}

/// Refuses a network namespace that another daemon programs.
async fn refuse_occupied(links: &impl crate::link::Links) -> anyhow::Result<()> {
    let found = links.list("ovl-").await?;
    if found.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
    Err(refuse(
        format!("this host has interfaces of an overlay daemon already: {}", names.join(", ")),
        "one daemon runs per host: leave with that one's --state-dir and --run-dir; if it is gone, \
         remove its remains with `overlay leave --force`",
    ))
}

/// Reports missing features of the host before anything is made.
fn preflight(context: &Context) -> anyhow::Result<()> {
    Ok(crate::datapath::host::preflight(&context.paths)?)
}

/// Waits for a signal to give up, so that no partial setup stays.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut hang_up)) =
        (signal(SignalKind::terminate()), signal(SignalKind::hangup()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
}

#[cfg(test)]
mod tests;
