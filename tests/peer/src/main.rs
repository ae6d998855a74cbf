//! Measures llama.cpp on a GGUF file as `kimi bench` does: rates of prefill and decode at a depth.
//!
//! ```text
//! peer MODEL [--threads N] [--depth N] [--ubatch N] [--flash -1|0|1] [--repack 0|1] [--vocab N]
//! peer quantize FROM TO [--threads N]      Q4_K_M from an unquantized file; prints the seconds it took
//! ```
//! Fills the context up to the depth once, then prints `ready SECONDS`: prefills 1,024 tokens, and repeats their rows in the KV
//! cache up to the depth, because the time of a step depends only on the number of rows.
//! For each line `prefill N` or `decode N` on standard input it prints the tokens per second from that depth.

use llama_cpp_sys_2::*;
use std::ffi::{CStr, CString, c_char, c_void};
use std::io::{BufRead, Write};
use std::time::Instant;

/// Tokens that are prefilled to fill a deeper context with their rows.
const FILL_TOKENS: usize = 1024;

struct Peer {
    context: *mut llama_context,
    vocab: u64,
    depth: usize,
    /// Prefill batch size in tokens.
    batch: usize,
    seed: u64,
}

/// The values of the command line's options.
struct PeerOptions(Vec<String>);

impl PeerOptions {
    fn text(&self, name: &str) -> Option<&String> {
        let at = self.0.iter().position(|arg| arg == name)?;
        Some(self.0.get(at + 1).expect("a value after an option"))
    }

    fn number(&self, name: &str, default: i64) -> i64 {
        self.text(name).map_or(default, |text| text.parse().expect("a number after an option"))
    }
}

impl Peer {
    fn new(path: &str, options: &PeerOptions) -> Peer {
        let path = CString::new(path).expect("a path without zeros");
        let (depth, threads) = (options.number("--depth", 0) as usize, options.number("--threads", 2) as i32);
        // SAFETY: plain calls of the C interface in its order; the model lives as long as the process.
        unsafe {
            let mut of = llama_model_default_params();
            of.use_extra_bufts = options.number("--repack", 1) != 0;
            let model = llama_model_load_from_file(path.as_ptr(), of);
            assert!(!model.is_null(), "llama.cpp cannot load the model");
            let mut with = llama_context_default_params();
            with.n_ctx = (depth + 4352) as u32;
            with.n_batch = options.number("--ubatch", 512) as u32;
            with.n_ubatch = with.n_batch;
            with.n_seq_max = 1 + (depth > 0) as u32;
            with.kv_unified = true;
            with.n_threads = threads;
            with.n_threads_batch = threads;
            with.flash_attn_type = options.number("--flash", -1) as i32;
            let context = llama_init_from_model(model, with);
            assert!(!context.is_null(), "llama.cpp makes no context");
            let vocab = options.number("--vocab", 163_840) as u64;
            Peer { context, vocab, depth, batch: with.n_batch as usize, seed: 1 }
        }
    }

    fn token(&mut self) -> i32 {
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.seed >> 33) % self.vocab) as i32
    }

    /// Fills sequence 0 up to the depth with the repeated rows of its first tokens.
    fn fill(&mut self) {
        let rows = self.depth.min(FILL_TOKENS);
        self.read(rows, self.batch, 0, 0);
        if rows == self.depth {
            return;
        }
        // SAFETY: the context lives, and each buffer has the length passed with it.
        unsafe {
            let mut state = vec![0; llama_state_seq_get_size(self.context, 0)];
            let written = llama_state_seq_get_data(self.context, state.as_mut_ptr(), state.len(), 0);
            assert_eq!(written, state.len(), "bytes of the state");
            let state = with_repeated_rows(&state, rows, self.depth);
            llama_memory_clear(llama_get_memory(self.context), true);
            let read = llama_state_seq_set_data(self.context, state.as_ptr(), state.len(), 0);
            assert_eq!(read, state.len(), "bytes of the repeated state");
        }
    }

    /// Processes tokens from `position` on, `step` at a time, with logits of the last token of each step only.
    fn read(&mut self, count: usize, step: usize, position: usize, sequence: i32) {
        // SAFETY: the batch has room for `step` tokens of one sequence each, and the context lives.
        unsafe {
            let mut batch = llama_batch_init(step as i32, 0, 1);
            for at in (0..count).step_by(step) {
                let n = step.min(count - at);
                batch.n_tokens = n as i32;
                for i in 0..n {
                    *batch.token.add(i) = self.token();
                    *batch.pos.add(i) = (position + at + i) as i32;
                    *batch.n_seq_id.add(i) = 1;
                    **batch.seq_id.add(i) = sequence;
                    *batch.logits.add(i) = (i + 1 == n) as i8;
                }
                assert_eq!(llama_decode(self.context, batch), 0, "llama_decode of {n} tokens");
            }
            llama_synchronize(self.context);
            llama_batch_free(batch);
        }
    }

    /// Tokens per second from the depth on, on a copy of sequence 0, or from an empty context.
    fn measure(&mut self, kind: &str, count: usize) -> f64 {
        // SAFETY: the context lives, and has sequence 1 where there is a depth.
        unsafe {
            let memory = llama_get_memory(self.context);
            if self.depth > 0 {
                llama_memory_seq_rm(memory, 1, -1, -1);
                llama_memory_seq_cp(memory, 0, 1, -1, -1);
            } else {
                llama_memory_clear(memory, true);
            }
        }
        let step = if kind == "decode" { 1 } else { self.batch };
        let start = Instant::now();
        self.read(count, step, self.depth, (self.depth > 0) as i32);
        count as f64 / start.elapsed().as_secs_f64()
    }
}

/// The state of one sequence with its `rows` KV cache rows repeated up to `depth`; the recurrent state stays as it is.
///
/// Layout: magic, sequence; streams (1), cells, then position, count of sequences (1) and sequence per cell; whether values
/// are transposed, layers, two sizes; per layer the type, the bytes of a row (u64) and the rows of its keys (kimi-linear has
/// no values); then the recurrent cells (1) and the position. All other numbers have 32 bits.
fn with_repeated_rows(state: &[u8], rows: usize, depth: usize) -> Vec<u8> {
    let number = |at: usize| u32::from_le_bytes(state[at..at + 4].try_into().expect("four bytes"));
    assert_eq!([number(8), number(12)], [1, rows as u32], "streams and cells of the state");
    let mut out = state[..12].to_vec();
    out.extend((depth as u32).to_le_bytes());
    for position in 0..depth as u32 {
        out.extend([position, 1, number(24)].into_iter().flat_map(u32::to_le_bytes));
    }
    let mut at = 16 + 12 * rows;
    let layers = number(at + 4);
    out.extend(&state[at..at + 16]);
    at += 16;
    for _ in 0..layers {
        let row = number(at + 4) as usize;
        out.extend(&state[at..at + 12]);
        let keys = &state[at + 12..at + 12 + rows * row];
        out.extend(keys.iter().cycle().take(depth * row));
        at += 12 + rows * row;
    }
    assert_eq!([number(at), number(at + 4)], [1, rows as u32 - 1], "recurrent cells and their position");
    out.extend(&state[at..at + 4]);
    out.extend((depth as u32 - 1).to_le_bytes());
    out.extend(&state[at + 8..]);
    out
}

unsafe extern "C" fn errors_only(level: ggml_log_level, text: *const c_char, _: *mut c_void) {
    if level == GGML_LOG_LEVEL_ERROR {
        // SAFETY: llama.cpp gives a C string.
        eprint!("{}", unsafe { CStr::from_ptr(text) }.to_string_lossy());
    }
}

fn quantize(from: &str, to: &str, threads: i32) {
    let (from, to) = (CString::new(from).expect("a path"), CString::new(to).expect("a path"));
    let start = Instant::now();
    // SAFETY: both are C strings that outlive the call.
    unsafe {
        let mut with = llama_model_quantize_default_params();
        with.nthread = threads;
        with.ftype = LLAMA_FTYPE_MOSTLY_Q4_K_M;
        assert_eq!(llama_model_quantize(from.as_ptr(), to.as_ptr(), &with), 0, "llama.cpp cannot quantize");
    }
    println!("{:.3}", start.elapsed().as_secs_f64());
}

fn main() {
    let options = PeerOptions(std::env::args().skip(1).collect());
    // SAFETY: the first calls of the C interface.
    unsafe {
        llama_log_set(Some(errors_only), std::ptr::null_mut());
        llama_backend_init();
    }
    let model = options.0.first().expect("a model");
    if model == "quantize" {
        return quantize(&options.0[1], &options.0[2], options.number("--threads", 2) as i32);
    }
    let mut peer = Peer::new(model, &options);
    let start = Instant::now();
    peer.fill();
    println!("ready {:.1}", start.elapsed().as_secs_f64());
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line of text");
        let (kind, count) = line.split_once(' ').expect("a kind and a number");
        println!("{:.3}", peer.measure(kind, count.parse().expect("a number")));
        std::io::stdout().flush().expect("a reader");
    }
}
