//! Published ports, in Docker's notation.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Transport protocol of a published port.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP. The published port equals the target port.
    Sctp,
}

impl Protocol {
    /// Returns the IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => overlay_common::wire::PROTO_TCP,
            Self::Udp => overlay_common::wire::PROTO_UDP,
            Self::Sctp => overlay_common::wire::PROTO_SCTP,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// The nodes on which a published port answers.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// On every node.
    #[default]
    Ingress,
    /// On the nodes that have a backend, and only for those backends.
    Host,
}

/// One published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Port {
    /// Port of the hosts; `None` in a request chooses one from 30000 to 32767.
    pub published: Option<u16>,
    /// Port of the backends.
    pub target: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The nodes on which it answers.
    pub mode: PublishMode,
}

/// Why the text of a port could not be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid port {text:?}: {why} (write PUBLISHED:TARGET[/tcp|udp|sctp], TARGET alone, or \
     published=8080,target=80[,protocol=tcp][,mode=ingress|host])"
)]
pub struct PortParseError {
    text: String,
    why: String,
}

impl Port {
    /// Parses Docker's short form (`8080:80`, `8080:80/udp`, `80`, ranges `8000-8003:80-83`) or its
    /// long form (`published=8080,target=80,protocol=tcp,mode=host`). A range gives several ports.
    ///
    /// # Errors
    /// [`PortParseError`] quotes the text and explains the error.
    pub fn parse(text: &str) -> Result<Vec<Self>, PortParseError> {
        let parsed = if text.contains('=') { parse_long(text) } else { parse_short(text) };
        parsed.map_err(|why| PortParseError { text: text.to_owned(), why })
    }
}

fn number(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(0) => Err("port 0 is not a port".to_owned()),
        Ok(port) => Ok(port),
        Err(_) => Err(format!("{text:?} is not a port from 1 to 65535")),
    }
}

fn range(text: &str) -> Result<(u16, u16), String> {
    match text.split_once('-') {
        None => number(text).map(|port| (port, port)),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                Err(format!("range {text:?} is backwards"))
            } else {
                Ok((first, last))
            }
        }
    }
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        other => Err(format!("protocol {other:?} is none of tcp, udp and sctp")),
    }
}

fn expand(
    published: Option<(u16, u16)>,
    target: (u16, u16),
    protocol: Protocol,
    mode: PublishMode,
) -> Result<Vec<Port>, String> {
    let count = target.1 - target.0;
    if let Some((first, last)) = published
        && last - first != count
    {
        return Err("the published and the target range differ in length".to_owned());
    }
    Ok((0..=count)
        .map(|i| Port {
            published: published.map(|(first, _)| first + i),
            target: target.0 + i,
            protocol,
            mode,
        })
        .collect())
}

fn parse_short(text: &str) -> Result<Vec<Port>, String> {
    let (ports, transport) = match text.split_once('/') {
        Some((ports, transport)) => (ports, protocol(transport)?),
        None => (text, Protocol::Tcp),
    };
    match ports.split(':').collect::<Vec<_>>()[..] {
        [target] => expand(None, range(target)?, transport, PublishMode::Ingress),
        [published, target] => {
            expand(Some(range(published)?), range(target)?, transport, PublishMode::Ingress)
        }
        _ => Err("a host address is not taken: published ports answer on every address".to_owned()),
    }
}

fn parse_long(text: &str) -> Result<Vec<Port>, String> {
    let (mut published, mut target) = (None, None);
    let (mut transport, mut mode) = (Protocol::Tcp, PublishMode::Ingress);
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("published", value)) => published = Some(range(value)?),
            Some(("target", value)) => target = Some(range(value)?),
            Some(("protocol", value)) => transport = protocol(value)?,
            Some(("mode", "ingress")) => mode = PublishMode::Ingress,
            Some(("mode", "host")) => mode = PublishMode::Host,
            Some(("mode", value)) => {
                return Err(format!("mode {value:?} is neither ingress nor host"));
            }
            _ => return Err(format!("field {field:?} is not known")),
        }
    }
    expand(published, target.ok_or("target= is missing")?, transport, mode)
}

impl FromStr for Port {
    type Err = PortParseError;

    /// Like [`Port::parse`], for exactly one port.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Self::parse(text)?[..] {
            [port] => Ok(port),
            _ => Err(PortParseError { text: text.to_owned(), why: "one port expected".to_owned() }),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.published {
            Some(published) => write!(f, "*:{published}->{}/{}", self.target, self.protocol),
            None => write!(f, "*:auto->{}/{}", self.target, self.protocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(published: u16, target: u16) -> Port {
        Port {
            published: Some(published),
            target,
            protocol: Protocol::Tcp,
            mode: PublishMode::Ingress,
        }
    }

    #[test]
    fn short_and_long_forms_mean_the_same() {
        assert_eq!(Port::parse("8080:80"), Ok(vec![port(8080, 80)]));
        assert_eq!(Port::parse("published=8080,target=80"), Ok(vec![port(8080, 80)]));
        assert_eq!(
            Port::parse("53:5353/udp"),
            Ok(vec![Port { protocol: Protocol::Udp, ..port(53, 5353) }])
        );
        assert_eq!(
            Port::parse("published=80,target=80,mode=host"),
            Ok(vec![Port { mode: PublishMode::Host, ..port(80, 80) }])
        );
        assert_eq!(Port::parse("80"), Ok(vec![Port { published: None, ..port(1, 80) }]));
    }

    #[test]
    fn a_range_gives_its_ports_in_order() {
        assert_eq!(Port::parse("8000-8001:80-81"), Ok(vec![port(8000, 80), port(8001, 81)]));
    }

    #[test]
    fn what_is_no_port_is_refused_with_the_reason() {
        for (text, why) in [
            ("0:80", "port 0"),
            ("80:65536", "65536"),
            ("80:x", "\"x\""),
            ("", "1 to 65535"),
            ("8001-8000:80-81", "backwards"),
            ("8000-8002:80-81", "differ in length"),
            ("127.0.0.1:80:80", "every address"),
            ("80:80/icmp", "none of tcp, udp and sctp"),
            ("target=80,mode=both", "neither ingress nor host"),
            ("published=80", "target= is missing"),
            ("target=80,tls=1", "not known"),
        ] {
            let error = Port::parse(text).expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
