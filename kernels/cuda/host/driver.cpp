// An emulator of libcuda that runs the kernels on the host: device memory is malloc's, and a launch runs its blocks in turn.
//
// Tests run the real host code through the real bindings. Device memory is filled with NaN bits on allocation and release;
// writes beyond an allocation or beyond a launch's shared memory abort the process with the kernel's name. Captured launches
// are stored with their arguments and run when the graph is launched. Kernels register themselves by name.
#include "kernels.h"
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

[[noreturn]] void fail(const std::string& what);

// ---- fibers ------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
extern "C" void shim_switch(void** from, void* to);
asm(R"(
.text
.globl shim_switch
shim_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");
struct Context {
    void* sp;
    void start(char* stack, size_t size, void (*entry)()) {
        void** top = (void**)(((uintptr_t)stack + size) & ~(uintptr_t)15);
        *--top = nullptr;
        *--top = (void*)entry;
        for (int i = 0; i < 6; i++) *--top = nullptr;
        sp = top;
    }
    void to(Context& other) { shim_switch(&sp, other.sp); }
};
#else
#include <ucontext.h>
struct Context {
    ucontext_t u;
    void start(char* stack, size_t size, void (*entry)()) {
        getcontext(&u);
        u.uc_stack.ss_sp = stack, u.uc_stack.ss_size = size, u.uc_link = nullptr;
        makecontext(&u, entry, 0);
    }
    void to(Context& other) { swapcontext(&u, &other.u); }
};
#endif

const size_t STACK = 64 << 10, GUARD = 256;
const unsigned char POISON = 0xff, FENCE = 0xa5;

struct Copy {
    void* to;
    const void* from;
};

struct Fiber {
    Context context;
    char* stack = nullptr;
    dim3 thread;
    bool done;
    const void* waiting; // barrier it waits for; it saw the counter at `generation`
    u64 generation;
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
};

struct Barrier {
    u64 generation = 0;
    int arrived = 0, size = 0;
    u64 values[2][32];
};

std::vector<Fiber> fibers;
std::vector<Barrier> warps;
Barrier block;
Context scheduler;
Fiber* now;
std::vector<unsigned char> memory; // shared memory and its guard bytes
u64 random_state = 1;
const char* running = "";
shim::Kernel kernel;
void** arguments;

unsigned random(unsigned n) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((random_state >> 33) % n);
}

void fail(const std::string& what) {
    fprintf(stderr, "CUDA emulator: %s in %s\n", what.c_str(), running);
    abort();
}

void entry() {
    kernel.call(kernel.f, arguments);
    now->done = true;
    now->context.to(scheduler);
    abort();
}

// Waits until all threads have arrived at a barrier; the last one wakes the others.
void arrive_and_wait(Barrier& m) {
    u64 generation = m.generation;
    if (++m.arrived == m.size) {
        m.arrived = 0;
        m.generation++;
    }
    if (m.generation != generation && random(2)) return; // at random, the last thread continues or yields to the others
    now->waiting = &m, now->generation = generation;
    now->context.to(scheduler);
    threadIdx = now->thread;
}

bool ready(const Fiber& f) {
    return !f.done && (!f.waiting || ((const Barrier*)f.waiting)->generation != f.generation);
}

void run_block() {
    size_t n = (size_t)blockDim.x * blockDim.y * blockDim.z;
    if (fibers.size() < n) fibers.resize(n);
    warps.assign((n + 31) / 32, Barrier());
    block = Barrier();
    block.size = (int)n;
    for (size_t i = 0; i < n; i++) {
        Fiber& f = fibers[i];
        if (!f.stack) f.stack = (char*)malloc(STACK);
        f.context.start(f.stack, STACK, entry);
        f.thread = dim3{(unsigned)i, 0, 0};
        f.done = false, f.waiting = nullptr;
        f.groups.clear(), f.open.clear();
        warps[i / 32].size++;
    }
    for (size_t left = n; left > 0;) {
        // Runs every thread once in a random order: a random start and a random step coprime to the count.
        unsigned i = random((unsigned)n), step = 2 * random((unsigned)n / 2) + 1;
        while (std::__gcd(step, (unsigned)n) != 1) step += 2;
        bool moved = false;
        for (size_t turn = 0; turn < n; turn++, i = (i + step) % (unsigned)n) {
            Fiber& f = fibers[i];
            if (!ready(f)) continue;
            moved = true;
            f.waiting = nullptr;
            now = &f, threadIdx = f.thread;
            scheduler.to(f.context);
            left -= f.done;
        }
        if (!moved) fail("a barrier or shuffle that not all threads reach");
    }
}

} // namespace

namespace shim {
unsigned char* shared() { return memory.data(); }
void barrier() { arrive_and_wait(block); }
const u64* gather(u64 value) {
    Barrier& warp = warps[threadIdx.x / 32];
    u64* values = warp.values[warp.generation % 2];
    values[threadIdx.x % 32] = value;
    arrive_and_wait(warp);
    return values;
}
u64 exchange(u64 value, int from) { return gather(value)[from]; }
void later(void* to, const void* from) {
    if ((u64)to % 16 || (u64)from % 16) fail("a copy of 16 bytes at another alignment");
    now->open.push_back(Copy{to, from});
}
void commit() {
    now->groups.push_back(now->open);
    now->open.clear();
}
void wait(int left) {
    while ((int)now->groups.size() > left) {
        for (const Copy& c : now->groups.front()) memcpy(c.to, c.from, 16);
        now->groups.erase(now->groups.begin());
    }
}
std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}
void add_kernel(const char* name, Kernel k) { kernels()[name] = k; }
} // namespace shim

// ---- the driver's interface --------------------------------------------------------------------------------------

namespace {

const int OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500;
const size_t TOTAL = (size_t)4 << 30;

std::mutex one;
std::map<u64, size_t> allocations;
size_t in_use = 0;

struct Function {
    std::string name;
    shim::Kernel kernel;
};
struct Step { // a step of a captured graph
    Function* f = nullptr;
    dim3 grid, threads;
    unsigned shared = 0;
    std::vector<std::vector<unsigned char>> arguments;
    void* to = nullptr;
    const void* from = nullptr; // null: fill with `value`
    size_t bytes = 0;
    int value = 0;
};
std::vector<Step>* capture = nullptr;

// Copies from pinned memory are delayed until later work on their stream, or on a stream that waits for it: bytes that change
// too early, or work that does not wait for them, give wrong results. (Kernels run at once: a copy that does not wait for one
// goes undetected.)
struct Stream {
    std::deque<Step> copies;
    u64 issued = 0, done = 0;
};
struct Event {
    void* stream = nullptr;
    u64 at = 0;
};
std::map<void*, Stream> streams;
std::map<const unsigned char*, size_t> pinned;

bool is_pinned(const void* p) {
    auto after = pinned.upper_bound((const unsigned char*)p);
    return after != pinned.begin() && (const unsigned char*)p < std::prev(after)->first + std::prev(after)->second;
}

int run(const Step& s, void** args);

void settle(void* stream, u64 upto) {
    Stream& s = streams[stream];
    for (; s.done < upto; s.done++) {
        run(s.copies.front(), nullptr);
        s.copies.pop_front();
    }
}

void settle(void* stream) { settle(stream, streams[stream].issued); }

void check_fences(const char* after) {
    for (auto [at, size] : allocations)
        for (size_t i = 0; i < GUARD; i++)
            if (((unsigned char*)at)[size + i] != FENCE) {
                running = after;
                fail("a write beyond an allocation of " + std::to_string(size) + " bytes");
            }
}

int run(const Step& s, void** args) {
    if (s.to) {
        if (s.from) memmove(s.to, s.from, s.bytes);
        else memset(s.to, s.value, s.bytes);
        return OK;
    }
    running = s.f->name.c_str();
    kernel = s.f->kernel;
    std::vector<void*> own;
    for (const auto& a : s.arguments) own.push_back((void*)a.data());
    arguments = args ? args : own.data();
    gridDim = s.grid, blockDim = s.threads;
    for (unsigned z = 0; z < s.grid.z; z++)
        for (unsigned y = 0; y < s.grid.y; y++)
            for (unsigned x = 0; x < s.grid.x; x++) {
                memory.assign(s.shared + GUARD, POISON);
                memset(memory.data() + s.shared, FENCE, GUARD);
                blockIdx = dim3{x, y, z};
                run_block();
                for (size_t i = 0; i < GUARD; i++)
                    if (memory[s.shared + i] != FENCE) fail("a write beyond the shared memory");
            }
    check_fences(running);
    return OK;
}

int issue(Step s, void** args, void* stream) {
    if (!capture) return settle(stream), run(s, args);
    if (s.f)
        for (int i = 0; i < s.f->kernel.n; i++)
            s.arguments.emplace_back((unsigned char*)args[i], (unsigned char*)args[i] + s.f->kernel.sizes[i]);
    capture->push_back(s);
    return OK;
}

} // namespace

#define API(name) extern "C" __attribute__((visibility("default"))) int name
#define LOCK std::lock_guard<std::mutex> lock(one)

API(cuInit)(unsigned) { return OK; }
API(cuDriverGetVersion)(int* v) { return *v = 12040, OK; }
API(cuDeviceGetCount)(int* n) { return *n = 1, OK; }
API(cuDeviceGet)(int* d, int) { return *d = 0, OK; }
API(cuDeviceGetName)(char* name, int n, int) { return snprintf(name, (size_t)n, "host threads"), OK; }
API(cuDeviceGetAttribute)(int* v, int attribute, int) {
    switch (attribute) {
        case 16: return *v = 4, OK;           // multiprocessors
        case 75: return *v = 8, OK;           // compute capability
        case 76: return *v = 0, OK;
        case 97: return *v = 99 << 10, OK;    // opt-in shared memory per block, as on consumer cards
        default: return INVALID;
    }
}
API(cuDevicePrimaryCtxRetain)(void** c, int) { return *c = (void*)1, OK; }
API(cuCtxSetCurrent)(void*) { return OK; }
API(cuMemGetInfo_v2)(size_t* free, size_t* total) { LOCK; return *free = TOTAL - in_use, *total = TOTAL, OK; }
API(cuMemAlloc_v2)(u64* p, size_t n) {
    LOCK;
    if (n == 0) return INVALID;
    if (in_use + n > TOTAL) return OUT_OF_MEMORY;
    unsigned char* at = (unsigned char*)aligned_alloc(256, (n + GUARD + 255) / 256 * 256);
    memset(at, POISON, n);
    memset(at + n, FENCE, GUARD);
    allocations[*p = (u64)at] = n;
    in_use += n;
    return OK;
}
API(cuMemFree_v2)(u64 p) {
    LOCK;
    auto found = allocations.find(p);
    if (found == allocations.end()) return INVALID;
    for (auto& [stream, s] : streams) settle(stream);
    check_fences("a free");
    in_use -= found->second;
    memset((void*)p, POISON, found->second);
    free((void*)p);
    allocations.erase(found);
    return OK;
}
API(cuMemHostAlloc)(void** p, size_t n, unsigned) {
    LOCK;
    *p = malloc(n);
    pinned[(unsigned char*)*p] = n;
    return OK;
}
API(cuMemFreeHost)(void* p) {
    LOCK;
    for (auto& [stream, s] : streams) settle(stream);
    pinned.erase((unsigned char*)p);
    return free(p), OK;
}
API(cuMemcpyHtoDAsync_v2)(u64 to, const void* from, size_t n, void* stream) {
    LOCK;
    if (capture) fail("a copy from the host while capturing");
    if (!is_pinned(from)) return settle(stream), memcpy((void*)to, from, n), OK;
    Step s;
    s.to = (void*)to, s.from = from, s.bytes = n;
    streams[stream].copies.push_back(s);
    streams[stream].issued++;
    return OK;
}
API(cuMemcpyDtoHAsync_v2)(void* to, u64 from, size_t n, void* stream) {
    LOCK;
    if (capture) fail("a copy to the host while capturing");
    settle(stream);
    return memcpy(to, (void*)from, n), OK;
}
API(cuMemcpyDtoDAsync_v2)(u64 to, u64 from, size_t n, void* stream) {
    LOCK;
    Step s;
    s.to = (void*)to, s.from = (void*)from, s.bytes = n;
    return issue(s, nullptr, stream);
}
API(cuMemsetD8Async)(u64 to, unsigned char value, size_t n, void* stream) {
    LOCK;
    Step s;
    s.to = (void*)to, s.bytes = n, s.value = value;
    return issue(s, nullptr, stream);
}
API(cuStreamCreate)(void** s, unsigned) { LOCK; static u64 made = 0; return *s = (void*)++made, OK; }
API(cuStreamSynchronize)(void* stream) { LOCK; return settle(stream), OK; }
API(cuStreamWaitEvent)(void*, void* event, unsigned) {
    LOCK;
    Event* e = (Event*)event;
    return settle(e->stream, e->at), OK;
}
API(cuModuleLoadDataEx)(void** m, const void* code, unsigned n, int* options, void** values) {
    if (n != 2 || options[0] != 5 || options[1] != 6) return INVALID;
    if (strstr((const char*)code, ".version")) return *m = (void*)1, OK;
    snprintf((char*)values[0], (size_t)values[1], "no .version");
    return INVALID;
}
API(cuModuleGetFunction)(void** f, void*, const char* name) {
    auto found = shim::kernels().find(name);
    if (found == shim::kernels().end()) return NOT_FOUND;
    *f = new Function{name, found->second};
    return OK;
}
API(cuFuncSetAttribute)(void*, int, int) { return OK; }
API(cuLaunchKernel)(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                    void* stream, void** args, void**) {
    LOCK;
    u64 threads = (u64)bx * by * bz;
    if (!gx || !gy || !gz || gx > 0x7fffffff || gy > 65535 || gz > 65535) return INVALID;
    if (!threads || threads > 1024 || threads % 32 || by * bz != 1 || shared > 99 << 10) return INVALID;
    Step s;
    s.f = (Function*)f, s.grid = dim3{gx, gy, gz}, s.threads = dim3{bx, by, bz}, s.shared = shared;
    return issue(s, args, stream);
}
API(cuEventCreate)(void** e, unsigned) { return *e = new Event, OK; }
API(cuEventDestroy_v2)(void* e) { return delete (Event*)e, OK; }
API(cuEventRecord)(void* event, void* stream) {
    LOCK;
    return *(Event*)event = Event{stream, streams[stream].issued}, OK;
}
API(cuEventSynchronize)(void* event) {
    LOCK;
    Event* e = (Event*)event;
    return settle(e->stream, e->at), OK;
}
API(cuEventElapsedTime)(float* ms, void*, void*) { return *ms = 1, OK; }
API(cuEventElapsedTime_v2)(float* ms, void*, void*) { return *ms = 1, OK; }
API(cuGetErrorString)(int code, const char** text) {
    *text = code == OUT_OF_MEMORY ? "out of memory" : code == NOT_FOUND ? "named symbol not found" : "invalid argument";
    return OK;
}
API(cuStreamBeginCapture_v2)(void*, int) { LOCK; return capture = new std::vector<Step>, OK; }
API(cuStreamEndCapture)(void*, void** graph) { LOCK; return *graph = capture, capture = nullptr, OK; }
API(cuGraphInstantiateWithFlags)(void** exec, void* graph, unsigned long long) {
    return *exec = new std::vector<Step>(*(std::vector<Step>*)graph), OK;
}
API(cuGraphLaunch)(void* exec, void* stream) {
    LOCK;
    settle(stream);
    for (const Step& s : *(std::vector<Step>*)exec) run(s, nullptr);
    return OK;
}
API(cuGraphDestroy)(void* graph) { return delete (std::vector<Step>*)graph, OK; }
API(cuGraphExecDestroy)(void* exec) { return delete (std::vector<Step>*)exec, OK; }
