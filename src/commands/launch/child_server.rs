//! A `kimi serve` that runs for the time of one client: it starts on a free port, logs to a file, and shuts down when the
//! client exits.

use super::signals::LaunchSignals;
use crate::io::errors::{CAUSE_CHARS, Stopped, shortened};
use anyhow::{Context as _, Result, bail};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Pause between two looks at the state of a process.
pub const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Seconds that the server has for running requests when its client has exited.
const GRACE_SECONDS: u64 = 2;
/// Time for the shutdown, in which states are written to the prefix cache; then the process is killed.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// The process, which is stopped when this value is dropped.
pub struct ChildServer {
    child: Child,
    log: PathBuf,
}

impl ChildServer {
    /// Starts `kimi serve` with these options. Its log is a new file.
    pub fn start(options: &[OsString], log: PathBuf) -> Result<Self> {
        let file = File::create_new(&log).with_context(|| log.display().to_string())?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--host", "127.0.0.1", "--port", "0", "--log", "text"]);
        command.args(["--shutdown-grace", &GRACE_SECONDS.to_string(), "--exit-with-stdin"]).args(options);
        // The system closes the pipe when this process ends, however it does: the server then shuts down.
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file);
        detach(&mut command);
        let child = command.spawn().context("cannot start kimi serve")?;
        Ok(ChildServer { child, log })
    }

    /// Waits for the log line with the address, and returns it as a URL.
    pub fn url(&mut self, signals: &LaunchSignals) -> Result<String> {
        loop {
            let text = self.log_text();
            let lines = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
            let listening = lines.lines().find(|line| line.contains(" listening "));
            let address = listening.and_then(|line| line.split("address=").nth(1)?.split_whitespace().next());
            if let Some(address) = address {
                return Ok(format!("http://{address}"));
            }
            self.pause(signals)?;
        }
    }

    /// Sleeps for [`POLL_INTERVAL`].
    ///
    /// # Errors
    /// The server has exited, or a signal ends the launch.
    pub fn pause(&mut self, signals: &LaunchSignals) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let text = self.log_text();
            let why = text.lines().rev().find_map(|line| line.strip_prefix("kimi: "));
            let why = why.map_or_else(|| status.to_string(), |why| shortened(why, CAUSE_CHARS));
            bail!("kimi serve: {why}");
        }
        if signals.any() {
            return Err(Stopped.into());
        }
        std::thread::sleep(POLL_INTERVAL);
        Ok(())
    }

    /// How the server ended, if it is not running.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for ChildServer {
    fn drop(&mut self) {
        if terminate(&mut self.child).is_ok() {
            let start = Instant::now();
            while start.elapsed() < SHUTDOWN_TIMEOUT {
                if self.ended().is_some() {
                    return;
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        // It may have exited since.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the process outside the terminal's foreground group: Ctrl-C belongs to the client.
#[cfg(unix)]
fn detach(command: &mut Command) {
    std::os::unix::process::CommandExt::process_group(command, 0);
}

/// Starts the process in a group without Ctrl-C, which belongs to the client.
#[cfg(windows)]
fn detach(command: &mut Command) {
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;
    std::os::windows::process::CommandExt::creation_flags(command, CREATE_NEW_PROCESS_GROUP);
}

/// Asks a process to exit. Windows has no such signal for a process without a window, so there it ends at once.
pub fn terminate(child: &mut Child) -> std::io::Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    #[cfg(unix)]
    {
        use rustix::process::{Pid, Signal, kill_process};
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
        kill_process(pid, Signal::TERM)?;
    }
    #[cfg(not(unix))]
    child.kill()?;
    Ok(())
}
