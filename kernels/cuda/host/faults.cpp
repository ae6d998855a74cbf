// Faults of a device that lies, for tests of what the program does then: the launch of a kernel that is left out, fails, crashes
// the process, never ends, or makes every later call fail.
//
// KIMI_EMULATOR_FAULT=KIND:KERNEL:N plants one in the launch of KERNEL after N right ones, and in all later ones. KIND is
// wrong, error, crash, hang or sticky. With the kernel cuMemAlloc, allocations fail: full or error. None of this is in the
// program. Next: streams.cpp.
#include "emulator.h"
#include <csignal>

namespace emulator {
namespace {

const int INVALID = 1, OUT_OF_MEMORY = 2, NOT_READY = 600, ILLEGAL_ADDRESS = 700;

struct Plan {
    std::string kind, kernel;
    u64 right = 0;
    Plan() {
        const char* text = getenv("KIMI_EMULATOR_FAULT");
        std::string all = text ? text : "";
        size_t first = all.find(':'), second = all.find(':', first + 1);
        if (second == std::string::npos) return;
        kind = all.substr(0, first), kernel = all.substr(first + 1, second - first - 1);
        right = std::stoull(all.substr(second + 1));
    }
};
const Plan plan;
u64 issued = 0, started = 0; // launches of the kernel
bool hung = false, failed = false;

} // namespace

int launch_error(const std::string& kernel) {
    return plan.kind == "error" && plan.kernel == kernel && issued++ >= plan.right ? INVALID : 0;
}

int allocation_error() {
    if (plan.kernel != "cuMemAlloc" || issued++ < plan.right) return 0;
    return plan.kind == "full" ? OUT_OF_MEMORY : INVALID;
}

bool starts(const std::string& kernel) {
    if (hung || failed) return false;
    if (plan.kernel != kernel || plan.kind == "error" || started++ < plan.right) return true;
    if (plan.kind == "crash") signal(SIGSEGV, SIG_DFL), raise(SIGSEGV); // the handler of Rust would return to here
    hung = plan.kind == "hang", failed = plan.kind == "sticky";
    return false;
}

bool is_hung() { return hung; }
int pending_error() { return failed ? ILLEGAL_ADDRESS : 0; }
int query_result() { return hung ? NOT_READY : pending_error(); }

} // namespace emulator
