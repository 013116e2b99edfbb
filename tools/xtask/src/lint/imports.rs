//! Rule `imports`: a room uses what the table allows, and reserved crates stay in their rooms.

use super::Finding;
use super::facts::{Facts, Mention};
use super::rooms::{self, KNOW_ALL_DEVICES, RESERVED, Room, SHARED_BY_DEVICES};
use super::source::Source;

const RULE: &str = "imports";

/// Checks every path of a file.
pub fn check(source: &Source, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for mention in &facts.mentions {
        let absolute = resolve(&source.path, mention);
        let message = reserved(source, &absolute).or_else(|| against_room(source, &absolute));
        findings.extend(message.map(|message| Finding {
            path: source.path.clone(),
            line: mention.line,
            rule: RULE,
            message,
        }));
    }
    // One line with several names of the same room is one finding.
    findings.dedup();
    findings
}

/// Tests of the lint's own crate and fuzz targets may name what they like.
fn reserved(source: &Source, path: &[String]) -> Option<String> {
    let name = path.first()?;
    let (_, owner) = RESERVED.iter().find(|(name_of, _)| name_of == name)?;
    let in_crate = |room: &Room| room.name == *owner;
    let inside = rooms::of(&source.path).is_some_and(in_crate) || in_own_crate(&source.path, owner);
    (!inside).then(|| format!("only {owner} may name {name}"))
}

/// Integration tests and benches of a crate belong to it.
fn in_own_crate(path: &str, owner: &str) -> bool {
    owner == "snapshot_format" && path.starts_with("snapshot-format/")
}

/// Crates that a package depends on for its tests alone: their unit tests may use them too.
const FOR_TESTS: [&str; 1] = ["small_guests"];

fn against_room(source: &Source, path: &[String]) -> Option<String> {
    let room = rooms::of(&source.path)?;
    let of_tests = |target: &str| source.is_test && FOR_TESTS.contains(&target);
    let foreign = |target: &&str| *target != room.name && !room.may.contains(target) && !of_tests(target);
    if let Some(target) = target_room(path).filter(foreign) {
        return Some(format!("{} may not use {target}", room.name));
    }
    never(source, room, path).or_else(|| other_device(source, path))
}

/// The room a path leads to: a module of `ember`, or another crate. A bare `vm::x` is a module beside the file.
fn target_room(path: &[String]) -> Option<&str> {
    let (name, in_ember) = match path.first()?.as_str() {
        "ember" => (path.get(1)?.as_str(), true),
        name => (name, false),
    };
    rooms::is_room(name, in_ember).then_some(name)
}

fn never(source: &Source, room: &Room, path: &[String]) -> Option<String> {
    if source.is_test {
        return None;
    }
    let text = path.join("::");
    let known = |forbidden: &&&str| text == **forbidden || text.starts_with(&format!("{forbidden}::"));
    room.never.iter().find(known).map(|forbidden| format!("{} must never know {forbidden}", room.name))
}

fn other_device(source: &Source, path: &[String]) -> Option<String> {
    let [first, second, other, ..] = path else { return None };
    let own = module_path(&source.path);
    let own = own.get(2)?;
    if (first.as_str(), second.as_str()) != ("ember", "devices") || own == other {
        return None;
    }
    let is_module = other.chars().next().is_some_and(char::is_lowercase);
    let shared = |name: &str| SHARED_BY_DEVICES.contains(&name);
    let fine = !is_module || shared(other) || KNOW_ALL_DEVICES.contains(&own.as_str());
    (!fine).then(|| format!("the device {own} may not know the device {other}"))
}

/// A path from its crate on, without `crate`, `self` and `super`.
fn resolve(file: &str, mention: &Mention) -> Vec<String> {
    let mut module = module_path(file);
    module.extend(mention.inside.iter().cloned());
    let mut segments = mention.segments.iter().map(String::as_str).peekable();
    match segments.peek() {
        Some(&"crate") => {
            segments.next();
            module.truncate(1);
        }
        Some(&("self" | "super")) => {
            while let Some(step) = segments.next_if(|step| ["self", "super"].contains(step)) {
                if step == "super" {
                    module.pop();
                }
            }
        }
        _ => module.clear(),
    }
    module.extend(segments.map(str::to_owned));
    module
}

/// The module that a file is: its crate's name, then the modules.
fn module_path(file: &str) -> Vec<String> {
    let (dir, inner) = match file.strip_prefix("src/") {
        Some(inner) => ("", inner),
        None => file.split_once("/src/").unwrap_or(("", file)),
    };
    let name = match dir.rsplit('/').next().unwrap_or_default() {
        "" => "ember".to_owned(),
        name => name.replace('-', "_"),
    };
    let inner = inner.strip_suffix(".rs").unwrap_or(inner);
    let modules = inner.split('/').filter(|part| !["mod", "lib", "main"].contains(part));
    std::iter::once(name).chain(modules.map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(file: &str, inside: &[&str], path: &str) -> String {
        let words = |text: &str| text.split("::").map(str::to_owned).collect::<Vec<_>>();
        let inside = inside.iter().map(|name| (*name).to_owned()).collect();
        resolve(file, &Mention { segments: words(path), inside, line: 1 }).join("::")
    }

    #[test]
    fn paths_are_resolved_from_the_module_they_stand_in() {
        assert_eq!(resolved("src/vm/start.rs", &[], "crate::kvm::KvmVm"), "ember::kvm::KvmVm");
        assert_eq!(resolved("src/vm/start.rs", &[], "super::super::cli::x"), "ember::cli::x");
        assert_eq!(resolved("src/vm/mod.rs", &["tests"], "super::super::kvm"), "ember::kvm");
        assert_eq!(resolved("src/vm/mod.rs", &[], "self::start"), "ember::vm::start");
        assert_eq!(resolved("snapshot-format/src/state/mod.rs", &[], "super::crc"), "snapshot_format::crc");
        assert_eq!(resolved("src/vm/mod.rs", &[], "kvm_ioctls::Kvm"), "kvm_ioctls::Kvm");
    }
}
