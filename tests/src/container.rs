//! Containers: what `overlay run` makes.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{sys::signal::Signal, unistd::Pid};
use overlay::api::LocalContainer;

use crate::{
    binaries,
    host::Host,
    place::{Place, log_file, wait_listening},
    process::{Output, Process},
    rig::Family,
    wait::eventually,
};

/// Exit status of `overlay run` when SIGTERM ended the command.
const ENDED_BY_SIGTERM: i32 = 128 + Signal::SIGTERM as i32;

/// A container to be run: `overlay run` with these options.
#[derive(Debug)]
pub struct ContainerBuilder<'a> {
    host: &'a Host,
    name: String,
    args: Vec<String>,
    /// False for network modes without an attachment.
    attached: bool,
    /// The addresses that servers of the testkit listen on: IPv4 addresses, or those of both
    /// families.
    family: Family,
}

impl<'a> ContainerBuilder<'a> {
    pub(crate) fn new(host: &'a Host, name: &str) -> Self {
        Self { host, name: name.to_owned(), args: vec![], attached: true, family: Family::Ipv4 }
    }

    /// `--network`
    #[must_use]
    pub fn network(mut self, network: &str) -> Self {
        if matches!(network, "host" | "none") || network.starts_with("container:") {
            self.attached = false;
        }
        self.option("--network", network)
    }

    /// `--service`
    #[must_use]
    pub fn service(self, service: &str) -> Self {
        self.option("--service", service)
    }

    /// `-p`
    #[must_use]
    pub fn publish(self, port: &str) -> Self {
        self.option("-p", port)
    }

    /// Makes servers listen on their addresses of this family too.
    #[must_use]
    pub fn family(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// Any other option with a value.
    #[must_use]
    pub fn option(mut self, option: &str, value: &str) -> Self {
        self.args.extend([option.to_owned(), value.to_owned()]);
        self
    }

    /// Runs a program and waits until the container accepts flows.
    ///
    /// # Errors
    /// The error of `overlay run`.
    pub fn run<A: AsRef<str>>(self, program: &Path, args: &[A]) -> anyhow::Result<Container> {
        self.start(program, args, false)
    }

    /// Runs a program of the testkit and waits until it listens and the container accepts flows.
    ///
    /// # Errors
    /// The error of `overlay run` or of the program.
    pub fn testkit<A: AsRef<str>>(self, args: &[A]) -> anyhow::Result<Container> {
        self.start(&binaries::testkit()?, args, true)
    }

    /// Does nothing: a place to ask from.
    ///
    /// # Errors
    /// The error of `overlay run`.
    pub fn idle(self) -> anyhow::Result<Container> {
        self.testkit(&["pause"])
    }

    /// An HTTP responder.
    ///
    /// # Errors
    /// The errors of [`ContainerBuilder::testkit`].
    pub fn http(self, port: u16) -> anyhow::Result<Container> {
        self.server("http", port)
    }

    /// A TCP responder that speaks first.
    ///
    /// # Errors
    /// The errors of [`ContainerBuilder::testkit`].
    pub fn tcp_id(self, port: u16) -> anyhow::Result<Container> {
        self.server("tcp-id", port)
    }

    /// A UDP responder.
    ///
    /// # Errors
    /// The errors of [`ContainerBuilder::testkit`].
    pub fn udp_echo(self, port: u16) -> anyhow::Result<Container> {
        self.server("udp-echo", port)
    }

    /// A receiver of transfers.
    ///
    /// # Errors
    /// The errors of [`ContainerBuilder::testkit`].
    pub fn bulk_recv(self, port: u16) -> anyhow::Result<Container> {
        let args = ["bulk-recv".to_owned(), "--port".to_owned(), port.to_string()];
        let args = [&args[..], &self.listen()].concat();
        self.testkit(&args)
    }

    fn server(self, kind: &str, port: u16) -> anyhow::Result<Container> {
        let port = port.to_string();
        let args = [kind, "--name", &self.name, "--host", self.host.name(), "--port", &port];
        let args = [&args.map(str::to_owned)[..], &self.listen()].concat();
        self.testkit(&args)
    }

    /// The arguments that make a server listen on the addresses of its family.
    fn listen(&self) -> Vec<String> {
        match self.family {
            Family::Ipv4 => Vec::new(),
            Family::Ipv6 => ["--address", "::"].map(str::to_owned).to_vec(),
        }
    }

    fn start<A: AsRef<str>>(
        self,
        program: &Path,
        args: &[A],
        listens: bool,
    ) -> anyhow::Result<Container> {
        let mut words = vec!["run".to_owned(), "--name".to_owned(), self.name.clone()];
        words.extend(self.args);
        words.extend(["--".to_owned(), program.display().to_string()]);
        words.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        let command = self.host.overlay_command(&words)?;
        let mut process = Process::spawn(command, &log_file(self.host.logs(), &self.name))?;
        let pid = command_pid(&mut process)?;
        if listens {
            wait_listening(&mut process)?;
        }
        let attached = if self.attached { Some(self.host.wait_running(&self.name)?) } else { None };
        Ok(Container {
            name: self.name,
            host: self.host.name().to_owned(),
            tag: self.host.tag().to_owned(),
            logs: self.host.logs().to_owned(),
            process,
            pid,
            attached,
        })
    }
}

/// The process that runs the command: the first below `overlay run` that is another program.
fn command_pid(run: &mut Process) -> anyhow::Result<Pid> {
    let overlay = binaries::overlay()?.canonicalize()?;
    let root = Pid::from_raw(i32::try_from(run.pid())?);
    eventually("the command runs", Duration::from_secs(20), || {
        // One that has ended will not: stop waiting.
        if let Err(ended) = run.check_running() {
            return Ok(Err(ended));
        }
        match command_of(root, &overlay) {
            Some(pid) => Ok(Ok(pid)),
            None => bail!("it printed: {}", run.output().trim_end()),
        }
    })?
}

/// The process of the command: `pid` itself or a child of it. With `--network host`, `overlay run`
/// becomes the command.
fn command_of(pid: Pid, overlay: &Path) -> Option<Pid> {
    let executable = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    // Before it becomes `overlay`, the process is first this program, as posix_spawn(3) returns a
    // moment before the kernel shows the new program, and then `nsenter`.
    if executable.ends_with("nsenter") || std::env::current_exe().is_ok_and(|own| own == executable)
    {
        return None;
    }
    if executable != overlay {
        return Some(pid);
    }
    children(pid).into_iter().find_map(|child| command_of(child, overlay))
}

fn children(parent: Pid) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            // pid (command) state ppid …, where the command may contain anything.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let ppid = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
            ppid.and_then(|ppid| ppid.parse().ok()) == Some(parent.as_raw())
        })
        .map(Pid::from_raw)
        .collect()
}

/// A running container. Its `overlay run` is killed when dropped.
#[derive(Debug)]
pub struct Container {
    name: String,
    host: String,
    tag: String,
    logs: PathBuf,
    process: Process,
    pid: Pid,
    attached: Option<LocalContainer>,
}

impl Place for Container {
    fn name(&self) -> &str {
        &self.name
    }

    fn tag(&self) -> &str {
        &self.tag
    }

    fn enter(&self) -> Vec<String> {
        let pid = self.pid;
        vec![format!("--net=/proc/{pid}/ns/net"), format!("--mount=/proc/{pid}/ns/mnt")]
    }

    fn logs(&self) -> &Path {
        &self.logs
    }
}

impl Container {
    /// Name of its host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Process id of its command.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its address on the first network.
    ///
    /// # Errors
    /// If it has none.
    pub fn ip(&self) -> anyhow::Result<Ipv4Addr> {
        self.ip_on(0)
    }

    /// Its address on its network with this `index`.
    ///
    /// # Errors
    /// If it has none.
    pub fn ip_on(&self, index: usize) -> anyhow::Result<Ipv4Addr> {
        let attached = self.attached.as_ref().context("attached to no network")?;
        let interface = attached.interfaces.get(index).context("not so many networks")?;
        Ok(interface.address.addr())
    }

    /// Its address of a family on the first network.
    ///
    /// # Errors
    /// If it has none.
    pub fn ip_of(&self, family: Family) -> anyhow::Result<IpAddr> {
        match family {
            Family::Ipv4 => self.ip().map(IpAddr::V4),
            Family::Ipv6 => self.ip6().map(IpAddr::V6),
        }
    }

    /// A port of its first address of a family.
    ///
    /// # Errors
    /// If it has none.
    pub fn port_of(&self, family: Family, port: u16) -> anyhow::Result<String> {
        Ok(SocketAddr::new(self.ip_of(family)?, port).to_string())
    }

    /// Its IPv6 address on the first network.
    ///
    /// # Errors
    /// If it has none.
    pub fn ip6(&self) -> anyhow::Result<Ipv6Addr> {
        let attached = self.attached.as_ref().context("attached to no network")?;
        let interface = attached.interfaces.first().context("no networks")?;
        Ok(interface.address6.context("a network of IPv4 alone")?.addr())
    }

    /// A port of its first address.
    ///
    /// # Errors
    /// If it has none.
    pub fn port(&self, port: u16) -> anyhow::Result<String> {
        Ok(format!("{}:{port}", self.ip()?))
    }

    /// How it was attached.
    pub fn attached(&self) -> Option<&LocalContainer> {
        self.attached.as_ref()
    }

    /// The output of the container.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// Ends it in good order: SIGTERM to `overlay run`.
    ///
    /// # Errors
    /// If it does not end, or ends with an error.
    pub fn stop(mut self) -> anyhow::Result<Output> {
        let output = self.process.stop()?;
        // Some programs, for example etcd, end themselves by the signal after their cleanup.
        match output.status.code() {
            Some(ENDED_BY_SIGTERM) => Ok(output),
            _ => output.success(),
        }
    }

    /// SIGKILL to `overlay run`.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// Sends a signal to `overlay run`.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn wait(&mut self) -> anyhow::Result<Output> {
        self.process.wait(Duration::from_secs(30))
    }

    /// Lets it live on when dropped.
    pub fn keep(&mut self) {
        self.process.keep();
    }
}
