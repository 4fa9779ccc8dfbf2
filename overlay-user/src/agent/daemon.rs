//! The daemon: an agent on the real kernel, and the manager where this host is one.

use std::{
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    config::AgentConfig,
    context::Parts,
    error::AgentError,
    platform::{ContainerNames, LinuxHost},
    run::Agent,
    serve,
};
use crate::{
    datapath::{BpfDatapath, LoadOptions, host},
    link::NetlinkLinks,
    manager::{Controller, Manager, RemoteManager, ServerHandle},
    model::Role,
    paths::Paths,
    pki::NodePki,
    store::{RedbStore, StoreError},
};

/// Runs the daemon of this host until SIGTERM, SIGINT or `leave`. Its end detaches nothing:
/// traffic continues, and the next daemon adopts the existing objects.
///
/// # Errors
/// A missing feature of the host, or a damaged or occupied resource, with the remedy.
pub async fn daemon(paths: Paths) -> anyhow::Result<()> {
    // Asked for first: a signal during the start ends the daemon after it, not in the middle.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let config = AgentConfig::load(&paths.config())?;
    std::fs::create_dir_all(&paths.run_dir)
        .with_context(|| format!("cannot make {}", paths.run_dir.display()))?;
    let lock = Lock::take(&paths.lock())?;
    host::preflight(&paths)?;

    let (controller, _manager) = controller(&config, &paths).await?;
    let options = LoadOptions {
        pin_dir: paths.pin_dir.clone(),
        conntrack_size: config.conntrack_size,
        underlay_ipv6: config.data_path_addr.is_ipv6(),
    };
    let socket = paths.socket();
    let agent = Agent::new(Parts {
        datapath: BpfDatapath::load(&options)?,
        links: NetlinkLinks::new()?,
        control: Arc::new(controller),
        names: Arc::new(ContainerNames::new(&config, &paths)),
        host: Arc::new(LinuxHost::new(paths.pin_dir.clone())),
        config,
        paths,
    });
    let mut tasks = agent.start().await?;
    let server = serve::serve(agent.clone(), &socket)?;
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("systemd's notify socket")?;
    tracing::info!(socket = %socket.display(), "ready");

    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = agent.stopped() => Ok(()),
        () = tasks.failed() => Err(anyhow::anyhow!("a task of the agent failed; see the log above")),
    };
    tracing::info!("ending; what is attached stays attached");
    // Nothing depends on this message, and without systemd it has no receiver.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    agent.end_events();
    server.end().await;
    tasks.end().await;
    drop(lock);
    outcome
}

/// The manager of this host if it is one, served to the others; else those of the cluster.
async fn controller(
    config: &AgentConfig,
    paths: &Paths,
) -> anyhow::Result<(Controller, Option<ServerHandle>)> {
    let pki = NodePki::load(&paths.pki_dir())?;
    if config.role == Role::Agent {
        return Ok((Controller::Remote(RemoteManager::new(config.managers.clone(), &pki)?), None));
    }
    let store = open_store(paths).await?;
    let manager = Manager::open(Arc::new(store))?;
    let listen: SocketAddr = config.listen.with_context(|| {
        format!("{} names no address to listen on (\"listen\")", paths.config().display())
    })?;
    let server = manager.serve(listen, &pki).await?;
    tracing::info!(listen = %server.addr, "manager");
    Ok((Controller::Local(manager, config.node.clone()), Some(server)))
}

/// How long a process that is just ending may still hold the store: a daemon that was killed, or
/// `overlay init`.
const STORE_WITHIN: Duration = Duration::from_secs(3);

async fn open_store(paths: &Paths) -> Result<RedbStore, StoreError> {
    let end = Instant::now() + STORE_WITHIN;
    loop {
        match RedbStore::open(paths.store()) {
            Err(StoreError::Locked(_)) if Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => return other,
        }
    }
}

/// Held as long as the daemon lives, so that there is one per host.
struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// # Errors
    /// [`AgentError::Locked`] names the daemon that holds it.
    fn take(path: &Path) -> Result<Self, AgentError> {
        let failed = |e: std::io::Error| AgentError::io(path, e);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let mut holder = String::new();
        file.read_to_string(&mut holder).map_err(failed)?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, nix::Error::EWOULDBLOCK)) => {
                let pid = match holder.trim() {
                    "" => "unknown".to_owned(),
                    pid => pid.to_owned(),
                };
                return Err(AgentError::Locked { pid, path: path.to_owned() });
            }
            Err((_, e)) => return Err(failed(e.into())),
        };
        file.rewind().map_err(failed)?;
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_on_a_host_is_told_about_the_first() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("overlay.lock");
        let first = Lock::take(&path).expect("taken");
        let error = Lock::take(&path).err().expect("refused").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        Lock::take(&path).expect("free again");
    }

    #[tokio::test]
    async fn a_host_that_is_in_no_cluster_is_told_what_to_do() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let sub = |name: &str| dir.path().join(name);
        let paths = Paths { state_dir: sub("state"), run_dir: sub("run"), pin_dir: sub("pins") };
        let error = daemon(paths).await.expect_err("refused").to_string();
        assert!(error.contains("overlay init") && error.contains("overlay join"), "{error}");
        assert!(!dir.path().join("run").exists(), "nothing is made");
    }
}
