//! A few of the seeds that `cargo xtask chaos --seeds 0..20 --backend vm` declares, on machines.

use dyad_vm_tests::program;

/// The wires between the nodes fall silent; then the primary loses its power and what it had not flushed, and when the other
/// node has taken over, everything goes down and comes back.
const SEEDS: &str = "3..5";

/// The whole program: one of its own processes asks within the lab's network who has the virtual address.
#[test]
fn machines_lose_power_and_partners_and_nothing_that_was_acknowledged() {
    let ended = program(env!("CARGO_BIN_EXE_chaos"), &["--seeds", SEEDS, "--backend", "vm"]);
    let said = String::from_utf8_lossy(&ended.stdout);
    println!("{said}{}", String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "see above");
    assert!(said.contains("2 of 2 run, with a violation: []"), "see above");
    assert!(said.contains("1    0 Kill") && said.contains("1    0 Partner"), "what was meant was done");
}
