//! Serves the repositories under a directory, `DIR/USER/REPO/...`, as a Hugging Face hub on loopback, for clients in other
//! languages. Prints its address, and then a line per request of a file's bytes.

mod server;

use server::{Repo, TestHub};
use std::fs;
use std::path::Path;
use std::time::Duration;

fn files(dir: &Path, top: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(dir).expect("the directory is readable") {
        let path = entry.expect("the entry is readable").path();
        if path.is_dir() {
            files(&path, top, found);
        } else {
            let name = path.strip_prefix(top).ok().and_then(Path::to_str).expect("the path is UTF-8");
            found.push((name.to_owned(), fs::read(&path).expect("the file is readable")));
        }
    }
}

fn main() {
    let root = std::env::args().nth(1).expect("usage: hub DIR");
    let mut repos = Vec::new();
    for user in fs::read_dir(&root).expect("the directory is readable").flatten() {
        for repo in fs::read_dir(user.path()).expect("the directory is readable").flatten() {
            let mut found = Vec::new();
            files(&repo.path(), &repo.path(), &mut found);
            let name = format!("{}/{}", user.file_name().display(), repo.file_name().display());
            repos.push((name, Repo { files: found, ..Repo::default() }));
        }
    }
    let repos: Vec<(&str, Repo)> = repos.iter().map(|(name, repo)| (&**name, repo.clone())).collect();
    let hub = TestHub::start(&repos);
    println!("{}", hub.url);
    let mut seen = 0;
    loop {
        let requests = hub.requests();
        for request in requests[seen..].iter().filter(|r| !r.from_hub && r.method == "GET") {
            println!("GET {} {}", request.path, request.range.as_deref().unwrap_or("whole"));
        }
        seen = requests.len();
        std::thread::sleep(Duration::from_millis(50));
    }
}
