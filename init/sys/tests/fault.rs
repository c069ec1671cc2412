//! Every fault that would end PID 1 really happens here, and the program goes on by executing itself: the same process,
//! the same descriptors. Without libtest, which has threads and a panic hook of its own.
#![allow(clippy::disallowed_methods, reason = "a test starts its subject")]

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, ExitCode, Stdio};

use dyad_sys::fault::{self, Injection};

const CASES: [(&str, Injection, i32); 6] = [
    ("panic", Injection::Panic, fault::CAUSE_PANIC),
    ("abort", Injection::Abort, 6),
    ("stack-overflow", Injection::StackOverflow, 11),
    ("null-write", Injection::NullWrite, 11),
    ("illegal-instruction", Injection::IllegalInstruction, 4),
    ("allocation", Injection::Allocation, 6),
];
/// How often each happens to the same process.
const ROUNDS: u32 = 20;
const NOTE_AT: u32 = 8;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "subject", name, round, pid, state] => subject(name, round, pid, state),
        _ => all(),
    }
}

fn all() -> ExitCode {
    let mut failed = 0;
    for (name, ..) in CASES {
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["subject", name, "0", "0", "-1"])
            .stdin(Stdio::null())
            .output()
            .expect("this program starts");
        let good = output.status.success() && output.stdout == b"survived\n";
        println!("fault {name}: {ROUNDS} times: {}", if good { "ok" } else { "FAILED" });
        if !good {
            failed += 1;
            println!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One life: checks what the last one left, then ends by the fault.
fn subject(name: &str, round: &str, pid: &str, state: &str) -> ExitCode {
    let (_, injection, cause) = CASES.into_iter().find(|case| case.0 == name).expect("a case");
    let round: u32 = round.parse().expect("a number");
    let state: i32 = state.parse().expect("a number");
    let me = std::process::id();
    let memory: OwnedFd = if round == 0 {
        let memory = memfd();
        std::os::unix::fs::FileExt::write_all_at(&memory, &[0; 64], 0).expect("memfd");
        dyad_sys::spawn::keep(memory.into()).expect("keep")
    } else {
        dyad_sys::spawn::adopt(state).expect("the memfd survives")
    };
    let memory = File::from(memory);
    if round > 0 {
        assert_eq!(pid.parse(), Ok(me), "the process is the same");
        let mut note = [0; fault::NOTE_BYTES];
        std::os::unix::fs::FileExt::read_exact_at(&memory, &mut note, u64::from(NOTE_AT)).expect("note");
        assert_eq!(note[..4], cause.to_le_bytes(), "the cause was noted");
        assert_ne!(note[4..], [0; 8], "and its time");
    }
    if round == ROUNDS {
        println!("survived");
        return ExitCode::SUCCESS;
    }
    let next = (round + 1).to_string();
    let (me, number) = (me.to_string(), memory.as_raw_fd().to_string());
    let words = ["fault", "subject", name, &next, &me, &number];
    let argv = words.map(|word| CString::new(word).expect("no zero")).to_vec();
    let binary = File::open("/proc/self/exe").expect("this program");
    fault::install(binary.into(), argv, memory.as_raw_fd(), NOTE_AT).expect("handlers");
    std::panic::set_hook(Box::new(|_| {
        let error = fault::reexec(fault::CAUSE_PANIC);
        eprintln!("the panic hook came back: {error}");
    }));
    fault::inject(injection);
    eprintln!("{name} did not happen");
    ExitCode::FAILURE
}

fn memfd() -> File {
    rustix::fs::memfd_create("fault", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd").into()
}
