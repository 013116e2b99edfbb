//! The command line, as typed.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::{Paging, Prefetch, Rate, Size, Span, Verify};
use crate::function::MACHINE_ID_LEN;
use crate::vm::identity;

use super::limits::{GroupArgs, LimitArgs};
use super::plain;

/// Restores microVMs from warm snapshots in milliseconds.
///
/// `ember bake` boots a guest once, takes it to its warm point and writes a bundle; `ember run` restores a clone from the
/// bundle, gives it one event and prints its answer.
#[derive(Debug, Parser)]
#[command(name = "ember", version = version(), disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// `ember run` without the other commands.
#[derive(Debug, Parser)]
#[command(name = "run")]
struct RunAlone {
    #[command(flatten)]
    args: RunArgs,
}

impl Cli {
    /// Parses the command line, the program's name first.
    ///
    /// A `run` that is right is parsed by hand where that is enough, or on its own: describing all the other commands to the parser
    /// would take as long as creating a VM. Whatever is wrong with it, the whole parser says.
    ///
    /// # Errors
    /// It is wrong, or asks for help or the version.
    pub fn from_words(words: Vec<OsString>) -> Result<Self, clap::Error> {
        if let Some((run, rest)) = words.get(1..).and_then(<[OsString]>::split_first)
            && run == "run"
        {
            let alone = || RunAlone::try_parse_from([run].into_iter().chain(rest)).ok();
            if let Some(args) = plain::run(rest).or_else(|| alone().map(|run| run.args)) {
                return Ok(Cli { command: Command::Run(Box::new(args)) });
            }
        }
        Cli::try_parse_from(words)
    }
}

/// What is wrong with a command line as one sentence, without the parser's colours and paragraphs.
pub fn sentence(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let said = text.split("\n\nUsage:").next().unwrap_or_default();
    let said = said.split("\n\nFor more information").next().unwrap_or_default();
    let paragraphs = said.trim_start_matches("error: ").split("\n\n");
    let paragraphs = paragraphs.map(|lines| lines.split_whitespace().collect::<Vec<_>>().join(" "));
    let help = named().map_or_else(String::new, |command| format!("{command} "));
    format!("{}; see `ember {help}--help`", paragraphs.collect::<Vec<_>>().join("; "))
}

/// The command that was typed.
fn named() -> Option<String> {
    let word = std::env::args_os().nth(1)?;
    Cli::command().find_subcommand(word).map(|command| command.get_name().to_owned())
}

/// `0.1.0 (snapshot format 1.1)`.
pub fn version() -> &'static str {
    const PROGRAM: &str = env!("CARGO_PKG_VERSION");
    static TEXT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    TEXT.get_or_init(|| format!("{PROGRAM} (snapshot format {})", snapshot_format::state::CURRENT))
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest, take it to its warm point, write a bundle
    Bake(Box<BakeArgs>),
    /// Restore a clone, send it one event, print its answer
    Run(Box<RunArgs>),
    /// Answer events over HTTP, through a pool of shells that are jailed ahead of need
    Serve(ServeArgs),
    /// Compare cold boot with warm restore, to the first answer byte
    Bench(BenchArgs),
    /// Record again which pages an answer needs
    Record(RecordArgs),
    /// Show what is in a bundle, from header and index alone
    Inspect(BundleArgs),
    /// Check every checksum of a bundle
    Verify(BundleArgs),
    /// Tell whether this host can run microVMs, and what to do if not
    Doctor(DoctorArgs),
    /// Build a root image from a directory, an OCI layout or an archive
    Image(ImageArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    Man {
        /// The folder.
        directory: PathBuf,
    },
}

/// How events reach the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InterfaceArg {
    /// A command: stdin in; stdout, stderr and exit code out
    Exec,
    /// A program that listens on a TCP port
    Http,
    /// A client of the AWS Lambda Runtime API
    Lambda,
    /// A small guest without Linux
    Port,
}

/// `ember bake`.
#[derive(Debug, Args)]
pub struct BakeArgs {
    /// Bundle to write
    pub bundle: PathBuf,
    /// Read what to bake from this file; flags win over it
    #[arg(short, long, value_name = "EMBER.TOML")]
    pub config: Option<PathBuf>,
    /// Kernel: bzImage or ELF; the ELF of a small guest for `port`
    #[arg(long, value_name = "FILE", env = "EMBER_KERNEL")]
    pub kernel: Option<PathBuf>,
    /// Folder with the kernel's modules (lib/modules/VERSION)
    #[arg(long, value_name = "DIR", env = "EMBER_MODULES")]
    pub modules: Option<PathBuf>,
    /// Words to add to the kernel's command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub kernel_args: Option<String>,
    /// The guest agent; found beside `ember` when not given
    #[arg(long, value_name = "FILE", env = "EMBER_AGENT")]
    pub agent: Option<PathBuf>,
    /// Root file system: directory, ext4 image, OCI image layout, OCI or docker archive
    #[arg(long, value_name = "PATH")]
    pub root: Option<PathBuf>,
    /// Which image of an OCI layout
    #[arg(long, value_name = "NAME")]
    pub reference: Option<String>,
    /// Guest RAM, for example 256MiB
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// Number of vCPUs, 1 to 8
    #[arg(long, value_name = "N")]
    pub vcpus: Option<u32>,
    /// Bake although the guest's kernel has no driver for the VM Generation ID
    #[arg(long)]
    pub allow_stale_rng: bool,
    /// Let the monotonic clocks of clones go on by the time since the bake
    #[arg(long)]
    pub advance_clock: bool,
    /// How events reach the function
    #[arg(long, value_enum)]
    pub interface: Option<InterfaceArg>,
    /// Environment variable of the function; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// Working directory of the function
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User of the function: uid[:gid] or a name
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// exec: start the next event's process before the freeze
    #[arg(long)]
    pub resident: bool,
    /// http: TCP port the function listens on
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// http: path of the readiness request
    #[arg(long, value_name = "PATH")]
    pub ready_path: Option<String>,
    /// lambda: handler, module.function
    #[arg(long, value_name = "NAME")]
    pub handler: Option<String>,
    /// Warm-up event in place; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub warm_up: Vec<String>,
    /// Drive besides the root, copied into the bundle; may be repeated
    #[arg(long, value_name = "ID=FILE", value_parser = pair)]
    pub drive: Vec<(String, String)>,
    /// Longest wait for the guest to boot
    #[arg(long, value_name = "TIME")]
    pub boot_timeout: Option<Span>,
    /// Longest wait for the function to get ready
    #[arg(long, value_name = "TIME")]
    pub ready_timeout: Option<Span>,
    /// Longest time an event may take
    #[arg(long, value_name = "TIME")]
    pub event_timeout: Option<Span>,
    /// Do not record which pages the warm-up events need
    #[arg(long)]
    pub no_record: bool,
    /// Replace the bundle if it exists
    #[arg(short, long)]
    pub force: bool,
    /// Format to write, for older releases
    #[arg(long, value_name = "VERSION", default_value_t = snapshot_format::state::CURRENT)]
    pub format: snapshot_format::state::FormatVersion,
    /// Show the guest's console
    #[arg(long)]
    pub console: bool,
    /// Print sizes and times as JSON
    #[arg(long)]
    pub json: bool,
    /// Program and arguments of the function
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// How `--timing` is printed. With `--json` it is part of that object instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TimingFormat {
    /// For people
    Table,
    /// One JSON object on a line of its own
    Json,
}

/// The event of a run.
#[derive(Debug, Clone, Default, Args)]
pub struct EventArgs {
    /// Event from a file; `-` is standard input
    #[arg(short, long, value_name = "FILE", group = "content")]
    pub event: Option<PathBuf>,
    /// Event in place; must be JSON
    #[arg(long, value_name = "TEXT", group = "content")]
    pub event_json: Option<String>,
    /// Event in place
    #[arg(long, value_name = "TEXT", group = "content")]
    pub event_text: Option<String>,
    /// http: method; GET, or POST when the event has content
    #[arg(short = 'X', long, value_name = "METHOD")]
    pub method: Option<String>,
    /// http: path and query
    #[arg(short, long, value_name = "PATH")]
    pub path: Option<String>,
    /// http: header; may be repeated
    #[arg(short = 'H', long, value_name = "NAME: VALUE")]
    pub header: Vec<String>,
}

/// How a clone's memory comes into being.
#[derive(Debug, Clone, Args)]
pub struct PagingArgs {
    /// What serves the pages that the clone touches
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Paging::Auto)]
    pub paging: Paging,
    /// What is checked of memory and drives
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Verify::State)]
    pub verify: Verify,
    /// What is brought in before the clone asks, of what a recorded answer needed
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Prefetch::All)]
    pub prefetch: Prefetch,
    /// Open descriptor of /dev/userfaultfd, from a launcher
    #[arg(long, value_name = "FD", env = "EMBER_USERFAULTFD")]
    pub userfaultfd: Option<RawFd>,
}

impl ValueEnum for Prefetch {
    fn value_variants<'a>() -> &'a [Self] {
        &[Prefetch::None, Prefetch::Read, Prefetch::All]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(match self {
            Prefetch::None => "nothing",
            Prefetch::Read => "from the disk what is not in the page cache",
            Prefetch::All => "that, and copies of the pages that it wrote",
        }))
    }
}

impl ValueEnum for Paging {
    fn value_variants<'a>() -> &'a [Self] {
        &[Paging::Auto, Paging::Mmap, Paging::Uffd]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(match self {
            Paging::Auto => "mmap, or uffd where --verify touched asks for it",
            Paging::Mmap => "the kernel, from the memory file; clones share what they do not write",
            Paging::Uffd => "a thread of Ember, through userfaultfd",
        }))
    }
}

impl ValueEnum for Verify {
    fn value_variants<'a>() -> &'a [Self] {
        &[Verify::State, Verify::Touched, Verify::All]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(match self {
            Verify::State => "nothing; manifest, state and index are checked in any case",
            Verify::Touched => {
                "each chunk of memory before the clone sees it; with mmap not what its own faults bring in"
            }
            Verify::All => "every file, before the start",
        }))
    }
}

/// `ember run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Bundle to restore; with --pool the name of a function
    pub bundle: PathBuf,
    /// Have the daemon at this socket serve the event
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["paging", "verify", "prefetch", "userfaultfd", "count", "repeat", "cold", "bake_to", "console", "verbose", "console_max", "block_rate", "memory_max", "memory_high", "cpu_max", "cpu_weight", "no_jail", "require_jail"])]
    pub pool: Option<PathBuf>,
    #[command(flatten)]
    pub event: EventArgs,
    #[command(flatten)]
    pub paging: PagingArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Environment value delivered after the restore; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// Host name of the clone; clone- and 8 digits of its own when not given
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Machine id of the clone, 32 hexadecimal digits; one of its own when not given
    #[arg(long, value_name = "HEX", value_parser = machine_id)]
    pub machine_id: Option<[u8; MACHINE_ID_LEN]>,
    /// Longest time until the answer is complete
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Span>,
    /// Repeat on this many fresh clones and print the distribution
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub count: Option<u32>,
    /// Send the event this many times to the same clone
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub repeat: u32,
    /// Boot the bundle's kernel instead of restoring
    #[arg(long, conflicts_with_all = ["paging", "verify", "prefetch"])]
    pub cold: bool,
    /// Bake the clone to this bundle once it has answered
    #[arg(long, value_name = "BUNDLE", conflicts_with_all = ["count", "cold"])]
    pub bake_to: Option<PathBuf>,
    /// Replace the bundle of --bake-to if it exists
    #[arg(short, long, requires = "bake_to")]
    pub force: bool,
    /// Format of --bake-to, for older releases
    #[arg(long, value_name = "VERSION", requires = "bake_to")]
    pub format: Option<snapshot_format::state::FormatVersion>,
    /// Do not jail the clone
    #[arg(long)]
    pub no_jail: bool,
    /// Fail where the host does not allow a whole jail, instead of saying what is lacking
    #[arg(long, conflicts_with_all = ["no_jail", "bake_to"])]
    pub require_jail: bool,
    /// http: print status and headers before the body
    #[arg(short, long)]
    pub include: bool,
    /// Print every phase in microseconds, on standard error
    #[arg(long, value_enum, value_name = "AS", num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    pub timing: Option<TimingFormat>,
    /// Show the guest's console
    #[arg(long)]
    pub console: bool,
    /// Show the guest: today the same as --console
    #[arg(short, long)]
    pub verbose: bool,
    /// Print the answer and everything else as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `ember serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Unix socket to listen at
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Permissions of the socket, octal
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = mode)]
    pub mode: u32,
    /// User id that may use the daemon beside root and its own; may be repeated
    #[arg(long, value_name = "UID")]
    pub allow_uid: Vec<u32>,
    /// Listen at this TCP address too, for those whom --tcp-token or --tcp-open lets in
    #[arg(long, value_name = "ADDRESS:PORT", requires = "tcp_access")]
    pub tcp: Option<std::net::SocketAddr>,
    /// File with the word that a TCP request has to bring (Authorization: Bearer WORD)
    #[arg(long, value_name = "FILE", requires = "tcp", group = "tcp_access")]
    pub tcp_token: Option<PathBuf>,
    /// Let whoever reaches the TCP address do everything
    #[arg(long, requires = "tcp", group = "tcp_access")]
    pub tcp_open: bool,
    /// Shells that wait for each shape of machine
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=4096))]
    pub shells: u32,
    /// Refuse shells that lack a wall of their jail
    #[arg(long)]
    pub require_jail: bool,
    /// Rate of each drive of a clone, and what it may move at once
    #[arg(long, value_name = "SIZE/s[:BURST]")]
    pub block_rate: Option<Rate>,
    /// Most memory that events and whole answers take in the daemon at once; what comes beyond is refused
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub held_max: Size,
    #[command(flatten)]
    pub group: GroupArgs,
    /// Longest wait for events to end on SIGTERM
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub drain: Span,
    /// Longest silence of a connection, and longest time that a request's head may take
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub idle: Span,
    /// Function to serve from the start; may be repeated
    #[arg(long, value_name = "NAME=BUNDLE", value_parser = pair)]
    pub register: Vec<(String, String)>,
    /// Events that a clone of a --register function serves, one after the other, before it is thrown away
    #[arg(
        long,
        value_name = "N",
        requires = "register",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub reuse: u32,
}

/// `ember bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Bundle to measure
    pub bundle: PathBuf,
    #[command(flatten)]
    pub event: EventArgs,
    #[command(flatten)]
    pub paging: PagingArgs,
    /// Pairs of one cold and one warm start, in turn
    #[arg(
        long,
        value_name = "N",
        env = "EMBER_BENCH_PAIRS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub pairs: u32,
    /// Longest time until an answer is complete
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Span>,
    /// Print the figures and every sample as JSON
    #[arg(long)]
    pub json: bool,
}

/// `ember record`.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// Bundle to replace by one with another working set
    pub bundle: PathBuf,
    /// Event from a file; may be repeated
    #[arg(short, long, value_name = "FILE")]
    pub event: Vec<PathBuf>,
    /// Event in place; must be JSON; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub event_json: Vec<String>,
    /// Event in place; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub event_text: Vec<String>,
    /// http: method of each event; GET, or POST when it has content
    #[arg(short = 'X', long, value_name = "METHOD")]
    pub method: Option<String>,
    /// http: path and query; repeated without content, each is an event
    #[arg(short, long, value_name = "PATH")]
    pub path: Vec<String>,
    /// http: header of each event; may be repeated
    #[arg(short = 'H', long, value_name = "NAME: VALUE")]
    pub header: Vec<String>,
    /// Longest time until an answer is complete
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Span>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// `ember inspect` and `ember verify`.
#[derive(Debug, Args)]
pub struct BundleArgs {
    /// The bundle
    pub bundle: PathBuf,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// `ember doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// `ember image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Directory, ext4 image, OCI image layout, OCI or docker archive
    pub source: PathBuf,
    /// Image file to write
    pub image: PathBuf,
    /// Which image of an OCI layout
    #[arg(long, value_name = "NAME")]
    pub reference: Option<String>,
    /// Size of the image; as small as its content allows when not given
    #[arg(long, value_name = "SIZE")]
    pub size: Option<Size>,
}

fn machine_id(text: &str) -> Result<[u8; MACHINE_ID_LEN], String> {
    identity::parse_machine_id(text)
        .ok_or_else(|| "write it as 32 hexadecimal digits, not all zero".to_owned())
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "write it as three octal digits, for example 660".to_owned())
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_machine_id_is_32_digits() {
        let id = machine_id("000102030405060708090a0B0c0d0e0f").unwrap();
        assert_eq!((id[1], id[11], id[15]), (1, 11, 15));
        for bad in
            ["", "12", &"0".repeat(32), &"1".repeat(33), &format!("+{}", "1".repeat(31)), &"g".repeat(32)]
        {
            assert!(machine_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_function_s_command_stands_behind_two_dashes() {
        let cli = Cli::try_parse_from(["ember", "bake", "out", "--vcpus", "2", "--", "cat", "-n"]).unwrap();
        let Command::Bake(bake) = cli.command else { panic!("not a bake") };
        assert_eq!(bake.command, ["cat", "-n"]);
        assert_eq!(bake.vcpus, Some(2));
    }

    fn parsed(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::from_words(words.iter().map(OsString::from).collect())
    }

    #[test]
    fn a_run_is_parsed_alone_as_it_is_among_the_others() {
        let words = [
            "ember",
            "run",
            "b",
            "--event-text",
            "x",
            "--repeat",
            "3",
            "--env",
            "A=1",
            "--timeout",
            "2s",
            "-i",
        ];
        let alone = RunAlone::try_parse_from(&words[1..]).unwrap().args;
        let Command::Run(among) = Cli::try_parse_from(words).unwrap().command else { panic!("not a run") };
        assert_eq!(format!("{alone:?}"), format!("{among:?}"));
        assert!(matches!(parsed(&words).unwrap().command, Command::Run(run) if run.repeat == 3));
    }

    #[test]
    fn the_whole_parser_tells_what_is_wrong_with_a_run() {
        for words in
            [&["ember", "run"][..], &["ember", "run", "b", "--no"], &["ember", "run", "--help"], &["ember"]]
        {
            let (ours, whole) = (parsed(words).unwrap_err(), Cli::try_parse_from(words).unwrap_err());
            assert_eq!(ours.render().to_string(), whole.render().to_string());
        }
    }
}
