//! From the site file as written to [`Site`]: every name must refer to something.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;

use super::raw::RawSite;
use super::{Operator, Site, Vm, Volume, WithoutWitness, network, postgresql};
use crate::decode::At;
use crate::diagnostic::{Diagnostic, Diagnostics, Source, nearest};
use crate::scalar::ByteSize;
use crate::scalar::Text;

/// Errors of one file.
pub(super) struct Found {
    source: Arc<Source>,
    errors: Vec<Diagnostic>,
}

impl Found {
    pub(super) fn at(&mut self, span: &Range<usize>, title: String, label: impl Into<String>) {
        self.errors.push(Diagnostic::new(&self.source, span.clone(), title).label(label));
    }

    /// An error with a second place that it is about.
    pub(super) fn twice(
        &mut self,
        span: &Range<usize>,
        first: &Range<usize>,
        title: String,
        label: impl Into<String>,
    ) {
        let d = Diagnostic::new(&self.source, span.clone(), title).label(label);
        self.errors.push(d.context(first.clone(), "first here"));
    }

    /// A name that refers to nothing: suggests one that exists.
    pub(super) fn unknown<T: Display>(&mut self, kind: &str, name: &At<T>, known: &[&str]) {
        self.unknown_at(kind, "", name, known);
    }

    /// The same for a name that must be known at some place (` on every node`).
    pub(super) fn unknown_at<T: Display>(&mut self, kind: &str, place: &str, name: &At<T>, known: &[&str]) {
        let text = name.to_string();
        let label = match nearest(&text, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => format!("this file defines no {kind}{place}"),
            None => format!("expected one of {}", known.join(", ")),
        };
        self.at(&name.span, format!("there is no {kind} `{text}`{place}"), label);
    }
}

/// Checks a site file as a whole.
pub(super) fn site(source: &Arc<Source>, raw: RawSite) -> Result<Site, Diagnostics> {
    let mut found = Found { source: Arc::clone(source), errors: Vec::new() };
    let network = network::check(&raw, &mut found);
    let postgresql = postgresql::check(&raw.postgresql, &mut found);
    let volumes = volumes(&raw, &mut found);
    let vms = vms(&raw, &mut found);
    let operators = operators(&raw, &mut found);
    if let (Some(alone), Some(_)) = (&raw.without_witness, &raw.witness) {
        let title = "`without_witness` means nothing for a pair that has a witness".to_owned();
        found.at(&alone.span, title, "remove this, or `witness`");
    }
    Diagnostics::check(found.errors)?;
    Ok(Site {
        cluster: raw.cluster.to_string(),
        profile: raw.profile,
        pairing: raw.pairing,
        without_witness: raw.without_witness.map_or(WithoutWitness::PrimaryBiased, |word| word.value),
        witness: raw.witness.map(|w| w.value),
        dns: raw.dns.iter().map(|d| d.value).collect(),
        ntp: raw.ntp.iter().map(|d| d.value).collect(),
        nodes: network.nodes,
        bonds: network.bonds,
        vlans: network.vlans,
        bridges: network.bridges,
        routes: network.routes,
        vips: network.vips,
        client_services: raw.client_services.iter().map(|name| name.value.to_string()).collect(),
        postgresql,
        volumes,
        vms,
        operators,
    })
}

fn volumes(raw: &RawSite, found: &mut Found) -> Vec<Volume> {
    let mut volumes = Vec::new();
    for (name, volume) in raw.volumes.iter() {
        // LVM gives space in extents of 4 MiB.
        if volume.size.bytes() % ByteSize::mib(4).bytes() != 0 {
            let title = format!("`volumes.{name}.size`: {} is not a multiple of 4MiB", volume.size);
            found.at(&volume.size.span, title, "space is given in pieces of 4 MiB");
        }
        volumes.push(Volume { name: name.to_string(), size: volume.size.value });
    }
    volumes
}

fn vms(raw: &RawSite, found: &mut Found) -> Vec<Vm> {
    let volumes: Vec<&str> = raw.volumes.iter().map(|(name, _)| name.as_str()).collect();
    let bridges: Vec<&str> = raw.bridges.iter().map(|(name, _)| name.as_str()).collect();
    let mut used: Vec<&At<crate::scalar::Name>> = Vec::new();
    let mut macs: Vec<&At<crate::scalar::Mac>> = Vec::new();
    let mut vms = Vec::new();
    for (name, vm) in raw.vms.iter() {
        if !volumes.contains(&vm.volume.as_str()) {
            found.unknown("volume", &vm.volume, &volumes);
        }
        if let Some(first) = used.iter().find(|v| v.value == vm.volume.value) {
            let title = format!("volume `{}` is the disk of two machines", vm.volume);
            found.twice(&vm.volume.span, &first.span, title, "one volume, one machine");
        }
        used.push(&vm.volume);
        if let Some(bridge) = &vm.bridge
            && !bridges.contains(&bridge.as_str())
        {
            found.unknown("bridge", bridge, &bridges);
        }
        if let Some(mac) = &vm.mac {
            if let Some(first) = macs.iter().find(|m| m.value == mac.value) {
                let title = format!("{mac} is the address of two machines");
                found.twice(&mac.span, &first.span, title, "every machine has its own");
            }
            macs.push(mac);
        }
        if vm.memory.value < ByteSize::mib(32) {
            let title = format!("`vms.{name}.memory`: {} is too small", vm.memory);
            found.at(&vm.memory.span, title, "expected at least 32MiB");
        }
        vms.push(Vm {
            name: name.to_string(),
            memory: vm.memory.value,
            cpus: vm.cpus.0 as u8,
            volume: vm.volume.to_string(),
            bridge: vm.bridge.as_ref().map(|b| b.to_string()),
            mac: vm.mac.as_ref().map(|m| m.value),
            priority: vm.priority.0 as u16,
        });
    }
    vms
}

fn operators(raw: &RawSite, found: &mut Found) -> Vec<Operator> {
    let mut keys = BTreeSet::new();
    let mut operators = Vec::new();
    for (name, key) in raw.operators.iter() {
        if !keys.insert(key.0) {
            let title = format!("`operators.{name}`: another operator has the same key");
            found.at(&name.span, title, "the event log could not tell them apart");
        }
        operators.push(Operator { name: name.to_string(), key: key.0 });
    }
    operators
}
