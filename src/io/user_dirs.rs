//! The user's directories: the home directory, and the program's directories for its cache,
//! configuration, data and state.
//!
//! They follow the XDG base directories on every system; without them, Windows has them in `%LOCALAPPDATA%\kimi`.

use std::env::var_os;
use std::path::PathBuf;

/// Returns the home directory: `HOME`, or `USERPROFILE` on Windows.
pub fn home() -> Option<PathBuf> {
    var_os(if cfg!(windows) { "USERPROFILE" } else { "HOME" }).map(PathBuf::from)
}

/// Returns the directory of the prefix cache, by default `~/.cache/kimi` or `%LOCALAPPDATA%\kimi\cache`.
pub fn cache() -> Option<PathBuf> {
    directory("XDG_CACHE_HOME", ".cache", "cache")
}

/// Returns the directory of chats, by default `~/.local/share/kimi` or `%LOCALAPPDATA%\kimi\data`.
pub fn data() -> Option<PathBuf> {
    directory("XDG_DATA_HOME", ".local/share", "data")
}

/// Returns the directory of input histories, by default `~/.local/state/kimi` or `%LOCALAPPDATA%\kimi\state`.
pub fn state() -> Option<PathBuf> {
    directory("XDG_STATE_HOME", ".local/state", "state")
}

/// Returns the directory of the configuration file, by default `~/.config/kimi` or `%LOCALAPPDATA%\kimi\config`.
pub fn config() -> Option<PathBuf> {
    directory("XDG_CONFIG_HOME", ".config", "config")
}

/// The program's directory in the absolute path of an environment variable, else in the system's default place.
fn directory(variable: &str, in_home: &str, in_local_app_data: &str) -> Option<PathBuf> {
    let base = var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    if base.is_none() && cfg!(windows) {
        return Some(PathBuf::from(var_os("LOCALAPPDATA")?).join("kimi").join(in_local_app_data));
    }
    Some(base.or_else(|| Some(home()?.join(in_home)))?.join("kimi"))
}
