//! The subprocess wrapper: nothing outlives it, nothing fills the memory.

use std::io::Read;
use std::time::Duration;

use dyad_archive::clock::Deadline;
use dyad_archive::process::{Command, ProcessError, STDERR_BYTES_MAX, find};

fn sh(script: &str) -> Command {
    Command::new(find("sh").unwrap()).args(["-c", script])
}

#[test]
fn output_status_and_environment() {
    let output = sh("cat; echo problem >&2; exit 3").stdin("input").run().unwrap();
    assert_eq!(
        (output.status.code(), output.stdout, output.stderr.as_str()),
        (Some(3), b"input".to_vec(), "problem\n")
    );
    let names = sh("env | cut -d= -f1 | sort | grep -v _").env("EXTRA", "1").run_checked().unwrap().stdout;
    assert_eq!(String::from_utf8(names).unwrap(), "EXTRA\nPATH\nPWD\n", "LC_ALL has an underscore");
    let error = sh("echo first; echo why >&2; exit 1").run_checked().unwrap_err().to_string();
    assert!(error.ends_with("exit status: 1: why"), "{error}");
    // A program that never reads its input is no error.
    sh("exit 0").stdin(vec![b'x'; 1 << 20]).run_checked().unwrap();
}

#[test]
fn a_deadline_kills_the_whole_group() {
    let error = sh("sleep 987 & echo $!; wait").deadline(Duration::from_millis(300)).run().unwrap_err();
    assert!(matches!(error, ProcessError::Deadline { .. }), "{error}");
    // A background child that keeps the pipe open does not keep us.
    let start = Deadline::after(Duration::from_secs(20));
    assert!(matches!(sh("sleep 986 &").run(), Err(ProcessError::Held { .. })));
    assert!(!start.passed());
    let left = sh("pgrep -f 'sleep 98[67]' | grep -v $$ | wc -l").run_checked().unwrap().stdout;
    assert_eq!(String::from_utf8(left).unwrap().trim(), "0");
}

#[test]
fn output_is_bounded() {
    let error = sh("yes | head -c 100000").stdout_bytes_max(1000).run().unwrap_err();
    assert!(error.to_string().contains("wrote more than 1000 bytes"), "{error}");
    let output = sh("yes | head -c 1000000 >&2").run_checked().unwrap();
    assert_eq!(output.stderr.len(), STDERR_BYTES_MAX);
}

#[test]
fn programs_that_cannot_be_started_are_named() {
    assert!(matches!(Command::new("sh").run(), Err(ProcessError::NotAbsolute(_))));
    let error = Command::new("/nowhere/tool").run().unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/tool: cannot start it:"), "{error}");
    assert!(find("no-such-tool").unwrap_err().to_string().contains("no-such-tool is not installed"));
}

#[test]
fn a_program_that_keeps_running_ends_with_its_handle() {
    let mut log = tempfile::tempfile().unwrap();
    let mut running = sh("echo started; exec sleep 985").start(&log).unwrap();
    assert_eq!(running.wait(Duration::from_millis(300)).unwrap(), None);
    let pid = running.pid();
    drop(running);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    let mut text = String::new();
    std::io::Seek::rewind(&mut log).unwrap();
    log.read_to_string(&mut text).unwrap();
    assert_eq!(text, "started\n");
    assert!(
        sh("exit 5")
            .start(&log)
            .unwrap()
            .wait(Duration::from_secs(10))
            .unwrap()
            .is_some_and(|s| s.code() == Some(5))
    );
}
