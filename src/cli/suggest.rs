//! Finds the known name that a misspelt one means.

/// The end of a message about an unknown name: `; did you mean serve?`, or nothing if no known name is close.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let distances = known.into_iter().map(|known| (distance(name, known), known));
    let closest = distances.filter(|(distance, _)| *distance <= name.chars().count().div_ceil(3)).min();
    closest.map_or(String::new(), |(_, known)| format!("; did you mean {known}?"))
}

/// The number of insertions, deletions, replacements and swaps of neighbors between two names.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                        least = least.min(rows[i - 2][j - 2] + 1);
                    }
                    least
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names_are_suggested() {
        let known = ["serve", "chat", "perplexity"];
        let suggested = |name| did_you_mean(name, known);
        assert_eq!(suggested("sreve"), "; did you mean serve?");
        assert_eq!(suggested("perplexty"), "; did you mean perplexity?");
        assert_eq!(
            (suggested("cat"), suggested("model")),
            ("; did you mean chat?".to_owned(), String::new())
        );
    }
}
