//! `ember doctor`: can this host run microVMs, and what to do if not.

use serde_json::json;

use crate::vm::{self, Finding, Verdict};

use super::args::DoctorArgs;
use super::failure::{Failure, Kind};
use super::{agent, cell, output};

/// Examines the host; fails when no microVM can run on it.
///
/// # Errors
/// The host cannot run microVMs, or standard output is closed.
pub fn doctor(args: &DoctorArgs) -> Result<u8, Failure> {
    let mut findings = vm::examine_host();
    findings.push(jail_finding());
    findings.push(agent_finding());
    let worst = findings.iter().map(|finding| rank(finding.verdict)).max().unwrap_or_default();
    if args.json {
        let list: Vec<_> = findings.iter().map(to_json).collect();
        output::json(&json!({ "can_run": worst < rank(Verdict::Bad), "findings": list }))?;
    } else {
        for finding in &findings {
            output::line(&text(finding))?;
        }
    }
    if worst < rank(Verdict::Bad) { Ok(0) } else { Ok(Kind::HostCannot.code()) }
}

/// What a clone of this user's would be jailed by.
fn jail_finding() -> Finding {
    let what = "jail";
    match cell::probe() {
        Ok(told) if told.is_full() => {
            Finding { what, verdict: Verdict::Good, found: told.summary(), mend: None }
        }
        Ok(told) => Finding {
            what,
            verdict: Verdict::Limited,
            found: told.summary(),
            mend: Some(
                "run as root for users of their own; where namespaces are lacking: sysctl kernel.unprivileged_userns_clone=1, or user.max_user_namespaces above 0, or kernel.apparmor_restrict_unprivileged_userns=0",
            ),
        },
        Err(failure) => Finding { what, verdict: Verdict::Limited, found: failure.to_string(), mend: None },
    }
}

fn agent_finding() -> Finding {
    match agent::find(None) {
        Ok(path) => Finding {
            what: "guest agent",
            verdict: Verdict::Good,
            found: format!("found at {}", path.display()),
            mend: None,
        },
        Err(failure) => Finding {
            what: "guest agent",
            verdict: Verdict::Limited,
            found: failure.to_string(),
            mend: Some("only `ember bake` needs it: put ember-agent beside ember, or name it with --agent"),
        },
    }
}

fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Good => 0,
        Verdict::Limited => 1,
        Verdict::Bad => 2,
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good",
        Verdict::Limited => "limited",
        Verdict::Bad => "bad",
    }
}

fn to_json(finding: &Finding) -> serde_json::Value {
    json!({
        "what": finding.what,
        "verdict": word(finding.verdict),
        "found": finding.found,
        "mend": finding.mend,
    })
}

fn text(finding: &Finding) -> String {
    let line = format!("{:<8} {}: {}", word(finding.verdict), finding.what, finding.found);
    match finding.mend {
        Some(mend) => format!("{line}\n         {mend}"),
        None => line,
    }
}
