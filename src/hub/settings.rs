//! Reads the environment variables of Hugging Face's tools: cache directory, endpoint, token, offline mode.

use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;

/// Longest token file that is read, in bytes.
const MAX_TOKEN: u64 = 4096;

/// The cache directory, the hub and the access to it.
#[derive(Clone, Debug, PartialEq)]
pub struct HubSettings {
    /// Directory of the folders `models--USER--REPO`.
    pub cache: PathBuf,
    /// Address of the hub without a slash at its end.
    pub endpoint: String,
    pub token: Option<String>,
    /// Use cached files only, without a network.
    pub offline: bool,
    /// Directory of the files that `kimi pull --type` converts; None without a home directory.
    pub converted: Option<PathBuf>,
}

impl HubSettings {
    /// Reads `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH` and `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// No home directory, or a value that is no address or token.
    pub fn from_env() -> Result<HubSettings> {
        HubSettings::new(&|name| std::env::var_os(name).filter(|v| !v.is_empty()))
    }

    fn new(variable: &dyn Fn(&str) -> Option<std::ffi::OsString>) -> Result<HubSettings> {
        let path = |name: &str| variable(name).map(|value| expanded(PathBuf::from(value), variable));
        let text = |name: &str| variable(name).map(|value| value.to_string_lossy().trim().to_owned());
        let switch = |name: &str| {
            let on = ["1", "ON", "YES", "TRUE"];
            text(name).is_some_and(|value| on.contains(&&*value.to_ascii_uppercase()))
        };
        let home = || path("HOME").or_else(|| path("USERPROFILE"));
        let xdg = path("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache")));
        let converted = xdg.as_ref().map(|dir| dir.join("kimi/models"));
        let hf_home = path("HF_HOME").or_else(|| Some(xdg?.join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| Some(hf_home.clone()?.join("hub")));
        let cache =
            cache.context("HF_HUB_CACHE: expected a directory, as HOME is not set either, found none")?;
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        if !(endpoint.starts_with("https://") || endpoint.starts_with("http://")) {
            bail!("HF_ENDPOINT: expected http:// or https://, found {endpoint:?}");
        }
        let token_path = path("HF_TOKEN_PATH").or_else(|| Some(hf_home?.join("token")));
        let given = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        let token = match given.filter(|token| !token.is_empty()) {
            Some(token) => Some(("HF_TOKEN".to_owned(), token)),
            None if switch("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            None => token_path.and_then(|path| Some((path.display().to_string(), stored_token(&path)?))),
        };
        let token = match token {
            Some((place, token)) if !token.chars().all(|c| c.is_ascii_graphic()) => {
                bail!("{place}: expected a token of printable ASCII characters, found others")
            }
            other => other.map(|(_, token)| token),
        };
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Ok(HubSettings { cache, endpoint, token, offline: switch("HF_HUB_OFFLINE"), converted })
    }
}

/// Replaces a leading `~` by the home directory, as `huggingface_hub` does.
fn expanded(path: PathBuf, variable: &dyn Fn(&str) -> Option<std::ffi::OsString>) -> PathBuf {
    match (path.strip_prefix("~"), variable("HOME")) {
        (Ok(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => path,
    }
}

/// The token that `hf auth login` stored.
fn stored_token(path: &std::path::Path) -> Option<String> {
    let about = std::fs::metadata(path).ok()?;
    if !about.is_file() || about.len() > MAX_TOKEN {
        return None;
    }
    let token = std::fs::read_to_string(path).ok()?.trim().to_owned();
    Some(token).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<HubSettings> {
        HubSettings::new(&|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into())
        })
    }

    #[test]
    fn directories_follow_the_variables() {
        let cache = |variables: &[(&str, &str)]| settings(variables).unwrap().cache.display().to_string();
        let home = ("HOME", "/h");
        assert_eq!(cache(&[home]), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[home, ("HF_HOME", "/f")]), "/f/hub");
        assert_eq!(cache(&[home, ("HF_HOME", "/f"), ("HF_HUB_CACHE", "~/c")]), "/h/c");
        let error = settings(&[]).unwrap_err().to_string();
        assert!(error.starts_with("HF_HUB_CACHE: expected a directory"), "{error}");
    }

    #[test]
    fn tokens_come_from_the_variable_or_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let token = |more: &[(&str, &str)]| settings(&[&[("HF_HOME", home)], more].concat()).unwrap().token;
        assert_eq!(token(&[]).unwrap(), "hf_file");
        assert_eq!(token(&[("HF_TOKEN", "hf_x")]).unwrap(), "hf_x");
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        let error = settings(&[("HF_HOME", home), ("HF_TOKEN", "a b")]).unwrap_err().to_string();
        assert_eq!(error, "HF_TOKEN: expected a token of printable ASCII characters, found others");
    }

    #[test]
    fn endpoint_and_offline_mode() {
        let home = ("HF_HOME", "/f");
        let found = settings(&[home, ("HF_ENDPOINT", "http://m:8/"), ("HF_HUB_OFFLINE", "yes")]).unwrap();
        assert_eq!((&*found.endpoint, found.offline), ("http://m:8", true));
        assert!(!settings(&[home, ("HF_HUB_OFFLINE", "0")]).unwrap().offline);
        let error = settings(&[home, ("HF_ENDPOINT", "mirror.org")]).unwrap_err().to_string();
        assert_eq!(error, "HF_ENDPOINT: expected http:// or https://, found \"mirror.org\"");
    }
}
