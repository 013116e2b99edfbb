//! A bake that cannot succeed says why in one sentence with its exit code, and leaves nothing that looks like a bundle.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use common::processes::{signal, wait_until_gone};
use common::{
    BAD_BUNDLE, Ended, HOST_CANNOT, Place, USAGE, bake_command, bake_in_command, ember, end_of, finish,
    guest, in_namespace, names, program, rounds, run_command, start, wait_until,
};
use rustix::process::Signal;

/// A bake with these flags beside the necessary ones, which must fail as a wrong use and leave nothing.
#[track_caller]
fn refused(flags: &[&str], words: &str) {
    let place = Place::new();
    let mut command = ember(["bake"]);
    let ended = finish(command.arg(place.join("out")).args(flags));
    ended.fails(USAGE, words);
    assert_eq!(place.names(), [""; 0], "{ended:?}");
}

#[test]
fn flags_that_do_not_go_together_are_refused() {
    let echo = guest("echo");
    let echo = echo.to_str().unwrap();
    let port = ["--interface", "port", "--kernel", echo];
    let with = |more: &[&'static str]| [&port[..], more].concat();
    refused(&["--interface", "port"], "No kernel is given: name it with --kernel");
    refused(&with(&["--memory", "1MiB"]), "memory");
    refused(&with(&["--memory", "9GiB"]), "memory");
    refused(&with(&["--memory", "3000001"]), "memory");
    refused(&with(&["--vcpus", "9"]), "The number of vCPUs is 9");
    refused(&with(&["--vcpus", "0"]), "The number of vCPUs is 0");
    refused(&with(&["--root", "/"]), "A root file system belongs to the exec, http or lambda interface");
    refused(&with(&["--port", "80"]), "belongs to the http interface");
    refused(&with(&["--handler", "a.b"]), "belongs to the lambda interface");
    refused(&with(&["--resident"]), "belongs to the exec interface");
    refused(&with(&["--drive", "UPPER=/dev/null"]), "cannot be the id of a drive");
    refused(&["--interface", "exec", "--kernel", echo, "--", "true"], "root");
}

#[test]
fn flags_that_are_no_flags_are_told_by_name() {
    let wrong = [
        ["--memory", "much"],
        ["--format", "one"],
        ["--ready-timeout", "5"],
        ["--interface", "telnet"],
        ["--drive", "noequals"],
        ["--nonsense", "x"],
    ];
    for [flag, value] in wrong {
        let place = Place::new();
        let ended = finish(bake_command("echo", &place.join("out")).args([flag, value]));
        assert_eq!((ended.code(), ended.text()), (USAGE, ""), "{ended:?}");
        assert!(ended.errors.contains(flag), "{ended:?}");
        assert_eq!(place.names(), [""; 0]);
    }
}

#[test]
fn a_kernel_that_is_missing_or_none_is_refused() {
    let place = Place::new();
    refused(&["--interface", "port", "--kernel", "/nowhere/kernel"], "Cannot read /nowhere/kernel");
    fs::write(place.join("text"), "no kernel at all").unwrap();
    let text = place.join("text");
    let text = text.to_str().unwrap();
    refused(&["--interface", "port", "--kernel", text], "ELF");
    refused(&["--interface", "port", "--kernel", "/"], "Cannot read /");
    let root = place.path().to_str().unwrap();
    refused(&["--interface", "exec", "--root", root, "--kernel", text, "--", "true"], "kernel");
}

#[test]
fn a_damaged_elf_is_refused_or_does_no_harm() {
    let place = Place::new();
    let good = fs::read(guest("echo")).unwrap();
    let mut random = common::Seeded(3);
    // The ELF header and the program headers behind it.
    for _ in 0..rounds(60) {
        let mut bytes = good.clone();
        bytes[random.below(64 + 56 * 3)] ^= 1 << random.below(8);
        bytes.truncate(if random.below(4) == 0 { random.below(good.len()) } else { good.len() });
        fs::write(place.join("elf"), bytes).unwrap();
        let mut bake = ember(["bake", "--interface", "port", "--memory", "2MiB", "--kernel"]);
        bake.arg(place.join("elf")).arg(place.join("out")).args(["--boot-timeout", "20ms"]);
        let ended = finish(bake.args(["--ready-timeout", "20ms", "--force"]));
        ended.is_sane();
        assert!(ended.code() == 0 || (120..126).contains(&ended.code()), "{ended:?}");
    }
}

#[test]
fn an_image_that_does_not_fit_into_memory_is_refused() {
    let place = Place::new();
    let mut elf = fs::read(guest("echo")).unwrap();
    // p_paddr of the first program header (ELF-64): far above 2 MiB.
    elf[64 + 24..64 + 32].copy_from_slice(&(1u64 << 30).to_le_bytes());
    fs::write(place.join("far"), elf).unwrap();
    let path = place.join("far");
    refused(&["--interface", "port", "--memory", "2MiB", "--kernel", path.to_str().unwrap()], "");
}

#[test]
fn a_configuration_that_is_wrong_is_told_with_its_place() {
    let place = Place::new();
    let config = place.join("ember.toml");
    fs::write(&config, "[machine]\nmemory = \"2MiB\"\nwheels = 4\n").unwrap();
    let ended = finish(bake_command("echo", &place.join("out")).arg("--config").arg(&config));
    ended.fails(USAGE, "ember.toml");
    assert!(ended.errors.contains("wheels"), "{ended:?}");
    assert_eq!(place.names(), ["ember.toml"]);
    finish(bake_command("echo", &place.join("out")).args(["--config", "/nowhere.toml"]))
        .fails(USAGE, "/nowhere.toml");
}

#[test]
fn what_a_configuration_says_is_baked_and_flags_win_over_it() {
    let place = Place::new();
    let config = place.join("ember.toml");
    let kernel = guest("memory");
    let text =
        format!("kernel = {kernel:?}\n[machine]\nmemory = \"4MiB\"\n[function]\ninterface = \"port\"\n");
    fs::write(&config, text).unwrap();
    let size = |more: &[&str]| -> u64 {
        let bundle = place.join("out");
        finish(ember(["bake", "--force", "--config"]).arg(&config).arg(&bundle).args(more)).succeeds();
        finish(&mut run_command(&bundle, "size")).text().parse().unwrap()
    };
    let (small, large) = (size(&[]), size(&["--memory", "8MiB"]));
    assert_eq!(large - small, 4 << 20);
}

#[test]
fn a_target_that_exists_is_kept_unless_its_replacement_is_asked_for() {
    let place = Place::new();
    let bundle = place.bake("echo");
    let before = fs::read(bundle.join("manifest.json")).unwrap();
    finish(&mut bake_command("faulty", &bundle)).fails(USAGE, "exists already");
    assert_eq!(fs::read(bundle.join("manifest.json")).unwrap(), before);
    // A bake that fails does not cost the old bundle either.
    let ended = finish(bake_command("halt", &bundle).arg("--force"));
    assert_ne!(ended.code(), 0);
    finish(&mut run_command(&bundle, "x")).answers("x");
    finish(bake_command("faulty", &bundle).arg("--force")).succeeds();
    finish(&mut run_command(&bundle, "exit 0")).answers("exiting");
    assert_eq!(place.names(), ["echo.ember"]);
}

#[test]
fn only_a_bundle_is_ever_replaced() {
    let place = Place::new();
    fs::create_dir(place.join("precious")).unwrap();
    fs::write(place.join("precious/work"), "of years").unwrap();
    let ended = finish(bake_command("echo", &place.join("precious")).arg("--force"));
    ended.fails(USAGE, "is no bundle and is not replaced");
    fs::write(place.join("file"), "too").unwrap();
    finish(bake_command("echo", &place.join("file")).arg("--force")).fails(USAGE, "is no bundle");
    assert_eq!(fs::read(place.join("precious/work")).unwrap(), b"of years");
    assert_eq!(place.names(), ["file", "precious"]);
}

#[test]
fn a_faulty_ember_toml_is_told_in_one_line() {
    let place = Place::new();
    let config = place.join("ember.toml");
    for (text, words) in [
        ("[machine]\nmemory = \"2MiB\"\nsurprise = 1\n", "Line 3: unknown field `surprise`"),
        ("[machine\n", "Line 1: "),
    ] {
        fs::write(&config, text).unwrap();
        let ended = finish(ember(["bake", "--config"]).arg(&config).arg(place.join("out")));
        ended.fails(USAGE, "is not a valid ember.toml");
        assert!(ended.errors.contains(words) && ended.errors.lines().count() == 1, "{ended:?}");
    }
}

#[test]
fn a_target_in_a_folder_that_is_not_there_is_refused() {
    let place = Place::new();
    let ended = finish(&mut bake_command("echo", &place.join("no/such/out")));
    ended.fails(HOST_CANNOT, "Cannot use the directory");
    finish(&mut bake_command("echo", Path::new("/"))).fails(USAGE, "names no bundle");
}

/// Bakes on a disk of so many KiB, then lists what is on it.
fn bake_on_small_disk(kib: usize) -> Ended {
    let place = Place::new();
    let script = r#"mount -t tmpfs -o "size=$1k" full "$2" && cd "$2" || exit 99
        "$3" bake --interface port --memory 2MiB --kernel "$4" out >/dev/null; code=$?; ls -A; exit $code"#;
    let arguments =
        [kib.to_string().into(), place.path().into(), program().into_os_string(), guest("echo").into()];
    finish(&mut in_namespace(script, arguments))
}

#[test]
fn a_full_disk_is_told_and_nothing_is_left_on_it() {
    // From the first file to the last: each size is full at another one.
    for kib in (4..200).step_by(4) {
        let ended = bake_on_small_disk(kib);
        if ended.status.success() {
            assert_eq!(ended.text(), "out\n");
            assert!(kib > 20, "a bundle takes more than {kib} KiB");
            return;
        }
        assert_eq!((ended.code(), ended.text()), (HOST_CANNOT, ""), "{kib} KiB: {ended:?}");
        assert!(ended.errors.contains("No room is left for the bundle's file"), "{kib} KiB: {ended:?}");
    }
    panic!("no disk was large enough");
}

#[test]
fn a_disk_that_is_full_while_a_root_image_is_made_is_told() {
    let place = Place::new();
    let (folder, image) = (place.join("folder"), place.join("image"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), vec![1; 1 << 20]).unwrap();
    finish(ember(["image"]).args([&folder, &image])).succeeds();
    let script = r#"mount -t tmpfs -o size=512k full "$1" && cd "$1" || exit 99
        "$2" image "$3" out; code=$?; ls -A; exit $code"#;
    for source in [folder, image] {
        let disk = Place::new();
        let arguments = [disk.path().into(), program().into_os_string(), source.clone().into()];
        let ended = finish(&mut in_namespace(script, arguments));
        ended.fails(HOST_CANNOT, "No room is left for the root image out: free some");
        assert!(ended.errors.contains("No space left"), "{source:?}: {ended:?}");
    }
}

/// A bake that goes on until somebody ends it, and has written something already.
fn endless(place: &Place) -> Child {
    let bake = start(&mut bake_command("spin", &place.join("out")));
    wait_until("the bake has begun to write", || {
        let names = place.names();
        names.iter().any(|name| place.join(name).join("kernel").exists())
    });
    bake
}

#[test]
fn a_signal_during_a_bake_leaves_nothing() {
    for how in [Signal::INT, Signal::TERM, Signal::HUP] {
        let place = Place::new();
        let bake = endless(&place);
        let group = bake.id();
        signal(i32::try_from(group).unwrap(), how);
        assert_eq!(end_of(bake).signal(), Some(how.as_raw()));
        wait_until_gone(group);
        assert_eq!(place.names(), [""; 0], "{how:?}");
    }
}

#[test]
fn kill_during_a_bake_leaves_no_bundle_and_the_next_bake_cleans_up() {
    let place = Place::new();
    let bake = endless(&place);
    let group = bake.id();
    signal(i32::try_from(group).unwrap(), Signal::KILL);
    end_of(bake);
    wait_until_gone(group);
    let left = place.names();
    assert!(left.len() == 1 && left[0].starts_with(".out.tmp-"), "{left:?}");
    finish(&mut run_command(&place.join(&left[0]), "x")).fails(BAD_BUNDLE, "is no bundle");
    finish(&mut run_command(&place.join("out"), "x")).fails(BAD_BUNDLE, "Cannot open the bundle");
    finish(&mut bake_command("echo", &place.join("out"))).succeeds();
    assert_eq!(place.names(), ["out"]);
}

#[test]
fn two_bakes_at_once_do_not_take_each_other_for_dead() {
    let place = Place::new();
    let first = endless(&place);
    finish(&mut bake_command("echo", &place.join("out"))).succeeds();
    assert!(place.names().iter().any(|name| name.starts_with(".out.tmp-")), "{:?}", place.names());
    signal(i32::try_from(first.id()).unwrap(), Signal::TERM);
    end_of(first);
    assert_eq!(place.names(), ["out"]);
}

/// What a bake makes, in this order: its files, then its name.
const STEPS: [&str; 6] = ["kernel", "state", "memory", "memory.index", "manifest.json", "out"];

/// The files that the bake with this process id has made of its bundle, and has not given their name yet.
fn begun(place: &Place, bake: u32) -> Vec<String> {
    // What others left that were killed lies beside it until it has begun.
    let own = format!(".out.tmp-{bake}-");
    let folders = place.names().into_iter().filter(|name| name.starts_with(&own));
    // It may have got its name meanwhile.
    let files = folders.flat_map(|name| fs::read_dir(place.join(&name)).into_iter().flatten().flatten());
    files.map(|file| file.file_name().to_str().unwrap().to_owned()).collect()
}

fn is_made(place: &Place, bake: u32, step: &str) -> bool {
    // What has its name had all of them.
    begun(place, bake).iter().any(|name| name == step) || place.join("out").exists()
}

/// Waits for a step of a bake as closely as may be, without taking a processor from it.
fn await_step(place: &Place, bake: u32, step: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_made(place, bake, step) {
        assert!(Instant::now() < end, "waited in vain for {step}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// How long an undisturbed bake takes from each step to the next, and from its last one to its end.
fn gaps(place: &Place) -> Vec<Duration> {
    let bake = start(&mut bake_command("echo", &place.join("out")));
    let mut times = STEPS
        .map(|step| {
            await_step(place, bake.id(), step);
            Instant::now()
        })
        .to_vec();
    end_of(bake).succeeds();
    times.push(Instant::now());
    fs::remove_dir_all(place.join("out")).unwrap();
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[test]
fn whenever_a_bake_is_killed_its_target_is_whole_or_not_there() {
    let place = Place::new();
    let gaps = gaps(&place);
    let (mut whole, mut between) = (0, 0);
    for (step, gap) in STEPS.into_iter().zip(gaps) {
        // From the moment when the step is seen to the next one, by the clock of this machine.
        for part in 0..u32::try_from(rounds(10)).unwrap() {
            let bake = start(&mut bake_command("echo", &place.join("out")));
            let group = bake.id();
            await_step(&place, group, step);
            std::thread::sleep(gap * part / 10);
            rustix::process::kill_process_group(rustix::process::Pid::from_child(&bake), Signal::KILL).ok();
            end_of(bake);
            wait_until_gone(group);
            if place.join("out").exists() {
                finish(ember(["verify"]).arg(place.join("out"))).succeeds();
                fs::remove_dir_all(place.join("out")).unwrap();
                whole += 1;
            } else {
                assert_ne!(step, "out", "a bundle that had its name is gone");
                let left = begun(&place, group);
                assert!(left.iter().any(|name| name == step), "{step} was there: {left:?}");
                between += 1;
            }
        }
    }
    // The last step is the name; a kill after the first, long before the guest has run, falls behind it on no machine.
    assert!(
        whole >= rounds(10) && between > 0,
        "{whole} whole, {between} between the first file and the name"
    );
    finish(&mut bake_command("echo", &place.join("out"))).succeeds();
    assert_eq!(place.names(), ["out"], "leftovers of {between} dead bakes");
}

#[test]
fn a_bake_reports_sizes_and_phases_as_json() {
    let place = Place::new();
    let bundle = place.join("out");
    let ended = finish(bake_in_command("4MiB", "echo", &bundle).arg("--json"));
    let told = ended.succeeds().json();
    assert_eq!(told["memory"]["bytes"], 4 << 20);
    let files: Vec<&String> = told["files"].as_object().unwrap().keys().collect();
    assert_eq!(files, names(&bundle).iter().collect::<Vec<_>>());
    for (name, file) in told["files"].as_object().unwrap() {
        assert_eq!(file["bytes"], fs::metadata(bundle.join(name)).unwrap().len());
    }
    let phases: Vec<&str> =
        told["phases_s"].as_array().unwrap().iter().map(|phase| phase[0].as_str().unwrap()).collect();
    assert!(phases.contains(&"Reading the kernel") && phases.contains(&"Writing state and memory"));
    assert!(told["memory"]["content_bytes"].as_u64().unwrap() < 200 << 10, "holes where memory is zero");
}
