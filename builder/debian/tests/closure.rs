//! The closure's rules, one small archive each.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use dyad_debian::{Lock, Origin, Request, Resolution, ResolveError, Universe, resolve};

/// `name version | field: value | ...`, one package a line.
fn universe(suites: &[(&str, &[&str])]) -> Universe {
    let mut universe = Universe::new("amd64");
    for (suite, packages) in suites {
        let mut text = String::new();
        for package in *packages {
            let mut parts = package.split(" ; ");
            let (name, version) = parts.next().unwrap().split_once(' ').unwrap();
            text += &format!(
                "Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/{name}_{version}.deb\nSize: 1\nSHA256: {}\n",
                "00".repeat(32)
            );
            parts.for_each(|field| text += &format!("{field}\n"));
            text.push('\n');
        }
        let origin = Origin { suite: suite.to_string(), component: "main".to_owned() };
        universe.add(origin, text.into_bytes()).unwrap();
    }
    universe
}

fn ask(universe: &Universe, names: &[&str]) -> Result<Resolution, ResolveError> {
    let packages = names.iter().map(|name| name.parse().unwrap()).collect();
    resolve(universe, &Request { packages, ..Request::default() })
}

fn names(resolution: &Resolution) -> Vec<String> {
    resolution.packages.iter().map(|p| format!("{} {}", p.name, p.version)).collect()
}

fn one(packages: &[&str]) -> Universe {
    universe(&[("bookworm", packages)])
}

#[test]
fn the_highest_version_of_all_suites_and_why_it_is_there() {
    let u = universe(&[
        (
            "bookworm",
            &["a 1 ; Depends: b (>= 2)", "b 1", "c 1 ; Recommends: z", "essential 1 ; Essential: yes"],
        ),
        ("bookworm-security", &["b 2 ; Pre-Depends: c"]),
    ]);
    let result = ask(&u, &["a"]).unwrap();
    assert_eq!(names(&result), ["a 1", "b 2", "c 1"]);
    assert_eq!(result.get("b").unwrap().suite, "bookworm-security");
    assert_eq!(result.why("c"), ["a was asked for", "a depends on b (>= 2)", "b pre-depends on c"]);
    assert_eq!(result.why("nothing"), [""; 0]);
    let packages = vec!["a".parse().unwrap()];
    let result = resolve(&u, &Request { packages, essential: true, ..Request::default() }).unwrap();
    assert_eq!(names(&result), ["a 1", "b 2", "c 1", "essential 1"]);
    assert_eq!(result.why("essential"), ["essential is essential"]);
}

#[test]
fn alternatives_and_provides() {
    let u = one(&[
        "a 1 ; Depends: gone | b | c",
        "b 1",
        "c 1",
        "d 1 ; Depends: mta",
        "exim 1 ; Provides: mta ; Priority: extra",
        "postfix 1 ; Provides: mta ; Priority: optional",
        "v 1 ; Depends: api (>= 2)",
        "old 1 ; Provides: api",
        "new 1 ; Provides: api (= 2.1)",
        "q 1 ; Depends: x:any, b:amd64",
        "x 1 ; Multi-Arch: allowed",
        "y 1 ; Depends: b:i386",
        "self 1 ; Depends: me ; Provides: me",
        "arch 1 ; Depends: gone [i386], b [linux-any]",
    ]);
    assert_eq!(names(&ask(&u, &["a"]).unwrap()), ["a 1", "b 1"]);
    // What was asked for satisfies a later alternative, so no other is taken.
    assert_eq!(names(&ask(&u, &["a", "c"]).unwrap()), ["a 1", "c 1"]);
    assert_eq!(names(&ask(&u, &["d"]).unwrap()), ["d 1", "postfix 1"]);
    assert_eq!(
        ask(&u, &["d"]).unwrap().why("postfix"),
        ["d was asked for", "d depends on mta (provided by postfix)"]
    );
    assert_eq!(names(&ask(&u, &["d", "exim"]).unwrap()), ["d 1", "exim 1"]);
    assert_eq!(names(&ask(&u, &["v"]).unwrap()), ["new 1", "v 1"]);
    assert_eq!(names(&ask(&u, &["q"]).unwrap()), ["b 1", "q 1", "x 1"]);
    assert_eq!(names(&ask(&u, &["self"]).unwrap()), ["self 1"]);
    assert_eq!(names(&ask(&u, &["arch"]).unwrap()), ["arch 1", "b 1"]);
    assert!(ask(&u, &["y"]).unwrap_err().to_string().contains("y 1 depends on b:i386"));
    assert_eq!(
        ask(&u, &["mta"]).unwrap_err().to_string(),
        "\"mta\" is a virtual package; name one of the packages that provide it: exim, postfix"
    );
    assert_eq!(names(&ask(&u, &["me"]).unwrap()), ["self 1"]);
}

#[test]
fn conflicts_are_backed_out_of() {
    let u = one(&[
        "a 1 ; Depends: b | c, d",
        "b 1 ; Conflicts: d",
        "c 1",
        "d 1",
        "e 1 ; Breaks: d (<< 2)",
        "f 1 ; Breaks: d (<< 1)",
        "g 1 ; Conflicts: mta ; Provides: mta",
        "h 1 ; Provides: mta",
    ]);
    assert_eq!(names(&ask(&u, &["a"]).unwrap()), ["a 1", "c 1", "d 1"]);
    assert_eq!(names(&ask(&u, &["d", "f", "g"]).unwrap()), ["d 1", "f 1", "g 1"]);
    let error = ask(&u, &["a", "e"]).unwrap_err().to_string();
    assert!(error.contains("e 1 breaks d (<< 2), and d 1 is needed too:"), "{error}");
    assert!(
        error.contains("a 1 was asked for, a 1 depends on d") && error.contains("e 1 was asked for"),
        "{error}"
    );
    let error = ask(&u, &["g", "h"]).unwrap_err().to_string();
    assert!(error.contains("g 1 conflicts with mta, and h 1 is needed too:"), "{error}");
}

#[test]
fn what_cannot_be_had_is_told_with_the_chain() {
    let u = one(&[
        "a 1 ; Depends: b",
        "b 1 ; Depends: c (>= 3) | nothing",
        "c 2",
        "postgresql-15 15",
        "ring 1 ; Depends: rong",
        "rong 1 ; Depends: ring, gone",
    ]);
    assert_eq!(
        ask(&u, &["a"]).unwrap_err().to_string(),
        "a 1 was asked for, a 1 depends on b, b 1 depends on c (>= 3) | nothing, but c is there in version 2 and no package is named nothing or provides what is wanted of it"
    );
    assert!(
        ask(&u, &["ring"])
            .unwrap_err()
            .to_string()
            .contains("rong 1 depends on gone, but no package is named gone")
    );
    let error = ask(&u, &["postgresl-15"]).unwrap_err().to_string();
    assert_eq!(error, "package \"postgresl-15\" is not in bookworm; similar names: postgresql-15");
    assert_eq!(ask(&u, &["c=9"]).unwrap_err().to_string(), "package \"c\" has no version 9; available: 2");
}

#[test]
fn a_version_asked_for_is_the_one_taken() {
    let u = universe(&[("bookworm", &["a 1", "b 1 ; Depends: a"]), ("bookworm-updates", &["a 2"])]);
    assert_eq!(names(&ask(&u, &["b"]).unwrap()), ["a 2", "b 1"]);
    assert_eq!(names(&ask(&u, &["b", "a=1"]).unwrap()), ["a 1", "b 1"]);
    assert!(
        "Bad_Name".parse::<dyad_debian::Wanted>().is_err() && "a=x".parse::<dyad_debian::Wanted>().is_err()
    );
}

#[test]
fn a_search_without_end_is_cut_off() {
    // Every choice looks fine until the last package excludes all of them.
    let mut lines = vec!["last 1 ; Conflicts: bad".to_owned()];
    let all: Vec<_> = (0..40).map(|n| format!("v{n}")).collect();
    lines.push(format!("root 1 ; Depends: {}, last", all.join(", ")));
    for name in &all {
        lines.push(format!("{name}a 1 ; Provides: {name}, bad"));
        lines.push(format!("{name}b 1 ; Provides: {name}, bad"));
    }
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    let error = ask(&one(&lines), &["root"]).unwrap_err();
    assert!(matches!(error, ResolveError::TooHard { .. } | ResolveError::Conflict { .. }), "{error}");
    assert!(error.to_string().contains("last 1 conflicts with bad"), "{error}");
}

#[test]
fn lock_files_round_trip_and_refuse_damage() {
    let u = one(&["a 1:1.0~rc1+b-2 ; Depends: b", "b 1"]);
    let packages = ask(&u, &["a"]).unwrap().packages.iter().rev().map(|p| p.to_locked()).collect();
    let lock = Lock::new("bookworm", "amd64", vec!["a".to_owned()], packages);
    let text = lock.to_toml();
    assert_eq!(Lock::parse(&text).unwrap(), lock);
    assert_eq!(Lock::parse(&text).unwrap().to_toml(), text);
    let cases = [
        ("format = 1", "format = 2", "format 2 is not known"),
        ("name = \"b\"", "name = \"a\"", "not sorted by name"),
        ("pool/", "../", "not a path below"),
        ("size = 1", "size = -1", "not a lock file"),
        ("suite", "siute", "not a lock file"),
        ("sha256 = \"00", "sha256 = \"0", "not a SHA-256 digest"),
    ];
    for (good, bad, expected) in cases {
        let error = Lock::parse(&text.replace(good, bad)).unwrap_err().to_string();
        assert!(error.contains(expected), "{bad}: {error}");
    }
}
