//! The model of a volume against DRBD 8.4: the same scripts, the same outcomes. tests/vm runs them on two machines.

use dyad_sim::calibrate::all;
use dyad_sim::volume::{EXPECT, Model, SCRIPTS};

const SCRIPTS_MIN: usize = 12;

#[test]
fn the_model_does_what_drbd_did() {
    let recorded = std::fs::read_to_string(EXPECT).unwrap();
    assert_eq!(all(SCRIPTS, SCRIPTS_MIN, Model::operate), recorded);
}
