//! kill -9 of the supervisor at each step of bring-up: whoever comes next finishes the work.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use support::{Node, SITE};

/// Kills the supervisor at its N-th request to PID 1 for N = 1, 2, ... until one gets through; each successor meets what
/// its predecessor left. Every second kill comes while PID 1 carries the request out, the others before.
#[test]
fn killed_at_each_request_to_pid_1_it_converges() {
    let mut node = Node::new(Some(SITE));
    let mut kills = 0;
    for at in 1.. {
        assert!(at < 60, "bring-up makes few requests");
        let (seen, count) = (Arc::new(AtomicUsize::new(0)), mpsc::sync_channel::<()>(0));
        let (reached, killed) = (mpsc::sync_channel::<()>(0), count);
        let counter = Arc::clone(&seen);
        let (tell, wait) = (reached.0, killed.1);
        node.init.hook(Box::new(move |_| {
            if counter.fetch_add(1, Ordering::SeqCst) + 1 == at {
                // The receiver is gone once the test has given up on this round.
                let _ = tell.send(());
                if at % 2 == 1 {
                    let _ = wait.recv_timeout(Duration::from_secs(5));
                }
            }
        }));
        node.start();
        let mut client = None;
        let served = node.wait("the request or service", || {
            if reached.1.try_recv().is_ok() {
                return Some(false);
            }
            let client = client.get_or_insert_with(|| node.client());
            let status = client.call::<dyad_api::operator::Status>(dyad_api::operator::Call::Status).ok()?;
            (status.protection == dyad_api::operator::Protection::Single).then_some(true)
        });
        drop(client);
        if served {
            break;
        }
        node.kill();
        kills += 1;
        let _ = killed.0.try_send(());
    }
    assert!(kills >= 7, "only {kills} kills");
    converged(&node);
}

/// Kills it after rising times, so that the steps between two requests are hit too.
#[test]
#[allow(clippy::disallowed_methods, reason = "the point in time is what is varied")]
fn killed_at_any_time_it_converges() {
    let mut node = Node::new(Some(SITE));
    for round in 0..24 {
        node.start();
        std::thread::sleep(Duration::from_millis(15 + round * 60));
        node.kill();
    }
    node.start();
    node.wait_serving();
    converged(&node);
}

fn converged(node: &Node) {
    assert!(!node.path("data/pg/main.new").exists(), "nothing half-made is left");
    assert!(!node.init.runs("initdb"), "nothing runs for a supervisor that is gone");
    let password = &node.credentials().roles[0].password;
    assert_eq!(node.psql(Some(("app", password)), "shop", "select 1").unwrap(), "1");
    assert_eq!(node.sql("select count(*) from pg_database where datname = 'shop'"), "1");
    assert_eq!(node.sql("show data_checksums"), "on");
}
