// Runs a CUDA kernel on the CPU, one block after the other: every thread is a fiber that yields at barriers and shuffles.
// Include before the kernel's source. For tests only.
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

struct Index {
    unsigned x, y, z;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static Index threadIdx, blockIdx;
static std::vector<ucontext_t> fibers;
static std::vector<char> done;
static ucontext_t scheduler;
static std::function<void()> kernel_call;

static void yield() {
    const unsigned me = threadIdx.x;
    swapcontext(&fibers[me], &scheduler);
    threadIdx.x = me;
}

struct Barrier {
    unsigned arrived = 0, generation = 0;
    void wait(unsigned count) {
        const unsigned mine = generation;
        if (++arrived == count) {
            arrived = 0, ++generation;
        } else {
            while (generation == mine) yield();
        }
    }
};
static Barrier block_barrier, warp_barriers[32];
static float exchanged[2][1024];
static unsigned shuffles[1024];

static void fiber_main() {
    kernel_call();
    done[threadIdx.x] = 1;
    for (;;) yield();
}

static void run_block(unsigned block, unsigned threads) {
    static std::vector<char> stacks;
    const size_t stack = 1 << 17;
    stacks.resize(stack * threads), fibers.resize(threads), done.assign(threads, 0);
    for (unsigned i = 0; i < threads; ++i) {
        getcontext(&fibers[i]);
        fibers[i].uc_stack.ss_sp = stacks.data() + stack * i, fibers[i].uc_stack.ss_size = stack;
        fibers[i].uc_link = nullptr;
        makecontext(&fibers[i], fiber_main, 0);
    }
    blockIdx = {block, 0, 0};
    for (unsigned left = threads; left;) {
        left = 0;
        for (unsigned i = 0; i < threads; ++i) {
            if (done[i]) continue;
            threadIdx = {i, 0, 0};
            swapcontext(&scheduler, &fibers[i]);
            left += !done[i];
        }
    }
}

template <class To>
static To convert(float x);
template <>
float convert<float>(float x) { return std::exp2(x); }  // ex2
template <>
uint16_t convert<uint16_t>(float x) {  // cvt.rn.bf16.f32
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

#define asm(...) y = convert<decltype(y)>(x)
#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __syncthreads() block_barrier.wait(THREADS)
static float __shfl_xor_sync(unsigned, float value, int offset) {
    const unsigned me = threadIdx.x, side = shuffles[me]++ & 1;
    exchanged[side][me] = value;
    warp_barriers[me / 32].wait(32);
    return exchanged[side][me ^ offset];
}
static float __uint_as_float(uint32_t x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}
static float __fdividef(float a, float b) { return a / b; }
#define __expf(x) std::exp((float)(x))
static void atomicAdd(float* to, float x) { *to += x; }

// Calls a kernel whose parameters are integers and pointers, each given as 64 bits.
template <size_t... I>
static void call_with(void* kernel, const uint64_t* args, std::index_sequence<I...>) {
    auto typed = reinterpret_cast<void (*)(std::remove_cv_t<std::remove_reference_t<decltype(args[I])>>...)>(kernel);
    typed(args[I]...);
}
template <size_t N = 40>
static void call(void* kernel, const uint64_t* args, size_t count) {
    if constexpr (N > 0) {
        if (count == N)
            call_with(kernel, args, std::make_index_sequence<N>());
        else
            call<N - 1>(kernel, args, count);
    }
}
extern "C" void run_kernel(void* kernel, unsigned blocks, unsigned threads, const uint64_t* args, size_t count) {
    kernel_call = [=] { call(kernel, args, count); };
    for (unsigned block = 0; block < blocks; ++block) run_block(block, threads);
}
