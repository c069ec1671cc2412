//! The configuration files as they must be, and putting them back when they are not.

use dyad_spec::site::Postgresql;

use crate::files::{self, Access, FileError};
use crate::paths::Paths;
use crate::pg::Owner;
use crate::pg::hba;
use crate::pg::settings::{Machine, Settings, repair_auto_conf};
use crate::pg::stance::Stance;

/// Everything that the files say.
#[derive(Debug)]
pub(crate) struct Config {
    settings: Settings,
    conf: String,
    hba: String,
}

impl Config {
    /// From what is declared.
    pub(crate) fn declared(machine: Machine, paths: &Paths, site: &Postgresql, stance: &Stance) -> Self {
        let settings = Settings::declared(machine, paths, site, stance);
        Self { conf: settings.render(), hba: hba::render(&site.access, stance), settings }
    }

    /// Makes the files say it. Returns what had to be written, in words; nothing on a second run.
    pub(crate) fn apply(&self, paths: &Paths, owner: Owner) -> Result<Vec<String>, FileError> {
        let dir = paths.pg_config();
        // PostgreSQL reads them and must not be able to write them.
        files::ensure_dir(&dir, Access { gid: owner.gid, ..Access::own(0o750) })?;
        files::ensure_dir(&paths.pg_socket(), Access { mode: 0o2775, uid: owner.uid, gid: owner.gid })?;
        let access = Access { gid: owner.gid, ..Access::own(0o640) };
        let mut written = Vec::new();
        for (name, text) in
            [("postgresql.conf", &*self.conf), ("pg_hba.conf", &*self.hba), ("pg_ident.conf", hba::IDENT)]
        {
            if files::ensure(&dir.join(name), text.as_bytes(), access)? {
                written.push(format!("{name} was not as declared"));
            }
        }
        // ALTER SYSTEM writes here, and it wins over postgresql.conf.
        let auto = paths.pg_main().join("postgresql.auto.conf");
        if let Some(text) = files::read_plain(&auto)?
            && let Some((kept, removed)) = repair_auto_conf(&text, &self.settings)
        {
            files::write(&auto, kept.as_bytes(), Access { mode: 0o600, uid: owner.uid, gid: owner.gid })?;
            written.extend(removed.iter().map(|line| format!("postgresql.auto.conf said {line}")));
        }
        Ok(written)
    }
}
