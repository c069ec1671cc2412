//! Short runs of everything, so that a broken rule is noticed within seconds; the long ones are `cargo xtask sim`.

use dyad_cluster::Voting;
use dyad_cluster::mutation::Mutation;
use dyad_sim::explore::{Bounds, NOTHING, STORM, explore, stuck, walk};
use dyad_sim::mutate::Ground;
use dyad_sim::report::{self, Times};
use dyad_sim::{mutate, sim};

#[test]
fn every_order_of_two_writes_in_peace() {
    let found = explore(Bounds { writes: 2, ..NOTHING }, &[], Voting::Arbiter, 60_000);
    assert!(found.complete, "{} states were not all", found.states);
    assert_eq!(found.violation, None);
}

#[test]
fn random_histories_with_every_fault() {
    for seed in 0..60 {
        let found = walk(STORM, &[], Voting::Arbiter, seed, 200);
        assert_eq!(found.violation, None, "seed {seed}");
    }
}

#[test]
fn simulated_clusters_survive_and_recover() {
    let mut take_overs = 0;
    for seed in 0..15 {
        let run = sim::run(seed, &[]);
        assert_eq!(run.violation, None, "replay: cargo run -p dyad-sim -- sim --seed {seed}");
        assert!(run.acknowledged >= 100, "seed {seed}: only {} writes were acknowledged", run.acknowledged);
        take_overs += run.take_overs;
    }
    assert!(take_overs >= 5, "only {take_overs} take-overs in 15 histories");
}

#[test]
fn one_seed_is_one_history() {
    assert_eq!(sim::run(7, &[]).log, sim::run(7, &[]).log);
}

#[test]
fn oracles_notice_broken_clauses() {
    for mutation in [Mutation::NoBarrier, Mutation::DropBeforeSolo] {
        let case = mutate::CASES.iter().find(|case| case.broken == [mutation]).unwrap();
        assert!(mutate::judge(case.broken, case.ground, 400).killed.is_some(), "{mutation:?} survives");
    }
}

/// Simulated time: neither a machine nor its load is in it.
#[test]
fn a_lost_node_is_done_with_within_its_time() {
    for lease_ms in [3_000, 5_000, 15_000] {
        let times = report::times(lease_ms, 200);
        for (name, within_ms) in
            [("node loss to grant", lease_ms + 1_000), ("standby loss to Solo", lease_ms + 3_000)]
        {
            let Times(all) = &times[name];
            assert_eq!(all.len(), 200, "{name}, T = {lease_ms}: every one of them ends");
            let most = all.iter().max().unwrap();
            assert!(*most <= within_ms, "{name}, T = {lease_ms}: {most} ms, {within_ms} at most");
        }
    }
}

#[test]
fn beginnings_can_be_led() {
    let singles = mutate::CASES.iter().map(|case| (case.broken.to_vec(), case.ground));
    let pairs = mutate::COVERED.iter().map(|c| ([&[c.alone], c.with].concat(), c.ground));
    for (broken, ground) in singles.chain(pairs) {
        if let Ground::Led(beginning, bounds) = ground {
            assert_eq!(stuck(beginning, bounds, &broken, Voting::Arbiter), None, "{broken:?}");
        }
    }
}

#[test]
fn every_mutation_has_its_row() {
    for &mutation in Mutation::ALL {
        let judged = mutate::CASES.iter().any(|case| case.broken.contains(&mutation));
        let covered = mutate::COVERED.iter().any(|case| case.alone == mutation);
        assert!(judged || covered, "{mutation:?} is nowhere");
    }
}
