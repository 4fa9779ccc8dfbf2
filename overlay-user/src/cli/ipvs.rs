//! `overlay ipvs`: the services as `ipvsadm -Ln` would show them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use clap::Args;
use tokio::time::{Instant, sleep};

use super::{
    Context,
    format::{Format, FormatArg, json, print},
};
use crate::{
    api::LocalRequest,
    datapath::{RealServer, ServerStats, Tables, VirtualServer},
};

/// How long packets are counted for rates.
const RATE_OVER: Duration = Duration::from_secs(1);

/// Show services and the connections of their backends as `ipvsadm -Ln` would
#[derive(Debug, Args)]
#[command(
    after_help = "Connections are those that go through this host. Port 0 stands for all ports of a VIP, \
0.0.0.0 and [::] for the addresses of this host. Masq: the backend is on this host; Tunnel: on another one. \
Drained are those that a draining backend still has. --stats counts what has gone through this host since \
it knows the backend, --rate what goes through it in a second; bytes are those of whole frames. Of TCP connections \
that containers make to a VIP there are connections only: given their backend when they are made, they go to it \
as any other (`overlay bpf sock-flows`). Replies that other hosts send to clients directly (--return dsr) are \
not counted here.

Example:
  overlay ipvs
  overlay ipvs --stats
  overlay ipvs --rate --format json"
)]
pub(super) struct IpvsArgs {
    /// Show connections, packets and bytes so far
    #[arg(long, conflicts_with = "rate")]
    stats: bool,
    /// Show connections, packets and bytes each second; takes one second
    #[arg(long)]
    rate: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// Prints the virtual servers.
pub(super) async fn run(context: &Context, args: &IpvsArgs) -> anyhow::Result<()> {
    let (start, mut servers) = (Instant::now(), servers(context).await?);
    if args.rate {
        let before = servers;
        sleep(RATE_OVER).await;
        servers = self::servers(context).await?;
        rates(&before, &mut servers, start.elapsed());
    }
    print(&match args.format.format {
        Format::Json => json(&servers)?,
        Format::Table if args.stats => counted(&servers, &STATS),
        Format::Table if args.rate => counted(&servers, &RATE),
        Format::Table => words(&servers),
    })
}

async fn servers(context: &Context) -> anyhow::Result<Vec<VirtualServer>> {
    let tables: Tables = context.client().local(LocalRequest::Tables {}).await?;
    Ok(tables.virtual_servers)
}

/// Leaves in `after` what each backend was counted for per second, rounded to the nearest.
fn rates(before: &[VirtualServer], after: &mut [VirtualServer], time: Duration) {
    type Of<'a> = (&'a str, IpAddr, u16, &'a str, IpAddr);
    fn of<'a>(server: &'a VirtualServer, backend: &'a RealServer) -> Of<'a> {
        let VirtualServer { protocol, address, port, service, .. } = server;
        (protocol, *address, *port, service, backend.address)
    }
    let was: BTreeMap<Of<'_>, ServerStats> = before
        .iter()
        .flat_map(|server| server.backends.iter().map(move |b| (of(server, b), b.stats)))
        .collect();
    let per_second = |was: u64, is: u64| {
        // What is less than before was counted for a backend that is another one now.
        (is.saturating_sub(was) as f64 / time.as_secs_f64()).round() as u64
    };
    for server in after {
        let known: Vec<ServerStats> = server
            .backends
            .iter()
            .map(|backend| was.get(&of(server, backend)).copied().unwrap_or_default())
            .collect();
        for (backend, was) in server.backends.iter_mut().zip(known) {
            let is = backend.stats;
            backend.stats = ServerStats {
                connections: per_second(was.connections, is.connections),
                in_packets: per_second(was.in_packets, is.in_packets),
                out_packets: per_second(was.out_packets, is.out_packets),
                in_bytes: per_second(was.in_bytes, is.in_bytes),
                out_bytes: per_second(was.out_bytes, is.out_bytes),
            };
        }
    }
}

/// The line of a virtual server.
fn heading(server: &VirtualServer) -> String {
    let VirtualServer { protocol, address, port, scheduler, persistent_secs, .. } = server;
    let flags = match persistent_secs {
        0 => String::new(),
        seconds => format!(" persistent {seconds}"),
    };
    let protocol = protocol.to_uppercase();
    let socket = SocketAddr::new(*address, *port);
    format!("{protocol:<4} {socket} {scheduler}{flags}")
}

fn words(servers: &[VirtualServer]) -> String {
    let mut out = String::from(
        "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight \
         ActiveConn InActConn  Drained\n",
    );
    for server in servers {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{}", heading(server));
        for backend in &server.backends {
            let remote = SocketAddr::new(backend.address, backend.port).to_string();
            let _ = writeln!(
                out,
                "  -> {remote:<28} {:<7} {:<6} {:<10} {:<10} {}",
                backend.forward, backend.weight, backend.active, backend.inactive, backend.drained
            );
        }
    }
    out
}

/// The columns of `ipvsadm -Ln --stats` ..
const STATS: [&str; 5] = ["Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"];
/// .. and of `ipvsadm -Ln --rate`.
const RATE: [&str; 5] = ["CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"];

fn counted(servers: &[VirtualServer], columns: &[&str; 5]) -> String {
    let line = |name: &str, stats: [String; 5]| {
        let [a, b, c, d, e] = stats;
        format!("{name:<33} {a:>8} {b:>10} {c:>10} {d:>14} {e:>14}\n")
    };
    let numbers = |stats: &ServerStats| {
        let ServerStats { connections, in_packets, out_packets, in_bytes, out_bytes } = stats;
        [connections, in_packets, out_packets, in_bytes, out_bytes].map(u64::to_string)
    };
    let mut out = line("Prot LocalAddress:Port", columns.map(str::to_owned));
    out.push_str("  -> RemoteAddress:Port\n");
    for server in servers {
        let VirtualServer { protocol, address, port, .. } = server;
        let socket = SocketAddr::new(*address, *port);
        let name = format!("{:<4} {socket}", protocol.to_uppercase());
        let sum = server.backends.iter().fold(ServerStats::default(), |sum, backend| {
            let ServerStats { connections, in_packets, out_packets, in_bytes, out_bytes } =
                backend.stats;
            ServerStats {
                connections: sum.connections + connections,
                in_packets: sum.in_packets + in_packets,
                out_packets: sum.out_packets + out_packets,
                in_bytes: sum.in_bytes + in_bytes,
                out_bytes: sum.out_bytes + out_bytes,
            }
        });
        out.push_str(&line(&name, numbers(&sum)));
        for backend in &server.backends {
            let name = format!("  -> {}", SocketAddr::new(backend.address, backend.port));
            out.push_str(&line(&name, numbers(&backend.stats)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(stats: ServerStats) -> RealServer {
        RealServer {
            address: [10, 0, 1, 3].into(),
            port: 80,
            name: "web.1".to_owned(),
            node: "h1".to_owned(),
            forward: "Masq".to_owned(),
            weight: 3,
            state: "active".to_owned(),
            active: 12,
            inactive: 4,
            drained: 0,
            stats,
        }
    }

    fn server(backends: Vec<RealServer>) -> VirtualServer {
        VirtualServer {
            protocol: "tcp".to_owned(),
            address: [10, 0, 1, 9].into(),
            port: 0,
            service: "web".to_owned(),
            scheduler: "wrr".to_owned(),
            persistent_secs: 600,
            backends,
        }
    }

    fn stats(connections: u64) -> ServerStats {
        ServerStats { connections, in_packets: 20, out_packets: 30, in_bytes: 400, out_bytes: 5000 }
    }

    fn columns(line: &str) -> Vec<&str> {
        line.split_whitespace().collect()
    }

    #[test]
    fn servers_are_shown_as_ipvsadm_shows_them() {
        let shown = words(&[server(vec![backend(ServerStats::default())])]);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[2], "TCP  10.0.1.9:0 wrr persistent 600");
        assert_eq!(columns(lines[3]), ["->", "10.0.1.3:80", "Masq", "3", "12", "4", "0"]);
        assert_eq!(lines[1].find("Weight"), lines[3].find("3      12"));
    }

    #[test]
    fn ipv6_addresses_are_in_brackets() {
        let [address, of_backend] =
            ["fd00::5", "fd00::7"].map(|text| text.parse::<IpAddr>().expect("an address"));
        let backend = RealServer { address: of_backend, ..backend(stats(7)) };
        let server = VirtualServer { address, port: 80, ..server(vec![backend]) };
        let shown = words(std::slice::from_ref(&server));
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[2], "TCP  [fd00::5]:80 wrr persistent 600");
        assert_eq!(columns(lines[3])[..2], ["->", "[fd00::7]:80"]);
        assert_eq!(lines[1].find("Weight"), lines[3].find("3      12"));
        let counted = counted(&[server], &STATS);
        let lines: Vec<&str> = counted.lines().collect();
        assert_eq!(columns(lines[2])[..3], ["TCP", "[fd00::5]:80", "7"]);
    }

    #[test]
    fn a_server_has_the_sum_of_its_backends() {
        let shown = counted(&[server(vec![backend(stats(7)), backend(stats(8))])], &STATS);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(columns(lines[0])[2..], STATS);
        assert_eq!(columns(lines[2]), ["TCP", "10.0.1.9:0", "15", "40", "60", "800", "10000"]);
        assert_eq!(columns(lines[4])[2..], ["8", "20", "30", "400", "5000"]);
        let ends: Vec<usize> = [0, 2, 3].iter().map(|line| lines[*line].len()).collect();
        assert_eq!(ends, [ends[0]; 3], "columns align");
    }

    #[test]
    fn a_rate_is_what_was_counted_in_between() {
        let before = [server(vec![backend(stats(7))])];
        let mut after = [server(vec![backend(ServerStats { connections: 27, ..stats(0) })])];
        rates(&before, &mut after, Duration::from_secs(2));
        let rate = after[0].backends[0].stats;
        assert_eq!(rate, ServerStats { connections: 10, ..ServerStats::default() });
    }
}
