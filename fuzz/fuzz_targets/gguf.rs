//! Any bytes as a GGUF file. What is accepted must stay within the file and survive writing and
//! reading; a model in it that loads must run.
#![no_main]

use kernels::backend::{Backend, CacheFormat};
use kernels::reference::Reference;
use libfuzzer_sys::fuzz_target;
use models::gguf::parse::{Header, parse};
use models::gguf::read::Gguf;
use models::gguf::write::Layout;
use models::kimi_linear::config::Config;
use models::kimi_linear::mla::MlaPath;
use models::kimi_linear::{Model, Outputs, Sequence};

/// Rewritten files above this are not built: the fuzzer's memory is for parsing.
const MAX_BYTES: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = parse("fuzz", bytes) else { return };
    for tensor in &header.tensors {
        assert!(header.data + tensor.offset + tensor.bytes <= bytes.len() as u64);
    }
    if let Ok(file) = Gguf::from_bytes("fuzz", bytes.to_vec().into()) {
        file.tensors.iter().for_each(|t| assert_eq!(file.bytes(t).len() as u64, t.bytes));
        if let Ok(config) = Config::from_gguf(&file) {
            assert!(config.layers.len() <= bytes.len());
            run(&file);
        }
    }
    let Ok(layout) = lay_out(header) else { return };
    if layout.total_bytes() > MAX_BYTES {
        return;
    }
    let mut written = layout.header().to_vec();
    written.resize(layout.total_bytes() as usize, 0);
    let again = lay_out(parse("fuzz", &written).expect("what we write we read")).expect("and write again");
    assert_eq!(layout.header(), again.header());
    assert_eq!(layout.tensors(), again.tensors());
});

/// Whatever loads also runs: a token through a model whose weights are in the input.
fn run(file: &Gguf) {
    let Ok(model) = Model::load(&Reference, file) else { return };
    let mut state = model.state(&Reference, CacheFormat::F16);
    let sequence =
        Sequence { tokens: &[0], state: &mut state, outputs: Outputs::Last, mla_path: MlaPath::Absorbed };
    let logits = model.forward(&Reference, &mut [sequence], &mut ()).expect("logits were asked for");
    assert_eq!(Reference.read(&logits).len(), model.config.vocab);
}

fn lay_out(header: Header) -> Result<Layout, models::gguf::Error> {
    let tensors = header.tensors.into_iter().map(|t| (t.name, t.format, t.shape)).collect();
    Layout::new(header.metadata, tensors)
}
