//! Checks of the PostgreSQL part of a site file.

use super::check::Found;
use super::raw::RawPostgresql;
use super::{Access, Database, Postgresql, SqlRole};
use crate::decode::At;
use crate::scalar::Text;
use crate::scalar::{ByteSize, SqlName};

/// Settings that the appliance decides: durability and replication rest on them, or paths and ports do.
const MANAGED: [&str; 48] = [
    "archive_cleanup_command",
    "cluster_name",
    "config_file",
    "data_directory",
    "data_sync_retry",
    "dyad_guard.async_roles",
    "event_source",
    "external_pid_file",
    "fsync",
    "full_page_writes",
    "hba_file",
    "hot_standby",
    "ident_file",
    "ignore_checksum_failure",
    "jit",
    "listen_addresses",
    "log_destination",
    "log_directory",
    "log_filename",
    "logging_collector",
    "max_replication_slots",
    "max_wal_senders",
    "password_encryption",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_timeline",
    "restart_after_crash",
    "restore_command",
    "shared_preload_libraries",
    "ssl",
    "ssl_ca_file",
    "ssl_cert_file",
    "ssl_key_file",
    "synchronous_commit",
    "synchronous_standby_names",
    "unix_socket_directories",
    "unix_socket_group",
    "unix_socket_permissions",
    "wal_level",
    "wal_log_hints",
    "wal_receiver_timeout",
    "wal_retrieve_retry_interval",
    "wal_sender_timeout",
    "zero_damaged_pages",
];

/// Settings with a key of their own.
const OWN_KEYS: [&str; 5] =
    ["effective_cache_size", "maintenance_work_mem", "max_connections", "shared_buffers", "work_mem"];

/// Whether a PostgreSQL setting is decided by the appliance and never by a site file.
pub fn managed_setting(name: &str) -> bool {
    MANAGED.contains(&name)
}

pub(super) fn check(raw: &RawPostgresql, found: &mut Found) -> Postgresql {
    let roles: Vec<&str> = raw.roles.iter().map(|(name, _)| name.as_str()).collect();
    let databases: Vec<&str> = raw.databases.iter().map(|(name, _)| name.as_str()).collect();
    for (name, _) in raw.roles.iter() {
        reserved(name, &["postgres", "public", "none", "all", "replication"], "role", found);
    }
    for (name, database) in raw.databases.iter() {
        reserved(name, &["postgres", "template0", "template1", "all", "replication"], "database", found);
        if !roles.contains(&database.owner.as_str()) {
            found.unknown("role", &database.owner, &roles);
        }
    }
    let access = raw.access.iter().map(|rule| {
        let known = |kind, name: &Option<At<SqlName>>, all: &[&str], found: &mut Found| match name {
            None => "all".to_owned(),
            Some(name) => {
                if !all.contains(&name.as_str()) {
                    found.unknown(kind, name, all);
                }
                name.to_string()
            }
        };
        if !rule.network.is_network() {
            let title = format!("`network`: {} has bits set behind its prefix", rule.network);
            found.at(&rule.network.span, title, "expected a network, such as \"192.0.2.0/24\"");
        }
        Access {
            database: known("database", &rule.database, &databases, found),
            role: known("role", &rule.role, &roles, found),
            network: rule.network.value,
            tls: rule.tls,
        }
    });
    let access = access.collect();
    Postgresql {
        port: raw.port.0 as u16,
        copy_rate_kib: raw.copy_rate.as_ref().and_then(|rate| copy_rate(rate, found)),
        settings: settings(raw, found),
        roles: raw
            .roles
            .iter()
            .map(|(name, role)| SqlRole { name: name.to_string(), create_db: role.create_db })
            .collect(),
        databases: raw
            .databases
            .iter()
            .map(|(name, database)| Database { name: name.to_string(), owner: database.owner.to_string() })
            .collect(),
        access,
    }
}

/// What pg_basebackup accepts.
const COPY_RATE_KIB: std::ops::RangeInclusive<u64> = 32..=1 << 20;

fn copy_rate(rate: &At<ByteSize>, found: &mut Found) -> Option<u32> {
    let kib = rate.value.bytes() >> 10;
    if !COPY_RATE_KIB.contains(&kib) {
        let title = format!("`copy_rate`: {} is not accepted", rate.value);
        found.at(&rate.span, title, "expected 32KiB to 1GiB, which are copied in a second");
        return None;
    }
    u32::try_from(kib).ok()
}

fn reserved(name: &At<SqlName>, words: &[&str], kind: &str, found: &mut Found) {
    if name.as_str().starts_with("dyad_") {
        let title = format!("`{name}` cannot be the name of a {kind}");
        found.at(&name.span, title, "names that begin with `dyad_` are the appliance's own");
    }
    if words.contains(&name.as_str()) {
        let title = format!("`{name}` cannot be the name of a {kind}");
        found.at(&name.span, title, "it has a meaning of its own in PostgreSQL");
    }
}

fn settings(raw: &RawPostgresql, found: &mut Found) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    for (name, value) in raw.settings.iter() {
        if managed_setting(name.as_str()) {
            let title = format!("`postgresql.settings.{name}` is not for the site to decide");
            found.at(&name.span, title, "the appliance sets this itself: remove it");
        } else if OWN_KEYS.contains(&name.as_str()) {
            let title = format!("`postgresql.settings.{name}` has a key of its own");
            found.at(&name.span, title, format!("write it as `{name}` under [postgresql]"));
        }
        settings.push((name.to_string(), value.0.clone()));
    }
    let sizes = [
        ("effective_cache_size", raw.effective_cache_size),
        ("maintenance_work_mem", raw.maintenance_work_mem),
        ("shared_buffers", raw.shared_buffers),
        ("work_mem", raw.work_mem),
    ];
    // PostgreSQL's kB is 1024 bytes.
    let text = |size: ByteSize| format!("{}kB", size.bytes() >> 10);
    settings.extend(sizes.iter().filter_map(|(name, size)| Some(((*name).to_owned(), text((*size)?)))));
    settings.extend(raw.max_connections.map(|n| ("max_connections".to_owned(), n.0.to_string())));
    settings.sort();
    settings
}
