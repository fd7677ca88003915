//! The look-up over the engine's socket, with every answer that an engine, a proxy or another
//! program on that socket might give.
//!
//! Only the engine's own "No such image", for the very image that was asked for, may lead to a
//! build.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::fake_engine::{
    FakeEngine, chunked_response, fixture, found, image, missing, response, send, send_endlessly,
    socket, stay_silent,
};
use crate::support::{Finished, Fixture, Invocation, is_root, sha256};

const TAG: &str = "env:abc";

/// Prepares `buildlock -t TAG... -- COMMAND`, where the build command notes that it ran.
fn ask(f: &Fixture, engine: &str, tags: &[&str], command: &str) -> Finished {
    let tags = tags.iter().flat_map(|tag| ["-t", tag]);
    let command = format!("echo built >>{}; {command}", f.path("built").display());
    let run = f.buildlock(tags).args(["--", "sh", "-c", &command]);
    run.env("DOCKER_HOST", engine).run()
}

fn builds(f: &Fixture) -> usize {
    f.lines("built").len()
}

/// Answers every request with this. The image must count as present.
#[track_caller]
fn means_present(answer: impl Fn(&mut UnixStream) + Send + Sync + 'static) {
    let f = fixture();
    let engine = FakeEngine::start(&socket(&f), move |_, _, stream| answer(stream));
    let run = ask(&f, &engine.endpoint(), &[TAG], "true");
    run.assert_code(0).assert_stderr("present");
    assert_eq!(builds(&f), 0, "{run}");
    assert_eq!(engine.requests().len(), 1, "{run}");
}

/// Answers every request with this. buildlock must give up, and the build command must not run.
#[track_caller]
fn means_error(answer: impl Fn(&mut UnixStream) + Send + Sync + 'static) -> Finished {
    let f = fixture();
    let engine = FakeEngine::start(&socket(&f), move |_, _, stream| answer(stream));
    let run = ask(&f, &engine.endpoint(), &[TAG], "true");
    run.assert_code(125).assert_stderr(TAG);
    assert_eq!(builds(&f), 0, "{run}");
    assert!(!engine.requests().is_empty(), "the engine was not asked\n{run}");
    run
}

/// Fails unless each of these answers counts as an error.
///
/// They are tried side by side, since buildlock asks again after some of them, with pauses.
fn answers_mean_errors<A: Into<Vec<u8>>>(answers: impl IntoIterator<Item = A>) -> Vec<Finished> {
    std::thread::scope(|scope| {
        let runs = answers.into_iter().map(|answer| {
            let answer = answer.into();
            scope.spawn(|| means_error(move |stream| send(stream, &answer)))
        });
        let runs: Vec<_> = runs.collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    })
}

#[test]
fn image_with_a_content_length_is_present() {
    means_present(|stream| send(stream, found()));
}

#[test]
fn image_in_chunks_is_present() {
    means_present(|stream| send(stream, chunked_response("200 OK", &image("linux/amd64"), 7)));
}

#[test]
fn image_without_a_length_is_present_when_the_connection_ends() {
    let body = image("linux/amd64");
    means_present(move |stream| {
        send(stream, format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{body}"));
    });
}

#[test]
fn answers_in_small_pieces_are_put_together() {
    let answers = [found(), chunked_response("200 OK", &image("linux/amd64"), 7)];
    for answer in answers {
        means_present(move |stream| {
            for byte in answer.as_bytes() {
                send(stream, [*byte]);
                std::thread::yield_now();
            }
        });
    }
}

#[test]
fn connection_that_the_engine_keeps_open_does_not_hold_the_look_up() {
    let answers = [found(), chunked_response("200 OK", &image("linux/amd64"), 1000)];
    for answer in answers {
        means_present(move |stream| {
            send(stream, &answer);
            stay_silent(stream);
        });
    }
}

#[test]
fn long_answer_is_read_to_its_end() {
    // An image with many environment variables. The engine's answers have no fixed bound.
    let filler = "x".repeat(300_000);
    let body = image("linux/amd64").replace("A=", &format!("A={filler}"));
    for answer in
        [response("200 OK", "application/json", &body), { chunked_response("200 OK", &body, 4096) }]
    {
        means_present(move |stream| send(stream, &answer));
    }
}

/// Starts an engine that has an image once the build command has made it.
fn building_engine(f: &Fixture, found: String, missing: String) -> FakeEngine {
    let built = f.path("built");
    FakeEngine::start(&socket(f), move |_, _, stream| {
        send(stream, if built.exists() { &found } else { &missing });
    })
}

#[test]
fn missing_image_is_built_and_then_present() {
    let in_chunks =
        chunked_response("404 Not Found", "{\"message\":\"No such image: env:abc\"}\n", 5);
    let lower = response(
        "404 Not Found",
        "application/json",
        "{\"message\":\"no such image: env:abc: No such image: env:abc\"}",
    );
    let podmans = response(
        "404 Not Found",
        "application/json",
        "{\"cause\":\"x\",\"message\":\"failed to find image env:abc: docker.io/library/env:abc: \
         No such image\",\"response\":404}",
    );
    for missing in [missing(TAG), missing("docker.io/library/env:abc"), in_chunks, lower, podmans] {
        let f = fixture();
        let engine = building_engine(&f, found(), missing);
        let run = ask(&f, &engine.endpoint(), &[TAG], "true");
        run.assert_code(0);
        assert_eq!(builds(&f), 1, "{run}");
        // Asked before the lock, under it, and after the build.
        assert_eq!(engine.requests().len(), 3, "{run}");
        ask(&f, &engine.endpoint(), &[TAG], "true").assert_code(0);
        assert_eq!(builds(&f), 1);
    }
}

/// Makes docker's configuration folder, with this `config.json` and the `meta.json` of these
/// contexts.
fn configuration(f: &Fixture, config: &str, contexts: &[(&str, &str)]) {
    fs::create_dir_all(f.path("config")).unwrap();
    fs::write(f.path("config/config.json"), config).unwrap();
    for (name, meta) in contexts {
        let folder = f.path("config/contexts/meta").join(sha256(name));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("meta.json"), meta).unwrap();
    }
}

/// Prepares `buildlock OPTIONS -t TAG -- COMMAND` with that configuration. The build command notes
/// that it ran.
fn ask_configured<'f>(f: &'f Fixture, options: &[&str]) -> Invocation<'f> {
    let command = format!("echo built >>{}", f.path("built").display());
    let run = f.buildlock(options).args(["-t", TAG, "--", "sh", "-c", &command]);
    run.env("DOCKER_CONFIG", f.path("config"))
}

#[test]
fn engine_of_the_context_is_asked_in_whatever_case_the_files_name_it() {
    for (config, host) in [
        (r#"{"currentContext":"m"}"#, r#""Endpoints":{"docker":{"Host":"HERE"}}"#),
        (r#"{"CurrentContext":"m"}"#, r#""endpoints":{"docker":{"host":"HERE"}}"#),
        (
            r#"{"currentContext":"n","CURRENTCONTEXT":"m"}"#,
            r#""Endpoints":{"docker":{"Host":"unix:///nowhere","HOST":"HERE"}}"#,
        ),
        (
            r#"{"CURRENTCONTEXT":"n","currentContext":"m"}"#,
            r#""Endpoints":{"docker":{"Host":"HERE"}},"ENDPOINTS":{"x":{}}"#,
        ),
        (
            r#"{"currentContext":"m","CurrentContext":null,"auths":7}"#,
            r#""endpointſ":{"docker":{"HoſT":"HERE"}}"#,
        ),
    ] {
        let f = fixture();
        let engine = FakeEngine::start(&socket(&f), |_, _, stream| send(stream, found()));
        let meta = format!("{{\"Name\":\"m\",{}}}", host.replace("HERE", &engine.endpoint()));
        let other = r#"{"Name":"n","Endpoints":{"docker":{"Host":"unix:///nowhere"}}}"#;
        configuration(&f, config, &[("m", &meta), ("n", other)]);
        let run = ask_configured(&f, &[]).run();
        run.assert_code(0).assert_stderr("present");
        assert_eq!(engine.requests().len(), 1, "{config} {meta}\n{run}");
        assert_eq!(builds(&f), 0, "{run}");
    }
}

#[test]
fn context_that_does_not_exist_is_an_error_before_anything_is_built() {
    let here = r#"{"Name":"here","Endpoints":{"docker":{"Host":"unix:///nowhere"}}}"#;
    for options in [&[][..], &["--force"]] {
        for (config, variable, named_by) in [
            (r#"{"currentContext":"gone"}"#, None, "config.json"),
            (r#"{"currentContext":"here","CurrentContext":"gone"}"#, None, "config.json"),
            (r#"{"currentContext":"here"}"#, Some("gone"), "DOCKER_CONTEXT"),
        ] {
            let f = fixture();
            configuration(&f, config, &[("here", here)]);
            let ask = ask_configured(&f, options);
            let run = match variable {
                Some(name) => ask.env("DOCKER_CONTEXT", name).run(),
                None => ask.run(),
            };
            run.assert_code(125).assert_stderr("'gone'").assert_stderr(named_by);
            assert_eq!(builds(&f), 0, "{run}");
        }
        let f = fixture();
        configuration(&f, "{}", &[("here", here)]);
        let build = ["--", "docker", "--context", "gone", "build", "-t", TAG, "."];
        let run = f.buildlock(options).args(build).env("DOCKER_CONFIG", f.path("config")).run();
        run.assert_code(125).assert_stderr("'gone'").assert_stderr("--context");
        run.assert_no_stderr("building");
    }
}

#[test]
fn context_that_does_not_exist_does_not_matter_with_a_check_command() {
    let f = fixture();
    configuration(&f, r#"{"currentContext":"gone"}"#, &[]);
    ask_configured(&f, &["--check", "true"]).run().assert_code(0).assert_stderr("present");
}

#[test]
fn image_still_missing_after_success_is_an_error() {
    let f = fixture();
    let engine = FakeEngine::start(&socket(&f), |_, _, stream| send(stream, missing(TAG)));
    let run = ask(&f, &engine.endpoint(), &[TAG], "true");
    run.assert_code(125).assert_stderr(TAG);
    assert_eq!(builds(&f), 1, "{run}");
}

#[test]
fn failing_command_keeps_its_status_and_is_not_verified() {
    let f = fixture();
    let engine = FakeEngine::start(&socket(&f), |_, _, stream| send(stream, missing(TAG)));
    let run = ask(&f, &engine.endpoint(), &[TAG], "exit 7");
    run.assert_code(7);
    assert_eq!(engine.requests().len(), 2, "{run}");
}

#[test]
fn engine_that_fails_during_the_build_is_an_error() {
    let f = fixture();
    let built = f.path("built");
    let engine = FakeEngine::start(&socket(&f), move |_, _, stream| {
        if !built.exists() {
            send(stream, missing(TAG));
        }
    });
    ask(&f, &engine.endpoint(), &[TAG], "true").assert_code(125);
    assert_eq!(builds(&f), 1);
}

#[test]
fn every_tag_is_asked_for_once_by_its_full_name_and_without_an_api_version() {
    let f = fixture();
    let engine = FakeEngine::start(&socket(&f), |_, _, stream| send(stream, found()));
    let tags = [
        "env",
        "env:abc",
        "deadbeef",
        "docker.io/library/other",
        "ghcr.io/a/b:v1",
        "localhost:5000/a/b_c",
    ];
    ask(&f, &engine.endpoint(), &tags, "true").assert_code(0);
    let mut asked = engine.requests();
    asked.sort();
    let names = [
        "deadbeef:latest",
        "env:abc",
        "env:latest",
        "ghcr.io/a/b:v1",
        "localhost:5000/a/b_c:latest",
        "other:latest",
    ];
    assert_eq!(asked, names.map(|name| format!("GET /images/{name}/json HTTP/1.1")));
    for head in engine.heads() {
        let head = head.to_lowercase();
        // HTTP/1.1 demands it. Without it, Go's server answers 400.
        assert_eq!(head.matches("\r\nhost:").count(), 1, "{head}");
        assert!(head.ends_with("\r\n\r\n"), "{head}");
    }
}

#[test]
fn one_missing_tag_of_several_is_enough_to_build() {
    let f = fixture();
    let built = f.path("built");
    let engine = FakeEngine::start(&socket(&f), move |_, head, stream| {
        let there = built.exists() || head.contains("/env:abc/");
        send(stream, if there { found() } else { missing("env:other") });
    });
    ask(&f, &engine.endpoint(), &[TAG, "env:other"], "true").assert_code(0);
    assert_eq!(builds(&f), 1);
}

#[test]
fn another_platform_than_the_commands_is_missing() {
    let f = fixture();
    let engine = FakeEngine::start(&socket(&f), |_, _, stream| {
        send(stream, response("200 OK", "application/json", &image("linux/arm64")));
    });
    let build = |platform: &str| {
        let words = ["--", "docker", "build", "--platform", platform, "-t", TAG, "."];
        f.buildlock(words).env("DOCKER_HOST", engine.endpoint()).run()
    };
    build("linux/arm64").assert_code(0).assert_stderr("present").assert_no_stderr("building");
    // The `docker` of this test builds nothing. What counts is that it was started.
    let other = build("linux/amd64");
    other.assert_stderr("building: docker build").assert_no_stderr("nothing to build");
    assert_ne!(other.status.code(), Some(0), "{other}");
}

/// Returns what an engine with the containerd image store says of an image whose list has these
/// manifests. Each has a platform, and says whether all of its content is present.
fn list_of_images(manifests: &[(&str, bool)]) -> String {
    let manifests = manifests.iter().map(|(platform, available)| {
        let (os, architecture) = platform.split_once('/').unwrap();
        serde_json::json!({
            "Available": available,
            "Kind": if os == "unknown" { "attestation" } else { "image" },
            "ImageData": {"Platform": {"os": os, "architecture": architecture}},
        })
    });
    let manifests = serde_json::Value::from_iter(manifests);
    let body =
        image("linux/amd64").replace("\"Size\"", &format!("\"Manifests\":{manifests},\"Size\""));
    response("200 OK", "application/json", &body)
}

#[test]
fn image_for_several_platforms_must_be_present_for_each_of_them() {
    let both = "linux/amd64,linux/arm64";
    for (wanted, there, is_present) in [
        (both, &[("linux/amd64", true), ("linux/arm64", true)][..], true),
        (both, &[("linux/arm64", true), ("unknown/unknown", true), ("linux/amd64", true)], true),
        (both, &[("linux/amd64", true)], false),
        (both, &[("linux/amd64", true), ("linux/arm64", false)], false),
        (both, &[("linux/amd64", true), ("unknown/unknown", true)], false),
        // The engine shows first the one that fits it best.
        ("linux/arm64", &[("linux/amd64", true), ("linux/arm64", true)], true),
        ("linux/arm64", &[("linux/amd64", true), ("linux/arm64", false)], false),
    ] {
        let f = fixture();
        let answer = list_of_images(there);
        let engine =
            FakeEngine::start(&socket(&f), move |_, _, stream| send(stream, answer.as_str()));
        let words = ["--", "docker", "build", "--platform", wanted, "-t", TAG, "."];
        let done = f.buildlock(words).env("DOCKER_HOST", engine.endpoint()).run();
        if is_present {
            done.assert_code(0).assert_stderr("present").assert_no_stderr("building");
        } else {
            done.assert_stderr("building").assert_no_stderr("does not say");
        }
        assert!(engine.requests()[0].contains("/images/env:abc/json?manifests=1"));
    }
}

#[test]
fn engine_that_shows_one_of_several_platforms_is_not_believed_to_have_all() {
    let f = fixture();
    let engine = FakeEngine::start(&socket(&f), |_, _, stream| send(stream, found()));
    let words = ["--", "docker", "build", "--platform", "linux/amd64,linux/arm64", "-t", TAG, "."];
    let done = f.buildlock(words).env("DOCKER_HOST", engine.endpoint()).run();
    done.assert_stderr("building").assert_stderr("linux/amd64, linux/arm64");
    done.assert_stderr("does not say whether it is for all of").assert_stderr("--check registry");
}

#[test]
fn not_found_in_other_words_is_an_error() {
    let json = "application/json";
    let not_found = "404 Not Found";
    answers_mean_errors([
        response(not_found, "text/html", "<html><body><h1>404 Not Found</h1></body></html>"),
        response(not_found, "text/plain", "404 page not found\n"),
        response(not_found, json, "{\"message\":\"page not found\"}\n"),
        response(not_found, json, "{\"message\":\"No such container: env\"}\n"),
        // About another image.
        missing("other:1"),
        missing("env:abcd"),
        missing("r.example/env:abc"),
        response(
            not_found,
            json,
            "{\"message\":\"no such image: env:abc: No such image: other:1\"}\n",
        ),
        response(not_found, json, "{\"message\":\"no such image: env:abc: database is locked\"}\n"),
        response(not_found, json, "{}"),
        response(not_found, json, "[]"),
        response(not_found, json, ""),
        // Has the words, but is not the engine's answer.
        response(not_found, "text/html", "<p>No such image: env:abc</p>"),
        // The body is cut short.
        missing(TAG).trim_end().trim_end_matches("\"}").to_owned(),
    ]);
}

#[test]
fn nonsense_with_status_200_is_an_error() {
    let ok = "200 OK";
    let json = "application/json";
    answers_mean_errors([
        response(ok, "text/html", "<html><body>Welcome to nginx!</body></html>"),
        response(ok, json, ""),
        response(ok, json, "{}"),
        response(ok, json, "[]"),
        response(ok, json, "null"),
        response(ok, json, "OK"),
        response(ok, json, "{\"message\":\"hello\"}"),
    ]);
}

#[test]
fn answer_that_is_cut_short_is_an_error() {
    let whole = found();
    let head = whole.find("\r\n\r\n").unwrap();
    let chunked = chunked_response("200 OK", &image("linux/amd64"), 50);
    answers_mean_errors([
        &whole[..whole.len() - 20],
        &whole[..head + 4],
        &whole[..head],
        &whole[..12],
        // The last chunk is missing, and a chunk is cut short.
        &chunked[..chunked.len() - 5],
        &chunked[..chunked.len() - 30],
    ]);
}

#[test]
fn anything_but_an_http_answer_is_an_error() {
    answers_mean_errors([
        "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        "\0\0\x18\x04\0\0\0\0\0\0\x04\0\x3f\0\x01",
        "HTTP/1.1 abc\r\n\r\n{}",
        "220 mail.example.com ESMTP\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n{}",
    ]);
}

#[test]
fn other_statuses_are_errors() {
    let statuses = [
        "101 Switching Protocols",
        "204 No Content",
        "301 Moved Permanently",
        "302 Found",
        "400 Bad Request",
        "401 Unauthorized",
        "403 Forbidden",
    ];
    let body = image("linux/amd64");
    answers_mean_errors(statuses.map(|status| response(status, "application/json", &body)));
}

#[test]
fn engines_own_message_is_shown() {
    let body = "{\"message\":\"driver failed: no space left on device\"}\n";
    let statuses = ["500 Internal Server Error", "503 Service Unavailable"];
    let answers = statuses.map(|status| response(status, "application/json", body));
    for run in answers_mean_errors(answers) {
        run.assert_stderr("no space left on device");
    }
}

#[test]
fn control_characters_in_the_engines_message_are_not_written_to_the_terminal() {
    let body = "{\"message\":\"bad \\u001b[2J\\u0007 day\"}\n";
    let answer = response("500 Internal Server Error", "application/json", body);
    let runs = answers_mean_errors([answer]);
    runs[0].assert_stderr("bad ").assert_no_stderr("\x1b[2J").assert_no_stderr("\x07");
}

#[test]
fn transient_failure_is_retried() {
    let fleeting =
        response("500 Internal Server Error", "application/json", "{\"message\":\"oops\"}");
    for (answer, builds_wanted) in [(found(), 0), (missing(TAG), 1)] {
        let f = fixture();
        let (built, fleeting) = (f.path("built"), fleeting.clone());
        let engine = FakeEngine::start(&socket(&f), move |n, _, stream| match n {
            0 => send(stream, &fleeting),
            // Closed without an answer, as an engine does that is being restarted.
            1 => {}
            _ if built.exists() => send(stream, found()),
            _ => send(stream, &answer),
        });
        let run = ask(&f, &engine.endpoint(), &[TAG], "true");
        run.assert_code(0);
        assert_eq!(builds(&f), builds_wanted, "{run}");
    }
}

#[test]
fn lasting_failure_is_retried_a_few_times_and_then_an_error() {
    for status in ["500 Internal Server Error", "503 Service Unavailable"] {
        let f = fixture();
        let answer = response(status, "application/json", "{\"message\":\"sorry\"}");
        let engine = FakeEngine::start(&socket(&f), move |_, _, stream| send(stream, &answer));
        let run = ask(&f, &engine.endpoint(), &[TAG], "true");
        run.assert_code(125).assert_stderr("sorry");
        assert_eq!(builds(&f), 0, "{run}");
        let asked = engine.requests().len();
        assert!((2..=10).contains(&asked), "asked {asked} times\n{run}");
    }
}

#[test]
fn connection_that_is_closed_at_once_is_an_error() {
    means_error(|_| ());
}

#[test]
fn endless_answers_end_the_look_up() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    let body = format!("{head}\r\n{{\"Id\":\"");
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
    let kilobyte = "x".repeat(1024);
    let chunk = format!("400\r\n{kilobyte}\r\n");
    for (start, rest) in [
        (format!("{head}X-Filler: "), kilobyte.clone()),
        (head.to_owned(), "X-Filler: x\r\n".repeat(80)),
        (body, kilobyte),
        (chunked, chunk),
    ] {
        let run = means_error(move |stream| {
            send(stream, &start);
            send_endlessly(stream, rest.as_bytes());
        });
        assert!(run.elapsed < Duration::from_secs(20), "{run}");
    }
}

#[test]
fn ten_megabytes_of_headers_are_an_error() {
    let line = format!("X-Filler: {}\r\n", "x".repeat(1000));
    let lines = line.repeat(10 * 1024);
    let body = image("linux/amd64");
    let answer = format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: {}\r\n\r\n{body}", body.len());
    answers_mean_errors([answer]);
}

#[test]
fn missing_socket_is_an_error() {
    let f = fixture();
    let run = ask(&f, &format!("unix://{}", socket(&f).display()), &[TAG], "true");
    run.assert_code(125).assert_stderr("docker.sock");
    assert_eq!(builds(&f), 0, "{run}");
}

#[test]
fn socket_that_nobody_listens_on_is_an_error() {
    let f = fixture();
    drop(UnixListener::bind(socket(&f)).unwrap());
    assert!(socket(&f).exists());
    let run = ask(&f, &format!("unix://{}", socket(&f).display()), &[TAG], "true");
    run.assert_code(125).assert_stderr("docker.sock");
    assert_eq!(builds(&f), 0, "{run}");
}

#[test]
fn socket_that_may_not_be_opened_is_an_error() {
    let f = fixture();
    let asked = Arc::new(AtomicBool::new(false));
    let note = Arc::clone(&asked);
    let engine = FakeEngine::start(&socket(&f), move |_, _, stream| {
        note.store(true, Ordering::SeqCst);
        send(stream, found());
    });
    fs::set_permissions(socket(&f), Permissions::from_mode(0o600)).unwrap();
    let buildlock = f.path("bin/docker");
    let words = ["-t", TAG, "--", "sh", "-c", "echo built >>built"];
    let run = if is_root() {
        // Root may open anything. The user `nobody` may not, but must reach the rest.
        for folder in ["", "bin", "work"] {
            fs::set_permissions(f.path(folder), Permissions::from_mode(0o777)).unwrap();
        }
        let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
        f.program("setpriv").args(nobody).arg(buildlock).args(words)
    } else {
        fs::set_permissions(socket(&f), Permissions::from_mode(0o000)).unwrap();
        f.program(buildlock).args(words)
    };
    let run = run.env("DOCKER_HOST", engine.endpoint()).run();
    run.assert_code(125).assert_stderr_matches("(?i)permission denied");
    assert!(!f.work_dir().join("built").exists(), "{run}");
    assert!(!asked.load(Ordering::SeqCst), "the socket was open after all\n{run}");
}

/// Returns what the engine says of an image that its registry has, for these platforms.
fn in_registry(platforms: &str) -> String {
    let body = format!(
        "{{\"Descriptor\":{{\"mediaType\":\"x\",\"digest\":\"sha256:{:064}\",\"size\":1}},\
         \"Platforms\":{platforms}}}\n",
        7
    );
    response("200 OK", "application/json", &body)
}

fn unknown_to_registry() -> String {
    let body = "{\"message\":\"manifest unknown: manifest unknown\"}\n";
    response("404 Not Found", "application/json", body)
}

/// Prepares `buildlock --check registry -t TAG -- COMMAND` with this docker configuration.
fn asking_registry<'f>(f: &'f Fixture, engine: &str, tag: &str, config: &str) -> Invocation<'f> {
    fs::write(f.path("config.json"), config).unwrap();
    let command = format!("echo built >>{}", f.path("built").display());
    let run = f.buildlock(["--check", "registry", "-t", tag, "--", "sh", "-c", &command]);
    run.env("DOCKER_HOST", engine).env("DOCKER_CONFIG", f.path(""))
}

fn ask_registry(f: &Fixture, engine: &str, tag: &str, config: &str) -> Finished {
    asking_registry(f, engine, tag, config).run()
}

#[test]
fn registry_is_asked_through_the_engine_with_the_users_credentials() {
    let hub = "https://index.docker.io/v1/";
    // printf a:b | base64
    let config = |key: &str| format!("{{\"auths\":{{\"{key}\":{{\"auth\":\"YTpi\"}}}}}}");
    let token = "{\"auths\":{\"r.example\":{\"auth\":\"YTpi\",\"identitytoken\":\"t?>\"}}}";
    // The fields in base64url, as `basenc --base64url` prints them.
    let sent = |key: &str| match key {
        "hub" => Some(
            "eyJ1c2VybmFtZSI6ImEiLCJwYXNzd29yZCI6ImIiLCJzZXJ2ZXJhZGRyZXNzIjoiaHR0cHM6Ly9pbmRleC5kb2NrZXIuaW8vdjEvIn0=",
        ),
        "example" => {
            Some("eyJ1c2VybmFtZSI6ImEiLCJwYXNzd29yZCI6ImIiLCJzZXJ2ZXJhZGRyZXNzIjoici5leGFtcGxlIn0=")
        }
        "token" => Some("eyJpZGVudGl0eXRva2VuIjoidD8-Iiwic2VydmVyYWRkcmVzcyI6InIuZXhhbXBsZSJ9"),
        _ => None,
    };
    for (tag, name, config, auth) in [
        (TAG, "docker.io/library/env:abc", config(hub), sent("hub")),
        ("team/env", "docker.io/team/env:latest", config("r.example"), None),
        ("r.example/a/env:1", "r.example/a/env:1", config("r.example"), sent("example")),
        (
            "r.example/a/env:1",
            "r.example/a/env:1",
            config("https://r.example/v2/"),
            sent("example"),
        ),
        ("r.example/a/env:1", "r.example/a/env:1", config("r.example/v1/"), sent("example")),
        ("r.example/a/env:1", "r.example/a/env:1", config("r.example").replace("YTpi", ""), None),
        ("r.example/a/env:1", "r.example/a/env:1", token.to_owned(), sent("token")),
        (
            "r.example/a/env:1",
            "r.example/a/env:1",
            config("r.example").replace("auth", "Auth"),
            sent("example"),
        ),
        (
            "r.example/a/env:1",
            "r.example/a/env:1",
            config("r.example").replace("{\"auths\"", "{\"AUTHS\":null,\"Auths\""),
            sent("example"),
        ),
        ("r.example/a/env:1", "r.example/a/env:1", config("R.example"), None),
        ("r.example/a/env:1", "r.example/a/env:1", "{}".to_owned(), None),
        ("r.example/a/env:1", "r.example/a/env:1", String::new(), None),
        ("r.example:5000/env", "r.example:5000/env:latest", config("r.example"), None),
    ] {
        let f = fixture();
        let engine = FakeEngine::start(&socket(&f), |_, _, stream| {
            send(stream, in_registry("[{\"architecture\":\"amd64\",\"os\":\"linux\"}]"));
        });
        let run = ask_registry(&f, &engine.endpoint(), tag, &config);
        run.assert_code(0).assert_stderr("present");
        assert_eq!(builds(&f), 0, "{run}");
        assert_eq!(engine.requests(), [format!("GET /distribution/{name}/json HTTP/1.1")]);
        let heads = engine.heads();
        let field = heads[0].lines().find_map(|line| line.strip_prefix("X-Registry-Auth: "));
        assert_eq!(field, auth, "{tag} {config}");
        assert!(heads[0].ends_with("\r\n\r\n") && heads[0].matches("\r\n\r\n").count() == 1);
    }
}

#[test]
fn credential_helper_and_its_answer_are_read_in_any_case() {
    for (config, answer) in [
        (r#"{"credsStore":"ours"}"#, r#"{"Username":"a","Secret":"b"}"#),
        (r#"{"CredsStore":"ours"}"#, r#"{"username":"a","secret":"b"}"#),
        (
            r#"{"credſStore":"none","CREDHELPERS":{"r.example":"ours"}}"#,
            r#"{"USERNAME":"a","Secret":"b"}"#,
        ),
    ] {
        let f = fixture();
        f.install_script("docker-credential-ours", &format!("#!/bin/sh\necho '{answer}'\n"));
        let engine =
            FakeEngine::start(&socket(&f), |_, _, stream| send(stream, in_registry("null")));
        let run = ask_registry(&f, &engine.endpoint(), "r.example/a/env:1", config);
        run.assert_code(0).assert_stderr("present");
        // The start of {"username":"a", which is the same for every user.
        assert!(engine.heads()[0].contains("X-Registry-Auth: eyJ"), "{config}\n{run}");
    }
}

#[test]
fn variable_that_the_registry_refuses_gives_way_to_the_configuration() {
    let auths = |key: &str, user: &str| {
        let secret = match user {
            "a" => "YTpi",
            _ => "eDp5",
        };
        format!("{{\"auths\":{{\"{key}\":{{\"auth\":\"{secret}\"}}}}}}")
    };
    let (ours, others) = (auths("r.example", "a"), auths("r.example", "x"));
    let elsewhere = auths("other.example", "x");
    for refusal in ["401 Unauthorized", "403 Forbidden"] {
        for (variable, config, code, requests) in [
            (&others, &ours, 0, 2),
            (&ours, &others, 0, 1),
            (&elsewhere, &ours, 0, 1),
            (&others, &others, 125, 2),
            (&others, &elsewhere, 125, 1),
        ] {
            let f = fixture();
            let engine = FakeEngine::start(&socket(&f), move |_, head, stream| {
                // The start of {"username":"a", which is the same for every user.
                let allowed = head.contains("X-Registry-Auth: eyJ1c2VybmFtZSI6ImEi");
                let refused = "{\"message\":\"denied: requested access is denied\"}\n";
                send(
                    stream,
                    match allowed {
                        true => in_registry("null"),
                        false => response(refusal, "application/json", refused),
                    },
                );
            });
            let run = asking_registry(&f, &engine.endpoint(), "r.example/a/env:1", config);
            let run = run.env("DOCKER_AUTH_CONFIG", variable).run();
            run.assert_code(code).assert_stderr(match code {
                0 => "present",
                _ => "docker login r.example",
            });
            assert_eq!(engine.requests().len(), requests, "{variable} {config}\n{run}");
            assert_eq!(builds(&f), 0, "{run}");
        }
    }
}

#[test]
fn image_that_the_registry_does_not_know_is_built() {
    let f = fixture();
    let engine = building_engine(&f, in_registry("null"), unknown_to_registry());
    ask_registry(&f, &engine.endpoint(), TAG, "{}").assert_code(0).assert_stderr("built");
    assert_eq!((builds(&f), engine.requests().len()), (1, 3));
    ask_registry(&f, &engine.endpoint(), TAG, "{}").assert_code(0).assert_stderr("present");
    assert_eq!(builds(&f), 1);
}

#[test]
fn uncertain_answer_of_a_registry_is_an_error() {
    let json = "application/json";
    let said = |message: &str| format!("{{\"message\":\"{message}\"}}\n");
    let cases = [
        ("404 Not Found", said("page not found"), 1),
        ("404 Not Found", said("No such image: env:abc"), 1),
        ("404 Not Found", "manifest unknown: manifest unknown".to_owned(), 1),
        ("404 Not Found", said("errors:\\nmanifest unknown: x\\ndenied: y\\n"), 1),
        ("401 Unauthorized", said("unauthorized: authentication required"), 1),
        ("403 Forbidden", said("denied: requested access to the resource is denied"), 1),
        ("400 Bad Request", said("manifest unknown: manifest unknown"), 1),
        ("200 OK", "{}".to_owned(), 1),
        ("200 OK", image("linux/amd64"), 1),
        ("500 Internal Server Error", said("no basic auth credentials"), 1),
        ("500 Internal Server Error", said("manifest unknown: manifest unknown"), 5),
        ("429 Too Many Requests", said("toomanyrequests: slow down"), 5),
    ];
    std::thread::scope(|scope| {
        for (status, body, tries) in cases {
            scope.spawn(move || {
                let f = fixture();
                let answer = response(status, json, &body);
                let engine =
                    FakeEngine::start(&socket(&f), move |_, _, stream| send(stream, &answer));
                let run = ask_registry(&f, &engine.endpoint(), TAG, "{}");
                run.assert_code(125).assert_stderr("cannot tell").assert_stderr("docker.io");
                assert_eq!(builds(&f), 0, "{run}");
                assert_eq!(engine.requests().len(), tries, "{run}");
            });
        }
    });
}

#[test]
fn registry_that_answers_at_the_second_attempt_is_believed() {
    let f = fixture();
    let engine = FakeEngine::start(&socket(&f), |n, _, stream| {
        let body = "{\"message\":\"Get https://registry-1.docker.io/v2/: EOF\"}\n";
        let passing = response("500 Internal Server Error", "application/json", body);
        send(stream, if n == 0 { passing } else { in_registry("null") });
    });
    ask_registry(&f, &engine.endpoint(), TAG, "{}").assert_code(0).assert_stderr("present");
    assert_eq!(builds(&f), 0);
}

#[test]
fn unreadable_configuration_does_not_count_as_no_credentials() {
    for config in ["{nonsense", "{\"auths\":{\"https://index.docker.io/v1/\":{\"auth\":\"!\"}}}"] {
        let f = fixture();
        let engine =
            FakeEngine::start(&socket(&f), |_, _, stream| send(stream, unknown_to_registry()));
        let run = ask_registry(&f, &engine.endpoint(), TAG, config);
        run.assert_code(125).assert_stderr("credentials").assert_stderr("config.json");
        assert!(engine.requests().is_empty() && builds(&f) == 0, "{run}");
    }
}
