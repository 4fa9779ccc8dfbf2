//! The cluster-in-a-box.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use nix::unistd::geteuid;

use crate::{
    bpffs,
    cleanup::Instance,
    guardian::Guardian,
    host::Host,
    netns::{self, Attachment},
    place::Place,
    wait::patience,
};

/// How to build the hosts and what to tell `overlay`.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Links behave like wire, see [`Attachment::wire`].
    pub wire: bool,
    /// MTU of the underlay in bytes, if it is not Ethernet's usual one.
    pub mtu: Option<u32>,
    /// Arguments for `overlay init` and `overlay join` on every host.
    pub every: Vec<String>,
    /// Further arguments for `overlay init`.
    pub init: Vec<String>,
}

impl Options {
    /// Links that behave like wire, and XDP in this mode.
    pub fn xdp(mode: &str) -> Self {
        Self { wire: true, every: vec!["--xdp".to_owned(), mode.to_owned()], ..Self::default() }
    }

    /// Further arguments for `overlay init`.
    #[must_use]
    pub fn init(mut self, args: &[&str]) -> Self {
        self.init.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Further arguments for `overlay init` and `overlay join`.
    #[must_use]
    pub fn every(mut self, args: &[&str]) -> Self {
        self.every.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }
}

/// A machine on the underlay outside the cluster.
#[derive(Debug)]
pub struct Client {
    name: String,
    namespace: String,
    address: Ipv4Addr,
    logs: PathBuf,
}

impl Client {
    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }
}

impl Place for Client {
    fn name(&self) -> &str {
        &self.name
    }

    fn tag(&self) -> &str {
        &self.namespace
    }

    fn enter(&self) -> Vec<String> {
        vec![format!("--net={}", netns::path(&self.namespace).display())]
    }

    fn logs(&self) -> &Path {
        &self.logs
    }
}

/// Hosts 172.16.1.10, .11, .12, … and a client 172.16.1.100 on one underlay segment. Removed with
/// everything in it when dropped.
#[derive(Debug)]
pub struct Cluster {
    instance: Instance,
    options: Options,
    hosts: Vec<Host>,
    client: Client,
    guardian: Guardian,
    keep: bool,
}

/// Address of the first host; the others follow.
const FIRST_HOST: u8 = 10;

/// Address of the client.
const CLIENT: u8 = 100;

/// Namespaces and BPF need root.
///
/// # Errors
/// Says which commands ask for it.
pub fn require_root() -> anyhow::Result<()> {
    ensure!(
        geteuid().is_root(),
        "the cluster-in-a-box needs root, for network namespaces and BPF: run `cargo xtask test` \
         or `cargo xtask demo`, which ask for it"
    );
    Ok(())
}

fn underlay(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 16, 1, last)
}

impl Cluster {
    /// Builds the segment and the hosts; `overlay` has not run there yet.
    ///
    /// # Errors
    /// The process is not root, or the kernel or a tool reports an error. Everything is removed
    /// then.
    pub fn new(hosts: usize, options: Options) -> anyhow::Result<Self> {
        require_root()?;
        ensure!((1..=80).contains(&hosts), "{hosts} hosts were asked for, 1 to 80 are possible");
        bpffs::ensure_mounted()?;
        let instance = Instance::random();
        std::fs::create_dir(&instance.dir)
            .with_context(|| format!("making {}", instance.dir.display()))?;
        let guardian = Guardian::start(&instance)?;
        let client = Client {
            name: "client".to_owned(),
            namespace: instance.namespace("client"),
            address: underlay(CLIENT),
            logs: instance.dir.clone(),
        };
        // From here on, dropping the cluster cleans up after a failure.
        let mut cluster =
            Self { instance, options, hosts: Vec::new(), client, guardian, keep: false };
        netns::create_switch(&cluster.switch())?;
        cluster.plug("client", cluster.client.address)?;
        for number in 1..=hosts {
            let name = format!("h{number}");
            let address = underlay(FIRST_HOST + u8::try_from(number - 1)?);
            cluster.plug(&name, address)?;
            cluster.hosts.push(Host::new(&cluster.instance, &name, address)?);
        }
        Ok(cluster)
    }

    /// Builds the hosts and makes them a cluster: `overlay init` on the first, `overlay join` on
    /// the others.
    ///
    /// # Errors
    /// The errors of [`Cluster::new`] and [`Cluster::form`].
    pub fn formed(hosts: usize, options: Options) -> anyhow::Result<Self> {
        let cluster = Self::new(hosts, options)?;
        cluster.form()?;
        Ok(cluster)
    }

    /// `overlay init` on the first host, `overlay join` on the others.
    ///
    /// # Errors
    /// The error of `overlay`.
    pub fn form(&self) -> anyhow::Result<()> {
        let mut init = self.options.every.clone();
        if patience() > 1 {
            // Heartbeats are as slow as everything else on such a machine.
            init.extend(["--node-timeout".to_owned(), format!("{}s", 5 * patience())]);
        }
        init.extend(self.options.init.iter().cloned());
        let (first, others) = self.hosts.split_first().context("no hosts")?;
        let token = first.init(&init)?;
        for host in others {
            host.join(&token, first, &self.options.every)?;
        }
        first.sync()
    }

    fn switch(&self) -> String {
        self.instance.namespace("switch")
    }

    fn plug(&self, machine: &str, address: Ipv4Addr) -> anyhow::Result<()> {
        let namespace = self.instance.namespace(machine);
        netns::create(&namespace)?;
        netns::attach(&Attachment {
            switch: &self.switch(),
            port: machine,
            machine: &namespace,
            address,
            wire: self.options.wire,
            mtu: self.options.mtu,
        })
    }

    /// Adds another machine outside the cluster, 172.16.1.`last`.
    ///
    /// # Errors
    /// If the name or the address is taken.
    pub fn outsider(&self, name: &str, last: u8) -> anyhow::Result<Client> {
        self.plug(name, underlay(last))?;
        Ok(Client {
            name: name.to_owned(),
            namespace: self.instance.namespace(name),
            address: underlay(last),
            logs: self.instance.dir.clone(),
        })
    }

    /// Adds a machine that is connected only to a new interface of another machine. `addresses` are
    /// that interface's and the new machine's, of one /24.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn behind(
        &self,
        machine: &impl Place,
        iface: &str,
        name: &str,
        addresses: (Ipv4Addr, Ipv4Addr),
    ) -> anyhow::Result<Client> {
        let namespace = self.instance.namespace(name);
        netns::create(&namespace)?;
        netns::link((machine.tag(), iface, addresses.0), (&namespace, addresses.1))?;
        Ok(Client {
            name: name.to_owned(),
            namespace,
            address: addresses.1,
            logs: self.instance.dir.clone(),
        })
    }

    /// Pulls the cable of a host out of the switch: no packet reaches it, and none of its packets
    /// arrives.
    ///
    /// # Errors
    /// The error of `ip`.
    pub fn unplug(&self, host: &Host) -> anyhow::Result<()> {
        netns::set_port(&self.switch(), host.name(), false)
    }

    /// Puts it back.
    ///
    /// # Errors
    /// The error of `ip`.
    pub fn replug(&self, host: &Host) -> anyhow::Result<()> {
        netns::set_port(&self.switch(), host.name(), true)
    }

    /// Host `number`, from 1.
    ///
    /// # Panics
    /// There is no host with this number.
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The client outside.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its names.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Waits until every node has applied all changes so far.
    ///
    /// # Errors
    /// Names the nodes that have not.
    pub fn settle(&self) -> anyhow::Result<()> {
        self.host(1).sync()
    }

    /// The objects that `overlay` has left on the hosts, after all hosts have left the cluster.
    ///
    /// # Errors
    /// If a host cannot be looked at.
    pub fn leftovers(&self) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        for host in &self.hosts {
            found.extend(host.leftovers()?);
        }
        Ok(found)
    }

    /// Removes everything now and reports failures.
    ///
    /// # Errors
    /// The objects that are left.
    pub fn clean(mut self) -> anyhow::Result<()> {
        self.keep = true;
        let cleaned = self.instance.clean();
        self.guardian.dismiss();
        cleaned
    }

    /// Lets it live on; [`Instance::clean`] removes it.
    pub fn keep(mut self) -> Instance {
        self.keep = true;
        self.guardian.dismiss();
        self.instance.clone()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if std::env::var_os("OVERLAY_BOX_KEEP").is_some() {
            eprintln!("kept: `overlay-demo --clean {}` removes it", self.instance.prefix);
        } else if let Err(error) = self.instance.clean() {
            eprintln!("cleaning up: {error:#}");
        }
        self.guardian.dismiss();
    }
}
