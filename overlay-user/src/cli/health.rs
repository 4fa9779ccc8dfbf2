//! The options of `overlay service` about health checks.

use std::time::Duration;

use clap::{ArgGroup, Args};

use super::args;
use crate::{api::HealthChange, model::Probe};

/// How backends are checked.
#[derive(Clone, Debug, Default, Args)]
#[command(group = ArgGroup::new("probe"))]
pub(super) struct HealthArgs {
    /// Check that a TCP connection to this port of a backend comes about
    #[arg(long, value_name = "PORT", group = "probe")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    health_tcp: Option<u16>,
    /// Check that a GET is answered with a status from 200 to 399
    #[arg(long, value_name = ":PORT/PATH", group = "probe", value_parser = http)]
    health_http: Option<Probe>,
    /// Check that a shell command succeeds in the backend's namespaces
    #[arg(long, value_name = "COMMAND", group = "probe")]
    health_cmd: Option<String>,
    /// Time between checks [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    health_interval: Option<Duration>,
    /// How long a check may take [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    health_timeout: Option<Duration>,
    /// How many failures in a row make a backend unhealthy [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    health_retries: Option<u32>,
    /// For how long after a backend's start failures do not count [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    health_start_period: Option<Duration>,
}

impl HealthArgs {
    /// What is to change.
    pub(super) fn change(self, remove: bool) -> HealthChange {
        let Self {
            health_tcp,
            health_http,
            health_cmd,
            health_interval,
            health_timeout,
            health_retries,
            health_start_period,
        } = self;
        let probe = health_tcp.map(Probe::Tcp).or(health_http);
        HealthChange {
            remove,
            probe: probe.or(health_cmd.map(Probe::Command)),
            interval_ms: health_interval.map(args::millis),
            timeout_ms: health_timeout.map(args::millis),
            retries: health_retries,
            start_period_ms: health_start_period.map(args::millis),
        }
    }
}

/// `:PORT/PATH`; without a path, `/`.
fn http(text: &str) -> Result<Probe, String> {
    let wrong = || format!("{text:?} is not :PORT/PATH");
    let rest = text.strip_prefix(':').ok_or_else(wrong)?;
    let (port, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    match port.parse() {
        Ok(0) | Err(_) => Err(format!("{}: {port:?} is not a port from 1 to 65535", wrong())),
        Ok(port) => Ok(Probe::Http { port, path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_and_a_path_are_told_apart() {
        let probe = |port, path: &str| Ok(Probe::Http { port, path: path.to_owned() });
        assert_eq!(http(":80/healthz?full=1"), probe(80, "/healthz?full=1"));
        assert_eq!(http(":8080"), probe(8080, "/"));
        for text in ["", "80", "80/x", ":/x", ":0/x", ":65536/x", ":http/"] {
            assert!(http(text).expect_err(text).contains(&format!("{text:?}")));
        }
    }
}
