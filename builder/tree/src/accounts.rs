//! Users and groups: base-passwd's master files plus what overlays ask for, always with fixed numbers.

use std::collections::BTreeSet;
use std::fmt::Write;

use dyad_spec::{compile, image};

use crate::Error;

/// One line of /etc/passwd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// Number, the same in every build.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Comment field.
    pub gecos: String,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// One line of /etc/group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Group name.
    pub name: String,
    /// Number.
    pub gid: u32,
    /// Names of users that have it as a supplementary group.
    pub members: Vec<String>,
}

/// All accounts of an image, in file order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Users.
    pub users: Vec<User>,
    /// Groups.
    pub groups: Vec<Group>,
}

impl Accounts {
    /// Reads base-passwd's `passwd.master` and `group.master`.
    pub fn parse(passwd: &str, group: &str) -> Result<Self, Error> {
        let mut accounts = Accounts::default();
        for (number, line) in passwd.lines().enumerate().filter(|(_, l)| !l.is_empty()) {
            let bad = || Error::Accounts(format!("passwd.master line {}: {line:?}", number + 1));
            let [name, _, uid, gid, gecos, home, shell] = split(line).ok_or_else(bad)?;
            accounts.users.push(User {
                name: name.to_owned(),
                uid: uid.parse().map_err(|_| bad())?,
                gid: gid.parse().map_err(|_| bad())?,
                gecos: gecos.to_owned(),
                home: home.to_owned(),
                shell: shell.to_owned(),
            });
        }
        for (number, line) in group.lines().enumerate().filter(|(_, l)| !l.is_empty()) {
            let bad = || Error::Accounts(format!("group.master line {}: {line:?}", number + 1));
            let [name, _, gid, members] = split(line).ok_or_else(bad)?;
            let members = members.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect();
            accounts.groups.push(Group {
                name: name.to_owned(),
                gid: gid.parse().map_err(|_| bad())?,
                members,
            });
        }
        Ok(accounts)
    }

    /// Adds the accounts of a merged definition: a group without a number gets members only.
    pub(crate) fn add(&mut self, users: &[image::User], groups: &[image::Group]) -> Result<(), Error> {
        let mut new_groups = Vec::new();
        for group in groups {
            match group.gid {
                Some(gid) => {
                    new_groups.push(Group { name: group.name.clone(), gid, members: group.members.clone() });
                }
                None => {
                    let base = self.groups.iter_mut().find(|g| g.name == group.name);
                    let base = base.ok_or_else(|| {
                        Error::Accounts(format!(
                            "{}: there is no group {}; give it a gid",
                            group.origin, group.name
                        ))
                    })?;
                    base.members.extend(group.members.iter().cloned());
                }
            }
        }
        let mut new_users = Vec::new();
        for user in users {
            let own = new_groups.iter().find(|g| g.name == user.group).map(|g| g.gid);
            let gid = own.or_else(|| self.gid(&user.group)).ok_or_else(|| {
                Error::Accounts(format!(
                    "{}: user {}: there is no group {}",
                    user.origin, user.name, user.group
                ))
            })?;
            new_users.push(User {
                name: user.name.clone(),
                uid: user.uid,
                gid,
                gecos: user.gecos.clone(),
                home: user.home.clone(),
                shell: user.shell.clone(),
            });
        }
        self.extend(&new_users, &new_groups)
    }

    /// Adds accounts and checks the whole: names and numbers unique, groups known, no field breaks a line.
    pub fn extend(&mut self, users: &[User], groups: &[Group]) -> Result<(), Error> {
        self.groups.extend_from_slice(groups);
        self.users.extend_from_slice(users);
        let refuse = |what: String| Err(Error::Accounts(what));
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for group in &self.groups {
            if !names.insert(group.name.as_str()) || !numbers.insert(group.gid) {
                return refuse(format!(
                    "group {} (gid {}) has a name or number that is taken",
                    group.name, group.gid
                ));
            }
        }
        let (mut user_names, mut user_numbers) = (BTreeSet::new(), BTreeSet::new());
        for user in &self.users {
            if !user_names.insert(user.name.as_str()) || !user_numbers.insert(user.uid) {
                return refuse(format!(
                    "user {} (uid {}) has a name or number that is taken",
                    user.name, user.uid
                ));
            }
            if !numbers.contains(&user.gid) {
                return refuse(format!("user {}: no group has gid {}", user.name, user.gid));
            }
            for field in [&user.name, &user.gecos, &user.home, &user.shell] {
                if field.contains([':', '\n']) {
                    return refuse(format!("user {}: field {field:?} has a `:` or a line break", user.name));
                }
            }
        }
        for group in &self.groups {
            for member in &group.members {
                if !user_names.contains(member.as_str()) {
                    return refuse(format!("group {}: no user is called {member}", group.name));
                }
            }
            if group.name.contains([':', '\n']) {
                return refuse(format!("group {:?}: the name has a `:` or a line break", group.name));
            }
        }
        Ok(())
    }

    /// A user's number.
    pub fn uid(&self, name: &str) -> Option<u32> {
        self.users.iter().find(|u| u.name == name).map(|u| u.uid)
    }

    /// A group's number.
    pub fn gid(&self, name: &str) -> Option<u32> {
        self.groups.iter().find(|g| g.name == name).map(|g| g.gid)
    }

    /// The four files: path, mode, content. Nobody has a password; aging fields stay empty (no aging).
    pub(crate) fn files(&self) -> [(&'static str, u16, String); 4] {
        let (mut passwd, mut shadow, mut group, mut gshadow) = Default::default();
        let line = |out: &mut String, text: std::fmt::Arguments<'_>| {
            writeln!(out, "{text}").expect("a String takes all")
        };
        for u in &self.users {
            line(
                &mut passwd,
                format_args!("{}:x:{}:{}:{}:{}:{}", u.name, u.uid, u.gid, u.gecos, u.home, u.shell),
            );
            line(&mut shadow, format_args!("{}:*::0:99999:7:::", u.name));
        }
        for g in &self.groups {
            line(&mut group, format_args!("{}:x:{}:{}", g.name, g.gid, g.members.join(",")));
            line(&mut gshadow, format_args!("{}:*::{}", g.name, g.members.join(",")));
        }
        [
            ("/etc/passwd", 0o644, passwd),
            ("/etc/shadow", 0o640, shadow),
            ("/etc/group", 0o644, group),
            ("/etc/gshadow", 0o640, gshadow),
        ]
    }
}

impl compile::Accounts for Accounts {
    fn user(&self, name: &str) -> Option<(u32, u32)> {
        self.users.iter().find(|u| u.name == name).map(|u| (u.uid, u.gid))
    }

    fn group(&self, name: &str) -> Option<u32> {
        self.gid(name)
    }
}

fn split<const N: usize>(line: &str) -> Option<[&str; N]> {
    line.split(':').collect::<Vec<_>>().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:*:0:0:root:/root:/bin/bash\nbackup:*:34:34:backup:/var/backups:/usr/sbin/nologin\n";
    const GROUP: &str = "root:*:0:\nbackup:*:34:\nshadow:*:42:\n";

    #[test]
    fn masters_become_files() {
        let mut accounts = Accounts::parse(PASSWD, GROUP).unwrap();
        let group = Group { name: "postgres".into(), gid: 200, members: vec!["backup".into()] };
        accounts.extend(&[], std::slice::from_ref(&group)).unwrap();
        let files = accounts.files();
        assert!(files[0].2.starts_with("root:x:0:0:root:/root:/bin/bash\n"));
        assert_eq!(files[1].2, "root:*::0:99999:7:::\nbackup:*::0:99999:7:::\n");
        assert!(files[2].2.ends_with("postgres:x:200:backup\n"));
        assert_eq!(accounts.gid("shadow"), Some(42));
        let error = accounts.extend(&[], &[group]).unwrap_err().to_string();
        assert!(error.contains("postgres (gid 200)"), "{error}");
    }

    #[test]
    fn a_field_cannot_forge_a_line() {
        let mut accounts = Accounts::parse(PASSWD, GROUP).unwrap();
        let evil = User {
            name: "x".into(),
            uid: 300,
            gid: 34,
            gecos: "a\nroot2:x:0:0".into(),
            home: "/".into(),
            shell: "/bin/sh".into(),
        };
        assert!(accounts.extend(&[evil], &[]).is_err());
        assert!(Accounts::parse("root:*:0\n", "").is_err());
    }
}
