//! Every frame survives the wire however the stream is cut, and no byte stream does harm.

#![allow(clippy::expect_used, reason = "helpers of tests may fail loudly too")]

use guest_protocol::{
    Cause, ClockReading, Decoder, EventHead, Failure, Hello, PAYLOAD_MAX, Restore, RestoreEntries,
    RestoreEntry, Stream, TEXT_MAX, ToGuest, ToHost,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// Feeds `bytes` in pieces of `step` and collects what `read` makes of each frame.
fn decode(bytes: &[u8], step: usize, mut read: impl FnMut(guest_protocol::Raw<'_>)) {
    let mut decoder = Decoder::new();
    for piece in bytes.chunks(step) {
        decoder.push(piece);
        while let Some(raw) = decoder.next_frame().expect("frames that were encoded are frames") {
            read(raw);
        }
    }
    assert_eq!(decoder.pending(), 0);
}

fn assert_to_host(frame: ToHost<'_>, step: usize) {
    let mut bytes = Vec::new();
    frame.append_to(&mut bytes);
    frame.append_to(&mut bytes);
    let mut seen = 0;
    decode(&bytes, step, |raw| {
        assert_eq!(ToHost::decode(raw), Ok(frame));
        seen += 1;
    });
    assert_eq!(seen, 2);
}

fn assert_to_guest(frame: ToGuest<'_>, step: usize) {
    let mut bytes = Vec::new();
    frame.append_to(&mut bytes);
    frame.append_to(&mut bytes);
    let mut seen = 0;
    decode(&bytes, step, |raw| {
        assert_eq!(ToGuest::decode(raw), Ok(frame));
        seen += 1;
    });
    assert_eq!(seen, 2);
}

const CAUSES: [Cause; 10] = [
    Cause::Guest,
    Cause::Protocol,
    Cause::Start,
    Cause::Exited,
    Cause::Killed,
    Cause::NotReady,
    Cause::Init,
    Cause::Restore,
    Cause::AfterRestore,
    Cause::Event,
];

proptest! {
    #[test]
    fn what_the_agent_says_survives(
        step in 1usize..4000, bytes in vec(any::<u8>(), 0..4000), a in any::<u64>(), b in any::<u64>(), code in any::<i32>(),
        text in "[ -~]{0,255}", release in "\\PC{0,60}", cause in 0usize..10, generation in any::<[u8; 16]>(),
    ) {
        let text_bytes = bytes.get(..TEXT_MAX).unwrap_or(&bytes);
        for frame in [
            ToHost::Hello(Hello { protocol: 1, agent_version: &text, kernel_release: &release, vmgenid: a > b }),
            ToHost::Log { bytes: &bytes },
            ToHost::Ready,
            ToHost::Settled,
            ToHost::Frozen { mem_total: a, mem_free: b },
            ToHost::Acknowledge { generation },
            ToHost::Output { stream: Stream::Stdout, bytes: &bytes },
            ToHost::Output { stream: Stream::Stderr, bytes: &bytes },
            ToHost::Answer { bytes: &bytes },
            ToHost::Done { exit_code: code },
            ToHost::Failed(Failure { cause: CAUSES[cause], status: code, text: text_bytes }),
        ] {
            assert_to_host(frame, step);
        }
    }

    #[test]
    fn what_the_host_says_survives(
        step in 1usize..4000, bytes in vec(any::<u8>(), 0..4000), total in any::<u64>(), deadline in any::<u64>(),
        request_id in any::<[u8; 16]>(), entropy in vec(any::<u8>(), 64), env in vec("[A-Z]{1,8}=[ -~]{0,40}", 0..8),
    ) {
        let mut entries = Vec::new();
        let reading = ClockReading { unix_time_ns: total, tsc: deadline, tsc_khz: 2_500_000 };
        RestoreEntry::HostName("clone-1").append_to(&mut entries);
        RestoreEntry::Clock(reading).append_to(&mut entries);
        for variable in &env {
            RestoreEntry::Env(variable.as_bytes()).append_to(&mut entries);
        }
        RestoreEntry::MachineId(request_id).append_to(&mut entries);
        let entries = RestoreEntries::from_bytes(&entries);
        prop_assert_eq!(entries.iter().next(), Some(RestoreEntry::HostName("clone-1")));
        prop_assert_eq!(entries.iter().last(), Some(RestoreEntry::MachineId(request_id)));
        prop_assert_eq!(entries.variables().count(), env.len());
        prop_assert_eq!(entries.has_variables(), !env.is_empty());
        let entropy = entropy.try_into().unwrap();
        for frame in [
            ToGuest::Contract { last: true, json: &bytes },
            ToGuest::Contract { last: false, json: &bytes },
            ToGuest::Restore(Restore { generation: request_id, entropy, unix_time_ns: total, entries }),
            ToGuest::Event { head: EventHead { total, deadline_unix_ms: deadline, request_id }, first: &bytes },
            ToGuest::Data { bytes: &bytes },
            ToGuest::Finish,
            ToGuest::Settle,
            ToGuest::Freeze,
        ] {
            assert_to_guest(frame, step);
        }
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..2000), step in 1usize..100) {
        let mut decoder = Decoder::new();
        for piece in bytes.chunks(step) {
            decoder.push(piece);
            while let Ok(Some(raw)) = decoder.next_frame() {
                prop_assert!(raw.payload.len() <= PAYLOAD_MAX);
                let _ = (ToHost::decode(raw), ToGuest::decode(raw));
            }
            prop_assert!(decoder.pending() <= bytes.len());
        }
    }

    #[test]
    fn any_payload_of_any_kind_is_read_or_refused(kind in any::<u8>(), payload in vec(any::<u8>(), 0..300)) {
        let raw = guest_protocol::Raw { kind, payload: &payload };
        let mut again = Vec::new();
        if let Ok(frame) = ToHost::decode(raw) {
            frame.append_to(&mut again);
        } else if let Ok(frame) = ToGuest::decode(raw) {
            frame.append_to(&mut again);
        }
        // One meaning, one encoding: what is read is written back the same.
        let later_hello = kind == 1 && payload.get(4..6) != Some(&[1, 0]);
        if !again.is_empty() && !later_hello {
            prop_assert_eq!(&again[8..], &payload[..]);
        }
    }
}

#[test]
fn a_restore_entry_that_runs_past_the_frame_is_refused() {
    let mut payload = vec![0; 88];
    payload.extend([1, 0, 255, 255, 255, 255, b'A']);
    let raw = guest_protocol::Raw { kind: 0x82, payload: &payload };
    assert!(ToGuest::decode(raw).is_err());
}

#[test]
fn a_restore_entry_that_the_agent_does_not_know_is_refused() {
    let mut payload = vec![0; 88];
    payload.extend([9, 0, 0, 0, 0, 0]);
    let raw = guest_protocol::Raw { kind: 0x82, payload: &payload };
    let refusal = ToGuest::decode(raw).unwrap_err().to_string();
    assert_eq!(refusal, "The restore frame has an unknown entry, 9");
}
