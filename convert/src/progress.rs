//! Reports the progress of a conversion to its caller, which draws it.

use kernels::quant::Format;

/// Receives progress; every method is optional.
pub trait Progress {
    /// Called first, with the total input bytes and those that an earlier run converted.
    fn start(&mut self, total: u64, done: u64) {
        let _ = (total, done);
    }

    /// Called when an output tensor begins.
    fn tensor(&mut self, name: &str, format: Format) {
        let _ = (name, format);
    }

    /// Called when `bytes` more input bytes have been converted.
    fn advance(&mut self, bytes: u64) {
        let _ = bytes;
    }

    /// Reports one line to the user; the conversion continues.
    fn warn(&mut self, message: &str) {
        let _ = message;
    }
}

/// Ignores progress, for callers that display none.
impl Progress for () {}
