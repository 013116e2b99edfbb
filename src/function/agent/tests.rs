//! Conversations with an agent that the test plays.

use std::collections::BTreeMap;

use guest_protocol::Stream;

use super::super::event::{HttpRequest, LambdaEvent};
use super::*;

fn contract(json: &str) -> FunctionContract {
    serde_json::from_str(json).unwrap()
}

fn exec() -> FunctionContract {
    contract(r#"{"interface": "exec", "command": ["cat"]}"#)
}

fn http() -> FunctionContract {
    contract(r#"{"interface": "http", "command": ["serve"], "http": {"port": 80}}"#)
}

fn hear(conversation: &mut AgentConversation, frames: &[ToHost<'_>]) -> Result<(), SessionError> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.append_to(&mut bytes));
    conversation.receive(&bytes)
}

/// What was said since the last call, by name.
fn said(conversation: &mut AgentConversation) -> Vec<&'static str> {
    let mut decoder = Decoder::new();
    decoder.push(conversation.output());
    let mut names = Vec::new();
    while let Some(raw) = decoder.next_frame().unwrap() {
        names.push(ToGuest::decode(raw).unwrap().name());
    }
    conversation.consume_output(conversation.output().len());
    names
}

fn notices(conversation: &mut AgentConversation) -> Vec<Notice> {
    std::iter::from_fn(|| conversation.next_notice()).collect()
}

fn hello(protocol: u16) -> ToHost<'static> {
    ToHost::Hello(Hello { protocol, agent_version: "0.1.0", kernel_release: "6.12", vmgenid: true })
}

fn message() -> RestoreMessage {
    RestoreMessage {
        generation: [7; 16],
        entropy: [8; 64],
        host_name: "clone".to_owned(),
        machine_id: Some([6; 16]),
        env: BTreeMap::new(),
    }
}

fn acknowledge() -> ToHost<'static> {
    ToHost::Acknowledge { generation: [7; 16] }
}

fn clone_of(contract: &FunctionContract) -> AgentConversation {
    let mut conversation = AgentConversation::restored(contract, 1).unwrap();
    conversation.restore(&message(), 9, None).unwrap();
    hear(&mut conversation, &[acknowledge()]).unwrap();
    said(&mut conversation);
    notices(&mut conversation);
    conversation
}

fn stdin(bytes: &[u8]) -> Event {
    Event::Exec { stdin: bytes.to_vec() }
}

fn get() -> Event {
    let request = HttpRequest { method: "GET".into(), path: "/".into(), headers: vec![], body: vec![] };
    Event::Http(request)
}

#[test]
fn a_bake_goes_from_greeting_to_freeze() {
    let mut conversation = AgentConversation::cold(&exec()).unwrap();
    assert_eq!(conversation.protocol(), None);
    assert!(conversation.event(&stdin(b"early")).is_err());
    hear(&mut conversation, &[hello(1)]).unwrap();
    assert_eq!((said(&mut conversation), conversation.protocol()), (vec!["contract"], Some(1)));
    assert_eq!(conversation.waiting_for(), Some("the function to get ready"));
    hear(&mut conversation, &[ToHost::Ready]).unwrap();
    conversation.event(&stdin(b"warm")).unwrap();
    assert!(conversation.event(&stdin(b"second")).is_err());
    hear(&mut conversation, &[ToHost::Done { exit_code: 0 }]).unwrap();
    conversation.settle().unwrap();
    hear(&mut conversation, &[ToHost::Settled]).unwrap();
    conversation.prepare_freeze().unwrap();
    hear(&mut conversation, &[ToHost::Frozen { mem_total: 2, mem_free: 1 }]).unwrap();
    assert_eq!(said(&mut conversation), ["event", "settle", "freeze"]);
    let ready = Notice::ReadyToFreeze { mem_total: 2, mem_free: 1 };
    let done = Notice::Done { exit_code: 0 };
    assert_eq!(notices(&mut conversation), [Notice::Warm, done, Notice::Settled, ready]);
    assert!(conversation.event(&stdin(b"late")).is_err());
}

#[test]
fn a_clone_gets_no_event_before_its_acknowledgement() {
    let mut conversation = AgentConversation::restored(&exec(), 1).unwrap();
    assert!(conversation.event(&stdin(b"early")).is_err());
    conversation.restore(&message(), 9, None).unwrap();
    assert!(conversation.event(&stdin(b"early")).is_err());
    assert_eq!(said(&mut conversation), ["restore"]);
    hear(&mut conversation, &[acknowledge()]).unwrap();
    conversation.event(&stdin(b"now")).unwrap();
    assert_eq!(notices(&mut conversation), [Notice::Acknowledged]);
}

#[test]
fn anything_but_the_right_acknowledgement_means_not_unique() {
    let failure = Failure { cause: Cause::Restore, status: 0, text: b"no entropy" };
    let other = ToHost::Acknowledge { generation: [0; 16] };
    let output = ToHost::Output { stream: Stream::Stdout, bytes: b"x" };
    for frame in [other, ToHost::Failed(failure), ToHost::Ready, output, ToHost::Done { exit_code: 0 }] {
        let mut conversation = AgentConversation::restored(&exec(), 1).unwrap();
        conversation.restore(&message(), 9, None).unwrap();
        let error = hear(&mut conversation, &[frame]).unwrap_err();
        assert!(matches!(error, SessionError::NotUnique { .. }), "{frame:?}: {error:?}");
        assert!(hear(&mut conversation, &[acknowledge()]).is_err());
        assert!(conversation.event(&stdin(b"late")).is_err());
    }
    let mut conversation = AgentConversation::restored(&exec(), 1).unwrap();
    conversation.restore(&message(), 9, None).unwrap();
    assert!(matches!(conversation.time_out(), SessionError::NotUnique { .. }));
    assert!(matches!(conversation.receive(&[0xff; 8]), Err(SessionError::NotUnique { .. })));
}

#[test]
fn a_second_acknowledgement_takes_the_first_one_back() {
    let mut conversation = AgentConversation::restored(&exec(), 1).unwrap();
    conversation.restore(&message(), 9, None).unwrap();
    let error = hear(&mut conversation, &[acknowledge(), acknowledge()]).unwrap_err();
    assert!(matches!(error, SessionError::NotUnique { .. }), "{error:?}");
    assert_eq!(notices(&mut conversation), []);
    assert!(conversation.event(&stdin(b"late")).is_err());
}

#[test]
fn a_second_acknowledgement_ends_a_clone_that_answers_already() {
    let mut conversation = clone_of(&exec());
    conversation.event(&stdin(b"x")).unwrap();
    let output = ToHost::Output { stream: Stream::Stdout, bytes: b"x" };
    let error = hear(&mut conversation, &[output, acknowledge()]).unwrap_err();
    assert!(matches!(error, SessionError::NotUnique { .. }), "{error:?}");
    assert_eq!(notices(&mut conversation), [], "nothing of its answer counts");
    assert!(hear(&mut conversation, &[ToHost::Done { exit_code: 0 }]).is_err());
}

#[test]
fn hooks_may_log_and_a_command_may_not_print_before_the_acknowledgement() {
    let log = ToHost::Log { bytes: b"hook" };
    let output = ToHost::Output { stream: Stream::Stderr, bytes: b"log" };
    for (contract, may) in [(exec(), false), (http(), true)] {
        let mut conversation = AgentConversation::restored(&contract, 1).unwrap();
        conversation.restore(&message(), 9, None).unwrap();
        hear(&mut conversation, &[log]).unwrap();
        assert_eq!(notices(&mut conversation), [Notice::Log { bytes: b"hook".to_vec() }]);
        assert_eq!(hear(&mut conversation, &[output]).is_ok(), may);
    }
    let mut conversation = AgentConversation::restored(&exec(), 1).unwrap();
    conversation.restore(&message(), 9, None).unwrap();
    let failure = Failure { cause: Cause::Restore, status: 0, text: b"The hook a failed" };
    let error = hear(&mut conversation, &[log, ToHost::Failed(failure)]).unwrap_err();
    assert!(error.to_string().ends_with("The hook a failed; its last output:\nhook"), "{error}");
}

#[test]
fn names_travel_before_the_environment_and_are_checked() {
    let mut conversation = AgentConversation::restored(&exec(), 1).unwrap();
    let env = BTreeMap::from([("A".to_owned(), "b".to_owned())]);
    conversation.restore(&RestoreMessage { env, ..message() }, 9, None).unwrap();
    let (raw, _) = guest_protocol::split(conversation.output()).unwrap().unwrap();
    let Ok(ToGuest::Restore(restore)) = ToGuest::decode(raw) else { panic!("no restore frame") };
    let expected =
        [RestoreEntry::HostName("clone"), RestoreEntry::MachineId([6; 16]), RestoreEntry::Env(b"A=b")];
    assert_eq!(restore.entries.iter().collect::<Vec<_>>(), expected);
    assert_eq!(restore.unix_time_ns, 9);
    let mut conversation = AgentConversation::restored(&exec(), 1).unwrap();
    let bad = RestoreMessage { host_name: "a b".to_owned(), ..message() };
    assert!(matches!(conversation.restore(&bad, 9, None), Err(SessionError::HostName { .. })));
}

#[test]
fn the_reading_of_the_clock_is_for_agents_that_know_it() {
    let reading = ClockReading { unix_time_ns: 3, tsc: 4, tsc_khz: 5 };
    for (version, expected) in [(1, None), (2, Some(reading))] {
        let mut conversation = AgentConversation::restored(&exec(), version).unwrap();
        conversation.restore(&message(), 9, Some(reading)).unwrap();
        let (raw, _) = guest_protocol::split(conversation.output()).unwrap().unwrap();
        let Ok(ToGuest::Restore(restore)) = ToGuest::decode(raw) else { panic!("no restore frame") };
        assert_eq!(restore.entries.clock(), expected, "version {version}");
    }
}

#[test]
fn a_version_that_this_release_does_not_speak_is_refused() {
    let mut conversation = AgentConversation::cold(&exec()).unwrap();
    let error = hear(&mut conversation, &[hello(9)]).unwrap_err();
    assert!(matches!(error, SessionError::Version { found: 9 }));
    assert!(AgentConversation::restored(&exec(), 0).is_err());
}

#[test]
fn an_event_of_the_greatest_length_is_cut_into_frames() {
    let mut conversation = clone_of(&exec());
    let limit = usize::try_from(guest_protocol::EVENT_MAX).unwrap();
    conversation.event(&stdin(&vec![1; limit])).unwrap();
    let names = said(&mut conversation);
    assert_eq!(names.len(), 1 + (limit - ToGuest::FIRST_MAX).div_ceil(PAYLOAD_MAX));
    assert!(names[1..].iter().all(|name| *name == "data"));
    assert!(conversation.event(&stdin(&vec![1; limit + 1])).is_err());
}

#[test]
fn a_function_that_ends_is_reported_with_its_last_output() {
    let mut conversation = AgentConversation::cold(&exec()).unwrap();
    let output = ToHost::Output { stream: Stream::Stderr, bytes: b"no such module\n" };
    let failure = Failure { cause: Cause::Exited, status: 1, text: b"" };
    let error = hear(&mut conversation, &[hello(1), output, ToHost::Failed(failure)]).unwrap_err();
    let expected =
        "The function ended with exit code 1 before it was ready; its last output:\nno such module";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn an_http_answer_is_complete_before_the_connection_ends() {
    let mut conversation = clone_of(&http());
    conversation.event(&get()).unwrap();
    let bytes = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno";
    hear(&mut conversation, &[ToHost::Answer { bytes }]).unwrap();
    let headers = vec![("Content-Length".to_owned(), "2".to_owned())];
    let head = Notice::Head { status: 404, headers };
    let body = Notice::Answer { bytes: b"no".to_vec() };
    assert_eq!(notices(&mut conversation), [head, body, Notice::Done { exit_code: 1 }]);
    // The next event may follow at once; what belongs to the first is not taken for its answer.
    conversation.event(&get()).unwrap();
    assert_eq!(said(&mut conversation), ["event", "finish", "event"]);
    let late = [ToHost::Answer { bytes: b"late" }, ToHost::Done { exit_code: 0 }];
    hear(&mut conversation, &late).unwrap();
    assert_eq!(notices(&mut conversation), []);
    let second = [ToHost::Answer { bytes: b"HTTP/1.0 200 OK\r\n\r\nyes" }, ToHost::Done { exit_code: 0 }];
    hear(&mut conversation, &second).unwrap();
    let head = Notice::Head { status: 200, headers: vec![] };
    let body = Notice::Answer { bytes: b"yes".to_vec() };
    assert_eq!(notices(&mut conversation), [head, body, Notice::Done { exit_code: 0 }]);
}

#[test]
fn an_http_answer_that_is_cut_off_is_an_error() {
    let mut conversation = clone_of(&http());
    conversation.event(&get()).unwrap();
    let answer = [ToHost::Answer { bytes: b"HTTP/1.1 200" }, ToHost::Done { exit_code: 0 }];
    let error = hear(&mut conversation, &answer).unwrap_err();
    assert!(matches!(error, SessionError::Response { source: ResponseError::CutOff, .. }));
}

#[test]
fn a_lambda_event_travels_with_its_id_and_deadline() {
    let contract = contract(r#"{"interface": "lambda", "command": ["x"], "lambda": {"handler": "a.b"}}"#);
    let mut conversation = clone_of(&contract);
    let event = LambdaEvent { payload: b"{}".to_vec(), request_id: [3; 16], deadline_unix_ms: 4 };
    conversation.event(&Event::Lambda(event)).unwrap();
    let (raw, _) = guest_protocol::split(conversation.output()).unwrap().unwrap();
    let head = EventHead { total: 2, deadline_unix_ms: 4, request_id: [3; 16] };
    assert_eq!(ToGuest::decode(raw), Ok(ToGuest::Event { head, first: b"{}" }));
}

#[test]
fn an_environment_that_cannot_be_told_is_refused() {
    for (key, value) in [("", "x"), ("A=B", "x"), ("A", "x\0"), ("A", &*"x".repeat(70_000))] {
        let mut conversation = AgentConversation::restored(&exec(), 1).unwrap();
        let env = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert!(conversation.restore(&RestoreMessage { env, ..message() }, 9, None).is_err());
    }
}

#[test]
fn a_contract_without_what_its_interface_needs_is_refused() {
    for json in [
        r#"{"interface": "exec"}"#,
        r#"{"interface": "http", "command": ["x"]}"#,
        r#"{"interface": "lambda", "command": ["x"]}"#,
    ] {
        assert!(AgentConversation::cold(&contract(json)).is_err(), "{json}");
    }
    let long = FunctionContract { command: vec!["x".repeat(CONTRACT_MAX)], ..exec() };
    assert!(AgentConversation::cold(&long).is_err());
}
