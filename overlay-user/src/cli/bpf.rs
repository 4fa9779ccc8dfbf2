//! `overlay bpf`: the live tables of the datapath in words.

use clap::{Args, ValueEnum};

use super::{
    Context,
    error::{refuse, usage_error},
    format::{Format, FormatArg, json, print, print_rows, table},
    traffic,
};
use crate::{
    api::{CounterRow, LocalRequest},
    datapath::{ConntrackRow, TableDump, Tables},
};

/// Show a live table of this host's datapath
#[derive(Debug, Args)]
#[command(after_help = "What the tables mean is told in docs/architecture.md. The same bytes:
  bpftool map dump pinned /sys/fs/bpf/overlay/v2/maps/endpoints

Examples:
  overlay bpf endpoints
  overlay bpf conntrack --format json
  overlay bpf counters
  overlay bpf counters --by endpoint")]
pub(super) struct BpfArgs {
    /// The table
    #[arg(value_enum)]
    table: TableName,
    /// What counters are added up by
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    by: By,
    #[command(flatten)]
    format: FormatArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TableName {
    /// Addresses and where they are
    Endpoints,
    /// IPv6 addresses and where they are
    Endpoints6,
    /// The IPv6 address beside each IPv4 one, by which flows of either family name it
    Addresses6,
    /// IPv6 addresses outside and the numbers that flows have for them
    #[value(aliases = ["addr6_ids", "clients6"])]
    Addr6Ids,
    /// Nodes that may send us VXLAN, by network
    Peers,
    /// Networks this host takes part in
    Networks,
    /// Where multicast and broadcast are copied, by network
    #[value(alias = "replicas")]
    Flood,
    /// Services and how they pick
    Services,
    /// Backends that take new flows, of services without a table
    Slots,
    /// Tables of schedulers, and each backend's share
    #[value(alias = "maglev")]
    LbTables,
    /// Backends that may have flows
    Backends,
    /// Published ports
    Published,
    /// Interfaces and what they may send
    Links,
    /// Interfaces and what IPv6 they may send
    Links6,
    /// Addresses of the host on which published ports answer
    LocalAddrs,
    /// IPv6 addresses of the host on which published ports answer
    LocalAddrs6,
    /// IPv6 addresses of the other hosts on which published ports answer
    #[value(alias = "asked6")]
    Frontends6,
    /// Interfaces that lead outside and the host's address on each
    Egress,
    /// Networks of the namespaces whose connections to VIPs are given a backend when they are made
    #[value(alias = "spaces")]
    Netns,
    /// Sockets that are connected to a backend in place of a VIP
    #[value(alias = "sockets")]
    SockFlows,
    /// Addresses of removed backends that sockets are still connected to
    #[value(aliases = ["stale_backends", "gone"])]
    StaleBackends,
    /// Translated flows, newest first
    Conntrack,
    /// Packets by named reason, drops included
    Counters,
}

/// What counters are added up by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum By {
    /// The host's packets, by reason alone
    #[default]
    Reason,
    /// By network: those of its endpoints on this host, and drops that are no endpoint's
    Network,
    /// By endpoint of this host
    Endpoint,
}

impl TableName {
    /// Name of the map.
    const fn map(self) -> &'static str {
        match self {
            Self::Endpoints => "endpoints",
            Self::Endpoints6 => "endpoints6",
            Self::Addresses6 => "addresses6",
            Self::Addr6Ids => "addr6_ids",
            Self::Peers => "peers",
            Self::Networks => "networks",
            Self::Flood => "flood",
            Self::Services => "services",
            Self::Slots => "slots",
            Self::LbTables => "lb_tables",
            Self::Backends => "backends",
            Self::Published => "published",
            Self::Links => "links",
            Self::Links6 => "links6",
            Self::LocalAddrs => "local_addrs",
            Self::LocalAddrs6 => "local_addrs6",
            Self::Frontends6 => "frontends6",
            Self::Egress => "egress",
            Self::Netns => "netns",
            Self::SockFlows => "sock_flows",
            Self::StaleBackends => "stale_backends",
            Self::Conntrack => "conntrack",
            Self::Counters => "counters",
        }
    }
}

/// Prints the table.
pub(super) async fn run(context: &Context, args: &BpfArgs) -> anyhow::Result<()> {
    if args.by != By::Reason && args.table != TableName::Counters {
        return Err(usage_error(
            "--by is for counters only",
            "try `overlay bpf counters --by network`",
        ));
    }
    let tables: Tables = context.client().local(LocalRequest::Tables {}).await?;
    let format = args.format.format;
    match args.table {
        TableName::Conntrack => print_conntrack(format, &tables.conntrack),
        TableName::Counters => match args.by {
            By::Reason => print_counters(format, &tables.counters),
            By::Network => traffic::print_networks(format, &tables.traffic),
            By::Endpoint => traffic::print_endpoints(format, &tables.traffic),
        },
        name => {
            let dump =
                tables.state.iter().find(|dump| dump.name == name.map()).ok_or_else(|| {
                    refuse(
                        format!("the daemon shows no table {:?}", name.map()),
                        "it is of another version than this command; restart it",
                    )
                })?;
            print_dump(format, dump)
        }
    }
}

fn print_dump(format: Format, dump: &TableDump) -> anyhow::Result<()> {
    match format {
        Format::Json => print(&json(&objects(dump))?),
        Format::Table => {
            let header: Vec<_> = dump.columns.iter().map(|c| c.replace('_', " ")).collect();
            let header: Vec<_> = header.iter().map(String::as_str).collect();
            print(&table(&header, dump.rows.iter().cloned()))
        }
    }
}

/// The rows as objects, so that `jq` finds columns by their names.
fn objects(dump: &TableDump) -> Vec<serde_json::Value> {
    let object = |row: &Vec<String>| {
        let fields = dump.columns.iter().cloned().zip(row.iter().cloned().map(Into::into));
        serde_json::Value::Object(fields.collect())
    };
    dump.rows.iter().map(object).collect()
}

fn print_conntrack(format: Format, rows: &[ConntrackRow]) -> anyhow::Result<()> {
    let header = [
        "proto",
        "vni",
        "source",
        "destination",
        "action",
        "new source",
        "new destination",
        "new vni",
        "service",
        "backend",
        "node",
        "flags",
        "idle",
    ];
    print_rows(format, rows, &header, |row| {
        vec![
            row.protocol.clone(),
            vni_words(row.vni),
            row.source.to_string(),
            row.destination.to_string(),
            row.action.clone(),
            row.new_source.to_string(),
            row.new_destination.to_string(),
            vni_words(row.new_vni),
            row.service.to_string(),
            row.backend.to_string(),
            row.node.map_or("-".to_owned(), |node| node.to_string()),
            if row.state.is_empty() { "-".to_owned() } else { row.state.clone() },
            idle_words(row.idle_ms),
        ]
    })
}

fn vni_words(vni: u32) -> String {
    match vni {
        overlay_common::UNDERLAY_VNI => "underlay".to_owned(),
        vni => vni.to_string(),
    }
}

fn idle_words(ms: u64) -> String {
    if ms < 10_000 {
        format!("{}.{}s", ms / 1000, ms % 1000 / 100)
    } else {
        format!("{}s", ms / 1000)
    }
}

fn print_counters(format: Format, rows: &[CounterRow]) -> anyhow::Result<()> {
    let header = ["reason", "direction", "packets", "bytes", "description"];
    print_rows(format, rows, &header, |row| {
        vec![
            row.reason.clone(),
            row.direction.clone(),
            row.packets.to_string(),
            row.bytes.to_string(),
            row.description.clone(),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_objects_by_their_columns() {
        let dump = TableDump {
            name: "peers".to_owned(),
            columns: vec!["vni".to_owned(), "node".to_owned()],
            rows: vec![vec!["4096".to_owned(), "172.16.1.11".to_owned()]],
        };
        assert_eq!(
            serde_json::Value::from(objects(&dump)),
            serde_json::json!([{"vni": "4096", "node": "172.16.1.11"}])
        );
    }

    #[test]
    fn former_names_of_tables_still_work() {
        for (former, table) in [
            ("clients6", TableName::Addr6Ids),
            ("replicas", TableName::Flood),
            ("asked6", TableName::Frontends6),
            ("spaces", TableName::Netns),
            ("gone", TableName::StaleBackends),
            ("sockets", TableName::SockFlows),
            ("maglev", TableName::LbTables),
        ] {
            assert_eq!(TableName::from_str(former, false), Ok(table), "{former}");
        }
    }

    #[test]
    fn idle_times_are_short_and_the_underlay_has_a_name() {
        assert_eq!(idle_words(1_250), "1.2s");
        assert_eq!(idle_words(75_000), "75s");
        assert_eq!(vni_words(0), "underlay");
        assert_eq!(vni_words(4096), "4096");
    }
}
