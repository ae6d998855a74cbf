//! Checks Host and Origin headers, so that a page of another site cannot reach a loopback server by its own name (DNS
//! rebinding). CORS in `routes` controls which pages may read responses.

use super::errors::ApiError;
use super::limits::{LimitEvent, LimitEvents};
use axum::extract::{ConnectInfo, Request};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Version, header};
use std::net::{IpAddr, SocketAddr};

/// Hosts whose requests are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostPolicy {
    /// Accepts any host, as other machines may use names that the server does not know.
    #[default]
    Any,
    /// Accepts loopback names and these names, for pages of any origin.
    Named(Vec<String>),
    /// Accepts loopback names and these names, and only their own pages and those that CORS allows.
    Loopback(Vec<String>),
}

impl HostPolicy {
    /// Chooses the policy for a listening address and the names of `--allow-host`.
    pub fn new(address: IpAddr, names: Vec<String>) -> Self {
        match (address.to_canonical().is_loopback(), names.is_empty()) {
            (true, _) => HostPolicy::Loopback(names),
            (false, true) => HostPolicy::Any,
            (false, false) => HostPolicy::Named(names),
        }
    }

    /// Checks whether an authority (`name` or `name:port`) belongs to this server.
    fn allows(&self, authority: &str) -> bool {
        let names = match self {
            HostPolicy::Any => return true,
            HostPolicy::Named(names) | HostPolicy::Loopback(names) => names,
        };
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host().trim_end_matches('.');
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let is = |name: &str| name.trim_end_matches('.').eq_ignore_ascii_case(host);
        let loopback = bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
        loopback || is("localhost") || names.iter().any(|name| is(name))
    }
}

/// Parses a host name for `--allow-host`.
///
/// # Errors
/// Refuses names with a scheme, a port or a path.
pub fn host_name(text: &str) -> Result<String, String> {
    let authority = text.parse::<Authority>().map_err(|e| e.to_string())?;
    if authority.as_str() != authority.host() {
        return Err("expected a host name without a port".to_owned());
    }
    Ok(text.to_owned())
}

/// Returns an error for a request with a foreign Host or Origin, and counts it in `events`.
pub fn refusal(
    policy: &HostPolicy,
    cors: &[String],
    events: &LimitEvents,
    request: &Request,
) -> Option<ApiError> {
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    let by_socket = request.extensions().get::<ConnectInfo<SocketAddr>>().is_some();
    let missing = host.is_none() && by_socket && request.version() >= Version::HTTP_11;
    if missing || second.is_some() || (host.is_none() && *policy != HostPolicy::Any) {
        let found = if second.is_some() { "several" } else { "none" };
        let why = format!("Host: expected one header, found {found}");
        return Some(ApiError::malformed(StatusCode::BAD_REQUEST, why));
    }
    let named = host.map(|h| String::from_utf8_lossy(h.as_bytes()).into_owned());
    let target = request.uri().authority().map(|a| a.as_str().to_owned());
    if let Some(other) = named.into_iter().chain(target).find(|name| !policy.allows(name)) {
        events.note(LimitEvent::HostRefused);
        let expected = "localhost, 127.0.0.1, [::1] or a name given with --allow-host";
        return Some(forbidden(format!("Host: expected {expected}, found {other:?}")));
    }
    if matches!(policy, HostPolicy::Loopback(_)) && is_foreign_page(headers, policy, cors) {
        events.note(LimitEvent::OriginRefused);
        let expected =
            "a page of this server, of a host given with --allow-host or an origin given with --cors";
        let found = headers.get(header::ORIGIN).map(|o| String::from_utf8_lossy(o.as_bytes()));
        return Some(forbidden(format!(
            "Origin: expected {expected}, found {:?}",
            found.unwrap_or_default()
        )));
    }
    None
}

/// Returns true for the origin of a page that this machine serves, such as `http://localhost:3000`.
pub fn is_loopback_origin(origin: &str) -> bool {
    let page = ["http://", "https://"].iter().find_map(|scheme| origin.strip_prefix(scheme));
    page.is_some_and(|authority| HostPolicy::Loopback(Vec::new()).allows(authority))
}

/// Checks whether a web page of another host sent the request. Origins of other schemes are left to CORS.
fn is_foreign_page(headers: &HeaderMap, policy: &HostPolicy, cors: &[String]) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let origin = String::from_utf8_lossy(origin.as_bytes());
    let page = ["http://", "https://"].iter().find_map(|scheme| origin.strip_prefix(scheme));
    page.is_some_and(|authority| !policy.allows(authority) && !cors.iter().any(|o| o == "*" || *o == origin))
}

/// Returns an error for a form that the page of another origin sent, which browsers allow without asking the server.
pub fn form_refusal(headers: &HeaderMap, cors: &[String]) -> Option<ApiError> {
    let origin = String::from_utf8_lossy(headers.get(header::ORIGIN)?.as_bytes());
    let host = headers.get(header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()));
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    let is_own = authority.is_some() && authority == host.as_deref();
    let is_allowed = is_loopback_origin(&origin) || cors.iter().any(|o| o == "*" || *o == origin);
    (!is_own && !is_allowed).then(|| {
        forbidden(format!(
            "Origin: expected a page of this server or one given with --cors, found {origin:?}"
        ))
    })
}

fn forbidden(why: String) -> ApiError {
    ApiError::malformed(StatusCode::FORBIDDEN, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_other_pages_are_refused() {
        let refused = |origin: Option<&str>, cors: &[&str]| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "192.0.2.1:8080".parse().unwrap());
            origin
                .into_iter()
                .for_each(|origin| drop(headers.insert(header::ORIGIN, origin.parse().unwrap())));
            let cors: Vec<String> = cors.iter().map(ToString::to_string).collect();
            form_refusal(&headers, &cors).is_some()
        };
        for own in [None, Some("http://192.0.2.1:8080"), Some("http://localhost:3000")] {
            assert!(!refused(own, &[]), "{own:?}");
        }
        for other in ["http://example.com", "null", "http://192.0.2.1:81"] {
            assert!(refused(Some(other), &[]) && !refused(Some(other), &["*"]), "{other}");
        }
        assert!(!refused(Some("http://example.com"), &["http://example.com"]));
    }

    #[test]
    fn names_of_this_server() {
        let policy = HostPolicy::new([127, 0, 0, 1].into(), vec!["Kimi.lan".into()]);
        for (authority, expected) in [
            ("localhost", true),
            ("LocalHost:8080", true),
            ("localhost.:1", true),
            ("127.0.0.1:8080", true),
            ("127.9.9.9", true),
            ("[::1]:8080", true),
            ("[::ffff:127.0.0.1]", true),
            ("kimi.lan:9", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("evil.example:127", false),
            ("a@localhost", false),
            ("localhost@evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("192.168.0.1", false),
            ("0.0.0.0:8080", false),
            ("", false),
            ("local host", false),
            ("[::1", false),
        ] {
            assert_eq!(policy.allows(authority), expected, "{authority}");
        }
        assert_eq!(HostPolicy::new([0, 0, 0, 0].into(), vec![]), HostPolicy::Any);
        assert!(!HostPolicy::new([0, 0, 0, 0].into(), vec!["a".into()]).allows("b"));
    }

    #[test]
    fn pages_of_this_machine() {
        for origin in
            ["http://localhost:3000", "https://localhost", "http://127.0.0.1:5173", "http://[::1]:1"]
        {
            assert!(is_loopback_origin(origin), "{origin}");
        }
        for origin in ["http://evil.example", "null", "localhost", "file://", "http://localhost.evil.example"]
        {
            assert!(!is_loopback_origin(origin), "{origin}");
        }
    }

    #[test]
    fn names_for_the_option() {
        assert_eq!(host_name("kimi.lan"), Ok("kimi.lan".into()));
        for wrong in ["http://kimi.lan", "kimi.lan:80", "a b", "", "a/b"] {
            assert!(host_name(wrong).is_err(), "{wrong}");
        }
    }
}
