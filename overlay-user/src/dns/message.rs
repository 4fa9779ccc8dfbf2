//! Wire format of queries and replies.

use hickory_proto::{
    op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, rdata},
    serialize::binary::{BinDecodable as _, BinDecoder},
};

use super::{TTL_SECONDS, resolve::Answer};

/// Bytes of a header (RFC 1035, 4.1.1).
pub(super) const HEADER_LEN: usize = 12;

/// Largest UDP message that we accept. We also send this size if the client accepts it.
pub(super) const MAX_UDP: usize = 4096;

/// Largest UDP message without EDNS (RFC 1035, 4.2.1).
const MIN_UDP: usize = 512;

/// Transport of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// A well-formed query.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// The unchanged message, for forwarding.
    pub bytes: Vec<u8>,
    /// Its only question.
    pub query: Query,
    metadata: Metadata,
    edns: Option<Edns>,
    /// Largest reply, in bytes.
    limit: usize,
}

/// Why a message is not a [`Request`].
#[derive(Debug)]
pub(super) enum Rejected {
    /// Dropped: a reply could start a loop, or the message has no header to reply to.
    Silently,
    /// Answered with this reply.
    With(Vec<u8>),
}

impl Request {
    /// Reads a query. Rejects any other message.
    pub fn parse(bytes: &[u8], transport: Transport) -> Result<Self, Rejected> {
        let Ok(header) = Header::read(&mut BinDecoder::new(bytes)) else {
            return Err(Rejected::Silently);
        };
        if header.message_type == MessageType::Response {
            return Err(Rejected::Silently);
        }
        let reject = |code| Rejected::With(header_only(&header.metadata, code));
        if header.op_code != OpCode::Query {
            return Err(reject(ResponseCode::NotImp));
        }
        let Ok(message) = Message::from_vec(bytes) else {
            return Err(reject(ResponseCode::FormErr));
        };
        let Ok([query]) = <[Query; 1]>::try_from(message.queries) else {
            return Err(reject(ResponseCode::FormErr));
        };
        let limit = match (transport, &message.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => MIN_UDP,
            (Transport::Udp, Some(edns)) => usize::from(edns.max_payload()).clamp(MIN_UDP, MAX_UDP),
        };
        let bytes = bytes.to_vec();
        let request = Self { bytes, query, metadata: header.metadata, edns: message.edns, limit };
        if request.edns.as_ref().is_some_and(|e| e.version() > 0) {
            return Err(Rejected::With(request.error(ResponseCode::BADVERS)));
        }
        Ok(request)
    }

    /// Encodes the reply for one of our answers.
    pub fn reply(&self, answer: &Answer) -> Vec<u8> {
        match answer {
            Answer::Addresses(addresses) => {
                self.records(addresses.iter().map(|ip| RData::A(rdata::A(*ip))).collect())
            }
            Answer::Addresses6(addresses) => {
                self.records(addresses.iter().map(|ip| RData::AAAA(rdata::AAAA(*ip))).collect())
            }
            Answer::Name(name) => match Name::from_labels(name.split('.').map(str::as_bytes)) {
                Ok(name) => self.records(vec![RData::PTR(rdata::PTR(name))]),
                Err(_) => self.error(ResponseCode::ServFail),
            },
            Answer::NoData => self.records(vec![]),
            Answer::NameError => {
                let mut message = self.message(ResponseCode::NXDomain);
                message.metadata.authoritative = true;
                encode(&message)
            }
            Answer::Refused => self.error(ResponseCode::Refused),
            Answer::NotReady | Answer::Forward => self.error(ResponseCode::ServFail),
        }
    }

    /// Encodes a reply without records.
    pub fn error(&self, code: ResponseCode) -> Vec<u8> {
        encode(&self.message(code))
    }

    /// Adapts an upstream's reply for the client: sets the client's id and limits the length.
    pub fn relay(&self, mut reply: Vec<u8>) -> Vec<u8> {
        let Ok(header) = Header::read(&mut BinDecoder::new(&reply)) else {
            return self.error(ResponseCode::ServFail);
        };
        if header.counts.queries != 1 {
            // The upstream's error has no question, so some resolvers would not match it to their
            // query.
            return self.error(header.response_code);
        }
        if reply.len() > self.limit {
            let mut message = self.message(header.response_code);
            message.metadata.authoritative = header.authoritative;
            message.metadata.truncation = true;
            return encode(&message);
        }
        reply[..2].copy_from_slice(&self.metadata.id.to_be_bytes());
        reply
    }

    /// Encodes as many of the records as fit. A truncated reply has TC set. It still contains
    /// records, for resolvers that do not ask again over TCP (musl before 1.2.4).
    fn records(&self, records: Vec<RData>) -> Vec<u8> {
        let mut message = self.message(ResponseCode::NoError);
        message.metadata.authoritative = true;
        let empty = encode(&message);
        message.add_answers(
            records
                .into_iter()
                .map(|data| Record::from_rdata(self.query.name.clone(), TTL_SECONDS, data)),
        );
        let mut reply = encode(&message);
        while reply.len() > self.limit && !message.answers.is_empty() {
            message.metadata.truncation = true;
            let per_record = (reply.len() - empty.len()).div_ceil(message.answers.len()).max(1);
            let fit = self.limit.saturating_sub(empty.len()) / per_record;
            message.answers.truncate(fit.min(message.answers.len() - 1));
            reply = encode(&message);
        }
        reply
    }

    fn message(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.metadata.id, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        if let Some(asked) = &self.edns {
            // RFC 6891, 6.1.1: an OPT record in the query requires one in the reply.
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP as u16);
            edns.set_version(0);
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            message.set_edns(edns);
        }
        message
    }
}

/// Encodes a reply to a message if only its header could be read.
fn header_only(metadata: &Metadata, code: ResponseCode) -> Vec<u8> {
    let mut message = Message::response(metadata.id, metadata.op_code);
    message.metadata = Metadata::response_from_request(metadata);
    message.metadata.response_code = code;
    encode(&message)
}

/// Encodes a message. This fails only for messages over 64 KiB, which become an empty SERVFAIL.
fn encode(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_else(|error| {
        tracing::warn!("a DNS reply cannot be encoded: {error}");
        let Metadata { id, op_code, .. } = message.metadata;
        let failed = Message::error_msg(id, op_code, ResponseCode::ServFail);
        failed.to_vec().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests;
