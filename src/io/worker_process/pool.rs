//! A pool of workers: a request takes an idle worker or starts one, and waits for its reply up to the deadline. Next:
//! [`super::child`] (the process).

use super::pipes::{Broken, WorkerPipes};
use super::{WorkerLimits, frame};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A pool of workers of one executable and kind.
pub struct WorkerPool {
    program: PathBuf,
    limits: WorkerLimits,
    /// Maximum number of concurrent requests.
    most: usize,
    state: Mutex<PoolState>,
    freed: Condvar,
}

#[derive(Default)]
struct PoolState {
    idle: Vec<Worker>,
    running: usize,
}

impl WorkerPool {
    /// Creates a pool of as many workers as cores (2 to 8), which are started on demand.
    pub fn new(program: PathBuf, limits: WorkerLimits) -> Self {
        let most = thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8));
        WorkerPool { program, limits, most, state: Mutex::default(), freed: Condvar::new() }
    }

    /// Returns the pool with another deadline.
    pub fn within(self, deadline: Duration) -> Self {
        WorkerPool { limits: WorkerLimits { deadline, ..self.limits }, ..self }
    }

    pub fn limits(&self) -> &WorkerLimits {
        &self.limits
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a free slot until the deadline.
    fn enter(&self, deadline: Instant) -> Option<PoolSlot<'_>> {
        let left = deadline.saturating_duration_since(Instant::now());
        let full = |state: &mut PoolState| state.running >= self.most;
        let waited = self.freed.wait_timeout_while(self.state(), left, full);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.running >= self.most {
            return None;
        }
        state.running += 1;
        Some(PoolSlot(self))
    }

    /// Returns the reply to a request.
    ///
    /// # Errors
    /// What was found instead of a reply of at most `max_reply` bytes before the deadline.
    pub fn call(&self, request: &[u8], max_reply: usize) -> Result<Vec<u8>, String> {
        let deadline = Instant::now() + self.limits.deadline;
        let _place = self.enter(deadline).ok_or("no free worker")?;
        let mut idle = self.state().idle.pop();
        loop {
            let kept = idle.is_some();
            let start = || Worker::start(&self.program, &self.limits).map_err(|e| format!("no worker: {e}"));
            let mut worker = idle.take().map_or_else(start, Ok)?;
            match worker.call(request, max_reply, deadline) {
                Ok(reply) => {
                    if worker.busy < Duration::from_secs(self.limits.cpu_seconds() / 2) {
                        self.state().idle.push(worker);
                    }
                    return Ok(reply);
                }
                // An idle worker may have been killed; retry with a new one.
                Err(Broken::Ended) if kept => {}
                Err(Broken::Ended) => return Err(worker.cause()),
                Err(Broken::Late) => return Err("no end".into()),
                Err(Broken::TooLong) => return Err(format!("more than {max_reply} bytes")),
                Err(Broken::Io(e)) => return Err(format!("no reply: {e}")),
            }
        }
    }
}

struct PoolSlot<'a>(&'a WorkerPool);

impl Drop for PoolSlot<'_> {
    fn drop(&mut self) {
        self.0.state().running -= 1;
        self.0.freed.notify_one();
    }
}

/// A worker process and its pipes.
struct Worker {
    child: Child,
    pipes: WorkerPipes,
    /// The total time spent on requests.
    busy: Duration,
}

impl Worker {
    fn start(program: &Path, limits: &WorkerLimits) -> io::Result<Worker> {
        let mut command = detached(program);
        command.arg(limits.command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (input, output) = pipes.ok_or(ErrorKind::BrokenPipe)?;
        Ok(Worker { child, pipes: WorkerPipes::new(input, output)?, busy: Duration::ZERO })
    }

    fn call(&mut self, request: &[u8], max_reply: usize, deadline: Instant) -> Result<Vec<u8>, Broken> {
        let start = Instant::now();
        self.pipes.send(&frame::head(request), deadline)?;
        self.pipes.send(request, deadline)?;
        let mut length = [0; frame::HEAD];
        self.pipes.receive(&mut length, deadline)?;
        let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > max_reply {
            return Err(Broken::TooLong);
        }
        let mut reply = vec![0; length];
        self.pipes.receive(&mut reply, deadline)?;
        self.busy += start.elapsed();
        Ok(reply)
    }

    /// Returns the cause of the exit, from standard error and the exit status.
    fn cause(&mut self) -> String {
        // The worker has closed its pipes, so it is exiting.
        let status = self.child.wait();
        let mut message = Vec::new();
        if let Some(stderr) = self.child.stderr.take() {
            let _ = stderr.take(4096).read_to_end(&mut message);
        }
        let message = String::from_utf8_lossy(&message);
        match status {
            _ if message.contains("stack overflow") || message.contains("overflowed its stack") => {
                "a stack overflow".into()
            }
            _ if message.contains("memory allocation") => "more memory".into(),
            Ok(status) => match message.lines().last() {
                Some(line) => format!("a worker that exited: {status}: {line}"),
                None => format!("a worker that exited: {status}"),
            },
            Err(e) => e.to_string(),
        }
    }
}

/// Returns the command in a process group of its own, so that Ctrl-C reaches only this program.
#[cfg(unix)]
fn detached(program: &Path) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    command.arg0("kimi").process_group(0);
    command
}

/// Returns the command in a process group of its own, so that Ctrl-C reaches only this program, and without a window.
#[cfg(windows)]
fn detached(program: &Path) -> Command {
    use std::os::windows::process::CommandExt;
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;
    const CREATE_NO_WINDOW: u32 = 0x0800_0000;
    let mut command = Command::new(program);
    command.creation_flags(CREATE_NEW_PROCESS_GROUP | CREATE_NO_WINDOW);
    command
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Killing a worker that has exited fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
