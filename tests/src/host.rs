//! A host of the cluster-in-a-box and its `overlay`.

use std::{
    net::Ipv4Addr,
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use aya::maps::MapData;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use overlay::{
    api::{LocalContainer, Status, Sync, SyncAnswer},
    model::ClusterState,
};
use overlay_common::maps::{Conntrack, ConntrackKey};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::{
    api, binaries, bpf, bpffs,
    cleanup::{self, HostDirs, Instance},
    container::ContainerBuilder,
    place::{Place, log_file},
    process::{self, Output, Process},
    rig::FLOWS,
    wait::{eventually, patience},
};

/// How long nodes may take to apply a change.
const PATIENCE: Duration = Duration::from_secs(20);
/// The time limit for the start of daemons: the verifier needs a whole CPU, and it has none on an
/// emulated machine under load.
const START: Duration = Duration::from_secs(60);

/// One host.
#[derive(Debug)]
pub struct Host {
    name: String,
    address: Ipv4Addr,
    dirs: HostDirs,
    logs: PathBuf,
    /// The daemon, when we started it ourselves.
    agent: Mutex<Option<Process>>,
}

impl Place for Host {
    fn name(&self) -> &str {
        &self.name
    }

    fn tag(&self) -> &str {
        &self.dirs.namespace
    }

    fn enter(&self) -> Vec<String> {
        self.dirs.enter()
    }

    fn logs(&self) -> &Path {
        &self.logs
    }
}

impl Host {
    pub(crate) fn new(instance: &Instance, name: &str, address: Ipv4Addr) -> anyhow::Result<Self> {
        let logs = instance.dir.join(name);
        std::fs::create_dir(&logs).with_context(|| logs.display().to_string())?;
        let dirs = HostDirs::new(instance, name);
        Ok(Self { name: name.to_owned(), address, dirs, logs, agent: Mutex::new(None) })
    }

    /// Its address on the underlay.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A port of its address, for clients.
    pub fn port(&self, port: u16) -> String {
        format!("{}:{port}", self.address)
    }

    /// Its directories.
    pub fn dirs(&self) -> &HostDirs {
        &self.dirs
    }

    /// Runs `overlay` with this host's directories.
    ///
    /// # Errors
    /// The program cannot be started or does not end. Its own failure is in the output.
    pub fn try_overlay<A: AsRef<str>>(&self, args: &[A]) -> anyhow::Result<Output> {
        process::run(self.overlay_command(args)?)
    }

    /// Runs `overlay`, which must succeed.
    ///
    /// # Errors
    /// The error of `overlay`.
    pub fn overlay<A: AsRef<str>>(&self, args: &[A]) -> anyhow::Result<Output> {
        self.try_overlay(args)?.success()
    }

    /// Runs `overlay`, which must reject the command: exit status 1 or 2, nothing on standard
    /// output, and an error on standard error with all of `words` in it.
    ///
    /// # Errors
    /// The command did something else.
    pub fn refuses<A: AsRef<str>>(&self, args: &[A], words: &[&str]) -> anyhow::Result<String> {
        let output = self.try_overlay(args)?;
        refusal(&output, words)?;
        Ok(output.stderr)
    }

    /// The command line of `overlay` with this host's directories.
    ///
    /// # Errors
    /// If the program was not built.
    pub fn overlay_command<A: AsRef<str>>(
        &self,
        args: &[A],
    ) -> anyhow::Result<std::process::Command> {
        let mut command = self.command(binaries::overlay()?);
        command.args(self.dirs.arguments()).args(args.iter().map(AsRef::as_ref));
        Ok(command)
    }

    /// `overlay init`; returns a token for [`Host::join`].
    ///
    /// # Errors
    /// The error of `overlay`.
    pub fn init(&self, args: &[String]) -> anyhow::Result<String> {
        let mut words = vec!["init", "--advertise-addr"];
        let address = self.address.to_string();
        words.extend([address.as_str(), "--name", &self.name]);
        words.extend(args.iter().map(String::as_str));
        let output = self.overlay(&words)?;
        // It prints the join command, as Docker does.
        let mut words = output.stdout.split_whitespace();
        words.find(|word| *word == "--token");
        words
            .next()
            .map(str::to_owned)
            .with_context(|| format!("no `--token` in what init printed: {}", output.stdout))
    }

    /// `overlay join`.
    ///
    /// # Errors
    /// The error of `overlay`.
    pub fn join(&self, token: &str, manager: &Self, args: &[String]) -> anyhow::Result<()> {
        let (address, manager) = (self.address.to_string(), manager.address.to_string());
        let mut words = vec!["join", "--token", token, &manager];
        words.extend(["--advertise-addr", &address, "--name", &self.name]);
        words.extend(args.iter().map(String::as_str));
        self.overlay(&words).map(drop)
    }

    /// `overlay network create`.
    ///
    /// # Errors
    /// The error of `overlay`.
    pub fn network_create(&self, name: &str, args: &[&str]) -> anyhow::Result<()> {
        self.overlay(&[&["network", "create"], args, &[name]].concat()).map(drop)
    }

    /// `overlay service create`.
    ///
    /// # Errors
    /// The error of `overlay`.
    pub fn service_create(&self, name: &str, args: &[&str]) -> anyhow::Result<()> {
        self.overlay(&[&["service", "create"], args, &[name]].concat()).map(drop)
    }

    /// A container to be run here.
    pub fn container(&self, name: &str) -> ContainerBuilder<'_> {
        ContainerBuilder::new(self, name)
    }

    /// Starts `overlay run OPTIONS -- overlay-testkit pause` without waiting for anything.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_run(&self, options: &[&str]) -> anyhow::Result<Process> {
        let testkit = binaries::testkit()?.to_string_lossy().into_owned();
        let args = [&["run"], options, &["--", &testkit, "pause"]].concat();
        Process::spawn(self.overlay_command(&args)?, &log_file(&self.logs, "run"))
    }

    /// A call to a manager through the daemon here.
    ///
    /// # Errors
    /// The daemon or the manager rejects the call.
    pub fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        params: &impl Serialize,
    ) -> anyhow::Result<T> {
        api::call(&self.dirs.socket(), method, params)
    }

    /// The cluster's state as this host knows it.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub fn state(&self) -> anyhow::Result<ClusterState> {
        self.call("state", &json!({}))
    }

    /// `overlay status`.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub fn status(&self) -> anyhow::Result<Status> {
        self.call("local/status", &json!({}))
    }

    /// Containers attached here.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub fn containers(&self) -> anyhow::Result<Vec<LocalContainer>> {
        self.call("local/containers", &json!({}))
    }

    /// Makes every flow in this host's tables look `seconds` older.
    ///
    /// # Errors
    /// If a table cannot be read or written.
    pub fn age_flows(&self, seconds: u64) -> anyhow::Result<()> {
        let pins = bpffs::pins(&self.dirs.pins);
        for table in FLOWS {
            let pin = pins.iter().find(|pin| pin.ends_with(table));
            let pin = pin.with_context(|| format!("{table} of {} is not pinned", self.name))?;
            let map = MapData::from_pin(pin)?;
            let (keys, mut flows) =
                bpf::typed_entries::<ConntrackKey, Conntrack>(map.fd().as_fd())?;
            for flow in &mut flows {
                flow.last_seen = flow.last_seen.wrapping_sub(seconds * 1_000_000_000);
            }
            bpf::write(map.fd().as_fd(), &keys, &flows)?;
        }
        Ok(())
    }

    /// Waits until every ready node has applied all changes so far.
    ///
    /// # Errors
    /// Names the nodes that have not.
    pub fn sync(&self) -> anyhow::Result<()> {
        let timeout_ms = u64::try_from((PATIENCE * patience()).as_millis())?;
        let answer: SyncAnswer = self.call("sync", &Sync { revision: None, timeout_ms })?;
        ensure!(
            answer.lagging.is_empty(),
            "not applied by {} after {} s: revision {}",
            answer.lagging.join(", "),
            (PATIENCE * patience()).as_secs(),
            answer.revision
        );
        Ok(())
    }

    /// Process id of the daemon.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn agent_pid(&self) -> anyhow::Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.status()?.pid)?))
    }

    /// Kills the daemon with SIGKILL.
    ///
    /// # Errors
    /// There is no agent.
    pub fn kill_agent(&self) -> anyhow::Result<()> {
        self.end_agent(Signal::SIGKILL)
    }

    /// Stops the daemon with SIGTERM.
    ///
    /// # Errors
    /// There is no agent, or it does not end.
    pub fn stop_agent(&self) -> anyhow::Result<()> {
        self.end_agent(Signal::SIGTERM)
    }

    fn end_agent(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.agent_pid()?;
        kill(pid, signal).with_context(|| format!("{signal} to the daemon of {}", self.name))?;
        let mut own = self.agent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(process) = own.as_mut() {
            let _ = process.wait(PATIENCE);
        }
        eventually("the daemon ends", PATIENCE, || {
            let alive = cleanup::tagged(|tag| tag == self.dirs.namespace).contains(&pid);
            ensure!(!alive, "{} still runs", cleanup::describe(pid));
            // A process that ends loses its environment before it closes its sockets.
            let socket = self.dirs.socket();
            ensure!(UnixStream::connect(&socket).is_err(), "{} still answers", socket.display());
            Ok(())
        })
    }

    /// Starts `overlay agent` and waits until its maps show the state it knows.
    ///
    /// # Errors
    /// If it ends, or is not ready in time.
    pub fn start_agent(&self) -> anyhow::Result<()> {
        let command = self.overlay_command(&["agent"])?;
        let mut process = Process::spawn(command, &log_file(&self.logs, "agent"))?;
        // It ends with the cluster, not with this handle: it may have to live on.
        process.keep();
        let mut own = self.agent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let process = own.insert(process);
        eventually("the daemon is ready", START, || {
            process.check_running()?;
            let status = self.status()?;
            ensure!(status.applied >= status.revision, "{status:?}");
            Ok(())
        })
    }

    /// `overlay leave`.
    ///
    /// # Errors
    /// The error of `overlay`.
    pub fn leave(&self, force: bool) -> anyhow::Result<Output> {
        let args: &[&str] = if force { &["leave", "--force"] } else { &["leave"] };
        self.overlay(args)
    }

    /// The objects that `overlay` has left here, after the host has left the cluster.
    ///
    /// # Errors
    /// If the host cannot be looked at.
    pub fn leftovers(&self) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        let lines = |args: &[&str]| -> anyhow::Result<Vec<String>> {
            let output = self.exec(args[0], &args[1..])?.success()?;
            Ok(output.stdout.lines().map(|line| line.trim().to_owned()).collect())
        };
        for link in lines(&["ip", "-brief", "link"])? {
            if !link.starts_with("lo ") && !link.starts_with("eth0@") {
                found.push(format!("interface {link}"));
            }
        }
        for route in lines(&["ip", "route"])? {
            if !route.starts_with("172.16.1.0/24 dev eth0 ") {
                found.push(format!("route {route}"));
            }
        }
        for line in lines(&["ip", "-details", "link", "show", "eth0"])? {
            if line.contains("xdp") {
                found.push(format!("XDP program on eth0: {line}"));
            }
        }
        for qdisc in lines(&["tc", "qdisc", "show", "dev", "eth0"])? {
            if qdisc.contains("clsact") || qdisc.contains("ingress") {
                found.push(format!("qdisc on eth0: {qdisc}"));
            }
        }
        let dirs = &self.dirs;
        found.extend(bpffs::pins(&dirs.pins).iter().map(|pin| format!("pin {}", pin.display())));
        for mount in cleanup::mounts_below(&dirs.run) {
            found.push(format!("mount {}", mount.display()));
        }
        for pid in cleanup::tagged(|tag| tag == dirs.namespace) {
            found.push(cleanup::describe(pid));
        }
        Ok(found.into_iter().map(|what| format!("{}: {what}", self.name)).collect())
    }

    /// Waits until `name` is attached here and accepts flows.
    pub(crate) fn wait_running(&self, name: &str) -> anyhow::Result<LocalContainer> {
        use overlay::model::EndpointState::Running;
        let container = eventually("the container runs", PATIENCE, || {
            let containers = self.containers()?;
            match containers.into_iter().find(|container| container.name == name) {
                Some(container) if container.state == Running => Ok(container),
                Some(container) => bail!("{name} is {:?}", container.state),
                None => bail!("{} has no container {name}", self.name),
            }
        })?;
        self.sync()?;
        Ok(container)
    }
}

/// Checks that `overlay` rejected a command properly: exit status 1 or 2, nothing on standard
/// output, and `overlay: …` with all of `words` on standard error.
///
/// # Errors
/// The first difference.
pub fn refusal(output: &Output, words: &[&str]) -> anyhow::Result<()> {
    let described = output.describe();
    let status = output.status.code();
    ensure!(matches!(status, Some(1 | 2)), "expected exit status 1 or 2: {described}");
    ensure!(output.stdout.trim().is_empty(), "expected nothing on stdout: {described}");
    ensure!(output.stderr.starts_with("overlay: "), "expected `overlay: …`: {described}");
    for word in words {
        let found = output.stderr.to_lowercase().contains(&word.to_lowercase());
        ensure!(found, "expected {word:?} in the error: {described}");
    }
    Ok(())
}
