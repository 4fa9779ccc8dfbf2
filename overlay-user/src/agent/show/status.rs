//! Tells how the agent is doing.

use std::{collections::BTreeMap, sync::Arc};

use overlay_common::{Direction, maps::Lru};

use crate::{
    agent::{Agent, AgentError, attach::containers::Container, attach::records::Wire, lock},
    api::{CounterRow, FillRow, LocalContainer, Status},
    datapath::{Datapath, DatapathState, Fill, XdpMode},
    link::Links,
    model::EndpointState,
};

impl<D: Datapath, L: Links> Agent<D, L> {
    /// The agent's state in words and numbers.
    ///
    /// # Errors
    /// [`AgentError::Datapath`] when the counters cannot be read.
    pub fn status(&self) -> Result<Status, AgentError> {
        let report = lock(&self.report).clone();
        let troubles = lock(&self.troubles).clone();
        let troubles: Vec<_> = troubles.iter().map(|(d, what)| format!("{d}: {what}")).collect();
        let entries = match &lock(&self.applied).known {
            Some(known) => entries(known),
            None => entries(&self.datapath.read()?),
        };
        let not_yet = || Err("not attached yet: no state of the cluster is known".to_owned());
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            node: self.config.node.clone(),
            name: self.config.name.clone(),
            role: self.config.role,
            data_path_addr: self.config.data_path_addr,
            iface: self.config.iface.clone(),
            underlay_mtu: report.underlay.map_or(0, |u| u.mtu),
            data_path_port: self.config.data_path_port,
            xdp: report.xdp.map_or("not attached yet", xdp_name).to_owned(),
            tc: self.datapath.tc_flavour().to_owned(),
            socket_programs: report.sockets.unwrap_or_else(not_yet),
            socket_lb: self.config.socket_lb,
            connected: *self.connected.borrow(),
            manager: self.control.manager(),
            revision: self.state().revision,
            applied: *self.progress.borrow(),
            last_error: (!troubles.is_empty()).then(|| troubles.join("; ")),
            pin_dir: self.paths.pin_dir.display().to_string(),
            entries,
            fills: self.fills()?,
            counters: self.counters()?.into_iter().filter(|c| c.packets > 0).collect(),
        })
    }

    /// All counters, in the order of the reasons.
    pub(in crate::agent) fn counters(&self) -> Result<Vec<CounterRow>, AgentError> {
        let counters = self.datapath.counters()?;
        let row = |(reason, counter): (overlay_common::Reason, overlay_common::maps::Counter)| {
            CounterRow {
                reason: reason.name().to_owned(),
                direction: match reason.direction() {
                    Direction::Forward => "forward",
                    Direction::Drop => "drop",
                }
                .to_owned(),
                packets: counter.packets,
                bytes: counter.bytes,
                description: reason.description().to_owned(),
            }
        };
        Ok(counters.into_iter().map(row).collect())
    }

    /// How full the maps are that forget, in the order of their counters.
    fn fills(&self) -> Result<Vec<FillRow>, AgentError> {
        let row = |(lru, fill): (Lru, Fill)| FillRow {
            map: lru.name().to_owned(),
            entries: fill.entries,
            room: fill.room,
            evicted: fill.evicted,
            description: lru.description().to_owned(),
        };
        Ok(self.datapath.fills()?.into_iter().map(row).collect())
    }

    /// The containers attached on this host.
    pub fn local_containers(&self) -> Vec<LocalContainer> {
        let attached = |c: &Arc<Container>| c.is_attached();
        self.containers.all().into_iter().filter(attached).map(|c| self.describe(&c)).collect()
    }

    fn describe(&self, container: &Container) -> LocalContainer {
        let record = container.record();
        let state = self.state();
        let first = state.endpoints.values().find(|e| e.container == record.container);
        let service = first.and_then(|e| state.services.get(e.service.as_ref()?));
        LocalContainer {
            container: record.container,
            name: record.name,
            netns: record.netns.display().to_string(),
            pid: record.process.map(|p| p.pid),
            service: service.filter(|s| s.owner.is_none()).map(|s| s.name.clone()),
            state: first.map_or(EndpointState::Starting, |e| e.state),
            interfaces: record.wires.iter().map(Wire::interface).collect(),
        }
    }
}

fn entries(state: &DatapathState) -> BTreeMap<String, u64> {
    [
        ("networks", state.networks.len()),
        ("flood", state.flood.len()),
        ("endpoints", state.endpoints.len()),
        ("endpoints6", state.endpoints6.len()),
        ("addresses6", state.addresses6.len()),
        ("links", state.links.len()),
        ("links6", state.links6.len()),
        ("peers", state.peers.len()),
        ("services", state.services.len()),
        ("slots", state.slots.len()),
        ("backends", state.backends.len()),
        ("published", state.published.len()),
        ("local_addrs", state.local_addrs.len()),
        ("local_addrs6", state.local_addrs6.len()),
        ("frontends6", state.frontends6.len()),
        ("egress", state.egress.len()),
        ("subnets", state.subnets.len()),
        ("subnets6", state.subnets6.len()),
        ("netns", state.netns.len()),
        ("stale_backends", state.stale_backends.len()),
    ]
    .into_iter()
    .map(|(name, count)| (name.to_owned(), u64::try_from(count).unwrap_or(u64::MAX)))
    .collect()
}

const fn xdp_name(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Auto => "auto",
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
        XdpMode::Off => "off",
    }
}
