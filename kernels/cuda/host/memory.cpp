// Device and shared memory with a shadow, which finds what compute-sanitizer finds on a card.
//
// The kernels are compiled with the compiler's thread sanitizer, whose calls before each access arrive here instead of in its
// run-time library. A state per byte finds accesses outside allocations and reads of unwritten memory. A record of the last
// write and the last reads of each word finds races: of threads of a block between two barriers, of lanes between two
// __syncwarp, and of blocks of a launch, except where a fence and a counter order them; and __ldg of memory that the same
// launch writes. A programmatic launch may begin before earlier ones end: until a thread waits, it may not read what they
// wrote, nor write what they read or wrote, and it may never read that by __ldg. Bytes that several threads share within a word are tracked as one, which can miss a race but reports none
// that does not exist. Next: block.cpp.
#include "emulator.h"
#include <map>
#include <sys/mman.h>

namespace emulator {
namespace {

const size_t SHARED_SPAN = 1 << 20;               // shared memory, then device memory, in one region
const size_t SPAN = SHARED_SPAN + 4 * TOTAL;      // addresses are reused after three times the device's memory
const size_t GAP = 4096, ALIGNMENT = 256;         // between allocations
const unsigned WARP = 32, MAX_THREADS = 1024;
const unsigned OF_WARP = 1024, OF_BLOCK = 2047;   // "thread" of an access by several: 1024 + warp, or of several warps
const unsigned ALL_BYTES = 15;

enum State : u8 { OUTSIDE, UNWRITTEN, WRITTEN };

// The last accesses of one kind to a word.
struct Access {
    u32 interval;    // between two barriers of a block; numbers rise over all blocks and launches
    u16 thread : 11; // or several: OF_WARP, OF_BLOCK
    u16 bytes : 4;
    u16 atomic : 1;
    u16 step : 14;     // of the warp: a write between two __syncwarp, a read between two warp-wide operations
    u16 by_others : 1; // another block of the launch did so before
    u16 constant : 1;  // through __ldg, in this launch
};
struct Word {
    Access write, read;
};

template <class T> T* reserve(size_t n) {
    void* p = mmap(nullptr, n * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail("no address space");
    madvise(p, n * sizeof(T), MADV_NOHUGEPAGE);
    madvise(p, n * sizeof(T), MADV_DONTDUMP);
    return (T*)p;
}

u8* const region = reserve<u8>(SPAN);
u8* const states = reserve<u8>(SPAN);
Word* const words = reserve<Word>(SPAN / 4);

std::map<size_t, size_t> allocations; // offset in the region, bytes
size_t in_use = 0, cursor = SHARED_SPAN;

// The running launch.
bool is_running = false;
u32 interval = 0, launch_first = 0, block_first = 0;
bool is_programmatic = false;
u32 overlap_first = 0; // the launches since then may overlap with the running one
bool waited[MAX_THREADS]; // for them
size_t shared_bytes = 0;
unsigned thread = 0;
u16 steps[MAX_THREADS / WARP], turns[MAX_THREADS / WARP]; // __syncwarp, and all warp-wide operations so far
struct Run { // of a block of the launch
    u32 first;
    bool released; // its writes are visible to threads that read its counter later: those before this
    u32 release_interval;
    unsigned release_thread, release_step;
};
std::vector<Run> runs;
bool fenced[MAX_THREADS], counted[MAX_THREADS]; // a fence after its last write; an atomic operation
bool acquired;
u32 acquire_interval;
unsigned acquire_thread;

std::string place(size_t at) {
    if (at < SHARED_SPAN) return " at byte " + std::to_string(at) + " of " + std::to_string(shared_bytes) + " of shared memory";
    auto next = allocations.upper_bound(at);
    std::string text;
    if (next != allocations.begin()) {
        auto [start, bytes] = *std::prev(next);
        text = " at byte " + std::to_string(at - start) + " of an allocation of " + std::to_string(bytes);
    }
    if (next != allocations.end()) text += ", " + std::to_string(next->first - at) + " bytes before the next";
    return text;
}

[[noreturn]] void report(const char* what, size_t at, size_t bytes) {
    fail(std::string(what) + " (" + std::to_string(bytes) + " bytes)" + place(at));
}

// Whether this thread has seen the counter of the block that made the access, after its fence.
bool is_released(const Access& a) {
    if (!acquired || (interval == acquire_interval && thread != acquire_thread)) return false;
    if (a.interval >= block_first) return true; // by several blocks: which is unknown
    auto after = [](u32 i, const Run& run) { return i < run.first; };
    const Run& run = *std::prev(std::upper_bound(runs.begin(), runs.end(), a.interval, after));
    if (!run.released || a.interval > run.release_interval) return false;
    bool of_warp = a.thread < OF_WARP && a.thread / WARP == run.release_thread / WARP && a.step != run.release_step;
    return a.interval < run.release_interval || a.thread == run.release_thread || of_warp;
}

const char* const BETWEEN_BLOCKS = "race between blocks of a launch";
const char* const BETWEEN_WARPS = "race between two warps without a barrier";
const char* const BETWEEN_LANES = "race between two lanes without __syncwarp";

// The warp's present step. A shuffle orders reads before later writes, because their values go into it, but no writes.
inline unsigned step_of(bool write) { return (write ? steps : turns)[thread / WARP] % (1 << 14); }

// What keeps an access since `oldest` of these bytes from being ordered before one by this thread; null if it is.
const char* conflict(const Access& a, bool write, unsigned bytes) {
    if (!(a.bytes & bytes)) return nullptr;
    bool own = a.interval == interval && a.thread == thread;
    if (own && a.atomic) return nullptr; // to one place all later accesses are ordered after it
    if ((a.interval < block_first || a.by_others) && !is_released(a)) return BETWEEN_BLOCKS;
    if (a.interval != interval || own) return nullptr;
    unsigned warp = thread / WARP;
    bool step_passed = a.step != step_of(write);
    if (a.thread < OF_WARP) return a.thread / WARP != warp ? BETWEEN_WARPS : step_passed ? nullptr : BETWEEN_LANES;
    // Of a part of the word it is not known which of several threads had it.
    if (a.thread == OF_BLOCK) return bytes == ALL_BYTES ? BETWEEN_WARPS : nullptr;
    if (a.thread - OF_WARP != warp) return BETWEEN_WARPS;
    return bytes != ALL_BYTES || step_passed ? nullptr : BETWEEN_LANES;
}

inline void record(Access& a, bool write, unsigned bytes, bool atomic, bool constant, u32 oldest) {
    unsigned warp = thread / WARP, step = step_of(write);
    Access own = {interval, (u16)thread, (u16)bytes, (u16)atomic, (u16)step, 0, constant};
    if (a.interval >= oldest) {
        own.by_others = (a.interval < block_first || a.by_others) && a.bytes & bytes;
        own.constant |= a.constant;
        if (a.interval == interval) {
            bool same_warp = a.thread / WARP == warp || a.thread == OF_WARP + warp;
            if (a.thread == thread || !same_warp || a.step == step) own.bytes |= a.bytes, own.atomic &= a.atomic;
            if (!same_warp) own.thread = OF_BLOCK;
            else if (a.thread != thread && a.step == step) own.thread = OF_WARP + warp;
        }
    }
    a = own;
}

// Whether a launch that may overlap with the running one made the access to these bytes.
inline bool is_overlapping(const Access& a, unsigned bytes) {
    return a.interval >= overlap_first && a.interval < launch_first && a.bytes & bytes;
}

// Checks an access of global memory by a programmatic launch.
inline void check_overlap(const Word& word, unsigned bytes, bool write, bool constant, size_t at) {
    if (constant && is_overlapping(word.write, bytes)) report("__ldg of memory that an overlapping launch writes", at, 4);
    if (waited[thread]) return;
    if (is_overlapping(word.write, bytes)) report("access of what an earlier launch writes before griddepcontrol.wait", at, 4);
    if (write && is_overlapping(word.read, bytes)) report("write of what an earlier launch reads before griddepcontrol.wait", at, 4);
}

inline void check_races(Word& word, unsigned bytes, shim::Access kind, size_t at, u32 oldest) {
    bool write = kind == shim::WRITE || kind == shim::ATOMIC, atomic = kind == shim::ATOMIC, constant = kind == shim::CONSTANT;
    if (is_programmatic && at >= SHARED_SPAN) check_overlap(word, bytes, write, constant, at);
    if (word.write.interval >= oldest && !(atomic && word.write.atomic))
        if (const char* why = conflict(word.write, true, bytes)) report(why, at, 4);
    if (write && word.read.interval >= oldest)
        if (const char* why = conflict(word.read, false, bytes)) report(why, at, 4);
    const Access& other = write ? word.read : word.write;
    if ((constant || (write && other.constant)) && other.interval >= oldest && other.bytes & bytes)
        report("__ldg of memory that the launch writes", at, 4);
    record(write ? word.write : word.read, write, bytes, atomic, constant, oldest);
}

// Whether all bytes have been written.
inline bool is_written(size_t at, size_t n) {
    const u64 written = 0x0202020202020202;
    u64 state = written;
    for (; n > 8; n -= 8, at += 8) {
        memcpy(&state, states + at, 8);
        if (state != written) return false;
    }
    memcpy(&state, states + at, n);
    return state == written;
}
static_assert(WRITTEN == 2);

__attribute__((noinline)) void check_states(size_t at, size_t n, bool write) {
    for (size_t i = 0; i < n; i++) {
        if (states[at + i] == OUTSIDE) report(write ? "write out of bounds" : "read out of bounds", at, n);
        if (!write && states[at + i] == UNWRITTEN) report("read of unwritten memory", at, n);
        if (write) states[at + i] = WRITTEN;
    }
}

// Checks an access of the running thread; those beyond the region are of its stack, the launch's arguments and tables.
template <shim::Access kind> inline void touch(const void* p, size_t n, bool aligned) {
    if (!emulator_checks) return; // stores of kernels leave no trace, so that memory would seem unwritten
    size_t at = (size_t)p - (size_t)region;
    if (at >= SPAN) return;
    if (aligned && at % n) report("misaligned access", at, n);
    const bool write = kind == shim::WRITE;
    if (!is_written(at, n)) check_states(at, n, write);
    bool shared = at < SHARED_SPAN;
    if (write && !shared) fenced[thread] = false;
    u32 oldest = shared ? block_first : launch_first;
    if (aligned && n >= 4) {
        for (size_t i = 0; i < n / 4; i++) check_races(words[at / 4 + i], ALL_BYTES, kind, at, oldest);
        return;
    }
    for (size_t word = at / 4; word <= (at + n - 1) / 4; word++) {
        unsigned bytes = ALL_BYTES;
        if (word * 4 < at) bytes &= ALL_BYTES << (at - word * 4);
        if (word * 4 + 4 > at + n) bytes &= ALL_BYTES >> (word * 4 + 4 - at - n);
        check_races(words[word], bytes, kind, at, oldest);
    }
}

size_t offset_of(const void* p, size_t bytes, const char* what) {
    size_t at = (size_t)p - (size_t)region;
    for (size_t i = 0; i < bytes; i++)
        if (states[at + i] == OUTSIDE) report(what, at + i, bytes);
    return at;
}

// Makes whole pages zero and returns them.
void discard(void* p, size_t bytes) {
    size_t page = 4096, start = ((size_t)p + page - 1) / page * page, end = ((size_t)p + bytes) / page * page;
    if (start < end) madvise((void*)start, end - start, MADV_DONTNEED);
}

} // namespace

u64 allocate(size_t bytes) {
    if (bytes > TOTAL - in_use) return 0;
    auto up = [](size_t n) { return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; };
    for (int turn = 0; turn < 2; turn++, cursor = SHARED_SPAN) {
        size_t at = up(cursor + GAP);
        auto next = allocations.lower_bound(at);
        if (next != allocations.begin()) at = std::max(at, up(std::prev(next)->first + std::prev(next)->second + GAP));
        for (; next != allocations.end() && at + bytes + GAP > next->first; ++next) at = up(next->first + next->second + GAP);
        if (at + bytes + GAP > SPAN) continue;
        memset(region + at, POISON, bytes);
        memset(states + at, UNWRITTEN, bytes);
        allocations[at] = bytes;
        in_use += bytes;
        cursor = at + bytes;
        return (u64)(region + at);
    }
    return 0;
}

bool release(u64 p) {
    size_t at = p - (u64)region;
    auto found = allocations.find(at);
    if (found == allocations.end()) return false;
    size_t bytes = found->second;
    memset(states + at, OUTSIDE, bytes);
    discard(region + at, bytes);
    discard(states + at, bytes);
    discard(words + at / 4, bytes / 4 * sizeof(Word));
    in_use -= bytes;
    allocations.erase(found);
    return true;
}

size_t bytes_in_use() { return in_use; }

bool is_device(const void* p) { return (size_t)p - (size_t)region < SPAN; }

void copy_range(void* to, const void* from, size_t bytes) {
    const u8* source = is_device(from) ? states + offset_of(from, bytes, "copy from outside an allocation") : nullptr;
    u8* target = is_device(to) ? states + offset_of(to, bytes, "copy to outside an allocation") : nullptr;
    if (target && source) memmove(target, source, bytes);
    else if (target) memset(target, WRITTEN, bytes);
    memmove(to, from, bytes);
}

void fill_range(void* to, int value, size_t bytes) {
    size_t at = (size_t)to - (size_t)region;
    auto found = allocations.find(at);
    if (value == POISON && found != allocations.end() && bytes <= found->second) {
        memset(states + at, UNWRITTEN, bytes);
        memset(states + at + bytes, OUTSIDE, found->second - bytes);
    } else {
        offset_of(to, bytes, "fill outside an allocation");
        memset(states + at, value == POISON ? UNWRITTEN : WRITTEN, bytes);
    }
    memset(to, value, bytes);
}

void begin_launch(bool programmatic) {
    launch_first = ++interval;
    runs.clear();
    is_programmatic = programmatic;
    if (!programmatic) overlap_first = launch_first;
}

void begin_block(size_t bytes) {
    memset(states, OUTSIDE, SHARED_LIMIT);
    memset(states, UNWRITTEN, bytes);
    memset(region, POISON, bytes);
    shared_bytes = bytes;
    block_first = ++interval;
    runs.push_back(Run{block_first, false, 0, 0, 0});
    memset(fenced, 0, sizeof fenced);
    memset(counted, 0, sizeof counted);
    memset(waited, 0, sizeof waited);
    memset(steps, 0, sizeof steps);
    memset(turns, 0, sizeof turns);
    acquired = false;
}

void begin_interval() { interval++; }
void set_thread(unsigned t) { thread = t; }
void end_thread() {
    if (is_programmatic && !waited[thread]) fail("a thread that ends without griddepcontrol.wait");
}
void begin_warp_step(unsigned warp, bool orders_writes) {
    turns[warp]++;
    steps[warp] += orders_writes;
}

} // namespace emulator

namespace shim {
using namespace emulator;

unsigned char* shared() { return region; }

void access(const void* p, size_t bytes, Access kind) {
    switch (kind) {
        case READ: return touch<READ>(p, bytes, true);
        case WRITE: return touch<WRITE>(p, bytes, true);
        case ATOMIC: return touch<ATOMIC>(p, bytes, true);
        case CONSTANT: return touch<CONSTANT>(p, bytes, true);
    }
}

void in_flight(void* to, size_t bytes) {
    touch<WRITE>(to, bytes, true);
    size_t at = (size_t)to - (size_t)region;
    if (at + bytes > SHARED_SPAN) report("asynchronous copy to other than shared memory", at, bytes);
    memset(states + at, UNWRITTEN, bytes);
}

void matrix_row(const void* row) {
    size_t at = (size_t)row - (size_t)region;
    if (at >= SHARED_SPAN) fail("ldmatrix of other than shared memory");
    touch<READ>(row, 16, true);
}

// A fence publishes this thread's earlier writes and, after an atomic operation, lets it see those of others.
void fence() {
    fenced[thread] = true;
    if (counted[thread]) acquired = true, acquire_interval = interval, acquire_thread = thread;
}

void wait_dependencies() { waited[thread] = true; }

// A hint, which is no read; but an address outside an allocation may be invalid.
void prefetch(const void* p, size_t bytes) {
    size_t at = offset_of(p, bytes, "prefetch from outside an allocation");
    if (at % 16 || bytes % 16) report("misaligned prefetch", at, bytes);
}

int atomic_add(int* p, int v) {
    bool was_fenced = fenced[thread];
    touch<ATOMIC>(p, sizeof *p, true);
    counted[thread] = true;
    if (was_fenced) {
        Run& run = runs.back();
        run.released = true, run.release_interval = interval;
        run.release_thread = thread, run.release_step = step_of(true);
    }
    int old = *p;
    *p = old + v;
    return old;
}
} // namespace shim

// ---- calls of compiled kernels -----------------------------------------------------------------------------------

using namespace emulator;

#define HOOKS(n)                                                                                      \
    extern "C" void __tsan_read##n(void* p) { touch<shim::READ>(p, n, true); }                        \
    extern "C" void __tsan_write##n(void* p) { touch<shim::WRITE>(p, n, true); }                      \
    extern "C" void __tsan_unaligned_read##n(void* p) { touch<shim::READ>(p, n, false); }             \
    extern "C" void __tsan_unaligned_write##n(void* p) { touch<shim::WRITE>(p, n, false); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
extern "C" void __tsan_read_range(void* p, size_t n) { touch<shim::READ>(p, n, false); }
extern "C" void __tsan_write_range(void* p, size_t n) { touch<shim::WRITE>(p, n, false); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}

// The undefined-behaviour sanitizer's report of a pointer that is misaligned for its type, with the place in the source.
struct SourceLocation {
    const char* file;
    u32 line, column;
};
extern "C" void __ubsan_handle_type_mismatch_v1(SourceLocation* at, void*) {
    fail(std::string("misaligned access in ") + at->file + ":" + std::to_string(at->line));
}
