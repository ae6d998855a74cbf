//! The self-check of a GPU at the first start, with the emulator as a driver that lies: wrong numbers, an error, a crash, a hang.
//! And the server after a failure of the GPU in a reply.

mod common;
#[path = "../kernels/tests/common/emulator.rs"]
mod emulator;

use common::{checkpoint, convert, kimi_command, ling, skip};
use kernels::backend::{Backend, CacheFormat};
use kernels::cuda::LaunchEvent;
use models::gguf::read::Gguf;
use models::hybrid::mla::MlaPath;
use models::hybrid::{Model, Outputs, Sequence};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// `kimi` with the emulator as CUDA driver and a cache directory of its own; `None` and a note without a C++ compiler.
struct KimiOnEmulator {
    library: &'static Path,
    cache: PathBuf,
    /// Removes the directory, unless tests share it.
    _own: Option<tempfile::TempDir>,
}

impl KimiOnEmulator {
    fn new() -> Option<KimiOnEmulator> {
        let library = emulator::library()?.parent().unwrap();
        let own = tempfile::tempdir().unwrap();
        Some(KimiOnEmulator { library, cache: own.path().to_owned(), _own: Some(own) })
    }

    /// With the verdict that the device is right, made once for all tests.
    fn checked() -> Option<KimiOnEmulator> {
        static CHECKED: Mutex<Option<PathBuf>> = Mutex::new(None);
        let library = emulator::library()?.parent().unwrap();
        let mut checked = CHECKED.lock().unwrap();
        if checked.is_none() {
            let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("self-check");
            let _ = std::fs::remove_dir_all(&cache); // of an earlier run
            let kimi = KimiOnEmulator { library, cache, _own: None };
            kimi.reply("");
            assert_eq!(kimi.verdicts().len(), 1);
            *checked = Some(kimi.cache);
        }
        Some(KimiOnEmulator { library, cache: checked.clone().unwrap(), _own: None })
    }

    /// A command on a device with a fault: `KIND:KERNEL:N`.
    fn command(&self, args: &[&str], fault: &str) -> Command {
        let mut command = kimi_command();
        command.args(args).env("LD_LIBRARY_PATH", self.library).env("XDG_CACHE_HOME", &self.cache);
        command.env("KIMI_EMULATOR_FAULT", fault);
        command
    }

    /// A short reply on the default device.
    fn reply(&self, fault: &str) -> (String, String) {
        self.reply_with(&[], fault)
    }

    fn reply_with(&self, more: &[&str], fault: &str) -> (String, String) {
        let args = ["generate", "--raw", "-n", "1", "--temperature", "0", "The", "--cache-type", "f16"];
        let out = self.command(&[&args[..], more].concat(), fault).output().unwrap();
        assert!(out.status.success(), "{fault}: {}", text(&out.stderr));
        (text(&out.stdout), text(&out.stderr))
    }

    /// The verdicts in the cache directory.
    fn verdicts(&self) -> Vec<PathBuf> {
        let dir = std::fs::read_dir(self.cache.join("kimi/self-check"));
        dir.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Without a fault the GPU is used by default, and checked once.
#[test]
fn a_device_that_passes_is_used_by_default() {
    let Some(kimi) = KimiOnEmulator::new() else { return };
    let start = Instant::now();
    let (expected, stderr) = kimi.reply("");
    let first = start.elapsed();
    assert!(stderr.contains("GiB on the GPU") && !stderr.contains("self-check"), "{stderr}");
    let kept = kimi.verdicts();
    assert_eq!(kept.len(), 1);
    assert!(std::fs::read_to_string(&kept[0]).unwrap().ends_with("\npassed\n"));
    let start = Instant::now();
    assert_eq!(kimi.reply("").0, expected);
    println!("first start {first:?}, second {:?}", start.elapsed());
    assert_eq!(kimi.verdicts(), kept);
}

/// Returns the kernels that a model launches: in steps of one token and more, on both attention paths, alone and batched, with
/// drafts, and for top-k sampling.
fn kernels_of(library: &Path, file: &Path) -> BTreeSet<String> {
    let (cuda, names) = (emulator::new_cuda(library), Arc::new(Mutex::new(BTreeSet::new())));
    let seen = names.clone();
    cuda.trace(move |event| {
        if let LaunchEvent::Kernel(name) = event {
            seen.lock().unwrap().insert(name.to_owned());
        }
    });
    let model = Model::load(&cuda, &Gguf::open(file).unwrap()).unwrap();
    let ids: Vec<u32> = (0..64).map(|i| i % model.config.vocab as u32).collect();
    let mut states = [(); 2].map(|()| model.state(&cuda, CacheFormat::F16));
    let mut step = |tokens: usize, batch: usize, outputs: Outputs, mla_path: MlaPath| {
        let mut sequences = Vec::new();
        for state in &mut states[..batch] {
            sequences.push(Sequence { tokens: &ids[..tokens], state, outputs, mla_path });
        }
        if let Some(logits) = model.forward(&cuda, &mut sequences, &mut ()) {
            cuda.top_k(&logits, 1);
            cuda.top_k(&logits, 256);
        }
        if outputs == Outputs::Draft {
            states[..batch].iter_mut().for_each(|state| model.accept(&cuda, state, 2));
        }
    };
    for tokens in [1, 2, 4] {
        step(tokens, 1, Outputs::Last, MlaPath::Absorbed);
        step(tokens, 2, Outputs::All, MlaPath::Absorbed);
    }
    // Enough rows in all to split attention. The emulator takes a second for each tile of 64 tokens.
    for mla_path in [MlaPath::Absorbed, MlaPath::Materialized] {
        step(64, 1, Outputs::Last, mla_path);
    }
    step(4, 1, Outputs::Draft, MlaPath::Absorbed);
    step(4, 2, Outputs::Draft, MlaPath::Absorbed);
    for _ in 0..3 {
        step(1, 2, Outputs::Last, MlaPath::Absorbed);
    }
    let names = names.lock().unwrap();
    names.clone()
}

/// Every kernel that a model launches runs in its self-check.
#[test]
fn the_check_covers_the_kernels_of_both_architectures() {
    let Some(kimi) = KimiOnEmulator::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    // A mix of formats, whose projections are in one launch.
    let kimi_linear =
        convert(&checkpoint(dir.path(), "tiny_d128", 20260, &["num_hidden_layers=2"]), "q4_k_m");
    for file in [kimi_linear, ling(dir.path(), "q8_0")] {
        let out = run(&kimi, &["gpu-worker", "F16", "false", file.to_str().unwrap()], "");
        let lines = text(&out.stdout);
        assert!(lines.ends_with("\npassed \n"), "{}: {lines}", file.display());
        let checked: BTreeSet<&str> = lines.lines().filter_map(|line| line.strip_prefix("kernel ")).collect();
        let used = kernels_of(emulator::library().unwrap(), &file);
        let unchecked: Vec<&String> = used.iter().filter(|name| !checked.contains(name.as_str())).collect();
        assert!(used.len() > 15 && unchecked.is_empty(), "{}: {unchecked:?}", file.display());
    }
}

/// Each fault is found, its kernel is named in one line, and the CPU computes. The verdict is kept.
#[test]
fn a_device_that_lies_is_not_used() {
    let Some(kimi) = KimiOnEmulator::new() else { return };
    // The check waits 2 s for a kernel that hangs, and the default time otherwise, so that a busy machine is no fault.
    let cases = [
        ("wrong:attend_plain:0", "kernel attend_plain: wrong numbers ("),
        ("wrong:append:0", "kernel append: wrong numbers ("),
        ("wrong:advance:0", "kernel advance: wrong numbers ("),
        ("error:append:0", "kernel append: append Grid"),
        ("sticky:route:0", "kernel route: route: an illegal memory access was encountered"),
        ("crash:delta_step_128:0", "kernel delta_step_128: ended the process (signal: 11"),
        ("hang:embed_Q8_0:0", "kernel embed_Q8_0: did not end within 2 s in embed Q8_0"),
    ];
    for (fault, message) in cases {
        kimi.verdicts().iter().for_each(|path| std::fs::remove_file(path).unwrap());
        let limit: &[&str] = if fault.starts_with("hang") { &["--gpu-timeout", "2"] } else { &[] };
        let (reply, stderr) = kimi.reply_with(limit, fault);
        let lines: Vec<&str> = stderr.lines().filter(|line| line.contains("self-check")).collect();
        assert_eq!(lines.len(), 1, "{fault}: {stderr}");
        assert!(lines[0].starts_with("computing on the CPU: host threads: "), "{}", lines[0]);
        assert!(lines[0].contains(message) && !stderr.contains("on the GPU"), "{fault}: {stderr}");
        assert!(!reply.is_empty());
        // The kept verdict holds, also without the fault.
        let (_, again) = kimi.reply("");
        assert!(again.contains(lines[0]), "{fault}: {again}");
    }
}

fn run(kimi: &KimiOnEmulator, args: &[&str], fault: &str) -> Output {
    kimi.command(args, fault).output().unwrap()
}

/// `--device cuda` warns, and `--device cpu` checks nothing. A short reply does not launch the kernel at fault.
#[test]
fn a_requested_device_is_used_with_a_warning() {
    let Some(kimi) = KimiOnEmulator::new() else { return };
    let args = ["generate", "--raw", "-n", "1", "The", "--device"];
    let out = run(&kimi, &[&args[..], &["cpu"]].concat(), "");
    assert!(out.status.success() && kimi.verdicts().is_empty(), "{out:?}");
    let out = run(&kimi, &[&args[..], &["cuda"]].concat(), "wrong:merge:0");
    let stderr = text(&out.stderr);
    assert!(stderr.contains("warning: host threads: kernel merge: wrong numbers"), "{stderr}");
    assert!(out.status.success() && stderr.contains("GiB on the GPU"), "{stderr}");
}

/// A model that fails to load on the GPU is loaded on the CPU, and one line names the cause; with `--device cuda` that is an error.
#[test]
fn a_model_that_does_not_load_is_loaded_on_the_cpu() {
    let Some(kimi) = KimiOnEmulator::checked() else { return };
    let (expected, _) = kimi.reply_with(&["--device", "cpu"], "");
    let full = "the device cannot hold this weight: out of memory: ";
    for (fault, cause) in
        [("full:cuMemAlloc:9", full), ("error:cuMemAlloc:9", "the GPU failed: allocation: ")]
    {
        for device in [&[][..], &["--device", "auto"]] {
            let (reply, stderr) = kimi.reply_with(device, fault);
            let lines: Vec<&str> = stderr.lines().filter(|line| line.contains(cause)).collect();
            assert_eq!((reply, lines.len()), (expected.clone(), 1), "{fault}: {stderr}");
            let is_warning = lines[0].starts_with("warning: the model does not load on the GPU: ");
            assert!(is_warning && lines[0].ends_with("; computing on the CPU"), "{}", lines[0]);
        }
        let args = ["generate", "--raw", "-n", "1", "The", "--cache-type", "f16", "--device", "cuda"];
        let out = run(&kimi, &args, fault);
        let stderr = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{fault}: {stderr}");
        let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("kimi: ")).collect();
        assert!(errors.len() == 1 && errors[0].contains(cause), "{fault}: {stderr}");
        assert!(!stderr.contains("on the CPU"), "{fault}: {stderr}");
    }
}

/// A failure in a reply ends a command with one line.
#[test]
fn a_failure_in_a_reply_is_one_line() {
    let Some(kimi) = KimiOnEmulator::checked() else { return };
    let fails = |args: &[&str], input: &str, fault: &str| {
        let mut command = kimi.command(args, fault);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(1), "{out:?}");
        let stderr = text(&out.stderr);
        assert!(!stderr.contains("panicked"), "{stderr}");
        (text(&out.stdout), stderr)
    };
    let generate = ["generate", "--raw", "-n", "24", "--temperature", "0", "The"];
    let generate = [&generate[..], &["--cache-type", "f16", "--gpu-timeout", "1"]].concat();
    for (kind, message) in FAILURES {
        let (reply, stderr) = fails(&generate, "", &format!("{kind}:delta_step_128:40"));
        assert!(!reply.is_empty(), "{kind}: tokens first");
        let mut last = stderr.lines().filter(|line| line.starts_with("kimi: "));
        let line = last.next().unwrap_or_default();
        assert!(line.starts_with("kimi: the GPU failed: ") && line.ends_with(message), "{kind}: {stderr}");
        assert_eq!(last.next(), None, "{kind}: {stderr}");
    }
    let chat = ["chat", "--plain", "--cache-type", "f16"];
    let (_, stderr) = fails(&chat, "Hello\n", "sticky:delta_step_128:12");
    assert!(stderr.contains("the GPU failed: ") && stderr.contains("; the chat is saved\n"), "{stderr}");
}

/// Faults in the middle of a reply and the ends of their messages, with `--gpu-timeout 1`. The call that notices the first one
/// may be any after it.
const FAILURES: [(&str, &str); 2] = [
    ("sticky", "an illegal memory access was encountered"),
    ("hang", "work on the device did not end within 1 s"),
];

/// A server process and its address.
struct ServerProcess {
    child: Child,
    address: String,
    log: std::sync::mpsc::Receiver<String>,
}

impl ServerProcess {
    fn start(mut command: Command) -> ServerProcess {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = std::sync::mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        let mut server = ServerProcess { child, address: String::new(), log };
        let line = server.line("listening address=");
        server.address = line.split("address=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        let ready = server.line(" ready ");
        assert!(ready.contains("CUDA host threads"), "{ready}");
        server
    }

    /// The next line of the log that contains `part`.
    fn line(&self, part: &str) -> String {
        loop {
            let line = self.log.recv_timeout(Duration::from_secs(60));
            let line = line.unwrap_or_else(|e| panic!("{part}: {e}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    fn send(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn get(&self, path: &str) -> String {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    }

    fn complete(&self, stream: bool) -> String {
        let body = format!(r#"{{"prompt": "The", "max_tokens": 24, "temperature": 0, "stream": {stream}}}"#);
        let head = "Host: localhost\r\nConnection: close\r\nContent-Type: application/json";
        let length = body.len();
        self.send(&format!(
            "POST /v1/completions HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A fault in a reply ends it with an error; the next request is served by the CPU, and the server says so.
#[test]
fn a_server_continues_on_the_cpu_after_a_fault() {
    let Some(kimi) = KimiOnEmulator::checked() else { return };
    for (kind, message) in FAILURES {
        let args = ["serve", "--port", "0", "--cache-type", "f16", "--no-cache", "--gpu-timeout", "1"];
        let server = ServerProcess::start(kimi.command(&args, &format!("{kind}:delta_step_128:40")));
        // The log says that the model is ready just before requests are accepted.
        let mut health = server.get("/health");
        for _ in 0..100 {
            if health.contains("200 OK") {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            health = server.get("/health");
        }
        assert!(health.ends_with(r#"{"status":"ready"}"#), "{kind}: {health}");
        assert!(server.get("/metrics").contains("kimi_degraded 0"), "{kind}");
        let failed = server.complete(true);
        assert!(failed.contains("200 OK") && failed.contains(r#""text":"#), "{kind}: tokens first: {failed}");
        assert!(failed.contains(message) && failed.contains("device_failed"), "{kind}: {failed}");
        let next = server.complete(false);
        assert!(next.contains("200 OK") && next.contains(r#""finish_reason""#), "{kind}: {next}");
        let health = server.get("/health");
        assert!(
            health.contains("200 OK") && health.ends_with(r#"{"status":"degraded"}"#),
            "{kind}: {health}"
        );
        assert!(server.get("/metrics").contains("kimi_degraded 1"), "{kind}");
    }
}
