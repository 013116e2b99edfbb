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
fn a_wrong_command_line_is_a_usage_error_and_not_claps_own() {
    for words in
        [&[][..], &["fly"], &["run"], &["run", "a", "b"], &["bake", "--fly", "a"], &["completions", "tcl"]]
    {
        let ended = finish(&mut ember(words));
        assert_eq!((ended.code(), ended.text()), (USAGE, ""), "{words:?}: {ended:?}");
        let help = ["Usage: ember", "try '--help'"].iter().any(|help| ended.errors.contains(help));
        assert!(help, "{words:?}: {ended:?}");
    }
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
    for command in ["run", "verify", "inspect", "bench"] {
        let ended = finish(&mut ember([command, "/nowhere", "--json"]));
        assert_eq!(ended.code(), BAD_BUNDLE, "{ended:?}");
        let error = &ended.json()["error"];
        assert_eq!((&error["kind"], &error["exit_code"]), (&"bad_bundle".into(), &BAD_BUNDLE.into()));
        let told = format!("ember: {}", error["message"].as_str().unwrap());
        assert!(ended.errors.starts_with(&told), "{ended:?}");
    }
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
