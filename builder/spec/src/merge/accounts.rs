//! Users and groups of all overlays: one number a name, one name a number.

use std::collections::BTreeMap;

use super::{Found, Laid};
use crate::image::{Group, User};
use crate::scalar::Text;

/// Where a user without a shell of its own ends.
const NO_SHELL: &str = "/usr/sbin/nologin";

pub(super) fn merge(laid: &[Laid], found: &mut Found) -> (Vec<User>, Vec<Group>) {
    let users = users(laid, found);
    let groups = groups(laid, found);
    (users, groups)
}

fn users(laid: &[Laid], found: &mut Found) -> Vec<User> {
    let mut all: BTreeMap<u32, User> = BTreeMap::new();
    for overlay in laid {
        for (name, raw) in overlay.raw.users.iter() {
            let uid = raw.uid.value.0 as u32;
            if let Some(other) = all.values().find(|u| u.name == name.as_str()) {
                let title = format!("user `{}` is defined in {} already", other.name, other.origin);
                found.at(&overlay.source, &name.span, title, "one overlay defines a user");
                continue;
            }
            if let Some(other) = all.get(&uid) {
                let title = format!("uid {uid} belongs to `{}` of {} already", other.name, other.origin);
                found.at(&overlay.source, &raw.uid.span, title, "choose another number");
                continue;
            }
            let group = raw.group.as_ref().map_or(name.as_str(), |g| g.as_str());
            all.insert(
                uid,
                User {
                    name: name.value.to_string(),
                    uid,
                    group: group.to_owned(),
                    home: raw.home.to_string(),
                    shell: raw.shell.as_ref().map_or(NO_SHELL.into(), |s| s.to_string()),
                    gecos: raw.gecos.as_ref().map_or(String::new(), |g| g.to_string()),
                    origin: overlay.origin(),
                },
            );
        }
    }
    all.into_values().collect()
}

/// Groups with a number come from `groups`; a supplementary group without one is the base system's.
fn groups(laid: &[Laid], found: &mut Found) -> Vec<Group> {
    let mut all: BTreeMap<String, Group> = BTreeMap::new();
    for overlay in laid {
        for (name, raw) in overlay.raw.groups.iter() {
            let gid = raw.gid.value.0 as u32;
            if let Some(other) = all.get(name.as_str()) {
                let title = format!("group `{}` is defined in {} already", other.name, other.origin);
                found.at(&overlay.source, &name.span, title, "one overlay defines a group");
                continue;
            }
            if let Some(other) = all.values().find(|g| g.gid == Some(gid)) {
                let title = format!("gid {gid} belongs to `{}` of {} already", other.name, other.origin);
                found.at(&overlay.source, &raw.gid.span, title, "choose another number");
                continue;
            }
            let made = Group {
                name: name.value.to_string(),
                gid: Some(gid),
                members: Vec::new(),
                origin: overlay.origin(),
            };
            all.insert(made.name.clone(), made);
        }
    }
    for overlay in laid {
        for (user, raw) in overlay.raw.users.iter() {
            for group in &raw.groups {
                let entry = all.entry(group.value.to_string()).or_insert_with(|| Group {
                    name: group.value.to_string(),
                    gid: None,
                    members: Vec::new(),
                    origin: overlay.origin(),
                });
                entry.members.push(user.value.to_string());
            }
        }
    }
    let mut groups: Vec<Group> = all.into_values().collect();
    groups.iter_mut().for_each(|g| {
        g.members.sort();
        g.members.dedup();
    });
    groups.sort_by(|a, b| (a.gid, &a.name).cmp(&(b.gid, &b.name)));
    groups
}
