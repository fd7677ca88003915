//! What `--each` builds, and in which order.

use std::ffi::OsString;

use anyhow::{Result, bail};

use crate::command::{Command, ComposeOrBake};
use crate::reference::Tag;
use crate::targets::{self, Target};

/// The builds of one call, each a call of buildlock.
pub(super) struct Plan {
    pub(super) units: Vec<Unit>,
}

/// A build of one image.
pub(super) struct Unit {
    /// The service or target. If several build the same image alike, all of them.
    pub(super) name: String,
    pub(super) tags: Vec<Tag>,
    /// Whether its call has to ask which other images it builds.
    pub(super) builds_others: bool,
    /// The units that must have ended before.
    pub(super) needs: Vec<usize>,
    /// The build command for this image alone.
    pub(super) command: Vec<OsString>,
}

impl Plan {
    pub(super) fn new(words: Vec<OsString>) -> Result<Self> {
        let command = Command::new(words);
        let call = command.compose_or_bake().filter(|call| call.only_builds());
        let Some(call) = call else {
            bail!(
                "--each is for commands that build several images: docker compose build, \
                 docker-compose build, docker buildx bake"
            );
        };
        if let Some(file) = call.value(&["metadata-file"]) {
            bail!("with --each, every build would write --metadata-file {file}; leave it out");
        }
        let Some(targets) = targets::find(&command, call)? else {
            bail!("{} cannot be asked what it builds, so --each cannot be used", call.called);
        };
        refuse_different_builds(&targets)?;
        Ok(Plan { units: units(&command, call, &targets)? })
    }
}

/// Refuses two targets that build one image in different ways: the last one would win.
fn refuse_different_builds(targets: &[Target]) -> Result<()> {
    let mut pairs = targets::pairs_of_one_image(targets);
    match pairs.find(|(one, other, _)| !one.is_built_like(other)) {
        None => Ok(()),
        Some((one, other, tag)) => bail!(
            "{} and {} build {tag} in different ways; give them different images, or the same build",
            one.name,
            other.name
        ),
    }
}

/// Joins the targets that build the same images alike.
fn units(command: &Command, call: &ComposeOrBake, targets: &[Target]) -> Result<Vec<Unit>> {
    let mut units: Vec<Unit> = Vec::new();
    let mut unit_of = Vec::new();
    for target in targets {
        let same = units.iter().position(|unit| unit.tags == target.tags);
        let at = same.unwrap_or(units.len());
        match units.get_mut(at) {
            Some(unit) => {
                unit.name.push('+');
                unit.name.push_str(&target.name);
            }
            None => units.push(Unit {
                name: target.name.clone(),
                tags: target.tags.clone(),
                builds_others: !target.others.is_empty(),
                needs: Vec::new(),
                command: command_for(command, call, &target.name),
            }),
        }
        unit_of.push(at);
    }
    let of_name = |name: &String| targets.iter().position(|target| target.name == *name);
    for (target, &at) in targets.iter().zip(&unit_of) {
        let needs = target.needs.iter().filter_map(of_name).map(|need| unit_of[need]);
        let needs: Vec<usize> = needs.filter(|&need| need != at).collect();
        units[at].needs.extend(needs);
    }
    refuse_circle(&units)?;
    Ok(units)
}

fn refuse_circle(units: &[Unit]) -> Result<()> {
    let mut done = vec![false; units.len()];
    loop {
        let is_ready = |at: &usize| !done[*at] && units[*at].needs.iter().all(|&need| done[need]);
        match (0..units.len()).find(is_ready) {
            Some(at) => done[at] = true,
            None => break,
        }
    }
    let rest = units.iter().zip(done).filter(|(_, done)| !done).map(|(unit, _)| &*unit.name);
    match rest.collect::<Vec<_>>().as_slice() {
        [] => Ok(()),
        circle => bail!(
            "these cannot be built, because they need each other or something that does: {}; remove \
             one of the references",
            circle.join(", ")
        ),
    }
}

/// Returns the build command with this target in the place of those that it names.
fn command_for(command: &Command, call: &ComposeOrBake, target: &str) -> Vec<OsString> {
    let with_others = |word: &OsString| {
        let word = word.to_string_lossy();
        word == "--with-dependencies" || word.starts_with("--with-dependencies=")
    };
    let words = command.words().iter().enumerate();
    let kept = words
        .filter(|(at, word)| *at <= call.at || !call.named_at.contains(at) && !with_others(word));
    let kept = kept.map(|(_, word)| word.clone());
    kept.chain([target.into()]).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn command(line: &str) -> Command {
        Command::new(shlex::split(line).unwrap().into_iter().map(OsString::from).collect())
    }

    fn target(name: &str, tags: &[&str], needs: &[&str]) -> Target {
        Target {
            name: name.to_owned(),
            tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
            others: Vec::new(),
            needs: needs.iter().map(|need| (*need).to_owned()).collect(),
            definition: json!({"context": "."}),
            labelled_by: None,
        }
    }

    fn plan(targets: &[Target]) -> Result<Vec<Unit>> {
        let command = command("docker compose build");
        units(&command, command.compose_or_bake().unwrap(), targets)
    }

    #[test]
    fn command_for_one_target_keeps_all_but_the_others() {
        for (line, expected) in [
            ("docker compose build", "docker compose build x"),
            (
                "sudo docker compose -f a.yaml --profile api build --no-cache api --pull web",
                "sudo docker compose -f a.yaml --profile api build --no-cache --pull x",
            ),
            (
                "docker compose build --with-dependencies --build-arg api api",
                "docker compose build --build-arg api x",
            ),
            ("docker-compose build -- api", "docker-compose build -- x"),
            (
                "docker buildx --builder b bake --set api.tags=t api",
                "docker buildx --builder b bake --set api.tags=t x",
            ),
        ] {
            let command = command(line);
            let words = command_for(&command, command.compose_or_bake().unwrap(), "x");
            let expected: Vec<OsString> = expected.split(' ').map(OsString::from).collect();
            assert_eq!(words, expected, "{line}");
        }
    }

    #[test]
    fn targets_of_one_image_are_one_build() {
        let units = plan(&[
            target("a", &["x"], &[]),
            target("b", &["y"], &["c"]),
            target("c", &["x"], &[]),
        ]);
        let units = units.unwrap();
        let names: Vec<_> = units.iter().map(|unit| &*unit.name).collect();
        assert_eq!(names, ["a+c", "b"]);
        assert_eq!(units[1].needs, [0]);
    }

    #[test]
    fn targets_that_need_each_other_are_refused() {
        let error =
            plan(&[target("a", &["x"], &["b"]), target("b", &["y"], &["a"])]).err().unwrap();
        assert!(error.to_string().contains("a, b"), "{error}");
    }

    #[test]
    fn different_builds_of_one_image_are_refused() {
        let other = Target { definition: json!({"context": "sub"}), ..target("b", &["x"], &[]) };
        let error = refuse_different_builds(&[target("a", &["x"], &[]), other]).unwrap_err();
        assert!(error.to_string().starts_with("a and b build x:latest"), "{error}");
    }
}
