//! From a request to an answer: pure.

use dyad_api::operator::Status;
use serde_json::json;

use super::metrics;

/// What answers are made from.
pub(crate) struct Facts {
    /// As operators see it.
    pub(crate) status: Status,
    /// Clients are served here as primary.
    pub(crate) primary: bool,
    /// This node follows its primary.
    pub(crate) standby: bool,
    /// What clients need beside PostgreSQL runs here; where that is nothing, PostgreSQL does.
    pub(crate) application: bool,
    /// Commits wait for this standby.
    pub(crate) synchronous: bool,
    /// The standby receives.
    pub(crate) streams: bool,
    /// What the standby has not replayed.
    pub(crate) lag_bytes: Option<u64>,
    /// Flushed by a primary, replayed by a standby.
    pub(crate) position: Option<u64>,
    /// Transactions of which a primary cleans nothing up, for its standby.
    pub(crate) held_back: Option<u64>,
}

/// A request as far as it matters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    method: Method,
    path: String,
    query: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Get,
    /// Without the body.
    Head,
    /// What HAProxy asks with unless told otherwise; without the body.
    Options,
}

impl Request {
    /// `None`: its head has not ended yet.
    pub(super) fn parse(head: &[u8]) -> Result<Option<Self>, Response> {
        let ended =
            head.windows(4).any(|four| four == b"\r\n\r\n") || head.windows(2).any(|two| two == b"\n\n");
        if !ended {
            return Ok(None);
        }
        let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let refuse =
            || Response::text(400, "accepted: GET, HEAD or OPTIONS, a path, HTTP/1.0 or HTTP/1.1\n".into());
        let line = std::str::from_utf8(line).map_err(|_| refuse())?;
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [method, target, version] = words[..] else { return Err(refuse()) };
        if !version.starts_with("HTTP/1.") || !target.starts_with('/') {
            return Err(refuse());
        }
        let method = match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "OPTIONS" => Method::Options,
            _ => return Err(Response::text(405, "GET, HEAD and OPTIONS are answered\n".into())),
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Ok(Some(Request { method, path: path.into(), query: query.into() }))
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(n, _)| *n == name))
            .map(|(_, v)| v)
    }
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Response {
    status: u16,
    kind: &'static str,
    body: String,
    /// Its head alone is sent.
    bare: bool,
}

impl Response {
    /// In words.
    pub(super) fn text(status: u16, body: String) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", body, bare: false }
    }

    /// As it is sent.
    pub(super) fn encode(&self) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        };
        let (status, kind, length) = (self.status, self.kind, self.body.len());
        let body = if self.bare { "" } else { &self.body };
        format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
             Cache-Control: no-cache\r\nConnection: close\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// The answer to a request.
pub(super) fn answer(request: &Request, facts: &Facts) -> Response {
    let mut response = match &*request.path {
        "/metrics" => {
            Response { kind: "text/plain; version=0.0.4", ..Response::text(200, metrics::text(facts)) }
        }
        path => match holds(path, request, facts) {
            Some(Ok(holds)) => {
                let body = format!("{}\n", body(facts));
                Response { kind: "application/json", ..Response::text(if holds { 200 } else { 503 }, body) }
            }
            Some(Err(why)) => Response::text(400, why),
            None => Response::text(404, format!("there is nothing at {path}\n")),
        },
    };
    response.bare = request.method != Method::Get;
    response
}

/// Whether what a path asks is so; `None`: it asks nothing.
fn holds(path: &str, request: &Request, facts: &Facts) -> Option<Result<bool, String>> {
    let lag = match request.parameter("lag").map(bytes) {
        Some(None) => {
            return Some(Err("lag: a number of bytes, or of kB, MB, GB or TB, is accepted\n".into()));
        }
        Some(Some(most)) => facts.lag_bytes.is_some_and(|lag| lag <= most),
        None => true,
    };
    let streaming = match request.parameter("replication_state") {
        Some("streaming") => facts.streams,
        Some(other) => {
            return Some(Err(format!("replication_state: \"streaming\" is accepted, not {other:?}\n")));
        }
        None => true,
    };
    let standby = facts.standby && lag && streaming;
    Some(Ok(match path {
        "/" | "/primary" | "/master" | "/leader" | "/read-write" => facts.primary,
        "/replica" => standby,
        "/read-only" => facts.primary || standby,
        "/sync" | "/synchronous" => standby && facts.synchronous,
        "/read-only-sync" => facts.primary || (standby && facts.synchronous),
        "/async" | "/asynchronous" => standby && !facts.synchronous,
        "/read-only-async" => facts.primary || (standby && !facts.synchronous),
        // Not one of Patroni's.
        "/app" => facts.application,
        // There is one cluster here, and it follows nobody.
        "/standby-leader" | "/standby_leader" => false,
        "/health" => facts.primary || facts.standby,
        // Whoever answers lives: loop, adapters and this are one thread.
        "/liveness" | "/patroni" => true,
        "/readiness" => facts.primary || (facts.standby && facts.streams),
        _ => return None,
    }))
}

/// A size as Patroni's `lag` takes it.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        "kB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn body(facts: &Facts) -> serde_json::Value {
    let node = &facts.status.node;
    let running = facts.primary || facts.standby;
    let own = facts.status.nodes.iter().find(|row| row.name == node.name);
    let xlog = if facts.standby {
        json!({ "replayed_location": facts.position, "received_location": facts.position })
    } else {
        json!({ "location": facts.position })
    };
    json!({
        "state": if running { "running" } else { "stopped" },
        "role": if facts.primary { "primary" } else { "replica" },
        "timeline": own.and_then(|row| row.timeline),
        "xlog": xlog,
        "replication_state": facts.streams.then_some("streaming"),
        "sync_standby": facts.synchronous,
        "dyad": {
            "scope": node.cluster,
            "name": node.name,
            "protection": facts.status.protection,
            "reason": facts.status.reason,
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::tests_support::facts;
    use super::*;

    fn ask(line: &str, facts: &Facts) -> Response {
        let head = format!("{line} HTTP/1.0\r\nHost: x\r\n\r\n");
        answer(&Request::parse(head.as_bytes()).unwrap().unwrap(), facts)
    }

    proptest::proptest! {
        /// Whatever a client sends: a request, a refusal, or a wait for more; and more of it changes no answer.
        #[test]
        fn any_head_is_read_refused_or_awaited(
            begin in proptest::sample::select(vec!["", "GET /", "GET /replica?lag=", "HEAD /x HTTP/1.1\r\n", "\n"]),
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            end in proptest::sample::select(vec!["", " HTTP/1.1\r\n\r\n", "\n\n"]),
            more in proptest::collection::vec(proptest::num::u8::ANY, 0..20),
        ) {
            let head = [begin.as_bytes(), &bytes, end.as_bytes()].concat();
            match Request::parse(&head) {
                Ok(None) => proptest::prop_assert!(!head.ends_with(b"\n\n")),
                first => {
                    let longer = Request::parse(&[head, more].concat());
                    proptest::prop_assert_eq!(format!("{first:?}"), format!("{longer:?}"));
                }
            }
        }
    }

    #[test]
    fn paths_mean_what_patroni_means_by_them() {
        let primary = facts(|facts| (facts.primary, facts.application) = (true, true));
        let standby = facts(|facts| (facts.standby, facts.synchronous, facts.streams) = (true, true, true));
        let behind = facts(|facts| (facts.standby, facts.lag_bytes) = (true, Some(2 << 20)));
        let nothing = facts(|_| {});
        // Path; primary, synchronous standby, one behind that does not receive, none of them.
        let table = [
            ("/", [200, 503, 503, 503]),
            ("/primary", [200, 503, 503, 503]),
            ("/leader", [200, 503, 503, 503]),
            ("/read-write", [200, 503, 503, 503]),
            ("/standby-leader", [503, 503, 503, 503]),
            ("/replica", [503, 200, 200, 503]),
            ("/replica?lag=1MB", [503, 200, 503, 503]),
            ("/replica?lag=2097152", [503, 200, 200, 503]),
            ("/replica?replication_state=streaming", [503, 200, 503, 503]),
            ("/read-only", [200, 200, 200, 503]),
            ("/sync", [503, 200, 503, 503]),
            ("/async", [503, 503, 200, 503]),
            ("/read-only-sync", [200, 200, 503, 503]),
            ("/app", [200, 503, 503, 503]),
            ("/health", [200, 200, 200, 503]),
            ("/liveness", [200, 200, 200, 200]),
            ("/readiness", [200, 200, 503, 503]),
            ("/metrics", [200, 200, 200, 200]),
            ("/nothing", [404, 404, 404, 404]),
            ("/replica?lag=much", [400, 400, 400, 400]),
        ];
        for (path, wanted) in table {
            let found =
                [&primary, &standby, &behind, &nothing].map(|it| ask(&format!("GET {path}"), it).status);
            assert_eq!(found, wanted, "{path}");
        }
    }

    #[test]
    fn heads_are_read_whole_and_anything_else_is_refused() {
        assert_eq!(Request::parse(b"GET / HTTP/1.1\r\nHost: x\r\n"), Ok(None));
        for (head, status) in [
            (&b"POST / HTTP/1.1\r\n\r\n"[..], 405),
            (b"GET /\r\n\r\n", 400),
            (b"GET http://x/ HTTP/1.1\r\n\r\n", 400),
            (b"\xff\xfe\r\n\r\n", 400),
        ] {
            assert_eq!(Request::parse(head).unwrap_err().status, status, "{head:?}");
        }
        // Any one byte other: read or refused, and answered.
        let whole = b"GET /replica?lag=1MB HTTP/1.0\r\nHost: x\r\n\r\n";
        for (at, byte) in (0..whole.len()).flat_map(|at| (0..=255).map(move |byte| (at, byte))) {
            let mut head = whole.to_vec();
            head[at] = byte;
            if let Ok(Some(request)) = Request::parse(&head) {
                answer(&request, &facts(|_| {})).encode();
            }
        }
        let text = String::from_utf8(ask("OPTIONS /primary", &facts(|facts| facts.primary = true)).encode())
            .unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n"), "{text}");
    }

    #[test]
    fn metrics_are_in_the_text_format() {
        let text = ask("GET /metrics", &facts(|facts| facts.primary = true)).body;
        assert!(text.contains("\ndyad_protection{level=\"PROTECTED\"} 1\n"), "{text}");
        assert!(text.contains("\ndyad_protection{level=\"DOWN\"} 0\n"), "{text}");
        assert!(text.contains("\ndyad_primary 1\n"), "{text}");
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            name.starts_with("dyad_").then_some(())?;
            value.parse::<f64>().ok()
        };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(sample(line).is_some(), "{line}");
        }
    }

    /// A metric that is renamed must not silence the alarms that are shipped.
    #[test]
    fn alarms_ask_for_metrics_that_there_are() {
        let text =
            ask("GET /metrics", &facts(|facts| (facts.lag_bytes, facts.held_back) = (Some(0), Some(0)))).body;
        let rules = include_str!("../../../../docs/alerts.yml");
        let named = rules.lines().filter_map(|line| line.trim().strip_prefix("expr:"));
        let words = named.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
        let asked: BTreeSet<&str> = words.filter(|word| word.starts_with("dyad_")).collect();
        assert!(asked.len() > 5, "{asked:?}");
        for name in asked {
            assert!(text.contains(&format!("# TYPE {name} ")), "{name} in:\n{text}");
        }
    }
}

#[cfg(test)]
mod tests_support {
    use dyad_api::operator::{
        NetworkSection, NodeRow, NodeSection, PostgresqlSection, Protection, ResourceRow, Status, VipRow,
        WayRow,
    };

    use super::Facts;

    /// A node for which only what is changed holds.
    pub(super) fn facts(change: impl FnOnce(&mut Facts)) -> Facts {
        let row = NodeRow {
            name: "a".into(),
            role: "none".into(),
            up: false,
            timeline: Some(3),
            lag_bytes: Some(0),
        };
        let status = Status {
            protection: Protection::Protected,
            reason: String::new(),
            nodes: vec![row],
            resources: vec![ResourceRow {
                name: "pg/main".into(),
                epoch: 7,
                mode: "Sync".into(),
                holder: "a".into(),
            }],
            vips: vec![VipRow {
                address: "192.0.2.9/24".into(),
                holder: Some("a".into()),
                note: String::new(),
            }],
            node: NodeSection {
                name: "a".into(),
                cluster: None,
                key: None,
                site: String::new(),
                image: None,
                phases: Vec::new(),
                services: Vec::new(),
                storage: Vec::new(),
                network: NetworkSection { state: "applied".into(), note: String::new(), links: Vec::new() },
                ways: vec![WayRow { address: "192.0.2.2".into(), interface: "lan0".into(), up: Some(true) }],
                postgresql: PostgresqlSection {
                    state: "serving".into(),
                    note: String::new(),
                    version: None,
                    system_identifier: None,
                    timeline: None,
                    probe: None,
                    repaired: Vec::new(),
                    restarts: 0,
                },
            },
        };
        let mut facts = Facts {
            status,
            primary: false,
            standby: false,
            synchronous: false,
            application: false,
            streams: false,
            lag_bytes: Some(0),
            position: None,
            held_back: None,
        };
        change(&mut facts);
        facts
    }
}
