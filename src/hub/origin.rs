//! Compares and resolves addresses, so that the token goes to the hub alone.

use ureq::http::Uri;

/// Longest address that is followed, in bytes. Signed addresses of content networks have about 2,000.
const MAX_URL: usize = 16 << 10;

/// Whether two addresses have the same scheme, host and port.
pub fn same_origin(a: &str, b: &str) -> bool {
    match (origin(a), origin(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let default = match &*scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let host = uri.host()?.to_ascii_lowercase();
    Some((scheme, host, uri.port_u16().unwrap_or(default)))
}

/// The address that a `Location` or `Link` names, relative to `base`. None if it is invalid or would leave HTTPS.
pub fn resolved(base: &str, location: &str) -> Option<String> {
    if location.len() > MAX_URL {
        return None;
    }
    let (scheme, ..) = origin(base)?;
    let authority = base.parse::<Uri>().ok()?.authority()?.to_string();
    let url = match location {
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => location.to_owned(),
    };
    let (new_scheme, ..) = origin(&url)?;
    // A password in an address would be sent by the client.
    let has_user = url.parse::<Uri>().ok()?.authority()?.as_str().contains('@');
    (!has_user && (scheme == "http" || new_scheme == "https")).then_some(url)
}

/// Escapes a path for an address; slashes stay.
pub fn escaped(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    let byte = |b: u8| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") };
    path.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_scheme_host_and_port() {
        assert!(same_origin("https://a.co/x", "https://A.co:443/y?z"));
        for other in ["http://a.co/x", "https://a.co:444", "https://a.co.evil.net", "https://b@c.co", "a.co"]
        {
            assert!(!same_origin("https://a.co/x", other), "{other}");
        }
    }

    #[test]
    fn locations_are_resolved() {
        let check = |location: &str, expected: Option<&str>| {
            assert_eq!(resolved("https://a.co/x/y", location).as_deref(), expected, "{location}");
        };
        check("/z?q=1", Some("https://a.co/z?q=1"));
        check("//b.co/z", Some("https://b.co/z"));
        check("https://b.co/z", Some("https://b.co/z"));
        for bad in ["http://a.co/z", "ftp://a.co", "z", "https://u:p@a.co/", &"/x".repeat(9000)] {
            check(bad, None);
        }
        assert_eq!(resolved("http://a.co:8", "/z").as_deref(), Some("http://a.co:8/z"));
        assert_eq!(escaped("a b/c#d.gguf"), "a%20b/c%23d.gguf");
    }
}
