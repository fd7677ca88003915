//! The engine: it answers look-ups, runs builds, breaks when told to, and sees everything.
//!
//! As with the real engine, a build runs for as long as its client's connection is open. So killing
//! a client ends its build.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::caches::Usage;
use crate::client::{Descriptor, Lock, Order};
use crate::plan::{CACHE_LOCKS, Ends, MAX_BUILDS, Plan, Resource};
use crate::saboteur::GUARD_REMOVED;
use crate::world::{GUARD, State, World, began};

/// What may be wrong with the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its socket is missing.
    Down,
    /// It accepts connections, and never answers.
    Hangs,
    /// It ends each connection at once.
    Closes,
    /// It reports an internal error.
    Status500,
    /// Another server answers in its place, with a 404 of its own.
    Another404,
    /// Its answers end in the middle.
    CutsShort,
}

pub const FAULTS: [Fault; 6] = [
    Fault::Down,
    Fault::Hangs,
    Fault::Closes,
    Fault::Status500,
    Fault::Another404,
    Fault::CutsShort,
];

/// What the engine said about an image.
#[derive(Clone, Debug)]
pub struct Answer {
    pub tag: String,
    /// None if it gave no certain answer.
    pub present: Option<bool>,
    pub at: Instant,
}

/// A build that runs.
pub struct Build {
    pub call: usize,
    /// The client.
    pub pid: u32,
    pub handle: Option<rustix::fd::OwnedFd>,
    connection: UnixStream,
    /// When it ends, unless something ends it before.
    pub until: Instant,
    resources: Vec<Resource>,
    inherited: Vec<Descriptor>,
}

/// A build that has ended.
#[derive(Clone, Debug)]
pub struct Built {
    pub began: Instant,
    /// Whether it ended with 0.
    pub well: bool,
    /// The inodes of the lock files that it held.
    pub inodes: Vec<u64>,
    /// The caches that it shared.
    pub shared: Vec<String>,
}

/// The listening thread.
pub struct Listening {
    thread: JoinHandle<()>,
    over: Arc<AtomicBool>,
}

impl Listening {
    pub fn stop(self, world: &World) {
        self.over.store(true, Ordering::SeqCst);
        self.thread.join().expect("the engine");
        _ = std::fs::remove_file(world.socket());
    }
}

/// The interval at which threads look for changes that no descriptor reports.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

pub fn start(world: &Arc<World>) -> Listening {
    let over = Arc::new(AtomicBool::new(false));
    let (world, end) = (Arc::clone(world), Arc::clone(&over));
    let mut listener = Some(listen(&world));
    let thread = std::thread::spawn(move || {
        while !end.load(Ordering::SeqCst) {
            let state = world.state();
            let down = state.fault == Some(Fault::Down);
            if down && listener.take().is_some() {
                // While the state is locked, so that the socket shows that the fault is over.
                _ = std::fs::remove_file(world.socket());
            }
            drop(state);
            match (&listener, down) {
                (None, false) => listener = Some(listen(&world)),
                (None, true) => std::thread::sleep(LOOK_AGAIN),
                (Some(listener), _) => {
                    if !is_readable(listener, LOOK_AGAIN) {
                        continue;
                    }
                    let Ok((stream, _)) = listener.accept() else { continue };
                    let world = Arc::clone(&world);
                    std::thread::spawn(move || serve(&world, stream));
                }
            }
        }
    });
    Listening { thread, over }
}

fn listen(world: &World) -> UnixListener {
    // Open to every user from the first moment.
    let fresh = world.folder.join("engine.new");
    let listener = UnixListener::bind(&fresh).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o666)).unwrap();
    std::fs::rename(&fresh, world.socket()).unwrap();
    listener
}

fn is_readable(socket: &impl std::os::fd::AsFd, within: Duration) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN | PollFlags::RDHUP)];
    let within = Timespec::try_from(within).unwrap();
    rustix::event::poll(&mut polled, Some(&within)).is_ok_and(|ready| ready > 0)
}

fn serve(world: &World, stream: UnixStream) {
    stream.set_nonblocking(false).unwrap();
    let Ok(peer) = rustix::net::sockopt::socket_peercred(&stream) else { return };
    let pid = peer.pid.as_raw_nonzero().get().cast_unsigned();
    let mut reader = BufReader::new(&stream);
    let mut first = String::new();
    if reader.read_line(&mut first).is_err() {
        return;
    }
    if let Some(order) = first.strip_prefix("BUILD ") {
        let Ok(order) = serde_json::from_str::<Order>(order) else { return };
        return build(world, pid, order, &stream);
    }
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
        line.clear();
    }
    if first.starts_with("GET /system/df") {
        return tell_usage(world, pid, &stream);
    }
    if first.starts_with("GET /events?") {
        // None of its prunes is on request.
        _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    let Some(tag) = first.strip_prefix("GET /images/").and_then(|rest| rest.split("/json ").next())
    else {
        return;
    };
    look(world, pid, &tag.replace("%3A", ":"), &stream);
}

fn look(world: &World, pid: u32, tag: &str, mut stream: &UnixStream) {
    let began = began(pid);
    let fault = {
        let mut state = world.state();
        let fault = state.fault;
        let present = match fault {
            None => Some(state.images.contains_key(tag)),
            Some(_) => None,
        };
        let answer = Answer { tag: tag.to_owned(), present, at: Instant::now() };
        // A client that was killed while it waited never saw the answer.
        if let Some(began) = began {
            state.answers.entry((pid, began)).or_default().push(answer.clone());
        }
        match (fault, answer.present) {
            (None, Some(true)) => {
                drop(state);
                let body = format!(r#"{{"Id":"sha256:0","Os":"linux","RepoTags":["{tag}"]}}"#);
                return reply(stream, "200 OK", &body, body.len());
            }
            (None, _) => {
                drop(state);
                let body = format!(r#"{{"message":"No such image: {tag}"}}"#);
                return reply(stream, "404 Not Found", &body, body.len());
            }
            (Some(fault), _) => fault,
        }
    };
    let no_such = format!(r#"{{"message":"No such image: {tag}"}}"#);
    match fault {
        Fault::Down | Fault::Closes => {}
        Fault::Hangs => {
            while world.state().fault == Some(Fault::Hangs) {
                std::thread::sleep(LOOK_AGAIN);
            }
        }
        Fault::Status500 => reply(stream, "500 Internal Server Error", &no_such, no_such.len()),
        Fault::Another404 => reply(stream, "404 Not Found", "page not found\n", 15),
        Fault::CutsShort => match tag.len() % 2 {
            0 => reply(stream, "404 Not Found", &no_such, 4096),
            _ => _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-"),
        },
    }
}

/// Tells a client which cache mounts there are.
fn tell_usage(world: &World, pid: u32, stream: &UnixStream) {
    /// Sometimes longer than the call waits.
    const SLOW: [u64; 5] = [20, 50, 100, 400, 2500];
    let (usage, body) = {
        let mut state = world.state();
        if state.fault.is_some() {
            return;
        }
        let usage = state.caches.usage;
        let mounts = state.caches.mounts();
        let records = mounts.iter().map(|(id, used)| {
            let used = humantime::format_rfc3339_nanos(*used);
            format!(r#"{{"ID":"{id}","Type":"exec.cachemount","LastUsedAt":"{used}"}}"#)
        });
        let other = r#"{"ID":"r1","Type":"regular","LastUsedAt":null}"#.to_owned();
        let records: Vec<String> = records.chain([other]).collect();
        if let Some(&call) = state.calls.get(&pid) {
            state.caches.tell(call, usage.is_none().then_some(mounts));
            state.count("asked for cache mounts");
        }
        (usage, format!(r#"{{"BuildCache":[{}]}}"#, records.join(",")))
    };
    match usage {
        None => reply(stream, "200 OK", &body, body.len()),
        Some(Usage::Nothing) => reply(stream, "200 OK", r#"{"BuildCache":[]}"#, 17),
        Some(Usage::Error) => reply(stream, "500 Internal Server Error", &body, body.len()),
        Some(Usage::Slow) => {
            std::thread::sleep(Duration::from_millis(SLOW[pid as usize % SLOW.len()]));
            reply(stream, "200 OK", &body, body.len());
        }
        Some(Usage::CutsShort) => reply(stream, "200 OK", &body, body.len() + 9),
    }
}

fn reply(mut stream: &UnixStream, status: &str, body: &str, length: usize) {
    let kind = "Content-Type: application/json";
    let head = format!("HTTP/1.1 {status}\r\n{kind}\r\nContent-Length: {length}\r\n\r\n");
    _ = stream.write_all(format!("{head}{body}").as_bytes());
}

fn build(world: &World, pid: u32, mut order: Order, mut stream: &UnixStream) {
    world.state().add_earlier_names(&mut order.inherited);
    let plan = world.plan(order.call);
    let inodes: Vec<u64> = order.inherited.iter().map(|it| it.inode).collect();
    let shared = shared_caches(&plan, &order.inherited);
    let alone = caches_alone(&plan, &order.inherited);
    let began = SystemTime::now();
    let start = Instant::now();
    let until = start + plan.takes;
    let handle = rustix::process::Pid::from_raw(pid.cast_signed()).and_then(|pid| {
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
    });
    {
        let mut state = world.state();
        if state.fault.is_some() {
            // It is refused, but there was an attempt to build.
            state.built.entry(order.call).or_default().push(Built {
                began: start,
                well: false,
                inodes,
                shared,
            });
            return;
        }
        let build = Build {
            call: order.call,
            pid,
            handle,
            connection: stream.try_clone().unwrap(),
            until,
            resources: plan.resources(),
            inherited: order.inherited,
        };
        world.note(&mut state, format!("call {}: build by {pid} {:?}", order.call, plan.tags));
        admit(world, &mut state, &build, &plan);
        state.caches.use_mounts(&plan);
        state.active.push(build);
        state.count("builds");
    }
    let cancelled = loop {
        let left = until.saturating_duration_since(Instant::now());
        if is_readable(&stream, left.min(LOOK_AGAIN)) {
            break true;
        }
        if world.state().fault.is_some_and(|fault| matches!(fault, Fault::Down | Fault::Closes)) {
            break true;
        }
        if left.is_zero() {
            break false;
        }
    };
    let status = {
        let mut state = world.state();
        let before = state.active.len();
        state.active.retain(|build| build.pid != pid || build.call != order.call);
        // Another thread may have seen it end first, and removed it.
        let swept = state.active.len() == before;
        // Looked at while no other thread can look at the images.
        let gone = swept || is_readable(&stream, Duration::ZERO);
        let status = match (cancelled || gone, plan.ends) {
            (true, _) => None,
            (false, Ends::Badly(status)) => Some(status),
            (false, Ends::BadlyBeside(status)) if !shared.is_empty() => Some(status),
            (false, Ends::Emptily) => Some(0),
            (false, Ends::Well | Ends::BadlyBeside(_)) => {
                let lost = state.has_lost_one(&inodes);
                state.images.extend(plan.tags.iter().map(|tag| (tag.clone(), lost)));
                Some(0)
            }
        };
        let well = status == Some(0);
        state.caches.use_mounts(&plan);
        // A build without an image has still succeeded if another one has made it.
        let there = plan.tags.iter().all(|tag| state.images.contains_key(tag));
        if well && (there || state.has_lost_one(&inodes)) {
            let caller = state.caller(order.call, &plan);
            state.caches.built(&caller, began, &alone);
        }
        state.built.entry(order.call).or_default().push(Built {
            began: start,
            well,
            inodes,
            shared,
        });
        world.note(&mut state, format!("call {}: build by {pid} ends: {status:?}", order.call));
        status
    };
    if let Some(status) = status {
        _ = stream.write_all(format!("{status}\n").as_bytes());
        _ = stream.shutdown(std::net::Shutdown::Write);
        // Until the client has gone, so that its descriptor does not look like a leak.
        _ = stream.read(&mut [0]);
    }
}

/// Returns the caches that a build shares with others.
fn shared_caches(plan: &Plan, inherited: &[Descriptor]) -> Vec<String> {
    let is_shared = |id: &String| {
        let file = Resource::new(CACHE_LOCKS, id);
        let of_it = |it: &&Descriptor| it.link.contains(file.name());
        inherited.iter().filter(of_it).any(|it| it.lock == Some(Lock::Shared))
    };
    plan.caches.iter().map(|cache| cache.id.clone()).filter(is_shared).collect()
}

/// Returns the caches that a build, or the nested call that it is in, has for itself.
fn caches_alone(plan: &Plan, inherited: &[Descriptor]) -> Vec<String> {
    let is_alone = |id: &String| {
        let file = Resource::new(CACHE_LOCKS, id);
        // By their names, wherever these files have been moved.
        let nested = file.name().replace(".lock", ".1.lock");
        let of_it = |it: &&Descriptor| it.link.contains(file.name()) || it.link.contains(&nested);
        inherited.iter().filter(of_it).any(|it| it.lock == Some(Lock::Exclusive))
    };
    plan.caches.iter().map(|cache| cache.id.clone()).filter(is_alone).collect()
}

/// Checks that a new build holds what it must hold, and holds it alone.
fn admit(world: &World, state: &mut State, new: &Build, plan: &Plan) {
    let mut wrong = Vec::new();
    // A closed connection shows that a build has ended, before its lock becomes free.
    state.active.retain(|build| !is_readable(&build.connection, Duration::ZERO));
    for resource in &new.resources {
        let ours = new.locks_of(resource);
        let holds = |it: &Option<Lock>| match it {
            Some(Lock::Exclusive) => true,
            Some(Lock::Shared) => resource.is_cache() || resource.can_be_shared() && plan.shares,
            None => false,
        };
        if !ours.iter().any(|it| holds(&it.1)) {
            wrong.push(format!("call {} builds without the lock of {}", new.call, resource.text));
        }
        for other in state.active.iter().filter(|other| other.resources.contains(resource)) {
            let theirs = other.locks_of(resource);
            // One of them may have a lock file that has left its place, which does no harm while
            // the guard exists. Whether that happened before the build began is judged when the
            // call has ended.
            let all = || ours.iter().chain(&theirs);
            let excused = state.struck.contains_key(GUARD_REMOVED)
                && all().any(|it| state.displaced.contains_key(&it.0))
                && ours.iter().all(|it| theirs.iter().all(|theirs| theirs.0 != it.0));
            if all().all(|it| it.1 == Some(Lock::Shared)) {
                let what = match resource.is_cache() {
                    true => "shares a cache with others",
                    false => "shares a named lock with others",
                };
                *state.counts.entry(what).or_default() += 1;
            } else if excused {
                *state.counts.entry("overlaps after a lock file was taken away").or_default() += 1;
            } else {
                wrong.push(format!(
                    "call {} (pid {}, {ours:?}) builds {} while call {} (pid {}, {theirs:?}) does",
                    new.call, new.pid, resource.text, other.call, other.pid
                ));
            }
        }
    }
    wrong.extend(admit_to_slot(world, state, new, plan));
    for cache in &plan.caches {
        let resource = Resource::new(CACHE_LOCKS, &cache.id);
        let ours = new.locks_of(&resource);
        let shared = ours.iter().any(|it| it.1 == Some(Lock::Shared));
        let caller = state.caller(new.call, plan);
        state.caches.begin_with(&caller, cache, shared);
        if !shared {
            state.count("alone with a cache");
            continue;
        }
        let is_disturbed = |call| state.disturbed.contains(&call);
        let plan_of = |call| world.plan(call);
        wrong.extend(state.caches.shares(&caller, cache, is_disturbed, plan_of));
    }
    // No other build can have made them since the look, unless one of the two had lost its lock.
    let inodes: Vec<u64> = new.inherited.iter().map(|it| it.inode).collect();
    let all_there = plan.tags.iter().all(|tag| state.images.get(tag) == Some(&false));
    if !plan.force && all_there && !state.has_lost_one(&inodes) {
        wrong.push(format!("call {} builds what is there: {:?}", new.call, plan.tags));
    }
    for descriptor in new.inherited.iter().filter(|it| !world.from_outside.contains(it)) {
        let Descriptor { number, link, .. } = descriptor;
        let level_0 = link.replace(".1.lock", ".lock");
        // Each lock also has a byte of the guard, which may have been removed since.
        let is_guard = link.trim_end_matches(" (deleted)").ends_with(GUARD);
        let is_slot = plan.limited && is_a_slots(link);
        let ours = is_guard
            || is_slot
            || new.resources.iter().any(|resource| level_0.contains(resource.name()));
        if !ours || *number < 10 {
            wrong.push(format!("call {} inherits descriptor {number}: {link}", new.call));
        }
    }
    if !wrong.is_empty() {
        let scene = format!("{plan:?} {:?}", new.inherited);
        world.note(state, &scene);
        state.violations.extend(wrong);
    }
}

/// Is this the file of a slot, wherever it has been moved? Those of other locks are named by a hash.
fn is_a_slots(link: &str) -> bool {
    let name = link.rsplit('/').next().unwrap_or_default();
    let number = name.split('.').next().unwrap_or_default();
    (1..=3).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Checks that a new build has a slot if it needs one, and that not too many have one.
fn admit_to_slot(world: &World, state: &mut State, new: &Build, plan: &Plan) -> Option<String> {
    if !plan.limited {
        return None;
    }
    let is_slot = |it: &Descriptor| it.lock == Some(Lock::Exclusive) && is_a_slots(&it.link);
    if !new.inherited.iter().any(is_slot) {
        return Some(format!("call {} builds without a slot", new.call));
    }
    let running = state.active.iter().filter(|build| world.plan(build.call).limited).count();
    let without_guard = state.struck.contains_key(GUARD_REMOVED);
    if running < MAX_BUILDS {
        if running + 1 == MAX_BUILDS {
            state.count("takes the last slot");
        }
        return None;
    }
    state.count("builds beyond the limit without the guard");
    (!without_guard).then(|| format!("call {} builds beside {running} others", new.call))
}

impl Build {
    pub fn uses_cache(&self, id: &str) -> bool {
        self.resources.iter().any(|resource| resource.is_cache() && resource.text == id)
    }

    pub fn holds(&self, inode: u64) -> bool {
        self.inherited.iter().any(|it| it.inode == inode)
    }

    /// Returns the lock files of everything that it needs.
    pub fn lock_files(&self) -> Vec<String> {
        self.resources.iter().map(|it| it.file.clone()).collect()
    }

    /// Returns the inodes of the lock files that it holds for a resource, and how. A nested call
    /// has its own beside those of the outer one.
    fn locks_of(&self, resource: &Resource) -> Vec<(u64, Option<Lock>)> {
        let of_it = self.inherited.iter().filter(|it| it.link.contains(resource.name()));
        of_it.map(|it| (it.inode, it.lock)).collect()
    }
}
