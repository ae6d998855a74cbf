//! Input and output below all other modules: text files, standard streams, private files, error messages,
//! units, the memory of the host, and worker processes for untrusted input. It imports no other module of this package.

pub(crate) mod confirm;
pub mod errors;
pub(crate) mod host_memory;
pub(crate) mod line_editor;
pub mod log;
pub mod output;
pub(crate) mod private_file;
pub(crate) mod progress;
pub(crate) mod prompt;
pub(crate) mod text;
pub(crate) mod units;
pub(crate) mod user_dirs;
pub mod worker_process;
