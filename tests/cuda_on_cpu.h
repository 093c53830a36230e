// Runs a CUDA kernel on the CPU, one block after the other: every thread is a fiber that yields at barriers and shuffles.
// Include before the kernel's source. For tests only.
#include <setjmp.h>
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
struct alignas(8) float2 {
    float x, y;
};
struct float3 {
    float x, y, z;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) int2 {
    int x, y;
};
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static float3 make_float3(float x, float y, float z) { return {x, y, z}; }
static float2 make_float2(float x, float y) { return {x, y}; }
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static int2 make_int2(int x, int y) { return {x, y}; }

static Index threadIdx, blockIdx, gridDim;
static unsigned block_threads;
// A fiber starts by its context; later switches are jumps, which ask nothing of the operating system.
static ucontext_t fibers[1024];
static jmp_buf places[1024], scheduler;
static char started[1024], done[1024];
static unsigned running, alive;
static std::function<void()> kernel_call;

static void yield() {
    const unsigned me = threadIdx.x;
    if (!_setjmp(places[me])) _longjmp(scheduler, 1);
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
static uint64_t exchanged[2][1024];
static unsigned shuffles[1024];
static int votes[2][1024];
static unsigned ballots[1024];

static void fiber_main() {
    kernel_call();
    done[threadIdx.x] = 1;
    for (;;) yield();
}

static void run_block(unsigned block, unsigned threads) {
    static std::vector<char> stacks;
    const size_t stack = 1 << 17;
    stacks.resize(stack * threads);
    for (unsigned i = 0; i < threads; ++i) {
        started[i] = done[i] = 0;
        getcontext(&fibers[i]);
        fibers[i].uc_stack.ss_sp = stacks.data() + stack * i, fibers[i].uc_stack.ss_size = stack;
        fibers[i].uc_link = nullptr;
        makecontext(&fibers[i], fiber_main, 0);
    }
    blockIdx = {block, 0, 0};
    block_threads = threads;
    for (alive = threads; alive;) {
        alive = 0;
        for (running = 0; running < block_threads; ++running) {
            if (done[running]) continue;
            threadIdx = {running, 0, 0};
            if (!_setjmp(scheduler)) {
                if (started[running]) _longjmp(places[running], 1);
                started[running] = 1;
                setcontext(&fibers[running]);
            }
            alive += !done[running];
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
#define __syncthreads() block_barrier.wait(block_threads)
#define __syncwarp() exchange(0)
#define __threadfence_system()
#define __threadfence()

// What every thread of the block said.
static int block_votes(int vote) {
    const unsigned me = threadIdx.x, side = ballots[me]++ & 1;
    votes[side][me] = vote != 0;
    __syncthreads();
    int sum = 0;
    for (unsigned i = 0; i < block_threads; ++i) sum += votes[side][i];
    return sum;
}
static int __syncthreads_and(int vote) { return block_votes(vote) == (int)block_threads; }
static int __syncthreads_or(int vote) { return block_votes(vote) != 0; }

// The values of all lanes of a warp; two buffers in turn, so that a fast lane does not overwrite what others still read.
static const uint64_t* exchange(uint64_t bits) {
    const unsigned me = threadIdx.x, side = shuffles[me]++ & 1;
    exchanged[side][me] = bits;
    warp_barriers[me / 32].wait(32);
    return exchanged[side] + (me & ~31u);
}
template <class T>
static T from_lane_of(T value, unsigned lane) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    T result;
    memcpy(&result, exchange(bits) + lane, sizeof(T));
    return result;
}
template <class T>
static T __shfl_sync(unsigned, T value, int lane) { return from_lane_of(value, lane & 31); }
template <class T>
static T __shfl_xor_sync(unsigned, T value, int offset) { return from_lane_of(value, (threadIdx.x & 31) ^ offset); }
template <class T>
static T __shfl_up_sync(unsigned, T value, unsigned step) {
    const unsigned lane = threadIdx.x & 31;
    return from_lane_of(value, lane >= step ? lane - step : lane);
}
static unsigned __ballot_sync(unsigned, int vote) {
    const uint64_t* all = exchange(vote != 0);
    unsigned mask = 0;
    for (int i = 0; i < 32; ++i) mask |= (unsigned)all[i] << i;
    return mask;
}
static bool __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
static bool __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) == mask; }
static unsigned __match_any_sync(unsigned, unsigned value) {
    const uint64_t* all = exchange(value);
    unsigned mask = 0;
    for (int i = 0; i < 32; ++i) mask |= (unsigned)(all[i] == value) << i;
    return mask;
}
static unsigned __reduce_min_sync(unsigned, unsigned value) {
    const uint64_t* all = exchange(value);
    for (int i = 0; i < 32; ++i) value = all[i] < value ? all[i] : value;
    return value;
}
static unsigned __reduce_max_sync(unsigned, unsigned value) {
    const uint64_t* all = exchange(value);
    for (int i = 0; i < 32; ++i) value = all[i] > value ? all[i] : value;
    return value;
}
template <class T>
static T __ldg(const T* from) { return *from; }
template <class T>
static T min(T a, T b) { return b < a ? b : a; }
template <class T>
static T max(T a, T b) { return a < b ? b : a; }
static int __popc(unsigned x) { return __builtin_popcount(x); }
static int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
static int __ffs(unsigned x) { return __builtin_ffs(x); }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fdiv_rn(float a, float b) { return a / b; }
static float __fsqrt_rn(float a) { return std::sqrt(a); }
static uint32_t __float_as_uint(float x) {
    uint32_t y;
    memcpy(&y, &x, 4);
    return y;
}
static float __uint_as_float(uint32_t x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}
static float __fdividef(float a, float b) { return a / b; }
#define __expf(x) std::exp((float)(x))
template <class T>
static T atomicAdd(T* to, T x) {
    const T before = *to;
    *to += x;
    return before;
}
static unsigned atomicOr(unsigned* to, unsigned x) {
    const unsigned before = *to;
    *to |= x;
    return before;
}

// The tensor cores' product m16n8k8 of tf32 matrices: lanes hold fragments of a, b and c as the PTX manual says.
static void multiply(float c[4], const float a[4], float2 b) {
    const unsigned row = (threadIdx.x & 31) / 4, column = (threadIdx.x & 31) % 4;
    const auto tf32 = [](float x) { return (double)__uint_as_float(__float_as_uint(x) & 0xffffe000u); };
    const unsigned me = threadIdx.x, warp = me & ~31u;
    static float as[1024][4], bs[1024][2];
    for (int i = 0; i < 4; ++i) as[me][i] = a[i];
    bs[me][0] = b.x, bs[me][1] = b.y;
    __syncwarp();
    for (int i = 0; i < 4; ++i) {
        double sum = c[i];
        for (unsigned k = 0; k < 8; ++k) {
            const unsigned left = warp + row * 4 + k % 4, right = warp + (2 * column + i % 2) * 4 + k % 4;
            sum += tf32(as[left][i / 2 + 2 * (k / 4)]) * tf32(bs[right][k / 4]);
        }
        c[i] = sum;
    }
    __syncwarp();
}

// Calls a kernel whose parameters are integers and pointers, each given as 64 bits, and at most one float: that one
// travels in a register of its own wherever it stands among the parameters.
template <size_t... I>
static void call_with(void* kernel, const uint64_t* args, float number, std::index_sequence<I...>) {
    auto typed = reinterpret_cast<void (*)(std::remove_cv_t<std::remove_reference_t<decltype(args[I])>>..., float)>(kernel);
    typed(args[I]..., number);
}
template <size_t N = 40>
static void call(void* kernel, const uint64_t* args, size_t count, float number) {
    if constexpr (N > 0) {
        if (count == N)
            call_with(kernel, args, number, std::make_index_sequence<N>());
        else
            call<N - 1>(kernel, args, count, number);
    }
}
extern "C" void run_kernel(void* kernel, unsigned blocks, unsigned threads, const uint64_t* args, size_t count,
                           float number) {
    kernel_call = [=] { call(kernel, args, count, number); };
    gridDim = {blocks, 1, 1};
    for (unsigned block = 0; block < blocks; ++block) run_block(block, threads);
}
