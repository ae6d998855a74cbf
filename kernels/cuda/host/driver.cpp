// An emulator of libcuda that runs the kernels on the host, so that tests run the real host code through the real bindings.
//
// Every rule of the driver's that the backend could break aborts the process with a message: a call in a thread without a
// context, work that a capture does not allow, shared memory without opt-in, more threads than a kernel is compiled for, a
// programmatic launch of a kernel that does not wait. KIMI_EMULATOR_CAPABILITY is the compute capability, 9.0 by default.
// Kernels register themselves by name.
#include "emulator.h"
#include <mutex>
#include <unistd.h>

using namespace emulator;

namespace {

const int OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500;
const int MAX_SHARED = 8, CARVEOUT = 9; // attributes of functions

std::mutex one;
thread_local bool has_context = false;
std::map<const unsigned char*, size_t> pinned;
std::map<std::string, Function> functions;

// Kernels that wait for overlapping launches, in the text of a module.
struct Module {
    std::map<std::string, bool> waits;
};
const char* const WAIT = "griddepcontrol.wait", *const COMMENT = "//sm_90 ";

// The attribute of a launch that may overlap with the one before it, as in cuda.h.
struct LaunchAttribute {
    int id;
    char padding[4];
    int value[16];
};
struct LaunchConfig {
    unsigned grid[3], block[3], shared;
    void* stream;
    LaunchAttribute* attributes;
    unsigned n;
};
const int PROGRAMMATIC = 6;

// 90 for 9.0: KIMI_EMULATOR_CAPABILITY.
int capability() {
    const char* text = getenv("KIMI_EMULATOR_CAPABILITY");
    return text ? (int)lround(10 * atof(text)) : 90;
}

void need_context(const char* call) {
    if (!has_context) fail(std::string(call) + " in a thread without a context");
}

bool is_pinned(const void* p) {
    auto after = pinned.upper_bound((const unsigned char*)p);
    return after != pinned.begin() && (const unsigned char*)p < std::prev(after)->first + std::prev(after)->second;
}

Work copy_of(void* to, const void* from, size_t bytes) {
    Work w{};
    w.kind = Work::COPY, w.to = to, w.from = from, w.bytes = bytes;
    return w;
}

// What waits for a kernel that never ends.
void wait_forever_if_hung() {
    while (is_hung()) sleep(1);
}

// A copy between host and device: of pinned memory it is issued, of other memory the call waits for it.
int host_copy(void* to, const void* from, size_t bytes, const void* host, void* stream) {
    if (is_capturing(stream)) fail("a copy from or to the host in a capture");
    if (!is_pinned(host)) return finish(stream), wait_forever_if_hung(), copy_range(to, from, bytes), OK;
    return issue(stream, copy_of(to, from, bytes)), OK;
}

} // namespace

namespace emulator {
void fail(const std::string& what) {
    std::string in = running();
    fprintf(stderr, "CUDA emulator: %s%s%s; KIMI_EMULATOR_SEED=%llu\n", what.c_str(), in.empty() ? "" : " in ", in.c_str(), seed());
    abort();
}
} // namespace emulator

// Calls of the interface, one at a time; those that need a context in their thread, and those that do not.
#define API(name) extern "C" __attribute__((visibility("default"))) int name
#define LOCK std::lock_guard<std::mutex> lock(one)
#define BEGIN LOCK; need_context(__func__); if (int code = pending_error()) return code

API(cuInit)(unsigned) { return OK; }
API(cuDriverGetVersion)(int* v) { return *v = 12040, OK; }
API(cuDeviceGetCount)(int* n) {
    const char* devices = getenv("KIMI_EMULATOR_DEVICES");
    return *n = devices ? atoi(devices) : 1, OK;
}
API(cuDeviceGet)(int* d, int) { return *d = 0, OK; }
API(cuDeviceGetName)(char* name, int n, int) { return snprintf(name, (size_t)n, "host threads"), OK; }
API(cuDeviceGetUuid_v2)(void* uuid, int) { return memset(uuid, 7, 16), OK; }
API(cuDeviceGetAttribute)(int* v, int attribute, int) {
    switch (attribute) {
        case 16: return *v = 4, OK;           // multiprocessors
        case 75: return *v = capability() / 10, OK;
        case 76: return *v = capability() % 10, OK;
        case 97: return *v = SHARED_LIMIT, OK;
        default: return INVALID;
    }
}
API(cuDevicePrimaryCtxRetain)(void** c, int) { return *c = (void*)1, OK; }
API(cuCtxSetCurrent)(void* c) { return has_context = c, OK; }
API(cuMemGetInfo_v2)(size_t* free, size_t* total) {
    BEGIN;
    return *free = TOTAL - bytes_in_use(), *total = TOTAL, OK;
}
API(cuMemAlloc_v2)(u64* p, size_t n) {
    BEGIN;
    if (n == 0) return INVALID;
    if (int code = allocation_error()) return code;
    *p = allocate(n);
    return *p ? OK : OUT_OF_MEMORY;
}
API(cuMemFree_v2)(u64 p) {
    BEGIN;
    finish_all();
    wait_forever_if_hung();
    return release(p) ? OK : INVALID;
}
API(cuMemHostAlloc)(void** p, size_t n, unsigned) {
    BEGIN;
    *p = malloc(n);
    pinned[(unsigned char*)*p] = n;
    return OK;
}
API(cuMemFreeHost)(void* p) {
    BEGIN;
    auto found = pinned.find((unsigned char*)p);
    if (found == pinned.end()) return INVALID;
    if (is_pending(p, found->second)) fail("pinned memory is freed before a copy of it is done");
    pinned.erase(found);
    return free(p), OK;
}
API(cuMemcpyHtoDAsync_v2)(u64 to, const void* from, size_t n, void* stream) {
    BEGIN;
    return host_copy((void*)to, from, n, from, stream);
}
API(cuMemcpyDtoHAsync_v2)(void* to, u64 from, size_t n, void* stream) {
    BEGIN;
    return host_copy(to, (void*)from, n, to, stream);
}
API(cuMemcpyDtoDAsync_v2)(u64 to, u64 from, size_t n, void* stream) {
    BEGIN;
    return issue(stream, copy_of((void*)to, (void*)from, n)), OK;
}
API(cuMemsetD8Async)(u64 to, unsigned char value, size_t n, void* stream) {
    BEGIN;
    Work w{};
    w.kind = Work::FILL, w.to = (void*)to, w.bytes = n, w.value = value;
    return issue(stream, std::move(w)), OK;
}
API(cuStreamCreate)(void** s, unsigned) {
    BEGIN;
    static u64 made = 0;
    return *s = (void*)++made, OK;
}
API(cuStreamSynchronize)(void* stream) { BEGIN; return finish(stream), wait_forever_if_hung(), pending_error(); }
API(cuStreamQuery)(void* stream) { BEGIN; return finish(stream), query_result(); }
API(cuStreamWaitEvent)(void* stream, void* event, unsigned) { BEGIN; return wait_for(stream, *(Event*)event), OK; }
API(cuModuleLoadDataEx)(void** m, const void* code, unsigned n, int* options, void** values) {
    BEGIN;
    if (n != 2 || options[0] != 5 || options[1] != 6) return INVALID;
    std::string text = (const char*)code;
    size_t target = text.find(".target sm_");
    bool known = text.find(".version") != std::string::npos && target != std::string::npos;
    if (!known || atoi(text.c_str() + target + 11) > capability()) {
        snprintf((char*)values[0], (size_t)values[1], known ? "a target beyond the device" : "no .version");
        return INVALID;
    }
    Module* module = new Module;
    for (size_t at = 0; (at = text.find(".entry ", at)) != std::string::npos;) {
        size_t name = at + 7, end = text.find(".entry ", name), wait = text.find(WAIT, name);
        bool waits = wait < end && text.compare(wait - strlen(COMMENT), strlen(COMMENT), COMMENT);
        module->waits[text.substr(name, text.find('(', name) - name)] = waits;
        at = name;
    }
    return *m = module, OK;
}
// Without a module: kernels of tests, which wait.
API(cuModuleGetFunction)(void** f, void* m, const char* name) {
    BEGIN;
    auto found = shim::kernels().find(name);
    if (found == shim::kernels().end()) return NOT_FOUND;
    Module* module = (Module*)m;
    if (module && !module->waits.count(name)) return NOT_FOUND;
    Function* function = &functions.try_emplace(name, Function{name, found->second, SHARED_DEFAULT, false}).first->second;
    function->waits = !module || module->waits[name];
    return *f = function, OK;
}
API(cuFuncSetAttribute)(void* f, int attribute, int value) {
    BEGIN;
    if (attribute == CARVEOUT) return value >= -1 && value <= 100 ? OK : INVALID;
    if (attribute != MAX_SHARED || value < 0 || (size_t)value > SHARED_LIMIT) return INVALID;
    return ((Function*)f)->opted_in = std::max((size_t)value, SHARED_DEFAULT), OK;
}
// A launch, which may overlap with the one before it if it is programmatic.
static int launch(const Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                  void* stream, void** args, bool programmatic) {
    if (!gx || !gy || !gz || gx > 0x7fffffff || gy > 65535 || gz > 65535) return INVALID;
    if (!bx || bx > 1024 || bx % 32 || by != 1 || bz != 1) return INVALID;
    if (int code = launch_error(f->name)) return code;
    if (bx > f->kernel.max_threads) fail("more threads than the kernel is compiled for in a launch of " + f->name);
    if (shared > f->opted_in) fail("more shared memory than opted in to in a launch of " + f->name);
    Work w{};
    w.kind = Work::LAUNCH, w.f = f, w.grid = dim3{gx, gy, gz}, w.threads = dim3{bx, by, bz}, w.shared = shared;
    w.programmatic = programmatic;
    for (int i = 0; i < f->kernel.n; i++)
        w.arguments.emplace_back((unsigned char*)args[i], (unsigned char*)args[i] + f->kernel.sizes[i]);
    return issue(stream, std::move(w)), OK;
}
API(cuLaunchKernel)(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                    void* stream, void** args, void**) {
    BEGIN;
    return launch((Function*)f, gx, gy, gz, bx, by, bz, shared, stream, args, false);
}
API(cuLaunchKernelEx)(const LaunchConfig* c, void* f, void** args, void**) {
    BEGIN;
    bool programmatic = false;
    for (unsigned i = 0; i < c->n; i++) {
        if (c->attributes[i].id != PROGRAMMATIC) return INVALID;
        programmatic = c->attributes[i].value[0];
    }
    if (programmatic && capability() < 90) return INVALID;
    if (programmatic && !((Function*)f)->waits) fail("a programmatic launch of " + ((Function*)f)->name + ", which does not wait");
    return launch((Function*)f, c->grid[0], c->grid[1], c->grid[2], c->block[0], c->block[1], c->block[2], c->shared, c->stream, args, programmatic);
}
API(cuEventCreate)(void** e, unsigned) { BEGIN; return *e = new Event, OK; }
API(cuEventDestroy_v2)(void* e) { BEGIN; return delete (Event*)e, OK; }
API(cuEventRecord)(void* event, void* stream) { BEGIN; return *(Event*)event = record(stream), OK; }
API(cuEventSynchronize)(void* event) { BEGIN; return finish(*(Event*)event), wait_forever_if_hung(), pending_error(); }
API(cuEventQuery)(void* event) { BEGIN; return finish(*(Event*)event), query_result(); }
API(cuEventElapsedTime)(float* ms, void*, void*) { BEGIN; return *ms = 1, OK; }
API(cuEventElapsedTime_v2)(float* ms, void*, void*) { BEGIN; return *ms = 1, OK; }
API(cuGetErrorString)(int code, const char** text) {
    *text = code == OUT_OF_MEMORY ? "out of memory"
            : code == NOT_FOUND   ? "named symbol not found"
            : code == 700         ? "an illegal memory access was encountered"
                                  : "invalid argument";
    return OK;
}
API(cuStreamBeginCapture_v2)(void* stream, int) { BEGIN; return begin_capture(stream), OK; }
API(cuStreamEndCapture)(void* stream, void** graph) { BEGIN; return *graph = new Graph(end_capture(stream)), OK; }
API(cuGraphInstantiateWithFlags)(void** exec, void* graph, unsigned long long) {
    BEGIN;
    return *exec = new Graph(*(Graph*)graph), OK;
}
API(cuGraphLaunch)(void* exec, void* stream) {
    BEGIN;
    if (is_capturing(stream)) fail("a graph launched in a capture");
    for (const Work& w : *(Graph*)exec) issue(stream, w);
    return OK;
}
API(cuGraphDestroy)(void* graph) { BEGIN; return delete (Graph*)graph, OK; }
API(cuGraphExecDestroy)(void* exec) { BEGIN; return delete (Graph*)exec, OK; }

#if defined(__GLIBC__)
// A test that fails by its results names the seed, too.
static void name_seed(int status, void*) {
    if (status) fprintf(stderr, "CUDA emulator: KIMI_EMULATOR_SEED=%llu\n", seed());
}
static const int named = on_exit(name_seed, nullptr);
#endif
