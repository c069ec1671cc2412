//! The lab's state directory: what lies where, who holds it, and its control socket.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dyad_api::operator::Protection;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::clock::{self, Deadline};
use crate::error::{AtPath, LabError, Result, refuse};
use crate::topology::{Node, WITNESS};
use crate::{container, machine};

/// How long a new lab waits for the remains of a killed one to leave.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(50);
const CONTROL: &str = "control.sock";

/// What a lab is made of; written by `up`, read by the daemon and the other commands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LabFile {
    /// How many nodes there are.
    pub(crate) nodes: u8,
    /// Identity of the image that the disks were made from.
    pub(crate) image: String,
    /// What nodes are.
    pub(crate) backend: BackendFile,
    /// The witness' program; no witness without.
    pub(crate) witness: Option<PathBuf>,
    /// The best that two nodes of this lab come to.
    pub(crate) pair: Protection,
}

impl LabFile {
    /// Names of the nodes and, if there is one, the witness.
    pub(crate) fn members(&self) -> Vec<String> {
        let witness = self.witness.iter().map(|_| WITNESS.to_owned());
        Node::first(self.nodes).map(Node::name).chain(witness).collect()
    }
}

/// How nodes are started.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BackendFile {
    /// As virtual machines.
    Vm(Box<machine::Setup>),
    /// As containers.
    Container(container::Setup),
}

/// A state directory by its absolute path.
#[derive(Debug, Clone)]
pub(crate) struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// The given directory, or the user's default one. Makes nothing.
    pub(crate) fn locate(given: Option<&Path>) -> Result<Self> {
        let root = match given {
            Some(path) => std::path::absolute(path).at("make absolute", path)?,
            None => default_root()?,
        };
        Ok(StateDir { root })
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the directories for `nodes` nodes, readable by their owner only: disks hold the database.
    pub(crate) fn create(&self, nodes: u8) -> Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        let nodes = Node::first(nodes).map(|n| self.node(n));
        for dir in nodes.chain([self.member(WITNESS), self.secrets(), self.root.clone()]) {
            builder.create(&dir).at("create directory", &dir)?;
        }
        Ok(())
    }

    /// A node's own directory.
    pub(crate) fn node(&self, node: Node) -> PathBuf {
        self.member(&node.name())
    }

    /// The directory of a node or the witness.
    pub(crate) fn member(&self, name: &str) -> PathBuf {
        self.nodes().join(name)
    }

    /// The unpacked image of a lab of containers.
    pub(crate) fn container_root(&self) -> PathBuf {
        self.root.join("root")
    }

    /// What the nodes of each pair have in common and nobody else may know.
    pub(crate) fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    fn nodes(&self) -> PathBuf {
        self.root.join("nodes")
    }

    /// A node's disk.
    pub(crate) fn disk(&self, node: Node) -> PathBuf {
        self.node(node).join("disk.raw")
    }

    /// Where the builder puts the image that the disks are made from.
    pub(crate) fn image_dir(&self) -> PathBuf {
        self.root.join("image")
    }

    /// Everything the daemon says.
    pub(crate) fn daemon_log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    fn lab_file(&self) -> PathBuf {
        self.root.join("lab.json")
    }

    /// Whether there is a lab, readable or not.
    pub(crate) fn exists(&self) -> bool {
        self.lab_file().exists() || self.nodes().exists()
    }

    /// Reads what the lab is made of; `None` when there is none.
    pub(crate) fn load(&self) -> Result<Option<LabFile>> {
        let path = self.lab_file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).at("read", &path),
        };
        match serde_json::from_str(&text) {
            Ok(lab) => Ok(Some(lab)),
            Err(e) => refuse(format!(
                "{}: {e}; it is written by `dyad lab up`: remove this lab with `dyad lab down` and start anew",
                path.display()
            )),
        }
    }

    /// Writes what the lab is made of.
    pub(crate) fn save(&self, lab: &LabFile) -> Result<()> {
        let (path, fresh) = (self.lab_file(), self.root.join("lab.json.new"));
        let text = serde_json::to_string_pretty(lab).map_err(io::Error::from).at("encode", &path)?;
        fs::write(&fresh, text).at("write", &fresh)?;
        fs::rename(&fresh, &path).at("rename into place", &path)
    }

    /// Takes the directory for one lab. Waits a little: children of a killed daemon need a moment to die.
    pub(crate) fn lock(&self) -> Result<Flock<File>> {
        let path = self.root.join("lock");
        let open = || File::options().create(true).append(true).open(&path).at("open", &path);
        let mut file = open()?;
        let deadline = Deadline::after(LOCK_WAIT);
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) if is_at(&lock, &path) => return Ok(lock),
                // `down` removed the file between the two calls: the lock of a removed file keeps nobody out.
                Ok(_) => file = open()?,
                Err((back, Errno::EWOULDBLOCK)) => file = back,
                Err((_, e)) => return Err(io::Error::from(e)).at("lock", &path),
            }
            if deadline.left().is_none() {
                return refuse(format!(
                    "another `dyad lab` holds {} (starting, stopping, or its daemon does not answer)",
                    path.display()
                ));
            }
            clock::pause(LOCK_POLL);
        }
    }

    /// Connects to the daemon, if one answers.
    pub(crate) fn connect(&self) -> Result<UnixStream> {
        let dir = match File::open(&self.root) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(LabError::NotUp(self.root.clone())),
            Err(e) => return Err(e).at("open", &self.root),
        };
        match UnixStream::connect(through(&dir)) {
            Ok(stream) => Ok(stream),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Err(LabError::NotUp(self.root.clone()))
            }
            Err(e) => Err(e).at("connect to", &self.root.join(CONTROL)),
        }
    }

    /// Opens the control socket. The caller holds the lock, so a socket file from before is a dead one.
    pub(crate) fn listen(&self) -> Result<UnixListener> {
        let path = self.root.join(CONTROL);
        self.remove_socket()?;
        let dir = File::open(&self.root).at("open", &self.root)?;
        UnixListener::bind(through(&dir)).at("listen on", &path)
    }

    /// Removes the control socket's file.
    pub(crate) fn remove_socket(&self) -> Result<()> {
        remove_file(&self.root.join(CONTROL))
    }

    /// Removes disks, logs and everything else that the lab made, but nothing that it did not make.
    pub(crate) fn remove_all(&self) -> Result<()> {
        let root = self.container_root();
        for dir in [&self.nodes(), &self.secrets(), &self.image_dir(), &root.with_extension("new"), &root] {
            crate::root::remove(dir)?;
        }
        for file in ["lab.json", "lab.json.new", CONTROL, "daemon.log", "lock"] {
            remove_file(&self.root.join(file))?;
        }
        // Left alone when the user keeps other things in it.
        let _ = fs::remove_dir(&self.root);
        Ok(())
    }
}

/// Whether the open file is still the one by that name.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Removes a file that may be missing.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at("remove", path),
        _ => Ok(()),
    }
}

/// A name of a control socket in this directory that fits a socket address (108 bytes) however deep the directory lies.
pub(crate) fn through(dir: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{CONTROL}", dir.as_raw_fd()))
}

fn default_root() -> Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|h| h.join(".local/state")));
    match base {
        Some(base) => Ok(base.join("dyad/lab")),
        None => {
            refuse("neither XDG_STATE_HOME nor HOME names an absolute directory; say where with --state DIR")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_directories_have_a_control_socket_too() {
        let temp = tempfile::tempdir().unwrap();
        let deep = temp.path().join("d".repeat(100)).join("e".repeat(100));
        let state = StateDir::locate(Some(&deep)).unwrap();
        assert!(matches!(state.connect(), Err(LabError::NotUp(_))), "no directory yet");
        state.create(2).unwrap();
        assert!(matches!(state.connect(), Err(LabError::NotUp(_))), "no socket yet");
        let listener = state.listen().unwrap();
        state.connect().unwrap();
        drop(listener);
        assert!(matches!(state.connect(), Err(LabError::NotUp(_))), "a dead socket");
        state.listen().unwrap();
    }

    #[test]
    fn removes_what_the_lab_made_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::locate(Some(temp.path())).unwrap();
        state.create(1).unwrap();
        fs::write(state.disk(Node(0)), "disk").unwrap();
        fs::write(temp.path().join("mine"), "kept").unwrap();
        drop(state.lock().unwrap());
        state.remove_all().unwrap();
        let left: Vec<_> = fs::read_dir(temp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["mine"]);
    }

    #[test]
    fn a_broken_lab_file_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::locate(Some(temp.path())).unwrap();
        assert!(state.load().unwrap().is_none());
        fs::write(temp.path().join("lab.json"), "{\"nodes\": 999}").unwrap();
        let text = state.load().unwrap_err().to_string();
        assert!(text.contains("lab.json") && text.contains("line 1"), "{text}");
        assert!(state.exists(), "`down` must be able to remove it");
    }
}
