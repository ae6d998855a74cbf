//! Tests that need a tool which a Rust toolchain does not bring: each is skipped in plain sight or must run.
//!
//! Without the tool a line `skipped: TEST, needs TOOL` goes to standard error, past the capture of the test harness, and
//! to the file that `KIMI_TEST_SKIPPED` names. `KIMI_TEST_REQUIRE` lists the tools without which a test fails instead;
//! `./test` sets both.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// Reports that the running test, or this part of it, is skipped; panics if the tool is required.
pub fn note(part: &str, tool: &str) {
    static NOTED: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let required = std::env::var("KIMI_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == tool), "{tool} is required by KIMI_TEST_REQUIRE");
    let program = std::env::current_exe().unwrap();
    let program = program.file_stem().unwrap().to_string_lossy().into_owned();
    // Cargo appends a hash to the name of a test binary.
    let program = program.rsplit_once('-').map_or(&program[..], |(name, _)| name);
    let thread = std::thread::current();
    let line = format!("skipped: {program}::{}{part}, needs {tool}\n", thread.name().unwrap_or("main"));
    let mut noted = NOTED.lock().unwrap_or_else(|e| e.into_inner());
    if !noted.get_or_insert_default().insert(line.clone()) {
        return;
    }
    // The harness captures what the print macros write, not this.
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    if let Some(file) = std::env::var_os("KIMI_TEST_SKIPPED") {
        let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

/// The interpreter in `PYTHON`, or `python3`, if it starts and has NumPy and safetensors; a note otherwise.
pub fn python() -> Option<String> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let found = starts(Command::new(&python).args(["-c", "import numpy, safetensors"]));
    if !found {
        note("", "numpy");
    }
    found.then_some(python)
}

/// The compiler in `CXX`, or `c++`, if it starts; a note otherwise.
pub fn cxx() -> Option<String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let found = starts(Command::new(&compiler).arg("--version"));
    if !found {
        note(" on the CUDA emulator", "c++");
    }
    found.then_some(compiler)
}

fn starts(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
