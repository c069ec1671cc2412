//! Tests that build real images in many surroundings and compare every byte: no machine is booted.
//!
//! The programs for the image are compiled once; builds then run from an installed `dyad` with its `payload` beside it,
//! so that a build in another user's home needs no cargo.

pub mod everywhere;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use dyad_vm_tests::{dyad, root, run, stdout};
use serde_json::Value;
use tempfile::TempDir;

/// Names of the programs that are compiled for the image.
pub const PROGRAMS: [&str; 4] = ["init", "supervisor", "dyadctl", "dyad-witness"];

/// The libraries that PostgreSQL and journald load: compiled with other flags, so in a directory of their own.
const LIBRARIES: [&str; 2] = ["libdyad_guard.so", "libdyad_journal.so"];

/// A `dyad` with its payload in a directory of its own, a full package cache and a lock file.
pub struct Installed {
    dir: TempDir,
    cache: PathBuf,
    /// What builds remember of each other.
    pub blocks: PathBuf,
}

/// What every build of one input must agree in: SHA-256 by file name.
pub type Digests = BTreeMap<String, String>;

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory can be made");
    for entry in fs::read_dir(from).expect("the tree can be read") {
        let entry = entry.expect("the tree can be read");
        let (kind, target) = (entry.file_type().expect("entries have a type"), to.join(entry.file_name()));
        if kind.is_dir() {
            copy_tree(&entry.path(), &target);
        } else if kind.is_symlink() {
            let link = fs::read_link(entry.path()).expect("a link can be read");
            std::os::unix::fs::symlink(link, target).expect("a link can be made");
        } else {
            fs::copy(entry.path(), target).expect("a file can be copied");
        }
    }
}

impl Installed {
    /// Builds the lab image once from the checkout, as a user would, and installs what that used.
    pub fn new() -> Installed {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let at = |name: &str| dir.path().join(name);
        let installed = Installed { cache: default_cache(), blocks: at("blocks"), dir };
        // The payload is compiled as part of this.
        let out = installed.path("first");
        let output = run(&["build", "images/lab.toml", "--out", text(&out), "--format", "tree"], &[]);
        stdout("dyad build", &output);
        let payload = installed.path("bin/payload");
        fs::create_dir_all(&payload).expect("a directory can be made");
        fs::copy(dyad(), installed.path("bin/dyad")).expect("the program can be copied");
        for program in payload_files() {
            let name = program.file_name().expect("a program has a name");
            fs::copy(&program, payload.join(name)).expect("the payload was just compiled");
        }
        installed.sources(&installed.path("src"));
        let lock = [text(&installed.path("bin/dyad")).to_owned(), "lock".into(), "images/lab.toml".into()];
        installed
            .ok(&Surroundings { directory: Some(installed.path("src")), ..Surroundings::default() }, &lock);
        installed
    }

    /// A path in the directory of this installation.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Copies definitions and overlays: the first time from the checkout, then with the lock file written there.
    pub fn sources(&self, to: &Path) {
        let first = self.path("src");
        let from = if first.is_dir() { first } else { root() };
        copy_tree(&from.join("images"), &to.join("images"));
        copy_tree(&from.join("overlays"), &to.join("overlays"));
    }

    /// Runs a command line in these surroundings.
    #[allow(clippy::disallowed_methods, reason = "the surroundings of a process are what these tests vary")]
    pub fn command(&self, around: &Surroundings, argv: &[String]) -> Output {
        let mut command: Vec<&str> = around.wrapper.clone();
        command.extend(argv.iter().map(String::as_str));
        let blocks = if around.cold { self.path("no-blocks") } else { self.blocks.clone() };
        if around.cold {
            let _ = fs::remove_dir_all(&blocks);
        }
        Command::new(command[0])
            .args(&command[1..])
            .env("DYAD_CACHE", &self.cache)
            .env("DYAD_BLOCK_CACHE", &blocks)
            .envs(around.env.iter().copied())
            .current_dir(around.directory.clone().unwrap_or_else(root))
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|e| panic!("{command:?} (needed by this test) cannot be started: {e}"))
    }

    /// [`Installed::command`] that must succeed; gives its standard output.
    pub fn ok(&self, around: &Surroundings, argv: &[String]) -> String {
        stdout(&format!("{around:?} {argv:?}"), &self.command(around, argv))
    }

    /// Command line of a build of the lab image, offline.
    pub fn build_line(&self, out: &Path, formats: &[&str], more: &[&str]) -> Vec<String> {
        let program = self.path("bin/dyad");
        let mut argv =
            vec![text(&program), "build", "images/lab.toml", "--offline", "--json", "--out", text(out)];
        for format in formats {
            argv.extend(["--format", format]);
        }
        argv.extend(more);
        argv.into_iter().map(str::to_owned).collect()
    }

    /// Digests of all files that a build made, the manifest included; `out` is removed.
    pub fn digests(&self, around: &Surroundings, out: &Path, formats: &[&str], more: &[&str]) -> Digests {
        let record = self.ok(around, &self.build_line(out, formats, more));
        let record: Value = serde_json::from_str(&record).expect("--json prints JSON");
        let mut digests = Digests::new();
        for entry in fs::read_dir(out).expect("the outputs are there") {
            let path = entry.expect("the outputs can be listed").path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            // An independent program: what the record says of each file is compared with it.
            let sum = dyad_vm_tests::program("sha256sum", &[text(&path)]);
            let sum = stdout("sha256sum", &sum).split(' ').next().unwrap_or_default().to_owned();
            if let Some(said) = record["outputs"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|o| o["path"].as_str().is_some_and(|p| p.ends_with(&format!("/{name}"))))
            {
                assert_eq!(said["sha256"], sum.as_str(), "what the record says of {name}");
                assert_eq!(said["bytes"], fs::metadata(&path).expect("it is there").len(), "{name}");
            } else {
                let beside = [".manifest.json", ".spdx.json", ".build.json", ".build.sig"];
                assert!(beside.iter().any(|end| name.ends_with(end)), "{name} is in no record");
            }
            digests.insert(name, sum);
        }
        fs::remove_dir_all(out).expect("the outputs can be removed");
        digests
    }
}

impl Default for Installed {
    fn default() -> Self {
        Self::new()
    }
}

/// What differs between the places where one image is built.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Programs in front of the command.
    pub wrapper: Vec<&'static str>,
    /// Variables.
    pub env: Vec<(&'static str, &'static str)>,
    /// Working directory; the checkout when not given.
    pub directory: Option<PathBuf>,
    /// Without the cache of compressed blocks.
    pub cold: bool,
}

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where the programs for the image are: beside an installed `dyad`, or where a checkout's compiles them.
pub fn payload_dir() -> PathBuf {
    let beside = dyad().with_file_name("payload");
    if beside.is_dir() { beside } else { target_dir().join("payload/x86_64-unknown-linux-gnu/release") }
}

/// Every file that an installed `dyad` has in its `payload` directory: the programs, and PostgreSQL's guard.
fn payload_files() -> Vec<PathBuf> {
    let programs = PROGRAMS.iter().map(|name| payload_dir().join(name));
    let libraries = LIBRARIES.iter().map(|name| {
        let beside = payload_dir().join(name);
        let made = || target_dir().join("payload-guard/x86_64-unknown-linux-gnu/release").join(name);
        if beside.is_file() { beside } else { made() }
    });
    programs.chain(libraries).collect()
}

/// The cache that the first build filled: the same rule as `dyad`'s own.
fn default_cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    set("DYAD_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("dyad")))
        .or_else(|| Some(set("HOME")?.join(".cache/dyad")))
        .expect("one of DYAD_CACHE, XDG_CACHE_HOME and HOME is set")
}

/// Paths of these tests are UTF-8.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}
