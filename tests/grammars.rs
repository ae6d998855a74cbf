//! Hostile schemas, grammars and regular expressions: each is refused with a one-line error or compiles and masks tokens;
//! none aborts the process, takes 10 s or much memory. Valid ones accept their own text.

#[path = "grammars/generate.rs"]
mod generate;
#[allow(dead_code, reason = "the base64 writer is for others")]
#[path = "../models/tests/support/kimi_vocabulary.rs"]
mod kimi_vocabulary;

use generate::GrammarGenerator;
use kimi::generation::grammar::{Grammar, Grammars, compile};
use models::tokenizer::Vocabulary;
use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let config = std::fs::read_to_string("models/tests/data/tokenizer_config.json").unwrap();
    Vocabulary::from_tiktoken("test", &kimi_vocabulary::tiktoken_model(), &config, None).unwrap()
});
static GRAMMARS: LazyLock<Grammars> = LazyLock::new(|| Grammars::new(&VOCABULARY, VOCABULARY.len()).unwrap());

/// The number of tokens that each grammar masks.
const STEPS: usize = 12;

fn resident_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("VmRSS: 0");
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() >> 10
}

/// The token ids that a mask allows.
fn set(mask: &[u32]) -> Vec<u32> {
    let bits = |(i, word): (usize, &u32)| {
        let word = *word;
        (0..32u32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| i as u32 * 32 + bit)
    };
    mask.iter().enumerate().flat_map(bits).collect()
}

/// Compiles a grammar and consumes some tokens; returns the outcome in a line.
fn walk(grammar: &Grammar, pick: &mut impl FnMut(usize) -> usize) -> String {
    let compiled = match GRAMMARS.compile(grammar, &|| false) {
        Ok(compiled) => compiled,
        Err(e) => return e.to_string(),
    };
    let mut constraint = compiled.constraint();
    for _ in 0..STEPS {
        let tokens = match constraint.allowed() {
            Ok(mask) => set(mask.expect("a grammar has a mask")),
            Err(e) => return e,
        };
        assert!(!tokens.is_empty(), "a mask without a token");
        let token = tokens[pick(tokens.len())];
        if let Err(e) = constraint.accept(token) {
            return e;
        }
        if VOCABULARY.is_end(token) {
            break;
        }
    }
    "accepted".to_owned()
}

/// The seed is fixed; `GRAMMAR_SEED` sets another.
#[test]
fn a_thousand_hostile_grammars_end_in_a_line() {
    let seed = std::env::var("GRAMMAR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(17);
    let mut generator = GrammarGenerator::new(seed);
    let _ = GRAMMARS.compile(&Grammar::Regex("a".into()), &|| false);
    let before = resident_mib();
    let (mut outcomes, mut slowest) = (BTreeMap::<String, usize>::new(), Duration::ZERO);
    for i in 0..1008 {
        let (family, grammar) = generator.hostile(i);
        let start = Instant::now();
        let outcome = walk(&grammar, &mut |n| generator.below(n));
        let (took, grown) = (start.elapsed(), resident_mib().saturating_sub(before));
        assert!(took < Duration::from_secs(10), "{family} {i}: took {took:?}: {outcome}");
        assert!(grown < 1024, "{family} {i}: {grown} MiB more: {outcome}");
        assert!(!outcome.contains('\n') && outcome.len() < 1300, "{family} {i}: {outcome}");
        slowest = slowest.max(took);
        if took > Duration::from_secs(1) {
            println!("{family} {i}: {took:?}: {outcome}");
        }
        let end = outcome.char_indices().nth(60).map_or(outcome.len(), |(end, _)| end);
        *outcomes.entry(outcome[..end].to_owned()).or_default() += 1;
    }
    println!("slowest {slowest:?}, memory {} MiB more; {outcomes:#?}", resident_mib().saturating_sub(before));
    let accepted = outcomes.get("accepted").copied().unwrap_or(0);
    assert!((100..900).contains(&accepted), "{accepted} of 1008 accepted: the generator tests nothing");
}

#[test]
fn schemas_accept_their_own_json() {
    let mut generator = GrammarGenerator::new(5);
    for i in 0..100 {
        let (schema, instance) = generator.valid(3);
        let compiled = GRAMMARS
            .compile(&Grammar::Schema(schema.clone()), &|| false)
            .unwrap_or_else(|e| panic!("{i}: {e}: {schema}"));
        let mut constraint = compiled.constraint();
        for token in VOCABULARY.encode(&instance.to_string()) {
            let mask = constraint.allowed().unwrap().unwrap();
            assert_eq!(mask[token as usize / 32] >> (token % 32) & 1, 1, "{i}: {instance} by {schema}");
            constraint.accept(token).unwrap();
        }
        let last = set(constraint.allowed().unwrap().unwrap());
        assert!(
            last.iter().any(|token| VOCABULARY.is_end(*token)),
            "{i}: {instance} by {schema} does not end"
        );
    }
}

/// The tools of an agent: 128 with 50 parameters each, and a hundred definitions that refer to one another.
#[test]
fn large_ordinary_grammars_compile() {
    for (name, grammar) in [("tools", generate::tools(128, 50)), ("definitions", generate::definitions(100))]
    {
        let start = Instant::now();
        let outcome = GRAMMARS.compile(&grammar, &|| false).map(|_| ());
        assert_eq!(outcome, Ok(()), "{name}");
        println!("{name}: {:?}", start.elapsed());
    }
}

#[test]
fn a_client_that_left_is_compiled_for_no_longer() {
    let grammar = generate::tools(128, 50);
    let left = GRAMMARS.compile(&grammar, &|| true).map(|_| ()).unwrap_err();
    assert_eq!(left, compile::CompileError::Abandoned);
    // More clients than may compile at once disconnect in the middle: their compilations are released for the next.
    for _ in 0..6 {
        let start = Instant::now();
        let leave = move || start.elapsed() > Duration::from_millis(60);
        let outcome = GRAMMARS.compile(&grammar, &leave).map(|_| ());
        assert!(matches!(outcome, Ok(()) | Err(compile::CompileError::Abandoned)), "{outcome:?}");
    }
    assert!(GRAMMARS.compile(&Grammar::Regex("a+".into()), &|| false).is_ok());
}
