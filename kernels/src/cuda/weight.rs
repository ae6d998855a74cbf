//! Stores weights on the device in planes ([`super::planes`]), or experts in RAM with slots of the expert cache.
//!
//! Next: `matmul`.

use super::driver::{Address, Driver};
use super::expert_cache::Slots;
use super::planes::{PLANES, PlaneMemory, plane};
use crate::backend::{Error, QuantTensor};
use crate::quant::Format;
use std::sync::{Arc, Weak};

/// A stack of matrices on the device.
pub struct Weight {
    pub(super) format: Format,
    pub(super) count: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Address of each plane; 0 where the format has fewer.
    pub(super) planes: [Address; PLANES],
    /// Owns the memory behind the addresses.
    _memory: Option<PlaneMemory>,
    /// The stack in RAM, for experts that are not on the device.
    ram: Option<Arc<StackInRam>>,
}

/// A stack of experts in RAM, with optional expert cache slots.
struct StackInRam {
    weight: crate::cpu::Weight,
    slots: Option<Slots>,
}

/// A weight for the replay of captured steps, which keeps no memory of its model.
pub(super) struct WeightRef {
    on_device: Weight,
    ram: Option<Weak<StackInRam>>,
}

impl WeightRef {
    /// The weight; no step of a freed model is replayed, because the keys of graphs have the count of freed weights.
    pub(super) fn upgrade(&self) -> Weight {
        let Weight { count, planes, .. } = self.on_device;
        let ram = self.ram.as_ref().map(|ram| ram.upgrade().expect("the stack of a loaded model"));
        Weight { ram, ..self.on_device.placed(count, planes) }
    }
}

impl Weight {
    pub(super) fn new(driver: &Arc<Driver>, stored: &QuantTensor) -> Result<Weight, Error> {
        let QuantTensor { format, count, rows, cols, bytes, .. } = stored;
        let row = format.row_bytes(*cols as u64).expect("rows of whole blocks") as usize;
        assert_eq!(bytes.len(), count * rows * row, "bytes of a weight");
        let blocks = bytes.len() / format.block_bytes();
        let (memory, places) = PlaneMemory::allocate(driver, *format, blocks, "a weight on the CUDA device")?;
        for (place, part) in places.iter().zip(format.cuda_planes()) {
            driver.upload(*place, &plane(bytes, format.block_bytes(), part));
        }
        let (format, count, rows, cols) = (*format, *count, *rows, *cols);
        Ok(Weight { format, count, rows, cols, planes: places, _memory: Some(memory), ram: None })
    }

    /// A stack in RAM, with optional expert cache slots.
    pub(super) fn on_host(stored: &QuantTensor, host: crate::cpu::Weight, slots: Option<Slots>) -> Weight {
        let QuantTensor { format, count, rows, cols, .. } = *stored;
        let ram = Some(Arc::new(StackInRam { weight: host, slots }));
        Weight { format, count, rows, cols, planes: [0; PLANES], _memory: None, ram }
    }

    /// A borrowed stack of `count` matrices of the same shape at other addresses.
    pub(super) fn placed(&self, count: usize, planes: [Address; PLANES]) -> Weight {
        let Weight { format, rows, cols, .. } = *self;
        Weight { format, count, rows, cols, planes, _memory: None, ram: None }
    }

    /// A reference for the replay of captured steps.
    pub(super) fn downgrade(&self) -> WeightRef {
        let ram = self.ram.as_ref().map(Arc::downgrade);
        WeightRef { on_device: self.placed(self.count, self.planes), ram }
    }

    /// The stack in RAM, for experts that are not on the device.
    pub(super) fn host(&self) -> Option<&crate::cpu::Weight> {
        self.ram.as_ref().map(|ram| &ram.weight)
    }

    /// Expert cache slots of a stack in RAM.
    pub(super) fn slots(&self) -> Option<&Slots> {
        self.ram.as_ref()?.slots.as_ref()
    }

    /// Returns the experts in the GPU expert cache as a stack of matrices.
    pub(super) fn cached_experts(&self) -> Weight {
        let slots = self.slots().expect("slots of all three stacks");
        self.placed(slots.count, slots.planes)
    }

    /// The bytes of experts in RAM.
    pub(super) fn in_ram(&self) -> &[u8] {
        &self.host().expect("experts in RAM").bytes
    }

    /// Asserts that the weight is on the device.
    pub(super) fn on_device(&self) -> &Weight {
        assert!(self.ram.is_none(), "a weight in RAM in a product on the device: only experts may be there");
        self
    }

    /// Address of a small F32 weight: norms, taps, biases.
    pub(super) fn floats(&self) -> Address {
        assert_eq!((self.format, self.count), (Format::F32, 1), "a vector of the graph is F32");
        self.planes[0]
    }

    /// Returns whether activations are quantized for this weight.
    pub(super) fn is_block(&self) -> bool {
        self.format.block_len() > 1
    }
}
