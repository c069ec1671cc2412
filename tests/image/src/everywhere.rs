//! Places, users and settings that a build could see and must not show.

use std::path::PathBuf;

use crate::{Installed, Surroundings};

const THREADS: [&str; 3] = ["1", "2", "8"];
const ZONES: [&str; 4] = ["UTC", "Asia/Tokyo", "America/New_York", "Pacific/Chatham"];
const LOCALES: [&str; 4] = ["C", "tr_TR.UTF-8", "de_DE.UTF-8", "POSIX"];
/// Runs its arguments with a umask, a host name and a clock; a clock of `0` is the host's.
const SCRIPT: &str = "umask \"$1\"; hostname \"$2\"; clock=$3; shift 3; \
    if [ \"$clock\" = 0 ]; then exec \"$@\"; else exec faketime -f \"$clock\" \"$@\"; fi";

/// A build somewhere.
#[derive(Debug)]
pub struct Place {
    /// What is different there, in a line.
    pub name: String,
    /// Settings.
    pub around: Surroundings,
    /// Where the outputs go.
    pub out: PathBuf,
}

/// `count` places: two users, three source directories, disk and memory, threads, umask, time zone, locale, clock, host
/// name; every fifth without anything that an earlier build remembers.
pub fn places(installed: &Installed, count: usize) -> Vec<Place> {
    let elsewhere = [installed.path("another/directory, with a longer name"), installed.path("b")];
    for directory in &elsewhere {
        if !directory.exists() {
            installed.sources(directory);
        }
    }
    let directories = [installed.path("src"), elsewhere[0].clone(), elsewhere[1].clone()];
    (0..count).map(|number| place(installed, &directories, number)).collect()
}

fn place(installed: &Installed, directories: &[PathBuf; 3], number: usize) -> Place {
    // Steps that share no factor with the lengths of the lists give every pair of settings.
    let pick = |list: &[&'static str], step: usize| list[number * step % list.len()];
    let user: &[&'static str] =
        if number % 2 == 0 { &["--map-root-user"] } else { &["--map-user=4321", "--map-group=4321"] };
    let (umask, host, clock) = (
        pick(&["022", "077", "000", "027", "002"], 1),
        pick(&["here", "elsewhere", "a-rather-long-host-name", "x"], 3),
        pick(&["0", "+1500d", "-400d", "+1h", "0", "-1s", "+9000d"], 1),
    );
    // The outer namespace may set the host name; the inner one is the user.
    let mut wrapper =
        vec!["unshare", "--map-root-user", "--uts", "sh", "-c", SCRIPT, "sh", umask, host, clock];
    wrapper.extend(["unshare", "--user"]);
    wrapper.extend(user);
    let memory = number % 4 >= 2;
    let (threads, zone, locale) = (pick(&THREADS, 1), pick(&ZONES, 1), pick(&LOCALES, 3));
    let mut env =
        vec![("RAYON_NUM_THREADS", threads), ("TZ", zone), ("LC_ALL", locale), ("SOURCE_DATE_EPOCH", "1")];
    if memory {
        env.push(("TMPDIR", "/dev/shm"));
    }
    if number % 3 == 1 {
        env.extend([("HOME", "/nonexistent"), ("USER", "somebody")]);
    }
    let cold = number % 5 == 4;
    let name = format!("{number}: {user:?} umask {umask} host {host} clock {clock} {env:?} cold {cold}");
    let directory = Some(directories[number % 3].clone());
    let out = match memory {
        true => PathBuf::from(format!("/dev/shm/dyad-test-{}-{number}", std::process::id())),
        false => installed.path(&format!("out {number}")),
    };
    Place { name, around: Surroundings { wrapper, env, directory, cold }, out }
}
