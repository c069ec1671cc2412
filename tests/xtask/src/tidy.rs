//! `cargo xtask tidy`: the house rules that a compiler does not check.
//!
//! Lengths are ratchets: what is over the limit today stands in `tests/xtask/tidy.toml` with its length and may only
//! shrink; anything new over the limit fails.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use syn::spanned::Spanned;
use syn::visit::Visit;

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
/// Crates that may not touch the outside world; ARCHITECTURE.md says so, this checks it.
const PURE: &[&str] = &[
    "builder/spec",
    "builder/gpt",
    "builder/formats",
    "builder/debian",
    "builder/tree",
    "init/api",
    "init/cluster",
];
const IMPURE_PATHS: &[&str] = &[
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "TcpStream",
    "UdpSocket",
    "ToSocketAddrs",
    "std::process",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::env",
];
/// Tests that cargo passes over must say who runs them instead: the guest runner, or a test of the same file.
const RUN_IN_GUEST: &str = "run in a guest by tests/vm";
const RUN_BY: &str = "run by ";
/// The only directories whose code may be unsafe.
const UNSAFE: &[&str] = &["init/sys/", "init/guard/", "init/journal/"];

#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Ratchet {
    /// path -> lines
    files: BTreeMap<String, usize>,
    /// path::function -> lines
    functions: BTreeMap<String, usize>,
}

struct Source {
    path: String,
    text: String,
    syntax: syn::File,
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(dir)
        .with_context(|| format!("reading {}", dir.display()))?
        .collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let name = entry.file_name();
        if entry.file_type()?.is_dir() {
            if name != "target" && name != ".git" {
                rust_files(&path, out)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
    Ok(())
}

fn sources(root: &Path) -> Result<Vec<Source>> {
    let mut files = Vec::new();
    for top in ["builder", "init", "tests"] {
        rust_files(&root.join(top), &mut files)?;
    }
    files
        .into_iter()
        .map(|file| {
            let path = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&file).with_context(|| path.clone())?;
            let syntax = syn::parse_file(&text).with_context(|| format!("{path} does not parse"))?;
            Ok(Source { path, text, syntax })
        })
        .collect()
}

#[derive(Default)]
struct Functions {
    found: Vec<(String, usize)>,
    unsafe_lines: Vec<usize>,
    /// (test, reason given)
    ignored: Vec<(String, String)>,
}

/// The text of `#[ignore = "text"]`; empty without one.
fn ignore_reason(attribute: &syn::Attribute) -> String {
    let syn::Meta::NameValue(pair) = &attribute.meta else { return String::new() };
    match &pair.value {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => text.value(),
        _ => String::new(),
    }
}

impl Functions {
    fn note(&mut self, sig: &syn::Signature, attrs: &[syn::Attribute], block: proc_macro2::Span) {
        let lines = block.end().line - sig.span().start().line + 1;
        self.found.push((sig.ident.to_string(), lines));
        if let Some(attribute) = attrs.iter().find(|a| a.path().is_ident("ignore")) {
            self.ignored.push((sig.ident.to_string(), ignore_reason(attribute)));
        }
        if let Some(token) = &sig.unsafety {
            self.unsafe_lines.push(token.span().start().line);
        }
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.note(&item.sig, &item.attrs, item.block.span());
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.note(&item.sig, &item.attrs, item.block.span());
        syn::visit::visit_impl_item_fn(self, item);
    }

    fn visit_expr_unsafe(&mut self, item: &'ast syn::ExprUnsafe) {
        self.unsafe_lines.push(item.span().start().line);
        syn::visit::visit_expr_unsafe(self, item);
    }
}

fn is_test_file(path: &str) -> bool {
    path.split('/').any(|part| part == "tests") && !path.starts_with("tests/xtask/src")
        || path.ends_with("/tests.rs")
        || path.contains("/tests_")
        || path.ends_with("_tests.rs")
}

fn check_source(source: &Source, measured: &mut Ratchet, bad: &mut Vec<String>) {
    let lines = source.text.lines().count();
    if lines > FILE_LINES_MAX {
        measured.files.insert(source.path.clone(), lines);
    }
    let mut functions = Functions::default();
    functions.visit_file(&source.syntax);
    let names: Vec<String> = functions.found.iter().map(|(name, _)| name.clone()).collect();
    for (name, lines) in functions.found {
        if lines > FUNCTION_LINES_MAX {
            let key = format!("{}::{name}", source.path);
            let slot = measured.functions.entry(key).or_default();
            *slot = (*slot).max(lines);
        }
    }
    for (name, reason) in functions.ignored {
        let runner = reason.strip_prefix(RUN_BY).is_some_and(|by| names.iter().any(|n| n == by));
        if reason != RUN_IN_GUEST && !runner {
            bad.push(format!(
                "{}: test `{name}` is ignored; say `{RUN_IN_GUEST}`, or `{RUN_BY}TEST` with a test of the same file",
                source.path
            ));
        }
    }
    if !UNSAFE.iter().any(|dir| source.path.starts_with(dir)) {
        for line in functions.unsafe_lines {
            bad.push(format!("{}:{line}: unsafe code outside {}", source.path, UNSAFE.join(", ")));
        }
    }
    let pure = PURE.iter().any(|dir| source.path.starts_with(&format!("{dir}/src/")));
    if pure && !is_test_file(&source.path) {
        let code = source.text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or_default();
            for path in IMPURE_PATHS {
                if line.contains(path) {
                    bad.push(format!("{}:{}: `{path}` in a crate that does no I/O", source.path, number + 1));
                }
            }
        }
    }
}

fn compare(
    kind: &str,
    limit: usize,
    allowed: &BTreeMap<String, usize>,
    found: &BTreeMap<String, usize>,
    bad: &mut Vec<String>,
) {
    for (key, lines) in found {
        match allowed.get(key) {
            None => bad.push(format!("{key}: {kind} of {lines} lines, the limit is {limit}")),
            Some(was) if lines > was => {
                bad.push(format!("{key}: {kind} grew from {was} to {lines} lines, the limit is {limit}"))
            }
            Some(_) => {}
        }
    }
    for (key, was) in allowed {
        if found.get(key).is_none_or(|now| now < was) {
            bad.push(format!(
                "{key}: is shorter than the recorded {was} lines now; run `cargo xtask tidy --ratchet`"
            ));
        }
    }
}

fn check_manifests(root: &Path, bad: &mut Vec<String>) -> Result<()> {
    let manifest: toml::Table = toml::from_str(&std::fs::read_to_string(root.join("Cargo.toml"))?)?;
    let members = manifest["workspace"]["members"].as_array().context("workspace.members is not a list")?;
    let map = std::fs::read_to_string(root.join("ARCHITECTURE.md"))?;
    for member in members.iter().filter_map(toml::Value::as_str) {
        let path = root.join(member).join("Cargo.toml");
        let crate_manifest: toml::Table = toml::from_str(&std::fs::read_to_string(&path)?)?;
        let inherits =
            crate_manifest.get("lints").and_then(|l| l.get("workspace")).and_then(toml::Value::as_bool);
        if inherits != Some(true) {
            bad.push(format!("{member}/Cargo.toml: `[lints] workspace = true` is missing"));
        }
        if !map.contains(&format!("`{member}`")) && !map.contains(&format!("`{member}/`")) {
            bad.push(format!("ARCHITECTURE.md: its code map does not name `{member}`"));
        }
    }
    Ok(())
}

/// Checks the tree; with `ratchet` also records lengths that are over the limit, if they shrank or are new.
pub(crate) fn run(root: &Path, ratchet: bool) -> Result<bool> {
    let file = root.join("tests/xtask/tidy.toml");
    let allowed: Ratchet = match std::fs::read_to_string(&file) {
        Ok(text) => toml::from_str(&text).context("tests/xtask/tidy.toml")?,
        Err(_) => Ratchet::default(),
    };
    let mut measured = Ratchet::default();
    let mut bad = Vec::new();
    let sources = sources(root)?;
    for source in &sources {
        check_source(source, &mut measured, &mut bad);
    }
    check_manifests(root, &mut bad)?;
    if ratchet {
        std::fs::write(&file, toml::to_string(&measured)?)?;
    } else {
        compare("file", FILE_LINES_MAX, &allowed.files, &measured.files, &mut bad);
        compare("function", FUNCTION_LINES_MAX, &allowed.functions, &measured.functions, &mut bad);
    }
    for line in &bad {
        eprintln!("tidy: {line}");
    }
    println!("tidy: {} files, {} complaints", sources.len(), bad.len());
    Ok(bad.is_empty())
}
