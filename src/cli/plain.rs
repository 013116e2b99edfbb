//! A `run` of the words that nearly every one has, parsed by hand: describing them all to the parser takes longer than half a VM.
//!
//! Whatever is not plain here, wrong command lines among it, is left to the parser. What is parsed here it would parse to the
//! same; a test compares.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::config::{Paging, Prefetch, Verify};

use super::args::{EventArgs, PagingArgs, RunArgs, TimingFormat};
use super::limits::LimitArgs;

/// The variable that a launcher sets: the parser reads it.
const FROM_LAUNCHER: &str = "EMBER_USERFAULTFD";

/// What `words`, those after `run`, ask for; `None` where that is not plain.
pub fn run(words: &[OsString]) -> Option<RunArgs> {
    if std::env::var_os(FROM_LAUNCHER).is_some() {
        return None;
    }
    let mut said = Said::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        said.take(word.to_str()?, &mut words)?;
    }
    said.finish()
}

/// What has been said so far.
#[derive(Default)]
struct Said {
    bundle: Option<PathBuf>,
    pool: Option<PathBuf>,
    event: EventArgs,
    hostname: Option<String>,
    timing: Option<TimingFormat>,
    json: bool,
    include: bool,
    no_jail: bool,
    require_jail: bool,
}

impl Said {
    fn take<'a>(&mut self, word: &str, rest: &mut impl Iterator<Item = &'a OsString>) -> Option<()> {
        match word {
            "--pool" => once(&mut self.pool, value(rest)?.into()),
            "--event" => once(&mut self.event.event, value(rest)?.into()),
            "--event-json" => once(&mut self.event.event_json, value(rest)?),
            "--event-text" => once(&mut self.event.event_text, value(rest)?),
            "--hostname" => once(&mut self.hostname, value(rest)?),
            "--timing" | "--timing=table" => once(&mut self.timing, TimingFormat::Table),
            "--timing=json" => once(&mut self.timing, TimingFormat::Json),
            "--json" => flag(&mut self.json),
            "--include" => flag(&mut self.include),
            "--no-jail" => flag(&mut self.no_jail),
            "--require-jail" => flag(&mut self.require_jail),
            bundle if is_value(bundle) => once(&mut self.bundle, bundle.into()),
            _ => None,
        }
    }

    fn finish(self) -> Option<RunArgs> {
        let Said { bundle, pool, event, hostname, timing, json, include, no_jail, require_jail } = self;
        let contents = [event.event.is_some(), event.event_json.is_some(), event.event_text.is_some()];
        let jails = [pool.is_some(), no_jail, require_jail];
        // Of each the parser allows one.
        if [contents, jails].iter().any(|said| said.iter().filter(|is| **is).count() > 1) {
            return None;
        }
        Some(RunArgs {
            bundle: bundle?,
            pool,
            event,
            paging: PagingArgs {
                paging: Paging::Auto,
                verify: Verify::State,
                prefetch: Prefetch::All,
                userfaultfd: None,
            },
            limits: LimitArgs::default(),
            env: Vec::new(),
            hostname,
            machine_id: None,
            timeout: None,
            count: None,
            repeat: 1,
            cold: false,
            bake_to: None,
            force: false,
            format: None,
            no_jail,
            require_jail,
            include,
            timing,
            console: false,
            verbose: false,
            json,
        })
    }
}

/// Nothing may be said twice.
fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}

fn flag(place: &mut bool) -> Option<()> {
    (!std::mem::replace(place, true)).then_some(())
}

fn value<'a>(rest: &mut impl Iterator<Item = &'a OsString>) -> Option<String> {
    let word: &OsStr = rest.next()?;
    word.to_str().filter(|word| is_value(word)).map(str::to_owned)
}

/// Whether the parser certainly takes a word for a value: it has rules of its own for those that look like flags, and for none.
fn is_value(word: &str) -> bool {
    !word.is_empty() && !word.starts_with('-')
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use proptest::prelude::*;

    use super::super::Cli;
    use super::super::args::Command;
    use super::*;

    fn parsed(words: &[&str]) -> Option<String> {
        let all = ["ember", "run"].iter().chain(words);
        let Command::Run(args) = Cli::try_parse_from(all).ok()?.command else { return None };
        Some(format!("{args:?}"))
    }

    fn plain(words: &[&str]) -> Option<String> {
        let words: Vec<OsString> = words.iter().map(Into::into).collect();
        run(&words).map(|args| format!("{args:?}"))
    }

    #[test]
    fn what_most_people_type_is_plain() {
        for line in [
            "greeter",
            "greeter --event-text hello",
            "greeter --event-json {} --timing=json --require-jail",
            "--event e.json greeter --no-jail --timing",
            "greeter --pool /run/ember.sock --event-text x --json --include --hostname a",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            assert!(plain(&words).is_some(), "{line}");
            assert_eq!(plain(&words), parsed(&words), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_or_rare_is_left_to_the_parser() {
        for line in [
            "--event-text hello",
            "a b",
            "a --json --json",
            "a --event-text",
            "a --event-text x --event-json {}",
            "a --event-text --json",
            "a --event -",
            "a --pool s --no-jail",
            "a --no-jail --require-jail",
            "a --timing=never",
            "a --repeat 2",
            "a -- b",
            "-h",
        ] {
            assert_eq!(plain(&line.split(' ').collect::<Vec<_>>()), None, "{line}");
        }
        assert_eq!((plain(&["a", "--event-text", ""]), plain(&[""])), (None, None));
    }

    const WORDS: [&str; 22] = [
        "a",
        "b c",
        "ü",
        "",
        "-",
        "--",
        "--pool",
        "--event",
        "-e",
        "--event-json",
        "--event-text",
        "--hostname",
        "--timing",
        "--timing=json",
        "--timing=table",
        "--json",
        "--include",
        "--no-jail",
        "--require-jail",
        "--count",
        "--event-text=x",
        "1",
    ];

    proptest! {
        #[test]
        fn what_is_parsed_here_the_parser_parses_to_the_same(
            words in proptest::collection::vec(proptest::sample::select(WORDS.to_vec()), 0..7)
        ) {
            if let Some(args) = plain(&words) {
                prop_assert_eq!(Some(args), parsed(&words));
            }
        }
    }
}
