//! Starts the calls, waits for each, and judges how each one ended.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, WaitId, WaitIdOptions};
use serde_json::Value;

use crate::caches::{said_to_be_shared, time_of};
use crate::engine::{Answer, Built};
use crate::plan::{AT_ONCE, Ends, Plan, REBORN, STREAM, STREAMS, Shape};
use crate::reborn::{self, REUSED};
use crate::world::{Process, State, World, began};

static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Starts one call after the other, sometimes several at once, until `end`.
pub fn launch_until(world: &Arc<World>, end: Instant) {
    for stream in 1..=STREAMS {
        let world = Arc::clone(world);
        RUNNING.fetch_add(1, Ordering::SeqCst);
        std::thread::spawn(move || {
            let calls = stream * STREAM..;
            for call in calls {
                // All calls would fail at once, and leave the others no time.
                while world.state().fault.is_some() && Instant::now() < end {
                    std::thread::sleep(Duration::from_millis(10));
                }
                if Instant::now() >= end {
                    break;
                }
                one_call(&world, call);
            }
            RUNNING.fetch_sub(1, Ordering::SeqCst);
        });
    }
    let mut rng = fastrand::Rng::with_seed(world.seed);
    for call in 0.. {
        while RUNNING.load(Ordering::SeqCst) >= AT_ONCE + STREAMS && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        if Instant::now() >= end {
            return;
        }
        RUNNING.fetch_add(1, Ordering::SeqCst);
        let world = Arc::clone(world);
        std::thread::spawn(move || {
            one_call(&world, call);
            RUNNING.fetch_sub(1, Ordering::SeqCst);
        });
        // In bursts, as CI systems start jobs.
        if rng.u32(..20) == 0 {
            std::thread::sleep(Duration::from_millis(rng.u64(20..150)));
        }
    }
}

/// Waits until the last call has ended. A call that still runs after `within` waits for ever.
pub fn wait_for_all(world: &World, within: Duration) {
    let until = Instant::now() + within;
    while RUNNING.load(Ordering::SeqCst) > 0 {
        if Instant::now() > until {
            let mut state = world.state();
            let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
            let stuck: Vec<String> = state
                .calls
                .iter()
                .map(|(pid, &call)| {
                    let said = fs::read_to_string(stderr_of(world, call)).unwrap_or_default();
                    let plan = world.plan(call);
                    format!("call {call} (pid {pid}) has not ended: {plan:?}\n{said}")
                })
                .collect();
            state.violations.extend(stuck);
            state.violations.push(locks);
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn stderr_of(world: &World, call: usize) -> std::path::PathBuf {
    world.folder.join(format!("out/{call}"))
}

/// Starts a call below a process with the pid of the call `victim`, which was killed, as soon as
/// that pid is free.
pub fn launch_reborn(world: &Arc<World>, victim: usize, pid: u32) {
    let world = Arc::clone(world);
    RUNNING.fetch_add(1, Ordering::SeqCst);
    std::thread::spawn(move || {
        reborn_call(&world, victim, pid);
        RUNNING.fetch_sub(1, Ordering::SeqCst);
    });
}

fn reborn_call(world: &World, victim: usize, number: u32) {
    let call = REBORN + victim;
    let plan = world.plan(call);
    let buildlock = world.buildlock();
    let mut command = reborn::command(world, number, plan.user);
    command.arg(&buildlock).args(plan.words(buildlock.to_str().unwrap()));
    command
        .env("CHAOS_CALL", call.to_string())
        .stdin(Stdio::null())
        .stderr(File::create(stderr_of(world, call)).unwrap());
    let start = begin(world, call, &plan);
    let ended = reborn::run(command, || {
        let mut state = world.state();
        let in_time = state.active.iter().any(|build| build.call == victim);
        state.strike(if in_time { REUSED } else { "process number reused too late" });
        world.note(&mut state, format!("call {call}: below {number}, which was call {victim}"));
    });
    let mut state = world.state();
    match ended {
        Some(reborn::Ended { pid, began, status }) => {
            conclude(world, &mut state, call, &plan, (pid, began), start, status);
        }
        None => {
            state.strike("process number not free in time");
            _ = fs::remove_file(stderr_of(world, call));
        }
    }
}

/// Notes that a call begins.
fn begin(world: &World, call: usize, plan: &Plan) -> Instant {
    let start = Instant::now();
    let mut state = world.state();
    state.called.insert(call, SystemTime::now());
    let caller = state.caller(call, plan);
    state.caches.begins(&caller);
    start
}

fn one_call(world: &World, call: usize) {
    let plan = world.plan(call);
    let buildlock = world.buildlock();
    let mut command = world.command(&buildlock);
    command
        .args(plan.words(buildlock.to_str().unwrap()))
        .env("CHAOS_CALL", call.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(stderr_of(world, call)).unwrap());
    if plan.ignores_term {
        command.env("CHAOS_IGNORE_TERM", "1");
    }
    if plan.closes {
        command.env("CHAOS_CLOSE", "1");
    }
    if let Some(user) = plan.user {
        command.uid(user).gid(user);
    }
    let start = begin(world, call, &plan);
    let mut child = command.spawn().expect("buildlock");
    let pid = child.id();
    {
        let mut state = world.state();
        state.calls.insert(pid, call);
        state.count("started");
    }
    // Not reaped yet, so that no other process with the same pid is signalled.
    let id = Pid::from_raw(pid.cast_signed()).unwrap();
    let unreaped = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while rustix::process::waitid(WaitId::Pid(id), unreaped).is_err() {}
    let began = began(pid).expect("its own zombie");
    let mut state = world.state();
    state.calls.remove(&pid);
    let status = child.wait().expect("its status");
    conclude(world, &mut state, call, &plan, (pid, began), start, status);
}

/// Judges how a call ended.
fn conclude(
    world: &World,
    state: &mut State,
    call: usize,
    plan: &Plan,
    process: Process,
    start: Instant,
    status: ExitStatus,
) {
    let pid = process.0;
    let stderr = stderr_of(world, call);
    let disturbed = state.disturbed.contains(&call);
    let answers = state.answers.remove(&process).unwrap_or_default();
    let built = state.built.remove(&call).unwrap_or_default();
    let said = fs::read_to_string(&stderr).unwrap_or_default();
    let ended = Ended {
        call,
        plan,
        disturbed,
        start,
        status,
        answers: &answers,
        built: &built,
        said: &said,
    };
    world.note(state, format!("call {call} (pid {pid}): {status} after {:?}", start.elapsed()));
    let wrong = judge(state, &ended);
    let caller = state.caller(call, plan);
    state.caches.ends(&caller);
    if wrong.is_empty() {
        _ = fs::remove_file(stderr);
    }
    for why in wrong {
        let what = format!("call {call} (pid {pid}): {status}: {why}\n  {plan:?}\n{said}");
        state.violations.push(what);
    }
}

struct Ended<'a> {
    call: usize,
    plan: &'a Plan,
    /// Whether it or its build was disturbed.
    disturbed: bool,
    start: Instant,
    status: ExitStatus,
    answers: &'a [Answer],
    built: &'a [Built],
    said: &'a str,
}

/// Returns what is wrong with how a call ended.
fn judge(state: &mut State, ended: &Ended<'_>) -> Vec<String> {
    let Ended { plan, disturbed, start, status, answers, built, said, .. } = *ended;
    let events: Vec<Value> =
        said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let has = |event: &str| events.iter().any(|line| line["event"] == event);
    let mut wrong = Vec::new();
    let mut check = |holds: bool, why: &str| {
        if !holds {
            wrong.push(why.to_owned());
        }
    };
    check(!said.contains("panicked"), "it panicked");
    let troubles = state.troubles_since(start);
    if events.iter().any(|line| line["event"] == "waiting" && line["max_builds"].is_number()) {
        state.count("waited for a slot");
    }
    if has("waiting") {
        state.count("waited");
        if status.success() && has("present") {
            state.count("skipped after waiting");
        }
    }

    match (status.code(), status.signal()) {
        (Some(0), _) => {
            state.count("exit 0");
            for tag in &plan.tags {
                let last = answers.iter().rfind(|answer| &answer.tag == tag);
                check(
                    last.is_some_and(|answer| answer.present == Some(true)),
                    &format!("0, but the last that it heard of {tag} is {last:?}"),
                );
            }
            // Without the outer call's lock file, a nested call knows nothing of --force.
            let built = built.iter().any(|it| it.well) || plan.shape == Shape::Nested;
            check(!plan.force || built, "0 with --force, and no build");
        }
        (Some(124), _) => {
            state.count("exit 124");
            check(plan.timeout.is_some() || plan.build_timeout.is_some(), "124 without a limit");
        }
        (Some(125), _) => {
            state.count("exit 125");
            let error = events.iter().rfind(|line| line["level"] == "ERROR");
            let error = error.map_or("", |line| line["message"].as_str().unwrap_or_default());
            // The error names the file that an ordinary user has made unusable.
            let named = state.was_meddled(start, |file| names_in_an_error(&events, file));
            let says = |words: &str| error.contains(words);
            let since = |what: &str| troubles.contains(&what);
            let missing = plan.ends == Ends::Emptily || since("image");
            let caused = says("cannot tell whether the image is present") && since("engine")
                || says("the build command exited 0, but") && (missing || since("engine"))
                || says("No space left") && since("disk")
                || says("the lock folder") && since("folder")
                || named
                // A nested call has reported it.
                || plan.shape == Shape::Nested && (missing || !troubles.is_empty());
            check(caused || disturbed, &format!("125 without a cause: {error:?}"));
            check(!error.is_empty(), "125 without a word");
        }
        (Some(code), _) => {
            state.count("exit by COMMAND's status");
            let planned = match plan.ends {
                Ends::Badly(status) => i32::from(status) == code,
                // Otherwise it would have been run again, alone.
                Ends::BadlyBeside(status) => {
                    let once = plan.no_retry || plan.timeout.is_some();
                    let hindered =
                        disturbed || !troubles.is_empty() || is_meddled(state, plan, start);
                    i32::from(status) == code && (once || hindered)
                }
                Ends::Well | Ends::Emptily => false,
            };
            let shared = plan.share_failure && code < 124;
            let broken = code == 1 && !troubles.is_empty();
            // The status of a shell whose client was killed.
            let killed = disturbed && [1, 129, 130, 131, 137, 143].contains(&code);
            check(planned || shared || broken || killed, "a status without a cause");
        }
        (None, Some(signal)) => {
            state.count("exit by a signal");
            check(disturbed, &format!("ended by signal {signal}, which nobody sent"));
        }
        (None, None) => check(false, "neither a status nor a signal"),
    }

    // A nested call looks itself, as another process.
    if !plan.force && plan.shape != Shape::Nested {
        for build in built {
            let mut before = answers.iter().filter(|answer| answer.at < build.began);
            check(
                before.any(|answer| answer.present == Some(false)),
                "it built though it never heard that an image is missing",
            );
        }
    }
    let building = events.iter().find(|line| line["event"] == "building");
    let building = building.and_then(time_of);
    for inode in built.iter().flat_map(|build| &build.inodes) {
        let (Some(began), Some(&(gone, _))) = (building, state.displaced.get(inode)) else {
            continue;
        };
        // There is always a moment between the last check and the message. A loaded machine makes
        // it longer, and a stopped process makes it last.
        check(
            disturbed || began < gone + Duration::from_millis(250),
            "it built under a lock file that had been taken away before",
        );
    }
    wrong.extend(judge_caches(state, ended, &events));
    wrong
}

fn names_in_an_error(events: &[Value], file: &str) -> bool {
    let errors = events.iter().filter(|line| line["level"] == "ERROR");
    errors.filter_map(|line| line["message"].as_str()).any(|message| message.contains(file))
}

/// Has an ordinary user meddled with a lock file that the call needs?
fn is_meddled(state: &State, plan: &Plan, start: Instant) -> bool {
    let files: Vec<String> = plan.resources().iter().flat_map(|it| it.files()).collect();
    state.was_meddled(start, |file| files.iter().any(|it| it == file))
}

/// Returns what is wrong with how a call had its caches.
fn judge_caches(state: &mut State, ended: &Ended<'_>, events: &[Value]) -> Option<String> {
    let Ended { call, plan, disturbed, start, built, .. } = *ended;
    if built.len() > plan.runs_max() {
        return Some(format!("{} builds, where there may be {}", built.len(), plan.runs_max()));
    }
    let caller = state.caller(call, plan);
    if let Some(starved) = state.caches.starved(&caller, events) {
        return Some(starved);
    }
    if plan.shape == Shape::Nested {
        return None;
    }
    let said = said_to_be_shared(events);
    let really: Vec<_> = built.iter().map(|build| build.shared.clone()).collect();
    if said.len() == really.len() && said != really {
        return Some(format!("it says that it shared {said:?}, and shared {really:?}"));
    }
    match built {
        [first, second] => {
            state.count("run again, alone");
            let may = !first.well && !first.shared.is_empty() && second.shared.is_empty();
            (!may).then(|| format!("run again as it should not be: {built:?}"))
        }
        // An end of the build, or a failure to get the locks again, leaves it at one run.
        [only] if !only.well && !only.shared.is_empty() => {
            let one = plan.no_retry || plan.timeout.is_some() || plan.build_timeout.is_some();
            let one = one || disturbed || !state.troubles_since(start).is_empty();
            // Another call may have built the image before its second run.
            let one = one || plan.limited && ended.status.success();
            let one = one || is_meddled(state, plan, start);
            (!one).then(|| "it failed with a shared cache, and was not run again".to_owned())
        }
        _ => None,
    }
}
