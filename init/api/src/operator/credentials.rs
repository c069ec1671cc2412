//! How clients reach the database, and what makes it believe them and them it.

use serde::{Deserialize, Serialize};

/// The answer to `credentials`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Addresses on which PostgreSQL can be reached.
    pub addresses: Vec<String>,
    /// Port.
    pub port: u16,
    /// One for each role of the site file that may log in.
    pub roles: Vec<CredentialRow>,
    /// Certificate of the authority that signs for PostgreSQL on every node, in PEM; empty before it was made, and while the nodes
    /// show a certificate of one's own.
    pub authority: String,
}

/// A role and its password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialRow {
    /// Role.
    pub role: String,
    /// Generated password.
    pub password: String,
    /// Databases that the role owns.
    pub databases: Vec<String>,
}

impl std::fmt::Debug for CredentialRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CredentialRow").field("role", &self.role).finish_non_exhaustive()
    }
}

/// What PostgreSQL of both nodes shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// One of one's own; `None`: the one that the cluster's authority signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<Signed>,
}

/// A certificate and its key, both in PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    /// The server's, then those that lead to its issuer.
    pub certificate: String,
    /// Without a passphrase.
    pub key: String,
}

/// Not shown: orders are logged.
impl std::fmt::Debug for Signed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signed(..)")
    }
}
