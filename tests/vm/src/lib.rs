//! Tests that build real images and boot them: everything goes through the `dyad` command, as a user would type it.
//!
//! `cargo xtask verify` builds the program first; a test run by hand takes `DYAD_BIN` or `target/release/dyad`.

pub mod balancer;
pub mod boot;
pub mod chaos;
pub mod failover;
pub mod guest;
mod processes;
pub mod secrets;
pub mod steady;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The top of the source tree.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tests/vm is two below the root").into()
}

/// The program under test.
pub fn dyad() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let path = std::env::var_os("DYAD_BIN").map_or_else(|| target.join("release/dyad"), PathBuf::from);
    assert!(path.is_file(), "{} is missing: cargo build --release --bin dyad", path.display());
    path
}

/// Runs `dyad ARGS` to its end.
#[allow(clippy::disallowed_methods, reason = "this is the tests' one subprocess wrapper")]
pub fn run(args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(dyad())
        .args(args)
        .envs(env.iter().copied())
        .current_dir(root())
        .stdin(Stdio::null())
        .output()
        .expect("dyad can be started")
}

/// Runs any program to its end; the oracles and hostile environments of these tests.
#[allow(clippy::disallowed_methods, reason = "this is the tests' one subprocess wrapper")]
pub fn program(name: &str, args: &[&str]) -> Output {
    Command::new(name)
        .args(args)
        .current_dir(root())
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{name} (needed by this test) cannot be started: {e}"))
}

/// Standard output of a command that must succeed.
pub fn stdout(what: &str, output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{what}: {}\n--- stdout\n{out}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    out
}

/// A definition of this tree with the overlay that lets tests run commands in the guest, written into a directory.
pub fn with_test_agent(image: &str, dir: &Path) -> PathBuf {
    let text = std::fs::read_to_string(root().join(format!("images/{image}.toml")))
        .expect("the definition is there");
    let marked = text.replacen("overlays = [", "overlays = [\"test-agent\", ", 1);
    assert_ne!(text, marked, "images/{image}.toml has no line `overlays = [`");
    std::fs::create_dir_all(dir.join("images")).expect("the directory can be made");
    std::os::unix::fs::symlink(root().join("overlays"), dir.join("overlays")).expect("a link can be made");
    let file = dir.join(format!("images/{image}.toml"));
    std::fs::write(&file, marked).expect("the definition can be written");
    file
}

/// A lab of its own, taken down when dropped.
pub struct Lab {
    state: TempDir,
}

impl Lab {
    /// `dyad lab up DEFINITION --nodes N`; panics with all output if it does not come up.
    pub fn up(definition: &Path, nodes: u32) -> Lab {
        Lab::up_with(definition, nodes, &[])
    }

    /// [`Lab::up`] with more options of `dyad lab up`.
    pub fn up_with(definition: &Path, nodes: u32, options: &[&str]) -> Lab {
        let lab = Lab { state: TempDir::new().expect("a temporary directory can be made") };
        let nodes = nodes.to_string();
        let definition = definition.to_str().expect("test paths are UTF-8");
        let mut args = vec!["up", definition, "--nodes", &nodes];
        args.extend_from_slice(options);
        lab.ok(&args);
        lab
    }

    /// A lab of a disk image that was built before.
    pub fn of_image(raw: &Path, nodes: u32, options: &[&str]) -> Lab {
        Lab::in_place(TempDir::new().expect("a temporary directory can be made"), raw, nodes, options)
    }

    /// [`Lab::of_image`] with its state in this directory.
    pub fn in_place(state: TempDir, raw: &Path, nodes: u32, options: &[&str]) -> Lab {
        let lab = Lab { state };
        let (raw, nodes) = (raw.to_str().expect("test paths are UTF-8"), nodes.to_string());
        lab.ok(&[&["up", "--image", raw, "--nodes", &nodes], options].concat());
        lab
    }

    /// Runs `dyad lab VERB ARGS` for this lab.
    pub fn run(&self, args: &[&str]) -> Output {
        let state = self.state.path().to_str().expect("test paths are UTF-8");
        let mut all = vec!["lab", "--state", state];
        all.extend_from_slice(args);
        run(&all, &[])
    }

    /// [`Lab::run`] that must succeed; gives its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        stdout(&format!("dyad lab {}\n{}", args.join(" "), self.consoles()), &output)
    }

    /// Runs a command that goes on until it is told to end: types `word` once it has shown `sign`; what it showed by then.
    #[allow(clippy::disallowed_methods, reason = "the command is read while it runs")]
    pub fn talk(&self, args: &[&str], sign: &str, word: &[u8]) -> String {
        let mut child = Command::new(dyad())
            .args(["lab", "--state"])
            .arg(self.state())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("dyad can be started");
        let mut output = child.stdout.take().expect("standard output is a pipe");
        let (mut shown, mut part) = (Vec::new(), [0; 4096]);
        let mut text = String::new();
        while !text.contains(sign) {
            let length = output.read(&mut part).expect("a pipe can be read");
            assert_ne!(length, 0, "dyad lab {args:?} ended without showing {sign:?}: {text}");
            shown.extend_from_slice(&part[..length]);
            text = String::from_utf8_lossy(&shown).into_owned();
        }
        child.stdin.take().expect("standard input is a pipe").write_all(word).expect("a pipe can be written");
        output.read_to_end(&mut shown).expect("a pipe can be read");
        let status = child.wait().expect("dyad can be waited for");
        assert!(status.success(), "dyad lab {args:?}: {status}");
        text
    }

    /// Runs one SQL text through `dyad lab psql` and gives the unaligned answer.
    pub fn sql(&self, text: &str) -> String {
        self.ok(&["psql", "--", "-XAtqc", text]).trim().to_owned()
    }

    /// Runs a program inside a node (the image must carry the test agent); (exit status, stdout, stderr).
    pub fn guest(&self, node: &str, argv: &[&str]) -> (i64, String, String) {
        let mut args = vec!["ctl", node, "--", "exec", "--json", "--"];
        args.extend_from_slice(argv);
        let text = self.ok(&args);
        let value: Value =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{argv:?} gave {text:?}: {e}"));
        let field = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        (value["status"].as_i64().unwrap_or(-1), field("stdout"), field("stderr"))
    }

    /// [`Lab::guest`] that must exit with 0; gives its standard output.
    pub fn guest_ok(&self, node: &str, argv: &[&str]) -> String {
        let (status, out, err) = self.guest(node, argv);
        assert_eq!(status, 0, "in {node}: {argv:?}\n--- stdout\n{out}\n--- stderr\n{err}");
        out
    }

    /// What a node wrote to its serial console since the lab was made.
    pub fn console(&self, node: &str) -> String {
        let file = self.state.path().join("nodes").join(node).join("serial.log");
        std::fs::read(file).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    fn consoles(&self) -> String {
        ["node-a", "node-b"]
            .iter()
            .map(|node| {
                let text = self.console(node);
                let lines: Vec<&str> = text.lines().collect();
                let tail = &lines[lines.len().saturating_sub(60)..];
                format!("--- last lines of {node}'s console\n{}\n", tail.join("\n"))
            })
            .collect()
    }

    /// The lab's state directory.
    pub fn state(&self) -> &Path {
        self.state.path()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let output = self.run(&["down"]);
        if !output.status.success() && !std::thread::panicking() {
            panic!("dyad lab down: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
