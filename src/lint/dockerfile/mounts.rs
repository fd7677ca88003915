//! Judges the cache mounts of a `RUN`.

use super::super::finding::{Rule, TextFinding};
use super::super::shell::Call;
use super::super::tools::{self, Verdict};
use super::accepted::{Accepted, Answer};
use super::mixed::Shared;
use super::mount::Mount;
use super::places;
use super::stages::Stages;
use crate::dockerfile::{Instruction, Unreadable};

/// What the mounts of a Dockerfile have come to.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) findings: Vec<TextFinding>,
    /// All mounts whose caches other mounts may share.
    pub(super) shared: Vec<Shared>,
}

const RACE_ADVICE: &str = "add sharing=locked";

const SHARED_ADVICE: &str = "write sharing=locked instead of sharing=shared";

const UNKNOWN_ADVICE: &str =
    "add sharing=locked unless several processes may use the tool's folder at the same time";

const CUT_ADVICE: &str = "BuildKit reads half of a character in it as a blank: replace the \
                          character, or put the whole flag in quotes";

impl Mounts {
    /// Adds the mounts of a `RUN` that makes these calls.
    ///
    /// # Errors
    /// BuildKit would refuse one of them.
    pub(super) fn add(
        &mut self,
        run: &Instruction<'_>,
        accepted: &Accepted<'_>,
        calls: &[Call],
        stages: &Stages,
    ) -> Result<(), Unreadable> {
        for flag in &run.flags {
            let Some(text) = flag.text.strip_prefix("mount=") else { continue };
            let mount = Mount::read(text, stages);
            if let Some(key) = &mount.unknown_key {
                let why = format!("BuildKit knows no '{key}' in a --mount");
                return Err(Unreadable::new(flag.at, why));
            }
            let mut finding = finding(&mount, flag.at, flag.end, calls, stages);
            if let Some(it) = &mut finding {
                match accepted.answer(it.rule.name()) {
                    Answer::Accepted => finding = None,
                    Answer::WithoutReason => {
                        it.message.push_str(" (the comment that ignores it gives no reason)");
                    }
                    Answer::Nothing => {}
                }
            }
            self.findings.extend(finding);
            let is_accepted = accepted.answer(Rule::Mixed.name()) == Answer::Accepted;
            self.shared.extend(mount.shared(flag.at, flag.end, is_accepted));
        }
        Ok(())
    }
}

/// Returns what is wrong with a mount. `end` is where its flag can be extended.
fn finding(
    mount: &Mount,
    at: usize,
    end: Option<usize>,
    calls: &[Call],
    stages: &Stages,
) -> Option<TextFinding> {
    let target = mount.target.shown.as_deref().filter(|_| mount.is_writable_cache())?;
    let fix = end.filter(|_| !mount.says_sharing);
    let report = |rule, why: &str, advice, fix| {
        let advice = if end.is_some() { advice } else { CUT_ADVICE };
        Some(TextFinding { at, rule, message: format!("cache mount {target} {why}"), advice, fix })
    };
    match mount.sharing.as_deref() {
        Some("shared") => {}
        // Locked, private, or a word that BuildKit refuses.
        Some(_) => return None,
        None => {
            let why = "has a sharing that only the build knows";
            return report(Rule::Variable, why, "make sure that it is locked or private", None);
        }
    }
    let Some(path) = &mount.target.path else {
        let why = "is at a path that only the build knows";
        return report(Rule::Variable, why, UNKNOWN_ADVICE, fix);
    };
    if target.starts_with('~') {
        let why = "is a folder named ~ and not in the home folder, where tools write";
        return report(Rule::Unknown, why, "write the whole path", None);
    }
    let places = places::usual(stages, path, &tools::moves(calls));
    match tools::judge(path, &places, calls, stages.ran()) {
        Verdict::Safe => None,
        Verdict::Races(why) => {
            let advice = if fix.is_some() { RACE_ADVICE } else { SHARED_ADVICE };
            report(Rule::Race, &format!("races: {why}"), advice, fix)
        }
        // The author has decided.
        Verdict::Unknown if mount.says_sharing => None,
        Verdict::Unknown => {
            let why = "is shared, and buildlock does not know the tool that writes to it";
            report(Rule::Unknown, why, UNKNOWN_ADVICE, fix)
        }
    }
}
