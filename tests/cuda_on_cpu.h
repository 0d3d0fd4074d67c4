// CUDA on a CPU, in the place of lit_gpt/ops/primitives.cuh: a block's threads take turns, each until it waits for the
// others, and blocks run one after the other. Copies are there when they are waited for, and not before.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

using std::min;

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct Place3 { unsigned x, y, z; };
Place3 threadIdx, blockIdx, gridDim;
float4 shared_memory[1 << 14];

struct Barrier {
    int arrived = 0;
    long passed = 0;
};
struct Copy { void* to; const void* from; bool inside; };
struct Thread {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 17);
    std::vector<Copy> copies;
    bool done = false;
};

std::vector<Thread> threads;
ucontext_t scheduler;
Barrier of_block, of_warp[32];
float exchanged[2][32][32];
void (*body)();

inline void wait(Barrier& barrier, int expected) {
    const long before = barrier.passed;
    if (++barrier.arrived == expected) {
        barrier.arrived = 0;
        barrier.passed++;
    }
    while (barrier.passed == before) swapcontext(&threads[threadIdx.x].context, &scheduler);
}
inline void __syncthreads() { wait(of_block, threads.size()); }

inline float exchange(float v, int mask) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, turn = of_warp[warp].passed & 1;
    exchanged[turn][warp][lane] = v;
    wait(of_warp[warp], 32);
    return exchanged[turn][warp][lane ^ mask];
}

inline void copy_16(void* to, const void* from, bool inside) {
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) abort();
    threads[threadIdx.x].copies.push_back({to, from, inside});
}
inline void copies_done() {
    for (const Copy& c : threads[threadIdx.x].copies) c.inside ? memcpy(c.to, c.from, 16) : memset(c.to, 0, 16);
    threads[threadIdx.x].copies.clear();
}

inline float power_of_2(float v) { return exp2f(v); }
inline float quotient(float a, float b) { return a / b; }

struct bfloat16 { uint16_t bits; };
typedef _Float16 float16;
inline float number(float v) { return v; }
inline float number(float16 v) { return v; }
inline float number(bfloat16 v) {
    const uint32_t bits = (uint32_t)v.bits << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
inline void put(float& to, float v) { to = v; }
inline void put(float16& to, float v) { to = v; }
inline void put(bfloat16& to, float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    to.bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest even
}

inline void enter() {
    body();
    threads[threadIdx.x].done = true;
    swapcontext(&threads[threadIdx.x].context, &scheduler);
}

// backwards: the last thread takes its turn first, so that a missing __syncthreads() shows in one order or the other.
inline void run_block(bool backwards) {
    memset(shared_memory, 0xff, sizeof shared_memory);  // NaN
    for (Thread& t : threads) {
        t.done = false;
        getcontext(&t.context);
        t.context.uc_stack.ss_sp = t.stack.data();
        t.context.uc_stack.ss_size = t.stack.size();
        makecontext(&t.context, enter, 0);
    }
    for (bool all = false; !all;) {
        all = true;
        for (size_t i = 0; i < threads.size(); i++) {
            threadIdx.x = backwards ? threads.size() - 1 - i : i;
            if (!threads[threadIdx.x].done) swapcontext(&scheduler, &threads[threadIdx.x].context);
            all = all && threads[threadIdx.x].done;
        }
    }
    if (of_block.arrived) abort();
}

inline void run_grid(void (*kernel)(), unsigned columns, unsigned rows, int count, bool backwards) {
    body = kernel;
    gridDim = {columns, rows, 1};
    threads.resize(count);
    for (blockIdx.y = 0; blockIdx.y < rows; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < columns; blockIdx.x++) run_block(backwards);
}
