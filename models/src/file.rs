//! Opens regular files, for paths that users or other files supply.
//!
//! Opening a FIFO would block until another process opens its other end, and a device may be endless.

use crate::gguf::Error;
use std::fs::{File, FileType, Metadata, OpenOptions};
use std::path::Path;

/// Opens a regular file for reading.
///
/// # Errors
/// An I/O error; a directory, FIFO, socket or device.
pub fn open(path: &Path) -> Result<File, Error> {
    // Checked before opening as well: opening a socket fails with "No such device or address".
    regular(path, &std::fs::metadata(path).map_err(Error::io(path))?)?;
    let file = options(true).read(true).open(path).map_err(Error::io(path))?;
    regular(path, &file.metadata().map_err(Error::io(path))?)?;
    Ok(file)
}

/// Options that neither block nor acquire a controlling terminal. With `follow` false, opening fails if the last component
/// of the path is a symbolic link.
#[cfg(unix)]
fn options(follow: bool) -> OpenOptions {
    use rustix::fs::OFlags;
    let last = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | last;
    let mut options = OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags.bits() as i32);
    options
}

/// Opening never blocks on Windows; [`open_own`] itself refuses symbolic links.
#[cfg(not(unix))]
fn options(_follow: bool) -> OpenOptions {
    OpenOptions::new()
}

/// Opens a file of a previous run, or creates it. Symbolic links are not followed. A file that is world-writable, has
/// another owner or more than one link is replaced by a new one, because its contents may not be this program's.
///
/// # Errors
/// An I/O error; a directory, FIFO, socket, device or link.
pub fn open_own(path: &Path) -> Result<File, Error> {
    let open = |new: bool| {
        let mut options = options(false);
        options.read(true).write(true).create(!new).create_new(new).truncate(false).open(path)
    };
    let is_link = || std::fs::symlink_metadata(path).is_ok_and(|about| about.is_symlink());
    if cfg!(not(unix)) && is_link() {
        return Err(not_regular(path, "a symbolic link"));
    }
    let file = open(false)
        .map_err(|e| if is_link() { not_regular(path, "a symbolic link") } else { Error::io(path)(e) })?;
    let about = file.metadata().map_err(Error::io(path))?;
    regular(path, &about)?;
    if is_own(&about) {
        return Ok(file);
    }
    std::fs::remove_file(path).map_err(Error::io(path))?;
    open(true).map_err(Error::io(path))
}

/// Returns whether a file belongs to this user, has one link and is not world-writable.
#[cfg(unix)]
pub fn is_own(about: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    about.uid() == rustix::process::geteuid().as_raw() && about.mode() & 0o002 == 0 && about.nlink() == 1
}

/// Returns true: ownership is unknown on this platform.
#[cfg(not(unix))]
pub fn is_own(_: &Metadata) -> bool {
    true
}

/// Checks that a file is a regular one.
///
/// # Errors
/// It is not; the error names its type.
pub fn regular(path: &Path, about: &Metadata) -> Result<(), Error> {
    if about.is_file() {
        return Ok(());
    }
    Err(not_regular(path, name(about.file_type())))
}

fn name(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a FIFO";
        }
        if kind.is_socket() {
            return "a socket";
        }
    }
    if kind.is_dir() {
        "a directory"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else {
        "a device"
    }
}

fn not_regular(path: &Path, found: &'static str) -> Error {
    Error::NotRegular { path: path.display().to_string(), found }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_of_others_are_replaced_and_links_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let written = |name: &str, mode| {
            std::fs::write(path(name), b"old").unwrap();
            std::fs::set_permissions(path(name), PermissionsExt::from_mode(mode)).unwrap();
        };
        written("own", 0o644);
        assert_eq!(open_own(&path("own")).unwrap().metadata().unwrap().len(), 3);
        written("open", 0o646);
        assert_eq!(open_own(&path("open")).unwrap().metadata().unwrap().len(), 0);
        written("other", 0o600);
        std::fs::hard_link(path("other"), path("linked")).unwrap();
        assert_eq!(open_own(&path("linked")).unwrap().metadata().unwrap().len(), 0);
        assert_eq!(std::fs::read(path("other")).unwrap(), b"old");
        std::os::unix::fs::symlink(path("other"), path("link")).unwrap();
        let error = open_own(&path("link")).unwrap_err().to_string();
        assert!(error.ends_with("link is a symbolic link, not a file"), "{error}");
        assert_eq!(std::fs::read(path("other")).unwrap(), b"old");
        std::os::unix::fs::symlink(path("none"), path("dangling")).unwrap();
        open_own(&path("dangling")).unwrap_err();
        assert!(!path("none").exists());
    }
}
