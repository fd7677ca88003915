//! An image with this machine's cargo, rustc and linker, for the tests that build Rust in the
//! engine. Nothing is pulled.
//!
//! The image has half a gigabyte, and making it takes longer than using it. It is kept for the next
//! run, under a name that says what it was made from. To remove it:
//! `docker image rm $(docker image ls -q --filter label=buildlock-test-rust)`

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use super::super::sha256;
use super::{Client, Site, site, skip, static_busybox};

/// A builder for Rust: BuildKit, the image, and a registry that answers.
pub struct Rust {
    /// Names and a folder for the test.
    pub site: Site,
    /// The image's tag.
    pub image: &'static str,
}

/// Returns what builds Rust.
///
/// Where something is missing, it says so in one line, or fails if `BUILDLOCK_REQUIRE_ENGINE` is
/// set.
#[track_caller]
pub fn rust() -> Option<Rust> {
    static IMAGE: OnceLock<Result<String, String>> = OnceLock::new();
    let site = site(true)?;
    let image = IMAGE.get_or_init(|| {
        let image = image(&site.client)?;
        ask_the_registry(&site, &image)?;
        Ok(image)
    });
    match image {
        Ok(image) => Some(Rust { site, image }),
        Err(reason) => {
            skip(reason);
            None
        }
    }
}

/// Returns what `docker build` needs to reach the registry as this machine does.
pub fn build_flags() -> Vec<String> {
    let mut flags = vec!["--network".to_owned(), "host".to_owned()];
    for name in ["http_proxy", "https_proxy", "no_proxy"] {
        for name in [name.to_owned(), name.to_uppercase()] {
            if std::env::var_os(&name).is_some() {
                // Without a value: the client takes it from its own environment.
                flags.extend(["--build-arg".to_owned(), name]);
            }
        }
    }
    flags
}

/// The cache mounts of one test, removed when this is dropped.
///
/// The engine does not tell a mount's id, only the command that it was made for. So the command
/// must contain this name.
pub struct CacheMounts<'s> {
    client: &'s Client,
    /// For the command, and for the mounts' ids.
    pub name: String,
}

impl<'s> CacheMounts<'s> {
    /// Starts without any.
    pub fn new(site: &'s Site, name: &str) -> Self {
        CacheMounts { client: &site.client, name: site.name(name) }
    }

    /// Returns their ids, as `docker builder prune` takes them.
    fn ids(&self) -> Vec<String> {
        let list = self.client.docker(["system", "df", "-v", "--format", "{{json .BuildCache}}"]);
        let list: Value = serde_json::from_slice(&list.stdout).unwrap_or_default();
        let ours = |record: &&Value| {
            record["CacheType"] == "exec.cachemount"
                && record["Description"].as_str().is_some_and(|text| text.contains(&self.name))
        };
        let records = list.as_array().map(Vec::as_slice).unwrap_or_default();
        records.iter().filter(ours).filter_map(|r| r["ID"].as_str().map(str::to_owned)).collect()
    }

    /// Removes them, as a user does who tidies up behind buildlock's back, and returns how many.
    pub fn remove(&self) -> usize {
        let ids = self.ids();
        for id in &ids {
            let filter = format!("id={id}");
            self.client.docker(["builder", "prune", "--force", "--all", "--filter", &filter]);
        }
        ids.len()
    }
}

impl CacheMounts<'_> {
    /// Removes them by a request to the engine's API, as `docker system prune` does, and returns how
    /// many. A client with buildx hands `docker builder prune` on to BuildKit instead.
    pub fn remove_by_the_api(&self) -> usize {
        let ids = self.ids();
        for id in &ids {
            let socket = self.client.socket().expect("an engine with a socket");
            let mut engine = UnixStream::connect(socket).unwrap();
            let filters = format!("%7B%22id%22%3A%7B%22{id}%22%3Atrue%7D%7D");
            let path = format!("/build/prune?all=1&filters={filters}");
            write!(engine, "POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")
                .unwrap();
            let mut answer = String::new();
            engine.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(id), "{answer}");
        }
        ids.len()
    }
}

impl Drop for CacheMounts<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Returns the image's tag. The image is made if the engine has none yet.
fn image(client: &Client) -> Result<String, String> {
    let tree = Tree::of_this_machine()?;
    let tag = format!("buildlock-test-rust:{}", &tree.fingerprint()[..12]);
    if client.docker(["image", "inspect", &tag]).status.success() {
        return Ok(tag);
    }
    tree.import(client, &tag)?;
    let hello = "echo 'fn main() {}' >/tmp/it.rs && rustc -o /tmp/it /tmp/it.rs && /tmp/it";
    let words = ["run", "--rm", "--network", "none", &tag, "sh", "-c"];
    let run = client.docker(words.into_iter().chain([hello]));
    if run.status.success() {
        return Ok(tag);
    }
    client.docker(["image", "rm", "--force", &tag]);
    Err(format!("an image with cargo and rustc links nothing: {}", last_line(&run.stderr)))
}

/// Builds get their crates from it, and so must this one.
fn ask_the_registry(site: &Site, image: &str) -> Result<(), String> {
    let context = site.context(&format!(
        "FROM {image}\nWORKDIR /ask\nCOPY Cargo.toml .\nRUN mkdir src && touch src/lib.rs && cargo fetch\n"
    ));
    let manifest = "[package]\nname = \"ask\"\nedition = \"2024\"\n[dependencies]\nitoa = \"1\"\n";
    fs::write(context.join("Cargo.toml"), manifest).unwrap();
    let tag = site.tag("registry");
    let words = ["build", "--no-cache", "-t", &tag, context.to_str().unwrap()];
    let words = words.into_iter().map(str::to_owned).chain(build_flags());
    let build = site.client.docker(words);
    if build.status.success() {
        return Ok(());
    }
    Err(format!("cargo reaches no registry from a build: {}", last_line(&build.stderr)))
}

fn last_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).trim_end().lines().last().unwrap_or_default().to_owned()
}

/// Files to be: where in the image, and which file here.
#[derive(Default)]
struct Tree {
    files: BTreeMap<PathBuf, PathBuf>,
    cargo_config: String,
}

impl Tree {
    fn of_this_machine() -> Result<Tree, String> {
        let mut tree = Tree { cargo_config: cargo_config(), ..Tree::default() };
        tree.add_toolchain()?;
        tree.add_linker()?;
        // Not every busybox has it.
        tree.add(&which::which("flock").map_err(|_| "no flock for an image with cargo")?);
        let loaded: Vec<PathBuf> =
            tree.files.values().flat_map(|file| libraries_of(file)).collect();
        for library in loaded {
            tree.add(&library);
        }
        let certificates =
            std::env::var_os("SSL_CERT_FILE").map(PathBuf::from).into_iter().chain([
                "/etc/ssl/certs/ca-certificates.crt".into(),
                "/etc/pki/tls/certs/ca-bundle.crt".into(),
            ]);
        let certificates = certificates.into_iter().find(|file| file.is_file());
        let certificates = certificates.ok_or("no CA certificates for an image with cargo")?;
        tree.files.insert("/etc/ssl/certs/ca-certificates.crt".into(), certificates);
        Ok(tree)
    }

    /// Adds a file at the same path as on this machine.
    fn add(&mut self, file: &Path) {
        let folder = file.parent().and_then(|folder| folder.canonicalize().ok());
        if let (Some(folder), Some(name), true) = (folder, file.file_name(), file.is_file()) {
            self.files.insert(folder.join(name), file.to_owned());
        }
    }

    fn add_toolchain(&mut self) -> Result<(), String> {
        let sysroot = PathBuf::from(output("rustc", &["--print", "sysroot"])?);
        let version = output("rustc", &["-vV"])?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: "));
        let target = format!("lib/rustlib/{}", host.ok_or("rustc names no host")?);
        let mut take = |folder: &str, wanted: &dyn Fn(&str) -> bool| {
            for entry in fs::read_dir(sysroot.join(folder)).into_iter().flatten().flatten() {
                let name = entry.file_name().into_string().unwrap_or_default();
                if wanted(&name) && entry.path().is_file() {
                    let to = Path::new("/usr/local").join(folder).join(name);
                    self.files.insert(to, entry.path());
                }
            }
        };
        take("bin", &|name| ["cargo", "rustc"].contains(&name));
        take("lib", &|name| {
            ["librustc_driver", "libLLVM", "libstd"].iter().any(|start| name.starts_with(start))
        });
        // Without the sanitizers' libraries.
        take(&format!("{target}/lib"), &|name| !name.starts_with("librustc-"));
        take(&format!("{target}/bin"), &|name| name == "rust-lld");
        take(&format!("{target}/bin/gcc-ld"), &|name| name == "ld.lld");
        let cargo = self.files.contains_key(Path::new("/usr/local/bin/cargo"));
        cargo.then_some(()).ok_or_else(|| format!("no cargo in {}", sysroot.display()))
    }

    /// The C compiler, as far as it only links.
    fn add_linker(&mut self) -> Result<(), String> {
        let cc = which::which("cc").map_err(|_| "no cc for an image with cargo")?;
        self.add(&cc);
        for name in ["collect2", "lto-wrapper", "ld"] {
            let path = output(&cc, &[&format!("-print-prog-name={name}")])?;
            // A bare name is looked up in PATH.
            self.add(&which::which(&path).unwrap_or_default());
        }
        let files = "Scrt1.o crt1.o crti.o crtn.o crtbegin.o crtbeginS.o crtend.o crtendS.o \
            libgcc.a libgcc_eh.a libgcc_s.so libgcc_s.so.1 liblto_plugin.so \
            libc.so libc.so.6 libc_nonshared.a libm.so libm.so.6 libmvec.so.1 \
            libdl.a libpthread.a librt.a libutil.a libnss_dns.so.2 libnss_files.so.2";
        for name in files.split_whitespace() {
            let path = output(&cc, &[&format!("-print-file-name={name}")])?;
            // For a missing file it prints the bare name.
            if path.contains('/') {
                self.add(Path::new(&path));
            }
        }
        Ok(())
    }

    /// Returns what changes whenever a file changes. The bytes are too many to read them.
    fn fingerprint(&self) -> String {
        let mut text = format!("1 {:?} {}", static_busybox(), self.cargo_config);
        for (to, from) in &self.files {
            let Ok(metadata) = fs::metadata(from) else { continue };
            _ = write!(text, "\n{} {} {}", to.display(), metadata.len(), metadata.mtime());
        }
        sha256(&text)
    }

    /// Makes the image under this tag.
    fn import(&self, client: &Client, tag: &str) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for name in ["bin", "lib", "lib64", "sbin"] {
            fs::create_dir_all(root.join("usr").join(name)).unwrap();
            if Path::new("/").join(name).is_symlink() {
                symlink(Path::new("usr").join(name), root.join(name)).unwrap();
            }
        }
        for name in ["tmp", "etc", "proc", "sys", "dev", "root", ".cargo"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let place = |from: &Path, to: &Path| {
            let to = root.join(to.strip_prefix("/").unwrap_or(to));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            let from = from.canonicalize().unwrap();
            // Linked where that is possible, to save half a gigabyte.
            fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop)).unwrap();
        };
        for (to, from) in &self.files {
            place(from, to);
        }
        let busybox = static_busybox().expect("looked for before");
        place(&busybox, Path::new("/usr/bin/busybox"));
        for applet in output(&busybox, &["--list"])?.lines() {
            let path = root.join("usr/bin").join(applet);
            if !path.exists() {
                symlink("busybox", path).unwrap();
            }
        }
        if !root.join("bin").exists() {
            symlink("usr/bin", root.join("bin")).unwrap();
        }
        // Found from every folder, whatever CARGO_HOME is.
        fs::write(root.join(".cargo/config.toml"), &self.cargo_config).unwrap();

        let mut tar = Command::new("tar")
            .args(["--sort=name", "--mtime=@0", "--mode=u=rwX,go=rX"])
            .args(["--owner=0", "--group=0", "--numeric-owner", "-C"])
            .arg(root)
            .args(["-c", "."])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let archive = tar.stdout.take().unwrap();
        let changes = ["ENV PATH=/usr/local/bin:/usr/bin:/bin", "LABEL buildlock-test-rust="];
        let words = ["import", "--change", changes[0], "--change", changes[1], "-", tag];
        let import = client.command(words).stdin(archive).output().unwrap();
        let packed = tar.wait().unwrap().success();
        if packed && import.status.success() {
            return Ok(());
        }
        Err(format!("no image with cargo and rustc: {}", last_line(&import.stderr)))
    }
}

/// Returns the shared libraries that a file loads, except for those of the toolchain itself.
fn libraries_of(file: &Path) -> Vec<PathBuf> {
    if !fs::metadata(file).is_ok_and(|metadata| metadata.mode() & 0o111 != 0) {
        return Vec::new();
    }
    let text = output("ldd", &[file]).unwrap_or_default();
    let paths = text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    let of_toolchain = |path: &PathBuf| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with("librustc_driver") || name.starts_with("libLLVM")
    };
    paths.filter(|path| path.is_file() && !of_toolchain(path)).collect()
}

/// Returns the part of cargo's configuration that says where crates come from.
fn cargo_config() -> String {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let read = |name| fs::read_to_string(home.as_ref()?.join(name)).ok();
    let text = read("config.toml").or_else(|| read("config")).unwrap_or_default();
    let mut wanted = false;
    let mut config = String::new();
    for line in text.lines() {
        if line.starts_with('[') {
            wanted = ["[source", "[http", "[net"].iter().any(|start| line.starts_with(start));
        }
        if wanted {
            config.push_str(line);
            config.push('\n');
        }
    }
    config
}

/// Returns what a program prints, without the newline at its end.
fn output<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, words: &[A]) -> Result<String, String> {
    let program = program.as_ref();
    let output = Command::new(program).args(words).output();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}
