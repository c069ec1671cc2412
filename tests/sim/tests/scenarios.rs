//! Every directory of tests/scenarios, played and compared with what it expects.

use std::collections::BTreeMap;

use dyad_cluster::eventlog;
use dyad_sim::scenario::all;

const SCENARIOS_MIN: usize = 60;

#[test]
fn stories_end_as_they_are_told() {
    let mut wrong = Vec::new();
    for (path, scenario) in all().unwrap() {
        let (told, run) = scenario.tell();
        assert_eq!(run.violation, None, "{}", scenario.name);
        let golden = path.join("expect.log");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(golden, told).unwrap();
        } else if std::fs::read_to_string(golden).ok().as_ref() != Some(&told) {
            wrong.push(scenario.name);
        }
    }
    assert!(
        wrong.is_empty(),
        "not as in expect.log: {wrong:?}; `cargo xtask update-golden`, then read the diff"
    );
}

#[test]
fn no_story_is_told_twice() {
    let stories = all().unwrap();
    assert!(stories.len() >= SCENARIOS_MIN, "only {} scenarios", stories.len());
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for (path, scenario) in stories {
        let faults: Vec<_> =
            scenario.plan.events.iter().map(|e| (e.fault.to_string(), e.at_ms, e.until_ms)).collect();
        let story = format!(
            "{:?} {} {} {faults:?}",
            scenario.plan.voting, scenario.plan.lease_ms, scenario.plan.volumes
        );
        if let Some(other) = seen.insert(story, scenario.name.clone()) {
            panic!("{} and {other} tell the same", scenario.name);
        }
        let readme = std::fs::read_to_string(path.join("README.md")).unwrap();
        assert!(
            readme.contains(&scenario.covers),
            "{}: README.md does not name {}",
            scenario.name,
            scenario.covers
        );
        let row = scenario.covers.strip_prefix('S').and_then(|row| row.split_once('-'));
        let row = row.is_some_and(|(system, n)| system.parse::<u8>().is_ok() && n.parse::<u8>().is_ok());
        assert!(
            row || scenario.covers.starts_with("fault: "),
            "{}: covers {:?}",
            scenario.name,
            scenario.covers
        );
    }
}

/// The event log of a running node, written and read back, answers as it did.
#[test]
fn recorded_logs_replay() {
    for (_, scenario) in all().unwrap().into_iter().step_by(7) {
        let (_, run) = scenario.tell();
        let mut bytes = eventlog::MAGIC.to_vec();
        for entry in &run.recorded {
            bytes.extend(eventlog::encode(entry).unwrap());
        }
        let entries = eventlog::decode(&bytes).unwrap();
        assert_eq!(entries, run.recorded, "{}", scenario.name);
        assert!(eventlog::replay(&entries).unwrap() > 100, "{}", scenario.name);

        // Cut anywhere, the log is good up to there; a flipped bit is found.
        let cut = eventlog::decode(&bytes[..bytes.len() - 3]).unwrap();
        assert_eq!(cut.len(), entries.len() - 1);
        bytes[40] ^= 4;
        assert!(eventlog::decode(&bytes).is_err(), "{}", scenario.name);
    }
}

/// A core that answers otherwise is noticed.
#[test]
fn a_changed_answer_is_noticed() {
    let (_, scenario) = all().unwrap().remove(0);
    let mut entries = scenario.tell().1.recorded;
    let step = entries
        .iter()
        .rposition(|entry| matches!(entry, eventlog::Entry::Step { actions, .. } if !actions.is_empty()));
    if let eventlog::Entry::Step { actions, .. } = &mut entries[step.unwrap()] {
        actions.pop();
    }
    assert!(matches!(eventlog::replay(&entries), Err(eventlog::LogError::Differs { .. })));
}
