//! The model of a volume against DRBD 8.4: the same scripts, the same outcomes. tests/vm runs them on two machines.

use dyad_sim::calibrate::{run, scripts};
use dyad_sim::volume::{EXPECT, Model, SCRIPTS};

const SCRIPTS_MIN: usize = 12;

#[test]
fn the_model_does_what_drbd_did() {
    let recorded = std::fs::read_to_string(EXPECT).unwrap();
    let all = scripts(SCRIPTS);
    assert!(all.len() >= SCRIPTS_MIN, "only {} scripts", all.len());
    let modelled: Vec<String> = all
        .iter()
        .map(|script| {
            let mut model = Model::default();
            run(script, |line| model.operate(line))
        })
        .collect();
    assert_eq!(modelled.join("\n"), recorded);
}
