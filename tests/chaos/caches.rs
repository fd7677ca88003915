//! What is known of build caches: which builds may have warmed them for which files, when they were
//! forgotten, what the engine said of its mounts, and the order of callers.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::SystemTime;

use serde_json::Value;

use crate::plan::{CACHES, CacheUse, Plan, Shape};

/// How many later callers in a row may share a cache before a caller that waits to have it alone.
///
/// The turnstile is a flock, too, so now and then a later caller slips in. Not all may.
const OVERTAKERS_MAX: usize = 6;

/// What may be wrong with the engine's answer about its cache mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// It says that there are none.
    Nothing,
    /// It reports an internal error.
    Error,
    /// It must add up all sizes first.
    Slow,
    /// Its answer ends in the middle.
    CutsShort,
}

pub const USAGES: [Usage; 4] = [Usage::Nothing, Usage::Error, Usage::Slow, Usage::CutsShort];

/// All of it.
#[derive(Default)]
pub struct Caches {
    /// The contents of each file, and when it had them.
    files: BTreeMap<&'static str, Vec<Version>>,
    newest: u64,
    warmings: Vec<Warming>,
    /// When caches were forgotten: the id, and how long that took, from and to.
    forgotten: Vec<(String, SystemTime, SystemTime)>,
    /// The engine's mounts: by the cache's id, the mount's id and when it was used last.
    mounts: HashMap<String, (String, SystemTime)>,
    mounts_made: usize,
    pub usage: Option<Usage>,
    /// What the engine told each call about its mounts.
    told: HashMap<usize, Vec<Told>>,
    /// Builds, in the order in which they began.
    begun: Vec<Begun>,
    /// When a cache's turnstile was removed: a caller in it then no longer holds back others.
    turnstiles_gone: Vec<(String, SystemTime)>,
}

struct Version {
    content: u64,
    from: SystemTime,
    to: Option<SystemTime>,
}

/// A build that may have marked a cache as warm.
struct Warming {
    cache: CacheUse,
    call: usize,
    /// When its files may have been read: from, and to; until now if none.
    from: SystemTime,
    to: Option<SystemTime>,
    /// When the build had ended; none if that is unknown.
    built: Option<SystemTime>,
    /// When the call had ended; none if it still runs.
    over: Option<SystemTime>,
}

/// What the engine told a call: none of its mounts if the answer was late or missing.
struct Told {
    at: SystemTime,
    mounts: Option<Vec<(String, SystemTime)>>,
}

/// A build that has begun with a cache.
struct Begun {
    cache: String,
    shared: bool,
    called: SystemTime,
    began: SystemTime,
}

/// The part of a call that matters here.
pub struct Caller<'a> {
    pub call: usize,
    pub plan: &'a Plan,
    pub called: SystemTime,
    pub disturbed: bool,
}

impl Caches {
    /// Puts something new into a cache's file, or sometimes an earlier content. This is one step,
    /// so that no reader sees half of it.
    pub fn change(&mut self, folder: &Path, file: &'static str, again: bool) {
        let before = self.files.get(file).and_then(|versions| versions.first());
        let content = match before {
            Some(first) if again => first.content,
            _ => {
                self.newest += 1;
                self.newest
            }
        };
        let fresh = folder.join("fresh");
        std::fs::write(&fresh, format!("{content}\n")).unwrap();
        let from = SystemTime::now();
        std::fs::rename(fresh, folder.join(file)).unwrap();
        let to = SystemTime::now();
        let versions = self.files.entry(file).or_default();
        if let Some(last) = versions.last_mut() {
            last.to = Some(to);
        }
        versions.push(Version { content, from, to: None });
    }

    /// Returns what may have been read in `file` between these times.
    fn read(&self, file: &str, from: SystemTime, to: SystemTime) -> Vec<u64> {
        let during = |it: &&Version| it.from <= to && it.to.is_none_or(|until| until >= from);
        self.files[file].iter().filter(during).map(|it| it.content).collect()
    }

    /// Notes that a call begins.
    ///
    /// A nested call may find everything present, which its outer one takes for a build. So it may
    /// warm its caches, whatever is built.
    pub fn begins(&mut self, caller: &Caller<'_>) {
        if caller.plan.shape == Shape::Nested {
            self.warms(caller, None, None);
        }
    }

    /// Notes that a build has ended with 0, with these caches for itself.
    pub fn built(&mut self, caller: &Caller<'_>, began: SystemTime, alone: &[String]) {
        self.warms(caller, Some(began), Some(alone));
    }

    fn warms(&mut self, caller: &Caller<'_>, to: Option<SystemTime>, alone: Option<&[String]>) {
        let caches = caller.plan.caches.iter().filter(|cache| !cache.files.is_empty());
        for cache in caches.filter(|cache| alone.is_none_or(|it| it.contains(&cache.id))) {
            self.warmings.push(Warming {
                cache: cache.clone(),
                call: caller.call,
                from: caller.called,
                to,
                built: alone.map(|_| SystemTime::now()),
                over: None,
            });
        }
    }

    /// Notes that a call has ended, and will not mark a cache any more. If a nested one was
    /// disturbed, the inner one may go on.
    pub fn ends(&mut self, caller: &Caller<'_>) {
        if caller.plan.shape == Shape::Nested && caller.disturbed {
            return;
        }
        let now = SystemTime::now();
        self.warmings
            .iter_mut()
            .filter(|it| it.call == caller.call)
            .for_each(|it| it.over = Some(now));
    }

    pub fn forgotten(&mut self, id: &str, from: SystemTime) {
        self.forgotten.push((id.to_owned(), from, SystemTime::now()));
    }

    pub fn turnstile_gone(&mut self, id: &str) {
        self.turnstiles_gone.push((id.to_owned(), SystemTime::now()));
    }

    /// Notes that a build uses its caches, or has used them.
    pub fn use_mounts(&mut self, plan: &Plan) {
        for cache in &plan.caches {
            let made = &mut self.mounts_made;
            let mount = self.mounts.entry(cache.id.clone()).or_insert_with(|| {
                *made += 1;
                (format!("m{made}"), SystemTime::now())
            });
            mount.1 = SystemTime::now();
        }
    }

    /// Removes all mounts that no build uses, as `docker builder prune` does.
    pub fn lose_mounts(&mut self, is_used: impl Fn(&str) -> bool) {
        self.mounts.retain(|id, _| is_used(id));
    }

    /// Returns what the engine says when it tells the truth.
    pub fn mounts(&self) -> Vec<(String, SystemTime)> {
        self.mounts.values().cloned().collect()
    }

    pub fn tell(&mut self, call: usize, mounts: Option<Vec<(String, SystemTime)>>) {
        self.told.entry(call).or_default().push(Told { at: SystemTime::now(), mounts });
    }

    /// Notes that a build begins with a cache.
    pub fn begin_with(&mut self, caller: &Caller<'_>, cache: &CacheUse, shared: bool) {
        let (cache, called, began) = (cache.id.clone(), caller.called, SystemTime::now());
        self.begun.push(Begun { cache, shared, called, began });
    }

    /// Returns what is wrong with a build that begins to share `cache`.
    pub fn shares(
        &self,
        caller: &Caller<'_>,
        cache: &CacheUse,
        is_disturbed: impl Fn(usize) -> bool,
        plan: impl Fn(usize) -> Plan,
    ) -> Option<String> {
        let Caller { call, called, .. } = *caller;
        let began = SystemTime::now();
        if cache.files.is_empty() {
            return Some(format!("call {call} shares {}, which it is to have alone", cache.id));
        }
        let since_forgotten = self
            .forgotten
            .iter()
            .filter(|(id, _, to)| *id == cache.id && *to < called)
            .map(|(_, from, _)| *from)
            .max();
        let ours: Vec<_> = cache.files.iter().map(|file| self.read(file, called, began)).collect();
        let warmings: Vec<&Warming> =
            self.warmings
                .iter()
                .filter(|it| it.cache == *cache)
                .filter(|it| since_forgotten.is_none_or(|from| it.over.is_none_or(|at| at >= from)))
                .filter(|it| {
                    let theirs = |file| self.read(file, it.from, it.to.unwrap_or(began));
                    cache.files.iter().zip(&ours).all(|(file, ours)| {
                        theirs(file).iter().any(|content| ours.contains(content))
                    })
                })
                .collect();
        if warmings.is_empty() {
            return Some(format!(
                "call {call} shares {}, which nobody has warmed for {ours:?}",
                cache.id
            ));
        }
        // With two caches and little time, it is unknown which answer was for which, and which came
        // too late.
        let is_plain = |plan: &Plan| plan.caches.len() == 1 && plan.shape != Shape::Nested;
        if !is_plain(caller.plan) || caller.disturbed || caller.plan.timeout.is_some() {
            return None;
        }
        // Its first answer is the one that counts.
        let told = self.told.get(&call)?.first()?;
        let there = told.mounts.as_ref()?;
        let may_be_left = |it: &&Warming| {
            if !is_plain(&plan(it.call)) || is_disturbed(it.call) {
                return true;
            }
            let mut told_then = self.told.get(&it.call).into_iter().flatten();
            let after = |told: &&Told| it.built.is_none_or(|built| told.at >= built);
            let noted = told_then.rfind(after);
            let Some(Told { at, mounts: Some(mounts) }) = noted else { return true };
            let mut used = mounts.iter().filter(|(_, used)| *used >= it.from).peekable();
            *at >= told.at
                || used.peek().is_none()
                || used.any(|(id, _)| there.iter().any(|(it, _)| it == id))
        };
        let is_left = warmings.iter().any(may_be_left);
        (!is_left).then(|| {
            format!(
                "call {call} shares {}, of which the engine has told it that it is gone",
                cache.id
            )
        })
    }

    /// Was a caller that waited to have a cache alone overtaken by callers that share it?
    pub fn starved(&self, caller: &Caller<'_>, events: &[Value]) -> Option<String> {
        if caller.disturbed || caller.plan.shape == Shape::Nested {
            return None;
        }
        let mut waits: HashMap<&str, SystemTime> = HashMap::new();
        for line in events {
            let (Some(id), Some(at)) = (line["cache"].as_str(), time_of(line)) else { continue };
            if line["event"] == "waiting" {
                waits.entry(id).or_insert(at);
                continue;
            }
            let gone = |(of, at): &(String, SystemTime)| of == id && *at >= caller.called;
            let is_over = line["event"] == "acquired" || line["event"] == "timeout";
            let Some(since) = waits.remove(id).filter(|_| is_over && line["mode"] != "shared")
            else {
                continue;
            };
            if self.turnstiles_gone.iter().any(gone) {
                continue;
            }
            let (mut row, mut longest) = (0, 0);
            for it in self.begun.iter().filter(|it| it.cache == id) {
                if it.began <= since || it.began >= at {
                    continue;
                }
                match it.shared {
                    false => row = 0,
                    true => row += usize::from(it.called > since),
                }
                longest = longest.max(row);
            }
            if longest > OVERTAKERS_MAX {
                return Some(format!(
                    "{longest} builds in a row that were called after it began to wait for {id} shared it first"
                ));
            }
        }
        None
    }
}

/// Returns the caches that each build shared, as the log says.
pub fn said_to_be_shared(events: &[Value]) -> Vec<Vec<String>> {
    let mut now: BTreeMap<String, bool> = BTreeMap::new();
    let mut builds = Vec::new();
    for line in events {
        match (line["event"].as_str(), line["cache"].as_str()) {
            (Some("acquired"), Some(id)) => {
                now.insert(id.to_owned(), line["mode"] == "shared");
            }
            (Some("building"), _) => {
                builds.push(now.iter().filter(|it| *it.1).map(|it| it.0.clone()).collect());
            }
            _ => {}
        }
    }
    builds
}

/// Returns when an event was logged.
pub fn time_of(event: &Value) -> Option<SystemTime> {
    humantime::parse_rfc3339(event["timestamp"].as_str()?).ok()
}

/// Returns every file that belongs to a cache.
pub fn files() -> Vec<&'static str> {
    let mut files: Vec<_> = CACHES.iter().flat_map(|(_, files)| files.iter().copied()).collect();
    files.sort_unstable();
    files.dedup();
    files
}
