//! Text files, standard input and output, private files, and the machine's memory. It knows no model and imports no other
//! module of this package.

pub(crate) mod host_memory;
pub mod output;
pub(crate) mod private_file;
pub(crate) mod prompt;
pub(crate) mod text;
