//! Numbers and dates in a text, in forms that can be compared: `1,234.50` is 1234.5, `twelve` and `十二` are 12, `50 percent`
//! is 50 with the unit `%`, and `3 May 1998` is `1998-05-03`. Files and answers are read by the same rules.

use crate::document_qa::is_spaceless;
use regex::{Captures, Match, Regex};
use std::ops::Range;
use std::sync::LazyLock;

/// A number in a text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NumberToken {
    pub span: Range<usize>,
    /// Its possible values: `1.234` is a decimal fraction or has a thousands separator.
    pub values: Vec<String>,
    /// The unit in its short form; empty without one.
    pub unit: &'static str,
}

/// A date in a text, in all its possible readings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DateToken {
    pub span: Range<usize>,
    pub readings: Vec<DateKey>,
}

/// A date, of which the year or the day may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DateKey {
    pub year: Option<u16>,
    pub month: u8,
    pub day: Option<u8>,
}

/// Units by their short form and other spellings.
const UNITS: &[(&str, &[&str])] = &[
    ("%", &["percent", "per cent", "pct", "％", "prozent"]),
    ("$", &["dollar", "dollars", "usd", "美元"]),
    ("€", &["euro", "euros", "eur", "欧元"]),
    ("£", &["pound", "pounds", "gbp", "英镑"]),
    ("¥", &["yen", "yuan", "cny", "jpy", "rmb", "元", "人民币"]),
    ("B", &["byte", "bytes", "字节"]),
    ("KB", &["kb", "kilobyte", "kilobytes", "kbyte", "kbytes"]),
    ("MB", &["mb", "megabyte", "megabytes", "mbyte", "mbytes"]),
    ("GB", &["gb", "gigabyte", "gigabytes", "gbyte", "gbytes"]),
    ("TB", &["tb", "terabyte", "terabytes"]),
    ("KiB", &["kib", "kibibyte", "kibibytes"]),
    ("MiB", &["mib", "mebibyte", "mebibytes"]),
    ("GiB", &["gib", "gibibyte", "gibibytes"]),
    ("TiB", &["tib", "tebibyte", "tebibytes"]),
    ("bit", &["bits"]),
    ("ms", &["millisecond", "milliseconds", "毫秒"]),
    ("s", &["sec", "secs", "second", "seconds", "秒"]),
    ("min", &["mins", "minute", "minutes", "分钟"]),
    ("h", &["hr", "hrs", "hour", "hours", "小时"]),
    ("day", &["days", "天"]),
    ("week", &["weeks", "周"]),
    ("month", &["months", "个月"]),
    ("year", &["years", "yr", "yrs"]),
    ("mm", &["millimetre", "millimetres", "millimeter", "millimeters", "毫米"]),
    ("cm", &["centimetre", "centimetres", "centimeter", "centimeters", "厘米"]),
    ("m", &["metre", "metres", "meter", "meters", "米"]),
    ("km", &["kilometre", "kilometres", "kilometer", "kilometers", "公里", "千米"]),
    ("inch", &["inches"]),
    ("ft", &["foot", "feet"]),
    ("yd", &["yard", "yards"]),
    ("mi", &["mile", "miles"]),
    ("acre", &["acres"]),
    ("mg", &["milligram", "milligrams"]),
    ("g", &["gram", "grams", "克"]),
    ("kg", &["kilogram", "kilograms", "公斤", "千克"]),
    ("lb", &["lbs"]),
    ("Hz", &["hz", "hertz"]),
    ("kHz", &["khz"]),
    ("MHz", &["mhz"]),
    ("GHz", &["ghz"]),
    ("W", &["watt", "watts"]),
    ("kW", &["kw", "kilowatt", "kilowatts"]),
    ("V", &["volt", "volts"]),
    ("°C", &["℃", "celsius"]),
    ("°F", &["℉", "fahrenheit"]),
];

/// Powers of ten that follow a number as a word.
const POWERS: &[(&str, usize)] = &[
    ("thousand", 3),
    ("million", 6),
    ("billion", 9),
    ("trillion", 12),
    ("百万", 6),
    ("万", 4),
    ("亿", 8),
    ("千", 3),
];

const SMALL: &[&str] = &[
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: &[&str] = &["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

/// Chinese measure words, after which a single numeral is a number.
const MEASURES: &str = "个|名|位|人|年|月|日|号|天|周|次|项|条|种|章|节|页|行|步|倍|元|岁|本|张|台|座|家|只|米|公里|公斤|小时|分钟|秒";

/// All spellings of a unit.
pub fn spellings(unit: &str) -> impl Iterator<Item = &'static str> {
    let of_unit = UNITS.iter().filter(move |(short, _)| *short == unit);
    of_unit.flat_map(|(short, more)| [*short].into_iter().chain(more.iter().copied()))
}

fn pattern(source: &str) -> Regex {
    Regex::new(source).expect("a test runs it")
}

/// Digits with separators inside. A group of three after a space may belong to the number.
static DIGITS: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"[0-9]+(?:[.,_'’\u{a0}\u{202f}\u{2009}][0-9]+)*(?: [0-9]{3}\b)*"));

static WORDS: LazyLock<Regex> = LazyLock::new(|| {
    let word = [SMALL, TENS, &["hundred", "thousand", "million", "billion"]].concat().join("|");
    pattern(&format!(r"(?i)\b(?:(?:a )?(?:{word}))(?:(?:[\s-]|\sand\s)+(?:{word}))*\b"))
});

static CHINESE: LazyLock<Regex> =
    LazyLock::new(|| pattern("百分之[零〇一二三四五六七八九十百点]+|[零〇一二两三四五六七八九十百千万亿]+"));
static MEASURED: LazyLock<Regex> = LazyLock::new(|| pattern(&format!("^(?:{MEASURES})")));

static DATES: LazyLock<[Regex; 6]> = LazyLock::new(|| {
    let month = "(?P<m>(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec|JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC)\
        |January|February|March|April|June|July|August|September|October|November|December\
        |JANUARY|FEBRUARY|MARCH|APRIL|JUNE|JULY|AUGUST|SEPTEMBER|OCTOBER|NOVEMBER|DECEMBER)\\b\\.?";
    [
        pattern(&format!(
            r"\b(?P<d>[0-9]{{1,2}})(?:st|nd|rd|th)?(?:\s+of)?[\s-]+{month}(?:,?[\s-]+(?P<y>[0-9]{{4}})\b)?"
        )),
        pattern(&format!(r"\b{month}\s+(?P<d>[0-9]{{1,2}})(?:st|nd|rd|th)?\b(?:,?\s+(?P<y>[0-9]{{4}})\b)?")),
        pattern(&format!(r"\b{month},?\s+(?P<y>[0-9]{{4}})\b")),
        pattern(r"\b(?P<y>[0-9]{4})[-/.](?P<m>[0-9]{1,2})[-/.](?P<d>[0-9]{1,2})\b"),
        pattern(r"\b(?P<d>[0-9]{1,2})[-/.](?P<m>[0-9]{1,2})[-/.](?P<y>[0-9]{4})\b"),
        pattern(r"(?:(?P<y>[0-9]{4})\s*年\s*)?(?P<m>[0-9]{1,2})\s*月(?:\s*(?P<d>[0-9]{1,2})\s*[日号])?"),
    ]
});

static CLOCK: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\b([0-9]{1,2}):([0-9]{2})(:[0-9]{2})?\b(?:\s?([ap])\.?m\b)?"));

/// All dates in a text. Spans do not overlap.
pub fn dates(text: &str) -> Vec<DateToken> {
    let mut found: Vec<DateToken> = Vec::new();
    for regex in DATES.iter() {
        for captures in regex.captures_iter(text) {
            let span = captures.get(0).expect("the whole match").range();
            let readings = readings(&captures);
            if !readings.is_empty() && found.iter().all(|other| !overlap(&other.span, &span)) {
                found.push(DateToken { span, readings });
            }
        }
    }
    found
}

fn readings(captures: &Captures<'_>) -> Vec<DateKey> {
    let number = |name: &str| captures.name(name).and_then(|m| m.as_str().parse::<u16>().ok());
    let (year, day) = (number("y"), number("d"));
    let mut readings = Vec::new();
    let mut add = |month: u16, day: Option<u16>| {
        if (1..=12).contains(&month) && day.is_none_or(|day| (1..=31).contains(&day)) {
            readings.push(DateKey { year, month: month as u8, day: day.map(|day| day as u8) });
        }
    };
    match number("m") {
        Some(month) => {
            add(month, day);
            // 03/05/1998 begins with the month in some countries.
            if captures["m"].len() <= 2
                && captures.name("d").is_some_and(|d| d.start() < captures.name("m").map_or(0, |m| m.start()))
            {
                day.into_iter().for_each(|day| add(day, Some(month)));
            }
        }
        None => {
            let name = captures["m"].to_lowercase();
            let names = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
            names
                .iter()
                .zip(1..)
                .filter(|(month, _)| name.starts_with(**month))
                .for_each(|(_, n)| add(n, day));
        }
    }
    readings
}

impl DateKey {
    /// The date and the less exact forms that it contains.
    pub fn contained(self) -> impl Iterator<Item = DateKey> {
        let forms = [self, DateKey { year: None, ..self }, DateKey { day: None, ..self }];
        forms.into_iter().filter(|form| form.year.is_some() || form.day.is_some())
    }
}

pub fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

pub fn contains(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// All numbers in a text: digits, times of day, and numerals as English or Chinese words. Digits inside of words (`x86`)
/// do not count.
pub fn numbers(text: &str) -> Vec<NumberToken> {
    let mut found: Vec<NumberToken> = CLOCK.captures_iter(text).map(|c| clock(&c)).collect();
    let times = found.len();
    for m in DIGITS.find_iter(text) {
        if found[..times].iter().all(|time| !overlap(&time.span, &m.range())) {
            digits(text, m, &mut found);
        }
    }
    for m in WORDS.find_iter(text) {
        if let Some(value) = english(m.as_str()) {
            found.push(with_unit(text, m.range(), vec![value.to_string()]));
        }
    }
    for m in CHINESE.find_iter(text) {
        let plain = m.as_str().strip_prefix("百分之");
        let Some(value) = chinese(plain.unwrap_or(m.as_str())) else { continue };
        let single = m.as_str().chars().count() == 1 && !MEASURED.is_match(&text[m.end()..]);
        let units_alone = !m.as_str().contains(|c| "零〇一二两三四五六七八九十".contains(c));
        if plain.is_some() {
            found.push(NumberToken { span: m.range(), values: vec![value], unit: "%" });
        } else if !single && !units_alone && !digits_end(&text[..m.start()]) {
            found.push(with_unit(text, m.range(), vec![value]));
        }
    }
    found
}

fn digits_end(text: &str) -> bool {
    text.trim_end().ends_with(|c: char| c.is_ascii_digit())
}

fn clock(captures: &Captures<'_>) -> NumberToken {
    let hour: u32 = captures[1].parse().unwrap_or(0);
    let hour = match captures.get(4).map(|m| m.as_str()) {
        Some("p") if hour < 12 => hour + 12,
        Some("a") if hour == 12 => 0,
        _ => hour,
    };
    let seconds = captures.get(3).map_or("", |m| m.as_str());
    let value = format!("{hour}:{}{seconds}", &captures[2]);
    NumberToken { span: captures.get(0).expect("the whole match").range(), values: vec![value], unit: "" }
}

/// Adds the number of a match, and the parts of digits in groups (`12 345`) on their own.
fn digits(text: &str, m: Match<'_>, found: &mut Vec<NumberToken>) {
    let before = text[..m.start()].chars().next_back();
    let version = text[..m.start()].ends_with(['v', 'V'])
        && !text[..m.start() - 1].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    if before.is_some_and(|c| (c.is_alphabetic() && !is_spaceless(c)) || c == '_') && !version {
        return;
    }
    let groups: Vec<&str> = m.as_str().split(' ').collect();
    let mut start = m.start();
    if groups.len() > 1 && (1..=3).contains(&groups[0].len()) && groups[0].bytes().all(|b| b.is_ascii_digit())
    {
        found.push(with_unit(text, m.range(), vec![integer(&groups.concat())]));
    }
    for group in groups {
        let mut values = values(group);
        let sign = (start == m.start()).then(|| sign_before(text, start)).flatten();
        if let Some(sign) = sign {
            values.iter_mut().for_each(|value| value.insert(0, '-'));
            found.push(with_unit(text, sign..start + group.len(), values));
        } else {
            found.push(with_unit(text, start..start + group.len(), values));
        }
        start += group.len() + 1;
    }
}

/// The start of a minus sign before a number; a dash after a word or number is none.
fn sign_before(text: &str, at: usize) -> Option<usize> {
    let (rest, sign) = text[..at].char_indices().next_back()?;
    let before = text[..rest].chars().next_back();
    let opens = before.is_none_or(|c| c.is_whitespace() || "([{=:,".contains(c));
    (matches!(sign, '-' | '−') && opens && before.is_some()).then_some(rest)
}

/// The possible values of digits with separators.
fn values(token: &str) -> Vec<String> {
    let parts: Vec<&str> = token.split(|c: char| !c.is_ascii_digit()).collect();
    let marks: Vec<char> = token.chars().filter(|c| !c.is_ascii_digit()).collect();
    let grouped = parts[0].len() <= 3 && parts[1..].iter().all(|part| part.len() == 3);
    let (first, last) = (marks.first().copied(), marks.last().copied());
    let mut values = Vec::new();
    match marks.len() {
        0 => {
            values.push(token.to_owned());
            values.push(integer(token));
        }
        1 if matches!(first, Some('.' | ',')) => {
            values.push(decimal(parts[0], parts[1]));
            values.extend((grouped && parts[0] != "0").then(|| integer(&parts.concat())));
        }
        _ if marks.iter().all(|mark| Some(*mark) == first) => {
            let all_but_last = parts[1..parts.len() - 1].iter().all(|part| part.len() == 2);
            let indian = first == Some(',') && all_but_last && parts[parts.len() - 1].len() == 3;
            values.extend(
                (grouped || indian || !matches!(first, Some('.' | ','))).then(|| integer(&parts.concat())),
            );
        }
        // The last of two kinds of separators precedes the fraction.
        _ if matches!(last, Some('.' | ','))
            && marks[..marks.len() - 1]
                .iter()
                .all(|mark| Some(*mark) == first && *mark != '.' || last == Some(',')) =>
        {
            values.push(decimal(&parts[..parts.len() - 1].concat(), parts[parts.len() - 1]));
        }
        _ => {}
    }
    if marks.len() > 1 || values.is_empty() {
        values.push(token.to_owned()); // a version, with those that it is a part of
        let ends = token.match_indices('.').map(|(at, _)| at).skip(1);
        values.extend(ends.map(|end| token[..end].to_owned()));
    }
    values.dedup();
    values
}

fn integer(digits: &str) -> String {
    let short = digits.trim_start_matches('0');
    if short.is_empty() { "0".to_owned() } else { short.to_owned() }
}

fn decimal(whole: &str, fraction: &str) -> String {
    match fraction.trim_end_matches('0') {
        "" => integer(whole),
        fraction => format!("{}.{fraction}", integer(whole)),
    }
}

/// Multiplies a decimal number by a power of ten.
fn shifted(value: &str, power: usize) -> String {
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let digits = format!("{fraction:0<power$}");
    decimal(&format!("{whole}{}", &digits[..power]), &digits[power..])
}

/// Adds the power of ten and the unit beside a number.
fn with_unit(text: &str, span: Range<usize>, mut values: Vec<String>) -> NumberToken {
    let mut end = span.end;
    let after = |end: usize| text[end..].trim_start_matches([' ', '-', '\u{a0}', '\u{202f}']);
    if let Some((word, power)) = POWERS.iter().find(|(word, _)| starts_with_word(after(end), word)) {
        values = values.iter().map(|value| shifted(value, *power)).collect();
        end = text.len() - after(end).len() + word.len();
    }
    let currency =
        text[..span.start].trim_end_matches(' ').chars().next_back().filter(|c| "$€£¥".contains(*c));
    if let Some((short, _)) = currency.and_then(|c| UNITS.iter().find(|(short, _)| short.starts_with(c))) {
        return NumberToken { span: span.start..end, values, unit: short };
    }
    let mut units = UNITS.iter().flat_map(|(unit, _)| spellings(unit).map(move |spelling| (unit, spelling)));
    match units.find(|(_, spelling)| starts_with_word(after(end), spelling)) {
        Some((unit, spelling)) => {
            end = text.len() - after(end).len() + spelling.len();
            NumberToken { span: span.start..end, values, unit }
        }
        None => NumberToken { span: span.start..end, values, unit: "" },
    }
}

/// Whether a text starts with a word. Latin words end there; case counts in short ones (`m`, `MB`).
fn starts_with_word(text: &str, word: &str) -> bool {
    let Some(start) = text.get(..word.len()) else { return false };
    let same = if word.len() > 2 { start.eq_ignore_ascii_case(word) } else { start == word };
    let latin = word.ends_with(|c: char| c.is_ascii_alphabetic());
    same && !(latin
        && text[word.len()..].starts_with(|c: char| c.is_alphanumeric() && !is_spaceless(c) || c == '_'))
}

/// The value of a number in English words; None for `one`, which is mostly a pronoun, for powers alone, and for words in
/// the order of a list.
fn english(text: &str) -> Option<u64> {
    let lower = text.to_lowercase();
    let words: Vec<&str> =
        lower.split(|c: char| !c.is_alphabetic()).filter(|w| !matches!(*w, "" | "and" | "a")).collect();
    if matches!(words[..], ["one"]) {
        return None;
    }
    let (mut total, mut group) = (0u64, 0u64);
    for (i, word) in words.iter().enumerate() {
        let place = |list: &[&str]| list.iter().position(|w| w == word).map(|at| at as u64);
        if let Some(n) = place(SMALL) {
            let free = if n < 10 { 10 } else { 100 };
            if group % free != 0 || n == 0 && words.len() > 1 {
                return None;
            }
            group = group.checked_add(n)?;
        } else if let Some(n) = place(TENS) {
            if group % 100 != 0 {
                return None;
            }
            group = group.checked_add(20 + 10 * n)?;
        } else if *word == "hundred" {
            group = group.max(u64::from(i == 0 && lower.starts_with("a "))).checked_mul(100)?;
        } else {
            let power = match *word {
                "thousand" => 1_000,
                "million" => 1_000_000,
                _ => 1_000_000_000,
            };
            total = total
                .checked_add(group.max(u64::from(i == 0 && lower.starts_with("a "))).checked_mul(power)?)?;
            group = 0;
        }
    }
    Some(total.checked_add(group)?).filter(|n| *n > 0 || words == ["zero"])
}

/// The value of Chinese numerals: by place (二〇二六) or with units (三百二十).
fn chinese(text: &str) -> Option<String> {
    let (text, fraction) = text.split_once('点').unwrap_or((text, ""));
    let digit = |c: char| match c {
        '〇' => Some(0),
        '两' => Some(2),
        c => "零一二三四五六七八九".chars().position(|d| d == c).map(|at| at as u64),
    };
    let by_place =
        |text: &str| text.chars().map(|c| digit(c).map(|d| d.to_string())).collect::<Option<String>>();
    let whole = match by_place(text) {
        Some(digits) => digits,
        None => {
            let (mut total, mut section, mut last) = (0u64, 0u64, 0u64);
            for c in text.chars() {
                match (digit(c), c) {
                    (Some(d), _) => last = d,
                    (None, '万' | '亿') => {
                        let sum = (total + section + last).max(1);
                        total = sum.checked_mul(if c == '万' { 10_000 } else { 100_000_000 })?;
                        (section, last) = (0, 0);
                    }
                    _ => {
                        section = section.checked_add(
                            last.max(1)
                                * match c {
                                    '十' => 10,
                                    '百' => 100,
                                    _ => 1000,
                                },
                        )?;
                        last = 0;
                    }
                }
            }
            (total + section + last).to_string()
        }
    };
    Some(decimal(&whole, &by_place(fraction)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<String> {
        let show = |n: NumberToken| format!("{}{}", n.values.join("|"), n.unit);
        numbers(text).into_iter().map(show).collect()
    }

    #[test]
    fn numbers_are_read_in_all_spellings() {
        let check = |text: &str, expected: &[&str]| assert_eq!(read(text), expected, "{text}");
        check("about 1,234.50 of it", &["1234.5|1,234.50"]);
        check("76MB, 76 MB and 76 megabytes", &["76MB", "76MB", "76MB"]);
        check("50 %, 50%, 50 percent", &["50%", "50%", "50%"]);
        check("$5 and 5 dollars", &["5$", "5$"]);
        check("1.234", &["1.234|1234"]);
        check("007", &["007|7"]);
        check("1.5 million and 2 thousand", &["1500000", "2000"]);
        check("version 1.95.0", &["1.95.0|1.95"]);
        check("x86 and v2", &["2"]);
        check("10–20, a 5-minute walk", &["10", "20", "5min"]);
        check("it is -5 at 2:30 pm", &["14:30", "-5"]);
        check("twenty-one, one of a hundred and five", &["21", "105"]);
        check("三百二十人，二〇二六年，百分之三十，十分，一起", &["320", "2026", "30%"]);
        check("三个，两万，1.5万", &["15000", "3", "20000"]);
        check("12 345 tokens", &["12345", "12", "345"]);
        check("one two three", &[]);
    }

    #[test]
    fn dates_are_read_in_all_spellings() {
        let date = |year, month, day| DateKey { year, month, day };
        let check = |text: &str, expected: DateKey| {
            let found = dates(text);
            assert!(found.len() == 1 && found[0].readings.contains(&expected), "{text}: {found:?}");
        };
        let day = date(Some(1998), 5, Some(3));
        for text in [
            "3 May 1998",
            "May 3, 1998",
            "the 3rd of May, 1998",
            "1998-05-03",
            "03.05.1998",
            "1998年5月3日",
            "05/03/1998",
        ] {
            check(text, day);
        }
        check("in May 1998", date(Some(1998), 5, None));
        check("on Sept. 12", date(None, 9, Some(12)));
        assert_eq!(day.contained().count(), 3);
        assert!(dates("you may 5, 13.13.1998").is_empty());
    }
}
