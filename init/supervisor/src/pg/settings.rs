//! Which settings PostgreSQL runs with, and how they are written down.

use std::collections::BTreeMap;
use std::path::Path;

use dyad_spec::site::Postgresql;

use crate::files;
use crate::paths::Paths;
use crate::pg::control::LEAST;
use crate::pg::stance::Stance;

const MIB: u64 = 1024 * 1024;

/// What sizes follow from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    /// Main memory.
    pub(crate) memory_bytes: u64,
    /// Size of PostgreSQL's volume.
    pub(crate) volume_bytes: u64,
}

impl Machine {
    /// Sizes of this machine; a size that cannot be read counts as small.
    pub(crate) fn of(paths: &Paths) -> Self {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib: u64 = total.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0);
        let volume = files::extent(&paths.pg_volume()).map_or(0, |volume| volume.total_bytes);
        Self { memory_bytes: kib * 1024, volume_bytes: volume }
    }
}

/// Settings by name; the value as it stands between the quotes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings(BTreeMap<String, String>);

impl Settings {
    /// Everything declared: defaults for this machine, the site's settings over them, and what safety needs, which a
    /// site file cannot name.
    pub(crate) fn declared(machine: Machine, paths: &Paths, site: &Postgresql, stance: &Stance) -> Self {
        let mut all = defaults(machine);
        all.extend(site.settings.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())));
        all.extend(fixed(paths, site.port));
        all.extend(stance.settings(paths));
        for ((name, default), least) in LEAST.into_iter().zip(stance.least.into_iter().flatten()) {
            // What is no number is PostgreSQL's to refuse.
            let declared = all.get(name).map_or(Ok(default), |text| text.parse());
            if declared.is_ok_and(|declared| declared < least) {
                all.insert(name.to_owned(), least.to_string());
            }
        }
        Self(all)
    }

    /// Whether this name is declared.
    pub(crate) fn declares(&self, name: &str) -> bool {
        self.0.contains_key(&name.to_ascii_lowercase())
    }

    /// The text of `postgresql.conf`.
    pub(crate) fn render(&self) -> String {
        let mut out = String::from(
            "# Written by the supervisor; what is changed here is put back. Settings belong in the site file.\n",
        );
        for (name, value) in &self.0 {
            out.push_str(&format!("{name} = '{}'\n", escape(value)));
        }
        out
    }
}

/// PostgreSQL reads backslash escapes and doubled quotes inside quotes; a line end would end the setting.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n").replace('\r', "\\r")
}

/// Defaults that follow from the machine; the site file may say otherwise.
fn defaults(machine: Machine) -> BTreeMap<String, String> {
    let mib = |bytes: u64, least: u64, most: u64| format!("{}MB", (bytes / MIB).clamp(least, most));
    let (memory, volume) = (machine.memory_bytes, machine.volume_bytes);
    [
        ("autovacuum", "on".to_owned()),
        ("checkpoint_completion_target", "0.9".to_owned()),
        ("checkpoint_timeout", "5min".to_owned()),
        ("datestyle", "iso, ymd".to_owned()),
        ("effective_cache_size", mib(memory / 2, 64, 1024 * 1024)),
        ("hot_standby_feedback", "on".to_owned()),
        ("lc_messages", "C".to_owned()),
        ("log_checkpoints", "on".to_owned()),
        // journald adds time and process to each line of standard error.
        ("log_line_prefix", "%q%u@%d ".to_owned()),
        ("log_lock_waits", "on".to_owned()),
        ("log_timezone", "UTC".to_owned()),
        ("maintenance_work_mem", mib(memory / 32, 16, 1024)),
        ("max_connections", "100".to_owned()),
        // WAL between two checkpoints, WAL kept for a standby, and WAL pinned by a slot share the volume with the data.
        ("max_slot_wal_keep_size", mib(volume / 4, 64, 65_536)),
        ("max_wal_size", mib(volume / 10, 64, 4096)),
        ("min_wal_size", mib(volume / 40, 32, 256)),
        // Before it replays the log it flushes the file system, which holds nothing else, instead of each file of the cluster.
        ("recovery_init_sync_method", "syncfs".to_owned()),
        ("shared_buffers", mib(memory / 8, 32, 16_384)),
        ("timezone", "UTC".to_owned()),
        ("wal_keep_size", mib(volume / 20, 32, 1024)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// What the failover protocol and the node's own layout rest on; no site file changes it.
fn fixed(paths: &Paths, port: u16) -> Vec<(String, String)> {
    let path = |path: &Path| path.display().to_string();
    [
        ("cluster_name", "main".to_owned()),
        // A superuser on the machine itself, and the supervisor as one, may choose not to wait.
        ("dyad_guard.async_roles", "postgres".to_owned()),
        ("fsync", "on".to_owned()),
        ("full_page_writes", "on".to_owned()),
        ("hba_file", path(&paths.pg_config().join("pg_hba.conf"))),
        ("hot_standby", "on".to_owned()),
        ("ident_file", path(&paths.pg_config().join("pg_ident.conf"))),
        // The image carries no LLVM.
        ("jit", "off".to_owned()),
        ("listen_addresses", "*".to_owned()),
        ("log_destination", "stderr".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("max_replication_slots", "10".to_owned()),
        ("max_wal_senders", "10".to_owned()),
        ("password_encryption", "scram-sha-256".to_owned()),
        ("port", port.to_string()),
        // The supervisor decides what follows a crash: with a standby at hand that is not always a restart.
        ("restart_after_crash", "off".to_owned()),
        ("shared_preload_libraries", path(&paths.pg_guard())),
        ("synchronous_commit", "on".to_owned()),
        ("unix_socket_directories", path(&paths.pg_socket())),
        ("unix_socket_permissions", "0777".to_owned()),
        ("wal_level", "replica".to_owned()),
        ("wal_log_hints", "on".to_owned()),
        ("wal_receiver_timeout", "2s".to_owned()),
        // A standby that goes another way finds its slot taken until the sender of the way before has noticed.
        ("wal_retrieve_retry_interval", "500ms".to_owned()),
        ("wal_sender_timeout", "2s".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// `postgresql.auto.conf` without the settings that are declared elsewhere and would be overridden by it, and the names
/// taken out; `None` when there is nothing to take out. Lines of others stay byte for byte.
pub(crate) fn repair_auto_conf(text: &str, declared: &Settings) -> Option<(String, Vec<String>)> {
    let (mut kept, mut removed) = (String::with_capacity(text.len()), Vec::new());
    for line in text.split_inclusive('\n') {
        let name: String = line
            .trim_start()
            .chars()
            .take_while(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.' | '$'))
            .collect();
        if !name.is_empty() && declared.declares(&name) {
            removed.push(line.trim().to_owned());
        } else {
            kept.push_str(line);
        }
    }
    (!removed.is_empty()).then_some((kept, removed))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine { memory_bytes: 2048 * MIB, volume_bytes: 10 * 1024 * MIB };

    fn site(settings: &[(&str, &str)]) -> Postgresql {
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Postgresql {
            port: 5432,
            copy_rate_kib: None,
            settings,
            roles: Vec::new(),
            databases: Vec::new(),
            access: Vec::new(),
        }
    }

    fn declared(settings: &[(&str, &str)]) -> Settings {
        Settings::declared(MACHINE, &Paths::new(Path::new("/")), &site(settings), &Stance::alone())
    }

    #[test]
    fn rendering_matches_the_golden_file_and_is_stable() {
        let text = declared(&[("work_mem", "8MB"), ("app.greeting", "it's a \\ in\ntwo lines")]).render();
        assert_eq!(text, include_str!("../../tests/golden/postgresql.conf"));
        let reordered = [("app.greeting", "it's a \\ in\ntwo lines"), ("WORK_MEM", "8MB")];
        assert_eq!(declared(&reordered).render(), text);
    }

    #[test]
    fn the_site_changes_defaults() {
        assert!(declared(&[("max_connections", "300")]).render().contains("\nmax_connections = '300'\n"));
    }

    #[test]
    fn a_standby_has_no_less_than_its_primary_had() {
        let stance = Stance { least: Some([30, 64, 2, 10, 16]), ..Stance::alone() };
        let declared = |settings| {
            Settings::declared(MACHINE, &Paths::new(Path::new("/")), &site(settings), &stance).render()
        };
        let text = declared(&[("max_connections", "20"), ("max_locks_per_transaction", "128")]);
        for wanted in
            ["connections = '30'", "locks_per_transaction = '128'", "transactions = '2'", "processes = '16'"]
        {
            assert!(text.contains(&format!("{wanted}\n")), "{wanted} in {text}");
        }
        assert!(declared(&[]).contains("\nmax_connections = '100'\n"));
        assert!(declared(&[("max_connections", "many")]).contains("\nmax_connections = 'many'\n"));
    }

    #[test]
    fn what_safety_needs_is_refused_in_a_site_file() {
        let paths = Paths::new(Path::new("/"));
        for (name, _) in fixed(&paths, 5432).into_iter().chain(Stance::alone().settings(&paths)) {
            assert!(dyad_spec::site::managed_setting(&name), "a site file must not be able to set {name}");
        }
    }

    #[test]
    fn sizes_stay_within_their_bounds_on_tiny_and_huge_machines() {
        let render = |memory_bytes, volume_bytes| {
            let machine = Machine { memory_bytes, volume_bytes };
            Settings::declared(machine, &Paths::new(Path::new("/")), &site(&[]), &Stance::alone()).render()
        };
        let tiny = render(0, 0);
        assert!(tiny.contains("shared_buffers = '32MB'") && tiny.contains("max_wal_size = '64MB'"), "{tiny}");
        let huge = render(u64::MAX, u64::MAX);
        assert!(
            huge.contains("shared_buffers = '16384MB'") && huge.contains("wal_keep_size = '1024MB'"),
            "{huge}"
        );
    }

    #[test]
    fn auto_conf_loses_what_is_declared_and_keeps_the_rest() {
        let settings = declared(&[]);
        let text = "# Do not edit this file manually!\nfsync = 'off'\nprimary_conninfo = 'host=x'\n  Wal_Level='minimal'\nwork_mem='1MB'";
        let (kept, removed) = repair_auto_conf(text, &settings).unwrap();
        assert_eq!(kept, "# Do not edit this file manually!\nprimary_conninfo = 'host=x'\nwork_mem='1MB'");
        assert_eq!(removed, ["fsync = 'off'", "Wal_Level='minimal'"]);
        assert_eq!(repair_auto_conf(&kept, &settings), None);
    }
}
