use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::dns::testing::{addresses, bytes, decoded, query, request};
use hickory_proto::rr::RecordType;

fn many(count: u32) -> Answer {
    Answer::Addresses((1..=count).map(|n| Ipv4Addr::from(0x0a00_0000 + n)).collect())
}

fn with_edns(payload: u16) -> Message {
    let mut message = query("Hello.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    edns.set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

fn rejected(bytes: &[u8]) -> Rejected {
    Request::parse(bytes, Transport::Udp).expect_err("rejected")
}

fn rejected_with(bytes: &[u8]) -> Message {
    match rejected(bytes) {
        Rejected::With(reply) => decoded(&reply),
        Rejected::Silently => panic!("dropped"),
    }
}

#[test]
fn a_reply_repeats_id_question_and_case_and_is_authoritative() {
    let asked = query("HeLLo.", RecordType::A);
    let reply = decoded(&request(&asked, Transport::Udp).reply(&many(1)));
    assert_eq!(reply.metadata.id, asked.metadata.id);
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    assert_eq!(reply.queries[0].name.to_string(), "HeLLo.");
    assert_eq!(reply.answers[0].name.to_string(), "HeLLo.");
    assert_eq!(reply.answers[0].ttl, TTL_SECONDS);
    let Metadata { authoritative, recursion_desired, recursion_available, .. } = reply.metadata;
    assert!(authoritative && recursion_desired && recursion_available);
    assert!(!reply.metadata.truncation);
    assert!(reply.edns.is_none(), "no OPT record without one in the query");
}

#[test]
fn no_data_and_no_such_name_are_told_apart() {
    let request = request(&query("hello.", RecordType::AAAA), Transport::Udp);
    for (answer, code) in [
        (Answer::NoData, ResponseCode::NoError),
        (Answer::NameError, ResponseCode::NXDomain),
        (Answer::Refused, ResponseCode::Refused),
        (Answer::NotReady, ResponseCode::ServFail),
    ] {
        let reply = decoded(&request.reply(&answer));
        assert_eq!(reply.metadata.response_code, code, "{answer:?}");
        assert!(reply.answers.is_empty());
    }
}

#[test]
fn a_name_with_dots_and_underscores_is_a_full_name_in_ptr() {
    let request = request(&query("2.1.0.10.in-addr.arpa.", RecordType::PTR), Transport::Udp);
    let reply = decoded(&request.reply(&Answer::Name("my_app.1.mynet".to_owned())));
    let RData::PTR(rdata::PTR(name)) = &reply.answers[0].data else { panic!("{reply:?}") };
    assert_eq!(name.to_string(), "my_app.1.mynet.");
    let reply = decoded(&request.reply(&Answer::Name("a..b".to_owned())));
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "not a name at all");
}

#[test]
fn without_edns_a_reply_over_512_bytes_is_cut_and_says_so() {
    let request = request(&query("hello.", RecordType::A), Transport::Udp);
    let cut = request.reply(&many(100));
    assert!(cut.len() <= 512 && cut.len() > 480, "{} bytes", cut.len());
    let reply = decoded(&cut);
    assert!(reply.metadata.truncation);
    assert_eq!(addresses(&reply).len(), (512 - 12 - 11) / 16, "as many as fit");
    assert!(!decoded(&request.reply(&many(30))).metadata.truncation, "30 fit");
}

#[test]
fn with_edns_the_clients_size_counts_and_the_reply_has_edns() {
    let request = request(&with_edns(1232), Transport::Udp);
    let whole = decoded(&request.reply(&many(70)));
    assert!(!whole.metadata.truncation);
    assert_eq!(addresses(&whole).len(), 70);
    let edns = whole.edns.expect("an OPT record");
    assert!(edns.flags().dnssec_ok, "DO is copied (RFC 3225)");
    let cut = request.reply(&many(100));
    assert!(cut.len() <= 1232, "{} bytes", cut.len());
    let cut = decoded(&cut);
    assert!(cut.metadata.truncation && cut.edns.is_some());
}

#[test]
fn over_tcp_only_what_no_message_can_hold_is_cut() {
    let request = request(&query("hello.", RecordType::A), Transport::Tcp);
    let whole = decoded(&request.reply(&many(2000)));
    assert!(!whole.metadata.truncation);
    assert_eq!(addresses(&whole).len(), 2000);
    let cut = decoded(&request.reply(&many(10_000)));
    assert!(cut.metadata.truncation);
    assert!(addresses(&cut).len() > 2000);
}

#[test]
fn a_newer_edns_is_answered_with_badvers() {
    let mut message = with_edns(1232);
    if let Some(edns) = &mut message.edns {
        edns.set_version(1);
    }
    let reply = rejected_with(&bytes(&message));
    assert_eq!(u16::from(reply.metadata.response_code), 16);
    assert_eq!(reply.edns.expect("an OPT record").version(), 0);
}

#[test]
fn other_opcodes_are_not_implemented() {
    for op_code in [OpCode::Status, OpCode::Notify, OpCode::Update, OpCode::Unknown(9)] {
        let mut message = query("hello.", RecordType::A);
        message.metadata.op_code = op_code;
        let reply = rejected_with(&bytes(&message));
        assert_eq!(reply.metadata.response_code, ResponseCode::NotImp, "{op_code:?}");
        assert_eq!((reply.metadata.id, reply.metadata.op_code), (message.metadata.id, op_code));
    }
}

#[test]
fn what_cannot_be_read_is_a_format_error_and_what_could_loop_is_dropped() {
    let good = bytes(&query("hello.", RecordType::A));
    assert!(matches!(rejected(&good[..HEADER_LEN - 1]), Rejected::Silently));
    assert!(matches!(rejected(&[]), Rejected::Silently));
    let response = bytes(&Message::response(7, OpCode::Query));
    assert!(matches!(rejected(&response), Rejected::Silently));

    let mut two_questions = query("hello.", RecordType::A);
    two_questions.add_query(two_questions.queries[0].clone());
    let mut looping_name = good.clone();
    looping_name[HEADER_LEN..HEADER_LEN + 2].copy_from_slice(&[0xc0, HEADER_LEN as u8]);
    let no_question = bytes(&Message::query());
    for malformed in [&good[..good.len() - 1], &bytes(&two_questions), &looping_name, &no_question]
    {
        let reply = rejected_with(malformed);
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
        assert_eq!(reply.metadata.id.to_be_bytes(), malformed[..2]);
    }
}

#[test]
fn a_relayed_reply_gets_the_clients_id_and_is_cut_to_its_size() {
    let request = request(&query("example.org.", RecordType::A), Transport::Udp);
    let mut upstream = decoded(&Request { limit: 65535, ..request.clone() }.reply(&many(100)));
    upstream.metadata.id = request.metadata.id.wrapping_add(1);
    let cut = decoded(&request.relay(bytes(&upstream)));
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert_eq!(cut.metadata.id, request.metadata.id);
    assert_eq!(cut.queries, std::slice::from_ref(&request.query));
    upstream.answers.truncate(3);
    let whole = decoded(&request.relay(bytes(&upstream)));
    assert_eq!(whole.metadata.id, request.metadata.id);
    assert_eq!(whole.answers, upstream.answers);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Err(Rejected::With(reply)) = Request::parse(&bytes, Transport::Udp) {
            prop_assert_eq!(&reply[..2], &bytes[..2]);
        }
    }

    #[test]
    fn a_query_with_random_changes_never_panics_and_its_reply_fits(
        changes in proptest::collection::vec((0_usize..64, any::<u8>()), 0..6),
        cut in 0_usize..64,
        count in 0_u32..500,
    ) {
        let mut message = bytes(&with_edns(1232));
        for (at, value) in changes {
            let length = message.len();
            message[at % length] = value;
        }
        message.truncate(message.len().saturating_sub(cut / 8));
        if let Ok(request) = Request::parse(&message, Transport::Udp) {
            for answer in [many(count), Answer::Name("a.b".to_owned()), Answer::NameError] {
                let reply = request.reply(&answer);
                prop_assert!(reply.len() <= request.limit);
                prop_assert_eq!(&reply[..2], &message[..2]);
            }
        }
    }

    #[test]
    fn random_upstream_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let request = request(&query("example.org.", RecordType::A), Transport::Udp);
        let reply = request.relay(bytes);
        prop_assert!(reply.len() <= request.limit);
    }
}
