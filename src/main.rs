//! `kimi`: convert, inspect, generate, chat and bench Kimi Linear models.
fn main() {}
