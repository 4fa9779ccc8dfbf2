//! Reads the maps for the status and the tables of this host.

use overlay_common::maps::Link;

use super::{
    clock::monotonic_ns,
    error::AgentError,
    interfaces::PROGRAM_END,
    run::Agent,
    show::{self, Snapshot, address_ids::Live, names::Names, status},
};
use crate::{
    api::Status,
    datapath::{Datapath, Tables},
    link::Links,
};

/// Most entries of `addr6_ids` shown.
const CLIENT_ROWS: usize = 10_000;

impl<D: Datapath, L: Links> Agent<D, L> {
    /// The agent's state in words and numbers.
    ///
    /// # Errors
    /// [`AgentError::Datapath`] when the counters cannot be read.
    pub fn status(&self) -> Result<Status, AgentError> {
        let (context, config) = (&self.context, &self.context.config);
        let report = self.host.report();
        let entries = match self.reconciler.applied(status::entries) {
            Some(entries) => entries,
            None => status::entries(&context.datapath.read()?),
        };
        let not_yet = || Err("not attached yet: no state of the cluster is known".to_owned());
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            node: config.node.clone(),
            name: config.name.clone(),
            role: config.role,
            data_path_addr: config.data_path_addr,
            iface: config.iface.clone(),
            underlay_mtu: report.underlay.map_or(0, |u| u.mtu),
            data_path_port: config.data_path_port,
            xdp: report.xdp.map_or("not attached yet", status::xdp_name).to_owned(),
            tc: context.datapath.tc_flavour().to_owned(),
            socket_programs: report.sockets.unwrap_or_else(not_yet),
            socket_lb: config.socket_lb,
            connected: self.cluster.is_connected(),
            manager: context.control.manager(),
            revision: self.cluster.state().revision,
            applied: *self.reconciler.progress().borrow(),
            last_error: context.conditions.summary(),
            pin_dir: context.paths.pin_dir.display().to_string(),
            entries,
            fills: status::fills(context.datapath.fills()?),
            counters: status::counters(
                context.datapath.counters()?.into_iter().filter(|(_, c)| c.packets > 0),
            ),
        })
    }

    /// The current contents of the maps, read from the maps themselves.
    ///
    /// # Errors
    /// [`AgentError::Datapath`] when a map cannot be read.
    pub fn tables(&self) -> Result<Tables, AgentError> {
        let (names, state) = (self.names(), self.cluster.state());
        let numbers = Live(&names, &self.context.datapath);
        Ok(show::tables(self.snapshot()?, &state, &names, &numbers))
    }

    fn snapshot(&self) -> Result<Snapshot, AgentError> {
        let datapath = &self.context.datapath;
        let held = datapath.read()?;
        let counter = |link: &Link| (link.counter != 0).then_some(link.counter);
        let counters = held.links.values().filter_map(counter).collect();
        let mut lb_tables = Vec::new();
        for key in held.tables.keys() {
            // A table that was removed since is not shown.
            lb_tables.extend(datapath.table(*key)?.map(|entries| (*key, entries)));
        }
        Ok(Snapshot {
            now: monotonic_ns(),
            conntrack: datapath.conntrack(self.context.conntrack_size())?,
            sockets: datapath.sockets()?,
            statistics: datapath.backend_stats()?,
            addr6_ids: datapath.addr6_ids(CLIENT_ROWS)?,
            lb_tables,
            breakdown: datapath.breakdown(&counters)?,
            counters: datapath.counters()?.into_iter().collect(),
            held,
        })
    }

    /// The names of the numbers in the maps.
    pub fn names(&self) -> Names {
        let mut names = Names::new(&self.cluster.state());
        names.interfaces.extend(self.attachments.interfaces());
        let uplinks = self.host.report().uplinks;
        names.interfaces.extend(uplinks.into_iter().map(|uplink| (uplink.ifindex, uplink.name)));
        let host_link = self.reconciler.facts().host_link;
        let host_link = host_link.map(|(ifindex, _)| (ifindex, PROGRAM_END.to_owned()));
        names.interfaces.extend(host_link);
        names
    }
}
