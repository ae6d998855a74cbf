//! Bounds on a regular expression: length, nesting and counted repetitions. It does not validate the syntax.

use super::bounds::{Excess, QUANTIFIERS, REGEX_BYTES, REGEX_NESTING, REPETITIONS, Totals, within};

/// Checks a regular expression, adds it to the totals and returns its quantifiers.
pub fn check(regex: &str, totals: &mut Totals) -> Result<usize, Excess> {
    within("bytes in a regular expression", REGEX_BYTES, regex.len())?;
    totals.regex_bytes += regex.len();
    let shape = RegexShape::of(regex.as_bytes());
    within("levels of brackets in a regular expression", REGEX_NESTING, shape.depth)?;
    within("repetitions, multiplied where nested", REPETITIONS, shape.repetitions)?;
    within("quantifiers in a regular expression", QUANTIFIERS, shape.quantifiers)?;
    totals.quantifiers += shape.quantifiers;
    Ok(shape.quantifiers)
}

/// The deepest nesting, the largest product of nested repetition counts, and the number of quantifiers and empty
/// alternatives.
#[derive(Debug, PartialEq)]
struct RegexShape {
    depth: usize,
    repetitions: usize,
    quantifiers: usize,
}

impl RegexShape {
    fn of(regex: &[u8]) -> RegexShape {
        let mut shape = RegexShape { depth: 0, repetitions: 1, quantifiers: 0 };
        // Of each open group, the largest product within it; `last` is that of the operand before the position.
        let (mut open, mut last, mut classes) = (vec![1usize], 1usize, 0usize);
        let mut at = 0;
        while at < regex.len() {
            let byte = regex[at];
            at += 1;
            match byte {
                b'\\' => (at, last) = (escape_end(regex, at), 1),
                b'[' => classes += 1,
                b']' if classes > 0 => (classes, last) = (classes - 1, 1),
                _ if classes > 0 => {}
                b'(' => {
                    open.push(1);
                    last = 1;
                    // The question mark of `(?:` is no quantifier.
                    at += usize::from(regex.get(at) == Some(&b'?'));
                }
                b')' if open.len() > 1 => {
                    shape.quantifiers += usize::from(regex[at - 2] == b'|');
                    last = open.pop().unwrap_or(1);
                }
                b'|' => {
                    let begins = at < 2 || matches!(regex[at - 2], b'(' | b'|' | b':');
                    shape.quantifiers += usize::from(begins);
                    last = 1;
                }
                b'{' => {
                    shape.quantifiers += 1;
                    let end = regex[at..].iter().position(|b| *b == b'}').map_or(regex.len(), |n| at + n);
                    last = last.saturating_mul(count(&regex[at..end]));
                    at = (end + 1).min(regex.len());
                }
                b'*' | b'+' | b'?' => shape.quantifiers += 1,
                _ => last = 1,
            }
            if let Some(largest) = open.last_mut() {
                *largest = (*largest).max(last);
                shape.repetitions = shape.repetitions.max(*largest);
            }
            shape.depth = shape.depth.max(open.len() - 1 + classes);
        }
        shape
    }
}

/// After an escape's letter and, of `\p{Greek}` and `\x{41}`, the name: its braces count nothing.
fn escape_end(regex: &[u8], at: usize) -> usize {
    let named =
        matches!(regex.get(at), Some(b'p' | b'P' | b'x' | b'u' | b'U')) && regex.get(at + 1) == Some(&b'{');
    let name = regex.get(at..).unwrap_or_default();
    let end = name.iter().position(|b| *b == b'}').filter(|_| named);
    end.map_or(at + 1, |n| at + n + 1).min(regex.len())
}

/// The larger of the numbers in `{3,9}`, at least 1.
fn count(inside: &[u8]) -> usize {
    let number = |text: &[u8]| {
        let digits = text.iter().filter(|b| b.is_ascii_digit());
        digits.fold(0usize, |n, b| n.saturating_mul(10).saturating_add(usize::from(b - b'0')))
    };
    inside.split(|b| *b == b',').map(number).max().unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_and_repetitions_are_counted() {
        for (regex, depth, repetitions, quantifiers) in [
            ("", 0, 1, 0),
            ("abc", 0, 1, 0),
            ("a{3}b{2,9}", 0, 9, 2),
            ("(a{10}|b){5,}c{7}", 1, 50, 3),
            ("((a{10}){10}){10}", 2, 1000, 3),
            ("(a{100}b){3}(c{2}){2}", 1, 300, 4),
            (r"\p{Greek}{4}\({3}", 0, 4, 2),
            (r"[({9}]{2}", 1, 2, 1),
            (r"[a[b]]", 2, 1, 0),
            (r"a{99999999999999999999999}", 0, usize::MAX, 1),
            ("a{2}{3}", 0, 6, 2),
            ("(", 1, 1, 0),
            ("a{", 0, 1, 1),
            ("\\", 0, 1, 0),
            (")))", 0, 1, 0),
            (r"a?b*c+?[*?]\*", 1, 1, 4),
            ("(?:a|b)(?i)(?P<n>c)?", 1, 1, 1),
            ("(a|)(|b)(?:|c)|d||e", 1, 1, 4),
            ("|a", 0, 1, 1),
        ] {
            assert_eq!(
                RegexShape::of(regex.as_bytes()),
                RegexShape { depth, repetitions, quantifiers },
                "{regex}"
            );
        }
    }

    #[test]
    fn hostile_expressions_are_refused() {
        let said = |regex: &str| check(regex, &mut Totals::default()).unwrap_err().to_string();
        let nested = "(".repeat(5000) + "a" + &")".repeat(5000);
        assert_eq!(
            said(&nested),
            "expected at most 100 levels of brackets in a regular expression, found 5000"
        );
        assert_eq!(
            said("(a{1000}){1001}"),
            "expected at most 1000000 repetitions, multiplied where nested, found 1001000"
        );
        assert_eq!(
            said(&"ab".repeat(20_000)),
            "expected at most 32768 bytes in a regular expression, found 40000"
        );
        assert_eq!(
            said(&".*".repeat(3000)),
            "expected at most 1000 quantifiers in a regular expression, found 3000"
        );
        assert!(check(r"^(\d{1,3}\.){3}\d{1,3}$", &mut Totals::default()).is_ok());
    }
}
