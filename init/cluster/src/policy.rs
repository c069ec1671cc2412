//! What this cluster does by itself, and when: the rules of the protocol with the numbers that are in force.

use crate::condition::{CLIENTS_LOST_MS, LEAVE_PERCENT, LIMIT_PERCENT, RELAX_PERCENT};
use crate::crash::{CRASHES_MAX, CRASHES_WITHIN_MS};
use crate::protect::{BACKOFF_MS, FLAPS_MAX};
use crate::state::{ARBITER_GONE_MS, Config, Voting};

/// One rule: what it is about, and what is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What happens.
    pub when: &'static str,
    /// What the nodes do then.
    pub then: String,
}

/// Milliseconds as people say them.
fn seconds(ms: u64) -> String {
    match (ms / 1000, ms % 1000) {
        (whole, 0) => format!("{whole} s"),
        (whole, rest) => format!("{whole}.{:03} s", rest),
    }
}

/// What is done when a node is lost: the primary's, the standby's.
fn lost(config: &Config) -> [String; 2] {
    let lease = seconds(config.lease_ms);
    let alone = "once nothing can promote the standby";
    match config.voting {
        Voting::Arbiter => [
            format!(
                "once it has been silent for {lease}, the standby takes over with the witness's consent, if it has every \
                 acknowledged write; from a primary that went on alone nobody takes over"
            ),
            format!(
                "the primary goes on alone with the witness's consent, or with the standby's own word that it gives up; \
                 commits wait until then, {alone}"
            ),
        ],
        Voting::PrimaryBiased => [
            "the standby waits for an operator (`dyadctl takeover`): nobody has a third vote".to_owned(),
            format!("the primary goes on alone, as long as its machine does not restart; {alone}"),
        ],
        Voting::Strict => [
            "the standby waits for an operator (`dyadctl takeover`): nobody has a third vote".to_owned(),
            "commits wait until it is back: this site is strict".to_owned(),
        ],
        Voting::FenceDevice => [
            format!(
                "once it has been silent for {lease}, the standby takes over when it has seen it switched off"
            ),
            format!("the primary goes on alone when it has seen it switched off, {alone}"),
        ],
    }
}

/// All rules of a cluster, those that move the database first.
pub fn policy(config: &Config) -> Vec<Rule> {
    let lease = seconds(config.lease_ms);
    let rule = |when, then: String| Rule { when, then };
    let [primary, standby] = lost(config);
    let mut rules = vec![rule("the primary's node is lost", primary), rule("the standby is lost", standby)];
    rules.push(rule(
        "the primary cannot hear who lets it serve",
        format!(
            "it serves for {lease} since it last heard, then the kernel closes its ports and PID 1 ends it"
        ),
    ));
    if config.voting == Voting::Arbiter {
        rules.push(rule(
            "the witness is lost",
            format!(
                "nothing moves; after {} the nodes go on without it, and a node that is lost then waits for an operator",
                seconds(ARBITER_GONE_MS)
            ),
        ));
        rules.push(rule(
            "the other node and the witness are lost",
            format!(
                "a primary that goes on alone already serves on, until it restarts; any other waits for an operator \
                 (`dyadctl takeover`), whose word counts once the witness has been away for {}, or while it grants nothing",
                seconds(ARBITER_GONE_MS)
            ),
        ));
    }
    rules.push(rule(
        "PostgreSQL ends or hangs on the primary",
        format!(
            "the standby takes it if it has everything, else it is started again; after {CRASHES_MAX} times within {} it \
             waits for an operator",
            seconds(CRASHES_WITHIN_MS)
        ),
    ));
    rules.push(rule(
        "the primary's client network, or a service that clients need, is down",
        format!("after {} it is handed over, if the other node's is up", seconds(CLIENTS_LOST_MS)),
    ));
    rules.push(rule(
        "the primary's disk fills up",
        format!(
            "from {LIMIT_PERCENT} % on new writers are refused, until it is below {RELAX_PERCENT} %; from {LEAVE_PERCENT} % on \
             it is handed over, if the other node is below {LIMIT_PERCENT} %"
        ),
    ));
    rules.push(rule(
        "a lost node comes back",
        format!(
            "it becomes the standby and nothing moves back; commits wait for it again once it has everything, {} after a link \
             that was lost, twice as long with every further loss up to {}",
            seconds(BACKOFF_MS),
            seconds(BACKOFF_MS << FLAPS_MAX)
        ),
    ));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Node;

    fn of(voting: Voting, lease_ms: u64) -> Vec<Rule> {
        policy(&Config {
            me: Node::A,
            lease_ms,
            voting,
            resources: Vec::new(),
            vms: Vec::new(),
            memory_mib: [0; 2],
            vips: Vec::new(),
            mutations: crate::Mutations::default(),
        })
    }

    #[test]
    fn numbers_in_force_are_told_and_no_witness_is_named_where_there_is_none() {
        let rules = of(Voting::Arbiter, 3_000);
        assert!(rules[0].then.starts_with("once it has been silent for 3 s, the standby takes over"));
        assert!(
            rules.iter().any(|rule| rule.when == "the witness is lost" && rule.then.contains("after 60 s"))
        );
        assert!(rules.iter().any(|rule| rule.then.contains("3 times within 300 s")));
        assert_eq!(seconds(1_250), "1.250 s");
        for voting in [Voting::PrimaryBiased, Voting::Strict, Voting::FenceDevice] {
            assert!(of(voting, 15_000).iter().all(|rule| !rule.then.contains("witness")), "{voting:?}");
        }
    }
}
