//! Recently served prompts, with which [`super::miss`] explains why a prompt was prefilled again. They outlive their
//! snapshots: the tokens distinguish an evicted prefix from a changed one.

use super::miss::Nearest;
use super::namespace::Namespace;
use super::served::{PromptOutline, ServedPrompt};
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// The maximum number of prompts of a namespace.
const MAX_PROMPTS: usize = 64;
/// The maximum tokens of all prompts together: 32 MiB.
const MAX_TOKENS: usize = 8 << 20;

/// Recently served prompts of all namespaces, the latest last.
#[derive(Debug, Default)]
pub struct PromptHistory(Mutex<VecDeque<(Namespace, Arc<ServedPrompt>)>>);

impl PromptHistory {
    /// Adds a prompt. It replaces those that it continues; the oldest are removed above the limits.
    pub fn add(&self, namespace: Namespace, mut prompt: ServedPrompt) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(other, earlier)| {
            let continued = *other == namespace && prompt.tokens.starts_with(&earlier.tokens);
            if continued {
                prompt.snapshots.extend(&earlier.snapshots);
            }
            !continued
        });
        prompt.snapshots.sort_unstable();
        prompt.snapshots.dedup();
        all.push_back((namespace, Arc::new(prompt)));
        let count = all.iter().filter(|(other, _)| *other == namespace).count();
        if count > MAX_PROMPTS
            && let Some(oldest) = all.iter().position(|(other, _)| *other == namespace)
        {
            all.remove(oldest);
        }
        let mut size: usize = all.iter().map(|(_, prompt)| prompt.size()).sum();
        while size > MAX_TOKENS {
            size -= all.pop_front().map_or(size, |(_, prompt)| prompt.size());
        }
    }

    /// Finds the prompt with the longest common prefix; of several, the latest that shares most messages.
    pub fn nearest(&self, namespace: Namespace, prompt: &[u32], outline: &PromptOutline) -> Nearest {
        let all: Vec<Arc<ServedPrompt>> = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().filter(|(other, _)| *other == namespace).map(|(_, prompt)| prompt.clone()).collect()
        };
        let commons: Vec<usize> = all.iter().map(|served| served.common(prompt)).collect();
        // The logits after a whole prompt are in the snapshot at its end only.
        let restorable = |(served, common): (&Arc<ServedPrompt>, &usize)| {
            let whole = *common == prompt.len() && served.prompt != prompt.len();
            served.snapshot_within(common.saturating_sub(usize::from(whole)))
        };
        let restorable = all.iter().zip(&commons).map(restorable).max().unwrap_or(0);
        let digests: HashSet<u64> = outline.parts.iter().map(|part| part.digest).collect();
        let shared = |served: &ServedPrompt| {
            served.outline.parts.iter().filter(|part| digests.contains(&part.digest)).count()
        };
        let shared: Vec<usize> = all.iter().map(|served| shared(served)).collect();
        let best = (0..all.len()).max_by_key(|at| (commons[*at], shared[*at], *at));
        let best = best.filter(|at| commons[*at] > 0 || shared[*at] > 0);
        let nearest = best.map(|at| (all[at].clone(), commons[at]));
        Nearest { nearest, restorable }
    }
}
