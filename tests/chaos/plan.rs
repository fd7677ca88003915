//! What each call does, decided only by the seed and its number.

use std::time::Duration;

use fastrand::Rng;

/// How many calls run at the same time.
pub const AT_ONCE: usize = 48;
const TAGS: usize = 24;
const NAMES: usize = 6;
/// The build caches, and the files for which they are warm.
pub const CACHES: [(&str, &[&str]); 4] = [
    ("c0", &["c0.lock"]),
    ("c1", &["c1.lock"]),
    ("c2", &["c0.lock", "c2.lock"]),
    (BUSY, &["b.lock"]),
];
/// The cache that builds share at almost all times.
pub const BUSY: &str = "busy";
/// How many streams of calls keep it busy, and the number from which their calls count.
pub const STREAMS: usize = 6;
pub const STREAM: usize = 1_000_000;
/// The folder of the locks for caches.
pub const CACHE_LOCKS: &str = "cache-locks";
/// The folder of the slots.
pub const BUILD_SLOTS: &str = "build-slots";
/// How many builds may run at once of the calls that say so. They all say the same.
pub const MAX_BUILDS: usize = 2;
/// Ordinary users. Some calls run as the first, and both meddle with the lock folder.
pub const USERS: [u32; 2] = [65534, 65533];
/// The tags that only calls of ordinary users want, so that root never takes over the lock files:
/// one that many want, and the last ones.
const USERS_TAGS: [usize; 5] = [3, TAGS - 4, TAGS - 3, TAGS - 2, TAGS - 1];
/// The same of streams.
const USERS_STREAMS: [usize; 2] = [STREAMS - 2, STREAMS - 1];
/// From this number on, a call runs below a process with the pid of a killed call: the one whose
/// own number is this much smaller.
pub const REBORN: usize = 1_000_000_000;

/// One call.
#[derive(Clone, Debug)]
pub struct Plan {
    pub tags: Vec<String>,
    pub names: Vec<String>,
    /// It shares the named locks.
    pub shares: bool,
    /// It says how many builds may run at once.
    pub limited: bool,
    pub caches: Vec<CacheUse>,
    /// A nested call names them, too.
    pub inner_caches: bool,
    pub no_retry: bool,
    pub force: bool,
    pub share_failure: bool,
    pub timeout: Option<Duration>,
    pub build_timeout: Option<Duration>,
    pub shape: Shape,
    /// The user if it does not run as root.
    pub user: Option<u32>,
    /// How long its build takes.
    pub takes: Duration,
    pub ends: Ends,
    /// Its client goes on after TERM.
    pub ignores_term: bool,
    /// Its client closes what it has inherited, as sudo does.
    pub closes: bool,
}

/// A cache as a call names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheUse {
    pub id: String,
    /// None where it is never shared.
    pub files: Vec<&'static str>,
}

/// The kind of build command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `docker build`.
    Plain,
    /// A shell that waits for it.
    Shell,
    /// A shell that leaves a process behind for a while.
    Daemon,
    /// buildlock for the same tags, in a shell.
    Nested,
}

/// How a build ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    Well,
    /// With this status.
    Badly(u8),
    /// With this status if it shares a cache, like a build that needs a lost part of the cache.
    BadlyBeside(u8),
    /// With 0, but without an image.
    Emptily,
}

impl Plan {
    pub fn new(seed: u64, call: usize, other_users: bool) -> Self {
        if call >= REBORN {
            return Plan::new(seed, call - REBORN, other_users).reborn();
        }
        let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ call as u64);
        let plan = Plan::of_any(&mut rng, other_users);
        let plan = match call {
            0..STREAM => plan,
            _ => plan.of_stream(call / STREAM - 1, &mut rng),
        };
        let is_users = |tag: &String| {
            let tags = USERS_TAGS.iter().map(|n| format!("chaos:t{n}"));
            tags.chain(USERS_STREAMS.iter().map(|n| format!("chaos:s{n}"))).any(|it| it == *tag)
        };
        let is_users = other_users && plan.tags.iter().any(is_users);
        Plan { user: if is_users { Some(USERS[0]) } else { plan.user }, ..plan }
    }

    fn of_any(rng: &mut Rng, other_users: bool) -> Self {
        let one_in = |rng: &mut Rng, n: u32| rng.u32(..n) == 0;
        // A few tags that many want, and many that a few want.
        let tag = |rng: &mut Rng| {
            let n = if one_in(rng, 2) { rng.usize(..4) } else { rng.usize(..TAGS) };
            format!("chaos:t{n}")
        };
        let mut tags = vec![tag(rng)];
        if one_in(rng, 4) {
            tags.push(tag(rng));
        }
        if one_in(rng, 12) {
            tags.push(tag(rng));
        }
        let mut names = Vec::new();
        let shares = one_in(rng, 2);
        if one_in(rng, if shares { 2 } else { 4 }) {
            // One that many share.
            names.push(format!("n{}", if shares { 0 } else { rng.usize(..NAMES) }));
        }
        let shape = match rng.u32(..10) {
            0..6 => Shape::Plain,
            6..8 => Shape::Shell,
            8 => Shape::Daemon,
            _ => Shape::Nested,
        };
        let ends = match rng.u32(..12) {
            0 => Ends::Badly(rng.u8(3..10)),
            1 => Ends::Emptily,
            _ => Ends::Well,
        };
        let ms = |rng: &mut Rng, from: u64, to: u64| Duration::from_millis(rng.u64(from..to));
        let mut plan = Plan {
            tags,
            names,
            shares,
            limited: one_in(rng, 2),
            caches: vec![],
            inner_caches: false,
            no_retry: false,
            force: one_in(rng, 6),
            share_failure: one_in(rng, 6),
            timeout: match rng.u32(..10) {
                0 => Some(Duration::ZERO),
                1..4 => Some(ms(rng, 100, 3000)),
                _ => None,
            },
            build_timeout: one_in(rng, 10).then(|| ms(rng, 50, 500)),
            shape,
            user: (other_users && one_in(rng, 5)).then_some(USERS[0]),
            takes: match rng.u32(..10) {
                0 => ms(rng, 300, 900),
                _ => ms(rng, 0, 120),
            },
            ends,
            ignores_term: one_in(rng, 12),
            closes: one_in(rng, 6),
        };
        if one_in(rng, 3) {
            plan.use_caches(rng);
        }
        plan
    }

    fn use_caches(&mut self, rng: &mut Rng) {
        let [c0, c1, c2, busy] = CACHES;
        let chosen = match rng.u32(..36) {
            0..10 => vec![c0],
            10..22 => vec![c1],
            22..29 => vec![c2],
            29..32 => vec![c0, c1],
            32..34 => vec![c1, c2],
            _ => vec![busy],
        };
        for (id, files) in chosen {
            // The busy one is wanted alone, to see whether its turn comes.
            let alone = id == BUSY || rng.u32(..5) == 0;
            let files = if alone { vec![] } else { files.to_vec() };
            self.caches.push(CacheUse { id: id.to_owned(), files });
        }
        self.inner_caches = rng.bool();
        self.no_retry = rng.u32(..4) == 0;
        self.force |= rng.u32(..3) == 0;
        if rng.u32(..6) == 0 {
            self.ends = Ends::BadlyBeside(rng.u8(10..20));
        }
    }

    /// Makes it a call of a stream. Those follow each other with a tag of their own, so that the
    /// cache is busy.
    fn of_stream(self, number: usize, rng: &mut Rng) -> Self {
        let (id, files) = CACHES[CACHES.len() - 1];
        Plan {
            tags: vec![format!("chaos:s{number}")],
            names: vec![],
            limited: false,
            caches: vec![CacheUse { id: id.to_owned(), files: files.to_vec() }],
            force: true,
            timeout: None,
            build_timeout: None,
            shape: if self.shape == Shape::Nested { Shape::Shell } else { self.shape },
            takes: Duration::from_millis(rng.u64(200..600)),
            ends: if self.ends == Ends::Emptily { Ends::Well } else { self.ends },
            ..self
        }
    }

    /// Returns a call for the same tags and names, below a process with the pid of this one, which
    /// was killed.
    fn reborn(self) -> Self {
        Plan {
            shares: false,
            limited: false,
            caches: vec![],
            inner_caches: false,
            force: true,
            share_failure: false,
            timeout: None,
            build_timeout: None,
            shape: Shape::Plain,
            takes: Duration::from_millis(30),
            ends: Ends::Well,
            ignores_term: false,
            closes: false,
            ..self
        }
    }

    /// Does the build go on, and keep its locks, when buildlock is killed? The keeper sends TERM
    /// only to the build command.
    pub fn outlives_buildlock(&self) -> bool {
        self.ignores_term || self.shape != Shape::Plain
    }

    /// Returns the words that name its caches.
    fn cache_words(&self) -> Vec<String> {
        let mut words = Vec::new();
        for CacheUse { id, files } in &self.caches {
            let files: Vec<String> = files.iter().map(|it| format!("files/{it}")).collect();
            let files =
                if files.is_empty() { String::new() } else { format!("={}", files.join(",")) };
            words.push(format!("--cache={id}{files}"));
        }
        if self.no_retry {
            words.push("--no-retry".into());
        }
        words
    }

    /// Returns how often its build may run in all.
    ///
    /// It runs once more, alone, if it failed with a shared cache. So may each of these runs in a
    /// nested call that knows of the cache.
    pub fn runs_max(&self) -> usize {
        let may_share = self.caches.iter().any(|cache| !cache.files.is_empty());
        match self.shape {
            _ if self.no_retry || !may_share => 1,
            Shape::Nested if self.inner_caches => 4,
            _ => 2,
        }
    }

    /// Returns the locks of its tags, names and caches, as folder and text.
    pub fn resources(&self) -> Vec<Resource> {
        let tags = self.tags.iter().map(|tag| Resource::new("image-locks", tag));
        let names = self.names.iter().map(|name| Resource::new("named-locks", name));
        let caches = self.caches.iter().map(|cache| Resource::new(CACHE_LOCKS, &cache.id));
        let mut all: Vec<Resource> = tags.chain(names).chain(caches).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Returns its arguments.
    pub fn words(&self, buildlock: &str) -> Vec<String> {
        let text = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let tags: Vec<String> =
            self.tags.iter().flat_map(|tag| ["-t".to_owned(), tag.clone()]).collect();
        let mut words = tags.clone();
        for name in &self.names {
            words.extend(text(&[if self.shares { "--share" } else { "--lock" }, name]));
        }
        let limit = format!("--max-builds={MAX_BUILDS}");
        words.extend(self.limited.then(|| limit.clone()));
        words.extend(self.cache_words());
        let seconds = |duration: Duration| format!("{}ms", duration.as_millis());
        words.push("-w".into());
        words.push(self.timeout.map_or("none".into(), seconds));
        words.extend(text(&["-k", "300ms"]));
        if let Some(limit) = self.build_timeout {
            words.extend(["--build-timeout".into(), seconds(limit)]);
        }
        if self.force {
            words.push("--force".into());
        }
        if self.share_failure {
            words.extend(text(&["--on-failure", "share"]));
        }
        words.push("--".into());
        let build = format!("docker build {} .", tags.join(" "));
        match self.shape {
            Shape::Plain => words.extend(build.split(' ').map(str::to_owned)),
            Shape::Shell => words.extend(text(&["sh", "-c", &format!("{build}; exit $?")])),
            Shape::Daemon => {
                words.extend(text(&["sh", "-c", &format!("sleep 0.4 & {build}; exit $?")]));
            }
            Shape::Nested => {
                let caches = if self.inner_caches { self.cache_words() } else { vec![] };
                let (caches, tags) = (caches.join(" "), tags.join(" "));
                let limit = if self.limited { limit } else { String::new() };
                let inner =
                    format!("'{buildlock}' -w none {limit} {caches} {tags} -- {build}; exit $?");
                words.extend(text(&["sh", "-c", &inner]));
            }
        }
        words
    }
}

/// Something that only one build at a time may have, or several that share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    pub text: String,
    /// Its lock file below the lock folder.
    pub file: String,
}

impl Resource {
    pub fn new(folder: &str, text: &str) -> Self {
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(text.as_bytes());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Resource { text: text.to_owned(), file: format!("{folder}/{hex}.lock") }
    }

    /// Returns its lock file's name, wherever the file has been moved.
    pub fn name(&self) -> &str {
        self.file.rsplit('/').next().unwrap()
    }

    pub fn is_cache(&self) -> bool {
        self.file.starts_with(CACHE_LOCKS)
    }

    pub fn can_be_shared(&self) -> bool {
        self.is_cache() || self.file.starts_with("named-locks")
    }

    /// Returns all of its lock files, and for a cache the file that says that it is warm.
    pub fn files(&self) -> Vec<String> {
        let own = self.file.clone();
        let mut all = vec![self.nested(), own];
        if self.can_be_shared() {
            all.extend([self.turnstile(), self.nested_turnstile()]);
        }
        if self.is_cache() {
            all.push(self.memory());
        }
        all
    }

    /// Returns the lock of a nested call.
    pub fn nested(&self) -> String {
        self.file.replace(".lock", ".1.lock")
    }

    /// Returns the turnstile in front of a lock that can be shared.
    pub fn turnstile(&self) -> String {
        self.file.replace(".lock", ".turnstile.lock")
    }

    /// Returns the turnstile of a nested call.
    pub fn nested_turnstile(&self) -> String {
        self.file.replace(".lock", ".1.turnstile.lock")
    }

    /// Returns the file that says that a cache is warm.
    pub fn memory(&self) -> String {
        self.file.replace(".lock", ".json")
    }

    /// Returns all that any call may want.
    pub fn all() -> Vec<Resource> {
        let tags = (0..TAGS).map(|n| Resource::new("image-locks", &format!("chaos:t{n}")));
        let streams = (0..STREAMS).map(|n| Resource::new("image-locks", &format!("chaos:s{n}")));
        let names = (0..NAMES).map(|n| Resource::new("named-locks", &format!("n{n}")));
        let caches = CACHES.iter().map(|(id, _)| Resource::new(CACHE_LOCKS, id));
        tags.chain(streams).chain(names).chain(caches).collect()
    }
}
