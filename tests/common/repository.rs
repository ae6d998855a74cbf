//! Reads the text files of the repository, for the tests that check its sources.

use std::fs;
use std::path::Path;

/// Libraries of the page as they are published: the house rules are not theirs. `src/serve/page.rs` tests their checksums.
const VENDORED: &str = "src/serve/page/vendor";

/// A text file with its path from the repository's root.
pub struct TextFile {
    pub path: String,
    pub text: String,
}

impl TextFile {
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// Source files, documents and scripts, in the order of their paths.
pub fn text_files() -> Vec<TextFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    walk(root, root, &mut found);
    assert!(found.len() > 100, "found only {} files", found.len());
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn walk(root: &Path, dir: &Path, found: &mut Vec<TextFile>) {
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            let is_skipped =
                ["target", "shared", "node_modules"].contains(&name) || path == root.join(VENDORED);
            if !name.starts_with('.') && !is_skipped {
                walk(root, &path, found);
            }
            continue;
        }
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let is_text =
            ["rs", "cu", "cuh", "h", "c", "cpp", "py", "md", "mjs", "js", "css", "html"].contains(&extension);
        if is_text
            || ["kernels/cuda/build", "kernels/cuda/cost", "test"]
                .iter()
                .any(|script| path == root.join(script))
        {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.push(TextFile { path, text });
        }
    }
}
