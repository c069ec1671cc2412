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
    /// Certificate of the authority that signs for PostgreSQL on every node, in PEM; empty before it was made.
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
