//! Services of all overlays in one order in which every dependency comes first.

use std::collections::BTreeMap;

use super::{Found, Laid, service_table};
use crate::diagnostic::{Diagnostic, nearest};
use crate::image::Service;
use crate::overlay::RawService;
use crate::scalar::Text;

/// A service and the overlay that brings it.
type Brought<'a> = (&'a Laid, &'a std::ops::Range<usize>, &'a RawService);

pub(super) fn merge(laid: &[Laid], found: &mut Found) -> Vec<Service> {
    let mut all: BTreeMap<&str, Brought<'_>> = BTreeMap::new();
    for overlay in laid {
        for (name, raw) in overlay.raw.services.iter() {
            check(overlay, name.as_str(), raw, found);
            if let Some((other, ..)) = all.get(name.as_str()) {
                let title = format!("service `{}` is defined in {} already", name.value, other.origin());
                found.at(&overlay.source, &name.span, title, "names of services are unique in an image");
                continue;
            }
            all.insert(name.as_str(), (overlay, &name.span, raw));
        }
    }
    check_sockets(&all, found);
    if !check_after(&all, found) {
        return Vec::new();
    }
    let Some(order) = sort(&all, found) else { return Vec::new() };
    let index: BTreeMap<&str, u16> = order.iter().enumerate().map(|(i, name)| (*name, i as u16)).collect();
    order
        .iter()
        .map(|&name| {
            let (overlay, _, raw) = all[name];
            let mut after: Vec<u16> = raw.after.iter().map(|a| index[a.as_str()]).collect();
            after.sort_unstable();
            after.dedup();
            Service {
                table: service_table(name, raw, after),
                user: raw.user.as_ref().map_or("root".into(), |u| u.to_string()),
                group: raw.group.as_ref().map(|g| g.to_string()),
                groups: raw.groups.iter().map(|g| g.to_string()).collect(),
                origin: overlay.origin(),
            }
        })
        .collect()
}

/// Checks within one service.
fn check(overlay: &Laid, name: &str, raw: &RawService, found: &mut Found) {
    match raw.exec.first() {
        Some(program) if program.as_str().starts_with('/') => {}
        Some(program) => {
            let title = format!("`services.{name}.exec`: `{program}` is not an absolute path");
            let label = "expected the program's absolute path, then its arguments; no shell reads this";
            found.at(&overlay.source, &raw.exec.span, title, label);
        }
        None => {
            let title = format!("`services.{name}.exec` is empty");
            found.at(&overlay.source, &raw.exec.span, title, "expected an absolute path and arguments");
        }
    }
    if raw.restart_max.value < raw.restart_min {
        let title = format!("`services.{name}`: the longest pause is shorter than the first");
        let label = format!("expected at least {}ms, which is `restart_min`", raw.restart_min.get());
        found.at(&overlay.source, &raw.restart_max.span, title, label);
    }
    if let Some(syscalls) = raw.syscalls.as_ref().filter(|_| !raw.no_new_privs) {
        let title = format!("`services.{name}.syscalls` without `no_new_privs`");
        let label = "a program that gains privileges cannot be confined: expected `no_new_privs = true`";
        found.at(&overlay.source, &syscalls.span, title, label);
    }
    for socket in &raw.sockets {
        if !socket.path.as_str().starts_with("/run/") {
            let title = format!("`services.{name}.sockets`: {} is not below /run", socket.path.value);
            found.at(&overlay.source, &socket.path.span, title, "expected a path below /run");
        }
    }
}

fn check_sockets(all: &BTreeMap<&str, Brought<'_>>, found: &mut Found) {
    let mut owner: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, (overlay, _, raw)) in all {
        for socket in &raw.sockets {
            if let Some(other) = owner.insert(socket.path.as_str(), name) {
                let title = format!("socket {} belongs to service `{other}` already", socket.path.value);
                found.at(&overlay.source, &socket.path.span, title, "one service listens on a path");
            }
        }
    }
}

/// Every name in `after` is a service of the image.
fn check_after(all: &BTreeMap<&str, Brought<'_>>, found: &mut Found) -> bool {
    let mut clean = true;
    for (name, (overlay, _, raw)) in all {
        for after in &raw.after {
            if all.contains_key(after.as_str()) {
                continue;
            }
            clean = false;
            let title =
                format!("service `{name}` starts after `{}`, which no overlay here brings", after.value);
            let label = match nearest(after.as_str(), all.keys().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "name a service of this image, or require the overlay that brings it".into(),
            };
            found.at(&overlay.source, &after.span, title, label);
        }
    }
    clean
}

/// Dependencies first, else by name; `None` after having reported a cycle.
fn sort<'a>(all: &BTreeMap<&'a str, Brought<'a>>, found: &mut Found) -> Option<Vec<&'a str>> {
    let mut order: Vec<&str> = Vec::new();
    while order.len() < all.len() {
        let ready = all.iter().find(|(name, (_, _, raw))| {
            !order.contains(name) && raw.after.iter().all(|a| order.contains(&a.as_str()))
        });
        match ready {
            Some((name, _)) => order.push(name),
            None => {
                report_cycle(all, &order, found);
                return None;
            }
        }
    }
    Some(order)
}

/// Walks from a blocked service along blocked dependencies until one comes up again.
fn report_cycle(all: &BTreeMap<&str, Brought<'_>>, order: &[&str], found: &mut Found) {
    let blocked = |name: &str| !order.contains(&name);
    let mut path: Vec<&str> = all.keys().copied().find(|name| blocked(name)).into_iter().collect();
    while let Some(&last) = path.last() {
        let (overlay, span, raw) = all[last];
        let next = raw
            .after
            .iter()
            .find(|a| blocked(a.as_str()))
            .expect("a blocked service has a blocked dependency");
        let next = next.as_str();
        if let Some(at) = path.iter().position(|name| *name == next) {
            let circle = path[at..].iter().chain([&next]).copied().collect::<Vec<_>>().join(" -> ");
            let title = format!("services wait for each other: {circle}");
            let d = Diagnostic::new(&overlay.source, span.clone(), title).label("one of the circle");
            found.0.push(d.help("take one `after` of the circle away"));
            return;
        }
        path.push(next);
    }
}
