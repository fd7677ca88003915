//! What each call does, by the seed and its number alone.

use std::time::Duration;

use fastrand::Rng;

/// How many calls run at the same time.
pub const AT_ONCE: usize = 48;
const TAGS: usize = 24;
const NAMES: usize = 6;
/// Another user; nobody's, as it happens.
const OTHER_USER: u32 = 65534;

/// One invocation.
#[derive(Clone, Debug)]
pub struct Plan {
    pub tags: Vec<String>,
    pub names: Vec<String>,
    pub force: bool,
    pub share_failure: bool,
    pub timeout: Option<Duration>,
    pub build_timeout: Option<Duration>,
    pub shape: Shape,
    /// Runs as another user than root.
    pub user: Option<u32>,
    /// How long its build takes.
    pub takes: Duration,
    pub ends: Ends,
    /// Its client goes on after TERM.
    pub ignores_term: bool,
    /// Its client closes what it has inherited, as sudo does.
    pub closes: bool,
}

/// What COMMAND is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `docker build`.
    Plain,
    /// A shell that waits for it.
    Shell,
    /// A shell that leaves something behind that goes on for a while.
    Daemon,
    /// buildlock for the same tags, and that in a shell.
    Nested,
}

/// How a build ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    Well,
    /// With this status.
    Badly(u8),
    /// With 0, and no image.
    Emptily,
}

impl Plan {
    pub fn new(seed: u64, call: usize, other_users: bool) -> Self {
        let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ call as u64);
        let one_in = |rng: &mut Rng, n: u32| rng.u32(..n) == 0;
        // A few tags that many want, and many that a few want.
        let tag = |rng: &mut Rng| {
            let n = if one_in(rng, 2) { rng.usize(..4) } else { rng.usize(..TAGS) };
            format!("chaos:t{n}")
        };
        let mut tags = vec![tag(&mut rng)];
        if one_in(&mut rng, 4) {
            tags.push(tag(&mut rng));
        }
        if one_in(&mut rng, 12) {
            tags.push(tag(&mut rng));
        }
        let mut names = Vec::new();
        if one_in(&mut rng, 4) {
            names.push(format!("n{}", rng.usize(..NAMES)));
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
        Plan {
            tags,
            names,
            force: one_in(&mut rng, 6),
            share_failure: one_in(&mut rng, 6),
            timeout: match rng.u32(..10) {
                0 => Some(Duration::ZERO),
                1..4 => Some(ms(&mut rng, 100, 3000)),
                _ => None,
            },
            build_timeout: one_in(&mut rng, 10).then(|| ms(&mut rng, 50, 500)),
            shape,
            user: (other_users && one_in(&mut rng, 5)).then_some(OTHER_USER),
            takes: match rng.u32(..10) {
                0 => ms(&mut rng, 300, 900),
                _ => ms(&mut rng, 0, 120),
            },
            ends,
            ignores_term: one_in(&mut rng, 12),
            closes: one_in(&mut rng, 6),
        }
    }

    /// The tags' locks and the named ones, as folder and text.
    pub fn resources(&self) -> Vec<Resource> {
        let tags = self.tags.iter().map(|tag| Resource::new("image-locks", tag));
        let names = self.names.iter().map(|name| Resource::new("named-locks", name));
        let mut all: Vec<Resource> = tags.chain(names).collect();
        all.sort();
        all.dedup();
        all
    }

    /// The words behind the program's name.
    pub fn words(&self, buildlock: &str) -> Vec<String> {
        let text = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let tags: Vec<String> =
            self.tags.iter().flat_map(|tag| ["-t".to_owned(), tag.clone()]).collect();
        let mut words = tags.clone();
        for name in &self.names {
            words.extend(text(&["--lock", name]));
        }
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
                let inner = format!("'{buildlock}' -w none {} -- {build}; exit $?", tags.join(" "));
                words.extend(text(&["sh", "-c", &inner]));
            }
        }
        words
    }
}

/// Something that only one build at a time may have.
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

    /// Its lock file's name, wherever that has been moved.
    pub fn name(&self) -> &str {
        self.file.rsplit('/').next().unwrap()
    }

    /// Those that any call may want.
    pub fn all() -> Vec<Resource> {
        let tags = (0..TAGS).map(|n| Resource::new("image-locks", &format!("chaos:t{n}")));
        tags.chain((0..NAMES).map(|n| Resource::new("named-locks", &format!("n{n}")))).collect()
    }
}
