//! A model of how callers come to their slots and locks, and a search through all orders in which a
//! few of them can do it.
//!
//! Each step of a caller is what one system call does: take a lock, release it, or try. A caller
//! whose step is to wait has a step only when the wait is over. A build may end at any time. The
//! search starts where nobody has begun, and visits every state that can be reached.

use std::collections::HashMap;

/// A way to use a lock.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Use {
    Alone(usize),
    /// Through the lock's turnstile, like [`Use::AloneInTurn`].
    Shared(usize),
    AloneInTurn(usize),
}

/// A caller of the model.
#[derive(Clone, Default)]
struct Caller {
    limit: usize,
    /// In the order in which they are taken.
    locks: Vec<Use>,
    /// The caller in whose build this one runs.
    outer: Option<usize>,
    /// Its first build may fail because of a shared cache, and run again alone.
    may_fail: bool,
    /// It may be killed at any moment before it builds. (A build lasts on, and ends as others do.)
    may_be_killed: bool,
}

/// The rules that the model can do without, to see that it finds out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    AsTheyAre,
    /// A caller keeps its locks while it stands in line.
    KeepLocksInLine,
    /// A caller that has its locks never goes before those that stand in line.
    NeverOvertake,
    /// The first in line does not wait for a bell that rings before it waits.
    TryNoMore,
    /// A second run keeps its slot.
    KeepSlotForSecondRun,
    /// A nested call needs a slot of its own.
    NoPlaceInside,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum At {
    NotBegun,
    /// Waits for the turnstile of the lock with this number, without a slot.
    Turnstile(usize),
    /// Waits for this lock.
    Lock(usize),
    /// Has all its locks, and waits for the door.
    Door,
    /// Behind the door, with all its locks.
    TriesSlot,
    /// Wants to look for a place in the outer call's slot before it stands in line.
    DoorForPlaceInside,
    TriesPlaceInside,
    /// Waits for the line, or for the place in the outer call's slot.
    Line,
    /// First in line, and waits for the door.
    First,
    FirstTriesSlot,
    /// Has a slot behind the door, and waits for its bell. The number is that of [`At::TriesLock`].
    Bell(Option<usize>),
    TriesLock(usize),
    /// Waits for one of these bells to ring.
    Bells(u8),
    Running,
    /// Has given its slot back, and not its bell.
    Ending,
    /// Has given both back, and not its locks.
    Ended,
    Done,
}

/// The slot that a caller has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Slot {
    Own(usize),
    /// The place in the slot of this caller.
    Inside(usize),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    at: Vec<At>,
    slot: Vec<Option<Slot>>,
    bell: Vec<Option<Slot>>,
    /// The locks that each caller has.
    locks: Vec<Vec<Use>>,
    turnstile: Vec<Option<usize>>,
    door: Option<usize>,
    /// For each limit, the first in line.
    line: Vec<Option<usize>>,
    has_been_first: Vec<bool>,
    has_failed: Vec<bool>,
}

const LOCKS: usize = 3;
const LIMITS: usize = 3;

struct Model {
    callers: Vec<Caller>,
    rules: Rules,
}

impl Model {
    fn start(&self) -> State {
        let n = self.callers.len();
        State {
            at: vec![At::NotBegun; n],
            slot: vec![None; n],
            bell: vec![None; n],
            locks: vec![Vec::new(); n],
            turnstile: vec![None; LOCKS],
            door: None,
            line: vec![None; LIMITS + 1],
            has_been_first: vec![false; n],
            has_failed: vec![false; n],
        }
    }

    /// Returns how this caller uses its locks now.
    fn wants(&self, state: &State, who: usize) -> Vec<Use> {
        let alone = |used: &Use| match *used {
            Use::Shared(lock) if state.has_failed[who] => Use::AloneInTurn(lock),
            used => used,
        };
        self.callers[who].locks.iter().map(alone).collect()
    }

    fn can_take(&self, state: &State, who: usize, used: Use) -> bool {
        let others = (0..self.callers.len()).filter(|&other| other != who);
        let mut theirs = others.flat_map(|other| &state.locks[other]);
        theirs.all(|theirs| match (used, *theirs) {
            (Use::Shared(a), Use::Shared(b)) if a == b => true,
            (ours, theirs) => lock_of(ours) != lock_of(theirs),
        })
    }

    fn place_inside(&self, who: usize) -> Option<Slot> {
        let outer = self.callers[who].outer.filter(|_| self.rules != Rules::NoPlaceInside)?;
        Some(Slot::Inside(outer))
    }

    fn held(&self, state: &State) -> Vec<usize> {
        let own = state.slot.iter().filter_map(|slot| match slot {
            Some(Slot::Own(number)) => Some(*number),
            _ => None,
        });
        own.collect()
    }

    /// Returns the slot that this caller can take behind the door.
    fn free_slot(&self, state: &State, who: usize, anywhere: bool) -> Option<Slot> {
        let inside = self.place_inside(who).filter(|slot| !state.slot.contains(&Some(*slot)));
        let held = self.held(state);
        let limit = self.callers[who].limit;
        let own = || (0..limit).find(|number| !held.contains(number)).map(Slot::Own);
        inside.or_else(|| own().filter(|_| anywhere && held.len() < limit))
    }

    fn has_bell_rung(&self, state: &State, slot: Slot) -> bool {
        !state.bell.contains(&Some(slot))
    }

    /// Returns where this caller goes for the locks from number `from` on.
    fn to_lock(&self, state: &State, who: usize, from: usize) -> At {
        match self.wants(state, who).get(from) {
            None => At::Door,
            Some(Use::Alone(_)) => At::Lock(from),
            Some(Use::Shared(_) | Use::AloneInTurn(_)) => At::Turnstile(from),
        }
    }

    fn release_locks(&self, next: &mut State, who: usize) {
        next.locks[who].clear();
        next.turnstile.iter_mut().filter(|it| **it == Some(who)).for_each(|it| *it = None);
    }

    /// Returns all states that one step of this caller can lead to.
    fn steps(&self, state: &State, who: usize) -> Vec<State> {
        let caller = &self.callers[who];
        let mut next = state.clone();
        let go = |next: &State, to: At| {
            let mut next = next.clone();
            next.at[who] = to;
            vec![next]
        };
        match state.at[who] {
            At::Done => Vec::new(),
            At::NotBegun => {
                let begins = caller.outer.is_none_or(|outer| state.at[outer] == At::Running);
                if begins { go(&next, self.to_lock(state, who, 0)) } else { Vec::new() }
            }
            At::Turnstile(number) => {
                let lock = lock_of(self.wants(state, who)[number]);
                if state.turnstile[lock].is_some() {
                    return Vec::new();
                }
                next.turnstile[lock] = Some(who);
                go(&next, At::Lock(number))
            }
            At::Lock(number) => {
                let used = self.wants(state, who)[number];
                if !self.can_take(state, who, used) {
                    return Vec::new();
                }
                next.locks[who].push(used);
                next.turnstile.iter_mut().filter(|it| **it == Some(who)).for_each(|it| *it = None);
                go(&next, self.to_lock(state, who, number + 1))
            }
            At::Door | At::DoorForPlaceInside | At::First if state.door.is_some() => Vec::new(),
            At::Door => {
                next.door = Some(who);
                go(&next, At::TriesSlot)
            }
            At::DoorForPlaceInside => {
                next.door = Some(who);
                go(&next, At::TriesPlaceInside)
            }
            At::First => {
                next.door = Some(who);
                go(&next, At::FirstTriesSlot)
            }
            At::TriesSlot => {
                let overtakes = state.has_been_first[who] && self.rules != Rules::NeverOvertake;
                let anywhere = overtakes || state.line[caller.limit].is_none();
                // A second run that keeps its slot has one.
                if state.slot[who].is_some() {
                    next.door = None;
                    return go(&next, At::Running);
                }
                if let Some(slot) = self.free_slot(state, who, anywhere) {
                    next.slot[who] = Some(slot);
                    return go(&next, At::Bell(None));
                }
                if self.rules != Rules::KeepLocksInLine {
                    self.release_locks(&mut next, who);
                }
                next.door = None;
                let inside = self.place_inside(who).is_some();
                go(&next, if inside { At::DoorForPlaceInside } else { At::Line })
            }
            At::TriesPlaceInside => match self.free_slot(state, who, false) {
                Some(slot) => {
                    next.slot[who] = Some(slot);
                    go(&next, At::Bell(Some(0)))
                }
                None => {
                    next.door = None;
                    go(&next, At::Line)
                }
            },
            At::Line => {
                let mut all = Vec::new();
                if self.place_inside(who).is_some_and(|slot| self.has_bell_rung(state, slot)) {
                    all.extend(go(&next, At::DoorForPlaceInside));
                }
                if state.line[caller.limit].is_none() {
                    next.line[caller.limit] = Some(who);
                    all.extend(go(&next, At::First));
                }
                all
            }
            At::FirstTriesSlot => match self.free_slot(state, who, true) {
                Some(slot) => {
                    next.slot[who] = Some(slot);
                    go(&next, At::Bell(Some(0)))
                }
                None => {
                    next.door = None;
                    let held = self.held(state).iter().fold(0, |set, slot| set | 1 << slot);
                    go(&next, At::Bells(held))
                }
            },
            At::Bell(to) => {
                let slot = state.slot[who];
                if state.bell.contains(&slot) {
                    return Vec::new();
                }
                next.bell[who] = slot;
                match to {
                    Some(number) => go(&next, At::TriesLock(number)),
                    None => {
                        next.door = None;
                        go(&next, At::Running)
                    }
                }
            }
            At::TriesLock(number) => self.try_lock(state, who, number),
            At::Bells(set) => {
                let rung = |slot: Slot| self.has_bell_rung(state, slot);
                let own = (0..LIMITS).filter(|slot| set & 1 << slot != 0).map(Slot::Own);
                let mut all = own.chain(self.place_inside(who));
                let misses = self.rules == Rules::TryNoMore && self.held(state).is_empty();
                if all.any(rung) && !misses { go(&next, At::First) } else { Vec::new() }
            }
            At::Running => self.end(state, who),
            At::Ending => {
                next.bell[who] = None;
                go(&next, At::Ended)
            }
            At::Ended => {
                self.release_locks(&mut next, who);
                let begins_anew = state.has_failed[who] && !state.has_been_first[who];
                if begins_anew {
                    next.has_been_first[who] = true;
                    return go(&next, self.to_lock(state, who, 0));
                }
                go(&next, At::Done)
            }
        }
    }

    /// Tries the next lock behind the door, with a slot.
    fn try_lock(&self, state: &State, who: usize, number: usize) -> Vec<State> {
        let mut next = state.clone();
        let limit = self.callers[who].limit;
        let leave = |next: &mut State| {
            next.door = None;
            if next.line[limit] == Some(who) {
                next.line[limit] = None;
            }
        };
        match self.wants(state, who).get(number).copied() {
            None => {
                leave(&mut next);
                next.at[who] = At::Running;
            }
            Some(used) => {
                let in_turn = !matches!(used, Use::Alone(_));
                let is_busy = in_turn && state.turnstile[lock_of(used)].is_some();
                if !is_busy && self.can_take(state, who, used) {
                    next.locks[who].push(used);
                    next.at[who] = At::TriesLock(number + 1);
                } else {
                    self.release_locks(&mut next, who);
                    (next.slot[who], next.bell[who]) = (None, None);
                    leave(&mut next);
                    next.has_been_first[who] = true;
                    next.at[who] = self.to_lock(state, who, 0);
                }
            }
        }
        vec![next]
    }

    /// Lets a build end: well, or with a failure that a shared cache may have caused.
    fn end(&self, state: &State, who: usize) -> Vec<State> {
        let mut inside = self.callers.iter().zip(&state.at);
        if inside.any(|(other, at)| other.outer == Some(who) && *at != At::Done) {
            return Vec::new();
        }
        let mut well = state.clone();
        well.slot[who] = None;
        well.at[who] = At::Ending;
        // What is over does not matter any more.
        (well.has_been_first[who], well.has_failed[who]) = (true, state.has_failed[who]);
        let mut all = vec![well.clone()];
        if self.callers[who].may_fail && !state.has_failed[who] {
            let mut failed = well;
            failed.has_failed[who] = true;
            failed.has_been_first[who] = false;
            if self.rules == Rules::KeepSlotForSecondRun {
                failed.slot[who] = state.slot[who];
                self.release_locks(&mut failed, who);
                failed.at[who] = self.to_lock(&failed, who, 0);
            }
            all.push(failed);
        }
        all
    }

    /// Returns the state after this caller was killed, if it can be.
    fn killed(&self, state: &State, who: usize) -> Option<State> {
        let builds = matches!(state.at[who], At::Running | At::Ending | At::Ended);
        let is_there = !matches!(state.at[who], At::NotBegun | At::Done);
        if builds || !is_there || !self.callers[who].may_be_killed {
            return None;
        }
        let mut next = state.clone();
        self.release_locks(&mut next, who);
        (next.slot[who], next.bell[who]) = (None, None);
        next.door = next.door.filter(|&other| other != who);
        next.line.iter_mut().filter(|first| **first == Some(who)).for_each(|it| *it = None);
        next.at[who] = At::Done;
        Some(next)
    }

    /// Returns what is wrong with this state.
    fn fault(&self, state: &State, steps: &[Vec<State>]) -> Option<String> {
        let callers = 0..self.callers.len();
        let is_over = |who: usize| state.at[who] == At::Done;
        if steps.iter().all(Vec::is_empty) {
            return callers.clone().any(|who| !is_over(who)).then(|| "deadlock".to_owned());
        }
        let held = self.held(state).len();
        if callers.clone().all(|who| self.callers[who].limit < held) {
            return Some(format!("{held} builds at once"));
        }
        // Only builds can do anything: everybody else waits.
        let waits = |who: usize| steps[who].is_empty() && !is_over(who);
        let all_wait =
            callers.clone().all(|who| state.at[who] == At::Running || waits(who) || is_over(who));
        // A slot whose caller waits is idle, too.
        let mut used = state.clone();
        for who in callers.clone().filter(|&who| state.at[who] != At::Running) {
            used.slot[who] = None;
        }
        let could_run = |who: usize| {
            let begun = !matches!(state.at[who], At::NotBegun | At::Running | At::Done);
            begun
                && self.free_slot(&used, who, true).is_some()
                && self.wants(state, who).iter().all(|&used| {
                    self.can_take(state, who, used)
                        && state.turnstile[lock_of(used)].is_none_or(|other| other == who)
                })
        };
        let idle = callers.clone().find(|&who| all_wait && could_run(who));
        idle.map(|who| format!("caller {who} could use a slot that is idle"))
    }

    /// Visits all states. Returns how many there are.
    ///
    /// # Errors
    /// A state is faulty, or the callers can come back to a state and so go on for ever.
    fn search(&self) -> Result<usize, String> {
        #[derive(PartialEq)]
        enum Visit {
            Open,
            Closed,
        }
        let mut visits: HashMap<State, Visit> = HashMap::new();
        let mut stack: Vec<(State, Vec<State>)> = Vec::new();
        let enter = |state: State, visits: &mut HashMap<State, Visit>| {
            let steps: Vec<Vec<State>> =
                (0..self.callers.len()).map(|who| self.steps(&state, who)).collect();
            if let Some(fault) = self.fault(&state, &steps) {
                return Err(format!("{fault}: {state:?}"));
            }
            visits.insert(state.clone(), Visit::Open);
            let killed = (0..self.callers.len()).filter_map(|who| self.killed(&state, who));
            let next = steps.into_iter().flatten().chain(killed).collect();
            Ok((state, next))
        };
        let first = enter(self.start(), &mut visits)?;
        stack.push(first);
        while let Some((state, steps)) = stack.last_mut() {
            let Some(next) = steps.pop() else {
                visits.insert(state.clone(), Visit::Closed);
                stack.pop();
                continue;
            };
            match visits.get(&next) {
                Some(Visit::Open) => return Err(format!("livelock: {next:?}")),
                Some(Visit::Closed) => {}
                None => {
                    let entered = enter(next, &mut visits)?;
                    stack.push(entered);
                }
            }
        }
        Ok(visits.len())
    }
}

fn lock_of(used: Use) -> usize {
    match used {
        Use::Alone(lock) | Use::Shared(lock) | Use::AloneInTurn(lock) => lock,
    }
}

fn caller(limit: usize, locks: &[Use]) -> Caller {
    Caller { limit, locks: locks.to_vec(), ..Caller::default() }
}

fn nested(outer: usize, limit: usize, locks: &[Use]) -> Caller {
    Caller { outer: Some(outer), ..caller(limit, locks) }
}

fn failing(limit: usize, locks: &[Use]) -> Caller {
    Caller { may_fail: true, ..caller(limit, locks) }
}

fn search(rules: Rules, callers: &[Caller]) -> Result<usize, String> {
    Model { callers: callers.to_vec(), rules }.search()
}

#[track_caller]
fn assert_sound(callers: &[Caller]) {
    let states = search(Rules::AsTheyAre, callers).unwrap_or_else(|fault| panic!("{fault}"));
    assert!(states > 10, "only {states} states");
}

#[track_caller]
fn assert_found(rules: Rules, fault: &str, callers: &[Caller]) {
    let found = search(rules, callers).unwrap_err();
    assert!(found.starts_with(fault), "{found}");
}

use Use::{Alone, AloneInTurn, Shared};

#[test]
fn callers_with_tags_come_to_their_slots() {
    let tags: [&[Use]; 5] =
        [&[Alone(0)], &[Alone(1)], &[Alone(0), Alone(1)], &[Alone(1), Alone(2)], &[]];
    for limit in [1, 2] {
        for (n, a) in tags.iter().enumerate() {
            for (m, b) in tags.iter().enumerate().skip(n) {
                for c in &tags[m..] {
                    assert_sound(&[caller(limit, a), caller(limit, b), caller(limit, c)]);
                }
            }
        }
    }
}

#[test]
fn four_callers_come_to_their_slots() {
    for limit in [1, 2] {
        let [a, b] = [&[Alone(0)][..], &[Alone(1)]].map(|locks| caller(limit, locks));
        assert_sound(&[a.clone(), a.clone(), a.clone(), b.clone()]);
        assert_sound(&[a.clone(), a, b, caller(limit, &[Alone(0), Alone(1)])]);
    }
}

#[test]
fn caller_that_is_killed_at_any_moment_keeps_nobody_from_a_slot() {
    let killed = |limit, locks: &[Use]| Caller { may_be_killed: true, ..caller(limit, locks) };
    for limit in [1, 2] {
        assert_sound(&[
            killed(limit, &[Alone(0)]),
            killed(limit, &[Alone(0), AloneInTurn(2)]),
            caller(limit, &[Alone(0), Shared(2)]),
        ]);
        let inside = Caller { outer: Some(0), ..killed(limit, &[Alone(1)]) };
        assert_sound(&[caller(limit, &[Alone(0)]), inside.clone(), inside]);
    }
    assert_sound(&[killed(1, &[Alone(0)]), killed(2, &[Alone(1)]), caller(2, &[Alone(0)])]);
}

#[test]
fn callers_with_different_limits_come_to_their_slots() {
    for (a, b, c) in [(1, 2, 2), (1, 1, 2), (1, 2, 3), (2, 3, 3)] {
        for same in [&[Alone(0)][..], &[]] {
            assert_sound(&[caller(a, same), caller(b, &[Alone(0)]), caller(c, &[Alone(1)])]);
        }
    }
}

#[test]
fn callers_that_share_a_cache_come_to_their_slots_and_second_runs() {
    let shared = [Alone(0), Shared(2)];
    for limit in [1, 2] {
        assert_sound(&[failing(limit, &shared), failing(limit, &[Alone(1), Shared(2)])]);
        let alone = caller(limit, &[Alone(1), AloneInTurn(2)]);
        assert_sound(&[failing(limit, &shared), failing(limit, &[Shared(2)]), alone.clone()]);
        assert_sound(&[failing(limit, &shared), alone, caller(limit, &[Alone(0)])]);
    }
}

#[test]
fn nested_calls_come_to_their_slots() {
    for limit in [1, 2] {
        let outer = caller(limit, &[Alone(0)]);
        let siblings = [nested(0, limit, &[Alone(1)]), nested(0, limit, &[Alone(1)])];
        let [one, other] = siblings;
        assert_sound(&[outer.clone(), one.clone(), other]);
        assert_sound(&[outer.clone(), one.clone(), nested(0, limit, &[Alone(2)])]);
        assert_sound(&[outer.clone(), one.clone(), caller(limit, &[Alone(1)])]);
        assert_sound(&[
            outer.clone(),
            nested(0, limit, &[Alone(1)]),
            nested(1, limit, &[Alone(2)]),
        ]);
        assert_sound(&[outer, one, caller(limit, &[Alone(0)])]);
    }
}

#[test]
fn nested_call_that_fails_runs_again() {
    for limit in [1, 2] {
        let outer = caller(limit, &[Alone(0)]);
        let other = caller(limit, &[Alone(1), Shared(2)]);
        assert_sound(&[outer, Caller { outer: Some(0), ..failing(limit, &[Shared(2)]) }, other]);
    }
}

#[test]
fn model_finds_out_what_each_rule_is_for() {
    let outer = caller(1, &[Alone(0)]);
    let inside = nested(0, 1, &[Alone(1)]);
    let keep = Rules::KeepLocksInLine;
    assert_found(keep, "deadlock", &[outer.clone(), inside.clone(), caller(1, &[Alone(1)])]);
    assert_found(Rules::NoPlaceInside, "deadlock", &[outer, inside]);
    let same = caller(1, &[Alone(0)]);
    let four = [caller(1, &[Alone(1)]), same.clone(), same.clone(), same];
    assert_sound(&four);
    assert_found(Rules::NeverOvertake, "livelock", &four);
    let misses = [caller(1, &[Alone(0)]), caller(1, &[Alone(1)])];
    assert_found(Rules::TryNoMore, "deadlock", &misses);
    let keeps = Rules::KeepSlotForSecondRun;
    let sharing = [failing(2, &[Shared(2)]), failing(2, &[Shared(2)]), caller(2, &[Alone(0)])];
    assert_found(keeps, "caller", &sharing);
}
