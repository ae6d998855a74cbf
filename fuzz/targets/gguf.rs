//! Parses the input as a GGUF file. Accepted tensors must lie within the file and survive writing and reading; a model that
//! loads must run.

use kernels::backend::{Backend, CacheFormat};
use kernels::reference::Reference;
use models::gguf::parse::{Header, parse};
use models::gguf::read::Gguf;
use models::gguf::write::Layout;
use models::hybrid::config::Config;
use models::hybrid::mla::MlaPath;
use models::hybrid::{Model, Outputs, Sequence};

/// Rewritten files above this are not built: the fuzzer's memory is for parsing.
const MAX_BYTES: u64 = 1 << 20;

/// Tests one input, and panics if a property does not hold.
pub fn run(bytes: &[u8]) {
    let Ok(header) = parse("fuzz", bytes) else { return };
    for tensor in &header.tensors {
        assert!(header.data + tensor.offset + tensor.bytes <= bytes.len() as u64);
    }
    if let Ok(file) = Gguf::from_bytes("fuzz", bytes.to_vec().into()) {
        file.tensors.iter().for_each(|t| assert_eq!(file.bytes(t).len() as u64, t.bytes));
        if let Ok(config) = Config::from_gguf(&file) {
            assert!(config.layers.len() <= bytes.len());
            run_model(&file);
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
}

/// Runs a token through a model that loads: its weights are in the input.
fn run_model(file: &Gguf) {
    let Ok(model) = Model::load(&Reference, file) else { return };
    let mut state = model.state(&Reference, CacheFormat::F16);
    let sequence =
        Sequence { tokens: &[0], state: &mut state, outputs: Outputs::Last, mla_path: MlaPath::Absorbed };
    let logits = model.forward(&Reference, &mut [sequence], &mut ()).expect("logits of the last token");
    assert_eq!(Reference.read(&logits).len(), model.config.vocab);
}

fn lay_out(header: Header) -> Result<Layout, models::gguf::Error> {
    let tensors = header.tensors.into_iter().map(|t| (t.name, t.format, t.shape)).collect();
    Layout::new(header.metadata, tensors)
}
