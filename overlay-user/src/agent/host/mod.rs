//! The agent's setup of its host, besides endpoints: the vxlan device, the host link, and the
//! configuration and the attachments of the programs.

mod egress;
mod remove;
mod shadow;

pub use remove::remove_from_kernel;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use ipnet::Ipv4Net;
use overlay_common::{Be16, Be32, Ip6, Mac, maps::Config};

use crate::{
    agent::{
        compile::network_mtu,
        context::Context,
        error::AgentError,
        follow::Cluster,
        interfaces::{HOST_END, PROGRAM_END, VXLAN, is_endpoint_link},
        reconcile::{Look, Reconciler},
    },
    datapath::{Datapath, XdpMode},
    link::{HostLink, Links, UnderlayFacts, WayOut},
    lock::lock,
    model::{ClusterState, vtep},
};

/// How long after a failure the reconciling is tried again.
const RETRY: Duration = Duration::from_secs(1);

const RECONCILING: &str = "bringing the maps up to date";
const SOCKETS: &str = "attaching the socket programs";

/// The inputs of the setup.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Inputs {
    underlay: UnderlayFacts,
    uplinks: Vec<WayOut>,
    /// The host link and the gateway behind it; `None` without an ingress network.
    ingress: Option<(HostLink, std::net::Ipv4Addr)>,
}

/// The result of the setup.
#[derive(Default)]
struct Setup {
    done: Option<Inputs>,
    /// The node has left: nothing is set up any more.
    over: bool,
}

/// The part of [`crate::api::Status`] that describes the setup.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Facts of the underlay interface.
    pub underlay: Option<UnderlayFacts>,
    /// Interfaces by which packets come from outside.
    pub uplinks: Vec<WayOut>,
    /// XDP mode in force.
    pub xdp: Option<XdpMode>,
    /// Whether the socket programs are attached, and else why not.
    pub sockets: Option<Result<(), String>>,
}

/// Sets up the host, and again when the state or the underlay ask for another setup.
pub struct HostSetup<D, L> {
    context: Arc<Context<D, L>>,
    cluster: Arc<Cluster>,
    reconciler: Arc<Reconciler<D, L>>,
    setup: tokio::sync::Mutex<Setup>,
    report: Mutex<Report>,
}

impl<D: Datapath, L: Links> HostSetup<D, L> {
    /// Sets up nothing before [`HostSetup::bring_up`].
    pub fn new(
        context: Arc<Context<D, L>>,
        cluster: Arc<Cluster>,
        reconciler: Arc<Reconciler<D, L>>,
    ) -> Self {
        Self { context, cluster, reconciler, setup: Default::default(), report: Mutex::default() }
    }

    /// The known facts about the setup.
    pub fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    /// Sets up nothing from now on: the node leaves its cluster.
    pub async fn close(&self) {
        self.setup.lock().await.over = true;
    }

    /// Reconciles for as long as the agent runs, at every new state and whenever it is asked for.
    /// Changes that arrive while it works are done together the next time.
    pub async fn reconcile_loop(self: Arc<Self>) {
        let mut states = self.cluster.states();
        // The loop must also see the facts that are known when it starts.
        states.mark_changed();
        loop {
            tokio::select! {
                () = self.reconciler.woken() => {}
                // The sender lives as long as the agent: an error cannot happen.
                _ = states.changed() => {}
            }
            states.borrow_and_update();
            let outcome = self.converge().await;
            let failed = outcome.is_err();
            self.context.conditions.note(RECONCILING, outcome);
            if failed {
                tokio::time::sleep(RETRY).await;
                self.reconciler.wake();
            }
        }
    }

    async fn converge(&self) -> Result<(), AgentError> {
        if self.is_due().await {
            self.bring_up(Look::Memory).await
        } else {
            self.reconciler.reconcile(Look::Memory).await
        }
    }

    /// Looks at the underlay interface and at the host's addresses, and asks for a reconciling when
    /// they changed.
    ///
    /// # Errors
    /// [`AgentError::Link`] when the interface is gone.
    pub async fn look_around(&self) -> Result<(), AgentError> {
        let underlay = self.context.links.underlay(&self.context.config.iface).await?;
        let own = [HOST_END, PROGRAM_END, VXLAN];
        let mut addresses = self.context.links.addresses(&own).await?;
        addresses.sort_unstable();
        let mut addresses6 = self.context.links.addresses6(&own).await?;
        addresses6.sort_unstable();
        let mut uplinks = self.context.links.ways_out(&own).await?;
        // The links of endpoints have a program of their own.
        uplinks.retain(|way| !is_endpoint_link(&way.name));
        let mut changed = false;
        {
            let mut facts = self.reconciler.facts();
            changed |= std::mem::replace(&mut facts.underlay_mtu, underlay.mtu) != underlay.mtu;
            changed |= std::mem::replace(&mut facts.addresses, addresses.clone()) != addresses;
            changed |= std::mem::replace(&mut facts.addresses6, addresses6.clone()) != addresses6;
        }
        {
            let mut report = lock(&self.report);
            let before = report.underlay.replace(underlay.clone());
            changed |= before.as_ref() != Some(&underlay);
            changed |= report.uplinks != uplinks;
            report.uplinks = uplinks;
        }
        self.check_egress_ports();
        if changed {
            self.reconciler.wake();
        }
        Ok(())
    }

    /// Whether the state or the underlay ask for another setup than the one in place.
    async fn is_due(&self) -> bool {
        let wanted = self.inputs();
        let setup = self.setup.lock().await;
        wanted.is_some() && setup.done != wanted && !setup.over
    }

    /// `None` as long as too little is known, or this node is not of the cluster.
    fn inputs(&self) -> Option<Inputs> {
        let state = self.cluster.known_state()?;
        let Report { underlay, uplinks, .. } = lock(&self.report).clone();
        let underlay = underlay?;
        state.nodes.get(self.context.node())?;
        let ingress = self.host_link(&state, underlay.mtu);
        Some(Inputs { underlay, uplinks, ingress })
    }

    fn host_link(
        &self,
        state: &ClusterState,
        underlay_mtu: u32,
    ) -> Option<(HostLink, std::net::Ipv4Addr)> {
        let ip = Some(state.nodes.get(self.context.node())?.ingress_ip)
            .filter(|ip| !ip.is_unspecified())?;
        let ingress = state.ingress()?;
        let link = HostLink {
            name: HOST_END.to_owned(),
            program_side: PROGRAM_END.to_owned(),
            address: Ipv4Net::new(ip, ingress.subnet.prefix_len()).ok()?,
            mac: Mac::of_ip(ip.into()),
            mtu: network_mtu(ingress, self.context.config.data_path_addr, underlay_mtu),
        };
        Some((link, ingress.gateway))
    }

    /// Sets up the host, brings the maps up to date and attaches the programs. In this order no
    /// program runs before it is configured. Existing objects are adopted.
    ///
    /// # Errors
    /// [`AgentError`] names the operation that the kernel rejected.
    pub async fn bring_up(&self, look: Look) -> Result<(), AgentError> {
        let mut setup = self.setup.lock().await;
        if setup.over {
            return Ok(());
        }
        let Some(inputs) = self.inputs() else { return self.reconciler.reconcile(look).await };
        setup.done = None;
        let vxlan =
            self.context.links.ensure_vxlan(VXLAN, self.context.config.data_path_port).await?;
        let host_link = self.ensure_host_link(&inputs).await?;
        self.configure(&inputs, vxlan, host_link)?;
        let uplinks = self.attach_egress(&inputs.uplinks);
        self.reconciler.facts().uplinks = uplinks;
        self.reconciler.reconcile(look).await?;
        self.attach_programs(host_link.is_some())?;
        self.detach_former_egress(&inputs.uplinks)?;
        setup.done = Some(inputs);
        Ok(())
    }

    /// Returns the index of the programs' end.
    async fn ensure_host_link(&self, inputs: &Inputs) -> Result<Option<u32>, AgentError> {
        let before = self.reconciler.facts().host_link;
        let now = match &inputs.ingress {
            Some((link, _)) => Some((self.context.links.ensure_host_link(link).await?, link.mac)),
            None => {
                self.context.links.remove(HOST_END).await?;
                None
            }
        };
        if before.is_some_and(|(old, _)| now.is_none_or(|(new, _)| new != old)) {
            // Another interface has the name now: the attachment is to the former one.
            self.context.datapath.detach(PROGRAM_END)?;
        }
        self.reconciler.facts().host_link = now;
        Ok(now.map(|(ifindex, _)| ifindex))
    }

    fn configure(
        &self,
        inputs: &Inputs,
        vxlan_ifindex: u32,
        host_link: Option<u32>,
    ) -> Result<(), AgentError> {
        let Inputs { underlay, ingress, .. } = inputs;
        let (host_ip, gateway) = ingress
            .as_ref()
            .map_or((Be32::ZERO, Be32::ZERO), |(l, gw)| (l.address.addr().into(), (*gw).into()));
        let config = Config {
            vtep: vtep(self.context.config.data_path_addr),
            ingress_gateway: gateway,
            host_ip,
            underlay_ifindex: underlay.ifindex,
            host_link_ifindex: host_link.unwrap_or(0),
            vxlan_ifindex,
            // No namespace has the cookie 0: without a cookie the socket programs act for no
            // socket.
            netns_cookie: self.context.host.netns_cookie().unwrap_or(0),
            underlay_mtu: underlay.mtu,
            vxlan_port: Be16::new(self.context.config.data_path_port),
            underlay_mac: underlay.mac,
            // For the datapath to fill in.
            decap_flags: 0,
            outside_ports: self.context.config.outside_ports,
            outside_flows: self.context.config.outside_flows,
            flags: self.context.config.xdp.flags(underlay),
            reserved: 0,
            vtep6: match self.context.config.data_path_addr {
                IpAddr::V4(_) => Ip6::UNSPECIFIED,
                IpAddr::V6(address) => address.into(),
            },
        };
        Ok(self.context.datapath.set_config(&config)?)
    }

    fn attach_programs(&self, host_link: bool) -> Result<(), AgentError> {
        if host_link {
            self.context.datapath.attach_container(PROGRAM_END)?;
        }
        self.context.datapath.attach_vxlan(VXLAN)?;
        let xdp = self
            .context
            .datapath
            .attach_underlay(&self.context.config.iface, self.context.config.xdp)?;
        let sockets = self.attach_sockets();
        self.context.conditions.note(SOCKETS, sockets.as_ref().map(drop));
        let mut report = lock(&self.report);
        report.xdp = Some(xdp);
        report.sockets = Some(sockets);
        Ok(())
    }

    /// Without cgroup v2 published ports answer everywhere except for the host's own sockets.
    fn attach_sockets(&self) -> Result<(), String> {
        const NO_CGROUP: &str = "no cgroup v2 is mounted; mount one (`mount -t cgroup2 none \
                                 /sys/fs/cgroup/unified`) or name one in agent.json as \"cgroup\"";
        let Context { config, host, datapath, .. } = &*self.context;
        let cgroup = config.cgroup.clone().or_else(|| host.cgroup2()).ok_or(NO_CGROUP)?;
        host.netns_cookie().map_err(|e| e.to_string())?;
        datapath.attach_sockets(&cgroup).map_err(|e| e.to_string())
    }
}
