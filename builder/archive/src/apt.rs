//! The host's apt configuration: which mirrors it uses, how they are signed, which proxy reaches them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dyad_debian::control;

use crate::error::ArchiveError;
use crate::gpgv::Keyring;
use crate::process::{self, Command};

/// What apt on this machine is configured to do, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostApt {
    /// Enabled binary package sources, in apt's order.
    pub entries: Vec<Entry>,
    /// `Acquire::http::Proxy`
    pub http_proxy: Option<String>,
    /// `Acquire::https::Proxy`
    pub https_proxy: Option<String>,
    /// Hosts with a proxy of `DIRECT`.
    pub direct: Vec<String>,
    /// `Acquire::Check-Valid-Until`, which is on if not set.
    pub check_valid_until: bool,
    /// Keyrings for sources without Signed-By.
    pub trusted: Vec<PathBuf>,
}

/// One source: a suite at a URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is configured (file and line), for messages.
    pub place: String,
    /// Base of the archive, without the slash at its end.
    pub uri: String,
    /// Suite as written.
    pub suite: String,
    /// Components.
    pub components: Vec<String>,
    /// Architectures it is limited to; empty means all.
    pub architectures: Vec<String>,
    /// `Signed-By`, `None` when not given.
    pub signed_by: Option<Keyring>,
    /// `Check-Valid-Until`, `None` when not given.
    pub check_valid_until: Option<bool>,
}

impl HostApt {
    /// Reads the configuration; `None` on a machine without apt.
    ///
    /// # Errors
    /// apt fails or a source file cannot be read.
    pub fn read() -> Result<Option<Self>, ArchiveError> {
        let Ok(apt_config) = process::find("apt-config") else {
            return Ok(None);
        };
        let dump = Command::new(apt_config).arg("dump").run_checked()?.stdout;
        let settings = parse_dump(&String::from_utf8_lossy(&dump));
        let mut host = Self::from_settings(&settings);
        let etc = directory(&settings, "Dir::Etc", Path::new("/"));
        let list = directory(&settings, "Dir::Etc::sourcelist", &etc);
        let parts = files_in(&directory(&settings, "Dir::Etc::sourceparts", &etc), &["list", "sources"]);
        for path in std::iter::once(list).chain(parts) {
            let text = match std::fs::read(&path) {
                Ok(text) => text,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(ArchiveError::io("read", path)(e)),
            };
            let entries = match path.extension().is_some_and(|e| e == "sources") {
                true => parse_sources(&text, &path.display().to_string()),
                false => parse_list(&String::from_utf8_lossy(&text), &path.display().to_string()),
            };
            host.entries.extend(entries);
        }
        host.trusted = vec![directory(&settings, "Dir::Etc::trusted", &etc)];
        host.trusted.retain(|path| path.is_file());
        host.trusted.extend(files_in(&directory(&settings, "Dir::Etc::trustedparts", &etc), &["gpg", "asc"]));
        Ok(Some(host))
    }

    fn from_settings(settings: &BTreeMap<String, String>) -> Self {
        let proxy = |scheme: &str| {
            let value = settings.get(&format!("Acquire::{scheme}::Proxy"))?;
            (!value.is_empty() && !is_direct(value)).then(|| value.clone())
        };
        let per_host = settings.iter().filter(|(_, value)| is_direct(value)).filter_map(|(key, _)| {
            let host = key
                .strip_prefix("Acquire::http::Proxy::")
                .or_else(|| key.strip_prefix("Acquire::https::Proxy::"))?;
            Some(host.to_owned())
        });
        Self {
            entries: Vec::new(),
            http_proxy: proxy("http"),
            https_proxy: proxy("https"),
            direct: per_host.collect(),
            check_valid_until: settings.get("Acquire::Check-Valid-Until").is_none_or(|value| is_yes(value)),
            trusted: Vec::new(),
        }
    }
}

fn is_direct(value: &str) -> bool {
    value.eq_ignore_ascii_case("direct") || value.eq_ignore_ascii_case("false")
}

/// What apt takes for no: everything else is yes.
fn is_yes(value: &str) -> bool {
    !["no", "false", "without", "off", "disable", "0"].iter().any(|no| value.eq_ignore_ascii_case(no))
}

/// `Key "value";` lines of `apt-config dump`. List items (`Key::`) are left out.
fn parse_dump(text: &str) -> BTreeMap<String, String> {
    let setting = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        let value = value.trim().strip_prefix('"')?.strip_suffix("\";")?;
        (!key.ends_with("::")).then(|| (key.to_owned(), value.to_owned()))
    };
    text.lines().filter_map(setting).collect()
}

fn directory(settings: &BTreeMap<String, String>, key: &str, base: &Path) -> PathBuf {
    let value = settings.get(key).map(String::as_str).unwrap_or_default();
    match (key, settings.get("Dir")) {
        ("Dir::Etc", Some(root)) => Path::new(root).join(value),
        _ => base.join(value),
    }
}

/// Files with one of these extensions, by name. A directory that is not there has none.
fn files_in(directory: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let wanted = |path: &PathBuf| {
        path.is_file() && path.extension().is_some_and(|e| extensions.iter().any(|wanted| e == *wanted))
    };
    let entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let mut files: Vec<_> = entries.map(|entry| entry.path()).filter(wanted).collect();
    files.sort();
    files
}

/// A deb822 source file. Like apt, a stanza that cannot be read is left out: it is not for us to repair.
fn parse_sources(text: &[u8], file: &str) -> Vec<Entry> {
    let stanzas = control::stanzas(text).map_while(Result::ok);
    stanzas.flat_map(|stanza| parse_stanza(&stanza, file).unwrap_or_default()).collect()
}

fn parse_stanza(stanza: &control::Stanza<'_>, file: &str) -> Option<Vec<Entry>> {
    let field = |name: &str| stanza.get(name).ok().flatten();
    let words = |name: &str| {
        field(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    if field("Enabled").is_some_and(|value| !is_yes(value)) || !words("Types").iter().any(|t| t == "deb") {
        return Some(Vec::new());
    }
    let place = format!("{file}:{}", stanza.line);
    let (components, architectures) = (words("Components"), words("Architectures"));
    let signed_by = field("Signed-By").map(parse_signed_by);
    let check_valid_until = field("Check-Valid-Until").map(is_yes);
    let suites = words("Suites");
    let entry = |uri: &String, suite: &String| Entry {
        place: place.clone(),
        uri: uri.trim_end_matches('/').to_owned(),
        suite: suite.clone(),
        components: components.clone(),
        architectures: architectures.clone(),
        signed_by: signed_by.clone(),
        check_valid_until,
    };
    Some(words("URIs").iter().flat_map(|uri| suites.iter().map(move |suite| entry(uri, suite))).collect())
}

/// Paths and fingerprints, or a whole key block.
fn parse_signed_by(value: &str) -> Keyring {
    if value.trim_start().starts_with("-----BEGIN") {
        return Keyring { inline: Some(value.to_owned()), ..Keyring::default() };
    }
    let mut keyring = Keyring::default();
    for word in value.split([' ', '\t', '\n', ',']).filter(|word| !word.is_empty()) {
        match word.starts_with('/') {
            true => keyring.files.push(PathBuf::from(word)),
            false => keyring.fingerprints.push(word.trim_end_matches('!').to_ascii_uppercase()),
        }
    }
    keyring
}

/// A one-line-per-source file: `deb [option=value ...] URI SUITE COMPONENT...`
fn parse_list(text: &str, file: &str) -> Vec<Entry> {
    let entry = |(number, line): (usize, &str)| {
        let rest = line.split('#').next()?.trim().strip_prefix("deb")?;
        let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']')?,
            None => ("", rest),
        };
        let option = |name: &str| {
            options
                .split_whitespace()
                .find_map(|option| option.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
        };
        let mut words = rest.split_whitespace().map(str::to_owned);
        Some(Entry {
            place: format!("{file}:{}", number + 1),
            uri: words.next()?.trim_end_matches('/').to_owned(),
            suite: words.next()?,
            components: words.collect(),
            architectures: option("arch")
                .map(|a| a.split(',').map(str::to_owned).collect())
                .unwrap_or_default(),
            signed_by: option("signed-by").map(|value| parse_signed_by(&value)),
            check_valid_until: option("check-valid-until").map(|value| is_yes(&value)),
        })
    };
    text.lines().enumerate().filter_map(entry).collect()
}

/// Which of several sources of one suite apt knows to be Debian's own, by the Release files that it fetched:
/// (URI, suite) pairs. Empty when apt has fetched nothing yet.
pub(crate) fn debian_targets() -> Result<Vec<(String, String)>, ArchiveError> {
    let format = "$(SITE) $(RELEASE) $(ORIGIN)";
    let command = Command::new(process::find("apt-get")?).args(["indextargets", "--format", format]);
    let answer = command.args(["Created-By: Packages"]).run_checked()?.stdout;
    let target = |line: &str| {
        let mut words = line.split(' ');
        let (site, release, origin) = (words.next()?, words.next()?, words.next()?);
        (origin == "Debian").then(|| (site.trim_end_matches('/').to_owned(), release.to_owned()))
    };
    Ok(String::from_utf8_lossy(&answer).lines().filter_map(target).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEB822: &str = "\
# a comment
Types: deb deb-src
URIs: http://one/debian/ http://two/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/a.gpg

Enabled: no
Types: deb
URIs: http://off/debian
Suites: bookworm
Components: main

Types: deb
URIs: https://three/debian-security
Suites: bookworm-security
Components: main
Architectures: amd64 arm64
Check-Valid-Until: no
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 AAAA
 -----END PGP PUBLIC KEY BLOCK-----
";

    #[test]
    fn deb822_sources() {
        let entries = parse_sources(DEB822.as_bytes(), "debian.sources");
        let told: Vec<_> = entries.iter().map(|e| format!("{} {} {}", e.place, e.uri, e.suite)).collect();
        assert_eq!(
            told,
            [
                "debian.sources:1 http://one/debian bookworm",
                "debian.sources:1 http://one/debian bookworm-updates",
                "debian.sources:1 http://two/debian bookworm",
                "debian.sources:1 http://two/debian bookworm-updates",
                "debian.sources:14 https://three/debian-security bookworm-security",
            ]
        );
        assert_eq!(entries[0].signed_by, Some(Keyring::file("/usr/share/keyrings/a.gpg")));
        assert_eq!((entries[0].check_valid_until, entries[4].check_valid_until), (None, Some(false)));
        assert_eq!(entries[4].architectures, ["amd64", "arm64"]);
        assert!(
            entries[4]
                .signed_by
                .as_ref()
                .is_some_and(|k| k.inline.as_ref().is_some_and(|b| b.contains("AAAA")))
        );
    }

    #[test]
    fn one_line_sources() {
        let text = "# deb http://commented/ bookworm main\ndeb http://one/debian/ bookworm main contrib # why\n\
            deb-src http://src/ bookworm main\ndeb [arch=amd64,i386 signed-by=/k.gpg check-valid-until=no] http://two/ bookworm main\n";
        let entries = parse_list(text, "sources.list");
        assert_eq!(entries.len(), 2);
        assert_eq!(
            (entries[0].uri.as_str(), &entries[0].components[..]),
            ("http://one/debian", &["main".to_owned(), "contrib".to_owned()][..])
        );
        assert_eq!((entries[0].place.as_str(), &entries[0].signed_by), ("sources.list:2", &None));
        assert_eq!(entries[1].signed_by, Some(Keyring::file("/k.gpg")));
        assert_eq!((entries[1].check_valid_until, entries[1].architectures.len()), (Some(false), 2));
    }

    #[test]
    fn settings_of_apt_config() {
        let dump = "Acquire \"\";\nAcquire::http::Proxy \"http://proxy:3128\";\nAcquire::https::Proxy \"DIRECT\";\n\
            Acquire::http::Proxy::local.lan \"DIRECT\";\nAcquire::Check-Valid-Until \"false\";\nAcquire::Languages:: \"none\";\n\
            Dir \"/x\";\nDir::Etc \"etc/apt\";\nDir::Etc::sourcelist \"sources.list\";\n";
        let settings = parse_dump(dump);
        let host = HostApt::from_settings(&settings);
        assert_eq!(host.http_proxy.as_deref(), Some("http://proxy:3128"));
        assert_eq!(
            (host.https_proxy, host.direct, host.check_valid_until),
            (None, vec!["local.lan".to_owned()], false)
        );
        let etc = directory(&settings, "Dir::Etc", Path::new("/"));
        assert_eq!(directory(&settings, "Dir::Etc::sourcelist", &etc), Path::new("/x/etc/apt/sources.list"));
        assert!(HostApt::from_settings(&parse_dump("")).check_valid_until);
    }

    proptest! {
        #[test]
        fn no_configuration_panics(text in "([A-Za-z-]{1,9}: ?|deb |[\\[\\]=\" ;\n#.]|[a-z/:]{1,5}){0,40}") {
            let _ = (parse_sources(text.as_bytes(), ""), parse_list(&text, ""), parse_dump(&text));
        }
    }
}
