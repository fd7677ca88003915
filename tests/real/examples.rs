//! The examples, built for real: with BuildKit, and crates from the registry.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::engine::rust_image::{CacheMounts, Rust, build_flags, rust};
use crate::support::{Finished, Fixture, Invocation, has};

const SERVICES: [&str; 5] = ["api", "executor", "worker", "sensor", "notifier"];

/// Copies the example without `target/`, which is there if cargo has built it.
fn copy_example(folder: &Path) {
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/compose-services");
    fs::create_dir(folder).unwrap();
    let files = fs::read_dir(original).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| !path.ends_with("target"));
    let copy = Command::new("cp").arg("-r").args(files).arg(folder).status().unwrap();
    assert!(copy.success(), "cp to {folder:?}");
}

/// A copy of `examples/compose-services`, with cache mounts of its own.
struct Example<'r> {
    rust: &'r Rust,
    folder: PathBuf,
    caches: CacheMounts<'r>,
    /// The names of its images, up to the service.
    images: String,
}

impl<'r> Example<'r> {
    fn new(rust: &'r Rust) -> Self {
        let folder = rust.site.f.path("work/compose-services");
        copy_example(&folder);
        let caches = CacheMounts::new(&rust.site, "compose-services");

        let path = folder.join("Dockerfile");
        let name = &caches.name;
        let mut text = fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("id=cargo,", format!("id={name},")),
            ("id=compose-services-target,", format!("id={name}-target,")),
            ("    cargo fetch ", format!("    : {name}; cargo fetch ")),
        ] {
            assert_eq!(text.matches(from).count(), 1, "{from:?} in {text}");
            text = text.replace(from, &to);
        }
        fs::write(path, text).unwrap();

        let images = rust.site.name("services");
        for (service, tag) in SERVICES.into_iter().flat_map(|it| [(it, 1), (it, 2)]) {
            rust.site.remove_at_the_end(&format!("{images}/{service}:{tag}"));
        }
        Example { rust, folder, caches, images }
    }

    fn image(&self, service: &str) -> String {
        self.image_of(service, 1)
    }

    fn image_of(&self, service: &str, tag: u32) -> String {
        format!("{}/{service}:{tag}", self.images)
    }

    /// Prepares `make TARGET` as a user calls it, with the buildlock under test.
    fn make(&self, target: &str) -> Invocation<'_> {
        self.make_with_tag(target, 1)
    }

    fn make_with_tag(&self, target: &str, tag: u32) -> Invocation<'_> {
        let buildlock = assert_cmd::cargo::cargo_bin!("buildlock").parent().unwrap();
        let client = self.rust.site.client.search_path();
        let path: Vec<PathBuf> =
            std::iter::once(buildlock.to_owned()).chain(std::env::split_paths(&client)).collect();
        let make = self.rust.site.program("make").env("PATH", std::env::join_paths(path).unwrap());
        let image = self.rust.image;
        make.arg("-C")
            .arg(&self.folder)
            .args([target, &format!("TAG={tag}")])
            .arg(format!("IMAGES={}", self.images))
            .arg(format!("RUST_IMAGE={image}"))
            .arg(format!("RUNTIME_IMAGE={image}"))
            .arg("BUILD_NETWORK=host")
            .arg(format!("BUILD_FLAGS={}", build_flags()[2..].join(" ")))
            .args(["COMPOSE=docker-compose", "DOCKER_BUILDKIT=1"])
            .env("COMPOSE_DOCKER_CLI_BUILD", "1")
            .arg(self.cache_option())
    }

    /// Returns the variable that names the test's own cache.
    fn cache_option(&self) -> OsString {
        format!("BUILDLOCK_CACHE=--cache {}=Cargo.lock", self.caches.name).into()
    }

    fn run_make(&self, target: &str) -> Finished {
        self.make(target).start().wait_within(Duration::from_secs(120))
    }

    /// Returns what a service prints in a container.
    fn run(&self, service: &str) -> String {
        self.run_image(&self.image(service))
    }

    fn run_image(&self, image: &str) -> String {
        self.rust.site.client.ask(["run", "--rm", "--network", "none", image])
    }
}

#[ignore = "compiles for a minute: make test-examples"]
#[test]
fn five_services_are_built_side_by_side_and_once() {
    if !has("docker-compose") {
        return;
    }
    let Some(rust) = rust() else { return };
    let example = Example::new(&rust);

    let build = example.run_make("docker-build");
    build.assert_code(0);
    for service in SERVICES {
        build.assert_stderr(&format!("{}: built in ", example.image(service)));
    }
    let said = example.run("sensor");
    assert_eq!(said, r#"{"service":"sensor","version":"0.1.0","settings":{}}"#);

    let again = example.run_make("docker-build");
    again.assert_code(0).assert_no_stderr(": building: ");
    for service in SERVICES {
        again.assert_stderr(&format!("{}: present, nothing to build", example.image(service)));
    }

    // A script shows what compose is told when it does not build.
    let compose = rust.site.f.path("bin/docker-compose");
    let real = which::which("docker-compose").unwrap();
    let script = format!(
        "#!/bin/sh\ncase $1 in up) echo \"compose $* of $IMAGES, $TAG\" ;; *) exec {} \"$@\" ;; \
         esac\n",
        real.display()
    );
    rust.site.f.write_executable("bin/docker-compose", &script);
    let up = example.make("docker-up").arg(format!("COMPOSE={}", compose.display())).run();
    up.assert_code(0).assert_no_stderr(": building: ");
    let said = String::from_utf8_lossy(&up.stdout);
    let wanted = format!("compose up --no-build of {}, 1", example.images);
    assert!(said.lines().any(|line| line == wanted), "no {wanted:?}\n{up}");

    // One service is built again from the caches.
    rust.site.client.ask(["image", "rm", &example.image("api")]);
    let one = example.run_make("docker-build-api");
    one.assert_code(0).assert_stderr(&format!("{}: built in ", example.image("api")));
    one.assert_no_stderr(&example.image("worker"));
    example.run("api");

    // Another branch, whose files are older than everything in target/.
    let library = example.folder.join("common/src/lib.rs");
    let text = fs::read_to_string(&library).unwrap();
    let derive = "#[derive(Serialize)]\n";
    assert_eq!(text.matches(derive).count(), 1, "{text}");
    let changed = format!("{derive}#[serde(rename_all = \"UPPERCASE\")]\n");
    fs::write(&library, text.replace(derive, &changed)).unwrap();
    let mut old = Command::new("find");
    old.arg(&example.folder).args(["-exec", "touch", "-d", "2001-01-01"]);
    assert!(old.args(["{}", "+"]).status().unwrap().success());
    let other = example.make_with_tag("docker-build-sensor", 2);
    other.start().wait_within(Duration::from_secs(120)).assert_code(0);
    let said = example.run_image(&example.image_of("sensor", 2));
    assert_eq!(said, r#"{"SERVICE":"sensor","VERSION":"0.1.0","SETTINGS":{}}"#);
}

#[test]
fn images_are_named_after_what_goes_into_them() {
    let f = Fixture::new();
    let folder = f.path("work/compose-services");
    copy_example(&folder);
    let tag = || {
        let show = ["-s", "--eval", "show: ; @echo $(TAG)", "show"];
        let make = f.program("make").arg("-C").arg(&folder).args(show).run();
        make.assert_code(0);
        let tag = make.stdout_line().to_owned();
        assert!(tag.len() == 12 && tag.bytes().all(|c| c.is_ascii_hexdigit()), "{make}");
        tag
    };
    let before = tag();
    assert_eq!(tag(), before);
    fs::write(folder.join("README.md"), "Not in any image.\n").unwrap();
    assert_eq!(tag(), before);
    fs::write(folder.join("services/api/src/main.rs"), "fn main() {}\n").unwrap();
    assert_ne!(tag(), before);

    // Exactly the files that are copied.
    let text = fs::read_to_string(folder.join("Dockerfile")).unwrap();
    let copies =
        text.lines().filter_map(|line| line.strip_prefix("COPY ")).map(str::split_whitespace);
    let copied =
        copies.flat_map(|words| words.collect::<Vec<_>>().split_last().unwrap().1.to_vec());
    let copied: Vec<&str> = copied.filter(|word| !word.starts_with(['-', '/'])).collect();
    let makefile = fs::read_to_string(folder.join("Makefile")).unwrap();
    let sources = makefile.lines().find_map(|line| line.strip_prefix("sources := ")).unwrap();
    let sources: Vec<&str> =
        sources.split(' ').filter(|it| !["Dockerfile", ".dockerignore"].contains(it)).collect();
    assert_eq!(copied, sources);
}
