//! `lab up`: image, disks, daemon, machines, and the wait until every node answers SQL.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use dyad_spec::{Source, site::Site};

use crate::accel;
use crate::cli::UpArgs;
use crate::clock::{self, Deadline};
use crate::commands::{BuiltImage, LabEnv, credentials, machines};
use crate::control::{Power, Request, Row, ask};
use crate::error::{AtPath, Doing, LabError, Result, refuse};
use crate::esp::SITE_PATH;
use crate::machine::Setup;
use crate::process::{Program, spawn_daemon};
use crate::state::{LabFile, StateDir};
use crate::topology::Node;
use crate::{daemon, disk, site, status, tools};

/// How long nodes may take to answer SQL: a first boot under TCG on a busy host makes file systems and a database.
const SQL_WAIT: Duration = Duration::from_secs(600);
const SQL_POLL: Duration = Duration::from_millis(250);
/// How long the test query may take.
const QUERY_WAIT: Duration = Duration::from_secs(30);
/// How long the daemon may take to listen.
const DAEMON_WAIT: Duration = Duration::from_secs(20);
/// How much of a console is shown when its machine ended.
const TAIL_LINES: usize = 15;

/// Progress lines with the time since `up` began, on standard error.
struct Progress(Instant);

impl Progress {
    fn say(&self, text: &str) {
        eprintln!("[{:6.1} s] {text}", (clock::now() - self.0).as_secs_f64());
    }
}

/// Brings the lab up, or the rest of it when it is up already.
pub(crate) fn up(state: &StateDir, args: &UpArgs, env: &LabEnv) -> Result<()> {
    let progress = Progress(clock::now());
    let leash = match state.connect() {
        Ok(_) => {
            progress.say("the lab is up already; starting what is off");
            None
        }
        Err(LabError::NotUp(_)) => Some(begin(state, args, env, &progress)?),
        Err(e) => return Err(e),
    };
    for row in machines(state)?.iter().filter(|r| r.power == Power::Off) {
        ask(state, &Request::Start { node: row.name.clone() })?;
        progress.say(&format!("{}: powered on", row.name));
    }
    if !args.no_wait {
        wait_for_sql(state, &progress)?;
    }
    if let Some(leash) = leash {
        writeln!(&leash, "{}", daemon::RELEASE).doing("tell the daemon to stay")?;
    }
    go_on(args);
    if args.json { status::show(state, true) } else { Ok(()) }
}

fn go_on(args: &UpArgs) {
    if !args.no_wait {
        eprintln!(
            "Go on with `dyad lab psql`, `dyad lab status`, `dyad lab console node-a`; `dyad lab down` ends it."
        );
    }
}

/// Everything up to a daemon that listens. As long as `up` holds the returned leash unreleased, its end ends the lab.
fn begin(state: &StateDir, args: &UpArgs, env: &LabEnv, progress: &Progress) -> Result<UnixStream> {
    let sites = Sites::choose(args)?;
    let say = |text: &str| progress.say(text);
    let (qemu, firmware) = (tools::qemu(&say)?, tools::firmware(&say)?);
    if !args.no_wait {
        // Needed at the end; had now, so that a missing one is told before anything is built.
        tools::psql(&say)?;
    }
    state.create(args.nodes)?;
    let lock = state.lock()?;
    let before = state.load()?;
    let image = image(state, args, env, progress)?;
    let accel = match args.accel {
        Some(accel) => accel,
        None => accel::choose(&qemu, &firmware),
    };
    let setup = Setup {
        qemu: qemu.program,
        share: qemu.share,
        firmware_code: firmware.code,
        firmware_vars: firmware.vars,
        accel,
        memory_mib: args.memory,
        cpus: args.cpus,
    };
    let kept = disks(state, args, &image, &setup, &sites)?;
    let id = match before {
        Some(before) if kept > 0 => {
            if before.image != image.id {
                progress.say(&format!(
                    "keeping the disks of an earlier lab with image {}; `dyad lab down` first boots the new one",
                    before.image
                ));
            }
            before.image
        }
        _ => image.id,
    };
    state.save(&LabFile { nodes: args.nodes, image: id, setup })?;
    progress.say(&format!("{} disks ready, {kept} of them kept; processors: {}", args.nodes, accel.name()));
    let leash = start_daemon(state, &lock);
    // Dropping it would unlock the daemon's inherited copy too; closed at the end of this process it stays locked there.
    std::mem::forget(lock);
    leash
}

fn image(state: &StateDir, args: &UpArgs, env: &LabEnv, progress: &Progress) -> Result<BuiltImage> {
    if let Some(raw) = &args.image {
        let meta = fs::metadata(raw).at("read", raw)?;
        return Ok(BuiltImage { raw: raw.clone(), id: format!("{} of {} bytes", raw.display(), meta.len()) });
    }
    let definition = args.definition.as_ref().unwrap_or(&env.definition);
    progress.say(&format!("building {}", definition.display()));
    let out = state.image_dir();
    fs::create_dir_all(&out).at("create directory", &out)?;
    (env.build)(definition, &out).map_err(LabError::Build)
}

/// What site files the nodes get.
enum Sites {
    /// None.
    None,
    /// This one.
    Given(String),
    /// The lab's own.
    Own,
}

impl Sites {
    /// Reads and checks the given file before anything is made.
    fn choose(args: &UpArgs) -> Result<Self> {
        let Some(path) = &args.site else {
            return Ok(if args.no_site { Sites::None } else { Sites::Own });
        };
        let text = fs::read_to_string(path).at("read", path)?;
        match Site::parse(Source::new(path.display().to_string(), text.clone())) {
            Ok(_) => Ok(Sites::Given(text)),
            Err(e) => refuse(format!("the site file is not accepted\n{e}")),
        }
    }
}

/// Makes the disks and variable stores that are missing. Returns how many disks were there already.
fn disks(state: &StateDir, args: &UpArgs, image: &BuiltImage, setup: &Setup, sites: &Sites) -> Result<usize> {
    let mut kept = 0;
    for node in Node::first(args.nodes) {
        let vars = state.node(node).join("vars.fd");
        if !vars.exists() {
            // Read and written rather than copied: the firmware's file may be read-only and the node's must not be.
            let empty = fs::read(&setup.firmware_vars).at("read", &setup.firmware_vars)?;
            fs::write(&vars, empty).at("write", &vars)?;
        }
        if state.disk(node).exists() {
            kept += 1;
        } else {
            let files = match sites {
                Sites::None => Vec::new(),
                Sites::Given(text) => vec![(SITE_PATH.to_owned(), text.clone().into())],
                Sites::Own => vec![(SITE_PATH.to_owned(), site::text(node, args.nodes).into())],
            };
            disk::make(&image.raw, &state.disk(node), u64::from(args.disk) << 30, &files)?;
        }
    }
    Ok(kept)
}

fn start_daemon(state: &StateDir, lock: &fs::File) -> Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair().doing("make the daemon's leash")?;
    let log = state.daemon_log();
    let mut child = spawn_daemon(state.root(), OwnedFd::from(theirs), lock, &log)?;
    ours.set_read_timeout(Some(DAEMON_WAIT)).doing("set a deadline on the daemon")?;
    let mut said = String::new();
    // An error leaves `said` empty, which is the failure told below.
    let _ = BufReader::new(&ours).read_line(&mut said);
    match said.trim_end() {
        daemon::READY => Ok(ours),
        "" => {
            crate::process::end(&mut child);
            refuse(format!("the lab's daemon did not start; see {}", log.display()))
        }
        reason => refuse(reason),
    }
}

fn wait_for_sql(state: &StateDir, progress: &Progress) -> Result<()> {
    let deadline = Deadline::after(SQL_WAIT);
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut serving: Vec<String> = Vec::new();
    let mut last = String::from("no supervisor has answered");
    loop {
        let rows = machines(state)?;
        for row in &rows {
            tell_phases(row, &mut seen, progress);
            if row.power == Power::Off {
                return ended(state, row);
            }
            if !row.agent || serving.contains(&row.name) {
                continue;
            }
            match answers_sql(state, &row.name) {
                Ok(answer) => {
                    progress.say(&format!("{}: `select 1` answers {answer}", row.name));
                    serving.push(row.name.clone());
                }
                Err(e) => last = e.to_string(),
            }
        }
        if serving.len() == rows.len() {
            return Ok(());
        }
        if deadline.left().is_none() {
            let silent: Vec<_> =
                rows.iter().filter(|r| !serving.contains(&r.name)).map(|r| r.name.as_str()).collect();
            return Err(LabError::Deadline {
                what: format!("{} did not answer SQL ({last})", silent.join(" and ")),
                seconds: SQL_WAIT.as_secs(),
                next: "the lab was ended; `dyad lab up --no-wait` and `dyad lab console` show the boot"
                    .into(),
            });
        }
        clock::pause(SQL_POLL);
    }
}

fn tell_phases(row: &Row, seen: &mut HashMap<String, usize>, progress: &Progress) {
    let told = seen.entry(row.name.clone()).or_default();
    // Fewer than before: the machine was reset and boots anew.
    if row.phases.len() < *told {
        progress.say(&format!("{}: boots again", row.name));
        *told = 0;
    }
    for phase in &row.phases[*told..] {
        progress.say(&format!("{}: {} after {:.1} s", row.name, phase.name, phase.seconds));
    }
    *told = row.phases.len();
}

fn ended(state: &StateDir, row: &Row) -> Result<()> {
    let why = row.end.as_deref().unwrap_or("it was killed");
    let node = Node::first(crate::topology::NODES_MAX).find(|n| n.name() == row.name);
    let log = node.and_then(|n| fs::read(state.node(n).join("serial.log")).ok()).unwrap_or_default();
    let text = String::from_utf8_lossy(&log);
    let lines: Vec<_> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    refuse(format!("{} went off before it answered SQL: {why}. Its console ended with:\n{tail}", row.name))
}

/// Asks as a user would, through `lab psql`: a process of its own, because entering namespaces is for one thread only.
fn answers_sql(state: &StateDir, node: &str) -> Result<String> {
    // Cheaper than a process for as long as the database is not there.
    credentials(state, node)?;
    let root = state.root().to_string_lossy().into_owned();
    let args = ["lab", "--state", &root, "psql", "--node", node, "--", "-X", "-A", "-t", "-c", "select 1"];
    let answer = Program::itself().output(&args, &[], QUERY_WAIT)?;
    match answer.trim() {
        "1" => Ok("1".into()),
        other => refuse(format!("`select 1` answered {other:?}")),
    }
}
