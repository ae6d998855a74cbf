//! Emulates the CUDA driver: the kernels, compiled for the host, behind a library with the driver's interface.
//!
//! The library is built from kernels/cuda/host with the C++ compiler and loaded before the bindings look for the driver,
//! so that they find it under the driver's name. The backend runs unchanged: its launches, its memory, the arithmetic of
//! its kernels. The device's own compiler, timing and races are not emulated. Without a C++ compiler there is no
//! emulator, and tests on it are skipped (see [`skip`]).
#![allow(dead_code, reason = "some tests start processes, others use the backend")]

use super::skip;
use kernels::cuda::Cuda;
use kernels::quant::Format;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The CUDA backend on the emulator; `None` and a note without a C++ compiler.
pub fn cuda() -> Option<&'static Cuda> {
    static CUDA: OnceLock<Cuda> = OnceLock::new();
    let library = library()?;
    Some(CUDA.get_or_init(|| {
        // SAFETY: the library's constructors only register kernels in its own tables.
        let library = unsafe { libloading::Library::new(library) }.expect("the emulator loads");
        std::mem::forget(library);
        Cuda::detect().expect("the emulated device")
    }))
}

/// The directory of the package `kernels`, in its own tests and in those of the root package.
fn package() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    if own.join("cuda").is_dir() { own.to_owned() } else { own.join("kernels") }
}

fn sources() -> Vec<PathBuf> {
    let cuda = package().join("cuda");
    let files = |dir: &Path| fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let all = [files(&cuda), files(&cuda.join("host"))].concat();
    all.into_iter()
        .filter(|p| p.extension().is_some_and(|e| ["cu", "cuh", "h", "cpp"].iter().any(|x| e == *x)))
        .collect()
}

/// The path of the library, rebuilt if a source is newer; `None` and a note without a C++ compiler.
pub fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    let compiler = skip::cxx()?;
    Some(LIBRARY.get_or_init(|| build(&compiler)))
}

/// Includes the matmul sources once per format.
fn format_modules() -> String {
    let cuda = package().join("cuda");
    let module = |format: Format| {
        let source = cuda.join(if format.block_len() > 1 { "product.cu" } else { "plain.cu" });
        format!("#define FORMAT {}\n#include \"{}\"\n#undef FORMAT\n", format.name(), source.display())
    };
    Format::ALL.map(module).concat()
}

/// Builds the library under a name of this process and renames it: several tests may do so at once.
fn build(compiler: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = dir.join("libcuda.so");
    let time = |p: &Path| fs::metadata(p).and_then(|m| m.modified()).ok();
    let newest = sources().iter().filter_map(|p| time(p)).max();
    if time(&library).is_some() && time(&library) > newest {
        return library;
    }
    let own = dir.join(format!("libcuda.{}.so", std::process::id()));
    let host = package().join("cuda/host");
    let formats = own.with_extension("inc");
    fs::write(&formats, format_modules()).unwrap();
    let done = Command::new(compiler)
        .args([
            "-std=c++17",
            "-O3",
            "-march=native",
            "-fno-math-errno",
            "-fno-trapping-math",
            "-w",
            "-fPIC",
            "-shared",
            "-fvisibility=hidden",
            "-Wl,-soname,libcuda.so",
            "-o",
        ])
        .arg(&own)
        .arg(format!("-DFORMAT_MODULES=\"{}\"", formats.display()))
        .args([host.join("driver.cpp"), host.join("modules.cpp")])
        .output()
        .unwrap_or_else(|e| panic!("{compiler}: {e}"));
    assert!(done.status.success(), "{compiler}: {}", String::from_utf8_lossy(&done.stderr));
    fs::rename(&own, &library).unwrap();
    library
}
