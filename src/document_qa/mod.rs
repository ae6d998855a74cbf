//! Questions about documents: the layout of their prompts, whose common prefix is the text of the documents, the constraint
//! that quotes are verbatim, the places of quotes, and the estimate of the remaining prefill time. `ask` and `serve` share it,
//! so that both find the same prefixes in the cache.
//!
//! It neither reads files nor generates. Next: [`prefix`], [`quote_constraint`], [`quotes`], [`eta`].

pub(crate) mod eta;
pub(crate) mod prefix;
pub mod quote_constraint;
pub(crate) mod quotes;

use crate::documents::Document;

/// The system message, which precedes the files. The demonstration model ignores it in this wording; with longer ones it
/// misses facts of files that have few sentences.
pub(crate) const INSTRUCTIONS: &str = "Answer questions about the text. First quote the lines that hold the answer word for word, each \
    after \"> \", then answer from them.";

/// Suffix of a question that asks for quotes.
pub(crate) const QUOTE: &str = " Quote the text.";

/// Separates files from each other and from the question.
pub(crate) const SEPARATOR: &str = "\n\n";

/// Joins the files: a single one as it is, several each after its name.
pub(crate) fn joined(documents: &[Document]) -> String {
    match documents {
        [one] => one.text.trim_end().to_owned(),
        several => {
            let named = several.iter().map(|d| format!("{}:{SEPARATOR}{}", d.name, d.text.trim_end()));
            named.collect::<Vec<_>>().join(SEPARATOR)
        }
    }
}

/// Whether a character belongs to a script without spaces between words.
pub(crate) fn is_spaceless(c: char) -> bool {
    matches!(c, '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
        | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{20000}'..='\u{3ffff}')
}
