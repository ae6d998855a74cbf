// Compiles all modules for the host, with checks. FORMAT_MODULES names a generated file that includes the matmul sources once
// per format. Next: planted.cpp.
#ifndef EMULATOR_CHECKS
#define EMULATOR_CHECKS 0
#endif
#include "../rows.cu"
#include "../mixed.cu"
#include "../delta.cu"
#include "../delta_step.cu"
#include "../delta_chunk.cu"
#include "../route.cu"
#include "../attention.cu"
#include "../materialized.cu"
#include "../sample.cu"
#include FORMAT_MODULES
#include "planted.cpp"

extern "C" {
extern const bool emulator_checks;
const bool emulator_checks = EMULATOR_CHECKS;
}
