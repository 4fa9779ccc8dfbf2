//! The answers of servers, and the failures of requests.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::Report;

/// The answer of every server of the testkit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Name of the server.
    pub name: String,
    /// Its host.
    pub host: String,
    /// Address that the request came from, as the server saw it.
    pub client: IpAddr,
    /// Port that it came from.
    pub client_port: u16,
    /// The text that the client sent.
    #[serde(default)]
    pub said: String,
}

impl Answer {
    /// The answer to `client`.
    pub fn new(name: &str, host: &str, client: SocketAddr) -> Self {
        Self {
            name: name.to_owned(),
            host: host.to_owned(),
            client: client.ip().to_canonical(),
            client_port: client.port(),
            said: String::new(),
        }
    }
}

/// The kinds of failed requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The name did not resolve.
    Resolve,
    /// No connection: refused or unreachable.
    Connect,
    /// No connection before the timeout.
    ConnectTimeout,
    /// The connection was reset.
    Reset,
    /// No answer before the timeout.
    Timeout,
    /// The connection ended before the answer did.
    ShortRead,
    /// An unexpected answer.
    BadAnswer,
    /// Anything else.
    Other,
}

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind of failure.
    pub kind: FailureKind,
    /// The server, and the system's error message.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl Failure {
    /// A failure of `kind`.
    pub fn new(kind: FailureKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }

    /// A failure to connect to `target`.
    pub fn connecting(target: &impl fmt::Display, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => FailureKind::ConnectTimeout,
            _ => FailureKind::Connect,
        };
        Self::new(kind, format!("{target}: {error}"))
    }

    /// A failure in talking with `target`.
    pub fn talking(target: &impl fmt::Display, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => FailureKind::Timeout,
            // The error of a socket after a reset that arrived between two calls.
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected => FailureKind::Reset,
            io::ErrorKind::UnexpectedEof => FailureKind::ShortRead,
            io::ErrorKind::InvalidData => FailureKind::BadAnswer,
            _ => FailureKind::Other,
        };
        Self::new(kind, format!("{target}: {error}"))
    }
}

/// Result of asking a number of times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The answers.
    pub answers: Vec<Answer>,
    /// The failures.
    pub failures: Vec<Failure>,
}

impl Report for Asked {
    fn good(&self) -> bool {
        self.failures.is_empty()
    }
}

impl Asked {
    /// Asks `count` times.
    pub fn collect(count: u32, mut ask: impl FnMut() -> Result<Answer, Failure>) -> Self {
        let mut asked = Self::default();
        for _ in 0..count {
            match ask() {
                Ok(answer) => asked.answers.push(answer),
                Err(failure) => asked.failures.push(failure),
            }
        }
        asked
    }
}

/// The first IPv4 address of HOST:PORT; the first address if it has no IPv4 address.
pub fn look_up(target: &str) -> Result<SocketAddr, Failure> {
    let failed = |why: String| Failure::new(FailureKind::Resolve, format!("{target}: {why}"));
    let addresses: Vec<_> = target.to_socket_addrs().map_err(|e| failed(e.to_string()))?.collect();
    let first = addresses.iter().find(|a| a.is_ipv4()).or(addresses.first());
    first.copied().ok_or_else(|| failed("no address".to_owned()))
}

/// Connects and sets the timeouts.
pub fn connect(target: &str, timeout: Duration) -> Result<std::net::TcpStream, Failure> {
    let address = look_up(target)?;
    let stream = std::net::TcpStream::connect_timeout(&address, timeout)
        .map_err(|e| Failure::connecting(&address, &e))?;
    stream
        .set_read_timeout(Some(timeout))
        .and_then(|()| stream.set_write_timeout(Some(timeout)))
        .and_then(|()| stream.set_nodelay(true))
        .map_err(|e| Failure::talking(&address, &e))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart_by_what_the_system_says() {
        let kind = |e: io::ErrorKind| Failure::talking(&"x", &e.into()).kind;
        assert_eq!(kind(io::ErrorKind::WouldBlock), FailureKind::Timeout);
        assert_eq!(kind(io::ErrorKind::ConnectionReset), FailureKind::Reset);
        assert_eq!(kind(io::ErrorKind::UnexpectedEof), FailureKind::ShortRead);
        let kind = |e: io::ErrorKind| Failure::connecting(&"x", &e.into()).kind;
        assert_eq!(kind(io::ErrorKind::ConnectionRefused), FailureKind::Connect);
        assert_eq!(kind(io::ErrorKind::TimedOut), FailureKind::ConnectTimeout);
    }

    #[test]
    fn a_refused_connection_is_a_failure_to_connect() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        drop(listener);
        let failure = connect(&address, Duration::from_secs(1)).expect_err("nobody listens");
        assert_eq!(failure.kind, FailureKind::Connect);
    }
}
