//! `overlay endpoint`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Context,
    args::{self, Ports},
    error::{refuse, usage_error},
    format::{Format, FormatArg, ago, json, list, print, print_rows, table},
    progress::{settle, wait_for},
};
use crate::{
    api::{Attach, Attached, Detach, EndpointWeight, LocalRequest, Request},
    model::{ClusterState, Endpoint, EndpointState, Health, Id, Port, PublishMode, Standing},
};

/// The verbs.
#[derive(Debug, Subcommand)]
pub(super) enum EndpointCommand {
    Attach(AttachArgs),
    Update(UpdateArgs),
    Detach(DetachArgs),
    Ls(LsArgs),
}

/// Give a network namespace of this host an interface on each of some networks
#[derive(Debug, Args)]
#[command(after_help = "Given a process, its end detaches the namespace.

Examples:
  ip netns add web && overlay endpoint attach --netns /run/netns/web --network mynet --name web
  overlay endpoint attach --netns 4711 --service hello")]
pub(super) struct AttachArgs {
    /// The namespace: a path, the name of one in /run/netns, or a process id
    #[arg(long, value_name = "PATH|PID")]
    netns: String,
    /// Network, by name or id
    #[arg(long, value_name = "NETWORK")]
    network: Vec<String>,
    #[command(flatten)]
    options: AttachOptions,
    #[command(flatten)]
    format: FormatArg,
}

/// What `endpoint attach` and `run` have in common.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct AttachOptions {
    /// Name, which resolves on its networks [default: made up]
    #[arg(long, value_parser = args::container_name)]
    pub name: Option<String>,
    /// The service to serve; its networks unless some are given
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Share of the service's new flows beside other backends', 0 (none) to 65535 [default: 1]
    #[arg(long, value_name = "N", requires = "service")]
    pub weight: Option<u16>,
    /// A fixed address, on exactly one network; one for each family at most
    #[arg(long, value_name = "IP")]
    pub ip: Vec<IpAddr>,
    /// A further name
    #[arg(long, value_name = "NAME", value_parser = args::container_name)]
    pub alias: Vec<String>,
    /// Publish a port of this container alone
    #[arg(short, long, value_name = "PORT")]
    pub publish: Vec<Ports>,
}

impl AttachOptions {
    /// The request that the options ask for, without the namespace and the process.
    pub(super) fn request(&self, networks: Vec<String>) -> anyhow::Result<Attach> {
        let Self { name, service, weight, ip, alias, publish } = self.clone();
        let mut ports = args::flatten(publish);
        if let Some(service) = &service
            && !ports.is_empty()
        {
            return Err(usage_error(
                format!("-p and --service {service} do not go together"),
                format!(
                    "ports belong to the service: \
                     `overlay service update --publish-add PORT {service}`"
                ),
            ));
        }
        if let Some(ip) = ip.first()
            && networks.len() > 1
        {
            return Err(usage_error(
                format!("--ip {ip} with {} networks: it is not clear on which", networks.len()),
                "give one --network, and attach the others without --ip",
            ));
        }
        if networks.is_empty() && service.is_none() {
            return Err(usage_error(
                "neither a network nor a service is given",
                "give --network NAME (`overlay network ls` lists them) or --service NAME",
            ));
        }
        if networks.first().is_some_and(|network| network == "bridge") {
            // Node-local: no endpoint of it on another host could answer there.
            ports.iter_mut().for_each(|port| port.mode = PublishMode::Host);
        }
        let (ip, ip6) = fixed(&ip)?;
        let aliases = alias;
        Ok(Attach { name, networks, ip, ip6, aliases, service, weight, ports, ..Attach::default() })
    }
}

/// The fixed address of either family.
fn fixed(ips: &[IpAddr]) -> anyhow::Result<(Option<Ipv4Addr>, Option<Ipv6Addr>)> {
    let (mut v4, mut v6) = (None, None);
    for ip in ips {
        let twice = match ip {
            IpAddr::V4(ip) => v4.replace(*ip).is_some(),
            IpAddr::V6(ip) => v6.replace(*ip).is_some(),
        };
        if twice {
            return Err(usage_error(
                format!("--ip {ip} is the second address of its family"),
                "an interface has one address of each family",
            ));
        }
    }
    Ok((v4, v6))
}

/// Change a container that runs
#[derive(Debug, Args)]
#[command(after_help = "Flows in flight stay where they are.

Example:
  overlay endpoint update --weight 3 web")]
pub(super) struct UpdateArgs {
    /// Name, id or beginning of an id of the container
    container: String,
    /// Share of its service's new flows beside other backends', 0 (none) to 65535
    #[arg(long, value_name = "N")]
    weight: u16,
}

/// Take the interfaces of a container away, after its flows have ended
#[derive(Debug, Args)]
#[command(after_help = "Example:
  overlay endpoint detach web")]
pub(super) struct DetachArgs {
    /// Name, id or beginning of an id of the container
    container: String,
    /// At once: flows are cut
    #[arg(short, long)]
    force: bool,
}

/// List the endpoints of the cluster
#[derive(Debug, Args)]
#[command(
    visible_alias = "list",
    after_help = "Example:
  overlay endpoint ls --network mynet"
)]
pub(super) struct LsArgs {
    /// Only those on this network
    #[arg(long)]
    network: Option<String>,
    #[command(flatten)]
    format: FormatArg,
}

/// Runs a verb.
pub(super) async fn run(context: &Context, command: EndpointCommand) -> anyhow::Result<()> {
    match command {
        EndpointCommand::Attach(args) => attach(context, args).await,
        EndpointCommand::Update(args) => update(context, args).await,
        EndpointCommand::Detach(args) => detach(context, args).await,
        EndpointCommand::Ls(args) => ls(context, &args).await,
    }
}

/// The meaning of `--netns`: a path and, for a process, its id.
fn namespace(text: &str) -> anyhow::Result<(PathBuf, Option<u32>)> {
    let missing = |what: String| {
        refuse(
            format!("--netns {text:?}: {what}"),
            "give a path such as /run/netns/web, a name that `ip netns list` shows, or the id of \
             a running process",
        )
    };
    if text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
        let pid: u32 = text.parse().map_err(|_| missing("no process id".to_owned()))?;
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        return match std::fs::metadata(&path) {
            Ok(_) => Ok((path, Some(pid))),
            Err(_) => Err(missing(format!("there is no process {pid}"))),
        };
    }
    let mut path = std::path::absolute(text).map_err(|e| missing(e.to_string()))?;
    if !path.exists() && !text.contains('/') {
        path = Path::new("/run/netns").join(text);
    }
    match path.exists() {
        true => Ok((path, None)),
        false => Err(missing(format!("{} does not exist", path.display()))),
    }
}

async fn attach(context: &Context, args: AttachArgs) -> anyhow::Result<()> {
    let (netns, pid) = namespace(&args.netns)?;
    let request = Attach {
        netns: netns.to_string_lossy().into_owned(),
        pid,
        ..args.options.request(args.network)?
    };
    let client = context.client();
    let work = client.local(LocalRequest::Attach(request));
    let attached: Attached = wait_for("attaching", work).await?;
    print(&match args.format.format {
        Format::Json => json(&attached)?,
        Format::Table => attached_words(&attached),
    })
}

/// A readable description of the attached endpoint.
fn attached_words(attached: &Attached) -> String {
    let Attached { container, name, interfaces, ports } = attached;
    let header = ["interface", "network", "address", "mac", "gateway", "mtu"];
    let rows = interfaces.iter().map(|i| {
        vec![
            i.interface.clone(),
            i.network.clone(),
            both(i.address, i.address6),
            i.mac.clone(),
            i.gateway.map_or("-".to_owned(), |gateway| both(gateway, i.gateway6)),
            i.mtu.to_string(),
        ]
    });
    let ports =
        if ports.is_empty() { String::new() } else { format!("published {}\n", list(ports)) };
    format!("{name} ({})\n{}{ports}", container.short(), table(&header, rows))
}

/// The addresses of both families that exist.
fn both(v4: impl ToString, v6: Option<impl ToString>) -> String {
    let v6 = v6.map(|v6| format!(", {}", v6.to_string())).unwrap_or_default();
    format!("{}{v6}", v4.to_string())
}

async fn update(context: &Context, args: UpdateArgs) -> anyhow::Result<()> {
    let UpdateArgs { container, weight } = args;
    let name = container.clone();
    let request = Request::EndpointWeight(EndpointWeight { container, weight });
    let changed: Vec<Endpoint> = context.client().call(request).await?;
    settle(context).await;
    print(&format!("{}\n", changed.first().map_or(&name, |endpoint| &endpoint.name)))
}

async fn detach(context: &Context, args: DetachArgs) -> anyhow::Result<()> {
    let name = args.container.clone();
    let request = LocalRequest::Detach(Detach { container: args.container, force: args.force });
    let client = context.client();
    let work = client.local(request);
    let removed: Vec<Endpoint> = wait_for("waiting for flows to end", work).await?;
    print(&format!("{}\n", removed.first().map_or(&name, |endpoint| &endpoint.name)))
}

/// One line of `endpoint ls`.
#[derive(Debug, Serialize)]
struct Row {
    id: Id,
    container: Id,
    name: String,
    network: String,
    node: String,
    address: Ipv4Addr,
    #[serde(skip_serializing_if = "Option::is_none")]
    address6: Option<Ipv6Addr>,
    service: Option<String>,
    state: EndpointState,
    health: Health,
    /// Whether it takes new flows, and if not, why.
    standing: Standing,
    ports: Vec<Port>,
    aliases: Vec<String>,
    created: jiff::Timestamp,
}

/// The endpoints by name of the container, then network.
fn rows(state: &ClusterState) -> Vec<Row> {
    // Ports of a container alone are carried by a service that it owns.
    let own_ports: BTreeMap<&Id, &Vec<Port>> = state
        .services
        .values()
        .filter_map(|service| Some((service.owner.as_ref()?, &service.ports)))
        .collect();
    let service_name = |endpoint: &Endpoint| {
        let service = state.services.get(endpoint.service.as_ref()?)?;
        service.owner.is_none().then(|| service.name.clone())
    };
    let network = |id: &Id| state.networks.get(id).map(|n| n.name.clone()).unwrap_or_default();
    let node = |id: &Id| state.nodes.get(id).map(|n| n.name.clone()).unwrap_or_default();
    let mut rows: Vec<_> = state
        .endpoints
        .values()
        .map(|e| Row {
            id: e.id.clone(),
            container: e.container.clone(),
            name: e.name.clone(),
            network: network(&e.network),
            node: node(&e.node),
            address: e.ip,
            address6: e.ip6,
            service: service_name(e),
            state: e.state,
            health: e.health,
            standing: state.standing(e),
            ports: own_ports.get(&e.id).map(|ports| (*ports).clone()).unwrap_or_default(),
            aliases: e.aliases.clone(),
            created: e.created,
        })
        .collect();
    rows.sort_by(|a, b| (&a.name, &a.network, &a.id).cmp(&(&b.name, &b.network, &b.id)));
    rows
}

async fn ls(context: &Context, args: &LsArgs) -> anyhow::Result<()> {
    let state = context.state().await?;
    let mut rows = rows(&state);
    if let Some(reference) = &args.network {
        let network = state
            .network(reference)
            .ok_or_else(|| super::error::not_found("network", reference))?;
        rows.retain(|row| row.network == network.name);
    }
    let header =
        ["id", "name", "network", "node", "address", "service", "state", "ports", "created"];
    print_rows(args.format.format, &rows, &header, |row| {
        vec![
            row.id.short().to_owned(),
            row.name.clone(),
            row.network.clone(),
            row.node.clone(),
            both(row.address, row.address6),
            row.service.clone().unwrap_or_else(|| "-".to_owned()),
            row.standing.to_string(),
            list(&row.ports),
            ago(row.created),
        ]
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{
        api::AttachedInterface,
        cli::{Cli, Command},
    };

    fn parse(args: &[&str]) -> anyhow::Result<Attach> {
        let args = [&["overlay", "endpoint", "attach", "--netns", "web"], args].concat();
        match Cli::try_parse_from(args)?.command {
            Command::Endpoint(EndpointCommand::Attach(args)) => args.options.request(args.network),
            other => panic!("parsed as {other:?}"),
        }
    }

    #[test]
    fn every_option_of_attach_reaches_the_request() {
        let request = parse(&[
            "--network",
            "mynet",
            "--name",
            "web",
            "--ip",
            "10.0.0.9",
            "--ip",
            "fd00:1::9",
            "--alias",
            "www",
            "-p",
            "80:80",
        ])
        .expect("a request");
        assert_eq!(request.networks, ["mynet"]);
        assert_eq!(request.name.as_deref(), Some("web"));
        assert_eq!(request.ip, Some([10, 0, 0, 9].into()));
        assert_eq!(request.ip6, "fd00:1::9".parse().ok());
        assert_eq!(request.aliases, ["www"]);
        assert_eq!(request.ports[0].mode, PublishMode::Ingress);
        assert!(!request.wait_listen);
    }

    #[test]
    fn ports_of_a_container_on_the_bridge_answer_on_its_own_host_only() {
        let request = parse(&["--network", "bridge", "-p", "80:80"]).expect("a request");
        assert_eq!(request.ports[0].mode, PublishMode::Host);
    }

    #[test]
    fn contradictions_and_malformed_values_are_told() {
        for (args, quoted) in [
            (&[][..], "neither a network nor a service"),
            (&["--network", "a", "--network", "b", "--ip", "10.0.0.9"], "--ip 10.0.0.9 with 2"),
            (
                &["--network", "a", "--ip", "fd00::9", "--ip", "fd00::8"],
                "--ip fd00::8 is the second",
            ),
            (&["--service", "s", "-p", "80:80"], "-p and --service s"),
            (&["--network", "a", "--ip", "10.0.0"], "'10.0.0' for '--ip <IP>'"),
            (&["--network", "a", "--name", "a b"], "invalid container name \"a b\""),
            (&["--network", "a", "--alias", "-"], "invalid container name \"-\""),
            (&["--network", "a", "-p", "x"], "\"x\" is not a port"),
        ] {
            let error = parse(args).expect_err(&format!("{args:?}")).to_string();
            assert!(error.contains(quoted), "{args:?}: {error}");
        }
    }

    #[test]
    fn a_process_id_means_its_namespace_and_its_end() {
        let own = std::process::id();
        let (path, pid) = namespace(&own.to_string()).expect("this process");
        assert_eq!(path, PathBuf::from(format!("/proc/{own}/ns/net")));
        assert_eq!(pid, Some(own));
    }

    #[test]
    fn a_namespace_that_does_not_exist_is_quoted() {
        for text in ["nonesuch-overlay-test", "/nonesuch/ns", "4294967295", "99999999999"] {
            let error = namespace(text).expect_err(text).to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn ports_of_a_container_are_listed_with_it_and_not_as_a_service() {
        let state = crate::cli::inspect::testing::three_nodes();
        let rows = rows(&state);
        let names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["edge", "hello.1", "hello.2", "web"]);
        assert_eq!(rows[1].service.as_deref(), Some("hello"));
        assert_eq!(rows[3].service, None);
        assert_eq!(list(&rows[3].ports), "*:9090->80/tcp");
    }

    #[test]
    fn what_was_attached_is_told_with_its_addresses() {
        let attached = Attached {
            container: Id::from_text("0123456789abcdefghijklmno"),
            name: "web".to_owned(),
            interfaces: vec![AttachedInterface {
                interface: "eth0".to_owned(),
                network: "mynet".to_owned(),
                address: "10.0.0.5/24".parse().expect("an address"),
                mac: "02:42:0a:00:00:05".to_owned(),
                gateway: None,
                address6: Some("fd00:1::5/64".parse().expect("an address")),
                gateway6: None,
                mtu: 1450,
                endpoint: Id::from_text("endpoint"),
            }],
            ports: vec![],
        };
        assert_eq!(
            attached_words(&attached),
            "web (0123456789ab)\n\
             INTERFACE   NETWORK   ADDRESS                     MAC                 GATEWAY   MTU\n\
             eth0        mynet     10.0.0.5/24, fd00:1::5/64   02:42:0a:00:00:05   -         1450\n"
        );
    }
}
