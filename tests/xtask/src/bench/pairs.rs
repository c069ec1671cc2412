//! `cargo xtask bench failover` and `steady`: a pair of containers beside what Debian has for the same purpose, which is
//! unpacked and not installed.

use std::path::Path;

use anyhow::Result;

use crate::sh;

/// The others, with a shell for the programs that PostgreSQL starts through one.
const PACKAGES: [&str; 7] =
    ["patroni", "python3-etcd", "etcd-server", "keepalived", "postgresql-15", "dash", "openssl"];

/// `options` are those of the program that measures.
pub(super) fn run(root: &Path, kind: &str, options: &[&str]) -> Result<()> {
    let dyad = super::program(root)?;
    let peers = super::unpacked(root, &dyad, &PACKAGES)?;
    let env = [("DYAD_BIN", dyad.as_str()), ("DYAD_PEERS", peers.as_str())];
    let words = ["run", "--locked", "--package", "dyad-vm-tests", "--bin", "measure", "--", kind];
    sh::cargo_env(root, &[&words[..], options].concat(), &env)
}
