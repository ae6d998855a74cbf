//! The runtime: engine, session, sampling, commands. The binary is a thin `main` over it.
#![forbid(unsafe_code)]
