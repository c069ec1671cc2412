//! PostgreSQL on this node: from an empty volume to a server that takes writes, and back to it after whatever happened.

pub mod adapter;
pub mod certificate;
pub(crate) mod cluster;
pub(crate) mod config;
pub(crate) mod control;
pub(crate) mod copy;
pub(crate) mod crashes;
pub(crate) mod foreign;
pub(crate) mod hba;
pub mod health;
pub(crate) mod history;
pub(crate) mod lsn;
pub(crate) mod manager;
pub(crate) mod peer;
pub(crate) mod probe;
pub(crate) mod protect;
pub(crate) mod rejoin;
pub(crate) mod roles;
pub mod room;
pub(crate) mod session;
pub(crate) mod settings;
pub(crate) mod stance;
pub(crate) mod standby;
pub(crate) mod wal;

pub use adapter::{Control, PgError, Relation, Server};
pub use cluster::ClusterError;
pub use lsn::Lsn;
pub use stance::{Pair, Peer};

/// Name of PostgreSQL's service in the image.
pub(crate) const SERVICE: &str = "postgresql";
/// The only major version that this program runs.
pub(crate) const MAJOR: &str = "15";

/// The system user that PostgreSQL runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Owner {
    /// The line of `postgres` in an `/etc/passwd`.
    pub fn from_passwd(passwd: &str) -> Option<Self> {
        let line = passwd.lines().find(|line| line.starts_with("postgres:"))?;
        let mut fields = line.split(':').skip(2).map(str::parse);
        Some(Self { uid: fields.next()?.ok()?, gid: fields.next()?.ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_read_from_passwd() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgres:x:101:104:x,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(Owner::from_passwd(passwd), Some(Owner { uid: 101, gid: 104 }));
        assert_eq!(Owner::from_passwd("postgresx:x:1:1\n"), None);
        assert_eq!(Owner::from_passwd("postgres:x:one:1\n"), None);
    }
}
