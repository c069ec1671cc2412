//! `lab up`: image, disks or directories, daemon, members.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dyad_api::operator::Protection;
use dyad_spec::{Source, site::Site};

use crate::cli::{Backend, UpArgs};
use crate::commands::{BuiltImage, LabEnv, machines};
use crate::control::{Power, Request, ask};
use crate::error::{AtPath, Doing, LabError, Result, refuse};
use crate::esp::SITE_PATH;
use crate::firmware::Firmware;
use crate::idmap::{Grant, MAP_ME, MAPPED};
use crate::inside::hear;
use crate::machine::Setup;
use crate::process::{Program, spawn_daemon};
use crate::site::Shape;
use crate::state::{BackendFile, LabFile, StateDir};
use crate::topology::{Node, WITNESS, WITNESS_V4};
use crate::witness::PORT;
use crate::{accel, cgroup, clock, container, daemon, disk, root, secrets, site, status, tools, wait};

/// How long the daemon may take to listen; it may have a root to unpack.
const DAEMON_WAIT: Duration = Duration::from_secs(120);

/// The witness in an image's root.
const WITNESS_PROGRAM: &str = "/usr/bin/dyad-witness";

/// Progress lines with the time since `up` began, on standard error.
pub(crate) struct Progress(Instant);

impl Progress {
    /// Says one line.
    pub(crate) fn say(&self, text: &str) {
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
    let mut rows = machines(state)?;
    // The third vote is there when the nodes ask for it.
    rows.sort_by_key(|row| row.name != WITNESS);
    for row in rows.iter().filter(|row| row.power == Power::Off) {
        ask(state, &Request::Start { node: row.name.clone() })?;
        progress.say(&format!("{}: powered on", row.name));
    }
    secrets::open_codes(state)?;
    if !args.no_wait {
        wait::wait_for_best(state, &progress)?;
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
    let host = Host::ready(args, &|text| progress.say(text))?;
    if !args.no_wait {
        // Needed at the end; had now, so that a missing one is told before anything is built.
        tools::psql(&|text| progress.say(text))?;
    }
    state.create(args.nodes)?;
    let lock = state.lock()?;
    let before = state.load()?;
    let image = image(state, args, env, progress)?;
    let witness = witness(state, args, &image, progress)?;
    let sites = Sites { witness: witness.is_some(), ..sites };
    let grant = host.grant();
    let (backend, kept) = match host {
        Host::Vm { qemu, firmware } => machines_ready(state, args, &image, &sites, qemu, firmware, progress)?,
        Host::Container { nft, grant } => containers_ready(state, args, &image, &sites, nft, &grant)?,
    };
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
    state.save(&LabFile { nodes: args.nodes, image: id, backend, witness, pair: sites.best() })?;
    let leash = start_daemon(state, &lock, grant.as_ref());
    // Dropping it would unlock the daemon's inherited copy too; closed at the end of this process it stays locked there.
    std::mem::forget(lock);
    if leash.is_ok() {
        progress.say(&format!("{} nodes ready, {kept} of them kept", args.nodes));
    }
    leash
}

/// What a backend needs of this host, found before anything is built.
enum Host {
    Vm { qemu: tools::Qemu, firmware: Firmware },
    Container { nft: Program, grant: Grant },
}

impl Host {
    fn ready(args: &UpArgs, say: &dyn Fn(&str)) -> Result<Self> {
        match args.backend {
            Backend::Vm if args.data_in.is_some() => {
                refuse("--data-in is for containers: a machine's data is on its disk (--disk)")
            }
            Backend::Container if args.disks_at.is_some() => {
                refuse("--disks-at is for machines: a container has no disk of its own (--data-in)")
            }
            Backend::Vm => Ok(Host::Vm { qemu: tools::qemu(say)?, firmware: tools::firmware(say)? }),
            Backend::Container => {
                let grant = Grant::find()?;
                Ok(Host::Container { nft: tools::nft(say)?, grant })
            }
        }
    }

    fn grant(&self) -> Option<Grant> {
        match self {
            Host::Vm { .. } => None,
            Host::Container { grant, .. } => Some(grant.clone()),
        }
    }
}

fn machines_ready(
    state: &StateDir,
    args: &UpArgs,
    image: &BuiltImage,
    sites: &Sites,
    qemu: tools::Qemu,
    firmware: Firmware,
    progress: &Progress,
) -> Result<(BackendFile, usize)> {
    let accel = match args.accel {
        Some(accel) => accel,
        None => accel::choose(&qemu, &firmware),
    };
    progress.say(&format!("processors: {}", accel.name()));
    let setup = Setup {
        qemu: qemu.program,
        share: qemu.share,
        firmware_code: firmware.code,
        firmware_vars: firmware.vars,
        accel,
        memory_mib: args.memory,
        disks_at: args.disks_at.clone(),
        cpus: args.cpus,
    };
    let kept = disks(state, args, image, &setup, sites)?;
    Ok((BackendFile::Vm(Box::new(setup)), kept))
}

/// Makes the directories that a container's PID 1 finds as its file systems. Returns how many were there already.
fn containers_ready(
    state: &StateDir,
    args: &UpArgs,
    image: &BuiltImage,
    sites: &Sites,
    nft: Program,
    grant: &Grant,
) -> Result<(BackendFile, usize)> {
    let mut kept = 0;
    for node in Node::first(args.nodes) {
        let dir = state.node(node);
        if dir.join("data").exists() {
            kept += 1;
            continue;
        }
        let site = dir.join("efi").join(SITE_PATH);
        let parent = site.parent().unwrap_or(&dir);
        let data = data_dir(args, node, &dir)?;
        for dir in [parent, &dir.join("state"), &data] {
            fs::create_dir_all(dir).at("create directory", dir)?;
            // The state directory lets nobody else in; in the container others must get through.
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).at("set the mode of", dir)?;
        }
        for (path, text) in sites.files(state, node, args.nodes, Shape::Plain)? {
            let path = dir.join("efi").join(path);
            fs::write(&path, text).at("write", &path)?;
            // As on a machine, where the boot partition is root's alone.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).at("set the mode of", &path)?;
        }
    }
    if kept == 0 {
        root::remove(&state.container_root())?;
    }
    let cgroup = cgroup::of_lab(&grant.cgroups, state.root());
    let image = std::path::absolute(&image.raw).at("make absolute", &image.raw)?;
    Ok((BackendFile::Container(container::Setup { nft, cgroup, image }), kept))
}

/// Where a node's data is kept: in its own directory, or behind a link from there.
fn data_dir(args: &UpArgs, node: Node, dir: &Path) -> Result<PathBuf> {
    let own = dir.join("data");
    let Some(given) = &args.data_in else { return Ok(own) };
    let place = given.join(node.name());
    let place = fs::canonicalize(&place).at("find the directory for a node's data", &place)?;
    symlink(&place, &own).at("make the link", &own)?;
    Ok(place)
}

/// The witness' program: the given one, or the image's own, which runs anywhere.
fn witness(
    state: &StateDir,
    args: &UpArgs,
    image: &BuiltImage,
    progress: &Progress,
) -> Result<Option<PathBuf>> {
    if args.no_witness {
        return Ok(None);
    }
    if let Some(program) = &args.witness {
        return fs::canonicalize(program).at("find the witness' program", program).map(Some);
    }
    let Some(content) = root::file(&image.raw, WITNESS_PROGRAM)? else {
        progress.say(&format!("the image has no {WITNESS_PROGRAM}: this lab has no witness"));
        return Ok(None);
    };
    let (program, fresh) = (state.member(WITNESS).join("program"), state.member(WITNESS).join("program.new"));
    fs::write(&fresh, content).at("write", &fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).at("set the mode of", &fresh)?;
    fs::rename(&fresh, &program).at("rename into place", &program)?;
    Ok(Some(program))
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

/// What the nodes get on their ESP.
struct Sites {
    text: Text,
    /// The lab has a witness.
    witness: bool,
}

/// What site file.
enum Text {
    /// None.
    None,
    /// This one.
    Given(String, Box<Site>),
    /// The lab's own.
    Own,
}

impl Sites {
    /// Reads and checks the given file before anything is made.
    fn choose(args: &UpArgs) -> Result<Self> {
        let Some(path) = &args.site else {
            let text = if args.no_site { Text::None } else { Text::Own };
            return Ok(Sites { text, witness: false });
        };
        let text = fs::read_to_string(path).at("read", path)?;
        match Site::parse(Source::new(path.display().to_string(), text.clone())) {
            Ok(site) => Ok(Sites { text: Text::Given(text, Box::new(site)), witness: false }),
            Err(e) => refuse(format!("the site file is not accepted\n{e}")),
        }
    }

    /// Whether the nodes name the lab's witness.
    fn witness(&self) -> bool {
        let at = Some(SocketAddr::from((WITNESS_V4, PORT)));
        match &self.text {
            Text::None => false,
            Text::Given(_, site) => self.witness && site.witness == at,
            Text::Own => self.witness,
        }
    }

    /// The best that two nodes come to.
    fn best(&self) -> Protection {
        match &self.text {
            Text::None => Protection::Single,
            Text::Given(_, site) if site.nodes.len() < 2 => Protection::Single,
            Text::Given(..) | Text::Own if self.witness() => Protection::Protected,
            Text::Given(..) | Text::Own => Protection::Synced,
        }
    }

    /// The files of a node: paths below the ESP, and contents.
    fn files(&self, state: &StateDir, node: Node, count: u8, shape: Shape) -> Result<Vec<(String, String)>> {
        let text = match &self.text {
            Text::None => return Ok(Vec::new()),
            Text::Given(text, _) => text.clone(),
            Text::Own => site::text(node, count, shape, self.witness),
        };
        let mut files = secrets::of(state, node, self.witness())?;
        files.push((SITE_PATH.to_owned(), text));
        Ok(files)
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
            let files = sites.files(state, node, args.nodes, Shape::Bonded)?;
            let files: Vec<_> = files.into_iter().map(|(path, text)| (path, text.into())).collect();
            disk::make(&image.raw, &state.disk(node), u64::from(args.disk) << 30, &files)?;
        }
    }
    Ok(kept)
}

/// `grant`: what the daemon of a lab of containers gets as soon as it has its user namespace.
fn start_daemon(state: &StateDir, lock: &fs::File, grant: Option<&Grant>) -> Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair().doing("make the daemon's leash")?;
    let log = state.daemon_log();
    let mut child = spawn_daemon(state.root(), OwnedFd::from(theirs), lock, &log)?;
    ours.set_read_timeout(Some(DAEMON_WAIT)).doing("set a deadline on the daemon")?;
    // An error leaves nothing said, which is the failure told below.
    let mut said = hear(&ours).unwrap_or_default();
    if let (MAP_ME, Some(grant)) = (said.as_str(), grant) {
        if let Err(e) = grant.apply(child.id()) {
            crate::process::end(&mut child);
            return Err(e);
        }
        let mut leash = &ours;
        writeln!(leash, "{MAPPED}").doing("tell the daemon of its users")?;
        said = hear(&ours).unwrap_or_default();
    }
    match said.as_str() {
        daemon::READY => Ok(ours),
        "" => {
            crate::process::end(&mut child);
            refuse(format!("the lab's daemon did not start; see {}", log.display()))
        }
        reason => refuse(reason),
    }
}
