//! Grammars that a reply has to match (JSON schemas, Lark and GBNF grammars, regular expressions), as masks over the
//! vocabulary, by llguidance. It chooses no token: [`crate::generation::sample`] draws among what a mask leaves.
//!
//! Grammars come from clients: [`bounds`] are checked before the library sees them, [`compile`] runs the library on
//! threads of its own, [`masks`] computes masks away from the thread that runs the model, and [`forecast`] drafts what a
//! grammar leaves little choice about.

pub(crate) mod bounds;
pub mod compile;
mod forecast;
mod gbnf;
mod lark;
pub(crate) mod masks;
pub(crate) mod memory;
mod regex;
mod schema;

use crate::generation::sample::Constraint;
use anyhow::{Context as _, Result};
use bounds::{Excess, LARK_BYTES, Totals, within};
use llguidance::ParserFactory;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use masks::{Live, Masks};
use models::tokenizer::Vocabulary;
use serde_json::{Map, Value, json};
use std::sync::{Arc, Mutex, Once, PoisonError};

/// Tokens longer than this many bytes no grammar allows; the trie has no room for them.
const LONGEST: usize = 1000;
/// Memory of a compiled grammar for each byte of its text, where allocations are not counted: 128 tools with 50 parameters
/// each take 230 KB and 15 MB.
const MEMORY_PER_BYTE: usize = 64;
/// Nice value of threads that compile grammars or compute costly masks: about a tenth of a core that the model wants too.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;
const COMPILE_THREAD: &str = "grammar";
const MASK_THREAD: &str = "mask-";
/// Between the parts of JSON: nothing, a space, or a new line with its indentation. Without a bound a model may fill
/// a reply with white space.
const WHITE_SPACE: &str = r"( |\n[ \t]{0,64})";

/// What a text has to match.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// JSON that is valid by a JSON Schema.
    Schema(Value),
    /// A grammar in llguidance's variant of Lark's syntax.
    Lark(String),
    /// A regular expression that the whole text matches.
    Regex(String),
}

/// A vocabulary made ready for grammars.
pub struct Grammars(Arc<ParserFactory>);

/// A compiled grammar, shared by the replies to one request.
pub struct Compiled {
    live: Mutex<Live>,
    /// Mask of a reply's first token.
    first: Arc<SimpleVob>,
    bytes: usize,
}

impl Grammar {
    /// Converts a grammar in llama.cpp's syntax.
    ///
    /// # Errors
    /// A mistake in the grammar, with its line.
    pub fn from_gbnf(text: &str) -> Result<Grammar, String> {
        within("bytes in a grammar", LARK_BYTES, text.len()).map_err(|e| e.to_string())?;
        gbnf::to_lark(text).map(Grammar::Lark)
    }

    /// Checks the bounds on what a client may send.
    ///
    /// # Errors
    /// The bound that it exceeds.
    pub fn check(&self) -> Result<(), Excess> {
        let mut totals = Totals::default();
        scan(|| match self {
            Grammar::Schema(schema) => schema::check(schema, &mut totals),
            Grammar::Lark(text) => lark::check(text, &mut totals),
            Grammar::Regex(text) => regex::check(text, &mut totals).map(drop),
        })
    }

    fn text_bytes(&self) -> usize {
        match self {
            Grammar::Schema(schema) => schema.to_string().len(),
            Grammar::Lark(text) | Grammar::Regex(text) => text.len(),
        }
    }
}

/// Checks the bounds of one schema among those of a request, and adds it to their totals.
pub fn count_schema(schema: &Value, totals: &mut Totals) -> Result<(), Excess> {
    scan(|| schema::check(schema, totals))
}

/// Runs a scan with a stack that fits its bounds.
fn scan(scan: impl FnOnce() -> Result<(), Excess> + Send) -> Result<(), Excess> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(bounds::SCAN_STACK_BYTES);
        let scan = thread.spawn_scoped(scope, scan).expect("a thread to scan a grammar");
        scan.join().expect("scanning ends")
    })
}

impl Grammars {
    /// For a model with so many logits.
    pub fn new(vocabulary: &Vocabulary, vocab: usize) -> Result<Self> {
        skip_backtraces();
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie(vocabulary, vocab)?));
        let mut factory = ParserFactory::new_simple(&env)?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Grammars(Arc::new(factory)))
    }

    /// Compiles a grammar on a thread of its own. Once `abandoned` returns true, the compilation ends at its next step.
    ///
    /// # Errors
    /// The bound that it exceeds, what is wrong with it, or why it was not compiled.
    pub fn compile(
        &self,
        grammar: &Grammar,
        abandoned: &dyn Fn() -> bool,
    ) -> Result<Arc<Compiled>, compile::CompileError> {
        grammar.check().map_err(|e| compile::CompileError::Invalid(e.to_string()))?;
        let estimate = MEMORY_PER_BYTE * grammar.text_bytes();
        let grammar = match grammar {
            Grammar::Schema(schema) => TopLevelGrammar::from_json_schema(with_white_space(schema)),
            Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
            Grammar::Regex(text) => TopLevelGrammar::from_regex(text),
        };
        let mut compiled = compile::compile(&self.0, grammar, abandoned)?;
        compiled.bytes = compiled.bytes.max(estimate);
        Ok(Arc::new(compiled))
    }
}

/// The library's own limits: its defaults, said here so that another version does not move them, but for the size of a
/// grammar, which it numbers with 16 bits after its optimization, and the lexer's states, which take 1 to 2 KiB each.
/// `fuel` bounds the regular expressions, `items` the parser's work for one mask.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 50_000,
        max_grammar_size: 250_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// A vocabulary's tokens by their bytes, for a model with so many logits.
pub fn trie(vocabulary: &Vocabulary, vocab: usize) -> Result<TokTrie> {
    let word = |id: u32| {
        let bytes = vocabulary.token_bytes(id);
        match bytes.len() {
            1..=LONGEST if vocabulary.is_special(id) => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
            1..=LONGEST => bytes.to_vec(),
            _ => Vec::new(),
        }
    };
    let words: Vec<Vec<u8>> = (0..vocab as u32).map(word).collect();
    let ends: Vec<u32> =
        vocabulary.eog_tokens().iter().copied().filter(|id| (*id as usize) < vocab).collect();
    let end = *ends.first().context("grammars: expected a token that ends a reply, found none")?;
    Ok(TokTrie::from(&TokRxInfo::new(vocab as u32, end), &words).with_eos_tokens(&ends))
}

impl Compiled {
    fn new(live: Live, first: SimpleVob) -> Self {
        Compiled { bytes: live.bytes(), live: Mutex::new(live), first: Arc::new(first) }
    }

    /// Heap that it holds as long as one of its replies is queued or generated.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The constraint of one reply.
    pub fn constraint(self: &Arc<Self>) -> Box<dyn Constraint> {
        Box::new(Masks::new(self.clone()))
    }

    /// A matcher at the start of a reply.
    fn fork(&self) -> Live {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        Live::new(|| live.matcher().deep_clone())
    }
}

/// Lowers the priority of the calling thread for good, so that grammars take only the cores that the model leaves.
fn lower_priority() {
    // Elsewhere a nice value belongs to the process.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(NICENESS);
}

/// Keeps the library from capturing a backtrace for each of its panics, which it turns into errors: resolving one reads
/// the program's debug information, which stays in memory.
fn skip_backtraces() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        // The library installs its hook at the first call; ours comes before it.
        let _ = llguidance::panic_utils::catch_unwind(|| Ok(()));
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            if !(name == COMPILE_THREAD || name.starts_with(MASK_THREAD)) {
                report(info);
            }
        }));
    });
}

/// The schema, with bounded white space.
pub fn with_white_space(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(fields) => fields.clone(),
        // `true` allows everything, and so does no field at all; `false` allows nothing and stays.
        Value::Bool(true) => Map::new(),
        other => return other.clone(),
    };
    schema.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": WHITE_SPACE }));
    Value::Object(schema)
}

/// The library's error as one line, cut where it quotes much of a grammar.
fn first_line(text: &str) -> String {
    const MOST: usize = 300;
    let line = text.lines().next().unwrap_or("");
    if line == "NoExtensionBias" {
        return "no token can follow".to_owned();
    }
    // The library turns its own failed assertions into errors.
    let line = line.strip_prefix("panic: ").map_or(line.to_owned(), |why| format!("not supported: {why}"));
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
