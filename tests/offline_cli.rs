//! The command line explains itself, and fails in one way.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use common::{BAD_BUNDLE, Place, USAGE, ember, finish, names};

const COMMANDS: [&str; 9] =
    ["bake", "run", "bench", "inspect", "verify", "doctor", "image", "completions", "man"];

#[test]
fn help_names_every_command() {
    for flag in ["--help", "-h"] {
        let ended = finish(&mut ember([flag]));
        let text = ended.succeeds().text();
        for command in COMMANDS {
            assert!(text.lines().any(|line| line.trim_start().starts_with(command)), "{command}: {text}");
        }
    }
}

#[test]
fn every_command_has_help_of_its_own() {
    for command in COMMANDS {
        let ended = finish(&mut ember([command, "--help"]));
        assert!(ended.succeeds().text().contains(&format!("Usage: ember {command}")), "{ended:?}");
        assert_eq!(ended.errors, "");
    }
}

#[test]
fn version_names_the_snapshot_format() {
    let ended = finish(&mut ember(["--version"]));
    let format = snapshot_format::state::CURRENT;
    ended.answers(&format!("ember {} (snapshot format {format})\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_is_a_usage_error_in_one_sentence() {
    for (words, what, help) in [
        (&["fly"][..], "unrecognized subcommand 'fly'", "`ember --help`"),
        (&["run"], "<BUNDLE>", "`ember run --help`"),
        (&["run", "a", "b"], "unexpected argument 'b'", "`ember run --help`"),
        (&["bake", "--fly", "a"], "unexpected argument '--fly'", "`ember bake --help`"),
        (&["completions", "tcl"], "invalid value 'tcl'", "`ember completions --help`"),
    ] {
        let ended = finish(&mut ember(words));
        assert_eq!((ended.code(), ended.text()), (USAGE, ""), "{words:?}: {ended:?}");
        assert!(ended.errors.starts_with("ember: ") && ended.errors.contains(what), "{words:?}: {ended:?}");
        assert!(ended.errors.ends_with(&format!("; see {help}\n")), "{words:?}: {ended:?}");
        assert_eq!(ended.errors.lines().count(), 1, "{words:?}: {ended:?}");
    }
}

#[test]
fn a_wrong_command_line_is_told_as_json_where_that_was_asked_for() {
    for words in [&["run", "a", "b", "--json"][..], &["bake", "--json", "--fly"], &["record", "--json"]] {
        let ended = finish(&mut ember(words));
        assert_eq!((ended.code(), &ended.json()["error"]["kind"]), (USAGE, &"usage".into()), "{ended:?}");
    }
}

#[test]
fn without_a_command_there_is_help() {
    let ended = finish(&mut ember::<&str>([]));
    assert_eq!((ended.code(), ended.text()), (USAGE, ""));
    assert!(ended.errors.contains("Usage: ember"), "{ended:?}");
}

#[test]
fn completions_come_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = finish(&mut ember(["completions", shell]));
        for word in ["bake", "--event-json", "doctor"] {
            let word = if shell == "fish" { word.trim_start_matches('-') } else { word };
            assert!(ended.succeeds().text().contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn manual_pages_are_written_for_every_command() {
    let place = Place::new();
    let folder = place.join("new/man");
    finish(ember(["man"]).arg(&folder)).succeeds();
    let pages = names(&folder);
    assert!(pages.contains(&"ember.1".to_owned()), "{pages:?}");
    for command in COMMANDS {
        let page = std::fs::read_to_string(folder.join(format!("ember-{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS") && page.contains(command));
    }
}

#[test]
fn a_failure_is_told_on_standard_error_and_as_json_on_standard_output() {
    for command in ["run", "verify", "inspect", "bench", "record"] {
        let ended = finish(ember([command, "/nowhere", "--json"]).args(event_of(command)));
        assert_eq!(ended.code(), BAD_BUNDLE, "{ended:?}");
        let error = &ended.json()["error"];
        assert_eq!((&error["kind"], &error["exit_code"]), (&"bad_bundle".into(), &BAD_BUNDLE.into()));
        let told = format!("ember: {}", error["message"].as_str().unwrap());
        assert!(ended.errors.starts_with(&told), "{ended:?}");
    }
}

/// What `record` cannot do without.
fn event_of(command: &str) -> &'static [&'static str] {
    if command == "record" { &["--event-text", "x"] } else { &[] }
}

#[test]
fn a_bench_does_not_give_one_start_the_event_of_all() {
    let ended = common::finish(&mut ember(["bench", "bundle", "--event", "-"]));
    ended.fails(USAGE, "which standard input has once: name a file");
}

#[test]
fn a_closed_standard_output_is_no_panic() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    for words in [&["doctor"][..], &["doctor", "--json"], &["completions", "bash"], &["--help"]] {
        let mut command = ember(words);
        let child =
            command.stdout(full.try_clone().unwrap()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        common::end_of(child).is_sane();
    }
}
