//! Builds that note which lock they hold, so that two that overlap can be seen.

use std::collections::{BTreeMap, BTreeSet};

use super::fixture::Fixture;
use super::program::{Finished, Invocation, Running, buildlock_path};

/// Notes its start and its end, with the inode of the lock it has inherited. It makes its image
/// itself, since buildlock asks for that afterwards.
const NOTING: &str = r#"#!/bin/sh
for lock in /proc/$$/fd/[1-9][0-9][0-9][0-9]; do :; done
inode=$(stat -L -c %i "$lock") || exit 77
echo "start $$ $inode" >>"$STANDIN/notes"
echo linux/amd64 >"$STANDIN/images/$1"
[ -z "$2" ] || echo >"$STANDIN/$2"
echo "end $$ $inode" >>"$STANDIN/notes"
"#;

/// Makes calls, one after the other. Each must end with one of these statuses.
const CALLING: &str = r#"#!/bin/sh
accepted=$1 times=$2
shift 2
for n in $(seq "$times"); do
    "$@"
    status=$?
    echo "$status" >>"$STANDIN/statuses"
    case " $accepted " in
    *" $status "*) ;;
    *) echo "call $n ended with $status" >&2 && exit 99 ;;
    esac
done
"#;

/// Puts `noting TAG [PROOF]` and `calling STATUSES TIMES COMMAND...` into PATH.
pub fn install(f: &Fixture) {
    f.install_script("noting", NOTING);
    f.install_script("calling", CALLING);
}

/// Prepares `buildlock ARGS` this many times, one after the other. Each call must end with one of
/// these statuses.
pub fn calling<'f>(f: &'f Fixture, statuses: &str, times: usize, args: &[&str]) -> Invocation<'f> {
    let calling = f.program("calling").arg(statuses).arg(times.to_string());
    calling.arg(buildlock_path()).args(args)
}

/// Waits until this many calls of `calling` have ended, and then all of these programs.
///
/// Each call has the whole bound for itself, so that the test does not fail on a busy machine.
pub fn wait_for_calls<'f>(f: &'f Fixture, calls: usize, all: Vec<Running<'f>>) -> Vec<Finished> {
    for n in 1..=calls {
        f.wait_for(&format!("call {n} of {calls}"), || f.lines("statuses").len() >= n);
    }
    let finished: Vec<_> = all.into_iter().map(Running::wait).collect();
    for one in &finished {
        one.assert_code(0);
    }
    finished
}

/// Returns how many builds began.
pub fn builds(f: &Fixture) -> usize {
    f.lines("notes").iter().filter(|line| line.starts_with("start ")).count()
}

/// Fails if two builds overlapped, whatever lock they had.
pub fn assert_alone(f: &Fixture) {
    let mut running = None;
    for line in f.lines("notes") {
        let words: Vec<&str> = line.split(' ').collect();
        match (words[0], &running) {
            ("start", None) => running = Some(words[1].to_owned()),
            ("start", Some(other)) => panic!("{} ran beside {other}\n{}", words[1], f.scene()),
            _ => running = None,
        }
    }
}

/// Fails if two builds with one lock overlapped, or if a build began with a lock file that had been
/// removed before it took the lock.
///
/// A test that removes lock files notes it (`removed INODE`) and keeps them open, so that no
/// inode's number comes twice. Returns how often two builds with different locks overlapped.
pub fn assert_locks_exclude(f: &Fixture) -> usize {
    let mut overlaps = 0;
    let mut running = BTreeMap::new();
    // One build may still begin with a removed file: it had found the file in place before the
    // removal, unless another build with that file was running then.
    let mut removed = BTreeSet::new();
    for line in f.lines("notes") {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        match (words[0].as_str(), &words[1..]) {
            ("start", [pid, inode]) => {
                let same = running.iter().find(|(_, held)| *held == inode);
                assert!(same.is_none(), "{line}: beside {same:?}\n{}", f.scene());
                overlaps += usize::from(!running.is_empty());
                let late = removed.contains(&(inode.clone(), true));
                assert!(!late, "{line}: its file had been removed before\n{}", f.scene());
                if removed.remove(&(inode.clone(), false)) {
                    removed.insert((inode.clone(), true));
                }
                running.insert(pid.clone(), inode.clone());
            }
            ("end", [pid, _]) => drop(running.remove(pid)),
            ("removed", [inode]) => {
                let is_held = running.values().any(|held| held == inode);
                removed.insert((inode.clone(), is_held));
            }
            _ => panic!("{line:?} in the notes"),
        }
    }
    assert!(running.is_empty(), "{running:?}\n{}", f.scene());
    overlaps
}
