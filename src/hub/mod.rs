//! Downloads models from Hugging Face, or a mirror of it, into the cache that Hugging Face's own tools use.
//!
//! It knows repositories and files, but neither models nor the memory of this machine. Start with [`pull`]: it asks
//! [`client`] for the files of a repository ([`listing`]), stores each one with [`download`], and links it in the
//! [`cache`]. [`variants`] groups files by quantization type, and [`settings`] reads the environment.
//!
//! The crate `hf-hub` 0.5 was evaluated and does not fit: it checks no SHA-256, uses one connection, ignores `HF_TOKEN`,
//! `HF_HUB_CACHE`, `HF_HUB_OFFLINE` and 429, and its partial files and locks are not those of `huggingface_hub`. Servers are
//! not trusted: lists, headers and waits are bounded, file names are checked, and the token goes to the hub alone.

pub mod cache;
pub mod client;
pub mod download;
mod fetch;
pub mod listing;
mod origin;
pub mod paths;
pub mod progress;
pub mod pull;
pub mod settings;
pub mod spec;
mod sum;
pub mod variants;
