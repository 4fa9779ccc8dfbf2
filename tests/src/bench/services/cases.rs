//! The measurements through services.

use std::process::Command;

use anyhow::Context as _;

use super::{
    floods,
    report::Subject,
    rig::{Backend, Rig, Way},
    runs::Took,
    web::Connections,
};
use crate::process;

/// A value of a case: name, unit, value.
pub type Value = (String, &'static str, f64);

/// A measurement: its name for `--case`, and how it is done.
pub struct Measurement {
    /// Its name.
    pub name: &'static str,
    kind: Kind,
}

enum Kind {
    /// Traffic of programs.
    Traffic(Way, Backend),
    /// Requests to a web server.
    Web(Way, Backend, Connections),
    /// Packets of a generator.
    Flood(fn(&Rig, Subject) -> anyhow::Result<Vec<Value>>),
    /// Single runs of the programs.
    Runs,
}

/// All of them.
pub const ALL: [Measurement; 17] = [
    Measurement { name: "vip_remote", kind: Kind::Traffic(Way::Vip, Backend::Remote) },
    Measurement { name: "vip_local", kind: Kind::Traffic(Way::Vip, Backend::Local) },
    Measurement { name: "published_remote", kind: Kind::Traffic(Way::Published, Backend::Remote) },
    Measurement { name: "published_local", kind: Kind::Traffic(Way::Published, Backend::Local) },
    web("wrk_vip_remote_kept", Way::Vip, Backend::Remote, Connections::Kept),
    web("wrk_vip_remote_each", Way::Vip, Backend::Remote, Connections::Each),
    web("wrk_vip_local_kept", Way::Vip, Backend::Local, Connections::Kept),
    web("wrk_vip_local_each", Way::Vip, Backend::Local, Connections::Each),
    web("wrk_published_remote_kept", Way::Published, Backend::Remote, Connections::Kept),
    web("wrk_published_remote_each", Way::Published, Backend::Remote, Connections::Each),
    web("wrk_published_local_kept", Way::Published, Backend::Local, Connections::Kept),
    web("wrk_published_local_each", Way::Published, Backend::Local, Connections::Each),
    Measurement { name: "published_flood", kind: Kind::Flood(floods::by_tc) },
    Measurement { name: "published_flood_xdp", kind: Kind::Flood(floods::by_xdp) },
    Measurement { name: "published_lossless", kind: Kind::Flood(floods::lossless_by_tc) },
    Measurement { name: "published_lossless_xdp", kind: Kind::Flood(floods::lossless_by_xdp) },
    Measurement { name: "runs", kind: Kind::Runs },
];

const fn web(name: &'static str, way: Way, backend: Backend, of: Connections) -> Measurement {
    Measurement { name, kind: Kind::Web(way, backend, of) }
}

impl Measurement {
    /// Whether it asks web servers.
    pub fn is_web(&self) -> bool {
        matches!(self.kind, Kind::Web(..))
    }

    /// One round on one subject.
    ///
    /// # Errors
    /// If the traffic does not get through; [`Failed`](super::web::Failed) if only this round is
    /// spoiled.
    pub fn run(&self, rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
        match self.kind {
            Kind::Traffic(way, backend) => traffic(rig, self.name, (way, backend), subject),
            Kind::Web(way, backend, connections) => {
                rig.ask((way, backend), subject, connections, self.name)
            }
            Kind::Flood(run) => run(rig, subject),
            Kind::Runs if subject == Subject::Overlay => runs(),
            Kind::Runs => Ok(vec![]),
        }
        .with_context(|| format!("{} of {subject:?}", self.name))
    }
}

fn traffic(
    rig: &Rig,
    name: &str,
    way: (Way, Backend),
    subject: Subject,
) -> anyhow::Result<Vec<Value>> {
    let stream = ["stream", "--size", "131072", "--milliseconds", "1500"];
    let connect = rig.drive(way, subject, &["connect"])?;
    let echo = rig.drive(way, subject, &["tcp-echo"])?;
    let stream = rig.drive(way, subject, &stream)?;
    let values = [
        ("connect", "thousand/s", connect.arrived as f64 / connect.seconds / 1e3),
        ("tcp_rr_mean", "us", echo.mean / 1e3),
        ("tcp_rr_p50", "us", echo.p50 as f64 / 1e3),
        ("tcp_rr_p99", "us", echo.p99 as f64 / 1e3),
        ("tcp_1_stream", "Gbit/s", stream.arrived as f64 * 8.0 / stream.seconds / 1e9),
    ];
    Ok(values.map(|(case, unit, value)| (format!("{name}_{case}"), unit, value)).to_vec())
}

/// Single runs of the programs, in a process and a namespace of their own.
fn runs() -> anyhow::Result<Vec<Value>> {
    let mut command = Command::new(std::env::current_exe().context("the path of this program")?);
    command.arg("service-runs");
    let took: Vec<Took> = process::run(command)?.json()?;
    Ok(took.into_iter().map(|(name, took)| (name, "ns", took)).collect())
}
