//! The bodies of requests to template workers and of their replies: strings and values in binary form. JSON is not used
//! because its parser rounds some floats and stops at 128 levels, so that a template would see other values than in
//! process. Next: [`super::worker`].

use models::template::{Failure, RenderJob, sandbox::Reason};
use serde_json::{Map, Number, Value};

/// Maximum nesting of a value. JSON in a request has at most 128 levels, twice that with parsed tool arguments.
const MAX_DEPTH: usize = 1000;

/// A request as parsed by the worker.
pub struct RenderRequest {
    pub source: String,
    pub sentinel: char,
    pub context: Map<String, Value>,
}

/// Encodes the body of a request.
pub fn request(job: &RenderJob) -> Vec<u8> {
    let mut out = Vec::with_capacity(job.source.len() + 1024);
    put_text(job.source, &mut out);
    put_text(job.sentinel.encode_utf8(&mut [0; 4]), &mut out);
    put_map(job.context, &mut out);
    out
}

/// Parses the body of a request; `None` if it is invalid.
pub fn read_request(mut body: &[u8]) -> Option<RenderRequest> {
    let body = &mut body;
    let (source, sentinel) = (take_text(body)?, take_text(body)?.chars().next()?);
    Some(RenderRequest { source, sentinel, context: take_map(body, MAX_DEPTH)? })
}

/// Encodes the body of a reply.
pub fn reply(rendered: &Result<String, Failure>) -> Vec<u8> {
    let (kind, texts) = match rendered {
        Ok(text) => (b't', vec![text]),
        Err(Failure::Refused(r)) => (b'r', vec![&r.place, &r.expected, &r.found]),
        Err(Failure::Unusable(r)) => (b'u', vec![&r.place, &r.expected, &r.found]),
    };
    let mut out = vec![kind];
    texts.into_iter().for_each(|text| put_text(text, &mut out));
    out
}

/// Parses the body of a reply; `None` if it is invalid.
pub fn read_reply(body: &[u8]) -> Option<Result<String, Failure>> {
    let (kind, mut body) = body.split_first()?;
    let mut text = || take_text(&mut body);
    Some(match kind {
        b't' => Ok(text()?),
        b'r' => Err(Failure::Refused(Reason { place: text()?, expected: text()?, found: text()? })),
        b'u' => Err(Failure::Unusable(Reason { place: text()?, expected: text()?, found: text()? })),
        _ => return None,
    })
}

fn put_length(length: usize, out: &mut Vec<u8>) {
    out.extend((length as u64).to_le_bytes());
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    put_length(text.len(), out);
    out.extend(text.as_bytes());
}

fn put_map(map: &Map<String, Value>, out: &mut Vec<u8>) {
    put_length(map.len(), out);
    for (key, value) in map {
        put_text(key, out);
        put(value, out);
    }
}

fn put(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(b'n'),
        Value::Bool(truth) => out.extend([b'b', u8::from(*truth)]),
        Value::Number(number) => {
            let (kind, bytes) = match (number.as_i64(), number.as_u64()) {
                (Some(integer), _) => (b'i', integer.to_le_bytes()),
                (_, Some(integer)) => (b'u', integer.to_le_bytes()),
                _ => (b'f', number.as_f64().unwrap_or_default().to_le_bytes()),
            };
            out.push(kind);
            out.extend(bytes);
        }
        Value::String(text) => {
            out.push(b's');
            put_text(text, out);
        }
        Value::Array(list) => {
            out.push(b'l');
            put_length(list.len(), out);
            list.iter().for_each(|item| put(item, out));
        }
        Value::Object(map) => {
            out.push(b'm');
            put_map(map, out);
        }
    }
}

fn take<const N: usize>(body: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = body.split_first_chunk::<N>()?;
    *body = rest;
    Some(*head)
}

fn take_length(body: &mut &[u8]) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(take(body)?)).ok()
}

fn take_text(body: &mut &[u8]) -> Option<String> {
    let length = take_length(body)?;
    let (text, rest) = body.split_at_checked(length)?;
    *body = rest;
    String::from_utf8(text.to_vec()).ok()
}

fn take_map(body: &mut &[u8], depth: usize) -> Option<Map<String, Value>> {
    (0..take_length(body)?).map(|_| Some((take_text(body)?, take_value(body, depth)?))).collect()
}

fn take_value(body: &mut &[u8], depth: usize) -> Option<Value> {
    let depth = depth.checked_sub(1)?;
    Some(match take::<1>(body)? {
        [b'n'] => Value::Null,
        [b'b'] => Value::Bool(take(body)? == [1]),
        [b'i'] => i64::from_le_bytes(take(body)?).into(),
        [b'u'] => u64::from_le_bytes(take(body)?).into(),
        [b'f'] => Value::Number(Number::from_f64(f64::from_le_bytes(take(body)?))?),
        [b's'] => Value::String(take_text(body)?),
        [b'l'] => (0..take_length(body)?).map(|_| take_value(body, depth)).collect::<Option<_>>()?,
        [b'm'] => Value::Object(take_map(body, depth)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn context() -> Map<String, Value> {
        let mut nested = json!("leaf");
        for _ in 0..400 {
            nested = json!([nested]);
        }
        let numbers = json!([0, -1, i64::MIN, u64::MAX, 0.1 + 0.2, 5e-324, f64::MAX, -0.0, 1e23]);
        let json = json!({"n": null, "t": true, "f": false, "x": numbers, "deep": nested, "s": "é\u{fdd0}\0", "e": {}});
        json.as_object().unwrap().clone()
    }

    #[test]
    fn requests_and_replies_come_back_bit_for_bit() {
        let context = context();
        let job = RenderJob { source: "{{ x }}", sentinel: '\u{f0000}', context: &context };
        let bytes = request(&job);
        let back = read_request(&bytes).unwrap();
        assert_eq!((&*back.source, back.sentinel), ("{{ x }}", '\u{f0000}'));
        assert_eq!(format!("{:?}", back.context), format!("{context:?}"));
        let failures = [Failure::refused("a", "b", "c"), Failure::unusable("d", "e", "f")];
        for rendered in failures.map(Err).into_iter().chain([Ok("text".to_owned())]) {
            assert_eq!(read_reply(&reply(&rendered)), Some(rendered));
        }
    }

    #[test]
    fn truncated_and_too_deep_bodies_are_refused() {
        let context = context();
        let bytes = request(&RenderJob { source: "s", sentinel: 'm', context: &context });
        assert!((0..bytes.len()).all(|end| read_request(&bytes[..end]).is_none()));
        let mut deep = json!(1);
        for _ in 0..MAX_DEPTH {
            deep = json!([deep]);
        }
        let context = Map::from_iter([("deep".to_owned(), deep)]);
        assert!(
            read_request(&request(&RenderJob { source: "s", sentinel: 'm', context: &context })).is_none()
        );
        assert!(
            [&b""[..], b"x", b"t\xff\xff\xff\xff\xff\xff\xff\xff"].iter().all(|b| read_reply(b).is_none())
        );
    }
}
