//! Embeds the kernels as PTX, which the user's driver compiles; `kernels/cuda/build` generates the archive.
//!
//! The archive is text: for each module a line `//! NAME`, then its PTX. The sizes of the parameters of each entry are
//! read from it, so that a launch with the wrong arguments fails before it reaches the device.
//! Next: `memory`.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io::Read as _;

static ARCHIVE: &[u8] = include_bytes!("../../cuda/kernels.ptx.gz");

/// Identifies the embedded kernels: the checksum and the length at the end of the archive, a gzip file.
pub fn archive_id() -> u64 {
    ARCHIVE.last_chunk().map_or(0, |end| u64::from_le_bytes(*end))
}

pub(super) struct Code {
    modules: Vec<CString>,
    names: Vec<String>,
    entries: Vec<KernelEntry>,
    by_name: HashMap<String, usize>,
}

/// A kernel of the archive, with the parameters that it takes.
pub(super) struct KernelEntry {
    pub name: String,
    /// Index of the module that contains it.
    pub module: usize,
    /// Size of each parameter in bytes, in the order of the arguments.
    pub sizes: Vec<usize>,
}

impl Code {
    pub(super) fn embedded() -> Code {
        let mut text = String::new();
        flate2::read::GzDecoder::new(ARCHIVE).read_to_string(&mut text).expect("the embedded archive");
        Code::parse(&text)
    }

    fn parse(text: &str) -> Code {
        let mut code =
            Code { modules: Vec::new(), names: Vec::new(), entries: Vec::new(), by_name: HashMap::new() };
        for module in text.split("//! ").skip(1) {
            let (name, ptx) = module.split_once('\n').expect("a module's name and its code");
            for entry in ptx.split(".entry ").skip(1) {
                let (head, _) = entry.split_once('{').expect("a kernel's body");
                let name = head.split(['(', '\n']).next().unwrap_or_default().trim().to_owned();
                let sizes = head.split(".param ").skip(1).map(parameter_bytes).collect();
                code.by_name.insert(name.clone(), code.entries.len());
                code.entries.push(KernelEntry { name, module: code.modules.len(), sizes });
            }
            code.modules.push(CString::new(ptx).expect("text"));
            code.names.push(name.trim().to_owned());
        }
        code
    }

    /// Returns the index of the kernel with this name; panics if there is none.
    pub(super) fn find(&self, name: &str) -> usize {
        *self.by_name.get(name).unwrap_or_else(|| panic!("no kernel {name} among the embedded ones"))
    }

    pub(super) fn entry(&self, index: usize) -> &KernelEntry {
        &self.entries[index]
    }

    /// The kernels of a module.
    pub(super) fn entries_of(&self, module: usize) -> impl Iterator<Item = &KernelEntry> {
        self.entries.iter().filter(move |entry| entry.module == module)
    }

    pub(super) fn modules(&self) -> usize {
        self.modules.len()
    }

    pub(super) fn name(&self, module: usize) -> &str {
        &self.names[module]
    }

    /// PTX of a module as a C string, which the driver compiles.
    pub(super) fn text(&self, module: usize) -> &CStr {
        &self.modules[module]
    }
}

/// `.u64 name_param_0,` or `.align 8 .b8 name_param_1[512],`
fn parameter_bytes(text: &str) -> usize {
    let types = [
        (".b8", 1),
        (".u8", 1),
        (".u16", 2),
        (".u32", 4),
        (".s32", 4),
        (".f32", 4),
        (".u64", 8),
        (".b64", 8),
    ];
    let one = types.iter().find(|(name, _)| text.split_whitespace().any(|word| word == *name));
    let (_, bytes) = one.unwrap_or_else(|| panic!("a parameter of a type that is not known: {text}"));
    let count = text.split_once('[').and_then(|(_, rest)| rest.split(']').next()?.parse().ok());
    bytes * count.unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Format;

    #[test]
    fn every_format_has_its_products() {
        let code = Code::embedded();
        for format in Format::ALL {
            let own: &[&str] = match format.block_len() {
                1 => &["matmul_route"],
                _ => &["ffn_up", "ffn_down"],
            };
            for kernel in ["matvec1", "matvec4", "fresh", "embed", "gemm"].iter().chain(own) {
                let entry = code.entry(code.find(&format!("{kernel}_{}", format.name())));
                assert_eq!(entry.sizes.len(), 1, "{}", entry.name);
                assert!(code.text(entry.module).to_str().unwrap().contains(".target sm_80"));
            }
        }
    }

    #[test]
    fn parameters_of_an_entry() {
        let text = "//! one\n.visible .entry add(\n.param .u64 add_param_0,\n.param .align 8 .b8 add_param_1[48],\n\
                    .param .f32 add_param_2\n)\n.maxntid 256, 1, 1\n{\nret;\n}\n";
        let code = Code::parse(text);
        assert_eq!(code.entry(code.find("add")).sizes, [8, 48, 4]);
    }
}
