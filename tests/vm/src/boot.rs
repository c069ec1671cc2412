//! Watching a node boot: when what was seen, and that nothing on its console or in its journal is out of order.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Lab;

/// How long a boot may take on a host that emulates processors and does other things too.
const BOOT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(250);
/// What the console shows when a stage begins; the order is that of booting.
const MARKS: [(&str, &str); 4] = [
    ("boot loader", "BdsDxe: starting Boot"),
    ("kernel image", "EFI stub: "),
    ("kernel", "Linux version "),
    ("init", "dyad: initrd: kernel"),
];
/// Errors that an emulated machine causes and no image can help.
const EXPECTED: [&str; 1] = ["MP-BIOS bug: 8254 timer not connected to IO-APIC"];
/// Lines of PID 1 and the kernel that no good boot has.
const ALARMS: [&str; 11] = [
    "no root:",
    "PID 1 cannot",
    "panicked",
    "Kernel panic",
    "Oops",
    "BUG:",
    // Services and phases of ours: the kernel says `failed to` of measurements that a busy host spoils.
    ": failed",
    " failed: ",
    "is corrupted",
    "I/O error",
    "EXT4-fs error",
];

/// Waits until a condition holds; panics with `what` after `limit`.
#[allow(clippy::disallowed_methods, reason = "tests look at a machine from outside: this is their one clock")]
pub fn wait(what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(POLL);
    }
    start.elapsed()
}

impl Lab {
    /// Waits until a node that was just powered on answers SQL, and prints how long each stage took. `seen`: length of its
    /// console before.
    #[allow(clippy::disallowed_methods, reason = "the stopwatch of a boot")]
    pub fn booted(&self, node: &str, which: &str, seen: usize) -> Value {
        let began = Instant::now();
        let mut marks: Vec<(&str, f64)> = Vec::new();
        wait(&format!("{which}: {node} answers SQL\n{}", self.console(node)), BOOT, || {
            let console = self.console(node);
            let new = console.get(seen..).unwrap_or_default();
            assert!(!new.contains("no root:"), "{which}: {new}");
            for (name, text) in MARKS {
                if new.contains(text) && marks.iter().all(|(known, _)| *known != name) {
                    marks.push((name, began.elapsed().as_secs_f64()));
                }
            }
            self.run(&["psql", "--node", node, "--", "-XAtqc", "select 1"]).stdout == b"1\n"
        });
        let sql = began.elapsed().as_secs_f64();
        // The first answer comes before the supervisor's own look at the database.
        let mut status = Value::Null;
        wait(&format!("{which}: {node} tells its system identifier"), BOOT, || {
            status = self.ask(node, &["status"]);
            status["node"]["postgresql"]["system_identifier"].is_string()
        });
        let walls: Vec<_> = marks.iter().map(|(name, at)| format!("{name} {at:.1} s")).collect();
        let guest: Vec<_> = status["node"]["image"]["boot"]
            .as_array()
            .expect("PID 1 tells the ends of its stages")
            .iter()
            .map(|m| format!("{} {} ms", m["name"].as_str().unwrap_or("?"), m["at_ms"]))
            .collect();
        println!(
            "{which}: since power-on: {}, select 1 {sql:.1} s; since the kernel began, ends of: {}",
            walls.join(", "),
            guest.join(", ")
        );
        status
    }

    /// What a node's supervisor answers.
    pub fn ask(&self, node: &str, words: &[&str]) -> Value {
        let mut args = vec!["ctl", node, "--"];
        args.extend_from_slice(words);
        let text = self.ok(&args);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{words:?} gave {text:?}: {e}"))
    }

    /// Panics when the console since `seen` or the journal tells of an error.
    pub fn no_errors(&self, node: &str, seen: usize) {
        let console = self.console(node);
        let new = console.get(seen..).unwrap_or_default();
        let odd: Vec<_> =
            new.lines().filter(|line| ALARMS.iter().any(|alarm| line.contains(alarm))).collect();
        assert!(odd.is_empty(), "{node}'s console tells of errors: {odd:#?}");
        let errors = self.errors(node);
        assert!(errors.is_empty(), "{node}'s journal tells of errors: {errors:#?}");
    }

    /// Lines of the journal of level error and worse.
    pub fn errors(&self, node: &str) -> Vec<String> {
        let journal = self.ok(&["ctl", node, "--", "logs", "-n", "1000"]);
        let grave = |line: &&str| ["<0>", "<1>", "<2>", "<3>"].iter().any(|level| line.starts_with(level));
        let unexpected = |line: &&str| !EXPECTED.iter().any(|text| line.contains(text));
        journal.lines().filter(grave).filter(unexpected).map(str::to_owned).collect()
    }
}
