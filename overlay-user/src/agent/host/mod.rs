//! What the agent sets up on its host besides endpoints: the vxlan device, the host link, the
//! programs' configuration and their places.

pub mod egress;
pub mod shadow;

use std::{net::IpAddr, sync::Arc};

use ipnet::Ipv4Net;
use overlay_common::{Be16, Be32, Ip6, Mac, maps::Config};

use crate::{
    agent::{
        Agent, AgentError, attach::adopt::is_endpoint_link, compile::network_mtu, lock,
        reconcile::Look,
    },
    datapath::{Datapath, XdpMode},
    link::{HostLink, Links, UnderlayFacts, WayOut},
    model::{ClusterState, vtep},
};

/// The kernel's vxlan device.
pub const VXLAN: &str = "ovl-vxlan";
/// The host's end of the host link.
pub const HOST_END: &str = "ovl-host";
/// The programs' end of the host link.
pub const PROGRAM_END: &str = "ovl-prog";
/// How the names of all three begin, and nothing else of ours.
pub const OWN_PREFIX: &str = "ovl-";

const SOCKETS: &str = "attaching the socket programs";

/// What the setup depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Inputs {
    underlay: UnderlayFacts,
    ways_out: Vec<WayOut>,
    /// The host link and the gateway behind it; `None` without an ingress network.
    ingress: Option<(HostLink, std::net::Ipv4Addr)>,
}

/// What was set up.
#[derive(Default)]
pub struct HostSetup {
    done: Option<Inputs>,
    /// The node has left: nothing is set up any more.
    pub over: bool,
}

/// What [`crate::api::Status`] tells of the setup.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Facts of the underlay interface.
    pub underlay: Option<UnderlayFacts>,
    /// Interfaces by which packets come from outside.
    pub ways_out: Vec<WayOut>,
    /// XDP mode in force.
    pub xdp: Option<XdpMode>,
    /// Whether the socket programs are attached, and else why not.
    pub sockets: Option<Result<(), String>>,
}

impl<D: Datapath, L: Links> Agent<D, L> {
    /// Looks at the underlay interface and at the host's addresses, and wakes the reconciler when
    /// they changed.
    ///
    /// # Errors
    /// [`AgentError::Link`] when the interface is gone.
    pub(in crate::agent) async fn look_around(&self) -> Result<(), AgentError> {
        let underlay = self.links.underlay(&self.config.iface).await?;
        let own = [HOST_END, PROGRAM_END, VXLAN];
        let mut addresses = self.links.addresses(&own).await?;
        addresses.sort_unstable();
        let mut addresses6 = self.links.addresses6(&own).await?;
        addresses6.sort_unstable();
        let mut ways_out = self.links.ways_out(&own).await?;
        // Our endpoints' have a program of their own.
        ways_out.retain(|way| !is_endpoint_link(&way.name));
        let mut changed = false;
        {
            let mut facts = lock(&self.facts);
            changed |= std::mem::replace(&mut facts.underlay_mtu, underlay.mtu) != underlay.mtu;
            changed |= std::mem::replace(&mut facts.addresses, addresses.clone()) != addresses;
            changed |= std::mem::replace(&mut facts.addresses6, addresses6.clone()) != addresses6;
        }
        {
            let mut report = lock(&self.report);
            let before = report.underlay.replace(underlay.clone());
            changed |= before.as_ref() != Some(&underlay);
            changed |= report.ways_out != ways_out;
            report.ways_out = ways_out;
        }
        self.check_outside_ports();
        if changed {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Whether the state or the underlay ask for another setup than the one in place.
    pub(in crate::agent) async fn setup_is_due(&self) -> bool {
        let wanted = self.inputs();
        let setup = self.setup.lock().await;
        wanted.is_some() && setup.done != wanted && !setup.over
    }

    /// `None` as long as too little is known, or this node is not of the cluster.
    fn inputs(&self) -> Option<Inputs> {
        let state = self.state.borrow().clone()?;
        let Report { underlay, ways_out, .. } = lock(&self.report).clone();
        let underlay = underlay?;
        state.nodes.get(self.node())?;
        let ingress = self.host_link(&state, underlay.mtu);
        Some(Inputs { underlay, ways_out, ingress })
    }

    fn host_link(
        &self,
        state: &ClusterState,
        underlay_mtu: u32,
    ) -> Option<(HostLink, std::net::Ipv4Addr)> {
        let ip =
            Some(state.nodes.get(self.node())?.ingress_ip).filter(|ip| !ip.is_unspecified())?;
        let ingress = state.ingress()?;
        let link = HostLink {
            name: HOST_END.to_owned(),
            program_side: PROGRAM_END.to_owned(),
            address: Ipv4Net::new(ip, ingress.subnet.prefix_len()).ok()?,
            mac: Mac::of_ip(ip.into()),
            mtu: network_mtu(ingress, self.config.data_path_addr, underlay_mtu),
        };
        Some((link, ingress.gateway))
    }

    /// Sets up the host, brings the maps up to date and attaches the programs, in the order in
    /// which no program runs before it is configured. What is there already is adopted.
    ///
    /// # Errors
    /// [`AgentError`] says what the kernel refused.
    pub(in crate::agent) async fn bring_up(self: &Arc<Self>, look: Look) -> Result<(), AgentError> {
        let mut setup = self.setup.lock().await;
        if setup.over {
            return Ok(());
        }
        let Some(inputs) = self.inputs() else { return self.reconcile(look).await };
        setup.done = None;
        let vxlan = self.links.ensure_vxlan(VXLAN, self.config.data_path_port).await?;
        let host_link = self.ensure_host_link(&inputs).await?;
        self.configure(&inputs, vxlan, host_link)?;
        let ways_out = self.attach_ways_out(&inputs.ways_out);
        lock(&self.facts).ways_out = ways_out;
        self.reconcile(look).await?;
        self.attach_programs(host_link.is_some())?;
        self.detach_former_ways_out(&inputs.ways_out)?;
        setup.done = Some(inputs);
        Ok(())
    }

    /// Returns the index of the programs' end.
    async fn ensure_host_link(&self, inputs: &Inputs) -> Result<Option<u32>, AgentError> {
        let before = lock(&self.facts).host_link;
        let now = match &inputs.ingress {
            Some((link, _)) => Some((self.links.ensure_host_link(link).await?, link.mac)),
            None => {
                self.links.remove(HOST_END).await?;
                None
            }
        };
        if before.is_some_and(|(old, _)| now.is_none_or(|(new, _)| new != old)) {
            // Another interface has the name now: the attachment is to the one that is gone.
            self.datapath.detach(PROGRAM_END)?;
        }
        lock(&self.facts).host_link = now;
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
            vtep: vtep(self.config.data_path_addr),
            ingress_gateway: gateway,
            host_ip,
            underlay_ifindex: underlay.ifindex,
            host_link_ifindex: host_link.unwrap_or(0),
            vxlan_ifindex,
            // Zero is nobody's cookie: without one the socket programs act for no socket.
            netns_cookie: self.host.netns_cookie().unwrap_or(0),
            underlay_mtu: underlay.mtu,
            vxlan_port: Be16::new(self.config.data_path_port),
            underlay_mac: underlay.mac,
            // For the datapath to fill in.
            decap_flags: 0,
            outside_ports: self.config.outside_ports,
            outside_flows: self.config.outside_flows,
            flags: self.config.xdp.flags(underlay),
            reserved: 0,
            vtep6: match self.config.data_path_addr {
                IpAddr::V4(_) => Ip6::UNSPECIFIED,
                IpAddr::V6(address) => address.into(),
            },
        };
        Ok(self.datapath.set_config(&config)?)
    }

    fn attach_programs(&self, host_link: bool) -> Result<(), AgentError> {
        if host_link {
            self.datapath.attach_container(PROGRAM_END)?;
        }
        self.datapath.attach_vxlan(VXLAN)?;
        let xdp = self.datapath.attach_underlay(&self.config.iface, self.config.xdp)?;
        let sockets = self.attach_sockets();
        match &sockets {
            Ok(()) => self.overcome(SOCKETS),
            Err(why) => self.trouble(SOCKETS, why),
        }
        let mut report = lock(&self.report);
        report.xdp = Some(xdp);
        report.sockets = Some(sockets);
        Ok(())
    }

    /// Without cgroup v2 published ports answer everywhere but on the host's own sockets.
    fn attach_sockets(&self) -> Result<(), String> {
        let cgroup = self.config.cgroup.clone().or_else(|| self.host.cgroup2()).ok_or(
            "no cgroup v2 is mounted; mount one (`mount -t cgroup2 none /sys/fs/cgroup/unified`) \
             or name one in agent.json as \"cgroup\"",
        )?;
        self.host.netns_cookie().map_err(|e| e.to_string())?;
        self.datapath.attach_sockets(&cgroup).map_err(|e| e.to_string())
    }
}
