// GEMV and GEMM of one block format, compiled once per format with FORMAT set to its name.
#include "fused.cuh"
#include "gemm.cuh"
#include "grid.cuh"

KERNEL(JOIN(matvec1_, FORMAT), 128)(const __grid_constant__ Product p) { matvec<FORMAT, 1>(p); }
REGISTER(JOIN(matvec1_, FORMAT))
KERNEL(JOIN(matvec4_, FORMAT), 128)(const __grid_constant__ Product p) { matvec<FORMAT, 4>(p); }
REGISTER(JOIN(matvec4_, FORMAT))
KERNEL(JOIN(fresh_, FORMAT), 128)(const __grid_constant__ Fresh p) { fresh<FORMAT>(p); }
REGISTER(JOIN(fresh_, FORMAT))
KERNEL(JOIN(ffn_up_, FORMAT), 32 * UP_LANES<FORMAT>)(const __grid_constant__ FusedFfn p) { ffn_up<FORMAT>(p); }
REGISTER(JOIN(ffn_up_, FORMAT))
KERNEL(JOIN(ffn_down_, FORMAT), 128)(const __grid_constant__ FusedFfn p) { ffn_down<FORMAT>(p); }
REGISTER(JOIN(ffn_down_, FORMAT))
KERNEL(JOIN(embed_, FORMAT), 128)(const __grid_constant__ Product p) { embed<FORMAT>(p); }
REGISTER(JOIN(embed_, FORMAT))
KERNEL_BLOCKS(JOIN(gemm_, FORMAT), 256, 2)(const __grid_constant__ Gemm p) { gemm<FORMAT>(p); }
REGISTER(JOIN(gemm_, FORMAT))
