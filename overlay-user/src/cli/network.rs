//! `overlay network`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use clap::{Args, Subcommand, ValueEnum};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;

use super::{
    Context, args,
    error::{not_found, refuse, usage_error},
    format::{FormatArg, JsonArg, json, print, print_rows},
    inspect::{self, NetworkInspect, OPTION_MTU, OPTION_MULTICAST, OPTION_VNI, PseudoNetwork},
};
use crate::{
    api::{NetworkCreate, NetworkCreateIpv6, Reference, Request},
    model::{ClusterState, Id, Multicast, Network},
};

/// The verbs.
#[derive(Debug, Subcommand)]
pub(super) enum NetworkCommand {
    Create(Box<CreateArgs>),
    Ls(LsArgs),
    Inspect(InspectArgs),
    Rm(RmArgs),
}

/// Make a network that spans the hosts
#[derive(Debug, Args)]
#[command(after_help = "Driver options:
  com.docker.network.driver.mtu=BYTES                   MTU of the containers' interfaces
  com.docker.network.driver.overlay.vxlanid_list=VNI    VNI on the wire
  multicast=drop|replicate                              Multicast and broadcast: dropped (default),
                                                        or copied to all containers of the network,
                                                        on each host and for each other host to 64

Examples:
  overlay network create mynet
  overlay network create --ipv6 dual
  overlay network create --ipv6 --subnet 10.8.0.0/24 --subnet fd00:8::/64 both
  overlay network create --subnet 10.9.0.0/24 --ip-range 10.9.0.128/25 --internal backend")]
pub(super) struct CreateArgs {
    /// Name of the network
    #[arg(value_parser = args::network_name)]
    name: String,
    /// What it is made of
    #[arg(short, long, value_enum, default_value_t)]
    driver: DriverArg,
    /// IPv6 beside IPv4: containers get an address of either family
    #[arg(long)]
    ipv6: bool,
    /// Subnet, one for each family at most [default: the next free one of the cluster's pool, and a
    /// unique local /64]
    #[arg(long, value_name = "CIDR", value_parser = args::any_subnet)]
    subnet: Vec<IpNet>,
    /// Allocate addresses from this part of the subnet only
    #[arg(long, value_name = "CIDR", value_parser = args::subnet)]
    ip_range: Option<Ipv4Net>,
    /// Gateway, one for each family at most [default: the first address of the subnet]
    #[arg(long, value_name = "IP")]
    gateway: Vec<IpAddr>,
    /// An address never to allocate, and what it is for
    #[arg(long, value_name = "NAME=IP", value_parser = args::aux_address)]
    aux_address: Vec<(String, Ipv4Addr)>,
    /// No way out of the network, and no published ports
    #[arg(long)]
    internal: bool,
    /// Whether containers may join it without being a backend of a service
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1)]
    #[arg(action = clap::ArgAction::Set, default_missing_value = "true", require_equals = true)]
    attachable: bool,
    /// Make it the network that carries published ports; there is one at most
    #[arg(long)]
    ingress: bool,
    /// Driver option
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = args::label)]
    opt: Vec<(String, String)>,
    /// Label
    #[arg(long, value_name = "KEY=VALUE", value_parser = args::label)]
    label: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum DriverArg {
    /// Spans the hosts over VXLAN
    #[default]
    Overlay,
    /// Node-local: there is one, named bridge
    Bridge,
}

/// List the networks
#[derive(Debug, Args)]
#[command(
    visible_alias = "list",
    after_help = "Example:
  overlay network ls --format json"
)]
pub(super) struct LsArgs {
    #[command(flatten)]
    format: FormatArg,
}

/// Show networks as Docker does: addresses, containers on this host, peers
#[derive(Debug, Args)]
#[command(after_help = "Example:
  overlay network inspect --verbose mynet")]
pub(super) struct InspectArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    /// Also the services on it and their backends on all hosts
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    _format: JsonArg,
}

/// Remove networks that nothing uses any more
#[derive(Debug, Args)]
#[command(
    visible_alias = "remove",
    after_help = "Example:
  overlay network rm mynet"
)]
pub(super) struct RmArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

/// Runs a verb.
pub(super) async fn run(context: &Context, command: NetworkCommand) -> anyhow::Result<()> {
    match command {
        NetworkCommand::Create(args) => create(context, *args).await,
        NetworkCommand::Ls(args) => ls(context, &args).await,
        NetworkCommand::Inspect(args) => inspect(context, &args).await,
        NetworkCommand::Rm(args) => rm(context, args).await,
    }
}

async fn create(context: &Context, args: CreateArgs) -> anyhow::Result<()> {
    let request = Request::NetworkCreate(request(args)?);
    let network: Network = context.client().call(request).await?;
    print(&format!("{}\n", network.id))
}

/// The request that the options ask for.
fn request(args: CreateArgs) -> anyhow::Result<NetworkCreate> {
    if args.driver == DriverArg::Bridge {
        return Err(refuse(
            format!("cannot make the network {:?} with driver bridge", args.name),
            "every host has the one network `bridge`; networks to be made are `-d overlay`",
        ));
    }
    if PseudoNetwork::ALL.iter().any(|pseudo| pseudo.name() == args.name) {
        return Err(refuse(
            format!("the name {:?} is taken by a mode of `overlay run`", args.name),
            "choose another name",
        ));
    }
    let options = DriverOptions::from_list(&args.opt)?;
    let (mut subnets, mut subnets6) = (vec![], vec![]);
    for subnet in args.subnet {
        match subnet {
            IpNet::V4(subnet) => subnets.push(subnet),
            IpNet::V6(subnet) => subnets6.push(subnet),
        }
    }
    let (mut gateways, mut gateways6) = (vec![], vec![]);
    for gateway in args.gateway {
        match gateway {
            IpAddr::V4(gateway) => gateways.push(gateway),
            IpAddr::V6(gateway) => gateways6.push(gateway),
        }
    }
    let subnet6 = one("--subnet", "IPv6", &subnets6)?;
    let gateway6 = one("--gateway", "IPv6", &gateways6)?;
    let given6 = subnet6.map(|s| s.to_string()).or(gateway6.map(|g| g.to_string()));
    if let Some(given) = given6.filter(|_| !args.ipv6) {
        return Err(usage_error(
            format!("{given} is for IPv6, which the network would not have"),
            "add --ipv6",
        ));
    }
    Ok(NetworkCreate {
        name: args.name,
        subnet: one("--subnet", "IPv4", &subnets)?,
        ip_range: args.ip_range,
        gateway: one("--gateway", "IPv4", &gateways)?,
        ipv6: args.ipv6.then_some(NetworkCreateIpv6 { subnet: subnet6, gateway: gateway6 }),
        aux_addresses: unique("--aux-address", args.aux_address)?,
        vni: options.vni,
        mtu: options.mtu,
        multicast: options.multicast,
        internal: args.internal,
        attachable: args.attachable,
        ingress: args.ingress,
        labels: args.label.into_iter().collect(),
    })
}

/// The one value of a family, if there is one.
fn one<T: Copy>(option: &str, family: &str, values: &[T]) -> anyhow::Result<Option<T>> {
    match values {
        [] => Ok(None),
        [value] => Ok(Some(*value)),
        more => Err(usage_error(
            format!("{} values of {option} are {family}: a network has one", more.len()),
            "give one for each family at most",
        )),
    }
}

/// A map of what was given as a list; a key given twice is an error.
fn unique<T>(option: &str, list: Vec<(String, T)>) -> anyhow::Result<BTreeMap<String, T>> {
    let mut map = BTreeMap::new();
    for (key, value) in list {
        if map.contains_key(&key) {
            let message = format!("{option} {key:?} is given twice");
            return Err(usage_error(message, "give every name once"));
        }
        map.insert(key, value);
    }
    Ok(map)
}

/// `--opt`, the ones that have a meaning here.
#[derive(Debug, Default, PartialEq, Eq)]
struct DriverOptions {
    vni: Option<u32>,
    mtu: Option<u32>,
    multicast: Multicast,
}

impl DriverOptions {
    fn from_list(list: &[(String, String)]) -> anyhow::Result<Self> {
        let mut options = Self::default();
        for (key, value) in list {
            match key.as_str() {
                OPTION_VNI => options.vni = Some(number(key, value, "a VNI")?),
                OPTION_MTU => options.mtu = Some(number(key, value, "an MTU in bytes")?),
                OPTION_MULTICAST => options.multicast = multicast(value)?,
                "encrypted" => {
                    return Err(refuse(
                        "encrypted networks are not built in this version",
                        "without --opt encrypted the network's traffic is readable on the \
                         underlay; use it where the underlay is trusted or encrypted itself",
                    ));
                }
                _ => {
                    return Err(refuse(
                        format!("unknown driver option {key:?}"),
                        format!("known are {OPTION_MTU}, {OPTION_VNI} and {OPTION_MULTICAST}"),
                    ));
                }
            }
        }
        Ok(options)
    }
}

fn number(key: &str, value: &str, what: &str) -> anyhow::Result<u32> {
    value.parse().map_err(|_| {
        usage_error(
            format!("--opt {key}={value}: {value:?} is not {what}"),
            "write one decimal number",
        )
    })
}

fn multicast(value: &str) -> anyhow::Result<Multicast> {
    match value {
        "drop" => Ok(Multicast::Drop),
        "replicate" => Ok(Multicast::Replicate),
        _ => Err(usage_error(
            format!("--opt {OPTION_MULTICAST}={value}: {value:?} is no way to treat multicast"),
            "write drop or replicate",
        )),
    }
}

/// One line of `network ls`.
#[derive(Debug, Serialize)]
struct Row {
    id: Id,
    name: String,
    driver: &'static str,
    scope: &'static str,
    #[serde(flatten)]
    addressed: Option<Addressed>,
}

/// What networks have and modes of `overlay run` do not.
#[derive(Debug, Serialize)]
struct Addressed {
    vni: u32,
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
    #[serde(skip_serializing_if = "Option::is_none")]
    subnet6: Option<Ipv6Net>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway6: Option<Ipv6Addr>,
    internal: bool,
    attachable: bool,
    ingress: bool,
    labels: BTreeMap<String, String>,
}

/// The networks and modes in the order of their names.
fn rows(state: &ClusterState) -> Vec<Row> {
    let pseudo = PseudoNetwork::ALL.into_iter().map(|pseudo| Row {
        id: pseudo.id(state),
        name: pseudo.name().to_owned(),
        driver: pseudo.driver(),
        scope: "local",
        addressed: None,
    });
    let networks = state.networks.values().map(|network| Row {
        id: network.id.clone(),
        name: network.name.clone(),
        driver: inspect::driver_name(network.driver),
        scope: inspect::scope(network.driver),
        addressed: Some(Addressed {
            vni: network.vni,
            subnet: network.subnet,
            gateway: network.gateway,
            subnet6: network.ipv6.as_ref().map(|ipv6| ipv6.subnet),
            gateway6: network.ipv6.as_ref().map(|ipv6| ipv6.gateway),
            internal: network.internal,
            attachable: network.attachable,
            ingress: network.ingress,
            labels: network.labels.clone(),
        }),
    });
    let mut rows: Vec<_> = networks.chain(pseudo).collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

async fn ls(context: &Context, args: &LsArgs) -> anyhow::Result<()> {
    let rows = rows(&context.state().await?);
    print_rows(args.format.format, &rows, &["network id", "name", "driver", "scope"], |row| {
        let Row { id, name, driver, scope, addressed: _ } = row;
        vec![id.short().to_owned(), name.clone(), (*driver).to_owned(), (*scope).to_owned()]
    })
}

async fn inspect(context: &Context, args: &InspectArgs) -> anyhow::Result<()> {
    let here = context.status().await?.node;
    let state = context.state().await?;
    let found: Vec<_> =
        args.networks.iter().map(|name| (name, look(&state, name, &here, args.verbose))).collect();
    let missing = found.iter().find(|(_, network)| network.is_none()).map(|(name, _)| *name);
    // As Docker does: what was found is shown, then what was not is told.
    print(&json(&found.iter().filter_map(|(_, network)| network.as_ref()).collect::<Vec<_>>())?)?;
    missing.map_or(Ok(()), |name| Err(not_found("network", name)))
}

fn look(state: &ClusterState, name: &str, here: &Id, verbose: bool) -> Option<NetworkInspect> {
    if let Some(network) = state.network(name) {
        return Some(inspect::network(state, network, here, verbose));
    }
    let is_meant = |pseudo: &PseudoNetwork| {
        pseudo.name() == name || (name.len() >= 4 && pseudo.id(state).as_str().starts_with(name))
    };
    PseudoNetwork::ALL
        .into_iter()
        .find(is_meant)
        .map(|pseudo| inspect::pseudo_network(state, pseudo))
}

async fn rm(context: &Context, args: RmArgs) -> anyhow::Result<()> {
    for reference in args.networks {
        if PseudoNetwork::ALL.iter().any(|pseudo| pseudo.name() == reference) {
            return Err(refuse(
                format!("{reference:?} is a mode of `overlay run` and cannot be removed"),
                "`overlay network ls` lists the networks; those with scope swarm can be removed",
            ));
        }
        let request = Request::NetworkRemove(Reference { reference });
        let removed: Network = context.client().call(request).await?;
        print(&format!("{}\n", removed.name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn create(args: &[&str]) -> anyhow::Result<NetworkCreate> {
        let cli = Cli::try_parse_from([&["overlay", "network", "create"], args].concat())?;
        match cli.command {
            Command::Network(NetworkCommand::Create(args)) => request(*args),
            other => panic!("parsed as {other:?}"),
        }
    }

    #[test]
    fn every_option_reaches_the_request() {
        let request = create(&[
            "-d",
            "overlay",
            "--subnet",
            "10.9.0.0/24",
            "--ip-range=10.9.0.128/25",
            "--gateway",
            "10.9.0.254",
            "--aux-address",
            "router=10.9.0.9",
            "--internal",
            "--attachable=false",
            "--opt",
            "com.docker.network.driver.mtu=1400",
            "-o",
            "com.docker.network.driver.overlay.vxlanid_list=5000",
            "-o",
            "multicast=replicate",
            "--label",
            "a=b",
            "mynet",
        ])
        .expect("a request");
        assert_eq!(
            serde_json::to_value(request).expect("JSON"),
            serde_json::json!({
                "name": "mynet",
                "subnet": "10.9.0.0/24",
                "ip_range": "10.9.0.128/25",
                "gateway": "10.9.0.254",
                "ipv6": null,
                "aux_addresses": {"router": "10.9.0.9"},
                "vni": 5000,
                "mtu": 1400,
                "multicast": "replicate",
                "internal": true,
                "attachable": false,
                "ingress": false,
                "labels": {"a": "b"},
            })
        );
    }

    #[test]
    fn a_subnet_and_a_gateway_of_each_family_reach_the_request() {
        let args = ["--ipv6", "--subnet", "fd00:9::/64", "--subnet", "10.9.0.0/24"];
        let gateways = ["--gateway", "10.9.0.9", "--gateway", "fd00:9::9", "a"];
        let request = create(&[&args[..], &gateways].concat()).expect("a request");
        assert_eq!(request.subnet, "10.9.0.0/24".parse().ok());
        assert_eq!(request.gateway, "10.9.0.9".parse().ok());
        let ipv6 = request.ipv6.expect("IPv6");
        assert_eq!(ipv6.subnet, "fd00:9::/64".parse().ok());
        assert_eq!(ipv6.gateway, "fd00:9::9".parse().ok());
        let bare = create(&["--ipv6", "a"]).expect("a request");
        assert_eq!(bare.ipv6, Some(NetworkCreateIpv6::default()));
        assert_eq!(create(&["a"]).expect("a request").ipv6, None);
    }

    #[test]
    fn networks_are_attachable_unless_told_otherwise() {
        assert!(create(&["a"]).expect("a request").attachable);
        assert!(create(&["--attachable", "a"]).expect("a request").attachable);
        assert!(create(&["--attachable=true", "a"]).expect("a request").attachable);
        assert!(!create(&["--attachable=false", "a"]).expect("a request").attachable);
    }

    #[test]
    fn bad_input_is_quoted_in_the_error() {
        for (args, quoted) in [
            (&["a/b"][..], "invalid network name \"a/b\""),
            (&["--subnet", "10.9.0.0/33", "a"], "\"10.9.0.0/33\" is no subnet"),
            (&["--subnet", "fd00::/64", "a"], "add --ipv6"),
            (&["--gateway", "fd00::1", "a"], "add --ipv6"),
            (&["--subnet", "fd00::1/64", "--ipv6", "a"], "the subnet would be fd00::/64"),
            (
                &["--subnet", "10.8.0.0/24", "--subnet", "10.9.0.0/24", "a"],
                "2 values of --subnet are IPv4",
            ),
            (&["--subnet", "10.9.0.1/24", "a"], "the subnet would be 10.9.0.0/24"),
            (&["--gateway", "10.9.0", "a"], "'10.9.0' for '--gateway <IP>'"),
            (&["--aux-address", "10.9.0.9", "a"], "\"10.9.0.9\" is not NAME=IP"),
            (&["--attachable=maybe", "a"], "maybe"),
            (&["-d", "macvlan", "a"], "'macvlan' for '--driver <DRIVER>'"),
            (&["-d", "bridge", "a"], "with driver bridge"),
            (&["--opt", "encrypted", "a"], "not built"),
            (&["--opt", "multicast=maybe", "a"], "\"maybe\" is no way"),
            (&["--opt", "foo=1", "a"], "unknown driver option \"foo\""),
            (&["--opt", "com.docker.network.driver.mtu=x", "a"], "\"x\" is not an MTU"),
            (
                &["--opt", "com.docker.network.driver.overlay.vxlanid_list=1,2", "a"],
                "\"1,2\" is not a VNI",
            ),
            (
                &["--aux-address", "r=10.9.0.9", "--aux-address", "r=10.9.0.8", "a"],
                "\"r\" is given twice",
            ),
            (&["host"], "the name \"host\" is taken"),
        ] {
            let error = create(args).expect_err(&format!("{args:?}")).to_string();
            assert!(error.contains(quoted), "{args:?}: {error}");
        }
    }

    #[test]
    fn the_listing_has_the_modes_of_run_as_docker_has_them() {
        let state = crate::cli::inspect::testing::three_nodes();
        let listed: Vec<_> =
            rows(&state).into_iter().map(|r| (r.name, r.driver, r.scope)).collect();
        let expected = [
            ("bridge", "bridge", "local"),
            ("host", "host", "local"),
            ("ingress", "overlay", "swarm"),
            ("mynet", "overlay", "swarm"),
            ("none", "null", "local"),
        ];
        assert_eq!(listed, expected.map(|(name, driver, scope)| (name.to_owned(), driver, scope)));
    }

    #[test]
    fn the_modes_of_run_can_be_inspected_by_name_and_id() {
        let state = crate::cli::inspect::testing::three_nodes();
        let here = Id::from_text("node1");
        let by_name = look(&state, "none", &here, false).expect("found");
        let id = PseudoNetwork::None.id(&state);
        assert_eq!(look(&state, id.short(), &here, false), Some(by_name));
        assert_eq!(look(&state, "nonesuch", &here, false), None);
        assert_ne!(id, PseudoNetwork::Host.id(&state));
        assert_eq!(id.as_str().len(), 26);
    }
}
