//! Version order against dpkg itself.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::cmp::Ordering;
use std::io::Write;
use std::process::Stdio;

use dyad_debian::version;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

/// Asks dpkg for the order of all pairs; one shell runs the many short dpkg processes.
#[allow(
    clippy::disallowed_methods,
    reason = "the oracle of a pure crate's test; the wrapper is in a crate above"
)]
fn dpkg_orders(pairs: &[(String, String)]) -> Vec<Ordering> {
    let script = "while read -r a b; do
        if dpkg --compare-versions \"$a\" lt \"$b\"; then echo lt
        elif dpkg --compare-versions \"$a\" eq \"$b\"; then echo eq
        else echo gt; fi; done";
    let mut shell = std::process::Command::new("/bin/sh")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = shell.stdin.take().unwrap();
    let text: String = pairs.iter().map(|(a, b)| format!("{a} {b}\n")).collect();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()).unwrap());
    let output = shell.wait_with_output().unwrap();
    writer.join().unwrap();
    let orders = String::from_utf8(output.stdout).unwrap();
    let orders: Vec<_> = orders
        .lines()
        .map(|line| match line {
            "lt" => Ordering::Less,
            "eq" => Ordering::Equal,
            _ => Ordering::Greater,
        })
        .collect();
    assert_eq!(orders.len(), pairs.len());
    orders
}

fn check(pairs: &[(String, String)]) {
    for ((a, b), expected) in pairs.iter().zip(dpkg_orders(pairs)) {
        assert_eq!(version::check(a), Ok(()), "{a}");
        assert_eq!(version::compare(a, b), expected, "{a} against {b}");
        assert_eq!(version::compare(b, a), expected.reverse(), "{b} against {a}");
    }
}

#[test]
fn known_corners_agree_with_dpkg() {
    let versions = [
        "0",
        "00",
        "0-0",
        "0:0",
        "1",
        "1~",
        "1~~",
        "1~~a",
        "1~a",
        "1a",
        "1+",
        "1.",
        "1.0",
        "1.0-1",
        "1.0-1~bpo12+1",
        "1.0-1+b1",
        "1.0-1+deb12u1",
        "1.0+dfsg-1",
        "1.0~rc1-1",
        "1:0.1",
        "01:0.1",
        "2:0",
        "1.10",
        "1.9",
        "1.09",
        "9999999999999999999999",
        "10000000000000000000000",
        "1-1-1",
        "1.0-a",
        "1.0-A",
        "1.0-1.1",
        "2:1:2-1",
        "2:1-2:1",
        "1z",
        "1Z",
    ];
    let pairs: Vec<_> = versions
        .iter()
        .filter(|v| version::check(v).is_ok())
        .flat_map(|a| {
            versions.iter().filter(|v| version::check(v).is_ok()).map(move |b| (a.to_string(), b.to_string()))
        })
        .collect();
    assert!(pairs.len() > 900, "{}", pairs.len());
    check(&pairs);
}

#[test]
fn random_versions_agree_with_dpkg() {
    let mut runner = TestRunner::new(Config::default());
    // Few different characters, so that pairs share beginnings.
    let part = "[0-9]([0a1.~+-]|10|[bZ9]){0,8}";
    let one = (proptest::option::of(0..3_u8), part, proptest::option::of("[0a1~+.]{1,5}")).prop_map(
        |(epoch, upstream, revision)| {
            let epoch = epoch.map(|e| format!("{e}:")).unwrap_or_default();
            let revision = revision.map(|r| format!("-{r}")).unwrap_or_default();
            format!("{epoch}{}{revision}", upstream.trim_end_matches('-'))
        },
    );
    let near = (one, 0..5_usize, "[0a1~+.]{0,2}").prop_map(|(a, cut, tail)| {
        let keep = a.len().saturating_sub(cut).max(1);
        let b = format!("{}{tail}", &a[..keep]);
        (a, b)
    });
    let pairs: Vec<_> = std::iter::repeat_with(|| near.new_tree(&mut runner).unwrap().current())
        .filter(|(a, b)| version::check(a).is_ok() && version::check(b).is_ok())
        .take(1000)
        .collect();
    check(&pairs);
}

proptest! {
    #[test]
    fn any_texts_have_an_order(a in ".{0,20}", b in ".{0,20}", c in ".{0,20}") {
        prop_assert_eq!(version::compare(&a, &b), version::compare(&b, &a).reverse());
        if version::compare(&a, &b).is_le() && version::compare(&b, &c).is_le() {
            prop_assert!(version::compare(&a, &c).is_le());
        }
        let _ = version::check(&a);
    }
}
