//! Runs a command on a pseudo-terminal.

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Command, ExitStatus, Stdio};

/// Runs a command whose standard output and error are a terminal; returns its status and what the terminal received.
/// Standard input is a pipe with `input` in it, or the same terminal, at which no key is pressed.
pub fn run(command: Command, input: Option<&str>) -> (ExitStatus, String) {
    run_with_keys(command, input, "")
}

/// As [`run`]; keys are pressed at once, and a terminal keeps them until the command reads.
pub fn run_with_keys(mut command: Command, input: Option<&str>, keys: &str) -> (ExitStatus, String) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let side = || OpenOptions::new().read(true).write(true).open(&name).unwrap();
    command.stdout(side()).stderr(side());
    command.stdin(if input.is_some() { Stdio::piped() } else { side().into() });
    let mut child = command.spawn().unwrap();
    // Its copies of the terminal would keep the read below from ending.
    drop(command);
    if let Some(input) = input {
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    }
    let (mut terminal, mut received, mut buffer) = (File::from(terminal), Vec::new(), [0; 65536]);
    terminal.write_all(keys.as_bytes()).unwrap();
    // Linux reports the end of a terminal as an error.
    while let Ok(n @ 1..) = terminal.read(&mut buffer) {
        received.extend(&buffer[..n]);
    }
    (child.wait().unwrap(), String::from_utf8(received).expect("the terminal receives UTF-8"))
}
