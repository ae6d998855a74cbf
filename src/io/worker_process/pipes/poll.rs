//! Pipes in non-blocking mode, on which `poll` waits up to the deadline.

use super::Broken;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::process::{ChildStdin, ChildStdout};
use std::time::Instant;

pub struct PollPipes {
    input: ChildStdin,
    output: ChildStdout,
}

impl PollPipes {
    /// Takes a worker's standard input and output.
    pub fn new(input: ChildStdin, output: ChildStdout) -> io::Result<Self> {
        ioctl_fionbio(&input, true)?;
        ioctl_fionbio(&output, true)?;
        Ok(PollPipes { input, output })
    }

    pub fn send(&mut self, mut bytes: &[u8], deadline: Instant) -> Result<(), Broken> {
        while !bytes.is_empty() {
            match self.input.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(e) if e.kind() == ErrorKind::WouldBlock => wait(&self.input, PollFlags::OUT, deadline)?,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    pub fn receive(&mut self, mut bytes: &mut [u8], deadline: Instant) -> Result<(), Broken> {
        while !bytes.is_empty() {
            match self.output.read(bytes) {
                Ok(0) => return Err(Broken::Ended),
                Ok(read) => bytes = &mut bytes[read..],
                Err(e) if e.kind() == ErrorKind::WouldBlock => wait(&self.output, PollFlags::IN, deadline)?,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// Waits until a pipe is ready.
fn wait(pipe: &impl AsFd, ready: PollFlags, deadline: Instant) -> Result<(), Broken> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).map_err(|_| Broken::Late)?;
    match poll(&mut [PollFd::new(pipe, ready)], Some(&left)) {
        Ok(0) => Err(Broken::Late),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(Broken::Io(e.into())),
    }
}
