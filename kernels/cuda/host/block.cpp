// Runs launches: blocks one after the other, the threads of a block as fibers, both in random order.
//
// Shuffles and barriers switch between fibers; one that not all threads reach aborts the process. Asynchronous copies complete
// only when waited for. A launch's order follows from the seed, its name and its sizes, so that a failure repeats whatever ran
// before. Next: streams.cpp.
#include "emulator.h"
#include <chrono>
#include <numeric>
#include <unistd.h>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

#if defined(__x86_64__)
extern "C" __attribute__((visibility("hidden"))) void shim_switch(void** from, void* to);
asm(R"(
.text
.globl shim_switch
.hidden shim_switch
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
} // namespace
} // namespace emulator
#include <ucontext.h>
namespace emulator {
namespace {
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

const size_t STACK = 64 << 10;

struct Copy {
    void* to;
    const void* from; // zeros if null
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
Random order;
std::string kernel_name;
shim::Kernel kernel;
void** arguments;

void entry() {
    kernel.call(kernel.f, arguments);
    end_thread();
    now->done = true;
    now->context.to(scheduler);
    abort();
}

void resume(Fiber& f) {
    now = &f, threadIdx = f.thread;
    set_thread(f.thread.x);
}

// Waits until all threads have arrived at a barrier; the last one wakes the others. Returns true in the last.
void arrive_and_wait(Barrier& m, void (*all_arrived)()) {
    u64 generation = m.generation;
    if (++m.arrived == m.size) {
        m.arrived = 0;
        m.generation++;
        all_arrived();
    }
    if (m.generation != generation && order.below(2)) return; // at random, the last thread continues or yields to the others
    Fiber& own = *now;
    own.waiting = &m, own.generation = generation;
    own.context.to(scheduler);
    resume(own);
}

bool ready(const Fiber& f) {
    return !f.done && (!f.waiting || ((const Barrier*)f.waiting)->generation != f.generation);
}

void run_block() {
    size_t n = blockDim.x;
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
        unsigned i = order.below((unsigned)n), step = 2 * order.below((unsigned)n / 2) + 1;
        while (std::gcd(step, (unsigned)n) != 1) step += 2;
        bool moved = false;
        for (size_t turn = 0; turn < n; turn++, i = (i + step) % (unsigned)n) {
            Fiber& f = fibers[i];
            if (!ready(f)) continue;
            moved = true;
            f.waiting = nullptr;
            resume(f);
            scheduler.to(f.context);
            left -= f.done;
        }
        if (!moved) fail("a barrier or shuffle that not all threads reach");
    }
}

u64 hash(const std::string& text) {
    u64 h = 14695981039346656037u;
    for (unsigned char c : text) h = (h ^ c) * 1099511628211u;
    return h;
}

const u64* gather_values(u64 value, void (*all_arrived)()) {
    Barrier& warp = warps[threadIdx.x / 32];
    u64* values = warp.values[warp.generation % 2];
    values[threadIdx.x % 32] = value;
    arrive_and_wait(warp, all_arrived);
    return values;
}

} // namespace

u64 seed() {
    static const u64 value = [] {
        const char* given = getenv("KIMI_EMULATOR_SEED");
        u64 time = (u64)std::chrono::steady_clock::now().time_since_epoch().count();
        return given ? strtoull(given, nullptr, 0) : (time ^ (u64)getpid() << 20) % 1000000007;
    }();
    return value;
}

std::string running() {
    auto text = [](dim3 d) { return std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z); };
    if (!now) return kernel_name;
    return kernel_name + ", block " + text(blockIdx) + " of " + text(gridDim) + ", thread " + std::to_string(threadIdx.x) +
           " of " + std::to_string(blockDim.x);
}

void run_launch(const std::string& name, const shim::Kernel& k, dim3 grid, dim3 threads, size_t shared, bool programmatic, void** args) {
    kernel_name = name, kernel = k, arguments = args;
    gridDim = grid, blockDim = threads;
    u64 sizes = grid.x + 3 * (u64)grid.y + 5 * (u64)grid.z + 7 * (u64)threads.x + 11 * (u64)shared;
    order = Random{hash(name) ^ sizes * 0x9e3779b97f4a7c15u ^ seed()};
    std::vector<unsigned> blocks((u64)grid.x * grid.y * grid.z);
    std::iota(blocks.begin(), blocks.end(), 0);
    for (size_t i = blocks.size(); i > 1; i--) std::swap(blocks[i - 1], blocks[order.below((unsigned)i)]);
    begin_launch(programmatic);
    for (unsigned n : blocks) {
        blockIdx = dim3{n % grid.x, n / grid.x % grid.y, n / grid.x / grid.y};
        begin_block(shared);
        run_block();
    }
    now = nullptr, kernel_name.clear();
}

} // namespace emulator

namespace shim {
using namespace emulator;

void barrier() { arrive_and_wait(block, begin_interval); }
const u64* gather(u64 value) {
    return gather_values(value, [] { begin_warp_step(threadIdx.x / 32, false); });
}
u64 exchange(u64 value, int from) { return gather(value)[from]; }
void warp_barrier() {
    gather_values(0, [] { begin_warp_step(threadIdx.x / 32, true); });
}
void later(void* to, const void* from) {
    in_flight(to, 16);
    if (from) access(from, 16, READ);
    now->open.push_back(Copy{to, from});
}
void commit() {
    now->groups.push_back(now->open);
    now->open.clear();
}
void wait(int left) {
    while ((int)now->groups.size() > left) {
        for (const Copy& c : now->groups.front()) {
            if (c.from) access(c.from, 16, READ);
            access(c.to, 16, WRITE);
            if (c.from) memcpy(c.to, c.from, 16);
            else memset(c.to, 0, 16);
        }
        now->groups.erase(now->groups.begin());
    }
}
std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}
void add_kernel(const char* name, Kernel k) { kernels()[name] = k; }
} // namespace shim
