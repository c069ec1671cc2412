//! Which archives an image is made from.

use std::path::PathBuf;

use crate::apt::{Entry, HostApt, debian_targets};
use crate::error::ArchiveError;
use crate::gpgv::Keyring;
use crate::http::Proxies;

/// What the image definition says about its sources; everything but suite and architecture may be left to the
/// environment and the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Codename of the Debian release (`bookworm`).
    pub suite: String,
    /// Architecture (`amd64`).
    pub arch: String,
    /// Components; empty means `main`.
    pub components: Vec<String>,
    /// Base URL of the mirror.
    pub mirror: Option<String>,
    /// Base URL of the security archive, or `none`.
    pub security_mirror: Option<String>,
    /// Keyring file.
    pub keyring: Option<PathBuf>,
    /// Proxy URL for http and https, or `none`.
    pub proxy: Option<String>,
    /// Suites to take from `mirror` instead of `SUITE` and `SUITE-updates`.
    pub suites: Option<Vec<String>>,
}

/// The environment variables that matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `DYAD_MIRROR`
    pub mirror: Option<String>,
    /// `DYAD_SECURITY_MIRROR`
    pub security_mirror: Option<String>,
    /// `DYAD_KEYRING`
    pub keyring: Option<PathBuf>,
    /// `http_proxy`
    pub http_proxy: Option<String>,
    /// `https_proxy`
    pub https_proxy: Option<String>,
    /// `no_proxy`
    pub no_proxy: Option<String>,
}

impl Environment {
    /// The variables of this process; empty ones count as not set.
    pub fn from_process() -> Self {
        let get = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            mirror: get("DYAD_MIRROR"),
            security_mirror: get("DYAD_SECURITY_MIRROR"),
            keyring: get("DYAD_KEYRING").map(PathBuf::from),
            http_proxy: get("http_proxy"),
            https_proxy: get("https_proxy").or_else(|| get("HTTPS_PROXY")),
            no_proxy: get("no_proxy").or_else(|| get("NO_PROXY")),
        }
    }
}

/// One suite of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Base URL, without the slash at its end.
    pub base: String,
    /// Codename of the suite.
    pub suite: String,
    /// Whose signature counts. Only a build from a lock file can do without.
    pub keyring: Option<Keyring>,
    /// Whether Valid-Until is looked at.
    pub check_valid_until: bool,
    /// The Origin that its Release file must name. Set for sources found in apt's configuration, where another
    /// publisher may use the same suite name.
    pub origin: Option<String>,
    /// Where it was configured, for messages.
    pub place: String,
}

/// The archives to use, in order: on equal versions the first wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// Codename of the Debian release.
    pub suite: String,
    /// Architecture.
    pub arch: String,
    /// Components.
    pub components: Vec<String>,
    /// The archives.
    pub archives: Vec<Archive>,
    /// How they are reached.
    pub proxies: Proxies,
}

impl Sources {
    /// Finds the sources from the host's apt configuration, the environment and the definition, in rising order.
    ///
    /// # Errors
    /// No mirror is known, or a setting cannot be used; the text says how to give it.
    pub fn discover(overrides: &Overrides) -> Result<Self, ArchiveError> {
        Self::from_layers(overrides, &Environment::from_process(), HostApt::read()?.as_ref())
    }

    /// Sources without a mirror: for a build from a lock file whose packages are all in the cache.
    pub fn cache_only(suite: &str, arch: &str) -> Self {
        Self {
            suite: suite.to_owned(),
            arch: arch.to_owned(),
            components: Vec::new(),
            archives: Vec::new(),
            proxies: Proxies::default(),
        }
    }

    /// As `discover`, with the environment and the host's configuration given.
    ///
    /// # Errors
    /// As `discover`.
    pub fn from_layers(
        overrides: &Overrides,
        environment: &Environment,
        host: Option<&HostApt>,
    ) -> Result<Self, ArchiveError> {
        let components = match overrides.components.is_empty() {
            true => vec!["main".to_owned()],
            false => overrides.components.clone(),
        };
        let layers = Layers { overrides, environment, host, components: &components };
        let mut archives = layers.main()?;
        archives.extend(layers.security()?);
        let proxies = layers.proxies();
        for archive in &archives {
            check_url(&archive.base, &archive.place)?;
        }
        Ok(Self {
            suite: overrides.suite.clone(),
            arch: overrides.arch.clone(),
            components,
            archives,
            proxies,
        })
    }
}

struct Layers<'a> {
    overrides: &'a Overrides,
    environment: &'a Environment,
    host: Option<&'a HostApt>,
    components: &'a [String],
}

impl Layers<'_> {
    fn main(&self) -> Result<Vec<Archive>, ArchiveError> {
        let suite = &self.overrides.suite;
        let given = match (&self.overrides.mirror, &self.environment.mirror) {
            (Some(mirror), _) => Some((mirror, "`mirror` in the image definition")),
            (None, Some(mirror)) => Some((mirror, "DYAD_MIRROR")),
            (None, None) => None,
        };
        let rolling = ["sid", "unstable", "testing", "experimental"].contains(&suite.as_str());
        let default_suites = || match rolling {
            true => vec![suite.clone()],
            false => vec![suite.clone(), format!("{suite}-updates")],
        };
        if let Some((mirror, place)) = given {
            let suites = self.overrides.suites.clone().unwrap_or_else(default_suites);
            return Ok(suites.into_iter().map(|suite| self.given(mirror, suite, place)).collect());
        }
        let mut archives = Vec::new();
        for wanted in self.overrides.suites.clone().unwrap_or_else(default_suites) {
            archives.extend(self.configured(&wanted)?);
        }
        match archives.iter().any(|archive| archive.suite == *suite) {
            true => Ok(archives),
            false => Err(ArchiveError::NoMirror { suite: suite.clone() }),
        }
    }

    fn security(&self) -> Result<Option<Archive>, ArchiveError> {
        let suite = format!("{}-security", self.overrides.suite);
        let given = match (&self.overrides.security_mirror, &self.environment.security_mirror) {
            (Some(mirror), _) => Some((mirror, "`security_mirror` in the image definition")),
            (None, Some(mirror)) => Some((mirror, "DYAD_SECURITY_MIRROR")),
            (None, None) => None,
        };
        match given {
            Some((mirror, _)) if mirror == "none" => Ok(None),
            Some((mirror, place)) => Ok(Some(self.given(mirror, suite, place))),
            None => self.configured(&suite),
        }
    }

    fn keyring(&self) -> Option<Keyring> {
        self.overrides.keyring.as_ref().or(self.environment.keyring.as_ref()).map(Keyring::file)
    }

    fn given(&self, mirror: &str, suite: String, place: &str) -> Archive {
        // Without a keyring of its own the mirror is held to be one of the archive that the host's apt trusts.
        let host = || {
            self.host_entry(&self.overrides.suite).ok().flatten().and_then(|entry| self.host_keyring(&entry))
        };
        let keyring = self.keyring().or_else(host);
        Archive {
            base: mirror.trim_end_matches('/').to_owned(),
            suite,
            keyring,
            check_valid_until: self.host.is_none_or(|host| host.check_valid_until),
            origin: None,
            place: place.to_owned(),
        }
    }

    fn configured(&self, suite: &str) -> Result<Option<Archive>, ArchiveError> {
        let (Some(host), Some(entry)) = (self.host, self.host_entry(suite)?) else {
            return Ok(None);
        };
        let keyring = self.keyring().or_else(|| self.host_keyring(&entry));
        Ok(Some(Archive {
            keyring,
            check_valid_until: entry.check_valid_until.unwrap_or(host.check_valid_until),
            base: entry.uri,
            suite: entry.suite,
            origin: Some("Debian".to_owned()),
            place: entry.place,
        }))
    }

    fn host_keyring(&self, entry: &Entry) -> Option<Keyring> {
        let trusted = self.host.map(|host| host.trusted.clone()).unwrap_or_default();
        match &entry.signed_by {
            Some(keyring) if keyring.files.is_empty() && keyring.inline.is_none() => {
                Some(Keyring { files: trusted, ..keyring.clone() })
            }
            Some(keyring) => Some(keyring.clone()),
            None => (!trusted.is_empty()).then(|| Keyring { files: trusted, ..Keyring::default() }),
        }
    }

    /// The host's source for a suite. Other publishers use Debian's suite names too; where several sources match, the
    /// Release files that apt has fetched tell which one is Debian's.
    fn host_entry(&self, suite: &str) -> Result<Option<Entry>, ArchiveError> {
        let arch = &self.overrides.arch;
        let fits = |entry: &&Entry| {
            entry.suite == suite
                && (entry.architectures.is_empty() || entry.architectures.contains(arch))
                && self.components.iter().all(|wanted| entry.components.contains(wanted))
        };
        let entries: Vec<_> = self.host.iter().flat_map(|host| &host.entries).filter(fits).collect();
        if entries.len() < 2 {
            return Ok(entries.first().map(|entry| (*entry).clone()));
        }
        let known = debian_targets()?;
        let is_debian =
            |entry: &&&Entry| known.iter().any(|(site, name)| *site == entry.uri && *name == entry.suite);
        let signed_by_debian = |entry: &&&Entry| {
            let files = entry.signed_by.iter().flat_map(|keyring| &keyring.files);
            files.into_iter().any(|file| file.to_string_lossy().contains("debian-archive"))
        };
        let best = entries.iter().find(is_debian).or_else(|| entries.iter().find(signed_by_debian));
        Ok(best.or(entries.first()).map(|entry| (*entry).clone()))
    }

    fn proxies(&self) -> Proxies {
        let host = |get: fn(&HostApt) -> &Option<String>| self.host.and_then(|host| get(host).clone());
        let mut direct: Vec<String> = self.host.map(|host| host.direct.clone()).unwrap_or_default();
        let no_proxy = self.environment.no_proxy.as_deref().unwrap_or_default();
        direct.extend(no_proxy.split([',', ' ']).filter(|host| !host.is_empty()).map(str::to_owned));
        match self.overrides.proxy.as_deref() {
            Some("none") => Proxies::default(),
            Some(proxy) => Proxies { http: Some(proxy.to_owned()), https: Some(proxy.to_owned()), direct },
            None => Proxies {
                http: self.environment.http_proxy.clone().or_else(|| host(|host| &host.http_proxy)),
                https: self.environment.https_proxy.clone().or_else(|| host(|host| &host.https_proxy)),
                direct,
            },
        }
    }
}

fn check_url(url: &str, place: &str) -> Result<(), ArchiveError> {
    let wrong = |problem: &str| {
        let problem = format!("{problem}; expected http://HOST/PATH or https://HOST/PATH");
        Err(ArchiveError::Setting { setting: place.to_owned(), value: url.to_owned(), problem })
    };
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    match rest {
        None => wrong("is not an http or https URL"),
        Some(rest) if rest.split('/').next().is_none_or(str::is_empty) => wrong("names no host"),
        Some(rest) if !rest.bytes().all(|c| c.is_ascii_graphic() && !b"?#\\\"".contains(&c)) => {
            wrong("has a character that a mirror's address must not have")
        }
        Some(_) => Ok(()),
    }
}
