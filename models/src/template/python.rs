//! Adds Python behavior that templates expect and `minijinja_contrib::pycompat` lacks: white space, the clock, errors.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use std::time::{SystemTime, UNIX_EPOCH};

/// Adds the functions and methods of transformers' environment, except `tojson`, which each rendering adds.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("trim", |value: Value, chars: Option<String>| {
        strip(&value.to_string(), chars.as_deref(), true, true)
    });
    environment.add_test("iterable", |value: Value| {
        !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number)
    });
    environment.add_test("sequence", |value: Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        strftime(&format, now)
    });
}

fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let sides = match method {
        "strip" => (true, true),
        "lstrip" => (true, false),
        "rstrip" => (false, true),
        "split" if args.is_empty() && value.as_str().is_some() => {
            let words = value.as_str().unwrap_or_default().split(is_space).filter(|word| !word.is_empty());
            return Ok(words.collect());
        }
        _ => return minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    };
    let text = value.as_str().ok_or_else(|| Error::from(ErrorKind::UnknownMethod))?;
    let (chars,): (Option<&str>,) = from_args(args)?;
    Ok(strip(text, chars, sides.0, sides.1).into())
}

/// Python's `str.strip`, `lstrip` and `rstrip`.
fn strip(text: &str, chars: Option<&str>, left: bool, right: bool) -> String {
    let out = |c: char| match chars {
        Some(chars) => chars.contains(c),
        None => is_space(c),
    };
    let text = if left { text.trim_start_matches(out) } else { text };
    let text = if right { text.trim_end_matches(out) } else { text };
    text.to_owned()
}

/// Returns whether Python treats a character as white space: Unicode's, and four separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// C's `strftime` of seconds since 1970, in UTC; `-` before a letter removes its padding.
fn strftime(format: &str, seconds: u64) -> String {
    let (days, clock) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = date(days);
    let (mut out, mut chars) = (String::new(), format.chars());
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut letter = chars.next();
        let bare = letter == Some('-');
        if bare {
            letter = chars.next();
        }
        let two = |n: u64| if bare { n.to_string() } else { format!("{n:02}") };
        let hour = clock / 3600;
        out += &match letter {
            Some('Y') => year.to_string(),
            Some('y') => two(year % 100),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('H') => two(hour),
            Some('I') => two((hour + 11) % 12 + 1),
            Some('M') => two(clock / 60 % 60),
            Some('S') => two(clock % 60),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('A') => DAYS[(days % 7) as usize].to_owned(),
            Some('a') => DAYS[(days % 7) as usize][..3].to_owned(),
            Some('B') => MONTHS[month as usize - 1].to_owned(),
            Some('b') => MONTHS[month as usize - 1][..3].to_owned(),
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        };
    }
    out
}

/// Year, month and day of a day number since 1970.
fn date(days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let (mut year, mut day) = (1970 + days / 146_097 * 400, days % 146_097);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_c_s() {
        let all = "%A %a %d %-d %B %b %m %Y %y %H:%M:%S %I %p %%";
        assert_eq!(strftime(all, 0), "Thursday Thu 01 1 January Jan 01 1970 70 00:00:00 12 AM %");
        let leap = "Thursday Thu 29 29 February Feb 02 2024 24 23:59:59 11 PM %";
        assert_eq!(strftime(all, 1_709_251_199), leap);
        assert_eq!(strftime("%Y-%m-%d", 1_709_251_200), "2024-03-01");
        assert_eq!(strftime("%Y-%m-%d", 4_107_542_399), "2100-02-28");
        assert_eq!(strftime("%Y-%m-%d %q%", 4_107_542_400), "2100-03-01 %q%");
    }
}
