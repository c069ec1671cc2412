//! The event logs of nodes, read from outside: of containers as files, of machines through the test agent.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::Lab;
use crate::secrets::files;

/// In a machine.
const DIR: &str = "/state/supervisor/events";
/// Bytes of a file whose digits one answer of the agent has room for: `od` makes 49 characters of 16 bytes, and of more than
/// 24 KiB the agent keeps the last.
const PART: usize = 7 << 10;

/// What was read of machines so far: logs only grow.
#[derive(Default)]
pub(crate) struct Events(BTreeMap<PathBuf, Vec<u8>>);

impl Events {
    /// All files of a node with their contents.
    pub(crate) fn of(&mut self, lab: &Lab, node: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let state = lab.state().join("nodes").join(node).join("state");
        if state.exists() {
            let all = files(&state.join("supervisor/events")).into_iter();
            // A node may remove its oldest file at any time.
            return all.filter_map(|path| std::fs::read(&path).ok().map(|bytes| (path, bytes))).collect();
        }
        let listed = sh(lab, node, &format!("cd {DIR} && wc -c *")).unwrap_or_default();
        let row = |line: &str| {
            let (length, name) = line.trim().split_once(' ')?;
            Some((name.to_owned(), length.parse::<usize>().ok()?))
        };
        let rows = listed.lines().filter_map(row).filter(|(name, _)| name != "total");
        rows.filter_map(|(name, length)| self.file(lab, node, &name, length)).collect()
    }

    /// What was there when it had this length; `None`: it is gone, or the node says nothing.
    fn file(&mut self, lab: &Lab, node: &str, name: &str, length: usize) -> Option<(PathBuf, Vec<u8>)> {
        let path = PathBuf::from(format!("{node}:{DIR}/{name}"));
        let known = self.0.entry(path.clone()).or_default();
        if known.len() > length {
            // Cut off at its end by a power loss.
            known.clear();
        }
        // The last part may have been torn when it was read.
        known.truncate(known.len() / PART * PART);
        while known.len() < length {
            let part = known.len() / PART;
            let digits = sh(
                lab,
                node,
                &format!("dd if={DIR}/{name} bs={PART} skip={part} count=1 2>/dev/null | od -An -v -tx1"),
            )?;
            let before = known.len();
            known.extend(digits.split_whitespace().filter_map(|byte| u8::from_str_radix(byte, 16).ok()));
            if known.len() == before {
                return None;
            }
        }
        Some((path, known.clone()))
    }
}

/// What a shell in a machine prints; `None`: it is not asked, or says that it failed.
fn sh(lab: &Lab, node: &str, text: &str) -> Option<String> {
    let script = format!("export PATH=/usr/sbin:/usr/bin; {text}");
    let args = ["ctl", node, "--", "exec", "--json", "--", "/bin/sh", "-ec", &script];
    let answer: serde_json::Value = serde_json::from_slice(&lab.run(&args).stdout).ok()?;
    (answer["status"] == 0).then(|| answer["stdout"].as_str().unwrap_or_default().to_owned())
}
