//! The arbiter as a node sees it: something that answers, or does not.

use dyad_cluster::message::{FromArbiter, ToArbiter};
use dyad_cluster::types::ClusterId;

use crate::client::{Cause, Client, Unknown};
use crate::witness::{Call, Reply};

/// An arbiter, wherever it keeps its registers. The rules are `dyad_cluster::arbiter`'s behind every one of these.
pub trait ArbiterLink: Send + Sync {
    /// Asks. An error of any kind says nothing about what became of the question.
    fn ask(&self, message: ToArbiter) -> impl Future<Output = Result<FromArbiter, Unknown>> + Send;
}

/// A cluster's place at a witness.
#[derive(Debug)]
pub struct WitnessLink {
    client: Client<Call, Reply>,
    cluster: ClusterId,
}

impl WitnessLink {
    /// Over a client whose trust is the witness's pinned key.
    pub fn new(client: Client<Call, Reply>, cluster: ClusterId) -> Self {
        WitnessLink { client, cluster }
    }
}

impl ArbiterLink for WitnessLink {
    async fn ask(&self, message: ToArbiter) -> Result<FromArbiter, Unknown> {
        let call = Call::Arbiter { cluster: self.cluster, message };
        match self.client.call(&call).await? {
            Reply::Arbiter(answer) => Ok(answer),
            Reply::Refused(refused) => Err(self.client.unknown(Cause::Declined(refused.to_string()))),
            Reply::Enrolled { .. } | Reply::Registers { .. } | Reply::Left => {
                Err(self.client.unknown(Cause::OtherAnswer))
            }
        }
    }
}
