//! The wire format between the program and its workers: a length, then a body.

use std::io::{self, Read, Write};

/// Bytes of the length prefix.
pub const HEAD: usize = 8;

/// Encodes the length prefix of a body.
pub fn head(body: &[u8]) -> [u8; HEAD] {
    (body.len() as u64).to_le_bytes()
}

/// Writes a body with its length prefix.
pub fn write(body: &[u8], out: &mut impl Write) -> io::Result<()> {
    out.write_all(&head(body))?;
    out.write_all(body)?;
    out.flush()
}

/// Reads a body; `None` at the end of the input.
pub fn read(input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; HEAD];
    match input.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = u64::from_le_bytes(length);
    let mut body = Vec::new();
    let read = input.take(length).read_to_end(&mut body)?;
    if read as u64 == length { Ok(Some(body)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
