//! The CUDA backend without a GPU: its kernels compiled for the host behind a library that answers as the driver does.
//!
//! The library is built from kernels/cuda/host with the C++ compiler and loaded before the bindings look for the
//! driver, which then find it under the driver's name. What runs is the backend as it is: its launches, its memory, its
//! kernels' arithmetic; what does not is the device's own compiler, its timing and its races.
#![allow(dead_code, reason = "some tests start processes, others use the backend")]

use kernels::cuda::Cuda;
use kernels::quant::Format;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

/// The backend on the emulator.
pub fn cuda() -> &'static Cuda {
    static CUDA: OnceLock<Cuda> = OnceLock::new();
    CUDA.get_or_init(|| {
        let library = library();
        // SAFETY: its start-up code registers kernels and nothing else.
        let library = unsafe { libloading::Library::new(&library) }.expect("the emulator");
        std::mem::forget(library);
        Cuda::detect().expect("the emulator")
    })
}

/// The package of the kernels, from its own tests or those of the whole.
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

/// Where the library is, built anew where a source is newer. Several tests may do so at once: the last name wins.
pub fn library() -> PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(build).clone()
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

fn build() -> PathBuf {
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
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".into());
    let done = Command::new(&compiler)
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
        .unwrap_or_else(|e| panic!("{compiler}: {e}; the tests of the CUDA backend need a C++ compiler"));
    assert!(done.status.success(), "{compiler}: {}", String::from_utf8_lossy(&done.stderr));
    fs::rename(&own, &library).unwrap();
    library
}
