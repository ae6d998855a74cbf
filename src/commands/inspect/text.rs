//! Prints the report as text. Strings from the file are escaped, because they may contain terminal control sequences.

use super::{
    FittingSize, FormatTotals, InspectReport, ModelReport, SamplingReport, TemplateReport, TensorRow,
};
use crate::commands::plot::bars::BarStyle;
use crate::io::units::{format_size, grouped, shortest_decimal};
use crate::runtime::attention_path::MATERIALIZED_BATCH_FACTOR;
use models::gguf::{Array, Metadata, Value};
use models::visible::{is_control, one_line, visible};
use serde_json::{Value as Json, json};
use std::io::{Result, Write};

/// Maximum characters of a shown value.
const MAX_CHARS: usize = 100;
/// Maximum bytes of the verdict, which has a path and an error.
const MAX_VERDICT: usize = 4096;
/// Maximum elements of an array in a line of text.
const FEW: usize = 32;
/// Maximum elements of an array in JSON; longer ones are shown as type and length.
const MAX_ELEMENTS: usize = 256;

pub fn print(r: &InspectReport, metadata: &Metadata, out: &mut dyn Write) -> Result<()> {
    for path in &r.files {
        writeln!(out, "{}", shown(&path.display().to_string()))?;
    }
    writeln!(
        out,
        "{}, {}{}, {} parameters, {:.2} bits per weight",
        shown(r.architecture.as_deref().unwrap_or("no architecture")),
        r.mix.map_or(String::new(), |mix| format!("{mix}, ")),
        format_size(r.file_bytes),
        grouped(r.parameters),
        r.bits_per_weight
    )?;
    let does = if r.verdict.runs { "runs here" } else { "does not run" };
    writeln!(out, "{does}: {}\n", one_line(&r.verdict.line, MAX_VERDICT))?;
    writeln!(out, "metadata ({})", metadata.0.len())?;
    let width = metadata.0.iter().map(|(key, _)| shown(key).chars().count()).max().unwrap_or(0);
    for (key, value) in &metadata.0 {
        writeln!(out, "  {:<width$}  {}", shown(key), brief(value))?;
    }
    if let Some(template) = &r.chat_template {
        print_template(template, out)?;
    }
    if let Some(SamplingReport { defaults, faults }) = &r.sampling {
        writeln!(out, "\nsampling defaults: {}", if defaults.is_empty() { "none" } else { defaults })?;
        faults.iter().try_for_each(|fault| writeln!(out, "  ignored: {}", shown(fault)))?;
    }
    if let Some(tensors) = &r.tensors {
        print_tensors(tensors, out)?;
    }
    print_totals(r.n_tensors, &r.formats, out)?;
    if let Some(model) = &r.model {
        print_model(model, out)?;
    }
    r.not_finite.iter().flatten().try_for_each(|found| writeln!(out, "{found}"))
}

fn print_template(t: &TemplateReport, out: &mut dyn Write) -> Result<()> {
    let size = grouped(t.bytes as u64);
    match &t.fault {
        None => writeln!(out, "\nchat template: {size} bytes, renders within {}", t.limits),
        Some(fault) => writeln!(out, "\nchat template: {size} bytes, not usable: {}", visible(fault)),
    }
}

fn print_tensors(tensors: &[TensorRow], out: &mut dyn Write) -> Result<()> {
    writeln!(out)?;
    let width = tensors.iter().map(|t| shown(&t.name).chars().count()).max().unwrap_or(0);
    for t in tensors {
        let shape = format!("{:?}", t.shape);
        writeln!(out, "  {:<width$}  {:<6}  {shape:<20}  {:>10}", shown(&t.name), t.format, size(t.bytes))?;
    }
    Ok(())
}

fn print_totals(n_tensors: usize, formats: &[FormatTotals], out: &mut dyn Write) -> Result<()> {
    let title = format!("tensors ({n_tensors})");
    writeln!(
        out,
        "
{title:<18}{:>5}{:>18}{:>12}{:>8}",
        "", "weights", "bytes", "bits"
    )?;
    for sum in formats {
        let bits = sum.bytes.map(|bytes| bytes as f64 * 8.0 / sum.weights as f64);
        let bits = bits.map_or("?".to_owned(), |bits| format!("{bits:.2}"));
        let (weights, bytes) = (grouped(sum.weights), size(sum.bytes));
        writeln!(out, "  {:<12}{:>9}{weights:>18}{bytes:>12}{bits:>8}", sum.format, sum.tensors)?;
    }
    Ok(())
}

/// Formats a size that may be unknown.
fn size(bytes: Option<u64>) -> String {
    bytes.map_or("?".to_owned(), format_size)
}

fn print_model(m: &ModelReport, out: &mut dyn Write) -> Result<()> {
    let n = &m.need;
    writeln!(out, "\nmodel")?;
    m.shape.iter().try_for_each(|line| writeln!(out, "  {line}"))?;
    writeln!(out, "\nmemory")?;
    let line =
        |out: &mut dyn Write, what: &str, bytes| writeln!(out, "  {what:<44}{:>10}", format_size(bytes));
    line(out, "weights, mapped from the file", m.weights_bytes)?;
    if m.split_bytes > 0 {
        line(out, "attn_kv_b of an older file, split at load", m.split_bytes)?;
    }
    line(out, "KDA state of a sequence, any length", n.kda_state_bytes)?;
    line(out, "convolution inputs of a sequence", n.conv_bytes)?;
    line(
        out,
        &format!(
            "activations, {} tokens per step (estimate)",
            m.batch.saturating_mul(MATERIALIZED_BATCH_FACTOR as u64)
        ),
        n.workspace_bytes,
    )?;
    let [f16, q8_0, total] = ["f16 cache", "q8_0 cache", "total"];
    writeln!(out, "\n  {:>11}{f16:>12}{total:>12}     {q8_0:>12}{total:>12}", "context")?;
    for c in &m.contexts {
        write!(out, "  {:>11}", grouped(c.tokens))?;
        let [f16, q8_0] = [&c.f16, &c.q8_0].map(|case| {
            let mark = match case.fits {
                Some(true) => "fits",
                Some(false) => "no",
                None => "?",
            };
            format!("{:>12}{:>12} {mark}", format_size(case.cache_bytes), format_size(case.total_bytes))
        });
        writeln!(out, "{f16:<29}{q8_0}")?;
    }
    m.fits.iter().try_for_each(|fits| print_fitting(fits, out))?;
    match m.available_bytes {
        Some(bytes) => writeln!(
            out,
            "\n  {} are available; weights that do not fit are read from disk repeatedly",
            format_size(bytes)
        ),
        None => writeln!(out, "\n  the available memory is unknown"),
    }?;
    for device in &m.devices {
        writeln!(out)?;
        device.lines(BarStyle::detect()).iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    writeln!(out, "\nwith --device cuda, by free GPU memory")?;
    // Larger cards with the same placement share a line.
    let plan = |line: &String| line.split_once(": ").map(|(_, plan)| plan.to_owned());
    for group in m.on_gpu.chunk_by(|a, b| plan(a) == plan(b)) {
        match group {
            [line] => writeln!(out, "  {line}")?,
            group => writeln!(out, "  {}", group[0].replacen(" GiB: ", " GiB or more: ", 1))?,
        }
    }
    Ok(())
}

fn print_fitting(fits: &FittingSize, out: &mut dyn Write) -> Result<()> {
    let (memory, context) = (format_size(fits.memory_bytes), grouped(fits.context));
    let size = |bytes: u64| match bytes >> 20 {
        0 => "nothing".to_owned(),
        mib => format!("{mib}M"),
    };
    let (f16, q8_0) = (size(fits.f16_size), size(fits.q8_0_size));
    let with = "with --cache-type q8_0";
    writeln!(out, "\n  fits {memory} with {context} tokens: convert --size {f16}, or {q8_0} {with}")
}

/// Formats a value as one short line.
fn brief(value: &Value) -> String {
    match value {
        Value::String(s) => shown(s),
        Value::Array(a) => {
            let first = array_json(a, FEW).as_array().map_or(String::new(), |list| {
                list.iter().map(Json::to_string).collect::<Vec<_>>().join(", ")
            });
            let line = shown(&first);
            let all = a.len() <= FEW && !line.ends_with('…');
            if all { format!("[{line}]") } else { format!("{} of [{}]", grouped(a.len() as u64), line) }
        }
        scalar => to_json(scalar).to_string(),
    }
}

/// Escapes terminal control and bidirectional characters in JSON text as `\u009b`; JSON requires that only up to
/// U+001F.
pub fn visible_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // Outside strings, where JSON allows no other control character.
            '\n' => out.push(c),
            c if is_control(c) => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// Converts a metadata value to JSON.
pub fn to_json(value: &Value) -> Json {
    match value {
        Value::U8(x) => json!(x),
        Value::I8(x) => json!(x),
        Value::U16(x) => json!(x),
        Value::I16(x) => json!(x),
        Value::U32(x) => json!(x),
        Value::I32(x) => json!(x),
        Value::F32(x) => json!(shortest_decimal(*x)),
        Value::Bool(x) => json!(x),
        Value::String(x) => json!(x),
        Value::Array(a) if a.len() > MAX_ELEMENTS => json!({ "type": value.type_name(), "length": a.len() }),
        Value::Array(a) => array_json(a, MAX_ELEMENTS),
        Value::U64(x) => json!(x),
        Value::I64(x) => json!(x),
        Value::F64(x) => json!(x),
    }
}

/// Converts the first `n` elements.
fn array_json(a: &Array, n: usize) -> Json {
    match a {
        Array::U8(a) => json!(&a[..a.len().min(n)]),
        Array::I8(a) => json!(&a[..a.len().min(n)]),
        Array::U16(a) => json!(&a[..a.len().min(n)]),
        Array::I16(a) => json!(&a[..a.len().min(n)]),
        Array::U32(a) => json!(&a[..a.len().min(n)]),
        Array::I32(a) => json!(&a[..a.len().min(n)]),
        Array::F32(a) => a.iter().take(n).map(|x| json!(shortest_decimal(*x))).collect(),
        Array::Bool(a) => json!(&a[..a.len().min(n)]),
        Array::String(a) => json!(&a[..a.len().min(n)]),
        Array::Array(a) => a.iter().take(n).map(|a| array_json(a, n)).collect(),
        Array::U64(a) => json!(&a[..a.len().min(n)]),
        Array::I64(a) => json!(&a[..a.len().min(n)]),
        Array::F64(a) => json!(&a[..a.len().min(n)]),
    }
}

/// Escapes control characters of a string and truncates it.
fn shown(text: &str) -> String {
    let mut line = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == MAX_CHARS {
            line.push('…');
            break;
        }
        if is_control(c) { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}
