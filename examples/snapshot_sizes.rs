//! Measures cached states of the 48B model, with synthetic contents: size on disk, time to write and time to load.
//! `cargo run --release --example snapshot_sizes -- DIR 4096,131072` prints one line per length.

use anyhow::{Context as _, Result};
use convert::config::CheckpointConfig;
use kernels::backend::CacheFormat;
use kernels::cpu::Cpu;
use kimi::prefix_cache::disk::{Disk, StateShape};
use kimi::prefix_cache::disk_index::Folder;
use kimi::prefix_cache::key::CacheKey;
use kimi::prefix_cache::state_dtype::StateType;
use kimi::prefix_cache::{Sizes, Store};
use models::gguf::read::Gguf;
use models::gguf::write::Layout;
use models::hybrid::config::Config;
use models::hybrid::state::State;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const CONFIG: &str = "tests/reference/official/config.json";
const PIECE: usize = 8192;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().context("usage: snapshot_sizes DIR TOKENS,...")?;
    let lengths = args.next().unwrap_or("4096,131072".into());
    let checkpoint = CheckpointConfig::parse(CONFIG, &std::fs::read(CONFIG)?)?;
    let metadata = convert::metadata::metadata(&checkpoint, "real", convert::Mix::from_name("Q4_K_M")?);
    let layout = Layout::new(metadata, vec![])?;
    let config = Config::from_gguf(&Gguf::from_bytes("real", layout.header().to_vec().into())?)?;
    let backend = Arc::new(Cpu::detect(None));
    println!("{:>9}  {:>9}  {:>8}  {:>8}  {:>8}", "tokens", "MiB", "write s", "state s", "read s");
    for length in lengths.split(',') {
        let dir = Path::new(&dir).join(format!("{length}.snapshots"));
        measure(&backend, &config, &dir, length.parse().context("a number of tokens")?)?;
        std::fs::remove_dir_all(dir)?;
    }
    Ok(())
}

/// Writes a sequence, loads it, and writes one more state of it.
fn measure(b: &Arc<Cpu>, config: &Config, dir: &Path, length: usize) -> Result<()> {
    let cache = CacheFormat::F16;
    let sizes = Sizes::of(&**b, config, cache);
    let shape = StateShape { config: config.clone(), cache, sizes };
    std::fs::create_dir_all(dir)?;
    let folder = Folder { dir: dir.to_owned(), budget: u64::MAX };
    let disk = Disk::new(
        folder,
        CacheKey::known(1),
        shape.clone(),
        StateType::F32,
        Box::new(|line| eprintln!("{line}")),
    );
    let store = Store::with_disk(b, shape, 0, disk)?;
    let tokens: Vec<u32> =
        (0..length as u32 + 100).map(|i| i.wrapping_mul(2_654_435_761) % 163_840).collect();
    let mut state = State::new(&**b, config, cache);
    let rows: Vec<u8> = (0..PIECE * sizes.row as usize).map(|i| (i % 251) as u8).collect();
    let grow = |state: &mut State<Cpu>, n: usize| state.import_rows(b, n, &rows[..n * sizes.row as usize]);
    for from in (0..length).step_by(PIECE) {
        grow(&mut state, PIECE.min(length - from));
    }
    let logits = vec![0.5; config.vocab];
    let save = |state: &State<Cpu>, n: usize| {
        let start = Instant::now();
        store.insert(b, &tokens[..n], state, &logits, true);
        store.flush();
        start.elapsed().as_secs_f64()
    };
    let whole = save(&state, length);
    let files =
        std::fs::read_dir(dir)?.map(|file| Ok(file?.metadata()?.len())).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    let hit = store.longest_prefix(b, &tokens[..length], None).context("what was written is there")?;
    let read = start.elapsed().as_secs_f64();
    assert_eq!(hit.len, length);
    grow(&mut state, 100);
    let another = save(&state, length + 100);
    let mib = files.iter().sum::<u64>() as f64 / f64::from(1 << 20);
    println!("{length:>9}  {mib:>9.1}  {whole:>8.2}  {another:>8.2}  {read:>8.2}");
    Ok(())
}
