//! Lists the files of a repository at one commit, from the hub's API.

use super::client::HubClient;
use super::origin::{resolved, same_origin};
use super::spec::{ModelSpec, RepoId};
use anyhow::{Context as _, Result, bail};
use models::visible::one_line;
use serde::Deserialize;
use ureq::http::HeaderMap;

/// Most bytes of a response. A page of 1,000 files has about 300 KB.
const MAX_TEXT: u64 = 16 << 20;
/// Most pages and files of a repository.
const MAX_PAGES: usize = 200;
const MAX_FILES: usize = 100_000;
/// Longest path in a repository and longest part of it, in bytes.
const MAX_PATH: usize = 1024;
const MAX_PART: usize = 255;

/// The files of a repository at a commit.
#[derive(Clone, Debug)]
pub struct RepoListing {
    pub commit: String,
    /// Files with names that are safe on every system.
    pub files: Vec<RepoFile>,
    /// The architecture of its GGUF files, if the hub reports it.
    pub architecture: Option<String>,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq)]
pub struct RepoFile {
    pub path: String,
    pub size: u64,
    /// SHA-256 of a file in large file storage.
    pub sha256: Option<String>,
    /// Git object id of another file.
    pub git_id: Option<String>,
}

#[derive(Deserialize)]
struct RepoInfo {
    sha: String,
    gguf: Option<GgufInfo>,
}

#[derive(Deserialize)]
struct GgufInfo {
    architecture: Option<String>,
}

#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: Option<String>,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    oid: String,
    size: u64,
}

impl RepoListing {
    /// Requests the commit of a revision and its files.
    ///
    /// # Errors
    /// A missing, gated or private repository; a response that is no valid list.
    pub fn request(client: &HubClient, spec: &ModelSpec) -> Result<RepoListing> {
        let repo = &spec.repo;
        let url = client.url(&format!("api/models/{repo}/revision/{}", spec.revision));
        let (text, _) = client.text(repo, &url, MAX_TEXT)?;
        let info: RepoInfo =
            serde_json::from_str(&text).with_context(|| format!("{url}: expected a model"))?;
        if !is_commit(&info.sha) {
            bail!("{url}: sha: expected 40 hexadecimal digits, found {:?}", one_line(&info.sha, 100));
        }
        let files = tree(client, repo, &info.sha)?;
        Ok(RepoListing {
            commit: info.sha,
            files,
            architecture: info.gguf.and_then(|gguf| gguf.architecture),
        })
    }
}

fn tree(client: &HubClient, repo: &RepoId, commit: &str) -> Result<Vec<RepoFile>> {
    let mut files = Vec::new();
    let mut url = client.url(&format!("api/models/{repo}/tree/{commit}")) + "?recursive=true";
    for _ in 0..MAX_PAGES {
        let (text, headers) = client.text(repo, &url, MAX_TEXT)?;
        let page: Vec<TreeEntry> =
            serde_json::from_str(&text).with_context(|| format!("{url}: expected a list of files"))?;
        files.extend(page.into_iter().filter_map(TreeEntry::into_file));
        if files.len() > MAX_FILES {
            bail!("{repo}: expected at most {MAX_FILES} files, found more");
        }
        match next_page(&headers).and_then(|next| resolved(&url, &next)) {
            Some(next) if same_origin(&next, &url) => url = next,
            Some(_) => bail!("{url}: expected the next page on the same host, found another"),
            None => return Ok(files),
        }
    }
    bail!("{repo}: expected at most {MAX_PAGES} pages of files, found more")
}

/// The address in a `Link` header with `rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get("link")?.to_str().ok()?;
    links.split(',').find_map(|link| {
        let (url, rel) = link.split_once(';')?;
        let is_next = rel.replace([' ', '"'], "").split(';').any(|part| part == "rel=next");
        is_next.then(|| url.trim().trim_start_matches('<').trim_end_matches('>').to_owned())
    })
}

impl TreeEntry {
    /// The file, unless it is a directory or its name is unsafe.
    fn into_file(self) -> Option<RepoFile> {
        let hex = |text: &String, digits| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
        let (size, sha256, git_id) = match self.lfs {
            Some(lfs) => (lfs.size, Some(lfs.oid).filter(|oid| hex(oid, 64)), None),
            None => (self.size, None, self.oid.filter(|oid| hex(oid, 40))),
        };
        let lower = |text: String| text.to_ascii_lowercase();
        (self.kind == "file" && is_safe_path(&self.path)).then(|| RepoFile {
            path: self.path,
            size,
            sha256: sha256.map(lower),
            git_id: git_id.map(lower),
        })
    }
}

/// Whether a path stays in its directory and is valid on every system.
pub fn is_safe_path(path: &str) -> bool {
    let part = |part: &str| {
        (1..=MAX_PART).contains(&part.len())
            && !matches!(part, "." | "..")
            && !part.ends_with(['.', ' '])
            && !part.contains(|c: char| models::visible::is_control(c) || "\\:*?\"<>|".contains(c))
    };
    path.len() <= MAX_PATH && path.split('/').all(part)
}

/// Whether a text is a Git commit id.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_paths_are_left_out() {
        for good in ["a.gguf", "d/e/a b.gguf", ".gitattributes", "ü.txt"] {
            assert!(is_safe_path(good), "{good}");
        }
        let long = "x".repeat(256);
        let bad = [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            "a\\b",
            "C:x",
            "a\nb",
            "a\u{202e}b",
            "x.",
            &long,
        ];
        for bad in bad {
            assert!(!is_safe_path(bad), "{bad:?}");
        }
    }

    #[test]
    fn entries_have_the_sum_of_their_storage() {
        let file = |json: &str| serde_json::from_str::<TreeEntry>(json).unwrap().into_file();
        let (sha, git) = ("a".repeat(64), "b".repeat(40));
        let large = file(&format!(
            r#"{{"type":"file","path":"x","size":1,"oid":"{git}","lfs":{{"oid":"{sha}","size":7,"pointerSize":1}}}}"#
        ));
        assert_eq!(large, Some(RepoFile { path: "x".into(), size: 7, sha256: Some(sha), git_id: None }));
        let small = file(&format!(r#"{{"type":"file","path":"x","size":1,"oid":"{git}"}}"#)).unwrap();
        assert_eq!((small.sha256, small.git_id), (None, Some(git)));
        assert_eq!(file(r#"{"type":"directory","path":"x"}"#), None);
        assert_eq!(file(r#"{"type":"file","path":"../x"}"#), None);
    }

    #[test]
    fn the_next_page_is_in_the_link_header() {
        let next = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("link", value.parse().unwrap());
            next_page(&headers)
        };
        assert_eq!(next(r#"<https://h/x?cursor=1>; rel="next""#).as_deref(), Some("https://h/x?cursor=1"));
        assert_eq!(next(r#"<a>; rel="prev", <b>; rel=next"#).as_deref(), Some("b"));
        assert_eq!(next("<a>"), None);
        assert_eq!(next_page(&HeaderMap::new()), None);
    }
}
