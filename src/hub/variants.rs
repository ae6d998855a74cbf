//! Groups the GGUF files of a repository by quantization type.

use super::listing::RepoFile;
use kernels::quant::Format;
use models::gguf::file_type::is_file_type;

/// The files of one quantization type: one, or all parts of a split.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufVariant {
    /// The type as the file name spells it, in capitals: `Q4_K_M`, `UD-Q4_K_XL`; the file name if it has none.
    pub kind: String,
    /// Files in the order of their parts.
    pub files: Vec<RepoFile>,
}

/// Why a type cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The program cannot compute with its blocks.
    Format,
    /// The repository lacks parts of it.
    Parts,
}

impl GgufVariant {
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size))
    }

    /// The name of the first file without directories.
    pub fn file_name(&self) -> &str {
        file_name(&self.files[0].path)
    }

    /// Whether this program can run it.
    pub fn usable(&self) -> Result<(), Unusable> {
        if is_supported(&self.kind) == Some(false) {
            return Err(Unusable::Format);
        }
        let count = split_name(self.file_name()).map_or(1, |(_, _, count)| count);
        if self.files.len() as u64 == count { Ok(()) } else { Err(Unusable::Parts) }
    }

    /// Whether `wanted` names this type or its file, in any case. `Q4_K_M` also means `UD-Q4_K_M` and `I1-Q4_K_M`.
    pub fn is(&self, wanted: &str) -> bool {
        let same = |text: &str| text.eq_ignore_ascii_case(wanted);
        same(&self.kind) || self.files.iter().any(|file| same(&file.path) || same(file_name(&file.path)))
    }

    /// The type without a prefix such as `UD-`.
    pub fn base_kind(&self) -> &str {
        base_kind(&self.kind)
    }

    /// Bits per weight in the name of the type: 4 for `Q4_K_M`; None for floats and other names.
    pub fn bits(&self) -> Option<u32> {
        let name = self.base_kind();
        name.trim_start_matches('I').strip_prefix('Q').and_then(|rest| rest.chars().next()?.to_digit(10))
    }
}

/// The variants among the files of a repository, the smallest first. Projectors and importance matrices are none.
pub fn variants(files: &[RepoFile]) -> Vec<GgufVariant> {
    let mut found: Vec<(String, GgufVariant)> = Vec::new();
    let mut sorted: Vec<&RepoFile> = files.iter().filter(|file| is_model(&file.path)).collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    for file in sorted {
        let name = file_name(&file.path);
        // The parts of a split have the same key.
        let key = match split_name(name) {
            Some((stem, _, count)) => format!("{}{stem}/{count}", &file.path[..file.path.len() - name.len()]),
            None => file.path.clone(),
        };
        match found.iter_mut().find(|(known, _)| *known == key) {
            Some((_, variant)) => variant.files.push(file.clone()),
            None => {
                let stem = split_name(name).map_or(name.trim_end_matches(".gguf"), |(stem, _, _)| stem);
                let kind = kind_in(stem).unwrap_or_else(|| stem.to_owned());
                found.push((key, GgufVariant { kind, files: vec![file.clone()] }));
            }
        }
    }
    let mut found: Vec<GgufVariant> = found.into_iter().map(|(_, variant)| variant).collect();
    found.sort_by_key(GgufVariant::bytes);
    tell_apart(&mut found);
    found
}

/// Of files with one type, `NAME-Q4_K_M` keeps it where the others are `NAME-x-Q4_K_M`; those are named by their stem.
fn tell_apart(found: &mut [GgufVariant]) {
    let stem = |v: &GgufVariant| {
        let name = v.file_name();
        split_name(name).map_or(name.trim_end_matches(".gguf"), |(stem, _, _)| stem).to_owned()
    };
    let model = |v: &GgufVariant| {
        let stem = stem(v);
        stem.get(..stem.len().saturating_sub(v.kind.len() + 1)).unwrap_or_default().to_owned()
    };
    let renamed: Vec<Option<String>> = found
        .iter()
        .map(|v| {
            let derived = |plain: &GgufVariant| {
                plain.kind == v.kind
                    && model(v).len() > model(plain).len()
                    && model(v).starts_with(&model(plain))
            };
            found.iter().any(derived).then(|| stem(v))
        })
        .collect();
    for (variant, name) in found.iter_mut().zip(renamed) {
        variant.kind = name.unwrap_or_else(|| variant.kind.clone());
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn is_model(path: &str) -> bool {
    let name = file_name(path).to_ascii_lowercase();
    let stem = name.strip_suffix(".gguf");
    stem.is_some_and(|stem| !stem.ends_with("imatrix") && !stem.contains("mmproj"))
}

/// Stem, number and count of `STEM-00001-of-00003.gguf`.
fn split_name(name: &str) -> Option<(&str, u64, u64)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| {
        (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse::<u64>().ok())?
    };
    Some((stem, digits(number)?, digits(count)?))
}

/// The type in a file's stem: its last word that is one, with a prefix that marks another recipe.
fn kind_in(stem: &str) -> Option<String> {
    let words: Vec<String> = stem.split(['-', '.']).map(str::to_ascii_uppercase).collect();
    let at = words.iter().rposition(|word| is_kind(word))?;
    let prefix = at.checked_sub(1).map(|before| &*words[before]).filter(|word| matches!(*word, "UD" | "I1"));
    Some(prefix.map_or(words[at].clone(), |prefix| format!("{prefix}-{}", words[at])))
}

fn is_kind(word: &str) -> bool {
    let quantized = word.trim_start_matches(['I', 'T']).strip_prefix('Q');
    let quantized = quantized.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    quantized
        || matches!(word, "BF16" | "F16" | "F32" | "FP16")
        || word.starts_with("MXFP")
        || word.starts_with("NVFP")
}

fn base_kind(kind: &str) -> &str {
    kind.rsplit(['-', '.']).next().unwrap_or(kind)
}

/// Whether the blocks of a type are known to the kernels; None if the name is no type.
fn is_supported(kind: &str) -> Option<bool> {
    let name = base_kind(kind);
    if !is_kind(name) {
        return None;
    }
    let sizes = ["_XXS", "_XS", "_S", "_M", "_L", "_XL", "_XXL", "_MOE"];
    let base = sizes.iter().find_map(|size| name.strip_suffix(size));
    Some(
        [Some(name), base]
            .into_iter()
            .flatten()
            .any(|name| name == "FP16" || Format::from_name(name).is_some() || is_codebook_mix(name)),
    )
}

/// Whether this is llama.cpp's name of a mix of IQ formats, all of which are supported: `IQ2_M` is no format of its own.
fn is_codebook_mix(name: &str) -> bool {
    name.starts_with("IQ") && is_file_type(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, size: u64) -> RepoFile {
        RepoFile { path: path.to_owned(), size, sha256: None, git_id: None }
    }

    #[test]
    fn files_are_grouped_by_type() {
        let names = [
            "moonshotai_Kimi-Linear-48B-A3B-Instruct-Q4_K_M.gguf",
            "bf16/moonshotai_Kimi-Linear-bf16-00002-of-00002.gguf",
            "bf16/moonshotai_Kimi-Linear-bf16-00001-of-00002.gguf",
            "Kimi.i1-IQ3_XXS.gguf",
            "Kimi-UD-Q4_K_XL.gguf",
            "Kimi-MXFP4_MOE.gguf",
            "broken-Q8_0-00001-of-00002.gguf",
            "kimi-demo.gguf",
            "mmproj-F16.gguf",
            "Kimi-imatrix.gguf",
            "README.md",
        ];
        let files: Vec<RepoFile> = names.iter().zip(1..).map(|(name, size)| file(name, size)).collect();
        let found = variants(&files);
        let kinds: Vec<(&str, usize, u64)> =
            found.iter().map(|v| (&*v.kind, v.files.len(), v.bytes())).collect();
        let expected = [
            ("Q4_K_M", 1, 1),
            ("I1-IQ3_XXS", 1, 4),
            ("UD-Q4_K_XL", 1, 5),
            ("BF16", 2, 5),
            ("MXFP4_MOE", 1, 6),
            ("Q8_0", 1, 7),
            ("kimi-demo", 1, 8),
        ];
        assert_eq!(kinds, expected);
        assert!(found[3].files[0].path.ends_with("00001-of-00002.gguf"));
        let usable: Vec<bool> = found.iter().map(|v| v.usable().is_ok()).collect();
        assert_eq!(usable, [true, true, true, true, true, false, true]);
        assert!(found[0].is("q4_k_m") && found[3].is("moonshotai_Kimi-Linear-bf16-00001-of-00002.gguf"));
        assert_eq!(
            found.iter().map(|v| v.bits()).collect::<Vec<_>>()[..4],
            [Some(4), Some(3), Some(4), None]
        );
    }

    #[test]
    fn files_of_one_type_are_told_apart() {
        let names = ["Kimi-jp-imatrix.Q4_K_M.gguf", "Kimi.Q4_K_M.gguf", "A-IQ3_M.gguf", "B-IQ3_M.gguf"];
        let found = variants(&names.map(|name| file(name, 1)));
        let kinds: Vec<&str> = found.iter().map(|v| &*v.kind).collect();
        assert_eq!(kinds, ["IQ3_M", "IQ3_M", "Kimi-jp-imatrix.Q4_K_M", "Q4_K_M"]);
        assert_eq!(found[2].bits(), Some(4));
    }

    #[test]
    fn types_that_cannot_run_are_known() {
        let quants =
            ["Q2_K", "Q2_K_L", "Q3_K_XL", "Q4_K_L", "Q6_K", "IQ4_XS", "IQ4_NL", "Q8_0", "F32", "MXFP4_MOE"];
        let codebooks = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_M", "IQ3_XXS", "IQ3_XS", "UD-IQ3_M"];
        for kind in quants.into_iter().chain(codebooks) {
            assert_eq!(is_supported(kind), Some(true), "{kind}");
        }
        for kind in ["IQ5_M", "TQ1_0", "TQ2_0", "Q4_0_4_4", "NVFP4"] {
            assert_eq!(is_supported(kind), Some(false), "{kind}");
        }
        assert_eq!(is_supported("kimi-demo"), None);
    }
}
