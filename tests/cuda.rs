//! Commands on the CUDA backend, unchanged, with the emulator as the driver's library.

mod common;
#[path = "../kernels/tests/common/emulator.rs"]
mod emulator;

use common::{kimi_command, skip};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// `kimi` with the emulator as CUDA driver; `None` and a note without a C++ compiler.
struct OnEmulator(&'static Path);

impl OnEmulator {
    fn new() -> Option<OnEmulator> {
        emulator::library().map(|library| OnEmulator(library.parent().unwrap()))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = kimi_command();
        command.args(args).env("LD_LIBRARY_PATH", self.0);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
}

fn stdout(out: &Output) -> String {
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn gpu_check_is_right_on_the_emulator() {
    let Some(kimi) = OnEmulator::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.gguf");
    let file = file.to_str().unwrap();
    stdout(&kimi.run(&["synth", file, "--preset", "tiny", "--layers", "4"]));
    let real =
        ["--real", file, "--all-mla", file, "--depth", "40", "--far", "90", "--batch", "16", "--cards", "3G"];
    let found = stdout(&kimi.run(&[&["gpu-check", "--quick", "--seed", "7"][..], &real].concat()));
    for (test, depth, times) in [("prefill", "40", 1), ("decode", "40", 2), ("decode", "90", 2)] {
        let lines = found.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
        let lines = lines.filter(|l| l.first() == Some(&test) && l.get(2) == Some(&depth));
        assert_eq!(lines.count(), times, "{test} at {depth} in {found}");
    }
    assert!(!found.contains("FAILED"), "{found}");
    for part in ["device", "rows", "products", "delta", "attention", "experts", "fused", "models"] {
        assert!(found.lines().any(|l| l.starts_with(&format!("{part}, "))), "{part} in {found}");
    }
    assert!(found.contains("passed") && !found.contains("FAILED"), "{found}");
    assert!(found.contains("compiled by the driver: attention"), "{found}");
}

/// A model file gives the formats and sizes of the checks and measurements.
#[test]
fn gpu_check_takes_a_model_file() {
    let Some(kimi) = OnEmulator::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.gguf");
    let file = file.to_str().unwrap();
    let sizes = ["--set", "hidden_size=96", "--set", "moe_intermediate_size=32"];
    let synth = ["synth", file, "--preset", "tiny", "--layers", "4", "--type", "q8_0"];
    stdout(&kimi.run(&[&synth[..], &sizes].concat()));
    let found = stdout(&kimi.run(&["gpu-check", "-m", file, "--quick", "--seed", "7"]));
    let model = found.lines().position(|l| l.starts_with("model, ")).unwrap();
    assert!(!found.contains("FAILED") && !found.lines().any(|l| l.starts_with("products, ")), "{found}");
    let rows: Vec<&str> = found.lines().skip(model + 1).collect();
    for check in ["experts Q8_0 Q8_0 Q8_0, 3 tokens", "matmul_route F32, 9 tokens", "matmul Q8_0 96 to 32 "] {
        assert!(
            rows.iter().any(|l| l.trim_start().starts_with(check) && l.ends_with("passed")),
            "{check}: {found}"
        );
    }
    let args = ["gpu-check", "-m", file, "--only", "times", "--quick"];
    let times = stdout(&kimi.run(&args));
    for time in [
        "matmul Q8_0 96 to 32, 1 tokens (",
        "mixture Q8_0 ",
        "attention F16 ",
        "delta_rule ",
        "matmul_route F32 96 to ",
    ] {
        assert!(
            times.lines().any(|l| l.trim_start().starts_with(time) && l.contains(" GB/s ")),
            "{time}: {times}"
        );
    }
    let out = kimi.run(&["gpu-check", "-m", file, "--only", "products"]);
    assert!(text(&out.stderr).contains("--only: expected one of device, model, times with -m"), "{out:?}");
}

/// Of several devices the first is used, and one line says so.
#[test]
fn several_devices_are_mentioned_in_one_line() {
    let Some(kimi) = OnEmulator::new() else { return };
    let mentioned = |devices: &str| {
        let args = ["generate", "--raw", "-n", "1", "--no-cache", "--device", "cuda", "The"];
        let out = kimi.command(&args).env("KIMI_EMULATOR_DEVICES", devices).output().unwrap();
        stdout(&out);
        let lines = text(&out.stderr);
        lines.lines().filter(|line| line.contains("GPUs")).map(str::to_owned).collect::<Vec<_>>()
    };
    let line =
        "1 of 3 GPUs is used (host threads): a model is not split; CUDA_VISIBLE_DEVICES selects another";
    assert_eq!(mentioned("3"), [line]);
    assert!(mentioned("1").is_empty());
}

/// Older cards run the same archive without the instructions of newer ones; `--gpu-serial-launches` turns off their use.
#[test]
fn a_card_without_programmatic_launches_gives_the_same_replies() {
    let Some(kimi) = OnEmulator::new() else { return };
    let run = |capability: &str, args: &[&str]| {
        let out = kimi.command(args).env("KIMI_EMULATOR_CAPABILITY", capability).output().unwrap();
        stdout(&out)
    };
    for (capability, expected) in
        [("8.0", "no: expected compute capability 9.0"), ("9.0", "yes"), ("12.0", "yes")]
    {
        let device = run(capability, &["gpu-check", "--only", "device"]);
        let launches = device.lines().find(|line| line.contains("programmatic dependent launches")).unwrap();
        assert!(launches.trim_end().ends_with(expected), "{capability}: {device}");
    }
    let reply =
        ["generate", "--raw", "-n", "5", "--temperature", "0", "The", "--no-cache", "--device", "cuda"];
    let expected = run("9.0", &reply);
    assert_eq!(run("8.0", &reply), expected);
    assert_eq!(run("9.0", &[&reply[..], &["--gpu-serial-launches"]].concat()), expected);
}

/// Admission is bounded by the GPU memory that the placement leaves free of 4 GiB, not by the RAM or by --state-memory.
#[test]
fn serving_counts_the_memory_of_the_device() {
    let Some(kimi) = OnEmulator::new() else { return };
    let args = ["serve", "--port", "0", "--no-cache", "--device", "cuda", "--state-memory", "900G"];
    let mut server = kimi.command(&args).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines().map(Result::unwrap);
    let ready = lines.find(|line| line.contains("state_mib=")).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    let (_, mib) = ready.split_once("state_mib=").unwrap();
    let mib: u64 = mib.split_whitespace().next().unwrap().parse().unwrap();
    assert!((1000..4096).contains(&mib), "{ready}");
}

/// The memory of the device has a bar beside that of the RAM.
#[test]
fn inspect_shows_the_memory_of_the_device() {
    let Some(kimi) = OnEmulator::new() else { return };
    let report = stdout(&kimi.run(&["inspect"]));
    let bars = ["\nRAM, ", "\nhost threads, 4.00 GiB: fits\n", "f16 cache\n", "W weights 9.8 MiB"];
    assert!(bars.iter().all(|bar| report.contains(bar)), "{report}");
}

/// Replies on the GPU equal those on the CPU, and the placement is logged.
#[test]
fn a_reply_is_the_same_on_the_device() {
    let Some(kimi) = OnEmulator::new() else { return };
    let reply = |device: &[&str]| {
        let out = kimi.run(
            &[&["generate", "--raw", "-n", "5", "--temperature", "0", "The", "--no-cache"], device].concat(),
        );
        (stdout(&out), text(&out.stderr))
    };
    let (expected, _) = reply(&["--device", "cpu"]);
    let (found, stderr) = reply(&["--device", "cuda"]);
    assert_eq!(found, expected, "{stderr}");
    assert!(stderr.contains("GiB on the GPU"), "{stderr}");
}

/// Sampling from the top-k logits equals sampling from the full row, which a penalty over no tokens requires.
#[test]
fn a_reply_from_the_best_logits_is_that_from_all() {
    let Some(kimi) = OnEmulator::new() else { return };
    let reply = |how: &[&str], seed: &str| {
        let args = ["generate", "--raw", "-n", "12", "--no-cache", "--device", "cuda", "--seed", seed, "The"];
        stdout(&kimi.run(&[&args[..], how].concat()))
    };
    let all = ["--repeat-penalty", "2", "--repeat-last-n", "0"];
    for how in
        [&["--temp", "0"][..], &[], &["--temp", "1.5", "--top-k", "9"], &["--min-p", "0.1", "--top-p", "1"]]
    {
        for seed in ["1", "2"] {
            assert_eq!(reply(how, seed), reply(&[how, &all].concat(), seed), "{how:?}, seed {seed}");
        }
    }
}

/// With some experts of each layer cached on the GPU and the rest on the CPU, tokens are the same and the cache's hit rate is
/// logged.
#[test]
fn a_reply_is_the_same_with_experts_on_both_devices() {
    let Some(kimi) = OnEmulator::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.gguf");
    let file = file.to_str().unwrap();
    let wide = ["num_experts=256", "hidden_size=256", "moe_intermediate_size=256", "num_experts_per_token=4"];
    let wide: Vec<&str> = wide.into_iter().flat_map(|field| ["--set", field]).collect();
    let synth = ["synth", file, "--preset", "tiny", "--layers", "4", "--type", "q8_0"];
    stdout(&kimi.run(&[&synth[..], &wide].concat()));
    let reply = |device: &[&str]| {
        let args =
            ["generate", "-m", file, "--ids", "3,4,5,6,7,8", "-n", "16", "--temperature", "0", "--no-cache"];
        let out = kimi.run(&[&args[..], device].concat());
        (stdout(&out), text(&out.stderr))
    };
    let (expected, stderr) = reply(&["--device", "cpu"]);
    assert!(!stderr.contains("expert cache hit rate"), "{stderr}");
    // Room for some of the experts: the driver takes 512 MiB.
    for (wanted, planned, has_hits) in [
        (["--gpu-expert-cache", "30"], "the 30 most used of 256 experts of 3 layers", true),
        (["--hot-experts", "0"], "experts of 0 of 3 layers", false),
        (["--n-cpu-moe", "99"], "experts of 0 of 3 layers", false),
        (["--gpu-layers", "1"], "experts of 1 of 3 layers", false),
    ] {
        let (found, stderr) = reply(&[&["--device", "auto", "--gpu-memory", "670M"][..], &wanted].concat());
        assert_eq!(found, expected, "{stderr}");
        assert!(stderr.contains(planned), "{stderr}");
        assert_eq!(
            stderr.contains("expert cache hit rate") && !stderr.contains("hit rate 0 %"),
            has_hits,
            "{stderr}"
        );
    }
}

/// A prefix cached by one device is restored by the other, if both have the same cache type.
#[test]
fn snapshots_cross_between_devices() {
    let Some(kimi) = OnEmulator::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let text_of = |n: usize| "The keeper of the mill is Ada. ".repeat(n).trim_end().to_owned();
    let read = |device: &str, prompt: &str| {
        let store = ["--cache-dir", dir.path().to_str().unwrap(), "--cache-type", "f16"];
        let args = ["generate", "--raw", "-n", "4", "--temperature", "0", prompt, "--device", device];
        let out = kimi.run(&[&args[..], &store].concat());
        (stdout(&out), text(&out.stderr))
    };
    let alone = |device: &str, prompt: &str| {
        stdout(&kimi.run(&[
            "generate",
            "--raw",
            "-n",
            "4",
            "--temperature",
            "0",
            prompt,
            "--device",
            device,
            "--cache-type",
            "f16",
            "--no-cache",
        ]))
    };
    let (short, long) = (text_of(40), text_of(80));
    let (_, stderr) = read("cpu", &short);
    assert!(!stderr.contains("cached (disk)"), "{stderr}");
    let (found, stderr) = read("cuda", &format!("{short} Then"));
    assert!(stderr.contains("cached (disk)"), "{stderr}");
    assert_eq!(found, alone("cuda", &format!("{short} Then")));
    read("cuda", &long);
    let (found, stderr) = read("cpu", &format!("{long} Then"));
    assert!(stderr.contains("cached (disk)"), "{stderr}");
    assert_eq!(found, alone("cpu", &format!("{long} Then")));
}

#[test]
fn without_a_driver_the_cpu_computes_and_a_line_says_so() {
    let run = |device: &str| {
        let args = ["generate", "--raw", "-n", "1", "--no-cache", "--device", device, "The"];
        kimi_command().args(args).env_remove("LD_LIBRARY_PATH").output().unwrap()
    };
    let out = run("auto");
    if !text(&out.stderr).contains("GiB on the GPU") {
        assert!(
            out.status.success() && text(&out.stderr).contains("computing on the CPU: no CUDA driver"),
            "{out:?}"
        );
        let out = run("cuda");
        assert_eq!(out.status.code(), Some(1));
        assert!(text(&out.stderr).contains("kimi: --device cuda: no CUDA driver (libcuda) found"), "{out:?}");
    }
}

#[test]
fn too_little_memory_is_foreseen() {
    let Some(kimi) = OnEmulator::new() else { return };
    let out = kimi.run(&["generate", "--raw", "-n", "1", "--device", "cuda", "--gpu-memory", "100M", "The"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains(" MiB more GPU memory: "), "{out:?}");
}
