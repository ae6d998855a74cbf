//! Parses the names by which users give a model of the hub: `USER/REPO`, `USER/REPO:TYPE`, `hf.co/USER/REPO:TYPE`, and
//! addresses of its pages.

use anyhow::{Result, bail};
use std::fmt;

/// Longest user or repository name; the hub's limit is 96.
const MAX_NAME: usize = 96;
/// Prefixes of names, as users copy them.
const PREFIXES: [&str; 6] = [
    "https://huggingface.co/",
    "http://huggingface.co/",
    "https://hf.co/",
    "huggingface.co/",
    "hf.co/",
    "hf://",
];

/// A repository on the hub, `USER/REPO`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RepoId(String);

/// A repository with an optional type and revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    pub repo: RepoId,
    /// The quantization type or file name after the colon.
    pub kind: Option<String>,
    /// A branch, tag or commit.
    pub revision: String,
}

/// The default branch of a repository.
pub const MAIN: &str = "main";

impl RepoId {
    /// Parses `USER/REPO`.
    ///
    /// # Errors
    /// Characters that the hub does not allow.
    pub fn parse(text: &str) -> Result<RepoId> {
        match text.split_once('/') {
            Some((user, name)) if is_name(user) && is_name(name) => Ok(RepoId(text.to_owned())),
            _ => bail!(
                "{text:?}: expected USER/REPO[:TYPE], such as bartowski/moonshotai_Kimi-Linear-48B-A3B-Instruct-GGUF:Q4_K_M"
            ),
        }
    }

    /// The repository of a cache folder `models--USER--REPO`.
    pub fn from_folder(folder: &str) -> Option<RepoId> {
        let (user, name) = folder.strip_prefix("models--")?.split_once("--")?;
        RepoId::parse(&format!("{user}/{name}")).ok()
    }

    /// The name of its folder in the cache.
    pub fn folder(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }

    /// The part after the slash.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(_, name)| name)
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether the hub allows this user or repository name; none contains `--` or `..`, so that cache folders are unique.
fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=MAX_NAME).contains(&text.len())
        && text.chars().all(allowed)
        && !text.starts_with(['.', '-'])
        && !text.ends_with(['.', '-'])
        && !text.contains("--")
        && !text.contains("..")
}

/// Whether a revision can be part of an address and of a path.
pub fn is_revision(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    (1..=200).contains(&text.len())
        && text.chars().all(allowed)
        && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
}

impl ModelSpec {
    /// Parses a name or the address of a page.
    ///
    /// # Errors
    /// Neither form.
    pub fn parse(text: &str) -> Result<ModelSpec> {
        let prefix = PREFIXES.iter().find(|prefix| text.starts_with(**prefix));
        let rest = prefix.map_or(text, |prefix| &text[prefix.len()..]);
        let rest = rest.split(['?', '#']).next().unwrap_or(rest).trim_end_matches('/');
        let parts: Vec<&str> = rest.splitn(5, '/').collect();
        if let ([user, name, "tree" | "blob" | "resolve", revision, file @ ..], true) =
            (&parts[..], prefix.is_some())
        {
            if !is_revision(revision) {
                bail!("{text:?}: expected a revision after {name}, found {revision:?}");
            }
            let kind = file.first().map(|file| (*file).to_owned());
            let repo = RepoId::parse(&format!("{user}/{name}"))?;
            return Ok(ModelSpec { repo, kind, revision: (*revision).to_owned() });
        }
        let (repo, kind) = match rest.split_once(':') {
            Some((repo, kind)) => (repo, Some(kind)),
            None => (rest, None),
        };
        if kind.is_some_and(|kind| kind.is_empty() || kind.len() > MAX_NAME * 2) {
            bail!("{text:?}: expected a type after the colon, such as Q4_K_M");
        }
        let repo = RepoId::parse(repo)?;
        Ok(ModelSpec { repo, kind: kind.map(str::to_owned), revision: MAIN.to_owned() })
    }

    /// Whether a model name that is no existing path means a repository: `USER/REPO[:TYPE]` without a file extension.
    pub fn is_meant_by(text: &str) -> bool {
        let prefixed = PREFIXES.iter().any(|prefix| text.starts_with(prefix));
        let extension = [".gguf", ".part", ".safetensors"].iter().any(|end| text.ends_with(end));
        let starts_in_dir =
            || text.split_once('/').is_some_and(|(dir, _)| std::path::Path::new(dir).is_dir());
        prefixed || (!extension && ModelSpec::parse(text).is_ok() && !starts_in_dir())
    }
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Some(kind) => write!(f, "{}:{kind}", self.repo),
            None => write!(f, "{}", self.repo),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, repo: &str, kind: Option<&str>, revision: &str) {
        let spec = ModelSpec::parse(text).unwrap();
        assert_eq!((&*spec.repo.0, spec.kind.as_deref(), &*spec.revision), (repo, kind, revision), "{text}");
    }

    #[test]
    fn names_and_addresses_are_parsed() {
        check("u/r", "u/r", None, "main");
        check("u/r.x_Y-GGUF:q4_k_m", "u/r.x_Y-GGUF", Some("q4_k_m"), "main");
        check("hf.co/u/r:Q8_0", "u/r", Some("Q8_0"), "main");
        check("https://huggingface.co/u/r", "u/r", None, "main");
        check("https://huggingface.co/u/r/tree/v1", "u/r", None, "v1");
        check("https://huggingface.co/u/r/blob/main/d/x.gguf?x=1", "u/r", Some("d/x.gguf"), "main");
        check("https://huggingface.co/u/r/", "u/r", None, "main");
        for bad in ["", "u", "u/", "/r", "u/r/x", "../r", "u/..", "u/r:", "u/a--b", "u/r x", "u/.r", "u/r\n"]
        {
            assert!(ModelSpec::parse(bad).is_err(), "{bad}");
        }
        assert!(ModelSpec::parse("https://huggingface.co/u/r/tree/..").is_err());
    }

    #[test]
    fn folders_and_names_are_one_to_one() {
        let repo = RepoId::parse("a-b/c.d").unwrap();
        assert_eq!(repo.folder(), "models--a-b--c.d");
        assert_eq!(RepoId::from_folder(&repo.folder()), Some(repo));
        for other in ["datasets--a--b", "models--a", "models--a--b--c", "models--..--b"] {
            assert_eq!(RepoId::from_folder(other), None, "{other}");
        }
    }

    #[test]
    fn paths_are_not_taken_for_names() {
        for name in ["u/r", "u/r:Q4_K_M", "hf.co/u/r"] {
            assert!(ModelSpec::is_meant_by(name), "{name}");
        }
        for path in ["model.gguf", "models/x.gguf", "./u/r", "/u/r", "a/b/c", "src/hub", "u"] {
            assert!(!ModelSpec::is_meant_by(path), "{path}");
        }
    }
}
