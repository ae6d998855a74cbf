//! Blocking pipes, each with a thread that transfers bytes while the caller waits up to the deadline.
//!
//! After a missed deadline a thread is still blocked; it ends when the worker is killed, which closes the pipes.

use super::Broken;
use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Instant;

pub struct ThreadPipes {
    requests: Sender<Vec<u8>>,
    written: Receiver<io::Result<()>>,
    lengths: Sender<usize>,
    replies: Receiver<io::Result<Vec<u8>>>,
}

impl ThreadPipes {
    /// Takes a worker's standard input and output.
    pub fn new(
        mut input: impl Write + Send + 'static,
        mut output: impl Read + Send + 'static,
    ) -> io::Result<Self> {
        let (requests, written) = transfer("worker-input", move |bytes: Vec<u8>| {
            input.write_all(&bytes).and_then(|()| input.flush())
        })?;
        let (lengths, replies) = transfer("worker-output", move |length: usize| {
            let mut bytes = vec![0; length];
            output.read_exact(&mut bytes).map(|()| bytes)
        })?;
        Ok(ThreadPipes { requests, written, lengths, replies })
    }

    pub fn send(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), Broken> {
        self.requests.send(bytes.to_vec()).map_err(|_| Broken::Ended)?;
        within(&self.written, deadline)
    }

    pub fn receive(&mut self, bytes: &mut [u8], deadline: Instant) -> Result<(), Broken> {
        self.lengths.send(bytes.len()).map_err(|_| Broken::Ended)?;
        bytes.copy_from_slice(&within(&self.replies, deadline)?);
        Ok(())
    }
}

type Transfer<T, R> = (Sender<T>, Receiver<io::Result<R>>);

/// Starts a thread that applies `work` to each value and returns the results.
fn transfer<T: Send + 'static, R: Send + 'static>(
    name: &str,
    mut work: impl FnMut(T) -> io::Result<R> + Send + 'static,
) -> io::Result<Transfer<T, R>> {
    let (values, inputs) = channel::<T>();
    let (outputs, results) = channel();
    thread::Builder::new().name(name.into()).spawn(move || {
        for value in inputs {
            if outputs.send(work(value)).is_err() {
                return;
            }
        }
    })?;
    Ok((values, results))
}

fn within<R>(results: &Receiver<io::Result<R>>, deadline: Instant) -> Result<R, Broken> {
    let left = deadline.saturating_duration_since(Instant::now());
    match results.recv_timeout(left) {
        Ok(result) => Ok(result?),
        Err(RecvTimeoutError::Timeout) => Err(Broken::Late),
        Err(RecvTimeoutError::Disconnected) => Err(Broken::Ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn bytes_pass_in_order_and_a_closed_pipe_ends_the_transfer() {
        let (output, input) = io::pipe().unwrap();
        let mut pipes = ThreadPipes::new(input, output).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut back = [0; 5];
        pipes.send(b"first", deadline).unwrap();
        pipes.receive(&mut back, deadline).unwrap();
        assert_eq!(&back, b"first");
        let (ended, end) = io::pipe().unwrap();
        drop(end);
        let mut pipes = ThreadPipes::new(io::sink(), ended).unwrap();
        assert!(matches!(pipes.receive(&mut back, deadline), Err(Broken::Ended)));
    }

    #[test]
    fn a_silent_pipe_is_late() {
        let (output, input) = io::pipe().unwrap();
        let mut pipes = ThreadPipes::new(io::sink(), output).unwrap();
        let start = Instant::now();
        let late = pipes.receive(&mut [0; 1], start + Duration::from_millis(20));
        assert!(matches!(late, Err(Broken::Late)));
        assert!(start.elapsed() < Duration::from_secs(30));
        drop(input);
    }

    #[test]
    fn a_full_pipe_is_late() {
        let (output, input) = io::pipe().unwrap();
        let mut pipes = ThreadPipes::new(input, io::empty()).unwrap();
        let late = pipes.send(&vec![0; 4 << 20], Instant::now() + Duration::from_millis(20));
        assert!(matches!(late, Err(Broken::Late)));
        drop(output);
    }
}
