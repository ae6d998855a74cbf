//! Hostile conditions for the prefix cache: models that differ in a byte, files of other users, links, pipes, full disks.
#![cfg(unix)]

use super::disk::{files, on_disk, only_disk, with_log, written};
use super::*;
use common::{kimi_command, skip};
use models::gguf::read::Gguf;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

fn open(model: &Path, dir: &Path) -> Engine<Cpu> {
    Engine::open(&LoadOptions { model: Some(model.into()), ..args(CacheFormat::F16, only_disk(dir)) })
        .unwrap()
}

fn reused(engine: &Engine<Cpu>, prompt: &[u32]) -> usize {
    read(&mut Session::new(engine), prompt).reused
}

/// Changes one byte of a token's embedding in a model file.
fn with_another_row(model: &Path) {
    let file = Gguf::open(model).unwrap();
    let tensor = file.tensor("token_embd.weight").unwrap();
    let row = tensor.bytes / u64::from(VOCAB);
    let at = file.offset_in_file(tensor) + 7 * row + row - 1;
    let byte = fs::read(model).unwrap()[at as usize];
    File::options().write(true).open(model).unwrap().write_all_at(&[byte ^ 0x55], at).unwrap();
}

#[test]
fn models_that_differ_in_one_row_share_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [cache, first, second] = ["cache", "a.gguf", "b.gguf"].map(|name| dir.path().join(name));
    let prompt: Vec<u32> = tokens(1, 50).into_iter().map(|id| if id % 3 == 0 { 7 } else { id }).collect();
    for path in [&first, &second] {
        fs::copy(&MODEL.1, path).unwrap();
    }
    written(&open(&first, &cache), &prompt);
    assert_eq!(reused(&open(&second, &cache), &prompt), 50, "a copy is the same model");
    with_another_row(&second);
    assert_eq!(reused(&open(&second, &cache), &prompt), 0);
    // In place, with the modification time restored.
    let before = fs::metadata(&first).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    with_another_row(&first);
    File::options().write(true).open(&first).unwrap().set_modified(before.modified().unwrap()).unwrap();
    let after = fs::metadata(&first).unwrap();
    assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));
    assert_eq!(reused(&open(&first, &cache), &prompt), 0);
    let renamed = dir.path().join("c.gguf");
    fs::copy(&MODEL.1, &first).unwrap();
    fs::rename(&first, &renamed).unwrap();
    assert_eq!(reused(&open(&renamed, &cache), &prompt), 50, "a renamed file is the same model");
}

#[test]
fn files_are_their_owners_in_every_directory() {
    let dir = tempfile::tempdir().unwrap();
    for (mode, lines) in [(0o700, 0), (0o755, 0), (0o777, 1)] {
        let cache = dir.path().join(format!("{mode:o}"));
        fs::create_dir(&cache).unwrap();
        fs::set_permissions(&cache, Permissions::from_mode(mode)).unwrap();
        let (engine, logged) = with_log(on_disk(&cache));
        written(&engine, &tokens(1, 50));
        let modes: Vec<u32> = fs::read_dir(&cache)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().permissions().mode() & 0o7777)
            .collect();
        assert_eq!(modes, [0o600; 3], "rows, state and lock in {mode:o}");
        let logged = logged.lock().unwrap();
        assert_eq!(logged.len(), lines, "{logged:?}");
        let end = ": other users may write in this directory (mode 0777): chmod 700 keeps them out";
        assert!(logged.iter().all(|line| line.ends_with(end)), "{logged:?}");
    }
}

#[test]
fn files_that_others_made_or_may_write_are_not_used() {
    let prompt = tokens(1, 50);
    let check = |what: &str, lines: usize, spoil: &dyn Fn(&Path) -> std::io::Result<()>| {
        let dir = tempfile::tempdir().unwrap();
        written(&engine(on_disk(dir.path())), &prompt);
        assert_eq!(reused(&engine(only_disk(dir.path())), &prompt), 50);
        let spoilt: std::io::Result<Vec<()>> =
            files(dir.path()).iter().map(|(path, _)| spoil(path)).collect();
        if spoilt.is_err() {
            return println!("skipped: {what}: only root may do this");
        }
        let (reader, logged) = with_log(only_disk(dir.path()));
        assert_eq!(reused(&reader, &prompt), 0, "{what}");
        assert_eq!(logged.lock().unwrap().len(), lines, "{what}: {:?}", logged.lock().unwrap());
        drop(reader);
        // The foreign files are replaced and do not block the cache.
        let (writer, logged) = with_log(only_disk(dir.path()));
        written(&writer, &prompt);
        assert_eq!(reused(&writer, &prompt), 50, "{what}: {:?}", logged.lock().unwrap());
    };
    check("mode 0666", 0, &|path| fs::set_permissions(path, Permissions::from_mode(0o666)));
    check("another owner", 1, &|path| chown(path, Some(12345), None));
    check("a link", 1, &|path| {
        let away = path.with_extension("away");
        fs::rename(path, &away)?;
        symlink(away, path)
    });
    check("a pipe", 1, &|path| {
        fs::remove_file(path)?;
        Command::new("mkfifo").arg(path).status().map(|_| ())
    });
}

#[test]
fn a_lock_that_is_no_file_ends_the_writing() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Command::new("mkfifo").arg(dir.path().join("lock")).status().unwrap().success());
    let (engine, logged) = with_log(on_disk(dir.path()));
    written(&engine, &tokens(1, 300));
    written(&engine, &tokens(2, 300));
    let logged = logged.lock().unwrap();
    let expected = ": lock: expected a file that only this user may write, found something else: ";
    assert!(logged.len() == 1 && logged[0].contains(expected), "{logged:?}");
    assert!(logged[0].ends_with(" free; no more snapshots are written"), "{logged:?}");
}

/// Runs `kimi generate` on 300 tokens with a cache directory, in a shell that has run `before`.
fn reply(dir: &Path, before: &str) -> Output {
    let ids: Vec<String> = tokens(1, 300).iter().map(u32::to_string).collect();
    let kimi = kimi_command();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{before} exec \"$0\" \"$@\"")]).arg(kimi.get_program());
    command.args(["generate", "-m", text(&MODEL.1), "--temp", "0", "-n", "4", "--quiet"]);
    command.args(["--ids", &ids.join(","), "--cache-dir", text(dir)]).output().unwrap()
}

#[test]
fn a_disk_without_room_ends_the_writing_and_not_the_reply() {
    let dir = tempfile::tempdir().unwrap();
    let [plenty, limited] = ["plenty", "limited"].map(|name| dir.path().join(name));
    let whole = reply(&plenty, "");
    assert!(whole.status.success() && files(&plenty).len() >= 2);
    let cut = reply(&limited, "ulimit -f 4;");
    let stderr = String::from_utf8(cut.stderr).unwrap();
    assert!(cut.status.success(), "{:?}: {stderr}", cut.status);
    assert_eq!(cut.stdout, whole.stdout);
    let lines: Vec<&str> = stderr.lines().collect();
    let [line] = lines[..] else { panic!("one line: {stderr}") };
    assert!(line.starts_with(text(&limited)) && line.contains(": File too large (os error 27): "), "{line}");
    assert!(
        line.contains(" MiB needed, ") && line.ends_with(" MiB free; no more snapshots are written"),
        "{line}"
    );
    assert_eq!(files(&limited).len(), 0, "nothing half-written stays");
}

/// Unmounts the file system when dropped.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg(self.0).status().unwrap().success());
    }
}

#[test]
fn a_small_disk_is_named_with_what_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs"])
        .arg(dir.path())
        .output();
    if !mount.is_ok_and(|done| done.status.success()) {
        return skip::note("", "permission to mount");
    }
    let mounted = Mounted(dir.path());
    let cache = dir.path().join("cache");
    let stderr = String::from_utf8(reply(&cache, "").stderr).unwrap();
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(lines.len() == 1 && lines[0].contains(": no space for a snapshot of "), "{stderr}");
    assert!(lines[0].ends_with(" MiB free, of which half may be used"), "{stderr}");
    // A disk that is full to the last byte may not even hold the lock file; the reply is still complete.
    let mut filler = File::create(dir.path().join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    drop(filler);
    let out = reply(&cache, "");
    assert!(out.status.success() && !out.stdout.is_empty());
    assert!(String::from_utf8(out.stderr).unwrap().lines().count() == 1);
    drop(mounted);
}
