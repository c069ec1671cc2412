//! The .deb container: which members, in which order, and the few control fields that laying out files needs.

use bytes::Bytes;
use dyad_debian::control::stanzas;
use dyad_debian::parse_relations;
use serde::{Deserialize, Serialize};

use super::select::{self, Filter, Pruned};
use super::tarball::{self, Member, MemberKind};
use super::{Limits, UnpackError, ar, compress};

/// An unpacked package; `C` stands for the content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package<C = Bytes> {
    /// `Package`.
    pub name: String,
    /// `Version`.
    pub version: String,
    /// `Architecture`.
    pub architecture: String,
    /// `Replaces`, verbatim (checked to be readable); empty where there is none.
    pub replaces: String,
    /// Programs of the package's scripts that this builder does not run and that change other packages' files
    /// (`dpkg-divert`): for the report.
    pub diverts: bool,
    /// Members that the filter kept, in archive order.
    pub members: Vec<Member<C>>,
    /// What the filter left out.
    pub pruned: Vec<Pruned>,
}

/// Opens a .deb and leaves out what the filter drops. Deterministic; decodes xz blocks on the current rayon pool.
pub fn unpack(deb: &Bytes, limits: &Limits, filter: &Filter<'_>) -> Result<Package, UnpackError> {
    let mut package = open(deb, limits)?;
    let archive_len = content_bytes(&package.members);
    let bytes = |data: &Bytes| data.len() as u64;
    (package.members, package.pruned) = select::apply(&package.members, &bytes, filter);
    release(&mut package.members, archive_len);
    Ok(package)
}

/// Opens a .deb: every member, nothing left out.
pub(crate) fn open(deb: &Bytes, limits: &Limits) -> Result<Package, UnpackError> {
    let members = ar::parse(deb)?;
    let mut members = members.iter().filter(|m| !m.name.starts_with('_'));
    let wrong = |what: &str| UnpackError::Layout(what.to_owned());
    let version =
        members.next().filter(|m| m.name == "debian-binary").ok_or_else(|| wrong("no debian-binary"))?;
    if !(version.data.starts_with(b"2.") && version.data.ends_with(b"\n") && version.data.len() <= 8) {
        return Err(wrong("debian-binary does not say 2.x"));
    }
    let control = members
        .next()
        .filter(|m| m.name.starts_with("control.tar"))
        .ok_or_else(|| wrong("no control.tar"))?;
    let data =
        members.next().filter(|m| m.name.starts_with("data.tar")).ok_or_else(|| wrong("no data.tar"))?;
    if let Some(extra) = members.next() {
        return Err(UnpackError::Layout(format!("unexpected member {:?}", extra.name)));
    }
    let (name, stem) = (&control.name, "control.tar");
    let control = compress::decode(name, stem, &control.data, limits.control_bytes_max, limits)?;
    let control = tarball::read(name, &control, limits)?;
    let (name, stem) = (&data.name, "data.tar");
    let archive = compress::decode(name, stem, &data.data, limits.data_bytes_max, limits)?;
    let mut package = read_control(&control)?;
    package.members = tarball::read(name, &archive, limits)?;
    Ok(package)
}

/// Bytes of all files.
pub(crate) fn content_bytes(members: &[Member]) -> usize {
    let bytes = |m: &Member| if let MemberKind::File(data) = &m.kind { data.len() } else { 0 };
    members.iter().map(bytes).sum()
}

/// Slices keep the whole archive in memory: where less than half of it is wanted, copying that costs less.
pub(crate) fn release(members: &mut [Member], archive_len: usize) {
    let files = members.iter_mut().filter_map(|m| match &mut m.kind {
        MemberKind::File(data) => Some(data),
        _ => None,
    });
    let files: Vec<&mut Bytes> = files.collect();
    if files.iter().map(|data| data.len()).sum::<usize>() * 2 < archive_len {
        for data in files {
            *data = Bytes::copy_from_slice(data);
        }
    }
}

fn read_control(members: &[Member]) -> Result<Package, UnpackError> {
    let file = |path: &[u8]| {
        members.iter().find(|m| m.path == path).and_then(|m| match &m.kind {
            MemberKind::File(data) => Some(data),
            _ => None,
        })
    };
    let bad = |what: String| UnpackError::Control(what);
    let text = file(b"/control").ok_or_else(|| bad("missing".into()))?;
    let stanza = match (stanzas(text).next(), stanzas(text).nth(1)) {
        (Some(Ok(stanza)), None) => stanza,
        (Some(Err(e)), _) => return Err(bad(e.to_string())),
        _ => return Err(bad("has not exactly one paragraph".into())),
    };
    let optional =
        |name: &str| stanza.get(name).map_err(|e| bad(e.to_string())).map(Option::unwrap_or_default);
    let field = |name: &str| match optional(name)? {
        "" => Err(bad(format!("no `{name}` field"))),
        value => Ok(value.to_owned()),
    };
    let scripts = [&b"/preinst"[..], b"/postinst"];
    let package = Package {
        name: field("Package")?,
        version: field("Version")?,
        architecture: field("Architecture")?,
        replaces: optional("Replaces")?.to_owned(),
        diverts: scripts.iter().any(|s| file(s).is_some_and(|t| contains(t, b"dpkg-divert"))),
        members: Vec::new(),
        pruned: Vec::new(),
    };
    parse_relations(&package.replaces, &package.architecture).map_err(|e| bad(e.to_string()))?;
    Ok(package)
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|w| w == word)
}
