//! The files of a request: their text, the tokens that prompts about them begin with, and the indexes of quotes. Sets are kept
//! in memory for the next question.

use super::store::{FileStore, StoredFile};
use crate::document_qa::INSTRUCTIONS;
use crate::document_qa::prefix::DocumentPrefix;
use crate::document_qa::quote_constraint::QuoteIndex;
use crate::document_qa::quotes::FoldedTexts;
use crate::documents::Document;
use crate::io::errors::one_line;
use crate::runtime::engine::EngineBase;
use crate::serve::errors::ApiError;
use crate::serve::tenant::Owner;
use models::template::Template;
use models::tokenizer::Vocabulary;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Maximum number of sets in memory.
const MAX_SETS: usize = 8;
/// Maximum bytes of the text of all sets in memory but the last; indexes take about five times as much.
const MAX_TEXT_BYTES: usize = 16 << 20;

/// A file that a request names or contains.
pub enum FileSource {
    Stored(StoredFile),
    /// A file in the request itself, with the id that it would have.
    Inline {
        id: String,
        name: String,
        bytes: Vec<u8>,
    },
}

/// The files of a request in their order.
pub struct FileSet {
    owner: Owner,
    pub ids: Vec<String>,
    pub documents: Vec<Document>,
    /// The set is one uploaded file, whose tokens are stored.
    is_stored: bool,
    prefix: OnceLock<DocumentPrefix>,
    texts: OnceLock<FoldedTexts>,
    quote_index: OnceLock<Arc<QuoteIndex>>,
}

/// The files of a request that may have none.
pub type AttachedFiles = Option<Arc<FileSet>>;

/// The sets of recent requests, the latest last.
#[derive(Default)]
pub struct FileSets(Mutex<VecDeque<Arc<FileSet>>>);

impl FileSource {
    fn id(&self) -> &str {
        match self {
            FileSource::Stored(record) => &record.id,
            FileSource::Inline { id, .. } => id,
        }
    }

    fn document(&self, files: &FileStore, owner: Owner) -> Result<Document, ApiError> {
        match self {
            FileSource::Stored(record) => files.document(owner, record),
            FileSource::Inline { name, bytes, .. } => {
                Document::from_bytes(name, bytes).map_err(|e| ApiError::invalid("file_data", one_line(&e)))
            }
        }
    }
}

impl FileSets {
    /// Returns the set of these files, each once.
    pub fn get(
        &self,
        files: &FileStore,
        owner: Owner,
        sources: &[FileSource],
    ) -> Result<Arc<FileSet>, ApiError> {
        let mut unique: Vec<&FileSource> = Vec::new();
        for source in sources {
            if !unique.iter().any(|other| other.id() == source.id()) {
                unique.push(source);
            }
        }
        let ids: Vec<String> = unique.iter().map(|source| source.id().to_owned()).collect();
        let is_same = |set: &Arc<FileSet>| set.owner == owner && set.ids == ids;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = all.iter().position(is_same)
            && let Some(set) = all.remove(at)
        {
            all.push_back(set.clone());
            return Ok(set);
        }
        drop(all);
        let documents =
            unique.iter().map(|source| source.document(files, owner)).collect::<Result<_, _>>()?;
        let set = Arc::new(FileSet {
            owner,
            ids,
            documents,
            is_stored: matches!(unique[..], [FileSource::Stored(_)]),
            prefix: OnceLock::new(),
            texts: OnceLock::new(),
            quote_index: OnceLock::new(),
        });
        self.add(set.clone());
        Ok(set)
    }

    fn add(&self, set: Arc<FileSet>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push_back(set);
        let bytes = |all: &VecDeque<Arc<FileSet>>| all.iter().map(|set| set.bytes()).sum::<usize>();
        while all.len() > MAX_SETS || all.len() > 1 && bytes(&all) > MAX_TEXT_BYTES {
            all.pop_front();
        }
    }

    /// Forgets the sets with a file that was deleted.
    pub fn forget(&self, owner: Owner, id: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|set| set.owner != owner || !set.ids.iter().any(|other| other == id));
    }
}

impl FileSet {
    fn bytes(&self) -> usize {
        self.documents.iter().map(|document| document.text.len()).sum()
    }

    /// Returns the tokens that prompts about these files begin with.
    pub fn prefix(&self, files: &FileStore, engine: &EngineBase) -> Result<&DocumentPrefix, ApiError> {
        if let Some(prefix) = self.prefix.get() {
            return Ok(prefix);
        }
        let (id, model) = (&self.ids[0], model_key(engine));
        let stored = self.is_stored.then(|| files.tokens(self.owner, id, model)).flatten();
        let prefix = match stored {
            Some(tokens) => DocumentPrefix { tokens, snapshots: Vec::new() },
            None => {
                let made = DocumentPrefix::new(engine, Some(INSTRUCTIONS), &self.documents);
                let prefix = made.map_err(|e| ApiError::invalid("messages", one_line(&e)))?;
                if self.is_stored {
                    files.set_tokens(self.owner, id, model, &prefix.tokens);
                }
                prefix
            }
        };
        Ok(self.prefix.get_or_init(|| prefix))
    }

    /// Returns the text in which quotes are looked for.
    pub fn texts(&self) -> &FoldedTexts {
        self.texts.get_or_init(|| FoldedTexts::new(&self.documents))
    }

    /// Returns the index for the constraint that quotes are verbatim.
    pub fn quote_index(&self, tokenizer: &Arc<Vocabulary>, vocab: usize) -> &Arc<QuoteIndex> {
        self.quote_index.get_or_init(|| {
            let index = QuoteIndex::new(&self.documents, tokenizer, vocab);
            // Here, so that the thread of the model does not do it.
            index.prepare();
            Arc::new(index)
        })
    }
}

/// Returns the key of stored tokens: they depend on vocabulary, template and instructions.
fn model_key(engine: &EngineBase) -> u128 {
    let mut hash = blake3::Hasher::new();
    let file = &engine.file;
    let paths: Vec<_> =
        file.paths().iter().map(|path| path.as_os_str().as_encoded_bytes().to_vec()).collect();
    hash.update(env!("CARGO_PKG_VERSION").as_bytes());
    hash.update(&file.file_bytes().to_le_bytes());
    hash.update(&paths.concat());
    hash.update(engine.template.as_ref().map_or("", Template::source).as_bytes());
    hash.update(INSTRUCTIONS.as_bytes());
    let mut key = [0; 16];
    hash.finalize_xof().fill(&mut key);
    u128::from_le_bytes(key)
}
