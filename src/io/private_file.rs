//! Opens files and directories that are private to this user. Rejects symbolic links, files that are not regular, and files
//! that another user owns or can write. Used by the prefix cache and the chat.
//!
//! On Windows only links and the access rules of the directory protect files: modes and owners are not checked.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::path::Path;

/// The permission bits that let other users write.
#[cfg(unix)]
const OTHERS_WRITE: u32 = 0o022;

/// Opens a private file for reading.
///
/// # Errors
/// `InvalidData` for a symbolic link, anything but a regular file, a foreign owner, or a mode that lets others write.
pub fn open(path: &Path) -> Result<File> {
    refuse_link(path)?;
    checked(OpenOptions::new().read(true), path)
}

/// Opens an existing file for reading and appending.
///
/// # Errors
/// As [`open`].
pub fn open_append(path: &Path) -> Result<File> {
    refuse_link(path)?;
    checked(OpenOptions::new().read(true).append(true), path)
}

/// Opens a file for reading and appending; creates it with mode 0600 if it is missing.
///
/// # Errors
/// As [`open`].
pub fn open_or_create(path: &Path) -> Result<File> {
    refuse_link(path)?;
    checked(OpenOptions::new().read(true).append(true).create(true), path)
}

/// Creates a new file with mode 0600.
///
/// # Errors
/// `AlreadyExists` if the path exists, even as a dangling link.
pub fn create_new(path: &Path) -> Result<File> {
    checked(OpenOptions::new().write(true).create_new(true), path)
}

/// Removes a file; a missing one is no error.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Creates a directory and its missing parents with mode 0700.
///
/// # Errors
/// `PermissionDenied` for a directory of another user.
pub fn create_dir(path: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)?;
    match foreign_owner(&std::fs::metadata(path)?) {
        Some(owner) => {
            let message = format!("expected a directory of this user, found one of user {owner}");
            Err(Error::new(ErrorKind::PermissionDenied, message))
        }
        None => Ok(()),
    }
}

/// The mode of a file or directory, if it lets other users write.
#[cfg(unix)]
pub fn writable_by_others(about: &Metadata) -> Option<u32> {
    let mode = std::os::unix::fs::MetadataExt::mode(about) & 0o7777;
    (mode & OTHERS_WRITE != 0).then_some(mode)
}

/// Always None, as this system has no Unix modes.
#[cfg(not(unix))]
pub fn writable_by_others(_: &Metadata) -> Option<u32> {
    None
}

/// The user id of the owner, if it is not this process's user.
#[cfg(unix)]
pub fn foreign_owner(about: &Metadata) -> Option<u32> {
    let owner = std::os::unix::fs::MetadataExt::uid(about);
    (owner != rustix::process::geteuid().as_raw()).then_some(owner)
}

/// Always None, as this system has no Unix owners.
#[cfg(not(unix))]
pub fn foreign_owner(_: &Metadata) -> Option<u32> {
    None
}

fn checked(options: &mut OpenOptions, path: &Path) -> Result<File> {
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
    }
    let file = options.open(path).map_err(|e| if is_link(path, &e) { bad("a symbolic link") } else { e })?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(bad("something else"));
    }
    if let Some(owner) = foreign_owner(&about) {
        return Err(bad(&format!("one of user {owner}")));
    }
    if let Some(mode) = writable_by_others(&about) {
        return Err(bad(&format!("mode {mode:04o}")));
    }
    Ok(file)
}

/// Refuses a symbolic link where opening follows it; on Unix a flag of [`checked`] prevents that.
fn refuse_link(path: &Path) -> Result<()> {
    let follows = cfg!(not(unix));
    if follows && std::fs::symlink_metadata(path).is_ok_and(|about| about.is_symlink()) {
        return Err(bad("a symbolic link"));
    }
    Ok(())
}

/// Whether opening failed because the path is a symbolic link.
fn is_link(path: &Path, e: &Error) -> bool {
    let link = || std::fs::symlink_metadata(path).is_ok_and(|about| about.is_symlink());
    !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) && link()
}

fn bad(found: &str) -> Error {
    Error::new(
        ErrorKind::InvalidData,
        format!("expected a file that only this user may write, found {found}"),
    )
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::time::{Duration, Instant};

    fn refused(path: &Path, found: &str) {
        let start = Instant::now();
        for open in [open, open_append, open_or_create] {
            let error = open(path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
            let expected = format!("expected a file that only this user may write, found {found}");
            assert_eq!(error.to_string(), expected);
        }
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn created_files_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        for (name, make) in [("a", create_new as fn(&Path) -> Result<File>), ("b", open_or_create)] {
            let path = dir.path().join(name);
            drop(make(&path).unwrap());
            assert_eq!(mode(&path), 0o600);
            drop((open(&path).unwrap(), open_append(&path).unwrap()));
            assert_eq!(create_new(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        }
        let deep = dir.path().join("c/d");
        create_dir(&deep).unwrap();
        assert_eq!((mode(&deep), mode(&dir.path().join("c"))), (0o700, 0o700));
    }

    #[test]
    fn links_pipes_and_writable_modes_are_rejected_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "x").unwrap();
        symlink(path("file"), path("link")).unwrap();
        refused(&path("link"), "a symbolic link");
        symlink(path("nothing"), path("dangling")).unwrap();
        assert_eq!(create_new(&path("dangling")).unwrap_err().kind(), ErrorKind::AlreadyExists);
        let made = std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap();
        assert!(made.success());
        refused(&path("pipe"), "something else");
        for mode in [0o620, 0o602, 0o666] {
            std::fs::set_permissions(path("file"), PermissionsExt::from_mode(mode)).unwrap();
            refused(&path("file"), &format!("mode {mode:04o}"));
        }
    }

    #[test]
    fn files_of_other_users_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let (file, sub) = (dir.path().join("file"), dir.path().join("sub"));
        drop(create_new(&file).unwrap());
        create_dir(&sub).unwrap();
        if chown(&file, Some(12345), None).and_then(|()| chown(&sub, Some(12345), None)).is_err() {
            println!("skipped: only root can change owners");
            return;
        }
        refused(&file, "one of user 12345");
        let error = create_dir(&sub).unwrap_err().to_string();
        assert_eq!(error, "expected a directory of this user, found one of user 12345");
    }
}
