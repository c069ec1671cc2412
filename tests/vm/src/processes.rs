//! The processes of a lab's containers, seen from outside. A machine shows none.

use std::fs;
use std::path::Path;

use rustix::process::Pid;
use serde_json::Value;

use crate::Lab;

/// A process of a node.
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// Command line, with spaces.
    pub(crate) words: String,
    /// It is PID 1 there, with which all others end.
    pub(crate) first: bool,
}

/// The control group of a lab of containers.
pub(crate) fn group(lab: &Lab) -> Option<String> {
    let text = fs::read(lab.state().join("lab.json")).expect("the lab says what it is made of");
    let made: Value = serde_json::from_slice(&text).expect("lab.json is JSON");
    let path = made["backend"]["container"]["cgroup"].as_str()?;
    Some(Path::new(path).file_name()?.to_str()?.to_owned())
}

/// All processes of a node, PID 1 first.
pub(crate) fn of(group: &str, node: &str) -> Vec<Process> {
    let place = format!("/{group}/{node}/");
    let ends = format!("/{group}/{node}");
    let entries = fs::read_dir("/proc").expect("/proc is there").flatten();
    let mut numbers: Vec<i32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    let found = numbers.into_iter().filter_map(|number| {
        let read = |file: &str| fs::read(format!("/proc/{number}/{file}")).ok();
        let groups = String::from_utf8(read("cgroup")?).ok()?;
        let inside = groups.lines().any(|line| line.contains(&place) || line.ends_with(&ends));
        let words = String::from_utf8_lossy(&read("cmdline")?).replace('\0', " ");
        let status = String::from_utf8(read("status")?).ok()?;
        let numbers = status.lines().find(|line| line.starts_with("NSpid:"))?;
        let first = numbers.split_whitespace().next_back() == Some("1");
        inside.then_some(Process { pid: Pid::from_raw(number)?, words, first })
    });
    found.collect()
}
