//! Compares what a model takes of a device's memory with what the device has, as one bar with a legend: the RAM of this
//! machine, and its GPU if there is one.

use super::{InspectArgs, ModelReport};
use crate::commands::plot::bars::{BarStyle, Fill};
use crate::io::host_memory;
use crate::io::units::{format_size, grouped};
use kernels::backend::{Backend, CacheFormat};
use kernels::cpu::Cpu;
use kernels::cuda::Cuda;
use models::gguf::read::Gguf;
use models::hybrid::config::Config;
use models::visible::one_line;
use serde::Serialize;
use std::path::Path;

const IN_USE: Fill = Fill { ansi: 90, block: '▒', letter: 'o' };
const WEIGHTS: Fill = Fill { ansi: 34, block: '█', letter: 'W' };
const CACHE: Fill = Fill { ansi: 36, block: '▓', letter: 'C' };
const STATE: Fill = Fill { ansi: 35, block: '█', letter: 'S' };
const FREE: Fill = Fill { ansi: 90, block: '░', letter: '.' };

/// The memory of one device, and the parts that the model takes of it.
#[derive(Debug, Serialize)]
pub struct DeviceMemory {
    /// RAM, or the name of the GPU.
    pub device: String,
    pub total_bytes: u64,
    pub available_bytes: u64,
    /// The context in tokens, and the type of its KV cache.
    pub context: u64,
    pub cache_type: &'static str,
    pub weights_bytes: u64,
    pub cache_bytes: u64,
    /// State of a sequence, activations, and what the driver keeps.
    pub workspace_bytes: u64,
    /// Weights of a GPU's model that stay in RAM.
    #[serde(skip_serializing_if = "super::is_zero")]
    pub weights_in_ram_bytes: u64,
}

/// The devices of this machine whose memory is known.
pub fn devices(args: &InspectArgs, file: &Gguf, m: &ModelReport) -> Vec<DeviceMemory> {
    let Ok(c) = Config::from_gguf(file) else { return Vec::new() };
    let context = args.context.first().copied().unwrap_or(131_072).min(c.context);
    ram(m, &c, context).into_iter().chain(gpu(args, file, &c, context)).collect()
}

fn ram(m: &ModelReport, c: &Config, context: u64) -> Option<DeviceMemory> {
    let cache = Cpu::default_cache_format(c.mla.latent_dim, c.mla.pe_dim);
    let (cache_type, per_token) = match cache {
        CacheFormat::F32 => ("f32", m.need.f16_bytes_per_token.saturating_mul(2)),
        CacheFormat::F16 => ("f16", m.need.f16_bytes_per_token),
        CacheFormat::Q8_0 => ("q8_0", m.need.q8_0_bytes_per_token),
    };
    Some(DeviceMemory {
        device: "RAM".into(),
        total_bytes: host_memory::total(Path::new("/"))?,
        available_bytes: m.available_bytes?,
        context,
        cache_type,
        weights_bytes: m.weights_bytes.saturating_add(m.split_bytes),
        cache_bytes: per_token.saturating_mul(context),
        workspace_bytes: m.need.total(0, context),
        weights_in_ram_bytes: 0,
    })
}

/// The first CUDA device, with the placement that `--device cuda` plans.
fn gpu(args: &InspectArgs, file: &Gguf, c: &Config, context: u64) -> Option<DeviceMemory> {
    let cuda = Cuda::detect().ok()?;
    let [available_bytes, total_bytes] = cuda.memory();
    let plan = args.plan(file, c, Some(context), available_bytes, host_memory::available(Path::new("/")));
    let weights_bytes =
        plan.requirements.base.saturating_add(plan.layer_bytes).saturating_add(plan.cache_bytes);
    let cache_bytes = plan.requirements.cache;
    Some(DeviceMemory {
        device: one_line(&cuda.device().name, 64),
        total_bytes,
        available_bytes,
        context,
        cache_type: "f16",
        weights_bytes,
        cache_bytes,
        workspace_bytes: plan.gpu.saturating_sub(weights_bytes).saturating_sub(cache_bytes),
        weights_in_ram_bytes: plan.ram,
    })
}

impl DeviceMemory {
    fn need(&self) -> u64 {
        self.weights_bytes.saturating_add(self.cache_bytes).saturating_add(self.workspace_bytes)
    }

    /// Bytes that are missing; 0 if the model fits.
    fn shortfall(&self) -> u64 {
        self.need().saturating_sub(self.available_bytes)
    }

    /// A title, the bar, the end of the memory if the model does not fit, and the legend.
    pub fn lines(&self, style: BarStyle) -> Vec<String> {
        let in_use = self.total_bytes.saturating_sub(self.available_bytes);
        let free = self.available_bytes.saturating_sub(self.need());
        let parts = [
            ("in use", IN_USE, in_use),
            ("weights", WEIGHTS, self.weights_bytes),
            ("KV cache", CACHE, self.cache_bytes),
            ("state and workspace", STATE, self.workspace_bytes),
            ("free", FREE, free),
        ];
        let columns = style.width - 4;
        let verdict = match self.shortfall() {
            0 => "fits".to_owned(),
            bytes => format!("short by {}", format_size(bytes)),
        };
        let mut lines = vec![
            format!("{}, {}: {verdict}", self.device, format_size(self.total_bytes)),
            format!("  {} tokens of context, {} cache", grouped(self.context), self.cache_type),
            format!("  {}", style.segments(&parts.map(|(_, fill, size)| (fill, size)), columns)),
        ];
        if self.shortfall() > 0 {
            let all = u128::from(in_use) + u128::from(self.need());
            let at = (u128::from(self.total_bytes) * columns as u128 / all) as usize;
            let size = format_size(self.total_bytes);
            let label = if at > size.len() { format!("{size} ^") } else { format!("^ {size}") };
            let before = if at > size.len() { at - size.len() - 1 } else { at };
            lines.push(format!("  {}{label}", " ".repeat(before)));
        }
        // Entries of the legend break between lines; a key is one column, whatever its color.
        let (mut line, mut width) = (String::from(" "), 1);
        for (name, fill, size) in parts.into_iter().filter(|(_, _, size)| *size > 0) {
            let entry = format!("{name} {}", format_size(size));
            if width > 1 && width + entry.len() + 3 > style.width {
                lines.push(line.trim_end().to_owned());
                line = " ".into();
                width = 1;
            }
            line += &format!(" {} {entry} ", style.key(fill));
            width += entry.len() + 4;
        }
        lines.push(line.trim_end().to_owned());
        if self.weights_in_ram_bytes > 0 {
            lines.push(format!("  {} of experts stay in RAM", format_size(self.weights_in_ram_bytes)));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn device(weights_bytes: u64) -> DeviceMemory {
        DeviceMemory {
            device: "RAM".into(),
            total_bytes: 16 * GIB,
            available_bytes: 12 * GIB,
            context: 131_072,
            cache_type: "q8_0",
            weights_bytes,
            cache_bytes: GIB,
            workspace_bytes: GIB / 2,
            weights_in_ram_bytes: 0,
        }
    }

    #[test]
    fn a_model_that_fits_leaves_free_memory() {
        let lines = device(5 * GIB).lines(BarStyle { width: 68, plain: true });
        let expected = [
            "RAM, 16.00 GiB: fits",
            "  131,072 tokens of context, q8_0 cache",
            "  ooooooooooooooooWWWWWWWWWWWWWWWWWWWWCCCCSS......................",
            "  o in use 4.00 GiB  W weights 5.00 GiB  C KV cache 1.00 GiB",
            "  S state and workspace 512.0 MiB  . free 5.50 GiB",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_model_that_does_not_fit_is_short_by_the_rest() {
        let lines = device(26 * GIB).lines(BarStyle { width: 67, plain: true });
        assert_eq!(lines[0], "RAM, 16.00 GiB: short by 15.50 GiB");
        assert_eq!(lines[2].trim().len(), 63);
        assert_eq!(lines[3], "                        16.00 GiB ^");
        assert_eq!(lines[3].find('^').unwrap() - 2, 63 * 32 / 63);
        assert!(!lines.concat().contains("free"), "{lines:?}");
    }

    #[test]
    fn sizes_of_hostile_files_and_narrow_terminals_do_not_panic() {
        for (width, plain) in [(20, true), (80, false)] {
            let lines = device(u64::MAX).lines(BarStyle { width, plain });
            assert!(lines[0].contains("short by"), "{lines:?}");
            let empty = DeviceMemory { total_bytes: 0, available_bytes: 0, ..device(0) };
            assert!(empty.lines(BarStyle { width, plain })[0].contains("short by 1.50 GiB"));
        }
    }
}
