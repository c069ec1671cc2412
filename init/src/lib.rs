//! PID 1: initrd stage, early boot phases, service core. A library, so that tests and fuzzers reach its parsers.

mod binary;
mod boot;
mod cgroup;
mod clock;
mod core;
mod exec;
pub mod fuzz;
mod gate;
mod helper;
mod initrd;
mod log;
mod modalias;
mod modules;
mod mounts;
mod notify;
mod power;
pub mod record;
mod services;
mod uevent;

use std::path::Path;
use std::process::ExitCode;

/// Between the last message and the reset, so that somebody can read it.
const PAUSE_BEFORE_RESET_MS: u64 = 10_000;

/// The whole program: what it does depends on its process id and on how it was called.
pub fn run() -> ExitCode {
    let mut arguments = std::env::args();
    let called = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments.collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let first = std::process::id() == 1;
    if first {
        // A program that is executed by its descriptor is called by that number.
        let _ = rustix::thread::set_name(c"init");
    }
    match words.as_slice() {
        ["--phase", name, arguments @ ..] if !first => helper::run(name, arguments),
        ["--state-format"] if !first => {
            println!("{}", core::state_format());
            ExitCode::SUCCESS
        }
        ["-q", "--", name] if !first => helper::modprobe(name),
        // Tools that load what they need themselves (LVM its device-mapper targets) find this program by that name.
        [.., name] if !first && called.ends_with("/modprobe") => helper::modprobe(name),
        ["--resume", number] if first => resume(number),
        _ if first && !Path::new(boot::TABLE).exists() && Path::new(modules::INDEX).exists() => initrd::run(),
        _ if first => pid1(words.first() == Some(&binary::ENTERED)),
        _ => {
            eprintln!("init: PID 1 of a Dyad image; started by the kernel, not by hand");
            ExitCode::from(2)
        }
    }
}

fn pid1(in_memory: bool) -> ExitCode {
    if !in_memory {
        let error = binary::enter();
        // What serves the services goes on from its disk rather than not at all.
        eprintln!("init: PID 1 runs from its disk: {error}");
    }
    match core::Core::boot() {
        Ok(core) => core.run(),
        Err(error) => give_up(&format!("PID 1 cannot begin: {error}")),
    }
}

/// PID 1 again, after a crash of its former image.
fn resume(number: &str) -> ExitCode {
    let resumed = number.parse().map_err(|_| format!("--resume {number:?} is not a descriptor"));
    match resumed.and_then(|number| core::Core::resume(number).map_err(|error| error.to_string())) {
        Ok(core) => core.run(),
        Err(error) => give_up(&format!("PID 1 cannot go on: {error}")),
    }
}

/// Resets the machine. In a container the same call ends the container.
fn give_up(reason: &str) -> ExitCode {
    log::open();
    log::critical!("{reason}");
    clock::pause_ms(PAUSE_BEFORE_RESET_MS);
    power::reset_now();
    ExitCode::FAILURE
}
