//! Reads the answers of engines, their clients and registries. No answer causes a panic, and only a
//! certain one counts: "missing" needs the engine's own "No such image" about the image in question.
//!
//! The input serves as the bytes from the socket, as the text of docker's configuration, and, split
//! at NUL, as the output of a client.
#![no_main]

use std::io::{self, Read};
use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use buildlock::command::Engine;
use buildlock::image::readers::{
    Answer, Response, ClientOutput, context_in, host_in, read_distribution, read_exists, read_image,
    read_imagetools, read_inspect, read_skopeo, receive,
};
use buildlock::reference::Tag;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// A socket that returns `data` in pieces, and is sometimes interrupted by a signal.
struct Pieces<'a> {
    data: &'a [u8],
    piece: usize,
    reads: usize,
}

impl<'a> Pieces<'a> {
    fn new(data: &'a [u8], kind: u8) -> Self {
        // Every piece means parsing the answer again, so there must not be too many.
        let piece = (data.len() * usize::from(kind) / 255).max(data.len() / 40).max(1);
        Pieces { data, piece, reads: 0 }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.reads += 1;
        if self.reads % 7 == 3 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = self.piece.min(self.data.len()).min(into.len());
        let (now, later) = self.data.split_at(length);
        into[..length].copy_from_slice(now);
        self.data = later;
        Ok(length)
    }
}

/// The image in question.
const NAME: &str = "a:b";

/// Whether this is exactly what an engine says about a missing image, in any spelling of its name.
fn no_such_image(said: &str) -> bool {
    let names = ["", "library/", "docker.io/", "docker.io/library/", "index.docker.io/"]
        .map(|registry| format!("{registry}{NAME}"));
    let names = names.iter().cloned().chain([format!("index.docker.io/library/{NAME}")]);
    let names: Vec<String> = names.collect();
    let pairs = names.iter().flat_map(|asked| names.iter().map(move |known| (asked, known)));
    names.iter().any(|name| ["N", "n"].iter().any(|n| said == format!("{n}o such image: {name}")))
        || pairs.into_iter().any(|(asked, known)| {
            let docker = format!("o such image: {asked}: No such image: {known}");
            let podman = format!("failed to find image {asked}: {known}: ");
            said.strip_prefix(['N', 'n']) == Some(&docker)
                || [Some("No such image"), Some("image not known")]
                    .contains(&said.strip_prefix(&podman))
        })
}

/// Whether a client that prints this may mean that the image is missing.
fn may_mean_no_such_image(said: &str) -> bool {
    let lower = said.to_lowercase();
    (lower.contains("no such image") || lower.contains("image not known"))
        && !lower.contains("invalid reference format")
        && said.contains(NAME)
}

/// Checks what is read from any bytes from the socket.
fn any_answer(data: &[u8]) {
    let kind = data.len() as u8;
    let Ok(response) = receive(&mut Pieces::new(data, kind)) else { return };
    // In one piece, the answer is the same.
    let whole = receive(&mut Pieces::new(data, 255)).expect("the same answer");
    assert_eq!((whole.status, &whole.body), (response.status, &response.body));
    assert!(response.body.len() <= data.len());
    // Names and texts that nobody needs may be other than UTF-8.
    let body: Option<Value> = serde_json::from_str(&String::from_utf8_lossy(&response.body)).ok();
    let text = |name| body.as_ref().and_then(|body| body.get(name)).and_then(Value::as_str);
    match read_image(&response, Path::new("/s"), NAME) {
        Ok(Answer::Missing) => {
            assert_eq!(response.status, 404);
            assert!(text("message").is_some_and(no_such_image));
        }
        Ok(Answer::Present(_)) => {
            assert_eq!(response.status, 200);
            assert!(text("Id").is_some_and(|id| !id.is_empty()));
        }
        Err(error) => {
            let too_long = error.why.chars().count() > 600 && text("message").is_none();
            assert!(!too_long, "{}", error.why);
            assert!(!error.is_transient || response.status >= 500 || response.status == 429);
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Coding {
    Sized,
    Chunked(Vec<u8>),
    UntilTheEnd,
}

/// An answer that an engine could give.
#[derive(Arbitrary, Debug)]
struct Good {
    status: u16,
    message: String,
    is_image: bool,
    coding: Coding,
    cut: Option<u16>,
    piece: u8,
}

fn good_answer(good: &Good) {
    let status = match good.status % 8 {
        0..3 => 404,
        3..6 => 200,
        _ => 100 + good.status % 500,
    };
    let body = match good.is_image {
        true => serde_json::json!({ "Id": good.message, "Os": "linux", "Architecture": "amd64" }),
        false => serde_json::json!({ "message": good.message }),
    };
    let body = body.to_string().into_bytes();
    let mut sent =
        format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n").into_bytes();
    match &good.coding {
        Coding::Sized => {
            sent.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            sent.extend_from_slice(&body);
        }
        Coding::Chunked(sizes) => {
            sent.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            let mut rest = &body[..];
            let mut sizes = sizes.iter().copied();
            while !rest.is_empty() {
                let size = sizes.next().map_or(rest.len(), usize::from).clamp(1, rest.len());
                let (now, later) = rest.split_at(size);
                sent.extend_from_slice(format!("{size:x}\r\n").as_bytes());
                sent.extend_from_slice(now);
                sent.extend_from_slice(b"\r\n");
                rest = later;
            }
            sent.extend_from_slice(b"0\r\n\r\n");
        }
        Coding::UntilTheEnd => {
            sent.extend_from_slice(b"\r\n");
            sent.extend_from_slice(&body);
        }
    }
    // If an engine dies in the middle of its answer, that is not an answer.
    if let Some(cut) = good.cut.map(|cut| usize::from(cut) % sent.len()) {
        // The line end of the last chunk may be missing.
        let is_whole = sent.len() - cut <= 2 && matches!(good.coding, Coding::Chunked(_));
        let received = receive(&mut Pieces::new(&sent[..cut], good.piece));
        match received {
            Ok(response) if is_whole => assert_eq!(response.body, body),
            Ok(response) => {
                assert!(matches!(good.coding, Coding::UntilTheEnd), "{good:?}");
                let answer = read_image(&response, Path::new("/s"), NAME);
                assert!(answer.is_err(), "half a body: {answer:?}");
            }
            Err(_) => {}
        }
        return;
    }
    let response = receive(&mut Pieces::new(&sent, good.piece)).expect("an answer");
    assert_eq!((response.status, &response.body), (status, &body), "{good:?}");
    let answer = read_image(&response, Path::new("/s"), NAME);
    match (status, good.is_image) {
        (200, true) if !good.message.is_empty() => {
            assert!(matches!(answer, Ok(Answer::Present(_))))
        }
        (404, false) if no_such_image(&good.message) => {
            assert!(matches!(answer, Ok(Answer::Missing)));
        }
        _ => assert!(answer.is_err(), "{good:?}: {answer:?}"),
    }
}

/// Checks what is read from any output and any exit status of a client.
fn any_client(data: &[u8]) {
    let mut parts = data.splitn(3, |&c| c == 0);
    let status = parts.next().and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    let mut next = || parts.next().unwrap_or_default().to_vec();
    let said = ClientOutput { status, stdout: next(), stderr: next() };
    let stderr = String::from_utf8_lossy(&said.stderr);
    for engine in [Engine::Docker, Engine::Podman, Engine::Nerdctl] {
        match read_inspect(engine, NAME, &said) {
            Some(Answer::Missing) => {
                assert!(status.is_some() && may_mean_no_such_image(&stderr), "{said:?}");
            }
            Some(Answer::Present(_)) => {
                assert_eq!(status, Some(0));
                let images: Option<Value> = serde_json::from_slice(&said.stdout).ok();
                let is_list = images.is_some_and(|images| images.get(0).is_some());
                assert!(is_list || engine == Engine::Docker && said.stdout.is_empty(), "{said:?}");
            }
            None => {}
        }
    }
    match read_exists(&said) {
        Some(Answer::Missing) => {
            assert_eq!(status, Some(1));
            let complains = |line: &str| {
                let line = line.trim();
                let remarks = ["WARN[", "Emulate Docker CLI", "time="];
                !line.is_empty() && !remarks.iter().any(|remark| line.starts_with(remark))
            };
            assert!(!stderr.lines().any(complains), "{said:?}");
        }
        Some(Answer::Present(_)) => assert_eq!(status, Some(0)),
        None => assert!(status != Some(0)),
    }
}

/// Checks what is read from any answer about an image in a registry.
fn any_registry(data: &[u8]) {
    let tag: Tag = "r.example/a/b:1".parse().unwrap();
    let mut parts = data.splitn(3, |&c| c == 0);
    let status = parts.next().and_then(|text| std::str::from_utf8(text).ok()?.parse::<u16>().ok());
    let mut next = || parts.next().unwrap_or_default().to_vec();
    let (stdout, stderr) = (next(), next());
    let text = String::from_utf8_lossy(&stderr).into_owned();
    let harbors = ["unknown: artifact a/b:1 not found", "unknown: repository a/b not found"]
        .map(str::to_owned);
    let unknown = ["manifest unknown", "name unknown"];
    for message in [&text, &harbors[0]] {
        let body = serde_json::json!({ "message": message }).to_string().into_bytes();
        let response = Response { status: status.unwrap_or(404), body };
        if let Ok(Answer::Missing) = read_distribution(&response, &tag) {
            let is_unknown = unknown.iter().any(|code| message.starts_with(code));
            let is_harbors = harbors.contains(message);
            let by_status = (response.status == 404, response.status == 500);
            assert!(by_status.0 && is_unknown || by_status.1 && is_harbors, "{response:?}");
        }
    }
    let response = Response { status: 200, body: stdout.clone() };
    let answer = read_distribution(&response, &tag);
    assert!(!matches!(answer, Ok(Answer::Missing)), "{response:?}");
    let said = ClientOutput { status: status.map(i32::from), stdout, stderr };
    for answer in [read_imagetools(&said, &tag), read_skopeo(&said, &tag)] {
        match answer {
            Some(Answer::Missing) => {
                assert!(said.status.is_some_and(|status| status != 0), "{said:?}");
                let of_this =
                    ["r.example/a/b:1: not found", "reading manifest 1 in r.example/a/b: "];
                assert!(of_this.iter().any(|words| text.contains(words)), "{said:?}");
            }
            Some(Answer::Present(_)) => assert_eq!(said.status, Some(0)),
            None => {}
        }
    }
}

/// Checks what is read from any `config.json`, and any `meta.json` of a context.
fn any_configuration(data: &[u8]) {
    let lossy = String::from_utf8_lossy(data);
    let json: Option<Value> = serde_json::from_str(&lossy).ok();
    // docker's client reads only the first value of config.json, and needs an object.
    let first = serde_json::Deserializer::from_str(&lossy).into_iter::<Value>().next();
    let first = first.is_some_and(|value| value.is_ok());
    let is_object = lossy.trim_ascii_start().starts_with('{');
    match context_in(data) {
        Ok(Some(context)) => assert!(first && is_object && !context.is_empty()),
        Ok(None) => assert!(first || !is_object),
        Err(_) => {}
    }
    if host_in(data).is_ok_and(|host| !host.is_empty()) {
        assert!(json.is_some());
    }
    // Names of fields match in upper and lower case, and the last field counts.
    if let Ok(Some(_)) = context_in(data) {
        assert!(lossy.to_lowercase().contains("context") || lossy.contains('\\'));
    }
    // Everything that docker writes can be read.
    let text = String::from_utf8_lossy(data);
    let config = serde_json::json!({ "auths": {}, "currentContext": text }).to_string();
    let expected = Some(text.clone().into_owned()).filter(|text| !text.is_empty());
    assert_eq!(context_in(config.as_bytes()).ok(), Some(expected));
    let docker = serde_json::json!({ "Host": text, "SkipTLSVerify": false });
    let meta =
        serde_json::json!({ "Name": text, "Metadata": {}, "Endpoints": { "docker": docker } });
    assert_eq!(host_in(meta.to_string().as_bytes()).ok().as_deref(), Some(&*text));
}

fuzz_target!(|data: &[u8]| {
    any_answer(data);
    any_client(data);
    any_registry(data);
    any_configuration(data);
    if let Ok(good) = Good::arbitrary(&mut Unstructured::new(data)) {
        good_answer(&good);
    }
});
