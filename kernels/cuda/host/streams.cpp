// Orders work as a device may: each stream runs in order, and nothing else is promised.
//
// Kernels mostly run late, when something waits for them, and copies early: a copy that does not wait for the kernel that still
// reads its target, or a kernel that does not wait for its copy, gives wrong results. Next: driver.cpp.
#include "emulator.h"
#include <deque>

namespace emulator {
namespace {

struct Stream {
    std::deque<Work> queue;
    u64 issued = 0, done = 0;
    bool after_launch = false; // the last work is a launch
};
std::map<void*, Stream> streams;
Random chance{seed()};

std::map<void*, Graph> captures; // by stream

void run(Work& w);

void advance(void* stream, u64 number) {
    Stream& s = streams[stream];
    while (s.done < number && !is_hung()) {
        Work w = std::move(s.queue.front());
        s.queue.pop_front();
        s.done++;
        run(w);
    }
}

void run(Work& w) {
    switch (w.kind) {
        case Work::WAIT: return advance(w.stream, w.number);
        case Work::COPY: return copy_range(w.to, w.from, w.bytes);
        case Work::FILL: return fill_range(w.to, w.value, w.bytes);
        case Work::LAUNCH: break;
    }
    if (!starts(w.f->name)) return;
    std::vector<void*> arguments;
    for (auto& a : w.arguments) arguments.push_back(a.data());
    run_launch(w.f->name, w.f->kernel, w.grid, w.threads, w.shared, w.programmatic, arguments.data());
}

} // namespace

void issue(void* stream, Work w) {
    if (is_capturing(stream)) {
        if (w.kind == Work::WAIT) fail("a wait for another stream in a capture");
        Graph& graph = captures[stream];
        if (w.programmatic && (graph.empty() || graph.back().kind != Work::LAUNCH))
            fail("a programmatic launch that follows no launch in a capture");
        return graph.push_back(std::move(w));
    }
    bool launch = w.kind == Work::LAUNCH;
    Stream& s = streams[stream];
    if (!s.after_launch) w.programmatic = false; // other work has ended before a launch begins
    bool poison = w.kind == Work::FILL && w.value == POISON; // of tests, which check launches as if it were not there
    s.after_launch = launch || (s.after_launch && poison);
    s.queue.push_back(std::move(w));
    s.issued++;
    if (chance.below(launch ? 16 : 2) == 0) finish(stream);
}

void finish(void* stream) {
    if (is_capturing(stream)) fail("a wait for a stream that captures");
    advance(stream, streams[stream].issued);
}
void finish_all() {
    for (auto& [stream, s] : streams) advance(stream, s.issued);
}
void finish(const Event& e) {
    if (e.captured) fail("a wait for an event of a capture");
    advance(e.stream, e.number);
}
Event record(void* stream) { return Event{stream, streams[stream].issued, is_capturing(stream)}; }
void wait_for(void* stream, const Event& e) {
    if (e.captured) fail("a wait for an event of a capture");
    Work w{};
    w.kind = Work::WAIT, w.stream = e.stream, w.number = e.number;
    issue(stream, std::move(w));
}

bool is_pending(const void* p, size_t bytes) {
    auto in = [&](const void* q) { return q >= p && q < (const char*)p + bytes; };
    for (auto& [stream, s] : streams)
        for (auto& w : s.queue)
            if (w.kind == Work::COPY && (in(w.to) || in(w.from))) return true;
    return false;
}

void begin_capture(void* stream) {
    if (!captures.try_emplace(stream).second) fail("a capture within a capture");
}
Graph end_capture(void* stream) {
    auto found = captures.find(stream);
    if (found == captures.end()) fail("the end of a capture that did not begin");
    Graph graph = std::move(found->second);
    captures.erase(found);
    return graph;
}
bool is_capturing(void* stream) { return captures.count(stream); }

} // namespace emulator
