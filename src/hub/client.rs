//! Sends requests to the hub: retries, redirects, the token, and errors as one line.
//!
//! Redirects are followed by hand. Only requests to the hub's own scheme, host and port carry the token. Next: [`super::fetch`],
//! which reads the bytes of files.

use super::origin::{escaped, resolved, same_origin};
use super::settings::HubSettings;
use super::spec::RepoId;
use anyhow::{Context as _, Error, Result, anyhow, bail};
use models::visible::one_line;
use std::io::Read;
use std::time::{Duration, SystemTime};
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

/// Timeout of a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Timeout of a response's headers, and of each read of its body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Times that a request is sent again without progress.
pub const MAX_RETRIES: u32 = 6;
/// Wait before the second retry; it doubles up to 8 s.
const BACKOFF: Duration = Duration::from_millis(250);
/// Longest wait that a server may request; a longer one ends the command.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// Redirects within the hub that one request may follow.
const MAX_REDIRECTS: usize = 5;
/// Longest part of a server's message in an error.
const MAX_MESSAGE: usize = 300;
/// Longest ETag, which names a file in the cache.
const MAX_ETAG: usize = 128;
/// Idle connections that are kept open, one for each parallel range.
const MAX_IDLE: usize = 32;

/// Sends requests to one hub.
pub struct HubClient {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    note: Box<dyn Fn(&str) + Send + Sync>,
}

/// A file as the hub locates it.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteFile {
    /// Name of its blob in the cache: the SHA-256 of a large file, the Git object id of another.
    pub etag: String,
    pub size: u64,
    /// Address of its bytes, on the hub or a content network.
    pub url: String,
}

/// The reason why a request got no usable response.
#[derive(Debug)]
pub enum RequestFailure {
    /// Another try may succeed, after the wait that the server requests.
    Temporary {
        wait: Option<Duration>,
        message: String,
    },
    /// The content network refuses an address, which has expired.
    Expired(u16),
    /// The server sends complete files only.
    NoRanges,
    Final(Error),
}

impl HubClient {
    /// `note` gets one line for each wait.
    pub fn new(settings: &HubSettings, note: impl Fn(&str) + Send + Sync + 'static) -> HubClient {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("kimi/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(READ_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .max_idle_connections(2 * MAX_IDLE)
            .max_idle_connections_per_host(MAX_IDLE);
        let (endpoint, token) = (settings.endpoint.clone(), settings.token.clone());
        HubClient { agent: config.build().new_agent(), endpoint, token, note: Box::new(note) }
    }

    /// Address of a path under the hub's endpoint; the path is escaped.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{}", self.endpoint, escaped(path))
    }

    /// Writes one line to the user.
    pub fn note(&self, line: &str) {
        (self.note)(line);
    }

    /// Sends one request. Statuses other than errors of the server are left to the caller.
    pub fn send(
        &self,
        method: &str,
        url: &str,
        range: Option<(u64, u64)>,
    ) -> Result<Response<Body>, RequestFailure> {
        let mut request = if method == "HEAD" { self.agent.head(url) } else { self.agent.get(url) };
        // A coded body would have another length than the file.
        request = request.header("accept-encoding", "identity");
        if let Some((from, to)) = range {
            request = request.header("range", format!("bytes={from}-{}", to - 1));
        }
        if let Some(token) = self.token.as_ref().filter(|_| same_origin(url, &self.endpoint)) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = request.call().map_err(|e| transport_failure(url, e))?;
        match response.status().as_u16() {
            status @ (408 | 425 | 429 | 500..=599) => {
                let wait = retry_after(response.headers(), SystemTime::now());
                let message = format!("{}: status {status}", host(url));
                match wait.filter(|wait| *wait > MAX_WAIT) {
                    Some(wait) => Err(RequestFailure::Final(anyhow!(
                        "{message}: the server accepts requests again in {} minutes",
                        wait.as_secs().div_ceil(60)
                    ))),
                    None => Err(RequestFailure::Temporary { wait, message }),
                }
            }
            _ => Ok(response),
        }
    }

    /// Sends a request until it gets a response that is no failure for the moment, and follows redirects within the hub.
    fn send_patiently(&self, method: &str, url: &str) -> Result<(Response<Body>, String)> {
        let (mut url, mut retries, mut redirects) = (url.to_owned(), 0, 0);
        loop {
            match self.send(method, &url, None) {
                Ok(response) => match moved(&response, &url).filter(|to| same_origin(to, &self.endpoint)) {
                    // A large file on the hub itself is at its final address.
                    Some(to) if !response.headers().contains_key("x-linked-etag") => {
                        redirects += 1;
                        if redirects > MAX_REDIRECTS {
                            bail!("{}: expected at most {MAX_REDIRECTS} redirects, found more", host(&url));
                        }
                        url = to;
                    }
                    _ => return Ok((response, url)),
                },
                Err(RequestFailure::Temporary { wait, message }) if retries < MAX_RETRIES => {
                    retries += 1;
                    self.pause(wait, retries, &message, &|| false);
                }
                Err(failure) => return Err(failure.into_error()),
            }
        }
    }

    /// Waits before a retry, until `stop` returns true. Waits that a server requests are reported.
    pub fn pause(&self, wait: Option<Duration>, retries: u32, message: &str, stop: &dyn Fn() -> bool) {
        let backoff = BACKOFF * 2_u32.pow(retries.saturating_sub(1).min(5));
        let wait = wait.unwrap_or(backoff);
        if wait >= Duration::from_secs(1) {
            let seconds = wait.as_secs();
            self.note(&format!("{message}: retrying in {seconds} s (try {retries} of {MAX_RETRIES})"));
        }
        let slice = Duration::from_millis(100);
        let mut left = wait;
        while !left.is_zero() && !stop() {
            std::thread::sleep(left.min(slice));
            left = left.saturating_sub(slice);
        }
    }

    /// Requests a text about a repository of at most `limit` bytes, with its headers.
    ///
    /// # Errors
    /// The repository is missing, gated or private, or the hub does not respond.
    pub fn text(&self, repo: &RepoId, url: &str, limit: u64) -> Result<(String, HeaderMap)> {
        let mut retries = 0;
        loop {
            let (mut response, url) = self.send_patiently("GET", url)?;
            if !response.status().is_success() {
                return Err(self.status_error(repo, "", &url, &response));
            }
            let headers = response.headers().clone();
            let mut bytes = Vec::new();
            match response.body_mut().as_reader().take(limit + 1).read_to_end(&mut bytes) {
                Ok(_) if bytes.len() as u64 > limit => {
                    bail!("{url}: expected at most {limit} bytes, found more")
                }
                Ok(_) => {
                    let text = String::from_utf8(bytes);
                    return Ok((
                        text.with_context(|| format!("{url}: expected UTF-8, found other bytes"))?,
                        headers,
                    ));
                }
                Err(e) if retries < MAX_RETRIES => {
                    retries += 1;
                    self.pause(None, retries, &format!("{}: {e}", host(&url)), &|| false);
                }
                Err(e) => return Err(Error::new(e).context(url)),
            }
        }
    }

    /// Locates a file of a revision.
    ///
    /// # Errors
    /// The file is missing or gated, or the response lacks size or ETag.
    pub fn locate(&self, repo: &RepoId, revision: &str, file: &str) -> Result<RemoteFile> {
        let url = self.url(&format!("{repo}/resolve/{revision}/{file}"));
        let (response, url) = self.send_patiently("HEAD", &url)?;
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(self.status_error(repo, file, &url, &response));
        }
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let etag = header("x-linked-etag").or_else(|| header("etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"')).unwrap_or_default();
        if !is_blob_name(etag) {
            bail!(
                "{repo}/{file}: expected an ETag that can name a file, found {:?}",
                one_line(etag, MAX_ETAG)
            );
        }
        let size =
            header("x-linked-size").or_else(|| header("content-length").filter(|_| status.is_success()));
        let size = size.and_then(|size| size.parse().ok());
        let size =
            size.with_context(|| format!("{repo}/{file}: expected its size, found no X-Linked-Size"))?;
        let to = match status.is_redirection() {
            true => {
                moved(&response, &url).with_context(|| format!("{url}: expected a redirect to an address"))?
            }
            false => url,
        };
        Ok(RemoteFile { etag: etag.to_owned(), size, url: to })
    }

    /// The error of a response about a repository or one of its files.
    fn status_error(&self, repo: &RepoId, file: &str, url: &str, response: &Response<Body>) -> Error {
        let header = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            one_line(value.unwrap_or_default(), MAX_MESSAGE)
        };
        let (status, code) = (response.status().as_u16(), header("x-error-code"));
        let page = format!("{}/{repo}", self.endpoint);
        let name = if file.is_empty() { repo.to_string() } else { format!("{repo}/{file}") };
        match (status, &*code) {
            (401 | 403, "GatedRepo") if self.token.is_none() => anyhow!(
                "{repo}: this repository is gated: accept its license at {page} and set HF_TOKEN to a token of your account"
            ),
            (401 | 403, "GatedRepo") | (403, _) => anyhow!(
                "{repo}: the token of HF_TOKEN has no access: accept the license at {page} with its account (status {status})"
            ),
            (401, _) if self.token.is_some() => {
                anyhow!(
                    "{repo}: expected a valid token in HF_TOKEN, found one that the hub rejects (status 401)"
                )
            }
            (401, _) => anyhow!(
                "{repo}: no such repository, or a private or gated one: check the name at {page}, or set HF_TOKEN"
            ),
            (404, "RevisionNotFound") => anyhow!("{repo}: no such revision at {page}"),
            (404, "EntryNotFound") => anyhow!("{name}: no such file at {page}/tree/main"),
            (404, _) => anyhow!("{name}: not found at {}", self.endpoint),
            _ => {
                let message = header("x-error-message");
                let message = if message.is_empty() { host(url) } else { message };
                anyhow!("{name}: expected status 200, found {status}: {message}")
            }
        }
    }
}

impl RequestFailure {
    pub fn into_error(self) -> Error {
        match self {
            RequestFailure::Temporary { message, .. } => anyhow!("{message}, after {MAX_RETRIES} retries"),
            RequestFailure::Expired(status) => anyhow!("expected status 206, found {status}"),
            RequestFailure::NoRanges => anyhow!("expected status 206, found 200"),
            RequestFailure::Final(error) => error,
        }
    }
}

/// The address to which a response redirects.
fn moved(response: &Response<Body>, url: &str) -> Option<String> {
    let location = response.headers().get("location").filter(|_| response.status().is_redirection())?;
    resolved(url, location.to_str().ok()?)
}

/// The host of an address, for messages: signed addresses are long and secret.
pub fn host(url: &str) -> String {
    url.split('/').nth(2).unwrap_or(url).to_owned()
}

/// Errors of the connection are worth a retry, errors of names and certificates are not.
fn transport_failure(url: &str, e: ureq::Error) -> RequestFailure {
    let host = host(url);
    match e {
        ureq::Error::HostNotFound => RequestFailure::Final(anyhow!(
            "{host}: host not found; without a network set HF_HUB_OFFLINE=1 to use cached models only"
        )),
        ureq::Error::Io(e) => RequestFailure::Temporary { wait: None, message: format!("{host}: {e}") },
        ureq::Error::ConnectionFailed | ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => {
            RequestFailure::Temporary { wait: None, message: format!("{host}: {e}") }
        }
        e => RequestFailure::Final(Error::new(e).context(host)),
    }
}

/// The wait of a `Retry-After` header: seconds, or a date, of which none is left if it has passed.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get("retry-after")?.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let left = httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default();
            // Servers round down.
            Some(Duration::from_secs(left.as_secs() + 1))
        }
    }
}

fn is_blob_name(etag: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    (1..=MAX_ETAG).contains(&etag.len()) && etag.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_seconds_or_dates() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_083_200);
        let wait = |value: &str| {
            let headers = HeaderMap::from_iter([("retry-after".parse().unwrap(), value.parse().unwrap())]);
            retry_after(&headers, now).map(|wait| wait.as_secs())
        };
        assert_eq!((wait("7"), wait(" 120 ")), (Some(7), Some(120)));
        assert_eq!(wait("Tue, 01 Dec 2026 00:00:30 GMT"), Some(31));
        assert_eq!(wait("Tuesday, 01-Dec-26 00:02:00 GMT"), Some(121));
        assert_eq!(wait("Mon, 30 Nov 2026 00:00:00 GMT"), Some(1));
        assert_eq!((wait("soon"), wait("-1"), wait("")), (None, None, None));
    }
}
