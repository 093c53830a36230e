// Selective scan, forward and backward: softplus of the step sizes, recurrence, skip and gate in one pass each.
//
// Sequences are token-major: x, delta, gate and the results `[batch, length, channels]`, B and C `[batch, length, N]`.
// A block owns 32 channels of one item over the whole length; a lane is a channel, and a warp holds up to four of its
// states per group of states in registers. Tiles of 32 positions are staged in shared memory, where every warp reads
// all of them; what each warp adds up over its states is summed through shared memory at the end of a tile.
//
// Forward keeps the states at the start of every tile, if asked to. Backward walks the tiles from last to first,
// recomputes the states of 16 positions at a time from there (A is in base 2: scaled by log2 e), and sums the
// gradients of B and C over the lanes before they are added to those of other blocks.
//
// Macros: STATES = N, 1..64; REAL = 0 (float), 1 (half) or 2 (bfloat16), the type of the sequences.

#include "real.cuh"

#ifndef STATES
#define STATES 16
#endif

constexpr int LANES = 32;
constexpr int TILE = 32;                                        // positions staged at once
constexpr int GROUPS = (STATES + 15) / 16;                      // of states
constexpr int WARPS = (STATES + 4 * GROUPS - 1) / (4 * GROUPS);  // each with four states of every group
constexpr int THREADS = LANES * WARPS;
constexpr int SLOTS = 4 * GROUPS * WARPS;                // states with padding
constexpr int ROWS = (TILE + WARPS - 1) / WARPS;         // positions of a tile that a warp stages
constexpr int PIECE = STATES > 32 ? 8 : 16;              // positions of a tile that backward holds in registers
constexpr int PIECE_ROWS = (PIECE + WARPS - 1) / WARPS;  // of those, positions that a warp finishes
constexpr int PAIRS = (TILE * SLOTS + THREADS - 1) / THREADS;  // values of B (of C) that a thread stages
constexpr float LOG2E = 1.44269504f;
constexpr float LN2 = 0.69314718f;

// Where a tensor [batch, length, columns] with dense columns lies.
#define LAYOUT(name) u64 name##_item, u64 name##_position

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ void prefetch(const void* x) {
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(x));
#endif
}

__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : log1pf(__expf(x)); }

// A row of four neighbouring states in shared memory.
__device__ __forceinline__ void load4(float (&to)[4], const float* from) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

// A lane's place in the grid: blocks run over the channels first, then over the items.
struct Place {
    int lane, warp, channel, item;
    bool inside;
};

__device__ __forceinline__ Place find_place(int channels) {
    const int blocks = (channels + LANES - 1) / LANES;
    const int item = blockIdx.x / blocks, lane = threadIdx.x % LANES;
    const int channel = (blockIdx.x - item * blocks) * LANES + lane;
    return {lane, (int)threadIdx.x / LANES, channel, item, channel < channels};
}

__device__ __forceinline__ int state_of(const Place& p, int group, int i) { return (group * WARPS + p.warp) * 4 + i; }

// A in base 2, zero for padding: such states never leave zero.
__device__ __forceinline__ void load_decay(float (&a)[GROUPS][4], const float* decay, const Place& p) {
#pragma unroll
    for (int g = 0; g < GROUPS; ++g)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int n = state_of(p, g, i);
            a[g][i] = p.inside && n < STATES ? decay[(u64)p.channel * STATES + n] * LOG2E : 0.0f;
        }
}

// A thread's share of B (or C) of one tile.
__device__ __forceinline__ void fetch_pairs(float (&to)[PAIRS], const real* from, u64 stride, int start, int length) {
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
        const int e = threadIdx.x + i * THREADS, row = e / SLOTS, n = e % SLOTS;
        to[i] = row < TILE && start + row < length && n < STATES ? to_float(from[(start + row) * stride + n]) : 0.0f;
    }
}

__device__ __forceinline__ void stage_pairs(float* to, const float (&from)[PAIRS]) {
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
        const int e = threadIdx.x + i * THREADS;
        if (e < TILE * SLOTS) to[e] = from[i];
    }
}

// A lane's share of a sequence in one tile: positions warp, warp + WARPS, ...; zero past the end.
__device__ __forceinline__ void fetch_rows(float (&to)[ROWS], const real* from, u64 stride, int start, int length,
                                           const Place& p) {
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const int row = p.warp + i * WARPS;
        const bool there = from && p.inside && row < TILE && start + row < length;
        to[i] = there ? to_float(from[(start + row) * stride]) : 0.0f;
    }
}

// y and, unless `starts` is null, the states at the start of every tile, [blocks, tiles, GROUPS, THREADS, 4].
extern "C" __global__ void __launch_bounds__(THREADS)
    scan_forward(const real* x, LAYOUT(x), const real* delta, LAYOUT(delta), const real* gate, LAYOUT(gate),
                 const real* into, LAYOUT(into), const real* out_of, LAYOUT(out_of), const float* decay,
                 const float* skip, const float* bias, real* y, float4* starts, int channels, int length,
                 int use_softplus) {
    __shared__ __align__(16) float s_step[TILE][LANES], s_drive[TILE][LANES], s_into[TILE * SLOTS];
    __shared__ __align__(16) float s_out_of[TILE * SLOTS], s_sum[WARPS][TILE][LANES];
    const Place p = find_place(channels);
    x += p.item * x_item + p.channel, delta += p.item * delta_item + p.channel;
    if (gate) gate += p.item * gate_item + p.channel;
    into += p.item * into_item, out_of += p.item * out_of_item;
    y += (u64)p.item * length * channels + p.channel;
    const float offset = bias && p.inside ? bias[p.channel] : 0.0f, direct = skip && p.inside ? skip[p.channel] : 0.0f;
    const int tiles = (length + TILE - 1) / TILE;
    float a[GROUPS][4], h[GROUPS][4] = {};
    load_decay(a, decay, p);

    float next_x[ROWS], next_delta[ROWS], next_gate[ROWS], next_into[PAIRS], next_out_of[PAIRS];
    auto fetch = [&](int start) {
        fetch_rows(next_x, x, x_position, start, length, p);
        fetch_rows(next_delta, delta, delta_position, start, length, p);
        fetch_rows(next_gate, gate, gate_position, start, length, p);
        fetch_pairs(next_into, into, into_position, start, length);
        fetch_pairs(next_out_of, out_of, out_of_position, start, length);
    };
    fetch(0);
    for (int tile = 0; tile < tiles; ++tile) {
        const int start = tile * TILE;
        float now_x[ROWS], now_gate[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const int row = p.warp + i * WARPS;
            if (row >= TILE) break;
            const float raw = next_delta[i] + offset;
            const float step = start + row < length ? (use_softplus ? softplus(raw) : raw) : 0.0f;
            now_x[i] = next_x[i], now_gate[i] = next_gate[i];
            s_step[row][p.lane] = step, s_drive[row][p.lane] = step * now_x[i];
        }
        stage_pairs(s_into, next_into), stage_pairs(s_out_of, next_out_of);
        __syncthreads();
        if (tile + 1 < tiles) fetch(start + TILE);
        if (starts) {
#pragma unroll
            for (int g = 0; g < GROUPS; ++g)
                starts[(((u64)blockIdx.x * tiles + tile) * GROUPS + g) * THREADS + threadIdx.x] =
                    make_float4(h[g][0], h[g][1], h[g][2], h[g][3]);
        }
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
#pragma unroll 8
            for (int row = 0; row < TILE; ++row) {
                const float step = s_step[row][p.lane], drive = s_drive[row][p.lane];
                float b[4], c[4], sum = g ? s_sum[p.warp][row][p.lane] : 0.0f;
                load4(b, s_into + row * SLOTS + state_of(p, g, 0));
                load4(c, s_out_of + row * SLOTS + state_of(p, g, 0));
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    h[g][i] = fmaf(exp2_fast(step * a[g][i]), h[g][i], drive * b[i]);
                    sum = fmaf(c[i], h[g][i], sum);
                }
                s_sum[p.warp][row][p.lane] = sum;
            }
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const int row = p.warp + i * WARPS;
            if (row >= TILE || start + row >= length || !p.inside) break;
            float sum = direct * now_x[i];
#pragma unroll
            for (int w = 0; w < WARPS; ++w) sum += s_sum[w][row][p.lane];
            if (gate) sum *= now_gate[i] * sigmoid(now_gate[i]);
            store(y + (u64)(start + row) * channels, sum);
        }
    }
}

// Sums 32 values per lane over the lanes: lane i gets the sum of the values [i]. Every step halves the values.
template <int HALF>
__device__ __forceinline__ float sum_over_lanes(const float (&v)[2 * HALF], int lane) {
    const bool upper = lane & HALF;
    float sums[HALF];
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
        const float low = v[i], high = v[i + HALF];
        sums[i] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, HALF);
    }
    if constexpr (HALF == 1)
        return sums[0];
    else
        return sum_over_lanes<HALF / 2>(sums, lane);
}

// Gradients of everything. `starts` is what forward kept. Those of x, delta and gate are dense [batch, length, channels],
// those of A [batch, channels, N], of the skip and the bias [batch, channels]; those of B and C, dense float
// [batch, length, N], are added to what is there.
extern "C" __global__ void __launch_bounds__(THREADS)
    scan_backward(const real* x, LAYOUT(x), const real* delta, LAYOUT(delta), const real* gate, LAYOUT(gate),
                  const real* into, LAYOUT(into), const real* out_of, LAYOUT(out_of), const real* upstream,
                  LAYOUT(upstream), const float* decay, const float* skip, const float* bias, const float4* starts,
                  real* grad_x, real* grad_delta, real* grad_gate, float* grad_into, float* grad_out_of,
                  float* grad_decay, float* grad_skip, float* grad_bias, int channels, int length, int use_softplus) {
    __shared__ __align__(16) float s_step[TILE][LANES], s_x[TILE][LANES], s_above[TILE][LANES];
    __shared__ __align__(16) float s_into[TILE * SLOTS], s_out_of[TILE * SLOTS];
    // Sums over the states of each warp: of y, and of the gradients of step * x and of the step.
    __shared__ __align__(16) float s_y[WARPS][PIECE][LANES], s_drive[WARPS][PIECE][LANES], s_steps[WARPS][PIECE][LANES];
    const Place p = find_place(channels);
    x += p.item * x_item + p.channel, delta += p.item * delta_item + p.channel;
    upstream += p.item * upstream_item + p.channel;
    if (gate) gate += p.item * gate_item + p.channel;
    into += p.item * into_item, out_of += p.item * out_of_item;
    const u64 dense = (u64)p.item * length * channels + p.channel;
    grad_into += (u64)p.item * length * STATES, grad_out_of += (u64)p.item * length * STATES;
    const float offset = bias && p.inside ? bias[p.channel] : 0.0f, direct = skip && p.inside ? skip[p.channel] : 0.0f;
    const int tiles = (length + TILE - 1) / TILE;
    float a[GROUPS][4], carry[GROUPS][4] = {}, to_decay[GROUPS][4] = {}, to_skip = 0.0f, to_bias = 0.0f;
    load_decay(a, decay, p);

    for (int tile = tiles - 1; tile >= 0; --tile) {
        const int start = tile * TILE;
        {
            float now_x[ROWS], raw[ROWS], above[ROWS], z[ROWS], b[PAIRS], c[PAIRS];
            fetch_rows(now_x, x, x_position, start, length, p);
            fetch_rows(raw, delta, delta_position, start, length, p);
            fetch_rows(above, upstream, upstream_position, start, length, p);
            fetch_rows(z, gate, gate_position, start, length, p);
            fetch_pairs(b, into, into_position, start, length);
            fetch_pairs(c, out_of, out_of_position, start, length);
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const int row = p.warp + i * WARPS;
                if (row >= TILE) break;
                const float sum = raw[i] + offset;
                s_step[row][p.lane] = start + row < length ? (use_softplus ? softplus(sum) : sum) : 0.0f;
                s_x[row][p.lane] = now_x[i];
                s_above[row][p.lane] = gate ? above[i] * z[i] * sigmoid(z[i]) : above[i];
            }
            stage_pairs(s_into, b), stage_pairs(s_out_of, c);
        }
        float first[GROUPS][4];
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            const float4 v = starts[(((u64)blockIdx.x * tiles + tile) * GROUPS + g) * THREADS + threadIdx.x];
            first[g][0] = v.x, first[g][1] = v.y, first[g][2] = v.z, first[g][3] = v.w;
        }
        __syncthreads();
        if (tile > 0 && p.inside) {
            for (int row = p.warp; row < TILE; row += WARPS) {
                const int position = start - TILE + row;
                if (p.lane % (128 / sizeof(real)) == 0) {
                    prefetch(x + position * x_position), prefetch(delta + position * delta_position);
                    prefetch(upstream + position * upstream_position);
                    if (gate) prefetch(gate + position * gate_position);
                }
            }
            if (p.lane % 8 == 0)
#pragma unroll
                for (int g = 0; g < GROUPS; ++g)
                    prefetch(starts + (((u64)blockIdx.x * tiles + tile - 1) * GROUPS + g) * THREADS + threadIdx.x);
        }
#pragma unroll 1
        for (int base = TILE - PIECE; base >= 0; base -= PIECE) {
#pragma unroll
            for (int g = 0; g < GROUPS; ++g) {
                const int slot = state_of(p, g, 0);
                float state[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) state[i] = first[g][i];
#pragma unroll 4
                for (int row = 0; row < base; ++row) {
                    const float step = s_step[row][p.lane], drive = step * s_x[row][p.lane];
                    float b[4];
                    load4(b, s_into + row * SLOTS + slot);
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        state[i] = fmaf(exp2_fast(step * a[g][i]), state[i], drive * b[i]);
                }
                // Per position and state: the factor, later the gradient of B; the state, later the gradient of C.
                float factor[PIECE * 4], h[PIECE * 4];
#pragma unroll
                for (int k = 0; k < PIECE; ++k) {
                    const int row = base + k;
                    const float step = s_step[row][p.lane], drive = step * s_x[row][p.lane];
                    float b[4], c[4], sum = g ? s_y[p.warp][k][p.lane] : 0.0f;
                    load4(b, s_into + row * SLOTS + slot), load4(c, s_out_of + row * SLOTS + slot);
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        factor[4 * k + i] = exp2_fast(step * a[g][i]);
                        state[i] = fmaf(factor[4 * k + i], state[i], drive * b[i]);
                        h[4 * k + i] = state[i];
                        sum = fmaf(c[i], state[i], sum);
                    }
                    s_y[p.warp][k][p.lane] = sum;
                }
#pragma unroll
                for (int k = PIECE - 1; k >= 0; --k) {
                    const int row = base + k;
                    const float step = s_step[row][p.lane], drive = step * s_x[row][p.lane];
                    const float above = s_above[row][p.lane];
                    float b[4], c[4];
                    float to_drive = g ? s_drive[p.warp][k][p.lane] : 0.0f;
                    float to_step = g ? s_steps[p.warp][k][p.lane] : 0.0f;
                    load4(b, s_into + row * SLOTS + slot), load4(c, s_out_of + row * SLOTS + slot);
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const float grad = fmaf(above, c[i], carry[g][i]);
                        const float decayed = fmaf(-drive, b[i], h[4 * k + i]);  // factor times the state before
                        const float change = grad * decayed;
                        to_drive = fmaf(grad, b[i], to_drive);
                        to_step = fmaf(change, a[g][i], to_step);
                        to_decay[g][i] = fmaf(change, step, to_decay[g][i]);
                        carry[g][i] = grad * factor[4 * k + i];
                        factor[4 * k + i] = grad * drive;
                        h[4 * k + i] *= above;
                    }
                    s_drive[p.warp][k][p.lane] = to_drive, s_steps[p.warp][k][p.lane] = to_step;
                }
#pragma unroll
                for (int part = 0; part < PIECE / 8; ++part) {
                    float of_into[LANES], of_out_of[LANES];
#pragma unroll
                    for (int i = 0; i < LANES; ++i)
                        of_into[i] = factor[part * LANES + i], of_out_of[i] = h[part * LANES + i];
                    const float sum_into = sum_over_lanes<LANES / 2>(of_into, p.lane);
                    const float sum_out_of = sum_over_lanes<LANES / 2>(of_out_of, p.lane);
                    const int position = start + base + part * 8 + p.lane / 4, n = slot + p.lane % 4;
                    if (position < length && n < STATES) {
                        atomicAdd(grad_into + (u64)position * STATES + n, sum_into);
                        atomicAdd(grad_out_of + (u64)position * STATES + n, sum_out_of);
                    }
                }
            }
            __syncthreads();
#pragma unroll
            for (int j = 0; j < PIECE_ROWS; ++j) {
                const int k = p.warp + j * WARPS, row = base + k, position = start + row;
                if (k >= PIECE || position >= length || !p.inside) break;
                const float step = s_step[row][p.lane], now_x = s_x[row][p.lane], above = s_above[row][p.lane];
                float sum = direct * now_x, to_drive = 0.0f, to_step = 0.0f;
#pragma unroll
                for (int w = 0; w < WARPS; ++w) {
                    sum += s_y[w][k][p.lane];
                    to_drive += s_drive[w][k][p.lane], to_step += s_steps[w][k][p.lane];
                }
                to_step = fmaf(to_drive, now_x, LN2 * to_step);
                if (use_softplus) to_step *= sigmoid(to_float(delta[position * delta_position]) + offset);
                to_bias += to_step;
                to_skip = fmaf(above, now_x, to_skip);
                const u64 at = dense + (u64)position * channels;
                store(grad_delta + at, to_step);
                store(grad_x + at, fmaf(to_drive, step, above * direct));
                if (gate) {
                    const float z = to_float(gate[position * gate_position]), s = sigmoid(z);
                    const float given = to_float(upstream[position * upstream_position]);
                    store(grad_gate + at, given * sum * s * fmaf(z, 1.0f - s, 1.0f));
                }
            }
            __syncthreads();
        }
    }
    const u64 row = (u64)p.item * channels + p.channel;
#pragma unroll
    for (int g = 0; g < GROUPS; ++g)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int n = state_of(p, g, i);
            if (p.inside && n < STATES) grad_decay[row * STATES + n] = to_decay[g][i];
        }
    s_y[p.warp][0][p.lane] = to_skip, s_drive[p.warp][0][p.lane] = to_bias;
    __syncthreads();
    if (p.warp == 0 && p.inside) {
        for (int w = 1; w < WARPS; ++w) to_skip += s_y[w][0][p.lane], to_bias += s_drive[w][0][p.lane];
        grad_skip[row] = to_skip, grad_bias[row] = to_bias;
    }
}
