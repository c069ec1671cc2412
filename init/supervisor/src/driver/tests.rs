//! The loop with a real record, a real log and the real arbiter's rules; only PostgreSQL is left out.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;

use dyad_cluster::action::{Action, Control, Issued, Kind, Outcome, Report};
use dyad_cluster::arbiter::{Arbiter, Durable};
use dyad_cluster::disk::Mirror;
use dyad_cluster::eventlog;
use dyad_cluster::message::Authenticated;
use dyad_cluster::types::{Epoch, Generation, Incarnation, RequestId, SystemId, Tick, Timeline};
use tokio::task::LocalSet;

use super::journal::Flushed;
use super::run::Hands;
use super::*;

/// Hands whose service does whatever it is told, and whose first write of the mirror never ends.
struct Pen {
    record: Rc<Record>,
    arbiter: RefCell<Arbiter>,
    events: mpsc::Sender<Event>,
    carried: RefCell<Vec<Kind>>,
}

impl Hands for Rc<Pen> {
    fn carry_out(&self, issued: Issued, flushed: Flushed) -> Pin<Box<dyn Future<Output = Outcome>>> {
        let pen = Rc::clone(self);
        let first = !pen.carried.borrow().contains(&issued.id.kind);
        pen.carried.borrow_mut().push(issued.id.kind);
        Box::pin(async move {
            flushed.wait().await;
            assert!(issued.needs.iter().all(|need| pen.record.holds(need) == Some(true)), "{issued:?}");
            match issued.action {
                Action::WriteMirror(_) if first => std::future::pending().await,
                Action::WriteMirror(mirror) => pen.record.write_mirror(mirror).await.unwrap(),
                Action::ReadControl => {
                    let (system, timeline, generation) = (SystemId(5), Timeline(1), Generation(6));
                    return Outcome::Done(Report::Control(Control { system, timeline, generation }));
                }
                _ => {}
            }
            Outcome::Done(Report::Nothing)
        })
    }

    fn tell(&self, issued: Issued, _: Flushed) {
        if let Action::ToArbiter(greeting, message) = issued.action {
            let envelope = Authenticated { from: Node::A, message };
            let answer = self.arbiter.borrow_mut().handle(clock::tick(), &envelope);
            self.events.try_send(Event::FromArbiter(greeting, answer)).unwrap();
        }
    }
}

fn config() -> Config {
    Config {
        me: Node::A,
        lease_ms: 3_000,
        voting: Voting::Arbiter,
        resources: vec![DATABASE],
        vms: Vec::new(),
        memory_mib: [0; 2],
        vips: Vec::new(),
        mutations: Mutations::default(),
    }
}

/// One run of a supervisor until the database is served; the actions carried out.
async fn serve(paths: &Paths, arbiter: Arbiter, running: Option<Running>) -> (Arbiter, Vec<Kind>) {
    let record = Rc::new(Record::open(paths, &[DATABASE]).unwrap());
    let boot = record::boot(paths, [3; 16]).unwrap();
    let running = running.map(|running| (DATABASE, running)).into_iter().collect();
    let found =
        Found { mirror: record.mirror(), markers: record.markers(), running, vms: Default::default() };
    let (events, queue) = mpsc::channel(EVENTS_MAX);
    let at = clock::tick();
    let start = Entry::Start { config: config(), boot, at, found: found.clone() };
    let journal = Journal::start(&events_dir(paths), &start).unwrap();
    let state = State::new(config(), boot, at, found);
    let (view, mut seen) = watch::channel(View::of(&state, DATABASE));
    let pen = Rc::new(Pen {
        record,
        arbiter: RefCell::new(arbiter),
        events: events.clone(),
        carried: RefCell::default(),
    });
    let hands = Rc::clone(&pen);
    let task = spawn_local(Loop { state, hands, events: queue, journal, resource: DATABASE, view }.run());
    let founder = spawn_local(found_when_nobody(seen.clone(), events));
    seen.wait_for(|view| view.phase == Phase::Alone).await.unwrap();
    founder.abort();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    let carried = pen.carried.take();
    let arbiter = pen.arbiter.borrow().clone();
    (arbiter, carried)
}

/// Every log file by itself: the steps in it, all answered as they were.
fn replay(paths: &Paths) -> Vec<usize> {
    let files = journal::all(&events_dir(paths)).unwrap();
    let play =
        |path: &PathBuf| eventlog::replay(&eventlog::decode(&std::fs::read(path).unwrap()).unwrap()).unwrap();
    files.iter().map(play).collect()
}

fn root() -> (tempfile::TempDir, Paths) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("state/supervisor")).unwrap();
    let paths = Paths::new(dir.path());
    (dir, paths)
}

fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, work);
}

#[test]
fn a_founder_serves_and_a_new_supervisor_goes_on_where_the_old_one_was() {
    run(async {
        let (_dir, paths) = root();
        record::found(&paths).unwrap();
        // An arbiter that may grant after it has heard one node.
        let arbiter = Arbiter::start(Durable::default(), Incarnation(1), Tick(0), 3_000, true);
        let (arbiter, carried) = serve(&paths, arbiter, None).await;
        let writes = carried.iter().filter(|kind| **kind == Kind::WriteMirror).count();
        assert!(writes >= 2, "the write that hung was given up and made again: {carried:?}");
        assert!(carried.contains(&Kind::Serve));
        let epoch = |paths: &Paths| {
            Record::open(paths, &[DATABASE]).unwrap().mirror().unwrap().registers[&DATABASE].epoch
        };
        assert_eq!(epoch(&paths), Epoch(1), "on disk before it was served");
        let (_, carried) = serve(&paths, arbiter, Some(Running::Serving)).await;
        assert!(!carried.contains(&Kind::Kill), "{carried:?}");
        assert_eq!(epoch(&paths), Epoch(2), "resumed");
        let steps = replay(&paths);
        assert!(steps.len() == 2 && steps.iter().all(|steps| *steps > 5), "{steps:?}");
    });
}

#[test]
fn a_log_that_lost_entries_goes_on_in_a_new_file_that_plays_by_itself() {
    run(async {
        let (_dir, paths) = root();
        let dir = events_dir(&paths);
        let found = Found { mirror: Some(Mirror::default()), ..Found::default() };
        let (boot, at) = (record::boot(&paths, [4; 16]).unwrap(), Tick(1_000));
        let start = Entry::Start { config: config(), boot, at, found: found.clone() };
        let mut journal = Journal::start(&dir, &start).unwrap();
        let mut state = State::new(config(), boot, at, found);
        for number in 0..40_u64 {
            let at = Tick(1_000 + number * 100);
            let event = match number % 2 {
                0 => Event::Fired(dyad_cluster::event::Timer::Beat),
                _ => Event::Condition(Default::default()),
            };
            let before = (number % 10 == 9).then(|| state.clone());
            let actions = dyad_cluster::step(&mut state, at, event.clone());
            journal.append(before, &Entry::Step { at, event, actions });
        }
        journal.flushed().wait().await;
        assert_eq!(replay(&paths), [9, 10, 10, 10, 1]);
        assert!(!journal.begins_anew());
        let more = Mirror { request: RequestId(1), ..Mirror::default() };
        for _ in 0..9 {
            let found = Found { mirror: Some(more.clone()), ..Found::default() };
            let start = Entry::Start { config: config(), boot, at, found };
            Journal::start(&dir, &start).unwrap().flushed().wait().await;
        }
        assert_eq!(replay(&paths), [0; 8], "the oldest files are gone");
    });
}
