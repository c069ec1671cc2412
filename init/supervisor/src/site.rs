//! The site file as this node follows it.

use dyad_spec::Source;
use dyad_spec::site::{Postgresql, Site};

use crate::files;
use crate::paths::Paths;

/// What was found as site file.
#[derive(Debug)]
pub(crate) enum Loaded {
    /// A good one.
    Site(Box<Site>),
    /// None: one node, link-local addresses, no roles.
    Absent,
    /// One that is refused, or cannot be read: why. Nothing is changed on this machine for it.
    Refused(String),
}

impl Loaded {
    /// Reads it.
    pub(crate) fn read(paths: &Paths) -> Self {
        let path = paths.site();
        let bytes = match files::read(&path) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Self::Absent,
            Err(error) => return Self::Refused(error.to_string()),
        };
        let Ok(text) = String::from_utf8(bytes) else {
            return Self::Refused(format!("{} is no UTF-8 text", path.display()));
        };
        match Site::parse(Source::new("site.toml", text)) {
            Ok(site) => Self::Site(Box::new(site)),
            Err(diagnostics) => Self::Refused(diagnostics.render(false).trim_end().to_owned()),
        }
    }

    /// The site, if there is one.
    pub(crate) fn site(&self) -> Option<&Site> {
        match self {
            Loaded::Site(site) => Some(site),
            Loaded::Absent | Loaded::Refused(_) => None,
        }
    }

    /// PostgreSQL as declared.
    pub(crate) fn postgresql(&self) -> Postgresql {
        let default = || Postgresql {
            port: 5432,
            copy_rate_kib: None,
            settings: Vec::new(),
            roles: Vec::new(),
            databases: Vec::new(),
            access: Vec::new(),
        };
        self.site().map_or_else(default, |site| site.postgresql.clone())
    }

    /// For the status.
    pub(crate) fn text(&self) -> String {
        match self {
            Loaded::Site(_) => "site.toml".to_owned(),
            Loaded::Absent => {
                "there is no /efi/dyad/site.toml: one node, link-local addresses, no roles or databases"
                    .to_owned()
            }
            Loaded::Refused(why) => format!("refused: {why}"),
        }
    }
}
