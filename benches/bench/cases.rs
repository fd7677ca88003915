//! The cases that are measured, each with its target.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::if_changed;
use crate::measure::{BUILDING, Bench};
use crate::table::{Case, Row, Unit, median};

/// A case, by its name on the command line.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// The image exists, one call
    Present,
    /// The image is missing, one call
    Missing,
    /// The image is missing, a hundred calls at once
    Hundred,
    /// The image is missing, three hundred calls at once
    ThreeHundred,
    /// Two hundred calls that hold the lock one after the other, with nothing to do
    HandOff,
    /// Two hundred waiters
    Waiting,
    /// A thousand calls at once, each with its own tag, all present
    Tags,
    /// Nothing changed in a large context, with --if-changed
    IfChanged,
    /// The first fingerprint of a large context
    Fingerprint,
    /// Nothing changed in a small context, with --if-changed
    SmallContext,
    /// The size of the binary
    Binary,
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

impl Which {
    pub fn all() -> impl Iterator<Item = Which> {
        Which::value_variants().iter().copied()
    }

    pub fn measure(self, bench: &Bench<'_>) -> Result<Case> {
        match self {
            Which::Present => present(bench),
            Which::Missing => missing(bench),
            Which::Hundred => hundred(bench),
            Which::ThreeHundred => three_hundred(bench),
            Which::HandOff => hand_off(bench),
            Which::Waiting => waiting(bench),
            Which::Tags => tags(bench),
            Which::IfChanged => if_changed::large(bench),
            Which::Fingerprint => if_changed::first(bench),
            Which::SmallContext => if_changed::small(bench),
            Which::Binary => binary(bench),
        }
    }
}

// Not written with `||`, because a bar ends a cell of the table.
const INSPECT_OR_BUILD: &str = "docker image inspect, or else docker build";
const FLOCK_AND_INSPECT: &str = "flock FILE sh -c 'docker image inspect, or else docker build'";

/// Repeats a round, and returns a column for each of its figures.
pub fn in_turns<const N: usize>(
    rounds: usize,
    round: impl Fn() -> Result<[f64; N]>,
) -> Result<[Vec<f64>; N]> {
    let mut columns = [const { Vec::new() }; N];
    for _ in 0..rounds {
        for (column, figure) in columns.iter_mut().zip(round()?) {
            column.push(figure);
        }
    }
    Ok(columns)
}

pub fn seconds(what: &str, runs: Vec<f64>) -> Row {
    Row::new(what, Unit::Seconds, runs)
}

/// Makes a case of buildlock's row and the rows it is compared with.
pub fn case(
    title: impl Into<String>,
    buildlock: Row,
    others: impl IntoIterator<Item = Row>,
) -> Case {
    let others: Vec<Row> = others.into_iter().map(|row| row.beside(&buildlock)).collect();
    Case { title: title.into(), rows: std::iter::once(buildlock).chain(others).collect() }
}

fn times(n: usize, command: impl Fn() -> Command) -> Vec<Command> {
    (0..n).map(|_| command()).collect()
}

fn present(bench: &Bench<'_>) -> Result<Case> {
    let recipe = bench.site.recipe("true");
    let mut build = bench.build(&recipe);
    build.retain(|word| word != "--no-cache");
    bench.seconds(bench.program(&build))?;
    // Each figure is the median of a few calls in a row. So the same command ran before each, and
    // left the same in the caches.
    let few = |command: &dyn Fn() -> Command| -> Result<f64> {
        bench.seconds(command())?;
        let runs = (0..5).map(|_| bench.seconds(command())).collect::<Result<Vec<f64>>>()?;
        Ok(median(&runs))
    };
    let [buildlock, inspect, flock, inspect_or, flock_and_inspect_or, bare] = in_turns(40, || {
        bench.check_image()?;
        Ok([
            few(&|| bench.buildlock(&["-q"], &build))?,
            few(&|| bench.inspect())?,
            few(&|| bench.flock(["true"]))?,
            few(&|| bench.inspect_or(&build))?,
            few(&|| bench.flock_and_inspect_or(&build))?,
            few(&|| bench.program(&build))?,
        ])
    })?;
    let others = [
        seconds("docker image inspect", inspect).at_most(0.12),
        seconds("flock FILE true", flock).at_most(2.0),
        seconds(INSPECT_OR_BUILD, inspect_or),
        seconds(FLOCK_AND_INSPECT, flock_and_inspect_or),
        seconds("docker build, completely cached", bare),
    ];
    Ok(case("image exists, one call", seconds("buildlock", buildlock), others))
}

fn missing(bench: &Bench<'_>) -> Result<Case> {
    let recipe = bench.site.slow_recipe(1, "true");
    let build = bench.build(&recipe);
    let [buildlock, bare, inspect_or, flock] = in_turns(11, || {
        Ok([
            bench.seconds_to_build_once(vec![bench.buildlock(&[], &build)])?,
            bench.seconds_to_build(vec![bench.program(&build)])?,
            bench.seconds_to_build_once(vec![bench.inspect_or(&build)])?,
            bench.seconds_to_build_once(vec![bench.flock_and_inspect_or(&build)])?,
        ])
    })?;
    let others = [
        seconds("docker build", bare).at_most(1.02),
        seconds(INSPECT_OR_BUILD, inspect_or),
        seconds(FLOCK_AND_INSPECT, flock),
    ];
    Ok(case("image missing, one call", seconds("buildlock", buildlock), others))
}

fn hundred(bench: &Bench<'_>) -> Result<Case> {
    const CALLS: usize = 100;
    let recipe = bench.site.slow_recipe(1, "true");
    let build = bench.build(&recipe);
    let [buildlock, one, flock, bare] = in_turns(5, || {
        Ok([
            bench.seconds_to_build_once(times(CALLS, || bench.buildlock(&[], &build)))?,
            bench.seconds_to_build(vec![bench.program(&build)])?,
            bench.seconds_to_build_once(times(CALLS, || bench.flock_and_inspect_or(&build)))?,
            bench.seconds_to_build(times(CALLS, || bench.program(&build)))?,
        ])
    })?;
    let others = [
        seconds("one docker build alone", one).at_most(1.2),
        seconds(FLOCK_AND_INSPECT, flock).at_most(0.25),
        seconds("100 docker builds", bare),
    ];
    Ok(case("image missing, 100 calls at once", seconds("buildlock", buildlock), others))
}

fn three_hundred(bench: &Bench<'_>) -> Result<Case> {
    const CALLS: usize = 300;
    let recipe = bench.site.slow_recipe(1, "true");
    let build = bench.build(&recipe);
    let [buildlock, one, flock] = in_turns(5, || {
        Ok([
            bench.seconds_to_build_once(times(CALLS, || bench.buildlock(&[], &build)))?,
            bench.seconds_to_build(vec![bench.program(&build)])?,
            bench.seconds_to_build_once(times(CALLS, || bench.flock_and_inspect_or(&build)))?,
        ])
    })?;
    let others =
        [seconds("one docker build alone", one).at_most(1.45), seconds(FLOCK_AND_INSPECT, flock)];
    Ok(case("image missing, 300 calls at once", seconds("buildlock", buildlock), others))
}

fn hand_off(bench: &Bench<'_>) -> Result<Case> {
    const CALLS: usize = 200;
    let recipe = bench.site.recipe("true");
    bench.seconds(bench.program(bench.build(&recipe)))?;
    bench.check_image()?;
    let forced = || bench.buildlock(&["-q", "--force", "-t", &bench.tag], ["true"]);
    // buildlock checks after each build whether the image exists.
    let and_inspect = ["sh", "-c", r#"true && docker image inspect "$0""#, &bench.tag];
    let [buildlock, flock, flock_and_inspect] = in_turns(9, || {
        Ok([
            bench.seconds_of_all(times(CALLS, forced))?,
            bench.seconds_of_all(times(CALLS, || bench.flock(["true"])))?,
            bench.seconds_of_all(times(CALLS, || bench.flock(and_inspect)))?,
        ])
    })?;
    let others = [
        seconds("flock FILE true", flock).at_most(1.5),
        seconds("flock FILE sh -c 'true && docker image inspect'", flock_and_inspect),
    ];
    let buildlock = seconds("buildlock --force -- true", buildlock);
    Ok(case("200 holders in a row, nothing to do", buildlock, others))
}

fn waiting(bench: &Bench<'_>) -> Result<Case> {
    const CALLS: usize = 200;
    const WHILE: Duration = Duration::from_secs(10);
    bench.remove_image()?;
    let recipe = bench.site.recipe("true");
    let build = bench.build(&recipe);
    bench.site.f.hold_builds();
    let gate = bench.site.f.path("gate");
    let script = format!("read _ <'{}'; exec {}", gate.display(), build.join(" "));
    let call = || bench.buildlock(&["-t", &bench.tag], ["sh", "-c", &script]);

    let holder = bench.start(vec![call()], "holder")?;
    holder.wait_for_lines_with(BUILDING, 1)?;
    let waiters = bench.start(times(CALLS, call), "waiters")?;
    waiters.wait_for_lines_with("waiting for", CALLS)?;
    let (woken, said) = (waiters.wake_ups()?, waiters.lines_with("waiting for")?);
    std::thread::sleep(WHILE);
    let (woken, said) = (waiters.wake_ups()? - woken, waiters.lines_with("waiting for")? - said);
    let memory = waiters.private_memory()?;
    bench.site.f.release_builds();
    holder.wait()?;
    waiters.wait()?;

    let each = |all: usize| vec![all as f64 / CALLS as f64];
    let largest = memory.iter().copied().fold(0.0, f64::max);
    Ok(Case {
        title: format!("{CALLS} waiters for {} s", WHILE.as_secs()),
        rows: vec![
            Row::new("wake-ups of each", Unit::Times, each(woken)),
            Row::new("messages of each", Unit::Times, each(said)),
            Row::new("wake-ups without a message", Unit::Times, each(woken.saturating_sub(said)))
                .at_most(0.0),
            Row::new("private memory of each", Unit::MiB, memory),
            Row::new("private memory of the largest", Unit::MiB, vec![largest]).at_most(4.0),
        ],
    })
}

fn tags(bench: &Bench<'_>) -> Result<Case> {
    const CALLS: [usize; 3] = [250, 500, 1000];
    let tags: Vec<String> = (0..1000).map(|n| bench.site.tag(&format!("tag-{n}"))).collect();
    let mut build = bench.build(&bench.site.recipe("true"));
    for tag in &tags {
        build.splice(2..2, ["-t".to_owned(), tag.clone()]);
    }
    bench.seconds(bench.program(&build))?;
    let first = |n: usize| {
        let calls = tags.iter().take(n).map(|tag| bench.buildlock(&["-q", "-t", tag], ["false"]));
        bench.seconds_of_all(calls.collect())
    };
    let columns = in_turns(5, || {
        let [few, more, many] = CALLS;
        Ok([first(few)?, first(more)?, first(many)?])
    })?;
    let growth = std::iter::zip(&columns[0], &columns[2])
        .map(|(few, many)| (many / CALLS[2] as f64) / (few / CALLS[0] as f64));
    let growth = Row::new("a call among 1,000, of one among 250", Unit::Times, growth.collect());
    let rows = std::iter::zip(CALLS, columns.clone())
        .map(|(calls, runs)| seconds(&format!("{calls} calls at once"), runs));
    Ok(Case {
        title: "a tag each, all present".into(),
        rows: rows.chain([growth.at_most(1.2)]).collect(),
    })
}

fn binary(bench: &Bench<'_>) -> Result<Case> {
    let path = &bench.buildlock;
    let size = fs::metadata(path).with_context(|| format!("{}", path.display()))?.len();
    let size = Row::new("stripped", Unit::MiB, vec![size as f64 / f64::from(1 << 20)]);
    Ok(Case { title: "binary".into(), rows: vec![size.at_most(6.0)] })
}
