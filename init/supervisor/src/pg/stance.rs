//! How this server stands to the other one of a pair, as its configuration says it.

use std::net::IpAddr;
use std::path::Path;

use crate::paths::Paths;
use crate::pg::control::Least;

/// Role that the standby's receiver and base backups log in as.
pub(crate) const REPLICATION: &str = "dyad_replication";
/// Role that reads the holder's files for a rewind and asks where it stands.
pub(crate) const REWIND: &str = "dyad_rewind";
/// What names of standbys begin with; the generation of their data follows.
pub(crate) const STANDBY_PREFIX: &str = "dyad_";

/// The other node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name in the site file.
    pub name: String,
    /// Where its PostgreSQL answers, the preferred way first; one at least.
    pub addresses: Vec<IpAddr>,
    /// Port there.
    pub port: u16,
}

/// Both nodes of a pair, seen from this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// This node's name in the site file.
    pub own: String,
    /// The other one.
    pub peer: Peer,
}

/// Says in `pg_hba.conf` that clients are held back.
pub(crate) const HELD: &str = "# Held back until the other node has what this one recovered.\n";

/// Name of the slot that a node reads through, on the other one.
pub(crate) fn slot(node: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '_' };
    let name: String = node.chars().map(plain).take(50).collect();
    format!("{STANDBY_PREFIX}{name}")
}

/// Name of a standby: it names the copy of the data, so that a commit never waits for another copy than the one that
/// was protected.
pub(crate) fn standby(generation: u64) -> String {
    format!("{STANDBY_PREFIX}{generation:016x}")
}

/// The generation in a standby's name.
pub(crate) fn generation(standby: &str) -> Option<u64> {
    let digits = standby.strip_prefix(STANDBY_PREFIX).filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// What the files say beside site and machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stance {
    /// `None`: one node.
    pub(crate) pair: Option<Pair>,
    /// Name of the standby that commits wait for.
    pub(crate) sync: Option<String>,
    /// Clients may connect; otherwise the supervisor and the other node alone.
    pub(crate) admit: bool,
    /// New transactions of clients only read, as those of a standby do whatever this says.
    pub(crate) read_only: bool,
    /// As standby: name under which it receives from the peer.
    pub(crate) receive: Option<String>,
    /// Of data that a primary elsewhere wrote: what that one ran with.
    pub(crate) least: Option<Least>,
}

impl Stance {
    /// One node, serving.
    pub(crate) fn alone() -> Self {
        Self { pair: None, sync: None, admit: true, read_only: false, receive: None, least: None }
    }

    /// Settings that follow.
    pub(crate) fn settings(&self, paths: &Paths) -> Vec<(String, String)> {
        let mut all = vec![(
            "synchronous_standby_names",
            self.sync.as_ref().map(|name| format!("FIRST 1 (\"{name}\")")).unwrap_or_default(),
        )];
        // A standby that somebody promotes behind the supervisor's back is found and stopped within seconds. Until then it
        // shall not look like a server to write to, neither to a plain client nor to `target_session_attrs=read-write`.
        if self.read_only || self.receive.is_some() {
            all.push(("default_transaction_read_only", "on".to_owned()));
        }
        let file = |name: &str| paths.pg_config().join(name).display().to_string();
        all.extend([
            ("ssl", "on".to_owned()),
            ("ssl_ca_file", String::new()),
            ("ssl_cert_file", file(CERTIFICATE)),
            ("ssl_key_file", file(KEY)),
        ]);
        if let Some(pair) = &self.pair {
            let receive = self.receive.as_ref().map(|name| conninfo(paths, &pair.peer, REPLICATION, name));
            all.push(("primary_slot_name", slot(&pair.own)));
            all.push(("primary_conninfo", receive.unwrap_or_default()));
        }
        owned(all)
    }

    /// Lines of `pg_hba.conf` that come right after the supervisor's own. The same on both nodes but for the address.
    pub(crate) fn access(&self) -> String {
        let mut out = String::new();
        if let Some(Pair { peer, .. }) = &self.pair {
            // In an order of their own: which way is taken changes nothing about who may come.
            let mut addresses = peer.addresses.clone();
            addresses.sort_unstable();
            for address in addresses {
                let prefix = if address.is_ipv4() { 32 } else { 128 };
                for (database, role) in [("replication", REPLICATION), ("postgres", REWIND)] {
                    out += &format!("hostssl {database} {role} {address}/{prefix} scram-sha-256\n");
                }
            }
            out += &format!(
                "local all {REPLICATION},{REWIND} reject\nhost all {REPLICATION},{REWIND} all reject\n"
            );
            out += "host replication all all reject\n";
        }
        if !self.admit {
            out += HELD;
            out += "local all all reject\nhost all all all reject\n";
        }
        out
    }
}

fn owned(all: Vec<(&str, String)>) -> Vec<(String, String)> {
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Names of files beside `postgresql.conf`.
pub(crate) const CERTIFICATE: &str = "server.crt";
/// The key of it.
pub(crate) const KEY: &str = "server.key";
/// Passwords for the peer's server.
pub(crate) const PASSWORDS: &str = "peer.pgpass";

/// How to reach the peer's server, by whichever way answers first in their order: TLS, the password from its
/// file, and a dead connection noticed in seconds. Who signed its certificate is not asked, since an operator may
/// lay any: SCRAM's proof is bound to the certificate, so nobody is between the two who does not hold its key.
pub(crate) fn conninfo(paths: &Paths, peer: &Peer, role: &str, application: &str) -> String {
    let file = |name: &str| value(&paths.pg_config().join(name));
    let hosts: Vec<_> = peer.addresses.iter().map(IpAddr::to_string).collect();
    format!(
        "host={} port={} user={role} dbname=postgres application_name={application} passfile={} sslmode=require \
         channel_binding=require gssencmode=disable connect_timeout=4 \
         keepalives_idle=1 keepalives_interval=1 keepalives_count=3 tcp_user_timeout=3000",
        hosts.join(","),
        peer.port,
        file(PASSWORDS),
    )
}

fn value(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_slots_and_standbys() {
        assert_eq!(slot("Node-A.x"), "dyad_node_a_x");
        assert_eq!(generation(&standby(0xfeed)), Some(0xfeed));
        for other in ["walreceiver", "dyad_", "dyad_00000000000000zz", "dyad_0000000000000000a"] {
            assert_eq!(generation(other), None, "{other}");
        }
    }

    #[test]
    fn a_connection_string_has_no_password_and_binds_its_channel() {
        let peer = Peer {
            name: "b".into(),
            addresses: vec![[192, 0, 2, 2].into(), [203, 0, 113, 2].into()],
            port: 5433,
        };
        let text = conninfo(&Paths::new(Path::new("/r'oot")), &peer, REPLICATION, "dyad_0000000000000001");
        for part in [
            "host=192.0.2.2,203.0.113.2 port=5433 user=dyad_replication ",
            " passfile='/r\\'oot/",
            " sslmode=require ",
            " channel_binding=require",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("password="), "{text}");
    }

    #[test]
    fn a_held_server_admits_replication_and_nobody_else() {
        let peer = Peer { name: "b".into(), addresses: vec![[192, 0, 2, 2].into()], port: 5432 };
        let stance = Stance { pair: Some(Pair { own: "a".into(), peer }), admit: false, ..Stance::alone() };
        let text = crate::pg::hba::render(&[], &stance);
        assert_eq!(text, include_str!("../../tests/golden/pg_hba_held.conf"));
        assert!(
            !crate::pg::hba::render(&[], &Stance { admit: true, ..stance }).contains("local all all reject")
        );
    }
}
