//! Two blank nodes and a witness, with nothing typed: they find each other and become protected, one loses its power, the
//! other takes over with every acknowledged row, and the lost one comes back.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use dyad_vm_tests::balancer::Balancer;
use dyad_vm_tests::boot::wait;
use dyad_vm_tests::secrets::Secrets;
use dyad_vm_tests::{Lab, root};
use serde_json::Value;

/// On a busy host.
const PATIENCE: Duration = Duration::from_secs(600);
const ROWS: u32 = 50;

fn status(lab: &Lab) -> Value {
    serde_json::from_str(&lab.ok(&["status", "--json"])).expect("status is JSON")
}

fn level(lab: &Lab) -> String {
    status(lab)["protection"].as_str().unwrap_or_default().to_owned()
}

/// The node that takes writes.
fn writer(lab: &Lab) -> Option<String> {
    let status = status(lab);
    let nodes = status["nodes"].as_array().expect("status lists nodes");
    let row = nodes.iter().find(|row| row["role"] == "primary" && row["up"] == true)?;
    row["name"].as_str().map(str::to_owned)
}

/// Inserts rows; all are acknowledged when this returns.
fn write(lab: &Lab, from: u32) {
    lab.sql(&format!("insert into ledger select generate_series({from}, {})", from + ROWS - 1));
}

fn lost_and_found(lab: &Lab, balancer: &Balancer) {
    assert_eq!(level(lab), "PROTECTED", "{}", status(lab)["reason"]);
    lab.sql("create table ledger (id int primary key)");
    write(lab, 0);

    let lost = writer(lab).expect("somebody takes writes");
    let kept = if lost == "node-a" { "node-b" } else { "node-a" };
    wait("the balancer knows both", PATIENCE, || balancer.leads_to(lab, &lost, Some(kept)));
    lab.ok(&["kill", &lost]);
    wait("the other one takes over", PATIENCE, || writer(lab).is_some_and(|name| name != lost));
    assert_eq!(level(lab), "EXPOSED", "{}", status(lab)["reason"]);
    let counted = |expected: u32| {
        let answer = lab.run(&["psql", "--", "-XAtqc", "select count(*) from ledger"]);
        String::from_utf8_lossy(&answer.stdout).trim() == expected.to_string()
    };
    wait("every acknowledged row is there", PATIENCE, || counted(ROWS));
    write(lab, ROWS);

    lab.ok(&["start", &lost]);
    wait("both are protected again", PATIENCE, || level(lab) == "PROTECTED");
    assert!(writer(lab).is_some_and(|name| name != lost), "nothing moves back");
    assert!(counted(2 * ROWS));
    wait("the balancer knows the new standby", PATIENCE, || balancer.leads_to(lab, kept, Some(&lost)));

    let secrets = Secrets::of(lab);
    assert!(secrets.count() >= 2, "there is something to look for");
    assert_eq!(secrets.told(lab), [""; 0]);
}

/// Containers need root or a delegated control group; without either, the lab says what is missing.
#[test]
fn two_containers_find_each_other_and_survive() {
    if std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        let lab = Lab::up_with(&root().join("images/lab.toml"), 2, &["--backend", "container"]);
        lost_and_found(&lab, &Balancer::start(&lab));
        for node in ["node-a", "node-b"] {
            assert!(!lab.console(node).contains("PID 1 runs from its disk"), "{}", lab.console(node));
        }
        return assert_eq!(Secrets::of(&lab).in_image(&lab), [""; 0]);
    }
    let state = tempfile::tempdir().expect("a temporary directory can be made");
    let state = state.path().to_str().expect("test paths are UTF-8");
    let refused = dyad_vm_tests::run(&["lab", "--state", state, "up", "--backend", "container"], &[]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("Missing for "), "{said}");
}
