// GEMV and GEMM of one float format (F32, F16, BF16), compiled once per format with FORMAT set to its name.
#include "fused.cuh"
#include "gemm.cuh"

KERNEL(JOIN(matvec1_, FORMAT), 128)(const __grid_constant__ Product p) { matvec_plain<FORMAT, 1>(p); }
REGISTER(JOIN(matvec1_, FORMAT))
KERNEL(JOIN(matvec4_, FORMAT), 128)(const __grid_constant__ Product p) { matvec_plain<FORMAT, 4>(p); }
REGISTER(JOIN(matvec4_, FORMAT))
KERNEL(JOIN(fresh_, FORMAT), 128)(const __grid_constant__ Fresh p) { fresh_plain<FORMAT>(p); }
REGISTER(JOIN(fresh_, FORMAT))
KERNEL(JOIN(embed_, FORMAT), 128)(const __grid_constant__ Product p) { embed_plain<FORMAT>(p); }
REGISTER(JOIN(embed_, FORMAT))
KERNEL(JOIN(gemm_, FORMAT), 256)(const __grid_constant__ Gemm p) { gemm_plain<FORMAT>(p); }
REGISTER(JOIN(gemm_, FORMAT))
KERNEL(JOIN(matmul_route_, FORMAT), 128)(const __grid_constant__ Router p) { matmul_route<FORMAT>(p); }
REGISTER(JOIN(matmul_route_, FORMAT))
