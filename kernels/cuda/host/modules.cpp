// All modules for the host: each source as it is, the products once a format.
#include "../rows.cu"
#include "../delta.cu"
#include "../delta_step.cu"
#include "../delta_chunk.cu"
#include "../route.cu"
#include "../attention.cu"
#include "../expanded.cu"
#include "../sample.cu"
#define FORMAT Q4_0
#include "../product.cu"
#undef FORMAT
#define FORMAT Q4_1
#include "../product.cu"
#undef FORMAT
#define FORMAT Q5_0
#include "../product.cu"
#undef FORMAT
#define FORMAT Q5_1
#include "../product.cu"
#undef FORMAT
#define FORMAT Q8_0
#include "../product.cu"
#undef FORMAT
#define FORMAT Q2_K
#include "../product.cu"
#undef FORMAT
#define FORMAT Q3_K
#include "../product.cu"
#undef FORMAT
#define FORMAT Q4_K
#include "../product.cu"
#undef FORMAT
#define FORMAT Q5_K
#include "../product.cu"
#undef FORMAT
#define FORMAT Q6_K
#include "../product.cu"
#undef FORMAT
#define FORMAT IQ4_NL
#include "../product.cu"
#undef FORMAT
#define FORMAT IQ4_XS
#include "../product.cu"
#undef FORMAT
#define FORMAT MXFP4
#include "../product.cu"
#undef FORMAT
#define FORMAT F32
#include "../plain.cu"
#undef FORMAT
#define FORMAT F16
#include "../plain.cu"
#undef FORMAT
#define FORMAT BF16
#include "../plain.cu"
#undef FORMAT
