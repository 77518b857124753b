//! Clients that may send requests, and their limits: bearer tokens from a file.
//!
//! Without a file, every client may do everything. That suits a server which listens only on its
//! own machine's address. Start at [`Clients::read`]; requests pass the [`Gate`].

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    api::error::ApiError,
    plan::{Budget, MAX_LATENCY_BUDGET_MS, MAX_MEMORY_BUDGET_MB},
    tensor::{ByteSize, FileKind, read_text},
};

/// Scheme before a token in the `Authorization` header.
const SCHEME: &str = "bearer ";

/// Error for a file of clients that is refused.
#[derive(Debug, thiserror::Error)]
pub enum ClientsError {
    /// The file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The file is not valid TOML, or has a wrong or unknown key.
    #[error("{}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Description of the mistake.
        message: String,
    },
}

/// Content of the file: `[clients.NAME]`, each with a token and limits.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientsFile {
    clients: BTreeMap<String, ClientSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientSpec {
    token: Option<String>,
    token_sha256: Option<String>,
    requests_per_second: Option<NonZeroU32>,
    max_latency_budget_ms: Option<f64>,
    max_memory_budget_mb: Option<f64>,
    first_priority: Option<NonZeroU32>,
    #[serde(default)]
    admin: bool,
}

/// The clients that a file names.
#[derive(Debug)]
pub struct Clients {
    clients: Vec<Arc<Client>>,
}

#[derive(Debug)]
struct Client {
    name: String,
    digest: [u8; 32],
    limiter: Option<DefaultDirectRateLimiter>,
    max_latency: Option<Duration>,
    max_memory_bytes: Option<u64>,
    first_priority: u32,
    is_admin: bool,
}

/// Gate that requests pass; its clients can be replaced while it is open.
#[derive(Debug, Default)]
pub struct Gate(RwLock<Option<Arc<Clients>>>);

/// Rights of a request that passed the gate.
#[derive(Debug, Clone)]
pub(crate) struct Permit(Option<Arc<Client>>);

impl Clients {
    /// Reads the clients from the file at `path`.
    ///
    /// # Errors
    ///
    /// Fails on a file that cannot be read, is not TOML, or has unknown keys or invalid values. The
    /// error names the file and the client.
    pub fn read(path: &Path) -> Result<Self, ClientsError> {
        let text = read_text(path, FileKind::Clients)
            .map_err(|source| ClientsError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text)
            .map_err(|message| ClientsError::Malformed { path: path.to_owned(), message })
    }

    fn parse(text: &str) -> Result<Self, String> {
        // The parser's full error shows a part of the file, which might be a token.
        let file: ClientsFile = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        let client = |(name, spec): (String, ClientSpec)| {
            Client::new(name.clone(), spec).map_err(|reason| format!("client `{name}`: {reason}"))
        };
        let clients = file.clients.into_iter().map(client).collect::<Result<Vec<_>, _>>()?;
        if clients.is_empty() {
            return Err("there is no client".to_owned());
        }
        check_tokens(&clients)?;
        Ok(Self { clients: clients.into_iter().map(Arc::new).collect() })
    }

    /// Returns the client with the token `token`, or None if it is not known. The time that this
    /// takes reveals nothing about the tokens.
    fn find(&self, token: &str) -> Option<Arc<Client>> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut found = None;
        for client in &self.clients {
            if bool::from(client.digest.ct_eq(&digest)) {
                found = Some(client.clone());
            }
        }
        found
    }
}

impl Client {
    fn new(name: String, spec: ClientSpec) -> Result<Self, String> {
        let digest = match (spec.token, spec.token_sha256) {
            (Some(token), None) if token.len() >= 16 => Sha256::digest(token.as_bytes()).into(),
            (Some(_), None) => return Err("token must have 16 bytes or more".to_owned()),
            (None, Some(hex)) => parse_digest(&hex).ok_or("token_sha256 must be 64 hex digits")?,
            _ => return Err("give token or token_sha256, and not both".to_owned()),
        };
        let positive = |key: &str, value: Option<f64>, most: f64| match value {
            Some(value) if !(value > 0.0 && value <= most) => {
                Err(format!("{key} is {value}, it must be over 0 and at most {most:e}"))
            }
            other => Ok(other),
        };
        let latency =
            positive("max_latency_budget_ms", spec.max_latency_budget_ms, MAX_LATENCY_BUDGET_MS)?;
        let memory =
            positive("max_memory_budget_mb", spec.max_memory_budget_mb, MAX_MEMORY_BUDGET_MB)?;
        let max_latency = latency
            .map(|ms| Duration::try_from_secs_f64(ms / 1e3).map_err(|e| e.to_string()))
            .transpose()?;
        let max_memory_bytes = memory
            .map(|mb| format!("{mb}MB").parse::<ByteSize>().map_err(|e| e.to_string()))
            .transpose()?
            .map(|size| size.0);
        let limiter =
            spec.requests_per_second.map(|count| RateLimiter::direct(Quota::per_second(count)));
        let first_priority = spec.first_priority.map_or(1, NonZeroU32::get);
        let is_admin = spec.admin;
        Ok(Self { name, digest, limiter, max_latency, max_memory_bytes, first_priority, is_admin })
    }

    /// Counts a request, and fails if the client is over its rate limit.
    fn check_rate(&self) -> Result<(), ApiError> {
        let Some(Err(not_until)) = self.limiter.as_ref().map(RateLimiter::check) else {
            return Ok(());
        };
        let wait = not_until.wait_time_from(DefaultClock::default().now());
        Err(ApiError::RateLimited { client: self.name.clone(), wait })
    }
}

impl Gate {
    /// Creates a gate that only `clients` pass, or every client if `clients` is `None`.
    pub fn new(clients: Option<Clients>) -> Self {
        Self(RwLock::new(clients.map(Arc::new)))
    }

    /// Replaces the clients; requests that already passed go on.
    pub fn replace(&self, clients: Option<Clients>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = clients.map(Arc::new);
    }

    /// Checks the token in the header `authorization`, and counts a request of its client.
    ///
    /// # Errors
    ///
    /// Fails on a missing or wrong token, and on a client that asks too often.
    pub(crate) fn pass(&self, authorization: Option<&str>) -> Result<Permit, ApiError> {
        let permit = self.identify(authorization)?;
        permit.0.as_ref().map_or(Ok(()), |client| client.check_rate())?;
        Ok(permit)
    }

    /// Returns the rights of the client with the header `authorization`, without counting a
    /// request.
    ///
    /// # Errors
    ///
    /// Fails on a missing or wrong token.
    pub(crate) fn identify(&self, authorization: Option<&str>) -> Result<Permit, ApiError> {
        let Some(clients) = self.0.read().unwrap_or_else(PoisonError::into_inner).clone() else {
            return Ok(Permit(None));
        };
        let token = authorization
            .and_then(|value| {
                let (scheme, token) = value.split_at_checked(SCHEME.len())?;
                scheme.eq_ignore_ascii_case(SCHEME).then_some(token.trim())
            })
            .ok_or(ApiError::NoToken)?;
        clients.find(token).map(|client| Permit(Some(client))).ok_or(ApiError::WrongToken)
    }
}

impl Permit {
    /// Limits `budget` and `priority` to the most that the client may take.
    pub(crate) fn cap(&self, budget: &mut Budget, priority: &mut u32) {
        let Some(client) = &self.0 else {
            return;
        };
        *priority = client.first_priority.max(*priority);
        budget.latency = smaller(budget.latency, client.max_latency);
        budget.memory_bytes = smaller(budget.memory_bytes, client.max_memory_bytes);
    }

    /// Returns a number that the client alone has; 0 where requests need no token.
    pub(crate) fn number(&self) -> u64 {
        self.0.as_ref().map_or(0, |client| {
            let mut hasher = DefaultHasher::new();
            client.name.hash(&mut hasher);
            hasher.finish()
        })
    }

    /// Checks that the client may load and unload models.
    ///
    /// # Errors
    ///
    /// Fails if the client may not.
    pub(crate) fn check_admin(&self) -> Result<(), ApiError> {
        match &self.0 {
            Some(client) if !client.is_admin => {
                Err(ApiError::NoAdmin { client: client.name.clone() })
            }
            _ => Ok(()),
        }
    }
}

/// Checks that no two clients share a token; otherwise neither could be told from the other.
fn check_tokens(clients: &[Client]) -> Result<(), String> {
    let mut names = BTreeMap::new();
    for Client { name, digest, .. } in clients {
        if let Some(other) = names.insert(digest, name) {
            return Err(format!("clients `{other}` and `{name}` have the same token"));
        }
    }
    Ok(())
}

fn smaller<T: Ord>(asked: Option<T>, most: Option<T>) -> Option<T> {
    match (asked, most) {
        (Some(asked), Some(most)) => Some(asked.min(most)),
        (asked, most) => asked.or(most),
    }
}

fn parse_digest(hex: &str) -> Option<[u8; 32]> {
    let is_hex = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut digest = [0; 32];
    for (index, byte) in digest.iter_mut().enumerate().filter(|_| is_hex) {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
    }
    is_hex.then_some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        [clients.alice]
        token = "a token of alice"
        max_latency_budget_ms = 20
        max_memory_budget_mb = 1.5
        first_priority = 50
        [clients.ops]
        token_sha256 = "9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08"
        requests_per_second = 1
        admin = true
    "#;

    fn gate() -> Gate {
        Gate::new(Some(Clients::parse(FILE).expect("valid")))
    }

    #[test]
    fn a_token_is_needed_where_there_are_clients() {
        let gate = gate();
        for (header, reason) in [
            (None, "needs a token"),
            (Some("Basic YTpi"), "needs a token"),
            (Some("Bearer"), "needs a token"),
            (Some("Bearer wrong"), "is not known"),
            (Some("Bearer "), "is not known"),
            (Some("Bearer é"), "is not known"),
        ] {
            let error = gate.pass(header).expect_err(reason);
            assert!(error.to_string().contains(reason), "{error}");
        }
        assert!(gate.pass(Some("bearer a token of alice")).is_ok());
        gate.replace(None);
        assert!(gate.pass(None).is_ok());
    }

    #[test]
    fn budgets_are_capped_at_the_client_s() {
        let permit = gate().pass(Some("Bearer a token of alice")).expect("known");
        let capped = |latency_ms: Option<u64>| {
            let latency = latency_ms.map(Duration::from_millis);
            let mut budget = Budget { latency, ..Budget::default() };
            permit.cap(&mut budget, &mut 1);
            (budget.latency, budget.memory_bytes)
        };
        assert_eq!(capped(None), (Some(Duration::from_millis(20)), Some(1_500_000)));
        assert_eq!(capped(Some(5)).0, Some(Duration::from_millis(5)));
        assert_eq!(capped(Some(50)).0, Some(Duration::from_millis(20)));
        assert!(permit.check_admin().is_err());
    }

    #[test]
    fn a_client_goes_before_others_only_as_far_as_it_may() {
        let gate = gate();
        for (token, asked, expected) in [
            ("Bearer a token of alice", 1, 50),
            ("Bearer a token of alice", 50, 50),
            ("Bearer a token of alice", 100, 100),
            ("Bearer test", 1, 1),
        ] {
            let mut priority = asked;
            let permit = gate.pass(Some(token)).expect("known");
            permit.cap(&mut Budget::default(), &mut priority);
            assert_eq!(priority, expected, "{token} {asked}");
        }
    }

    #[test]
    fn a_client_that_asks_too_often_is_told_when_to_come_back() {
        let gate = gate();
        let permit = gate.pass(Some("Bearer test")).expect("the first");
        assert!(permit.check_admin().is_ok());
        let Err(ApiError::RateLimited { client, wait }) = gate.pass(Some("Bearer test")) else {
            panic!("the second within a second passed");
        };
        assert_eq!(client, "ops");
        assert!(wait <= Duration::from_secs(1) && wait > Duration::ZERO);
    }

    #[test]
    fn a_wrong_file_is_refused_by_client_without_showing_tokens() {
        for (text, reason) in [
            ("", "missing field `clients`"),
            ("[clients]", "there is no client"),
            ("[clients.a]", "client `a`: give token or token_sha256"),
            ("[clients.a]\ntoken = \"short\"", "16 bytes or more"),
            ("[clients.a]\ntoken_sha256 = \"00\"", "64 hex digits"),
            ("[clients.a]\ntoken = \"0123456789abcdef\"\nrate = 1", "unknown field `rate`"),
            (
                "[clients.a]\ntoken = \"0123456789abcdef\"\nmax_latency_budget_ms = -1",
                "must be over 0",
            ),
            (
                "[clients.a]\ntoken = \"0123456789abcdef\"\nmax_latency_budget_ms = 1e22",
                "must be over 0 and at most 1e9",
            ),
            ("[clients.a]\ntoken = \"0123456789abcdef", "string"),
            (
                "[clients.a]\ntoken = \"0123456789abcdef\"\n[clients.b]\ntoken_sha256 = \
                 \"9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f\"",
                "clients `a` and `b` have the same token",
            ),
        ] {
            let error = Clients::parse(text).expect_err(reason);
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("0123456789abcdef"), "{error}");
        }
    }
}
