//! Checks a GPU at the first start with a model: a child process runs every kernel that the model will use against the
//! reference, and one layer of the model against the CPU. The verdict is kept in the cache directory.
//!
//! A crash or hang ends the child alone. The key of a verdict holds the card, its driver, the program with its kernels, and
//! the formats and sizes of the model. Next: [`worker`] (the process), [`crate::kernel_checks::model`] (the checks).

pub mod worker;

use super::builtin_model;
use super::options::LoadOptions;
use crate::io::{private_file, worker_process};
use crate::kernel_checks::model::KernelUse;
use anyhow::{Context as _, Result, bail, ensure};
use kernels::backend::CacheFormat;
use kernels::cuda::{Cuda, Device, archive_id};
use models::hybrid::config::Config;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use worker::{WorkerArgs, WorkerLine};

/// The hidden command that runs the checks.
pub const COMMAND: &str = "gpu-worker";

/// Longest time between two lines of the child, after which it hangs: a kernel on small inputs takes far less than a second,
/// and a check on the CPU little more.
const LINE_LIMIT: Duration = Duration::from_secs(10);
/// The same while the driver compiles a module.
const COMPILE_LIMIT: Duration = Duration::from_secs(120);

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceVerdict {
    Passed,
    /// The kernel at fault and what it did, in one line.
    Failed(String),
}

/// Returns the kept verdict on the device for a model, or that of a check that runs now. Without a program that can be
/// started again (the library in another program) the device counts as right.
///
/// # Errors
/// There is no verdict now: the model cannot be read, the child cannot be started, or the device has no room for it.
pub fn verdict(cuda: &Cuda, options: &LoadOptions, experts_in_ram: bool) -> Result<DeviceVerdict> {
    let Some(program) = worker_process::program() else { return Ok(DeviceVerdict::Passed) };
    let file = builtin_model::open(options.model.as_deref())?;
    let cache = options.cache_type.unwrap_or(CacheFormat::F16);
    let kernels = KernelUse::of(&file, Config::from_gguf(&file)?, cache, experts_in_ram);
    let kept = options.store.dir().map(|dir| KeptVerdict::new(&dir, &key(cuda.device(), &kernels)));
    if let Some(verdict) = kept.as_ref().and_then(KeptVerdict::read) {
        return Ok(verdict);
    }
    let args = WorkerArgs::new(cache, experts_in_ram, options.model.clone());
    let name = &cuda.device().name;
    let limit = options.device.gpu_timeout.map_or(LINE_LIMIT, |limit| limit.min(LINE_LIMIT));
    let verdict = match run(program, &args, limit)? {
        DeviceVerdict::Passed => DeviceVerdict::Passed,
        DeviceVerdict::Failed(why) => DeviceVerdict::Failed(match &kept {
            Some(kept) => format!("{name}: {why} (self-check; delete {} to repeat it)", kept.path.display()),
            None => format!("{name}: {why} (self-check)"),
        }),
    };
    if let Some(kept) = kept {
        // A directory that cannot be written costs another check at the next start.
        let _ = kept.write(&verdict);
    }
    Ok(verdict)
}

/// Describes all that a verdict depends on.
fn key(device: &Device, kernels: &KernelUse) -> String {
    let Device { name, capability: [major, minor], version, uuid, .. } = device;
    let uuid: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    // The version of the kernel module, which CUDA's own does not tell apart. Only Linux has it there.
    let module = std::fs::read_to_string("/sys/module/nvidia/version").unwrap_or_default();
    let program = format!("{} {:016x}", env!("CARGO_PKG_VERSION"), archive_id());
    format!("{name} {uuid} {major}.{minor}, CUDA {version} {}, kimi {program}, {kernels:?}", module.trim())
}

/// A verdict in a file of the cache directory: the key's hash, then `passed` or why not.
struct KeptVerdict {
    path: PathBuf,
    hash: String,
}

impl KeptVerdict {
    fn new(dir: &Path, key: &str) -> KeptVerdict {
        let hash = blake3::hash(key.as_bytes()).to_hex().to_string();
        KeptVerdict { path: dir.join("self-check").join(&hash[..16]), hash }
    }

    fn read(&self) -> Option<DeviceVerdict> {
        let file = private_file::open(&self.path).ok()?;
        let text = std::io::read_to_string(file).ok()?;
        let (hash, verdict) = text.split_once('\n')?;
        let verdict = verdict.strip_suffix('\n').filter(|_| hash == self.hash)?;
        Some(match verdict {
            "passed" => DeviceVerdict::Passed,
            why => DeviceVerdict::Failed(why.to_owned()),
        })
    }

    fn write(&self, verdict: &DeviceVerdict) -> std::io::Result<()> {
        let line = match verdict {
            DeviceVerdict::Passed => "passed",
            DeviceVerdict::Failed(why) => why,
        };
        private_file::create_dir(self.path.parent().unwrap_or(&self.path))?;
        let part = self.path.with_extension(format!("{}.part", std::process::id()));
        private_file::remove(&part)?;
        private_file::create_new(&part)?.write_all(format!("{}\n{line}\n", self.hash).as_bytes())?;
        std::fs::rename(&part, &self.path)
    }
}

/// Runs the checks in a child process. It is killed if it writes no line for `limit`.
pub fn run(program: &Path, args: &WorkerArgs, limit: Duration) -> Result<DeviceVerdict> {
    let mut command = Command::new(program);
    command.arg(COMMAND).args(args.to_arguments()).stdin(Stdio::null()).stderr(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).spawn().context("self-check")?;
    let lines = read_lines(child.stdout.take());
    let mut progress = CheckProgress::default();
    let verdict = loop {
        let limit = if progress.compiles { limit.max(COMPILE_LIMIT) } else { limit };
        match lines.recv_timeout(limit) {
            Ok(line) => {
                if let WorkerLine::Unavailable(why) = line {
                    end(&mut child);
                    bail!("self-check: {why}");
                }
                if let Some(verdict) = progress.take(line) {
                    break verdict;
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                break progress.failed(&format!("did not end within {} s", limit.as_secs_f32()));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = child.wait().context("self-check")?;
                ensure!(!is_stopped(status), "self-check: stopped ({status})");
                break progress.failed(&format!("ended the process ({status})"));
            }
        }
    };
    end(&mut child);
    Ok(verdict)
}

/// Whether a user or the system ended the process, as by Ctrl-C or for lack of memory: this says nothing about the device.
fn is_stopped(status: ExitStatus) -> bool {
    #[cfg(unix)]
    return std::os::unix::process::ExitStatusExt::signal(&status).is_some_and(|signal| {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGKILL, SIGTERM};
        [SIGHUP, SIGINT, SIGKILL, SIGTERM].contains(&signal)
    });
    #[cfg(not(unix))]
    return status.code() == Some(CONTROL_C_EXIT);
}

/// The exit code of a process of Windows that Ctrl-C ended: STATUS_CONTROL_C_EXIT.
#[cfg(not(unix))]
const CONTROL_C_EXIT: i32 = 0xC000_013A_u32.cast_signed();

/// Reads the lines of the child on a thread, which ends with its output.
fn read_lines(output: Option<ChildStdout>) -> mpsc::Receiver<WorkerLine> {
    let (sender, lines) = mpsc::channel();
    let output = output.map(BufReader::new);
    std::thread::spawn(move || {
        let read = output.into_iter().flat_map(|output| output.lines().map_while(Result::ok));
        read.filter_map(|line| WorkerLine::parse(&line)).try_for_each(|line| sender.send(line))
    });
    lines
}

fn end(child: &mut Child) {
    // Killing a process that has exited fails.
    let _ = child.kill();
    let _ = child.wait();
}

/// What the child does, by its lines.
#[derive(Default)]
struct CheckProgress {
    compiles: bool,
    check: Option<String>,
    /// The kernel launched last, and those of the check that runs.
    kernel: Option<String>,
    launched: Vec<String>,
    /// Kernels of checks that passed.
    right: Vec<String>,
}

impl CheckProgress {
    /// Returns the verdict at the last line.
    fn take(&mut self, line: WorkerLine) -> Option<DeviceVerdict> {
        self.compiles = matches!(line, WorkerLine::Module(_));
        match line {
            WorkerLine::Module(name) => self.kernel = Some(format!("compilation of {name}")),
            WorkerLine::Kernel(name) => {
                self.kernel = Some(format!("kernel {name}"));
                self.launched.push(name);
            }
            WorkerLine::Check(what) => {
                self.right.append(&mut self.launched);
                self.check = Some(what);
            }
            WorkerLine::Wrong(found) => {
                let wrong = format!("wrong numbers ({found})");
                return Some(self.blamed(&self.suspects(), &wrong));
            }
            WorkerLine::Error(message) => return Some(self.failed(&message)),
            WorkerLine::Passed => return Some(DeviceVerdict::Passed),
            WorkerLine::Unavailable(_) => {}
        }
        None
    }

    /// The kernels of the check that runs, without those that gave right results in another check.
    fn suspects(&self) -> String {
        let mut own: Vec<&str> = Vec::new();
        for name in &self.launched {
            if !own.contains(&name.as_str()) {
                own.push(name);
            }
        }
        let is_right = |name: &&str| self.right.iter().any(|right| right == name);
        let unproven: Vec<&str> = own.iter().copied().filter(|name| !is_right(name)).collect();
        let names = if unproven.is_empty() { own } else { unproven };
        format!("kernel{} {}", if names.len() > 1 { "s" } else { "" }, names.join(", "))
    }

    /// A failure of the kernel launched last.
    fn failed(&self, what: &str) -> DeviceVerdict {
        let kernel = self.kernel.clone().unwrap_or_else(|| "the driver".to_owned());
        self.blamed(&kernel, what)
    }

    fn blamed(&self, kernel: &str, what: &str) -> DeviceVerdict {
        let check = self.check.as_ref().map(|check| format!(" in {check}")).unwrap_or_default();
        DeviceVerdict::Failed(format!("{kernel}: {what}{check}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(lines: &str) -> Option<DeviceVerdict> {
        let mut progress = CheckProgress::default();
        lines.lines().filter_map(WorkerLine::parse).find_map(|line| progress.take(line))
    }

    #[test]
    fn wrong_numbers_are_those_of_the_kernel_that_no_other_check_proved() {
        let right = "check a\nkernel quantize\nkernel matvec1\n";
        let failed = |line: &str| Some(DeviceVerdict::Failed(line.to_owned()));
        assert_eq!(
            verdict(&format!("{right}check b\nkernel quantize\nkernel gemm\nwrong 1e0, allowed 2e-5")),
            failed("kernel gemm: wrong numbers (1e0, allowed 2e-5) in b")
        );
        assert_eq!(
            verdict(&format!("{right}check b\nkernel quantize\nkernel matvec1\nwrong 1")),
            failed("kernels quantize, matvec1: wrong numbers (1) in b")
        );
        assert_eq!(verdict("module attention\nerror no image"), failed("compilation of attention: no image"));
        assert_eq!(verdict(&format!("{right}passed")), Some(DeviceVerdict::Passed));
        assert_eq!(verdict(right), None);
    }

    #[test]
    fn a_verdict_is_kept_by_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["card 1", "card 2"].map(|key| KeptVerdict::new(dir.path(), key));
        assert_eq!(one.read(), None);
        for verdict in
            [DeviceVerdict::Passed, DeviceVerdict::Failed("kernel a: wrong numbers (1) in b".into())]
        {
            one.write(&verdict).unwrap();
            assert_eq!(one.read(), Some(verdict));
            assert_eq!(other.read(), None);
        }
        std::fs::copy(&one.path, &other.path).unwrap();
        assert_eq!(other.read(), None, "the file of another key");
        std::fs::write(&one.path, &one.hash).unwrap();
        assert_eq!(one.read(), None, "a truncated file");
    }
}
