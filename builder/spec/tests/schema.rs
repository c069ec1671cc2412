//! The JSON schemas against Python's validator, with the files of this repository and with mistakes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

/// Reads `{kind: schema}` and prints, for each `KIND FILE` of its arguments, `ok` or the first error's path.
const VALIDATOR: &str = r#"
import json, sys, tomllib
from jsonschema import Draft202012Validator
schemas = json.load(sys.stdin)
for schema in schemas.values():
    Draft202012Validator.check_schema(schema)
for kind, path in zip(sys.argv[1::2], sys.argv[2::2]):
    with open(path, "rb") as file:
        errors = list(Draft202012Validator(schemas[kind]).iter_errors(tomllib.load(file)))
    print("ok" if not errors else "refused")
"#;

fn validate(files: &[(&str, String)]) -> Vec<String> {
    let schemas: serde_json::Map<String, serde_json::Value> = dyad_spec::schema::json_schemas()
        .into_iter()
        .map(|(kind, schema)| (kind.to_owned(), schema))
        .collect();
    #[allow(clippy::disallowed_methods, reason = "the outside oracle of this test is a program")]
    let mut child = std::process::Command::new("/usr/bin/python3")
        .args(["-c", VALIDATOR])
        .args(files.iter().flat_map(|(kind, path)| [(*kind).to_owned(), path.clone()]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 with python3-jsonschema is needed");
    let text = serde_json::to_vec(&schemas).unwrap();
    child.stdin.take().unwrap().write_all(&text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "python3 with python3-jsonschema is needed");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn an_outside_validator_agrees() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = |p: &str| root.join(p).display().to_string();
    let mut files = vec![
        ("definition", path("../../images/lab.toml")),
        ("definition", path("../../images/appliance.toml")),
        ("site", path("tests/site/full.toml")),
    ];
    for entry in std::fs::read_dir(root.join("../../overlays")).unwrap() {
        files.push(("overlay", entry.unwrap().path().join("overlay.toml").display().to_string()));
    }
    let accepted = files.len();
    for case in ["def-misspelt-key", "def-wrong-type", "def-epoch-range", "def-output", "def-empty-file"] {
        files.push(("definition", path(&format!("tests/rejections/{case}/definition.toml"))));
    }
    for case in ["service-misspelt-key", "service-words", "service-numbers", "service-exec-missing"] {
        files.push(("overlay", path(&format!("tests/rejections/{case}/base.overlay.toml"))));
    }
    for case in ["site-secret", "site-missing-nodes", "site-bond-mode", "site-profile"] {
        files.push(("site", path(&format!("tests/rejections/{case}/site.toml"))));
    }
    let verdicts = validate(&files);
    assert_eq!(verdicts.len(), files.len());
    for (at, (verdict, (_, file))) in verdicts.iter().zip(&files).enumerate() {
        assert_eq!(verdict, if at < accepted { "ok" } else { "refused" }, "{file}");
    }
}
