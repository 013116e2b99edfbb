//! From a list of system calls to a filter of the calling thread.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::lists::{Allowed, Check, List};

/// Why a thread could not be confined to its list.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// A list that is no filter: a mistake in this program.
    #[error("The list of system calls makes no filter")]
    List(#[from] BackendError),
    /// The kernel refused it.
    #[error("The kernel refuses a seccomp filter")]
    Apply(#[from] seccompiler::Error),
}

/// Confines the calling thread, and those it starts, to `list`, for good: any other system call kills the process with
/// SIGSYS.
///
/// # Errors
/// The kernel has no seccomp filters.
pub fn confine(list: List) -> Result<(), SeccompError> {
    Filter::new(list)?.apply()
}

/// A filter that is made, for a thread that will have no time for that.
#[derive(Debug)]
pub struct Filter(BpfProgram);

impl Filter {
    /// Makes it, for the calling thread.
    ///
    /// # Errors
    /// The list is no filter: a mistake in this program.
    pub fn new(list: List) -> Result<Self, SeccompError> {
        Ok(Filter(program(list)?))
    }

    /// Confines the calling thread as [`confine`] does.
    ///
    /// # Errors
    /// The kernel has no seccomp filters.
    pub fn apply(&self) -> Result<(), SeccompError> {
        Ok(seccompiler::apply_filter(&self.0)?)
    }
}

fn program(list: List) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for allowed in list.allowed() {
        let entry = rules.entry(allowed.call).or_default();
        entry.extend(rule(&allowed)?);
    }
    let (otherwise, listed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    SeccompFilter::new(rules, otherwise, listed, TargetArch::x86_64)?.try_into()
}

/// None when any arguments will do.
fn rule(allowed: &Allowed) -> Result<Option<SeccompRule>, BackendError> {
    let conditions: Vec<_> = allowed.checks.iter().map(condition).collect::<Result<_, _>>()?;
    if conditions.is_empty() { Ok(None) } else { SeccompRule::new(conditions).map(Some) }
}

/// All arguments that are looked at are 32 bits wide to the kernel.
fn condition(check: &Check) -> Result<SeccompCondition, BackendError> {
    let (index, operator, value) = match *check {
        Check::Is { index, value } => (index, SeccompCmpOp::Eq, value),
        Check::Without { index, bits } => (index, SeccompCmpOp::MaskedEq(u64::from(bits)), 0),
        Check::With { index, bits } => (index, SeccompCmpOp::MaskedEq(u64::from(bits)), bits),
    };
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, u64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_makes_a_filter() {
        for list in List::ALL {
            assert!(program(list).unwrap().len() > 10, "{list:?}");
        }
    }
}
