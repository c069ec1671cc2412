//! Early boot phases whose helpers are killed.

use dyad_api::control::{Answer, Call, Phase, PhaseState};
use rustix::process::{Pid, Signal, kill_process};

use crate::services;
use crate::support::{Client, Container, inside, wait_for};

/// The helper of a phase that works just now, unless it is this one.
fn helper(container: &Container, phase: &str, but: Option<Pid>) -> Pid {
    let children = format!("/proc/{0}/task/{0}/children", container.pid);
    wait_for("the helper of a phase", || {
        let text = std::fs::read_to_string(&children).ok()?;
        text.split(' ').filter_map(|word| Pid::from_raw(word.parse().ok()?)).find(|pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            Some(*pid) != but && words.ends_with(format!("--phase\0{phase}\0").as_bytes())
        })
    })
}

fn phase(client: &mut Client, name: &str) -> Phase {
    match client.ask(Call::Phases) {
        Answer::Phases(all) => all.into_iter().find(|phase| phase.name == name).expect("a known phase"),
        other => panic!("{other:?}"),
    }
}

/// Somebody who writes is waited for where the machine's number is read: the helper stays there.
fn stuck() -> Container {
    Container::prepared(services(), &[], "", "/bin/busybox mkfifo state/machine-id")
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn a_phase_whose_helper_is_killed_is_begun_again() {
    let container = stuck();
    let mut client = Client::connect(&container);
    let first = helper(&container, "state", None);
    kill_process(first, Signal::KILL).expect("a helper");
    let second = helper(&container, "state", Some(first));
    std::fs::remove_file(inside(&container, "/state/machine-id")).expect("the pipe");
    kill_process(second, Signal::KILL).expect("a helper");
    let done = wait_for("the end of the phase", || {
        Some(phase(&mut client, "state")).filter(|it| it.state.is_done())
    });
    assert_eq!(done.state, PhaseState::Changed, "{}", done.note);
    client.wait_all_ready();
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn a_phase_whose_helper_is_killed_again_and_again_has_failed() {
    let container = stuck();
    let mut client = Client::connect(&container);
    let mut last = None;
    for _ in 0..4 {
        let now = helper(&container, "state", last);
        kill_process(now, Signal::KILL).expect("a helper");
        last = Some(now);
    }
    let failed = wait_for("the failure", || {
        Some(phase(&mut client, "state")).filter(|phase| phase.state == PhaseState::Failed)
    });
    assert!(failed.note.contains("ended by signal 9"), "{}", failed.note);
}
