//! The last step: everything is removed, and no object is left.

use std::{collections::BTreeSet, time::Duration};

use anyhow::ensure;

use super::{
    report::{Report, expect},
    services::{SERVICES, Services},
};
use crate::{
    bpffs::{self, Object},
    cluster::Cluster,
    host::Host,
    place::Place as _,
    wait::eventually,
};

/// Containers, services, networks, nodes, and then the box itself.
pub fn remove(cluster: Cluster, services: Services, report: &mut Report) -> anyhow::Result<()> {
    report.step("Removal of everything");
    let first = cluster.host(1);
    report.check("the containers are stopped", || {
        let Services { replicas, asker, .. } = services;
        for container in replicas.into_values().flatten().chain([asker]) {
            container.stop()?;
        }
        let left = first.state()?.endpoints.len();
        expect("endpoints in the cluster's state", 0, left)?;
        Ok(String::new())
    })?;
    report.check("the services and networks are removed", || {
        for (service, _) in SERVICES {
            first.overlay(&["service", "rm", service])?;
        }
        first.overlay(&["network", "rm", "mynet", "other"])?;
        Ok(String::new())
    })?;
    report.check("nothing answers on the published ports any more", || {
        for (_, port) in SERVICES {
            cluster.client().cannot_connect(&first.port(port))?;
        }
        Ok(String::new())
    })?;
    // The manager last: the others tell it.
    for host in cluster.hosts().iter().rev() {
        let is_last = host.name() == first.name();
        report.check(
            &format!("{} leaves, and no map or program of it is left", host.name()),
            || leave(host, is_last),
        )?;
        report.check(
            &format!("{} has no interface, route, pin, namespace or process left", host.name()),
            || {
                expect("left", Vec::<String>::new(), host.leftovers()?)?;
                Ok(String::new())
            },
        )?;
    }
    let instance = cluster.instance().clone();
    report.check("the hosts themselves are removed", || {
        cluster.clean()?;
        expect("left", Vec::<String>::new(), instance.leftovers())?;
        Ok(String::new())
    })?;
    Ok(())
}

fn leave(host: &Host, force: bool) -> anyhow::Result<String> {
    let objects = bpffs::objects(&host.dirs().pins)?;
    ensure!(!objects.is_empty(), "expected: pins of {} before it leaves\nseen: none", host.name());
    host.leave(force)?;
    // The kernel frees maps and programs after a grace period.
    eventually("all are freed", Duration::from_secs(10), || {
        let left = existing(&objects)?;
        ensure!(left.is_empty(), "the kernel still has {left:?}");
        Ok(())
    })?;
    Ok(format!("{} maps, programs and links are gone", objects.len()))
}

fn existing(objects: &BTreeSet<Object>) -> anyhow::Result<Vec<Object>> {
    let mut left = Vec::new();
    for object in objects {
        if bpffs::exists(*object)? {
            left.push(*object);
        }
    }
    Ok(left)
}
