//! `resolve` and `dns-serve`.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    str::FromStr as _,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use serde::{Deserialize, Serialize};

use super::{Report, serve};

/// Parameters of `resolve`.
#[derive(Clone, Debug, Args)]
pub struct ResolveArgs {
    /// Name to ask for; an address with `--kind PTR`.
    name: String,
    /// The server.
    #[arg(long, default_value = "127.0.0.11:53")]
    server: SocketAddr,
    /// Type of the record: A, AAAA, PTR, TXT, ….
    #[arg(long, default_value = "A")]
    kind: String,
    /// Over TCP.
    #[arg(long)]
    tcp: bool,
    /// Milliseconds without an answer that make a failure.
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
}

/// The answer of a DNS server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Response code: "No Error", "Non-Existent Domain", ….
    pub code: String,
    /// A and AAAA records, in the order of the answer.
    pub addresses: Vec<IpAddr>,
    /// PTR and CNAME records, without the final dot.
    pub names: Vec<String>,
    /// Least time to live of the answers, in seconds.
    pub ttl: Option<u32>,
    /// The answer did not fit and was cut.
    pub truncated: bool,
}

impl Report for Resolved {
    /// Every answer counts as good: the caller checks the code.
    fn good(&self) -> bool {
        true
    }
}

/// Asks once.
pub fn resolve(args: &ResolveArgs) -> anyhow::Result<Resolved> {
    let kind = RecordType::from_str(&args.kind.to_uppercase())
        .ok()
        .with_context(|| format!("unknown record type {:?}", args.kind))?;
    let name = match args.name.parse::<IpAddr>() {
        Ok(address) if kind == RecordType::PTR => Name::from(address),
        _ => Name::from_ascii(&args.name)
            .ok()
            .with_context(|| format!("{:?} is no domain name", args.name))?,
    };
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name, kind));
    let bytes = query.to_vec().context("encoding the query")?;
    let timeout = Some(Duration::from_millis(args.timeout_ms));
    let answer = if args.tcp {
        ask_tcp(args.server, &bytes, timeout)
    } else {
        ask_udp(args.server, &bytes, timeout)
    }
    .with_context(|| format!("{} did not answer", args.server))?;
    let answer = Message::from_vec(&answer).ok().context("the answer is no DNS message")?;
    ensure!(answer.metadata.id == query.metadata.id, "the answer is to another query");
    Ok(read(&answer))
}

fn read(answer: &Message) -> Resolved {
    let mut resolved = Resolved {
        code: answer.metadata.response_code.to_string(),
        addresses: vec![],
        names: vec![],
        ttl: answer.answers.iter().map(|record| record.ttl).min(),
        truncated: answer.metadata.truncation,
    };
    for record in &answer.answers {
        match &record.data {
            RData::A(a) => resolved.addresses.push(IpAddr::V4(a.0)),
            RData::AAAA(a) => resolved.addresses.push(IpAddr::V6(a.0)),
            RData::PTR(name) => resolved.names.push(without_dot(&name.0)),
            RData::CNAME(name) => resolved.names.push(without_dot(&name.0)),
            _ => {}
        }
    }
    resolved
}

fn without_dot(name: &Name) -> String {
    name.to_string().trim_end_matches('.').to_owned()
}

fn ask_udp(
    server: SocketAddr,
    query: &[u8],
    timeout: Option<Duration>,
) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(timeout)?;
    socket.connect(server)?;
    socket.send(query)?;
    let mut buffer = vec![0; 65536];
    let count = socket.recv(&mut buffer)?;
    buffer.truncate(count);
    Ok(buffer)
}

fn ask_tcp(
    server: SocketAddr,
    query: &[u8],
    timeout: Option<Duration>,
) -> std::io::Result<Vec<u8>> {
    let mut stream =
        TcpStream::connect_timeout(&server, timeout.unwrap_or(Duration::from_secs(5)))?;
    stream.set_read_timeout(timeout)?;
    write_framed(&mut stream, query)?;
    read_framed(&mut stream)
}

/// RFC 1035, 4.2.2: two bytes of length before each message.
fn write_framed(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}

fn read_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// Answers for the names given, with NXDOMAIN for all others, until SIGTERM.
pub fn serve(listen: SocketAddr, records: &[String]) -> anyhow::Result<ExitCode> {
    serve::stop_on_signals()?;
    let mut known: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
    for record in records {
        let Some((name, address)) = record.split_once('=') else {
            bail!("{record:?} is not NAME=ADDRESS");
        };
        let address = address.parse().with_context(|| format!("the address in {record:?}"))?;
        known.entry(name.to_lowercase()).or_default().push(address);
    }
    let udp = UdpSocket::bind(listen).with_context(|| format!("{listen}/udp"))?;
    let tcp = TcpListener::bind(listen).with_context(|| format!("{listen}/tcp"))?;
    tcp.set_nonblocking(true)?;
    println!("listening: {listen}");
    let mut buffer = vec![0; 65536];
    while !serve::stopping() {
        if serve::wait_readable(&udp, Duration::from_millis(20))? {
            let (count, from) = udp.recv_from(&mut buffer)?;
            if let Some(answer) = answer(&buffer[..count], &known) {
                let _ = udp.send_to(&answer, from);
            }
        }
        if let Ok((stream, _)) = tcp.accept() {
            // A client that breaks off has itself to blame.
            let _ = answer_tcp(stream, &known);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn answer_tcp(
    mut stream: TcpStream,
    known: &BTreeMap<String, Vec<Ipv4Addr>>,
) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let query = read_framed(&mut stream)?;
    match answer(&query, known) {
        Some(answer) => write_framed(&mut stream, &answer),
        None => Ok(()),
    }
}

fn answer(query: &[u8], known: &BTreeMap<String, Vec<Ipv4Addr>>) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?;
    let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_query(question.clone());
    match known.get(&without_dot(question.name()).to_lowercase()) {
        None => answer.metadata.response_code = ResponseCode::NXDomain,
        Some(addresses) if question.query_type() == RecordType::A => {
            for address in addresses {
                let data = RData::A(rdata::A(*address));
                answer.add_answer(Record::from_rdata(question.name().clone(), 60, data));
            }
        }
        Some(_) => {}
    }
    answer.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(name: &str, kind: RecordType) -> Resolved {
        let known = BTreeMap::from([("example.org".to_owned(), vec![Ipv4Addr::new(192, 0, 2, 1)])]);
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        let answer = answer(&query.to_vec().expect("encoded"), &known).expect("an answer");
        read(&Message::from_vec(&answer).expect("decoded"))
    }

    #[test]
    fn the_test_server_knows_its_names_in_any_case_and_no_others() {
        let known = ask("Example.ORG.", RecordType::A);
        assert_eq!(known.addresses, [IpAddr::from([192, 0, 2, 1])]);
        assert_eq!(ask("example.org.", RecordType::AAAA).code, "No Error");
        assert_eq!(ask("example.net.", RecordType::A).code, "Non-Existent Domain");
    }
}
