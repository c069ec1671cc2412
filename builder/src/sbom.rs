//! The bill of materials beside the outputs, SPDX 2.3 in JSON: every package, its version and the digest of its file.
//!
//! Like all outputs it depends on the inputs alone: its date is the definition's, its name comes from the root hash.

use dyad_debian::{LockedPackage, format_utc};
use dyad_spec::image::Merged;
use serde_json::{Value, json};

/// Identifier of the image itself.
const IMAGE: &str = "SPDXRef-image";

/// Percent-encoding of a package URL's parts: versions have `:`, `+` and `~`.
fn encoded(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

/// What identifiers may hold: letters, digits, `.` and `-`.
fn identifier(name: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' => char::from(byte).to_string(),
        _ => format!("-{byte:02X}"),
    };
    format!("SPDXRef-package-{}", name.bytes().map(one).collect::<String>())
}

fn package(package: &LockedPackage, suite: &str) -> Value {
    let LockedPackage { name, version, arch, sha256, .. } = package;
    let (version_encoded, name_encoded) = (encoded(version), encoded(name));
    let locator = format!("pkg:deb/debian/{name_encoded}@{version_encoded}?arch={arch}&distro={suite}");
    json!({
        "SPDXID": identifier(name),
        "name": name,
        "versionInfo": version,
        "supplier": "NOASSERTION",
        "downloadLocation": "NOASSERTION",
        "packageFileName": package.path,
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "checksums": [{"algorithm": "SHA256", "checksumValue": sha256.to_string()}],
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": locator,
        }],
    })
}

/// The form of time that SPDX wants: `2026-01-01T00:00:00Z`.
fn created(seconds: u32) -> String {
    format_utc(u64::from(seconds)).replace(" UTC", "Z").replace(' ', "T")
}

/// The document for an image of these packages, which come sorted by name.
pub(crate) fn document(merged: &Merged, packages: &[LockedPackage], root_hash: &[u8; 32]) -> Value {
    let hash = dyad_formats::verity::hex(root_hash);
    let image = json!({
        "SPDXID": IMAGE,
        "name": merged.name,
        "versionInfo": merged.version,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        "supplier": "NOASSERTION",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "comment": format!("dm-verity root hash {hash}"),
    });
    let suite = merged.suite.to_string();
    let relation = |from: &str, kind: &str, to: &str| json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to});
    let all: Vec<Value> = std::iter::once(image).chain(packages.iter().map(|p| package(p, &suite))).collect();
    let relations: Vec<Value> = std::iter::once(relation("SPDXRef-DOCUMENT", "DESCRIBES", IMAGE))
        .chain(packages.iter().map(|p| relation(IMAGE, "CONTAINS", &identifier(&p.name))))
        .collect();
    let created = created(merged.source_date_epoch);
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("{} {}", merged.name, merged.version),
        "documentNamespace": format!("urn:dyad:{}:{}:{hash}", merged.name, merged.version),
        "creationInfo": {"created": created, "creators": [format!("Tool: dyad-{}", env!("CARGO_PKG_VERSION"))]},
        "packages": all,
        "relationships": relations,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_urls_and_identifiers_hold_only_what_they_may() {
        assert_eq!(encoded("1:2.38.1-5+deb12u3~x"), "1%3A2.38.1-5%2Bdeb12u3~x");
        assert_eq!(identifier("libstdc++6"), "SPDXRef-package-libstdc-2B-2B6");
        assert_ne!(identifier("a+"), identifier("a"));
        assert_eq!(created(1_767_225_600), "2026-01-01T00:00:00Z");
    }

    #[test]
    fn a_package_is_known_by_version_and_digest() {
        let digest = "ab".repeat(32);
        let locked = LockedPackage {
            name: "libc6".into(),
            version: "2.36-9".into(),
            arch: "amd64".into(),
            suite: "bookworm".into(),
            path: "pool/main/g/glibc/libc6.deb".into(),
            size: 1,
            sha256: digest.parse().unwrap(),
        };
        let entry = package(&locked, "bookworm");
        assert_eq!(entry["checksums"][0]["checksumValue"], digest.as_str());
        assert_eq!(
            entry["externalRefs"][0]["referenceLocator"],
            "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=bookworm"
        );
    }
}
