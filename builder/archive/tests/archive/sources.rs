//! Which archives are chosen, from apt's configuration, the environment and the definition, in rising order.

use std::path::PathBuf;

use dyad_archive::{Entry, Environment, HostApt, Keyring, Overrides, Sources};

fn entry(uri: &str, suite: &str, components: &str) -> Entry {
    Entry {
        place: format!("test.sources:{uri}"),
        uri: uri.to_owned(),
        suite: suite.to_owned(),
        components: components.split(' ').map(str::to_owned).collect(),
        architectures: Vec::new(),
        signed_by: Some(Keyring::file("/usr/share/keyrings/debian-archive-keyring.gpg")),
        check_valid_until: None,
    }
}

fn host() -> HostApt {
    HostApt {
        entries: vec![
            entry("http://other/apt", "bookworm", "stable"),
            Entry {
                architectures: vec!["arm64".to_owned()],
                ..entry("http://arm/debian", "bookworm", "main")
            },
            entry("http://host/debian", "bookworm", "main contrib"),
            entry("http://host/debian", "bookworm-updates", "main"),
            entry("http://host/debian-security", "bookworm-security", "main"),
            entry("http://host/debian", "trixie", "main"),
        ],
        http_proxy: Some("http://hostproxy:1".to_owned()),
        check_valid_until: true,
        ..HostApt::default()
    }
}

fn overrides() -> Overrides {
    Overrides { suite: "bookworm".to_owned(), arch: "amd64".to_owned(), ..Overrides::default() }
}

fn told(sources: &Sources) -> Vec<String> {
    sources.archives.iter().map(|archive| format!("{} {}", archive.base, archive.suite)).collect()
}

#[test]
fn the_host_says_where_debian_is() {
    let sources = Sources::from_layers(&overrides(), &Environment::default(), Some(&host())).unwrap();
    assert_eq!(
        told(&sources),
        [
            "http://host/debian bookworm",
            "http://host/debian bookworm-updates",
            "http://host/debian-security bookworm-security"
        ]
    );
    assert!(sources.archives.iter().all(|archive| archive.origin.as_deref() == Some("Debian")));
    assert_eq!(sources.proxies.http.as_deref(), Some("http://hostproxy:1"));
    let contrib = Overrides { components: vec!["main".to_owned(), "contrib".to_owned()], ..overrides() };
    let sources = Sources::from_layers(&contrib, &Environment::default(), Some(&host())).unwrap();
    assert_eq!(told(&sources), ["http://host/debian bookworm"], "the other suites offer no contrib there");
}

#[test]
fn the_environment_and_then_the_definition_win() {
    let environment = Environment {
        mirror: Some("http://env/debian/".to_owned()),
        keyring: Some(PathBuf::from("/env.gpg")),
        http_proxy: Some("http://envproxy:1".to_owned()),
        no_proxy: Some("localhost,.lan".to_owned()),
        ..Environment::default()
    };
    let sources = Sources::from_layers(&overrides(), &environment, Some(&host())).unwrap();
    assert_eq!(
        told(&sources),
        [
            "http://env/debian bookworm",
            "http://env/debian bookworm-updates",
            "http://host/debian-security bookworm-security"
        ]
    );
    assert!(sources.archives.iter().all(|archive| archive.keyring == Some(Keyring::file("/env.gpg"))));
    assert_eq!(sources.proxies.http.as_deref(), Some("http://envproxy:1"));
    assert_eq!(sources.proxies.direct, ["localhost", ".lan"]);
    let definition = Overrides {
        mirror: Some("http://definition/debian".to_owned()),
        security_mirror: Some("none".to_owned()),
        keyring: Some(PathBuf::from("/definition.gpg")),
        proxy: Some("none".to_owned()),
        ..overrides()
    };
    let sources = Sources::from_layers(&definition, &environment, Some(&host())).unwrap();
    assert_eq!(
        told(&sources),
        ["http://definition/debian bookworm", "http://definition/debian bookworm-updates"]
    );
    assert_eq!(sources.archives[0].keyring, Some(Keyring::file("/definition.gpg")));
    assert_eq!(sources.proxies.http, None);
    let security = Overrides { security_mirror: Some("http://sec/debian-security".to_owned()), ..definition };
    let sources = Sources::from_layers(&security, &environment, None).unwrap();
    assert_eq!(told(&sources)[2], "http://sec/debian-security bookworm-security");
}

#[test]
fn keyrings_of_the_host() {
    let mut host = host();
    host.trusted = vec![PathBuf::from("/trusted.gpg")];
    host.entries[2].signed_by = None;
    host.entries[3].signed_by = Some(Keyring { fingerprints: vec!["AB".to_owned()], ..Keyring::default() });
    host.entries[4].check_valid_until = Some(false);
    let sources = Sources::from_layers(&overrides(), &Environment::default(), Some(&host)).unwrap();
    assert_eq!(sources.archives[0].keyring, Some(Keyring::file("/trusted.gpg")));
    let pinned = Keyring { fingerprints: vec!["AB".to_owned()], ..Keyring::file("/trusted.gpg") };
    assert_eq!(sources.archives[1].keyring, Some(pinned));
    let checked: Vec<_> = sources.archives.iter().map(|archive| archive.check_valid_until).collect();
    assert_eq!(checked, [true, true, false]);
    // A mirror from the environment is verified with what the host's apt trusts for Debian.
    let environment = Environment { mirror: Some("http://env/debian".to_owned()), ..Environment::default() };
    let sources = Sources::from_layers(&overrides(), &environment, Some(&host)).unwrap();
    assert_eq!(sources.archives[0].keyring, Some(Keyring::file("/trusted.gpg")));
}

#[test]
fn a_host_without_debian_must_be_told() {
    for host in [None, Some(HostApt::default())] {
        let error = Sources::from_layers(&overrides(), &Environment::default(), host.as_ref())
            .unwrap_err()
            .to_string();
        assert!(error.contains("no mirror for Debian bookworm is known"), "{error}");
        assert!(error.contains("DYAD_MIRROR=URL and DYAD_KEYRING=FILE"), "{error}");
    }
}
