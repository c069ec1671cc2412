//! Helper processes of PID 1 (`init --phase NAME`): whatever may wait for a device. PID 1 gives them a deadline.

use std::ffi::{CStr, CString};
use std::path::Path;
use std::process::ExitCode;

use crate::core::STATUS_CHANGED;
use crate::log;
use crate::modules::{self, Modules};
use crate::record::{self, Record};
use crate::{boot, mounts};

/// The least share of a processor.
const NICE_LAST: i32 = 19;

/// Runs one helper; what it did goes to standard output, why it failed to standard error.
pub(crate) fn run(name: &str, arguments: &[&str]) -> ExitCode {
    log::open();
    let result = match name {
        "warm-up" => Err(warm_up(arguments)),
        "modules" => coldplug(),
        "record" => record(arguments),
        "sync" => {
            rustix::fs::sync();
            Ok((false, String::new()))
        }
        "unmount" => unmount(),
        _ => dyad_storage::run_phase(name)
            .map(|report| (!report.changes.is_empty(), report.to_string()))
            .map_err(|error| error.to_string()),
    };
    match result {
        Ok((changed, note)) => {
            println!("{note}");
            ExitCode::from(if changed { STATUS_CHANGED as u8 } else { 0 })
        }
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

/// Becomes the program, behind everything else that runs.
fn warm_up(arguments: &[&str]) -> String {
    let _ = rustix::process::setpriority_process(None, NICE_LAST);
    let words: Result<Vec<CString>, _> = arguments.iter().map(|word| CString::new(*word)).collect();
    let Ok(words) = words else { return format!("warm-up {arguments:?}: a zero byte") };
    let Some(program) = words.first() else { return "warm-up: no program is named".to_owned() };
    match nix::unistd::execve(program, &words, &[] as &[&CStr]) {
        Ok(never) => match never {},
        Err(errno) => format!("cannot execute {program:?}: {errno}"),
    }
}

/// Called by the kernel for a module that it wants: `-q -- NAME`.
pub(crate) fn modprobe(name: &str) -> ExitCode {
    let loaded = Modules::open()
        .map_err(|e| e.to_string())
        .and_then(|mut modules| modules.load_for(name).map_err(|e| e.to_string()));
    if loaded.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Writes down how the boot ends; tells what stood there before.
fn record(arguments: &[&str]) -> Result<(bool, String), String> {
    let record = match arguments {
        [word, reason] => Record::from_words(word, reason),
        _ => None,
    };
    let record = record.ok_or_else(|| format!("record {arguments:?}: accepted are a word and a reason"))?;
    let before =
        record::append(Path::new(record::FILE), &record).map_err(|e| format!("{}: {e}", record::FILE))?;
    Ok((true, before.map(|before| before.tell()).unwrap_or_default()))
}

fn coldplug() -> Result<(bool, String), String> {
    let mut modules = Modules::open().map_err(|error| error.to_string())?;
    let table = boot::table().map_err(|error| error.to_string())?;
    modules::load_list(&mut modules, &table.modules);
    let count = modules.coldplug();
    Ok((count > 0, format!("{count} modules by modalias")))
}

/// Unmounts what is left, deepest first, except what the kernel provides; what is busy becomes read-only.
fn unmount() -> Result<(bool, String), String> {
    let text =
        std::fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
    let kept = ["/proc", "/sys", "/dev", "/run"];
    let mut busy = Vec::new();
    for point in mounts::mount_points(&text) {
        let below = |top: &&str| point == **top || point.starts_with(&format!("{top}/"));
        if point == "/" || kept.iter().any(below) {
            continue;
        }
        if rustix::mount::unmount(point.as_str(), rustix::mount::UnmountFlags::empty()).is_err() {
            let flags = rustix::mount::MountFlags::RDONLY;
            if let Err(errno) = rustix::mount::mount_remount(point.as_str(), flags, "") {
                busy.push(format!("{point}: {errno}"));
            }
        }
    }
    if busy.is_empty() { Ok((false, String::new())) } else { Err(busy.join("; ")) }
}
