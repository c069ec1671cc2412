//! What must never be told, looked for wherever nodes tell things.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Lab, processes};

const NODES: [&str; 2] = ["node-a", "node-b"];
/// Where the secret numbers begin in an Ed25519 key in PKCS #8 form (RFC 8410), and how many there are.
const SEED: std::ops::Range<usize> = 16..48;
/// How a private key begins in PEM form, whatever its kind, up to its first line.
const PEM: &[u8] = b"PRIVATE KEY-----\nM";
/// Files of packages that have private keys which everybody knows: those of a library's own tests of itself.
const KNOWN: &str = "/libgnutls.so.";
/// Questions to a node, some of them refused: what it answers is read too.
const QUESTIONS: [&[&str]; 6] = [
    &["status"],
    &["services"],
    &["logs", "-n", "1000"],
    &["start", "postgresql"],
    &["restart", "nothing"],
    &["exec", "--", "/usr/bin/env"],
];

/// The secrets of a lab: of containers all, of machines the passwords that an operator is shown.
pub struct Secrets(Vec<(String, Vec<u8>)>);

impl Secrets {
    /// Reads them where they are kept.
    pub fn of(lab: &Lab) -> Self {
        let mut all = Self(Vec::new());
        for node in NODES {
            let dir = lab.state().join("nodes").join(node);
            for name in ["site.key", "witness.code"] {
                let text = fs::read_to_string(dir.join("efi/dyad").join(name)).unwrap_or_default();
                all.add(&format!("{node}'s {name}"), text.trim().as_bytes());
            }
            let kept = fs::read(dir.join("state/supervisor/credentials")).unwrap_or_default();
            let kept: Value = serde_json::from_slice(&kept).unwrap_or_default();
            for (role, secret) in kept["roles"].as_object().into_iter().flatten() {
                for part in ["password", "verifier"] {
                    let text = secret[part].as_str().unwrap_or_default();
                    all.add(&format!("the {part} of {role} on {node}"), text.as_bytes());
                }
            }
            let pem = fs::read_to_string(dir.join("state/supervisor/postgresql.pem")).unwrap_or_default();
            for (name, pem) in [
                ("the authority's key", kept["authority"]["key"].as_str().unwrap_or_default()),
                ("the server's key", pem.split_once('\n').map_or("", |(_, key)| key)),
            ] {
                // Its first line of digits: no key has the same.
                all.add(&format!("{name} on {node}"), pem.lines().nth(1).unwrap_or_default().as_bytes());
            }
            let shown = lab.run(&["ctl", node, "--", "credentials", "--json"]).stdout;
            let shown: Value = serde_json::from_slice(&shown).unwrap_or_default();
            for role in shown["roles"].as_array().into_iter().flatten() {
                let text = role["password"].as_str().unwrap_or_default();
                all.add(&format!("a password that {node} shows to its operator"), text.as_bytes());
            }
            let key = fs::read(dir.join("state/identity/node.key")).unwrap_or_default();
            let seed = key.get(SEED).unwrap_or_default();
            all.add(&format!("{node}'s private key"), seed);
            let hex: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
            all.add(&format!("{node}'s private key in hexadecimal digits"), hex.as_bytes());
        }
        all
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    fn add(&mut self, name: &str, secret: &[u8]) {
        if !secret.is_empty() {
            self.0.push((name.to_owned(), secret.to_owned()));
        }
    }

    /// Those that are in consoles, journals, event logs, command lines, environments and answers of the nodes, by name and
    /// place.
    pub fn told(&self, lab: &Lab) -> Vec<String> {
        let mut found = Vec::new();
        let group = processes::group(lab);
        for node in NODES {
            let dir = lab.state().join("nodes").join(node);
            let mut paths = vec![dir.join("serial.log"), dir.join("container.log")];
            let logs = ["journal", "supervisor/events", "supervisor/events-peer"];
            paths.extend(logs.iter().flat_map(|log| files(&dir.join("state").join(log))));
            for process in group.iter().flat_map(|group| processes::of(group, node)) {
                let proc = PathBuf::from(format!("/proc/{}", process.pid.as_raw_nonzero()));
                paths.extend(["cmdline", "environ"].map(|file| proc.join(file)));
            }
            for path in paths {
                // A journal is rotated and a process ends meanwhile.
                found.extend(self.within(&path.display().to_string(), &fs::read(&path).unwrap_or_default()));
            }
            for question in QUESTIONS {
                let answer = lab.run(&[&["ctl", node, "--"], question].concat());
                let what = format!("{node}'s answer to {}", question.join(" "));
                found.extend(self.within(&what, &[answer.stdout, answer.stderr].concat()));
            }
        }
        found.extend(
            self.within("the lab's log", &fs::read(lab.state().join("daemon.log")).unwrap_or_default()),
        );
        found
    }

    /// Files of the image's root, as containers have it, with a secret or any private key.
    pub fn in_image(&self, lab: &Lab) -> Vec<String> {
        let root = lab.state().join("root");
        let mut found = Vec::new();
        for path in files(&root) {
            let bytes = fs::read(&path).unwrap_or_default();
            let what = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
            if memchr::memmem::find(&bytes, PEM).is_some() && !what.contains(KNOWN) {
                found.push(format!("{what} has a private key"));
            }
            found.extend(self.within(&what, &bytes));
        }
        found
    }

    fn within(&self, what: &str, bytes: &[u8]) -> Vec<String> {
        let there = |(_, secret): &&(String, Vec<u8>)| memchr::memmem::find(bytes, secret).is_some();
        self.0.iter().filter(there).map(|(name, _)| format!("{what} has {name}")).collect()
    }
}

/// Files below a directory, no links; of one that is not there, none.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => all.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => all.push(entry.path()),
            Ok(_) | Err(_) => {}
        }
    }
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_wherever_it_stands_and_named_without_being_shown() {
        let mut secrets = Secrets(Vec::new());
        secrets.add("a password", b"sesame");
        secrets.add("nothing", b"");
        secrets.add("a key", &[0, 255, 7]);
        assert_eq!(secrets.count(), 2);
        assert_eq!(secrets.within("a log", b"open sesame!"), ["a log has a password"]);
        assert_eq!(secrets.within("a log", &[1, 0, 255, 7]), ["a log has a key"]);
        assert!(secrets.within("a log", b"open, ses ame").is_empty());
    }
}
