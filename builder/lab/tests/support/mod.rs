//! What the tests of labs share.

#![allow(clippy::disallowed_methods, reason = "a test drives programs and waits for them")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]
#![allow(dead_code, reason = "each test uses its part")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Nobody: any user that is not root.
const UID: u32 = 65534;

/// An example of this crate, which cargo builds before it runs tests.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples").join(name)
}

/// Who runs the lab: a home of their own, and the program where they can read it.
pub(crate) struct User {
    pub(crate) home: tempfile::TempDir,
    pub(crate) program: PathBuf,
    drop: bool,
}

impl User {
    /// A user that is not root.
    pub(crate) fn ordinary() -> Self {
        Self::new(nix::unistd::geteuid().is_root())
    }

    fn new(drop: bool) -> Self {
        let built = example("lab");
        let home = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
        let program = home.path().join("lab");
        // A copy made by this process could still be open for writing in what another test has just forked: ETXTBSY.
        let copied = Command::new("cp").arg(&built).arg(&program).status().unwrap();
        assert!(copied.success(), "{} is not there", built.display());
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        if drop {
            chown(home.path(), Some(UID), Some(UID)).unwrap();
        }
        User { home, program, drop }
    }

    /// The caller, who is root.
    pub(crate) fn root() -> Self {
        Self::new(false)
    }

    pub(crate) fn run(&self, state: &str, args: &[&str]) -> Output {
        let mut command = match self.drop {
            true => {
                let mut setpriv = Command::new("setpriv");
                let id = UID.to_string();
                setpriv.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(&self.program);
                setpriv
            }
            false => Command::new(&self.program),
        };
        let state = self.state(state);
        command
            .arg("lab")
            .arg("--state")
            .arg(state)
            .args(args)
            .env("HOME", self.home.path())
            .output()
            .unwrap()
    }

    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn ok(&self, state: &str, args: &[&str]) -> String {
        let out = self.run(state, args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    pub(crate) fn refused(&self, state: &str, args: &[&str]) -> String {
        let out = self.run(state, args);
        assert_eq!(out.status.code(), Some(1), "{args:?} was to be refused");
        String::from_utf8(out.stderr).unwrap()
    }

    /// Processes whose command line names a state directory.
    pub(crate) fn processes(&self, state: &str) -> Vec<(i32, String)> {
        let state = self.state(state).to_str().unwrap().to_owned();
        let pids =
            fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
        let command = |pid: i32| Some((pid, fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?));
        pids.filter_map(command).filter(|(_, c)| c.contains(&state)).collect()
    }
}

impl Drop for User {
    /// A test that panics leaves no lab behind: its daemon and its nodes would go on and slow every test after it.
    fn drop(&mut self) {
        for entry in fs::read_dir(self.home.path()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if let (true, Some(state)) = (entry.path().is_dir(), name.to_str()) {
                // Nothing is there after a test that went well, and a test that did not has said so already.
                let _ = self.run(state, &["down"]);
            }
        }
    }
}

/// Looks until it is so.
pub(crate) fn wait(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(200));
    }
}
