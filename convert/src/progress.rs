//! What a conversion tells whoever started it. No bar and no terminal here: the binary draws.

use kernels::quant::Format;

/// Listens to a conversion; every method may be left out.
pub trait Progress {
    /// Before the first byte: input bytes in all, and of them those that an earlier run converted.
    fn start(&mut self, total: u64, done: u64) {
        let _ = (total, done);
    }

    /// An output tensor begins.
    fn tensor(&mut self, name: &str, format: Format) {
        let _ = (name, format);
    }

    /// So many more input bytes are converted and written.
    fn advance(&mut self, bytes: u64) {
        let _ = bytes;
    }

    /// One line that the user should see; the conversion goes on.
    fn warn(&mut self, message: &str) {
        let _ = message;
    }
}

/// Listens to nothing.
impl Progress for () {}
