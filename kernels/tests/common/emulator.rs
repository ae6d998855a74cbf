//! Emulates the CUDA driver: the kernels, compiled for the host, behind a library with the driver's interface.
//!
//! The library is built from kernels/cuda/host with the C++ compiler and loaded before the bindings look for the driver,
//! so that they find it under the driver's name. The backend runs unchanged: its launches, its memory, the arithmetic of
//! its kernels. Races, accesses out of bounds and broken rules of the driver abort the process (`tests/emulator.rs`); the
//! device's own compiler and timing are not emulated. Without a C++ compiler there is no emulator, and tests on it are
//! skipped (see [`skip`]).
#![allow(dead_code, reason = "some tests start processes, others use the backend")]

use super::skip;
use kernels::cuda::Cuda;
use kernels::quant::Format;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The CUDA backend on the emulator; `None` and a note without a C++ compiler.
pub fn cuda() -> Option<&'static Cuda> {
    static CUDA: OnceLock<Cuda> = OnceLock::new();
    let path = library()?;
    Some(CUDA.get_or_init(|| new_cuda(path)))
}

/// A further backend on the emulator in this process.
pub fn new_cuda(path: &Path) -> Cuda {
    static LOADED: OnceLock<libloading::Library> = OnceLock::new();
    // SAFETY: the library's constructors only register kernels in its own tables.
    LOADED.get_or_init(|| unsafe { libloading::Library::new(path) }.expect("the emulator loads"));
    Cuda::detect().expect("the emulated device")
}

/// The directory of the package `kernels`, in its own tests and in those of the root package.
fn package() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    if own.join("cuda").is_dir() { own.to_owned() } else { own.join("kernels") }
}

/// Whether kernels are checked: in the tests of the package `kernels`, which run every kernel. Those of the root package run
/// whole models, which take three times as long with the checks.
fn is_checked() -> bool {
    package() == Path::new(env!("CARGO_MANIFEST_DIR"))
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

/// A program that runs a planted defect of the emulator; `None` and a note without a C++ compiler.
pub fn planted() -> Option<PathBuf> {
    let (compiler, library) = (skip::cxx()?, library()?);
    static PROGRAMS: AtomicUsize = AtomicUsize::new(0); // each test removes its own
    let program = PROGRAMS.fetch_add(1, Ordering::Relaxed);
    let main = library.with_file_name(format!("planted-{}-{program}", std::process::id()));
    let source = main.with_extension("cpp");
    let text = "extern \"C\" int emulator_planted(int, char**);\n\
                int main(int n, char** arguments) { return emulator_planted(n, arguments); }\n";
    fs::write(&source, text).unwrap();
    let search = format!("-Wl,-rpath,{}", path(library.parent()?));
    compile(&compiler, &["-o", path(&main), path(&source), path(library), &search]);
    Some(main)
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

/// The parts of the emulator itself.
const PARTS: [&str; 6] = ["memory.cpp", "block.cpp", "streams.cpp", "warp.cpp", "faults.cpp", "driver.cpp"];
/// The kernels call the emulator before each access; see kernels/cuda/host/memory.cpp.
const CHECKED: [&str; 2] = ["-fsanitize=thread,alignment", "-DEMULATOR_CHECKS=1"];

/// Builds the library under a name of this process and renames it: several tests may do so at once.
fn build(compiler: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(if is_checked() { "checked" } else { "emulator" });
    fs::create_dir_all(&dir).unwrap();
    let library = dir.join("libcuda.so");
    let time = |p: &Path| fs::metadata(p).and_then(|m| m.modified()).ok();
    let newest = sources().iter().filter_map(|p| time(p)).max();
    if time(&library).is_some() && time(&library) > newest {
        return library;
    }
    let own = dir.join(format!("libcuda.{}.so", std::process::id()));
    let host = package().join("cuda/host");
    let (formats, kernels) = (own.with_extension("inc"), own.with_extension("o"));
    fs::write(&formats, format_modules()).unwrap();
    let formats = format!("-DFORMAT_MODULES=\"{}\"", formats.display());
    let modules = host.join("modules.cpp");
    let flags: &[&str] = if is_checked() { &CHECKED } else { &[] };
    compile(compiler, &[flags, &[&formats, "-c", "-o", path(&kernels), path(&modules)]].concat());
    let parts = PARTS.map(|part| host.join(part));
    let link = ["-shared", "-Wl,-soname,libcuda.so", "-o", path(&own), path(&kernels)];
    compile(compiler, &[&link[..], &parts.each_ref().map(|part| path(part))].concat());
    fs::rename(&own, &library).unwrap();
    library
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn compile(compiler: &str, args: &[&str]) {
    let common =
        ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-w", "-fPIC"];
    let done = Command::new(compiler).args(common).arg("-fvisibility=hidden").args(args).output();
    let done = done.unwrap_or_else(|e| panic!("{compiler}: {e}"));
    assert!(done.status.success(), "{compiler}: {}", String::from_utf8_lossy(&done.stderr));
}
