//! Every path that the supervisor touches, below one root so that tests can run it beside a real system.

use std::path::{Path, PathBuf};

/// Paths of one appliance root.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// Below `root`; `/` on the appliance.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// Whether this is the machine itself, and no directory of a test.
    pub(crate) fn is_machine(&self) -> bool {
        self.root == Path::new("/")
    }

    /// `path`, absolute on the appliance, below this root.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// PID 1's control socket.
    pub fn init_socket(&self) -> PathBuf {
        self.at(dyad_api::control::SOCKET)
    }

    /// The operator socket.
    pub(crate) fn operator_socket(&self) -> PathBuf {
        self.at(dyad_api::operator::SOCKET)
    }

    /// The site file on the ESP.
    pub(crate) fn site(&self) -> PathBuf {
        self.at("/efi/dyad/site.toml")
    }

    /// Generated passwords.
    pub(crate) fn credentials(&self) -> PathBuf {
        self.at("/state/supervisor/credentials")
    }

    /// Mount point of PostgreSQL's volume.
    pub(crate) fn pg_volume(&self) -> PathBuf {
        self.at("/data/pg")
    }

    /// PostgreSQL's cluster directory.
    pub(crate) fn pg_main(&self) -> PathBuf {
        self.at("/data/pg/main")
    }

    /// Where initdb works until its result is whole.
    pub(crate) fn pg_new(&self) -> PathBuf {
        self.at("/data/pg/main.new")
    }

    /// Where a copy of the peer's data grows until it is whole.
    pub(crate) fn pg_clone(&self) -> PathBuf {
        self.at("/data/pg/main.clone")
    }

    /// Which copy of the data this volume holds.
    pub(crate) fn pg_generation(&self) -> PathBuf {
        self.at("/data/pg/generation")
    }

    /// There while the data is being rewound: until that has ended it is of use to nobody.
    pub(crate) fn pg_rewinding(&self) -> PathBuf {
        self.at("/data/pg/rewinding")
    }

    /// Room that is given up when the volume is full.
    pub(crate) fn pg_reserve(&self) -> PathBuf {
        self.at("/data/pg/reserve")
    }

    /// Name of the standby that commits wait for, over a restart of this machine.
    pub(crate) fn pg_sync(&self) -> PathBuf {
        self.at("/state/supervisor/postgresql-sync")
    }

    /// This node's key and certificate for PostgreSQL.
    pub(crate) fn pg_identity(&self) -> PathBuf {
        self.at("/state/supervisor/postgresql.pem")
    }

    /// The library that keeps commits from being answered too early.
    pub(crate) fn pg_guard(&self) -> PathBuf {
        self.at("/usr/lib/postgresql/15/lib/dyad_guard.so")
    }

    /// PostgreSQL's configuration: outside the cluster directory, so that no clone or rewind ever carries it along.
    pub(crate) fn pg_config(&self) -> PathBuf {
        self.at("/run/dyad/postgresql")
    }

    /// Directory of PostgreSQL's unix socket.
    pub(crate) fn pg_socket(&self) -> PathBuf {
        self.at("/run/postgresql")
    }

    /// The file whose presence makes this a test image, on which `exec` is allowed.
    pub(crate) fn test_agent(&self) -> PathBuf {
        self.at("/usr/lib/dyad/test-agent")
    }
}
