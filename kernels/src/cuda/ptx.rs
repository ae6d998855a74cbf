//! Embeds the kernels as PTX, which the user's driver compiles; `kernels/cuda/build` generates the archive.
//!
//! The archive is text: for each module a line `//! NAME`, then its PTX. The sizes of the parameters of each entry are
//! read from it, so that a launch with the wrong arguments fails before it reaches the device. Instructions of newer cards
//! are comments in it, which are uncommented for them, so that one archive serves all.
//! Next: `memory`.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io::Read as _;

static ARCHIVE: &[u8] = include_bytes!("../../cuda/kernels.ptx.gz");

/// Compute capability of programmatic dependent launches, and of the instructions behind [`MARK`].
pub(super) const PROGRAMMATIC: [i32; 2] = [9, 0];
/// Begins an instruction of cards from [`PROGRAMMATIC`] on (`SM_90` in kernels/cuda/common.cuh).
const MARK: &str = "//sm_90 ";
/// The architecture of the archive, and that of a module with marked instructions.
const TARGETS: [&str; 2] = [".target sm_80", ".target sm_90"];
/// The instruction with which a kernel waits for the launches before it.
const WAIT: &str = "griddepcontrol.wait";

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
    /// Whether its code waits for the launches before it, so that it may be launched before they end.
    pub waits: bool,
}

impl Code {
    /// The code for cards of a compute capability.
    pub(super) fn embedded(capability: [i32; 2]) -> Code {
        let mut text = String::new();
        flate2::read::GzDecoder::new(ARCHIVE).read_to_string(&mut text).expect("the embedded archive");
        Code::parse(&text, capability >= PROGRAMMATIC)
    }

    fn parse(text: &str, unmark: bool) -> Code {
        let mut code =
            Code { modules: Vec::new(), names: Vec::new(), entries: Vec::new(), by_name: HashMap::new() };
        for module in text.split("//! ").skip(1) {
            let (name, ptx) = module.split_once('\n').expect("a module's name and its code");
            let own = unmark && ptx.contains(MARK);
            let ptx =
                if own { ptx.replace(MARK, "").replace(TARGETS[0], TARGETS[1]) } else { ptx.to_owned() };
            for entry in ptx.split(".entry ").skip(1) {
                let (head, _) = entry.split_once('{').expect("a kernel's body");
                let name = head.split(['(', '\n']).next().unwrap_or_default().trim().to_owned();
                let sizes = head.split(".param ").skip(1).map(parameter_bytes).collect();
                code.by_name.insert(name.clone(), code.entries.len());
                let waits = own && entry.contains(WAIT);
                code.entries.push(KernelEntry { name, module: code.modules.len(), sizes, waits });
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
        for (capability, target) in [([8, 9], TARGETS[0]), ([9, 0], TARGETS[1]), ([12, 0], TARGETS[1])] {
            let code = Code::embedded(capability);
            has_products(&code, target);
        }
    }

    fn has_products(code: &Code, target: &str) {
        for format in Format::ALL {
            let own: &[&str] = match format.block_len() {
                1 => &["matmul_route"],
                _ => &["ffn_up", "ffn_down"],
            };
            for kernel in ["matvec1", "matvec4", "fresh", "embed", "gemm"].iter().chain(own) {
                let entry = code.entry(code.find(&format!("{kernel}_{}", format.name())));
                assert_eq!(entry.sizes.len(), 1, "{}", entry.name);
                assert!(code.text(entry.module).to_str().unwrap().contains(target), "{target}");
                assert_eq!(entry.waits, target == TARGETS[1] && *kernel != "gemm", "{}", entry.name);
            }
        }
    }

    #[test]
    fn parameters_of_an_entry() {
        let text = "//! one\n.visible .entry add(\n.param .u64 add_param_0,\n.param .align 8 .b8 add_param_1[48],\n\
                    .param .f32 add_param_2\n)\n.maxntid 256, 1, 1\n{\nret;\n}\n";
        let code = Code::parse(text, true);
        assert_eq!(code.entry(code.find("add")).sizes, [8, 48, 4]);
    }

    /// Marked instructions are comments for older cards; for newer ones their module has a newer target.
    #[test]
    fn instructions_of_newer_cards() {
        let text = "//! one\n.target sm_80\n.entry a(\n)\n{\n\t//sm_90 griddepcontrol.wait;\n}\n.entry b(\n)\n{\n}\n\
                    //! two\n.target sm_80\n.entry c(\n)\n{\n}\n";
        let code = Code::parse(text, true);
        let of = |code: &Code, name| code.entry(code.find(name)).waits;
        assert_eq!(["a", "b", "c"].map(|name| of(&code, name)), [true, false, false]);
        let first = code.text(0).to_str().unwrap();
        assert!(first.starts_with(".target sm_90\n") && first.contains("\tgriddepcontrol.wait;"), "{first}");
        assert!(code.text(1).to_str().unwrap().starts_with(".target sm_80\n"));
        let older = Code::parse(text, false);
        assert!(
            !of(&older, "a")
                && older.text(0).to_str().unwrap()
                    == text.split_once('\n').unwrap().1.split("//! ").next().unwrap()
        );
    }
}
