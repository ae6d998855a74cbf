// What the emulator's parts share; kernels see shim.h only.
//
// memory.cpp has device and shared memory with their shadow, block.cpp runs a block with a fiber per thread, streams.cpp orders
// work, faults.cpp plants faults of the device, and driver.cpp is the driver's interface. Next: memory.cpp.
#pragma once
#define EMULATOR_PART
#include "kernels.h"
#include <map>
#include <string>
#include <vector>

// Whether the kernels were compiled with the hooks of memory.cpp (modules.cpp).
extern "C" const bool emulator_checks;

namespace emulator {

const size_t TOTAL = (size_t)4 << 30;      // bytes of device memory
const size_t SHARED_LIMIT = 99 << 10;      // of a block with opt-in, as on consumer cards
const size_t SHARED_DEFAULT = 48 << 10;    // without
const unsigned char POISON = 0xff;         // NaN bits: unwritten memory

// Aborts the process with what went wrong, the kernel and thread at fault, and the seed.
[[noreturn]] void fail(const std::string& what);

// The seed of all random orders: KIMI_EMULATOR_SEED, or a new one per process.
u64 seed();

// A linear congruential generator.
struct Random {
    u64 state;
    unsigned below(unsigned n) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (unsigned)((state >> 33) % n);
    }
};

// ---- memory.cpp --------------------------------------------------------------------------------------------------

// Allocates unwritten device memory; 0 if the device is full. Addresses are not reused soon.
u64 allocate(size_t bytes);
// False if no allocation begins there.
bool release(u64 at);
size_t bytes_in_use();

// Whole ranges, for copies and fills. A fill with POISON makes bytes unwritten; from the start of an allocation it also
// makes those behind it inaccessible, so that the pool's buffers end where their users' sizes do.
bool is_device(const void* p);
void copy_range(void* to, const void* from, size_t bytes);
void fill_range(void* to, int value, size_t bytes);

// A launch or block begins: earlier accesses are ordered before its own, except that a programmatic launch may overlap with
// those back to the last one that is not. `bytes` of shared memory are unwritten.
void begin_launch(bool programmatic);
void begin_block(size_t bytes);
// All threads of the block have met at a barrier.
void begin_interval();
// The thread and warp whose accesses follow, and its end.
void set_thread(unsigned thread);
void end_thread();
// The lanes of a warp have met at __syncwarp, or at a shuffle or the like, which does not order writes.
void begin_warp_step(unsigned warp, bool orders_writes);

// ---- block.cpp ---------------------------------------------------------------------------------------------------

// Runs a kernel's blocks, one after the other in random order.
void run_launch(const std::string& name, const shim::Kernel& kernel, dim3 grid, dim3 threads, size_t shared, bool programmatic, void** arguments);
// The kernel, block and thread that run; empty between launches.
std::string running();

// ---- faults.cpp --------------------------------------------------------------------------------------------------

// The result of a call that launches a kernel: 0, or the planted error.
int launch_error(const std::string& kernel);
int allocation_error();
// Whether a launch runs: not where it is left out or ends all work.
bool starts(const std::string& kernel);
// Whether a kernel never ends: what waits for it waits forever.
bool is_hung();
// The result of every call after a fault that ends all work: 0 without one. And that of a query.
int pending_error();
int query_result();

// ---- streams.cpp -------------------------------------------------------------------------------------------------

struct Function {
    std::string name;
    shim::Kernel kernel;
    size_t opted_in; // bytes of shared memory
    bool waits;      // for overlapping launches, in the code that was loaded
};

// A unit of work: a launch, a copy, a fill, or a wait for another stream.
struct Work {
    enum { LAUNCH, COPY, FILL, WAIT } kind;
    const Function* f;
    dim3 grid, threads;
    size_t shared;
    bool programmatic; // may overlap with the launch before it
    std::vector<std::vector<unsigned char>> arguments;
    void* to;
    const void* from;
    size_t bytes;
    int value;
    void* stream; // to wait for, up to its work number `number`
    u64 number;
};

// A point in the work of a stream.
struct Event {
    void* stream = nullptr;
    u64 number = 0;
    bool captured = false; // within the capture of a graph
};

// Adds work to a stream, or to the graph that it captures. It runs at a random time until it is waited for.
void issue(void* stream, Work work);
// Runs all work of a stream, and of all streams.
void finish(void* stream);
void finish_all();
void finish(const Event& event);
Event record(void* stream);
void wait_for(void* stream, const Event& event);
// Whether work that is still to run reads or writes these bytes.
bool is_pending(const void* p, size_t bytes);

// Graphs are lists of work.
using Graph = std::vector<Work>;
void begin_capture(void* stream);
Graph end_capture(void* stream);
bool is_capturing(void* stream);

} // namespace emulator

namespace shim {
std::map<std::string, Kernel>& kernels(); // by name
} // namespace shim
