//! Programs that run to their end: early boot phases, coldplug, steps of the shutdown, and what the supervisor asks for.
//! Each has a cgroup, a deadline and bounded output.

use dyad_api::control::{Answer, CAPTURE_MAX, ExitStatus, Finished, Oneshot, PhaseState, Refusal};
use dyad_sys::signals::Exit;
use rustix::event::epoll;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};

use super::book::SavedJob;
use super::capture::Capture;
use super::{Core, PHASES, Token};
use crate::cgroup::Group;
use crate::exec::{self, Program, View};
use crate::log::{error, warning};
use crate::{boot, clock};

/// Jobs at the same time.
pub(super) const JOBS_MAX: usize = 64;
/// A phase whose helper is killed more often has failed.
const KILLED_MAX: u8 = 3;
/// A killed job whose cgroup does not empty in this time is given up: its processes hang in the kernel.
const GIVE_UP_MS: u64 = 5_000;
/// Output of a helper that is kept: its last lines are a phase's note.
const HELPER_CAPTURE: u32 = 2048;
/// Longest time for one warm-up.
const WARM_UP_MS: u32 = 60_000;
/// Status of a helper that changed something.
pub(crate) const STATUS_CHANGED: i32 = 10;
/// This program, for helpers.
pub(super) const SELF: &str = "/usr/lib/dyad/init";

/// What a job is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// An early boot phase.
    Phase(usize),
    /// A coldplug after devices came.
    Devices,
    /// A step of the shutdown.
    Step,
    /// A record of how the boot ends.
    Record,
    /// A new binary that is asked what it can read; by this client in this request.
    Upgrade(u16, u32),
    /// A service's program, run so that it is in memory.
    WarmUp,
    /// Asked for by this client in this request.
    Oneshot(u16, u32),
}

/// A former image's descriptors of one output: pipe and file.
pub(super) type Output = (Option<OwnedFd>, Option<OwnedFd>);

#[derive(Debug)]
struct Job {
    kind: Kind,
    name: String,
    group_name: String,
    group: Group,
    pid: u32,
    exit: Option<Exit>,
    /// Its cgroup was killed because time was up, or because nobody waits for it any more.
    killed: bool,
    timed_out: bool,
    out: Capture,
    err: Capture,
    capture_max: u32,
    started_ms: u64,
    deadline_ms: u64,
}

/// All jobs, by number.
#[derive(Debug)]
pub(super) struct Jobs {
    list: Vec<Option<Job>>,
    /// How often the helper of each early boot phase was killed.
    killed: [u8; PHASES.len()],
}

impl Jobs {
    pub(super) fn new() -> Self {
        Self { list: Vec::with_capacity(JOBS_MAX), killed: [0; PHASES.len()] }
    }

    pub(super) fn count(&self) -> usize {
        self.all().count()
    }

    fn all(&self) -> impl Iterator<Item = &Job> {
        self.list.iter().flatten()
    }

    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        self.all().map(|job| job.deadline_ms).min()
    }

    /// Whether a job's end only waits for its cgroup to empty.
    pub(super) fn awaits_empty(&self) -> bool {
        self.all().any(|job| job.exit.is_some())
    }

    pub(super) fn runs_coldplug(&self) -> bool {
        self.all().any(|job| matches!(job.kind, Kind::Devices | Kind::Phase(0)))
    }

    pub(super) fn runs(&self, kind: Kind) -> bool {
        self.all().any(|job| job.kind == kind)
    }

    pub(super) fn is_busy(&self, name: &str) -> bool {
        self.all().any(|job| job.name == name)
    }

    /// After a re-exec: whether a job was about to be started.
    pub(super) fn is_starting(&self) -> bool {
        self.all().any(|job| job.pid == 0 && job.exit.is_none())
    }

    /// Takes a child over for the job that was about to be started in this group.
    pub(super) fn adopt(&mut self, group: &str, pid: u32) -> bool {
        let starting = |job: &&mut Job| job.pid == 0 && job.exit.is_none() && job.group_name == group;
        let job = self.list.iter_mut().flatten().find(starting);
        job.map(|job| job.pid = pid).is_some()
    }

    /// What was about to be started and was not: a phase begins anew, everything else has ended.
    pub(super) fn end_unstarted(&mut self) {
        for place in &mut self.list {
            match place {
                Some(job) if job.pid == 0 && job.exit.is_none() => match job.kind {
                    Kind::Phase(_) => *place = None,
                    _ => job.exit = Some(Exit::Status(exec::NOT_STARTED_MAX)),
                },
                _ => {}
            }
        }
    }
}

/// What a job's program is.
struct Order<'a> {
    name: &'a str,
    suffix: &'a str,
    exec: &'a [String],
    env: &'a [(String, String)],
    cwd: &'a str,
    uid: u32,
    gid: u32,
    deadline_ms: u32,
    capture_max: u32,
}

impl<'a> Order<'a> {
    /// A program that is PID 1's own.
    fn own(name: &'a str, exec: &'a [String], deadline_ms: u32) -> Self {
        let capture_max = HELPER_CAPTURE;
        Order { name, suffix: "phase", exec, env: &[], cwd: "/", uid: 0, gid: 0, deadline_ms, capture_max }
    }

    /// The program, with its output going to these pipes.
    fn program(&self, out: BorrowedFd<'a>, err: BorrowedFd<'a>) -> Program<'a> {
        Program {
            exec: self.exec,
            env: self.env,
            cwd: self.cwd,
            uid: self.uid,
            gid: self.gid,
            groups: &[],
            capabilities: None,
            nofile: 0,
            oom_score_adj: 0,
            no_new_privs: false,
            view: View::default(),
            syscalls: None,
            output: exec::Output::Pipes(out, err),
            listen: &[],
            notify: false,
            watchdog_ms: 0,
        }
    }
}

impl Core {
    /// Runs this program as `init --phase NAME ARGUMENTS` in a process of its own.
    pub(super) fn start_helper(
        &mut self,
        words: &[&str],
        kind: Kind,
        deadline_ms: u32,
    ) -> std::io::Result<()> {
        let exec: Vec<String> =
            [SELF, "--phase"].iter().chain(words).map(|word| (*word).to_owned()).collect();
        self.start_question(words.first().copied().unwrap_or_default(), &exec, kind, deadline_ms)
    }

    /// Runs a program as PID 1's own.
    pub(super) fn start_question(
        &mut self,
        name: &str,
        exec: &[String],
        kind: Kind,
        deadline_ms: u32,
    ) -> std::io::Result<()> {
        self.start_job(kind, &Order::own(name, exec, deadline_ms))
    }

    /// Has programs read that services will start, where nothing else wants the processor. One that fails would fail again.
    pub(super) fn warm_up(&mut self) {
        for id in self.machine.ids() {
            let spec = &self.machine.specs()[usize::from(id)];
            if spec.warm_up.is_empty() {
                continue;
            }
            let words = [SELF, "--phase", "warm-up"].into_iter().map(str::to_owned);
            let exec: Vec<String> = words.chain(spec.warm_up.iter().cloned()).collect();
            let name = format!("{}.warm-up", spec.name);
            let order = Order { uid: spec.uid, gid: spec.gid, ..Order::own(&name, &exec, WARM_UP_MS) };
            if let Err(error) = self.start_job(Kind::WarmUp, &order) {
                warning!("cannot warm up {name}: {error}");
            }
        }
    }

    /// Runs what a client asked for. `None`: it runs; the answer comes when it ended.
    pub(super) fn start_oneshot(&mut self, client: u16, id: u32, wanted: &Oneshot) -> Option<Refusal> {
        if let Some(text) = invalid(wanted) {
            return Some(Refusal::Invalid(text));
        }
        if self.machine.is_shutting_down() {
            return Some(Refusal::ShuttingDown);
        }
        if self.jobs.is_busy(&wanted.name) {
            return Some(Refusal::Busy(wanted.name.clone()));
        }
        let order = Order {
            name: &wanted.name,
            suffix: "oneshot",
            exec: &wanted.exec,
            env: &wanted.env,
            cwd: &wanted.cwd,
            uid: wanted.uid,
            gid: wanted.gid,
            deadline_ms: wanted.deadline_ms,
            capture_max: wanted.capture_max.min(CAPTURE_MAX),
        };
        let started = self.start_job(Kind::Oneshot(client, id), &order);
        started
            .err()
            .map(|error| Refusal::Failed(format!("cannot start one-shot {:?}: {error}", wanted.name)))
    }

    fn start_job(&mut self, kind: Kind, order: &Order<'_>) -> std::io::Result<()> {
        if self.jobs.all().count() >= JOBS_MAX {
            return Err(std::io::Error::other(format!("{JOBS_MAX} jobs run already")));
        }
        let group_name = format!("{}.{}", order.name, order.suffix);
        let group = self.slice.fresh_group(&group_name)?;
        let (out, out_child) = pipe_with(PipeFlags::CLOEXEC)?;
        let (err, err_child) = pipe_with(PipeFlags::CLOEXEC)?;
        let keep = |fd: OwnedFd| -> std::io::Result<OwnedFd> {
            // The child's end blocks, as programs expect; ours never does.
            rustix::fs::fcntl_setfl(&fd, OFlags::NONBLOCK)?;
            dyad_sys::spawn::keep(fd)
        };
        let (out, err) = (keep(out)?, keep(err)?);
        let program = order.program(out_child.as_fd(), err_child.as_fd());
        let at = self.jobs.list.iter().position(Option::is_none).unwrap_or(self.jobs.list.len());
        for (fd, token) in [(&out, Token::JobOut(at as u16)), (&err, Token::JobErr(at as u16))] {
            epoll::add(&self.epoll, fd, token.data(), epoll::EventFlags::IN)?;
        }
        let now = clock::boot_ms();
        let capture_max = order.capture_max;
        let job = Job {
            kind,
            name: order.name.to_owned(),
            group_name,
            group,
            pid: 0,
            exit: None,
            killed: false,
            timed_out: false,
            out: Capture::new(out, capture_max)?,
            err: Capture::new(err, capture_max)?,
            capture_max,
            started_ms: now,
            deadline_ms: now + u64::from(order.deadline_ms.max(1)),
        };
        if at == self.jobs.list.len() {
            self.jobs.list.push(None);
        }
        self.jobs.list[at] = Some(job);
        // Written down before it is started: after a crash in between the client gets an answer all the same.
        self.save();
        let spawned = match &self.jobs.list[at] {
            Some(job) => dyad_sys::spawn::spawn(Some(job.group.fd()), || exec::become_program(&program)),
            None => return Ok(()),
        };
        match (spawned, self.jobs.list[at].as_mut()) {
            (Ok(pid), Some(job)) => job.pid = pid,
            (Ok(_), None) => {}
            (Err(error), _) => {
                self.jobs.list[at] = None;
                self.save();
                return Err(error);
            }
        }
        self.save();
        Ok(())
    }

    /// What is written down of the jobs.
    pub(super) fn saved_jobs(&self) -> impl Iterator<Item = SavedJob> {
        self.jobs.list.iter().enumerate().filter_map(|(at, job)| {
            let job = job.as_ref()?;
            Some(SavedJob {
                at: at as u16,
                kind: job.kind,
                name: job.name.clone(),
                group_name: job.group_name.clone(),
                pid: job.pid,
                exit: job.exit.map(|exit| match exit {
                    Exit::Status(status) => (true, status),
                    Exit::Signal(signal) => (false, signal),
                }),
                killed: job.killed,
                timed_out: job.timed_out,
                out: job.out.saved(),
                err: job.err.saved(),
                capture_max: job.capture_max,
                started_ms: job.started_ms,
                deadline_ms: job.deadline_ms,
            })
        })
    }

    /// Takes a job of a former image over.
    pub(super) fn take_job(&mut self, saved: SavedJob, [out, err]: [Output; 2]) {
        let Ok(group) = self.slice.group(&saved.group_name) else { return };
        let at = saved.at;
        let capture = |(pipe, file): Output, token: Token| {
            if let Some(fd) = &pipe {
                let _ = epoll::add(&self.epoll, fd, token.data(), epoll::EventFlags::IN);
            }
            Some(Capture::restore(pipe, file?, saved.capture_max))
        };
        let (Some(out), Some(err)) = (capture(out, Token::JobOut(at)), capture(err, Token::JobErr(at)))
        else {
            return;
        };
        let job = Job {
            kind: saved.kind,
            out,
            err,
            capture_max: saved.capture_max,
            name: saved.name,
            group_name: saved.group_name,
            group,
            pid: saved.pid,
            exit: saved.exit.map(|(exited, n)| if exited { Exit::Status(n) } else { Exit::Signal(n) }),
            killed: saved.killed,
            timed_out: saved.timed_out,
            started_ms: saved.started_ms,
            deadline_ms: saved.deadline_ms,
        };
        while self.jobs.list.len() <= usize::from(at) {
            self.jobs.list.push(None);
        }
        self.jobs.list[usize::from(at)] = Some(job);
    }

    /// Reads what a job wrote; an end of file closes the pipe.
    pub(super) fn read_job(&mut self, at: u16, standard: bool) {
        let Some(job) = self.jobs.list.get_mut(usize::from(at)).and_then(Option::as_mut) else { return };
        let capture = if standard { &mut job.out } else { &mut job.err };
        match capture.read() {
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => warning!("output of job {}: {error}", job.name),
        }
        self.save();
    }

    /// Whether the process was a job's.
    pub(super) fn job_exited(&mut self, pid: u32, exit: Exit) -> bool {
        let Some(job) = self.jobs.list.iter_mut().flatten().find(|job| job.pid == pid && job.exit.is_none())
        else {
            return false;
        };
        job.exit = Some(exit);
        // What it left behind does not outlive it.
        let _ = job.group.kill();
        job.deadline_ms = clock::boot_ms() + GIVE_UP_MS;
        self.save();
        true
    }

    /// The jobs of a client that went away end.
    pub(super) fn kill_jobs_of(&mut self, client: u16) {
        for job in self.jobs.list.iter_mut().flatten() {
            if matches!(job.kind, Kind::Oneshot(owner, _) | Kind::Upgrade(owner, _) if owner == client) {
                // No client has this number: nobody gets the answer.
                job.kind = Kind::Oneshot(u16::MAX, 0);
                job.killed = true;
                let _ = job.group.kill();
            }
        }
    }

    /// Kills all jobs for the shutdown, but not the one that writes down why there is one.
    pub(super) fn kill_jobs(&mut self) {
        for job in self.jobs.list.iter_mut().flatten().filter(|job| job.kind != Kind::Record) {
            job.killed = true;
            let _ = job.group.kill();
        }
    }

    /// Deadlines and ends.
    pub(super) fn settle_jobs(&mut self, now: u64) {
        for at in 0..self.jobs.list.len() {
            let Some(job) = self.jobs.list[at].as_mut() else { continue };
            let over = now >= job.deadline_ms;
            if job.exit.is_some() && job.group.is_empty() || job.killed && over {
                self.finish_job(at);
            } else if over && !job.killed {
                job.killed = true;
                job.timed_out = job.exit.is_none();
                job.deadline_ms = now + GIVE_UP_MS;
                if let Err(errno) = job.group.kill() {
                    error!("job {}: cannot kill its cgroup: {errno}", job.name);
                }
            }
        }
    }

    fn finish_job(&mut self, at: usize) {
        // Everything in the cgroup is gone, so what the pipes hold is all there will be.
        self.read_job(at as u16, true);
        self.read_job(at as u16, false);
        let Some(job) = self.jobs.list[at].take() else { return };
        let (out, err) = (job.out.bytes(), job.err.bytes());
        self.slice.remove(&job.group_name);
        let took_ms = clock::boot_ms().saturating_sub(job.started_ms) as u32;
        let status = match (job.timed_out, job.exit) {
            (true, _) | (_, None) => ExitStatus::DeadlinePassed,
            (_, Some(Exit::Status(status))) => {
                let not_started = (exec::NOT_STARTED_MIN..=exec::NOT_STARTED_MAX).contains(&status);
                let reason = String::from_utf8_lossy(&err);
                match reason.trim_end().strip_prefix("dyad: not started: ").filter(|_| not_started) {
                    Some(reason) => ExitStatus::NotStarted(reason.to_owned()),
                    None => ExitStatus::Exited(status),
                }
            }
            (_, Some(Exit::Signal(signal))) => ExitStatus::Signaled(signal),
        };
        match job.kind {
            Kind::Phase(phase) if self.is_run_again(phase, &status) => self.start_phase(phase),
            Kind::Phase(phase) => {
                let (state, note) = phase_result(&status, &out, &err);
                if phase == 0 {
                    self.devices_are_up();
                }
                self.end_phase(phase, state, note);
                self.coldplug_if_changed();
            }
            Kind::Devices => {
                self.devices_are_up();
                self.coldplug_if_changed();
            }
            Kind::Step => {
                let (state, note) = phase_result(&status, &out, &err);
                if state == PhaseState::Failed {
                    error!("shutdown: {}: {note}", job.name);
                }
            }
            Kind::Record => {
                let (state, note) = phase_result(&status, &out, &err);
                let failure = (state == PhaseState::Failed).then_some(note.as_str());
                self.recorded(&out, failure);
            }
            Kind::WarmUp => {}
            Kind::Upgrade(client, id) => self.end_upgrade(client, id, &status, &out),
            Kind::Oneshot(client, id) => {
                let finished = Finished { status, stdout: out, stderr: err, took_ms };
                self.reply(client, id, Ok(Answer::Finished(finished)));
            }
        }
        self.save();
    }

    /// Somebody killed the helper of a phase, by hand or for want of memory: it did not fail at its work, and every phase can be
    /// begun again wherever it was.
    fn is_run_again(&mut self, phase: usize, status: &ExitStatus) -> bool {
        let &ExitStatus::Signaled(signal) = status else { return false };
        let killed = &mut self.jobs.killed[phase];
        if self.machine.is_shutting_down() || *killed >= KILLED_MAX {
            return false;
        }
        *killed += 1;
        warning!(
            "phase {}: its helper was ended by signal {signal}, and is started again",
            PHASES[phase].name
        );
        true
    }

    /// After a coldplug: new nodes may need other permissions, and the watchdog may be among them.
    fn devices_are_up(&mut self) {
        boot::device_permissions();
        self.open_watchdog();
    }
}

fn phase_result(status: &ExitStatus, out: &[u8], err: &[u8]) -> (PhaseState, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().replace('\n', "; ");
    match status {
        ExitStatus::Exited(0) => (PhaseState::Unchanged, text(out)),
        ExitStatus::Exited(STATUS_CHANGED) => (PhaseState::Changed, text(out)),
        ExitStatus::Exited(1) => (PhaseState::Failed, text(err)),
        ExitStatus::DeadlinePassed => (PhaseState::Failed, format!("did not end in time; {}", text(err))),
        ExitStatus::Exited(status) => (PhaseState::Failed, format!("status {status}; {}", text(err))),
        ExitStatus::Signaled(signal) => {
            (PhaseState::Failed, format!("ended by signal {signal}; {}", text(err)))
        }
        ExitStatus::NotStarted(reason) => (PhaseState::Failed, reason.clone()),
    }
}

/// What is wrong with a request, and what is accepted.
fn invalid(wanted: &Oneshot) -> Option<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if wanted.name.is_empty() || wanted.name.len() > 64 || !wanted.name.bytes().all(plain) {
        return Some(format!("name {:?}: accepted are 1 to 64 letters, digits, `-`, `_`", wanted.name));
    }
    if !wanted.exec.first().is_some_and(|path| path.starts_with('/')) {
        return Some("exec: the first word is the absolute path of a program".to_owned());
    }
    let strings = wanted.exec.iter().chain(wanted.env.iter().flat_map(|(name, value)| [name, value]));
    if strings.into_iter().any(|s| s.contains('\0')) {
        return Some("exec, env: no zero bytes are accepted".to_owned());
    }
    (!wanted.cwd.starts_with('/')).then(|| format!("cwd {:?}: an absolute path is accepted", wanted.cwd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_checked() {
        let good = Oneshot {
            name: "initdb".into(),
            exec: vec!["/usr/bin/initdb".into()],
            env: vec![],
            uid: 0,
            gid: 0,
            cwd: "/".into(),
            deadline_ms: 1,
            capture_max: 0,
        };
        assert_eq!(invalid(&good), None);
        for bad in [
            Oneshot { name: "a/b".into(), ..good.clone() },
            Oneshot { exec: vec![], ..good.clone() },
            Oneshot { exec: vec!["initdb".into()], ..good.clone() },
            Oneshot { env: vec![("A".into(), "\0".into())], ..good.clone() },
            Oneshot { cwd: String::new(), ..good.clone() },
        ] {
            assert!(invalid(&bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn a_phase_tells_what_it_did_or_why_not() {
        assert_eq!(
            phase_result(&ExitStatus::Exited(10), b"made x\n", b""),
            (PhaseState::Changed, "made x".into())
        );
        let (state, note) = phase_result(&ExitStatus::Signaled(9), b"", b"half way\n");
        assert_eq!((state, note.as_str()), (PhaseState::Failed, "ended by signal 9; half way"));
    }
}
