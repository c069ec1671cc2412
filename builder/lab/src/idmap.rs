//! Which users of the host are the users of a container: a container has many, and the kernel gives an ordinary user one.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::{AccessFlags, User, access, getegid, geteuid};

use crate::cgroup;
use crate::error::{AtPath, LabError, Result, refuse};
use crate::process::{Program, on_host};

/// Users 0 to 65534 and the one that stands for all others.
const USERS: u32 = 65_536;
/// How long newuidmap may take.
const MAP_WAIT: Duration = Duration::from_secs(10);

/// What a lab of containers may use of the host.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    map: Map,
    /// Where its control groups are made.
    pub(crate) cgroups: PathBuf,
}

#[derive(Debug, Clone)]
enum Map {
    /// The same numbers: the caller has them all.
    Same,
    /// The caller is root in there; the other users come from his subordinate ranges (first number each).
    Subordinate { users: u32, groups: u32, tools: [PathBuf; 2] },
}

impl Grant {
    /// Finds out, or says everything that is missing.
    pub(crate) fn find() -> Result<Self> {
        let uid = geteuid();
        let name = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
        let root = uid.is_root() && has_all_users();
        let mut missing = Vec::new();
        let map = if root { Some(Map::Same) } else { subordinate(&name, uid.as_raw(), &mut missing) };
        let cgroups = match cgroup::place(root)? {
            Some(place) if access(&place.join("cgroup.procs"), AccessFlags::W_OK).is_ok() => Some(place),
            Some(place) => {
                missing.push(format!(
                    "a delegated cgroup2 subtree: {} is not {name}'s to write (start the lab with \
                     `systemd-run --user --scope -p Delegate=yes`)",
                    place.display()
                ));
                None
            }
            None => {
                missing.push("cgroup2: it is mounted nowhere (`mount -t cgroup2 cgroup2 DIR`)".into());
                None
            }
        };
        match (map, cgroups) {
            (Some(map), Some(cgroups)) => Ok(Grant { map, cgroups }),
            _ => refuse(format!(
                "the container backend needs root, or a range of users and a delegated cgroup2 subtree. Missing for \
                 {name}: {}. `--backend vm` needs none of it",
                missing.join("; ")
            )),
        }
    }

    /// Maps the users of a process that has just made its user namespace.
    pub(crate) fn apply(&self, pid: u32) -> Result<()> {
        match &self.map {
            Map::Same => ["uid_map", "gid_map"].iter().try_for_each(|file| {
                let path = PathBuf::from(format!("/proc/{pid}/{file}"));
                fs::write(&path, format!("0 0 {USERS}")).at("write", &path)
            }),
            Map::Subordinate { users, groups, tools } => {
                let own = [(geteuid().as_raw(), users), (getegid().as_raw(), groups)];
                own.iter().zip(tools).try_for_each(|((own, first), tool)| {
                    let rest = (USERS - 1).to_string();
                    let words =
                        [&pid.to_string(), "0", &own.to_string(), "1", "1", &first.to_string(), &rest];
                    Program::host(tool.clone()).output(&words, &[], MAP_WAIT).map(drop)
                })
            }
        }
    }
}

/// Whether root here has the numbers 0 to 65535: in a user namespace of one user it has not.
fn has_all_users() -> bool {
    let whole = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().any(|line| {
            let fields: Vec<u64> = line.split_whitespace().filter_map(|f| f.parse().ok()).collect();
            matches!(fields[..], [0, _, count] if count >= u64::from(USERS))
        })
    };
    whole("/proc/self/uid_map") && whole("/proc/self/gid_map")
}

fn subordinate(name: &str, uid: u32, missing: &mut Vec<String>) -> Option<Map> {
    let mut range = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let first = first_range(&text, name, uid);
        if first.is_none() {
            missing
                .push(format!("a range of {USERS} numbers in {file} (a line like `{name}:100000:{USERS}`)"));
        }
        first
    };
    let (users, groups) = (range("/etc/subuid"), range("/etc/subgid"));
    let tools = ["newuidmap", "newgidmap"].map(on_host);
    let [Some(for_users), Some(for_groups)] = tools else {
        missing.push("the programs newuidmap and newgidmap (Debian package uidmap)".into());
        return None;
    };
    Some(Map::Subordinate { users: users?, groups: groups?, tools: [for_users, for_groups] })
}

/// The first number of the first range of a user that is long enough. A line: name or number, first, count.
fn first_range(table: &str, name: &str, uid: u32) -> Option<u32> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [who, first, count] = fields[..] else { return None };
        let own = who == name || who.parse() == Ok(uid);
        let enough = count.parse::<u32>().is_ok_and(|count| count >= USERS - 1);
        first.parse().ok().filter(|_| own && enough)
    })
}

/// What the daemon says when its users are to be mapped.
pub(crate) const MAP_ME: &str = "map";
/// What it hears when that is done.
pub(crate) const MAPPED: &str = "mapped";

/// A user namespace could not be made.
pub(crate) fn no_user_namespace(error: nix::errno::Errno) -> LabError {
    LabError::Refused(format!(
        "this host does not let user {} make a user namespace ({error}); allow it with \
         `sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000` and, where AppArmor restricts \
         it, `sysctl kernel.apparmor_restrict_unprivileged_userns=0`",
        geteuid()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_number() {
        let table = "other:1:65536\nme:100000:10\nme:200000:65536\n1000:300000:65535\nme:x:y\n";
        assert_eq!(first_range(table, "me", 7), Some(200_000));
        assert_eq!(first_range(table, "nobody", 1000), Some(300_000));
        assert_eq!(first_range(table, "nobody", 7), None);
    }
}
