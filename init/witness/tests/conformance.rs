//! The promises of an arbiter, kept by the real program over real sockets.

mod support;

use dyad_channel::client::{Client, Limits};
use dyad_channel::conformance::{self, Subject};
use dyad_channel::link::WitnessLink;
use dyad_channel::tls::{self, Speaks, Trust};
use dyad_channel::witness::FRAME_BYTES_MAX;
use support::process::{Running, pair};

struct Fresh {
    witness: Running,
    clusters: u128,
}

impl Subject for Fresh {
    type Link = WitnessLink;

    async fn fresh(&mut self) -> [WitnessLink; 2] {
        self.clusters += 1;
        let mut members = pair(self.clusters, self.witness.address);
        let code = self.witness.enroll().secret();
        for member in &mut members {
            member.enroll(&code, self.witness.address).await.unwrap();
        }
        members.map(|member| {
            let limits = Limits { call_ms: 20_000, frame_bytes_max: FRAME_BYTES_MAX, waiting_max: 4 };
            let tls = tls::client(&member.identity, Trust::AnyKey, Speaks::Witness).unwrap();
            WitnessLink::new(Client::new(self.witness.address, tls, limits), member.cluster)
        })
    }
}

#[tokio::test]
async fn the_witness_keeps_every_promise_of_an_arbiter() {
    let dir = tempfile::tempdir().unwrap();
    let witness = Running::start(&dir.path().join("state"));
    conformance::run(&mut Fresh { witness, clusters: 0 }).await;
}
