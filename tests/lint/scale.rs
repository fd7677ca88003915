//! Large files and trees.

use std::time::{Duration, Instant};

use super::files::{stdout, write, write_below};
use super::support::Fixture;

#[test]
fn tree_of_two_thousand_files_takes_a_fraction_of_a_second() {
    let f = Fixture::new();
    let dockerfile = "FROM golang AS build\nWORKDIR /src\nCOPY . .\nRUN --mount=type=cache,\
                      target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build go build \
                      -o /out .\nFROM scratch\nCOPY --from=build /out /app\nCMD [\"/app\"]\n";
    for n in 0..2000 {
        write_below(&f, &format!("{}/{n}/Dockerfile", n % 40), dockerfile);
    }
    // Processor time: it stays the same on a busy machine. A release build needs less than 0.1 s.
    let script = "\"$0\" lint || exit; times";
    let run = f.program("sh").args(["-c", script, env!("CARGO_BIN_EXE_buildlock")]).run();
    let times = stdout(run.assert_code(0).assert_stderr("looked at 2000 files"));
    let children = times.lines().last().unwrap();
    let seconds: f64 = children
        .split_whitespace()
        .map(|time| {
            let (minutes, seconds) = time.trim_end_matches('s').split_once('m').unwrap();
            minutes.parse::<f64>().unwrap() * 60.0 + seconds.parse::<f64>().unwrap()
        })
        .sum();
    assert!(seconds < 5.0, "{times}");
}

#[test]
fn chain_of_stages_needs_memory_in_proportion_to_its_text() {
    let f = Fixture::new();
    let stage = |n: usize| {
        let value = "v".repeat(200);
        format!("FROM s{n} AS s{}\nENV NAME_{n}={value}\n", n + 1)
    };
    let stages: String = (0..5000).map(stage).collect();
    let last = "RUN --mount=type=cache,target=/$NAME_0 x\n";
    write(&f, "Dockerfile", &format!("{stages}{last}"));
    let path = f.work_dir().join("Dockerfile");
    // If each stage copied the variables of those before it, that would be 2.5 GB.
    let script = "ulimit -v 400000 && exec \"$0\" lint \"$1\"";
    let run =
        f.program("sh").args(["-c", script, env!("CARGO_BIN_EXE_buildlock")]).arg(&path).run();
    let said = stdout(run.assert_code(0));
    assert!(said.contains(":10001:5: note: cache mount /$NAME_0 is shared"), "{said}");
}

#[test]
fn long_file_takes_time_in_proportion_to_its_length() {
    let f = Fixture::new();
    let run = "RUN --mount=type=cache,target=/root/.m2 <<EOF\nmvn\nEOF\n";
    write(&f, "Dockerfile", &format!("FROM a\n{}", run.repeat(20_000)));
    let start = Instant::now();
    let run = f.buildlock(["lint"]).run();
    // This takes a second or two, and a minute if lines are counted from the start each time.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(stdout(run.assert_code(1)).lines().count(), 20_000);
    assert!(stdout(&run).contains("\nDockerfile:59999:5: error: "));
}
