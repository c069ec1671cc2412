//! The few calls of etcd's v3 JSON gateway that an arbiter needs. Numbers of 64 bits are texts there, keys and values
//! base64, and what is zero or empty is left out.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::{self, HttpError};

/// Why an answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("etcd at {0}")]
    Http(#[from] HttpError),
    #[error("etcd's answer to {0} does not decode: {1}")]
    Decode(&'static str, String),
    #[error("no etcd endpoint is configured")]
    NoEndpoint,
}

/// In every answer.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Header {
    #[serde(deserialize_with = "number")]
    pub(crate) cluster_id: u64,
    #[serde(deserialize_with = "number")]
    pub(crate) revision: u64,
    #[serde(deserialize_with = "number")]
    pub(crate) raft_term: u64,
}

/// A key with its value.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct KeyValue {
    #[serde(deserialize_with = "bytes")]
    pub(crate) key: Vec<u8>,
    #[serde(default, deserialize_with = "bytes")]
    pub(crate) value: Vec<u8>,
    #[serde(deserialize_with = "number")]
    pub(crate) mod_revision: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Range {
    pub(crate) header: Header,
    #[serde(default)]
    pub(crate) kvs: Vec<KeyValue>,
}

#[derive(Debug, Deserialize)]
struct Txn {
    header: Header,
    #[serde(default)]
    succeeded: bool,
}

#[derive(Debug, Deserialize)]
struct Granted {
    #[serde(rename = "ID", deserialize_with = "number")]
    id: u64,
}

#[derive(Debug, Deserialize)]
struct Kept {
    result: KeptResult,
}

#[derive(Debug, Deserialize)]
struct KeptResult {
    #[serde(rename = "TTL", default, deserialize_with = "number")]
    ttl: u64,
}

fn number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

fn bytes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    STANDARD.decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// A write in a transaction.
pub(crate) struct Put {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    /// Zero: none.
    pub(crate) lease: u64,
}

/// etcd, at any of several addresses.
#[derive(Debug)]
pub(crate) struct Api {
    endpoints: Vec<SocketAddr>,
    /// The one that answered last.
    current: AtomicUsize,
}

impl Api {
    pub(crate) fn new(endpoints: Vec<SocketAddr>) -> Self {
        Api { endpoints, current: AtomicUsize::new(0) }
    }

    /// Asks one endpoint. After an error the next question goes to the next: repeating this one here could do it twice.
    async fn post<T: for<'a> Deserialize<'a>>(&self, path: &'static str, body: Value) -> Result<T, ApiError> {
        let at = self.current.load(Ordering::Relaxed);
        let to = *self.endpoints.get(at % self.endpoints.len().max(1)).ok_or(ApiError::NoEndpoint)?;
        let answer = http::post(to, path, &body.to_string()).await;
        if answer.is_err() {
            self.current.store(at.wrapping_add(1), Ordering::Relaxed);
        }
        serde_json::from_str(&answer?).map_err(|error| ApiError::Decode(path, error.to_string()))
    }

    /// All keys that begin with this, as etcd's majority has them (a linearizable read).
    pub(crate) async fn range(&self, prefix: &str) -> Result<Range, ApiError> {
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        self.post("/v3/kv/range", json!({"key": STANDARD.encode(prefix), "range_end": STANDARD.encode(end)}))
            .await
    }

    /// Writes all, if each of these keys was last changed at its revision (zero: is not there). False: nothing was done.
    pub(crate) async fn txn(
        &self,
        expect: &[(String, u64)],
        puts: &[Put],
    ) -> Result<(Header, bool), ApiError> {
        let compare: Vec<Value> = expect
            .iter()
            .map(|(key, revision)| {
                json!({"key": STANDARD.encode(key), "target": "MOD", "result": "EQUAL",
                    "mod_revision": revision.to_string()})
            })
            .collect();
        let success: Vec<Value> = puts
            .iter()
            .map(|put| {
                json!({"requestPut": {"key": STANDARD.encode(&put.key), "value": STANDARD.encode(&put.value),
                    "lease": put.lease.to_string()}})
            })
            .collect();
        let done: Txn = self.post("/v3/kv/txn", json!({"compare": compare, "success": success})).await?;
        Ok((done.header, done.succeeded))
    }

    /// A new lease that lives this many seconds without renewal.
    pub(crate) async fn grant(&self, ttl_s: u64) -> Result<u64, ApiError> {
        let granted: Granted = self.post("/v3/lease/grant", json!({"TTL": ttl_s.to_string()})).await?;
        Ok(granted.id)
    }

    /// Renews a lease; false: it has ended.
    pub(crate) async fn keep(&self, lease: u64) -> Result<bool, ApiError> {
        let kept: Kept = self.post("/v3/lease/keepalive", json!({"ID": lease.to_string()})).await?;
        Ok(kept.result.ttl > 0)
    }
}
