//! `overlay service`.

mod listing;

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{
    Context,
    args::{self, Ports},
    error::usage_error,
    format::print,
    health::HealthArgs,
    progress::settle,
};
use crate::{
    api::{HealthChange, Reference, Request, ServiceCreate, ServiceUpdate},
    model::{BalanceChange, EndpointMode, Service},
};

/// The verbs.
#[derive(Debug, Subcommand)]
pub(super) enum ServiceCommand {
    Create(CreateArgs),
    Ls(listing::LsArgs),
    Inspect(listing::InspectArgs),
    Update(UpdateArgs),
    Rm(RmArgs),
    Ps(listing::PsArgs),
}

const PORT_HELP: &str = "\
Ports are written as in Docker:
  8080:80              port 8080 of every host goes to port 80 of the backends
  53:53/udp            UDP
  3868:3868/sctp       SCTP, under the same port inside and outside
  8000-8003:80-83      a range
  80                   a port from 30000 to 32767 is chosen
  published=80,target=80,mode=host    only on hosts that have a backend

Examples:
  overlay service create hello --network mynet -p 8080:8080
  overlay service create dns --network mynet -p 53:53/udp --endpoint-mode vip --drain 10s
  overlay service create web --network mynet -p 80:80 --lb maglev --affinity 10m
  overlay service create api --network mynet -p 8000:80 --health-http :80/healthz
  overlay service create films --network mynet -p 80:80 --return dsr";

/// Make a service; containers become its backends with `overlay run --service`
#[derive(Debug, Args)]
#[command(after_help = PORT_HELP)]
pub(super) struct CreateArgs {
    /// Name of the service
    #[arg(value_parser = args::service_name)]
    name: String,
    /// Networks, by name or id [default: ingress]
    #[arg(long, value_name = "NETWORK")]
    network: Vec<String>,
    /// Publish a port on every host
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<Ports>,
    /// How the name resolves
    #[arg(long, value_enum, default_value_t)]
    endpoint_mode: ModeArg,
    #[command(flatten)]
    balance: BalanceChange,
    #[command(flatten)]
    health: HealthArgs,
    /// Label
    #[arg(long, value_name = "KEY=VALUE", value_parser = args::label)]
    label: Vec<(String, String)>,
    /// How long a draining backend keeps its flows [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    drain: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ModeArg {
    /// To a virtual address that balances
    #[default]
    Vip,
    /// To the backends' addresses in changing order
    Dnsrr,
}

/// Change a service; flows in flight go on
#[derive(Debug, Args)]
#[command(after_help = "Example:
  overlay service update --publish-add 9090:9090 --publish-rm 8080:8080 hello
  overlay service update --lb lc hello")]
pub(super) struct UpdateArgs {
    /// Name, id or beginning of an id
    service: String,
    /// Publish a port
    #[arg(long, value_name = "PORT")]
    publish_add: Vec<Ports>,
    /// Give up a port, written as when it was published or by its published port alone
    #[arg(long, value_name = "PORT")]
    publish_rm: Vec<Ports>,
    #[command(flatten)]
    balance: BalanceChange,
    #[command(flatten)]
    health: HealthArgs,
    /// Check the backends no more; those that were unhealthy take flows again
    #[arg(long)]
    no_healthcheck: bool,
    /// Set a label
    #[arg(long, value_name = "KEY=VALUE", value_parser = args::label)]
    label_add: Vec<(String, String)>,
    /// Remove a label
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// How long a draining backend keeps its flows
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    drain: Option<Duration>,
}

/// Remove services; their backends stay as plain containers
#[derive(Debug, Args)]
#[command(
    visible_alias = "remove",
    after_help = "Example:
  overlay service rm hello"
)]
pub(super) struct RmArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

/// Runs a verb.
pub(super) async fn run(context: &Context, command: ServiceCommand) -> anyhow::Result<()> {
    match command {
        ServiceCommand::Create(args) => create(context, args).await,
        ServiceCommand::Ls(args) => listing::ls(context, &args).await,
        ServiceCommand::Inspect(args) => listing::inspect(context, &args).await,
        ServiceCommand::Update(args) => update(context, args).await,
        ServiceCommand::Rm(args) => rm(context, args).await,
        ServiceCommand::Ps(args) => listing::ps(context, &args).await,
    }
}

async fn create(context: &Context, args: CreateArgs) -> anyhow::Result<()> {
    let request = Request::ServiceCreate(create_request(args));
    let service: Service = context.client().call(request).await?;
    settle(context).await;
    // With ports chosen by the cluster the user must learn which.
    for port in service.ports.iter() {
        tracing::info!("published {port}");
    }
    print(&format!("{}\n", service.id))
}

fn create_request(args: CreateArgs) -> ServiceCreate {
    ServiceCreate {
        name: args.name,
        networks: args.network,
        ports: args::flatten(args.publish),
        mode: match args.endpoint_mode {
            ModeArg::Vip => EndpointMode::Vip,
            ModeArg::Dnsrr => EndpointMode::Dnsrr,
        },
        balance: args.balance,
        health: args.health.change(false),
        labels: args.label.into_iter().collect(),
        drain_ms: args.drain.map(args::millis),
    }
}

async fn update(context: &Context, args: UpdateArgs) -> anyhow::Result<()> {
    let request = Request::ServiceUpdate(update_request(args)?);
    let service: Service = context.client().call(request).await?;
    settle(context).await;
    print(&format!("{}\n", service.name))
}

fn update_request(args: UpdateArgs) -> anyhow::Result<ServiceUpdate> {
    let UpdateArgs {
        service,
        publish_add,
        publish_rm,
        balance,
        health,
        no_healthcheck,
        label_add,
        label_rm,
        drain,
    } = args;
    let request = ServiceUpdate {
        reference: service,
        publish_add: args::flatten(publish_add),
        publish_remove: args::flatten(publish_rm),
        balance,
        health: health.change(no_healthcheck),
        label_add: label_add.into_iter().collect(),
        label_remove: label_rm,
        drain_ms: drain.map(args::millis),
    };
    let changes_nothing = request.publish_add.is_empty()
        && request.publish_remove.is_empty()
        && request.balance == BalanceChange::default()
        && request.health == HealthChange::default()
        && request.label_add.is_empty()
        && request.label_remove.is_empty()
        && request.drain_ms.is_none();
    if changes_nothing {
        return Err(usage_error(
            format!("nothing to change in service {:?}", request.reference),
            format!("give one or more of {}", options_of_update()),
        ));
    }
    Ok(request)
}

/// The options of `overlay service update` that change something.
fn options_of_update() -> String {
    let command = UpdateArgs::augment_args(clap::Command::new("update"));
    let options: Vec<_> =
        command.get_arguments().filter_map(|a| Some(format!("--{}", a.get_long()?))).collect();
    options.join(", ")
}

async fn rm(context: &Context, args: RmArgs) -> anyhow::Result<()> {
    for reference in args.services {
        let request = Request::ServiceRemove(Reference { reference });
        let removed: Service = context.client().call(request).await?;
        print(&format!("{}\n", removed.name))?;
    }
    settle(context).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{
        cli::{Cli, Command},
        model::Scheduler,
    };

    fn parse(args: &[&str]) -> Result<ServiceCommand, clap::Error> {
        let cli = Cli::try_parse_from([&["overlay", "service"], args].concat())?;
        match cli.command {
            Command::Service(command) => Ok(command),
            other => panic!("parsed as {other:?}"),
        }
    }

    #[test]
    fn every_option_of_create_reaches_the_request() {
        let args = [
            "create",
            "hello",
            "--network",
            "a",
            "--network",
            "b",
            "-p",
            "8080:80",
            "--publish",
            "90-91:90-91/udp",
            "--endpoint-mode",
            "dnsrr",
            "--lb",
            "maglev",
            "--lb-hash",
            "address",
            "--affinity",
            "10m",
            "--health-http",
            ":80/healthz",
            "--health-interval",
            "1s",
            "--health-retries",
            "5",
            "--tcp-timeout",
            "3h",
            "--udp-timeout",
            "30s",
            "--on-loss",
            "drop",
            "--return",
            "dsr",
            "--label",
            "x=y",
            "--drain",
            "2s",
        ];
        let ServiceCommand::Create(args) = parse(&args).expect("parsed") else {
            panic!("not create");
        };
        let request = serde_json::to_value(create_request(args)).expect("JSON");
        let port = |published: u16, target: u16, protocol: &str| {
            serde_json::json!({
                "published": published, "target": target, "protocol": protocol, "mode": "ingress",
            })
        };
        assert_eq!(
            request,
            serde_json::json!({
                "name": "hello",
                "networks": ["a", "b"],
                "ports": [port(8080, 80, "tcp"), port(90, 90, "udp"), port(91, 91, "udp")],
                "mode": "dnsrr",
                "balance": {
                    "lb": "maglev",
                    "lb_hash": "address",
                    "affinity_ms": 600_000,
                    "tcp_timeout_ms": 10_800_000,
                    "udp_timeout_ms": 30_000,
                    "on_loss": "drop",
                    "return": "direct",
                },
                "health": {
                    "probe": {"http": {"port": 80, "path": "/healthz"}},
                    "interval_ms": 1000,
                    "retries": 5,
                },
                "labels": {"x": "y"},
                "drain_ms": 2000,
            })
        );
    }

    #[test]
    fn an_update_of_nothing_is_refused() {
        let ServiceCommand::Update(args) = parse(&["update", "hello"]).expect("parsed") else {
            panic!("not update");
        };
        assert!(update_request(args).unwrap_err().to_string().contains("nothing to change"));
        let options = options_of_update();
        for option in ["--publish-add", "--lb", "--return", "--health-tcp", "--drain"] {
            assert!(options.split(", ").any(|o| o == option), "{option}: {options}");
        }
    }

    #[test]
    fn every_option_of_update_reaches_the_request() {
        let args = [
            "update",
            "hello",
            "--publish-add",
            "90:90",
            "--publish-rm",
            "80:80",
            "--lb",
            "lc",
            "--affinity",
            "0s",
            "--no-healthcheck",
            "--label-add",
            "a=b",
            "--label-rm",
            "c",
            "--drain",
            "0s",
        ];
        let ServiceCommand::Update(args) = parse(&args).expect("parsed") else {
            panic!("not update");
        };
        let request = update_request(args).expect("a request");
        assert_eq!(request.publish_add[0].published, Some(90));
        assert_eq!(request.publish_remove[0].published, Some(80));
        assert_eq!(request.label_add["a"], "b");
        let balance = request.balance;
        assert_eq!((balance.lb, balance.affinity_ms), (Some(Scheduler::Lc), Some(0)));
        assert!(request.health.remove && request.health.probe.is_none());
        assert_eq!(request.label_remove, ["c"]);
        assert_eq!(request.drain_ms, Some(0));
    }

    #[test]
    fn malformed_ports_names_and_times_are_quoted() {
        for (args, quoted) in [
            (["create", "hello", "-p", "80:65536"], "\"80:65536\""),
            (["create", "hello", "-p", "80:80/icmp"], "none of tcp, udp and sctp"),
            (["create", "hello", "-p", "127.0.0.1:80:80"], "every address"),
            (["create", "hello", "--drain", "5"], "\"5\" is no time"),
            (["create", "hello", "--health-tcp", "0"], "0 is not in 1..=65535"),
            (["create", "hello", "--health-http", "80/x"], "\"80/x\" is not :PORT/PATH"),
            (["create", "hello", "--health-interval", "1"], "\"1\" is no time"),
            (["create", "hello", "--health-retries", "0"], "0 is not in"),
            (["create", "hello", "--label", "=x"], "\"=x\" is not KEY=VALUE"),
            (["create", "hel lo", "-p", "80"], "invalid service name \"hel lo\""),
            (["create", "hello", "--endpoint-mode", "lvs"], "'lvs' for '--endpoint-mode"),
        ] {
            let error = parse(&args).expect_err(&format!("{args:?}")).to_string();
            assert!(error.contains(quoted), "{args:?}: {error}");
        }
    }
}
