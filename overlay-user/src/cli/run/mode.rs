//! The combined meaning of `--network` and the other options of `overlay run`.

use std::{convert::Infallible, str::FromStr};

use super::RunArgs;
use crate::cli::error::usage_error;

/// One `--network`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NetworkArg {
    Host,
    None,
    Container(String),
    Named(String),
}

impl FromStr for NetworkArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "host" => Self::Host,
            "none" => Self::None,
            _ => match text.strip_prefix("container:") {
                Some(name) => Self::Container(name.to_owned()),
                None => Self::Named(text.to_owned()),
            },
        })
    }
}

/// Where the command runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// In the host's own namespace.
    Host,
    /// In a fresh namespace with only `lo`.
    None,
    /// In the namespace of another container.
    Container(String),
    /// In a fresh namespace with an interface on each of these; empty: the service's.
    Networks(Vec<String>),
}

impl RunArgs {
    /// The mode, if the options go together.
    pub(super) fn mode(&self) -> anyhow::Result<Mode> {
        let mode = match &self.network[..] {
            [] if self.options.service.is_some() => Mode::Networks(vec![]),
            [] => Mode::Networks(vec!["bridge".to_owned()]),
            [NetworkArg::Host] => Mode::Host,
            [NetworkArg::None] => Mode::None,
            [NetworkArg::Container(name)] => Mode::Container(name.clone()),
            several => Mode::Networks(several.iter().map(named).collect::<Result<_, _>>()?),
        };
        match &mode {
            Mode::Host => self.refuse_options(
                "host",
                "the command uses the host's own addresses, so every port it opens is on the host",
            )?,
            Mode::None => self.refuse_options("none", "there is no network to reach it over")?,
            Mode::Container(name) => self.refuse_options(
                &format!("container:{name}"),
                "addresses, names and ports are those of that container; give them to it",
            )?,
            Mode::Networks(_) => {}
        }
        Ok(mode)
    }

    /// Rejects options that need an endpoint of their own, with the reason.
    fn refuse_options(&self, mode: &str, reason: &str) -> anyhow::Result<()> {
        let options = &self.options;
        let hostname = self.hostname.is_some() && mode != "none";
        let given = [
            ("-p", !options.publish.is_empty()),
            ("--service", options.service.is_some()),
            ("--weight", options.weight.is_some()),
            ("--ip", !options.ip.is_empty()),
            ("--alias", !options.alias.is_empty()),
            ("--hostname", hostname),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(usage_error(
                format!("{option} does not go with --network {mode}: {reason}"),
                format!("leave out {option}, or run it on a network of its own"),
            )),
            None => Ok(()),
        }
    }
}

/// The name of one of several networks.
fn named(network: &NetworkArg) -> anyhow::Result<String> {
    let mode = match network {
        NetworkArg::Named(name) => return Ok(name.clone()),
        NetworkArg::Host => "host".to_owned(),
        NetworkArg::None => "none".to_owned(),
        NetworkArg::Container(name) => format!("container:{name}"),
    };
    Err(usage_error(
        format!("--network {mode} does not go with another --network"),
        "it is a mode of its own; leave out the others",
    ))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(args: &[&str]) -> anyhow::Result<Box<RunArgs>> {
        let args = [&["overlay", "run"], args].concat();
        match Cli::try_parse_from(args)?.command {
            Command::Run(args) => Ok(args),
            other => panic!("parsed as {other:?}"),
        }
    }

    fn mode(args: &[&str]) -> anyhow::Result<Mode> {
        parse(args)?.mode()
    }

    #[test]
    fn each_mode_is_told_by_its_name() {
        let networks =
            |names: &[&str]| Mode::Networks(names.iter().map(|name| (*name).to_owned()).collect());
        for (args, expected) in [
            (&["--", "true"][..], networks(&["bridge"])),
            (&["--service", "hello", "--", "true"], networks(&[])),
            (&["--network", "host", "--", "true"], Mode::Host),
            (&["--network", "none", "--", "true"], Mode::None),
            (&["--network", "container:web", "--", "true"], Mode::Container("web".to_owned())),
            (&["--network", "a", "--network", "b", "--", "true"], networks(&["a", "b"])),
            (&["--service", "hello", "--network", "a", "--", "true"], networks(&["a"])),
            (&["--network", "none", "--hostname", "h", "--", "true"], Mode::None),
        ] {
            assert_eq!(
                mode(args).unwrap_or_else(|e| panic!("{args:?}: {e}")),
                expected,
                "{args:?}"
            );
        }
    }

    #[test]
    fn the_command_keeps_its_own_options_with_and_without_dashes() {
        for args in [
            &["--network", "a", "--", "sh", "-c", "echo --network b"][..],
            &["--network", "a", "sh", "-c", "echo --network b"],
        ] {
            let args = parse(args).expect("parsed");
            assert_eq!(args.command, ["sh", "-c", "echo --network b"]);
            assert_eq!(args.network, [NetworkArg::Named("a".to_owned())]);
        }
        let args = parse(&["ls", "--network", "-p", "--help", "--", "x"]).expect("parsed");
        assert_eq!(args.command, ["ls", "--network", "-p", "--help", "--", "x"]);
    }

    #[test]
    fn what_does_not_go_together_is_refused_with_the_reason() {
        for (args, quoted) in [
            (
                &["--network", "host", "-p", "80:80", "--", "true"][..],
                "-p does not go with --network host: the command uses the host's own addresses",
            ),
            (&["--network", "none", "--ip", "10.0.0.9", "--", "true"], "--ip does not go with"),
            (
                &["--network", "container:web", "--hostname", "x", "--", "true"],
                "--hostname does not go with --network container:web",
            ),
            (&["--network", "host", "--network", "a", "--", "true"], "a mode of its own"),
            (&["--network", "a", "--network", "container:b", "--", "true"], "container:b does not"),
            (&["--network", "a"], "<COMMAND>"),
            (&["--network", "a", "--stop-timeout", "x", "--", "true"], "\"x\" is no time"),
            (&["--hostname", "a b", "--", "true"], "invalid host name \"a b\""),
            (&["-p", "80:80:80:80", "--", "true"], "\"80:80:80:80\""),
        ] {
            let error = mode(args).expect_err(&format!("{args:?}")).to_string();
            assert!(error.contains(quoted), "{args:?}: {error}");
        }
    }
}
