//! From a list of system calls to a filter program, when Ember is built (build.rs), for the tests also when they run.
//!
//! seccompiler makes a program that compares the system call's number with one allowed number after the other. The kernel
//! translates each instruction to machine code when a thread confines itself, and runs a new filter once for each number
//! that there is, to know those that are always allowed. So a start pays for every instruction, several hundred times for those
//! on the way: here the program is taken apart to what it decides, and put together again as a search.

use std::collections::{BTreeMap, HashMap};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::list::List;
use super::lists::{Allowed, Check};

/// Where the system call's number stands in what a filter looks at (`struct seccomp_data`, include/uapi/linux/seccomp.h).
const NUMBER: Operand = Operand { offset: 0, mask: u32::MAX };

// Instructions (include/uapi/linux/bpf_common.h).
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_NOT_LESS: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Why a list makes no program.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// seccompiler refuses it.
    #[error("seccompiler does not take the list")]
    List(#[from] BackendError),
    /// It makes other instructions than it did.
    #[error("seccompiler made an instruction that is not known here: {0:?}")]
    Instruction(sock_filter),
    /// The program ends without a verdict, or asks before it has loaded anything.
    #[error("seccompiler made a program that does not decide")]
    Undecided,
    /// The numbers do not rise.
    #[error("seccompiler compares with system call {number} too late")]
    Order {
        /// The system call.
        number: u32,
    },
    /// A conditional jump reaches 255 instructions.
    #[error("The program is too long for its jumps")]
    TooLong,
}

/// The program of a list.
///
/// # Errors
/// See [`CompileError`].
pub fn compile(list: List) -> Result<BpfProgram, CompileError> {
    let mut graph = Graph::default();
    let root = graph.read(&chain(list)?, 0, None, &mut HashMap::new())?;
    let root = graph.search(root)?;
    let mut layout = Layout { graph: &graph, reversed: Vec::new(), placed: HashMap::new() };
    layout.place(root, None)?;
    Ok(layout.reversed.into_iter().rev().collect())
}

/// seccompiler's program.
///
/// # Errors
/// The list is no filter.
pub fn chain(list: List) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for allowed in list.allowed() {
        rules.entry(allowed.call).or_default().extend(rule(&allowed)?);
    }
    let (otherwise, listed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    SeccompFilter::new(rules, otherwise, listed, TargetArch::x86_64)?.try_into()
}

/// None when any arguments will do.
fn rule(allowed: &Allowed) -> Result<Option<SeccompRule>, BackendError> {
    let conditions: Vec<_> = allowed.checks.iter().map(condition).collect::<Result<_, _>>()?;
    if conditions.is_empty() { Ok(None) } else { SeccompRule::new(conditions).map(Some) }
}

/// Only the lower half of an argument is looked at. To the kernel those of mmap and mprotect are 64 bits wide, but what is not allowed
/// of them are bits of the lower half, and what is set in the upper one it refuses or does not heed.
fn condition(check: &Check) -> Result<SeccompCondition, BackendError> {
    let (index, operator, value) = match *check {
        Check::Is { index, value } => (index, SeccompCmpOp::Eq, value),
        Check::Without { index, bits } => (index, SeccompCmpOp::MaskedEq(u64::from(bits)), 0),
        Check::With { index, bits } => (index, SeccompCmpOp::MaskedEq(u64::from(bits)), bits),
    };
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, u64::from(value))
}

/// A word that a program looks at, and which of its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Operand {
    offset: u32,
    mask: u32,
}

/// What a program does from some place on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Decision {
    Return(u32),
    Compare { operand: Operand, code: u16, value: u32, then: Place, otherwise: Place },
}

/// A decision's place in the graph.
type Place = usize;

/// Every decision once, whichever instructions made it.
#[derive(Debug, Default)]
struct Graph {
    decisions: Vec<Decision>,
    places: HashMap<Decision, Place>,
}

impl Graph {
    fn add(&mut self, decision: Decision) -> Place {
        match decision {
            Decision::Compare { then, otherwise, .. } if then == otherwise => then,
            _ => *self.places.entry(decision).or_insert_with(|| {
                self.decisions.push(decision);
                self.decisions.len() - 1
            }),
        }
    }

    /// What `program` decides from instruction `at` on, with `loaded` in the accumulator. Jumps lead forward only.
    fn read(
        &mut self,
        program: &[sock_filter],
        at: usize,
        loaded: Option<Operand>,
        known: &mut HashMap<(usize, Option<Operand>), Place>,
    ) -> Result<Place, CompileError> {
        if let Some(place) = known.get(&(at, loaded)) {
            return Ok(*place);
        }
        let sock_filter { code, jt, jf, k } = program.get(at).ok_or(CompileError::Undecided)?.clone();
        let next = at + 1;
        let place = match code {
            LOAD => self.read(program, next, Some(Operand { offset: k, mask: u32::MAX }), known),
            AND => {
                let Operand { offset, mask } = loaded.ok_or(CompileError::Undecided)?;
                self.read(program, next, Some(Operand { offset, mask: mask & k }), known)
            }
            JUMP => self.read(program, next.saturating_add(k as usize), loaded, known),
            JUMP_EQUAL => {
                let then = self.read(program, next + usize::from(jt), loaded, known)?;
                let otherwise = self.read(program, next + usize::from(jf), loaded, known)?;
                let operand = loaded.ok_or(CompileError::Undecided)?;
                Ok(self.add(Decision::Compare { operand, code, value: k, then, otherwise }))
            }
            RETURN => Ok(self.add(Decision::Return(k))),
            _ => Err(CompileError::Instruction(sock_filter { code, jt, jf, k })),
        }?;
        known.insert((at, loaded), place);
        Ok(place)
    }

    fn decision(&self, place: Place) -> Result<Decision, CompileError> {
        self.decisions.get(place).copied().ok_or(CompileError::Undecided)
    }

    /// Makes a search of the chain of comparisons with numbers that follows `root`, which compares the architecture.
    fn search(&mut self, root: Place) -> Result<Place, CompileError> {
        let Decision::Compare { operand, code, value, then, otherwise } = self.decision(root)? else {
            return Err(CompileError::Undecided);
        };
        let ranges = self.ranges(then)?;
        let then = self.halve(&ranges)?;
        Ok(self.add(Decision::Compare { operand, code, value, then, otherwise }))
    }

    /// The first number of each range of numbers that are decided alike, and how.
    fn ranges(&self, mut chain: Place) -> Result<Vec<(u32, Place)>, CompileError> {
        let mut named = Vec::new();
        while let Decision::Compare { operand: NUMBER, code: JUMP_EQUAL, value, then, otherwise } =
            self.decision(chain)?
        {
            named.push((value, then));
            chain = otherwise;
        }
        let (unnamed, mut next) = (chain, 0);
        let mut ranges = Vec::new();
        for (number, place) in named {
            if number < next {
                return Err(CompileError::Order { number });
            }
            if number > next {
                ranges.push((next, unnamed));
            }
            ranges.push((number, place));
            next = number + 1;
        }
        ranges.push((next, unnamed));
        ranges.dedup_by_key(|(_, place)| *place);
        Ok(ranges)
    }

    fn halve(&mut self, ranges: &[(u32, Place)]) -> Result<Place, CompileError> {
        let (lower, upper) = ranges.split_at(ranges.len() / 2);
        match (lower, upper) {
            (_, []) => Err(CompileError::Undecided),
            ([], [(_, place), ..]) => Ok(*place),
            (_, [(first, _), ..]) => {
                let (otherwise, then) = (self.halve(lower)?, self.halve(upper)?);
                let (code, value) = (JUMP_NOT_LESS, *first);
                Ok(self.add(Decision::Compare { operand: NUMBER, code, value, then, otherwise }))
            }
        }
    }
}

/// A program that is written from its end to its beginning.
struct Layout<'a> {
    graph: &'a Graph,
    reversed: Vec<sock_filter>,
    /// Where decisions begin, as the number of instructions from there to the end; by whether their operand is loaded.
    placed: HashMap<(Place, bool), usize>,
}

impl Layout<'_> {
    /// Writes a decision, unless it is there; tells where it begins.
    fn place(&mut self, place: Place, loaded: Option<Operand>) -> Result<usize, CompileError> {
        let decision = self.graph.decision(place)?;
        let is_loaded = match decision {
            Decision::Return(_) => true,
            Decision::Compare { operand, .. } => loaded == Some(operand),
        };
        if let Some(begin) = self.placed.get(&(place, is_loaded)) {
            return Ok(*begin);
        }
        match decision {
            Decision::Return(verdict) => self.write(RETURN, verdict, 0, 0),
            Decision::Compare { operand, code, value, then, otherwise } => {
                let then = self.place(then, Some(operand))?;
                let otherwise = self.place(otherwise, Some(operand))?;
                let here = self.reversed.len();
                let over = |to: usize| u8::try_from(here - to).map_err(|_| CompileError::TooLong);
                self.write(code, value, over(then)?, over(otherwise)?);
                if !is_loaded {
                    self.load(operand);
                }
            }
        }
        self.placed.insert((place, is_loaded), self.reversed.len());
        Ok(self.reversed.len())
    }

    fn load(&mut self, operand: Operand) {
        if operand.mask != u32::MAX {
            self.write(AND, operand.mask, 0, 0);
        }
        self.write(LOAD, operand.offset, 0, 0);
    }

    fn write(&mut self, code: u16, k: u32, jt: u8, jf: u8) {
        self.reversed.push(sock_filter { code, jt, jf, k });
    }
}
