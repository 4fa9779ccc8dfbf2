//! `overlay run`: a command in a network namespace of its own, attached for as long as it runs.
//!
//! Two processes take part. The parent speaks with the daemon, forwards signals and cleans up.
//! The child (this binary again, as `overlay run-child`) makes the namespaces, says so over a
//! socket, waits until the parent has attached them and then becomes the command:
//!
//! ```text
//! parent                             child                        daemon
//!   fork, exec run-child  ---------->  unshare, lo up
//!   <------------------------ Ready -
//!   attach /proc/CHILD/ns/net, pid CHILD  ----------------------->  interfaces, DNS
//!   - Go (host name, files) -------->  mount /etc files, exec
//!   <------------------ end of file -  COMMAND
//!   on SIGTERM: drain  ------------------------------------------>  no new flows
//!   - SIGTERM ---------------------->  ends
//!   detach  ----------------------------------------------------->  interfaces gone
//! ```
//!
//! If the parent is killed, the kernel kills the command with it and the daemon, which watches the
//! command's process, detaches.

mod child;
mod control;
mod files;
mod mode;
mod signals;
mod stop;
mod supervise;

use std::{ffi::OsString, process::ExitCode, time::Duration};

use clap::Args;

pub(super) use self::child::{ChildArgs, run as child};
use self::{
    control::{Etc, File},
    mode::{Mode, NetworkArg},
    supervise::{Namespace, Supervised},
};
use super::{Context, args, endpoint::AttachOptions, error::refuse, progress::wait_for};
use crate::{
    api::{Attach, Attached, LocalContainer, LocalRequest},
    model::Port,
};

/// How long an attach under way may take to end when we are told to stop.
const ATTACH_ON_STOP: Duration = Duration::from_secs(5);

/// Run a command in a network namespace of its own
#[derive(Debug, Args)]
#[command(after_help = "Networks:
  NAME             an overlay network, or `bridge` (the default without --service)
  container:NAME   the namespace of another container of this host
  none             a fresh namespace with a loopback interface only
  host             the host's own namespace

The exit status is the command's (128 + N when signal N ended it). SIGTERM and SIGINT stop it: a
backend is drained first, then it gets SIGTERM, and SIGKILL after --stop-timeout.

Examples:
  overlay run --network mynet --name db -- redis-server
  overlay run --service hello -- python3 -m http.server 8080
  overlay run -p 8080:80 -- nginx -g 'daemon off;'
  overlay run --network mynet -- curl -s http://hello:8080")]
pub(super) struct RunArgs {
    /// Where it runs; several overlay networks may be given
    #[arg(long, value_name = "NETWORK")]
    network: Vec<NetworkArg>,
    #[command(flatten)]
    options: AttachOptions,
    /// Host name inside [default: the container's name]
    #[arg(long, value_name = "NAME", value_parser = args::host_name)]
    hostname: Option<String>,
    /// Take flows at once, not only when a published port listens
    #[arg(long)]
    no_wait_listen: bool,
    /// How long the command may take to end after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = args::duration)]
    stop_timeout: Duration,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the command and gives its exit status.
pub(super) async fn run(context: &Context, args: RunArgs) -> anyhow::Result<ExitCode> {
    match args.mode()? {
        Mode::Host => Err(child::exec(&args.command).into()),
        Mode::None => {
            let etc = Etc {
                hostname: args.hostname.clone().or_else(|| args.options.name.clone()),
                files: files::without_network(
                    args.hostname.as_ref().or(args.options.name.as_ref()),
                ),
            };
            let child = Supervised::spawn(&Namespace::Fresh, &args.command, false).await?;
            child.start(&etc).await?.run(args.stop_timeout).await
        }
        Mode::Container(name) => {
            let target = find_container(context, &name).await?;
            let etc = files::of_container(&target);
            let namespace = Namespace::Existing(target.netns.into());
            let child = Supervised::spawn(&namespace, &args.command, false).await?;
            child.start(&etc).await?.run(args.stop_timeout).await
        }
        Mode::Networks(networks) => {
            let serves = args.options.service.is_some() || !args.options.publish.is_empty();
            let request = Attach {
                wait_listen: serves && !args.no_wait_listen,
                ..args.options.request(networks)?
            };
            run_attached(context, &args, request, serves).await
        }
    }
}

async fn find_container(context: &Context, name: &str) -> anyhow::Result<LocalContainer> {
    let containers: Vec<LocalContainer> =
        context.client().local(LocalRequest::Containers {}).await?;
    let matches = |c: &&LocalContainer| {
        c.name == name || (name.len() >= 4 && c.container.as_str().starts_with(name))
    };
    let mut found = containers.iter().filter(matches);
    match (found.next(), found.next()) {
        (Some(container), None) => Ok(container.clone()),
        (None, _) => Err(refuse(
            format!("there is no container {name:?} on this host"),
            "`overlay endpoint ls` lists the containers; container:NAME takes those of this host",
        )),
        (Some(_), Some(_)) => Err(refuse(
            format!("several containers of this host are meant by {name:?}"),
            "give more of the id",
        )),
    }
}

/// Makes the namespace, has the daemon attach it, and runs the command in it.
async fn run_attached(
    context: &Context,
    args: &RunArgs,
    request: Attach,
    serves: bool,
) -> anyhow::Result<ExitCode> {
    let client = context.client();
    let mut child = Supervised::spawn(&Namespace::Fresh, &args.command, serves).await?;
    let request = Attach {
        netns: format!("/proc/{}/ns/net", child.pid()),
        pid: u32::try_from(child.pid().as_raw()).ok(),
        ..request
    };
    let attach = wait_for("attaching", client.local::<Attached>(LocalRequest::Attach(request)));
    tokio::pin!(attach);
    let (attached, stop) = tokio::select! {
        biased;
        // A failure drops `child`, which ends it; the daemon has undone its own steps.
        attached = &mut attach => (attached?, None),
        signal = child.stop_signal() => {
            let Ok(attached) = tokio::time::timeout(ATTACH_ON_STOP, attach).await else {
                // The child ends with us, and the daemon then undoes its own steps.
                return Ok(supervise::signalled(signal?));
            };
            (attached?, Some(signal?))
        }
    };
    let container = stop::Container::new(context.client(), &attached);
    if let Some(signal) = stop {
        drop(child);
        container.detach().await;
        return Ok(supervise::signalled(signal));
    }
    tell_ports(&attached.ports);
    let result = match child.start(&etc(args, &attached)).await {
        Ok(child) if serves => child.run_draining(args.stop_timeout, &container).await,
        Ok(child) => child.run(args.stop_timeout).await,
        Err(error) => Err(error),
    };
    container.detach().await;
    result
}

/// The contents of the container's `/etc`.
fn etc(args: &RunArgs, attached: &Attached) -> Etc {
    let hostname = args.hostname.clone().unwrap_or_else(|| attached.name.clone());
    let addresses: Vec<_> = attached.interfaces.iter().flat_map(|i| i.addresses()).collect();
    let mut files = files::with_network(&hostname, &attached.name, &addresses);
    files.push(File::resolv_conf());
    Etc { hostname: Some(hostname), files }
}

/// Ports that the cluster chose must be told; those the user chose need not.
fn tell_ports(ports: &[Port]) {
    const CHOSEN: std::ops::RangeInclusive<u16> = 30_000..=32_767;
    for port in ports.iter().filter(|p| p.published.is_some_and(|p| CHOSEN.contains(&p))) {
        eprintln!("overlay: published {port}");
    }
}
