// Selective scan, backward: gradients of everything in one pass from the last position to the first; see scan.cuh.
//
// The states of a tile are recomputed from those that forward kept at its start, and then again for a piece of a few
// positions at a time, which fits into registers (A is in base 2: scaled by log2 e). The gradients of B and C are summed
// over the lanes before they are added to those of other blocks. Where the length is cut into chunks, what each one
// hands on from zero (scan_ends.cu) gives the gradient of the state that a chunk starts from.

#include "scan.cuh"

constexpr int PIECE = 8;                                 // positions held in registers: of four states, one per lane
constexpr int PIECES = TILE / PIECE;
constexpr int PIECE_ROWS = (PIECE + WARPS - 1) / WARPS;  // positions of a piece that a warp finishes
constexpr float LN2 = 0.69314718f;

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

// `starts` is what forward kept; `ends` and `spans` are those of scan_ends backward, unless there is one chunk. The
// gradients of x, delta and gate are dense [batch, length, channels], those of A [batch, chunks, channels, N], of the
// skip and the bias [batch, chunks, channels]; those of B and C, dense float [batch, length, N], are added to what is
// there.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    scan_backward(const real* x, LAYOUT(x), const real* delta, LAYOUT(delta), const real* gate, LAYOUT(gate),
                  const real* into, LAYOUT(into), const real* out_of, LAYOUT(out_of), const real* upstream,
                  LAYOUT(upstream), const float* decay, const float* skip, const float* bias, const float4* starts,
                  const float4* ends, const float* spans, real* grad_x, real* grad_delta, real* grad_gate,
                  float* grad_into, float* grad_out_of, float* grad_decay, float* grad_skip, float* grad_bias,
                  int channels, int length, int chunk_tiles) {
    // Step, x, gradient before the gate; slope of the softplus; what the gradient of the gate is of the result.
    __shared__ __align__(16) float s_step[TILE][LANES], s_x[TILE][LANES], s_above[TILE][LANES];
    __shared__ __align__(16) float s_slope[TILE][LANES], s_to_gate[TILE][LANES];
    __shared__ __align__(16) float s_into[TILE * SLOTS], s_out_of[TILE * SLOTS];
    // Sums over the states of each warp: of y, and of the gradients of step * x and of the step.
    __shared__ __align__(16) float s_y[WARPS][PIECE][LANES], s_drive[WARPS][PIECE][LANES], s_steps[WARPS][PIECE][LANES];
    __shared__ float4 s_states[PIECES][GROUPS][THREADS];  // at the starts of the pieces, each thread its own
    const Place p = find_place(channels, length, chunk_tiles);
    x += p.item * x_item + p.channel, delta += p.item * delta_item + p.channel;
    upstream += p.item * upstream_item + p.channel;
    if (GATED) gate += p.item * gate_item + p.channel;
    into += p.item * into_item, out_of += p.item * out_of_item;
    const u64 dense = (u64)p.item * length * channels + p.channel;
    grad_into += (u64)p.item * length * STATES, grad_out_of += (u64)p.item * length * STATES;
    const float offset = bias && p.inside ? bias[p.channel] : 0.0f, direct = skip && p.inside ? skip[p.channel] : 0.0f;
    float a[GROUPS][4], carry[GROUPS][4] = {}, to_decay[GROUPS][4] = {}, to_skip = 0.0f, to_bias = 0.0f;
    load_decay(a, decay, p);
#pragma unroll 4
    for (int c = p.chunks - 1; c > p.chunk; --c) pass_chunk(carry, a, ends, spans, (u64)p.column * p.chunks + c, p);

    real next_x[ROWS], next_delta[ROWS], next_above[ROWS], next_gate[ROWS], next_into[PAIRS], next_out_of[PAIRS];
    float4 next_states[GROUPS];
    auto fetch = [&](int tile) {
        const int start = tile * TILE;
        fetch_rows(next_x, x, x_position, start, length, p);
        fetch_rows(next_delta, delta, delta_position, start, length, p);
        fetch_rows(next_above, upstream, upstream_position, start, length, p);
        if (GATED) fetch_rows(next_gate, gate, gate_position, start, length, p);
        fetch_pairs(next_into, into, into_position, start, length);
        fetch_pairs(next_out_of, out_of, out_of_position, start, length);
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) next_states[g] = starts[kept_at((u64)p.column * p.tiles + tile, g)];
    };
    fetch(p.last - 1);
    for (int tile = p.last - 1; tile >= p.first; --tile) {
        const int start = tile * TILE;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const int row = p.warp + i * WARPS;
            const float raw = to_float(next_delta[i]) + offset, step = step_from(raw), given = to_float(next_above[i]);
            const float z = GATED ? to_float(next_gate[i]) : 0.0f, s = sigmoid(z), above = GATED ? given * z * s : given;
            if (in_tile(i, p)) {
                s_step[row][p.lane] = start + row < length ? step : 0.0f;
                s_x[row][p.lane] = to_float(next_x[i]);
                s_above[row][p.lane] = above;
                if (SOFTPLUS) s_slope[row][p.lane] = sigmoid(raw);
                if (GATED) s_to_gate[row][p.lane] = given * s * fmaf(z, 1.0f - s, 1.0f);
            }
        }
        stage_pairs(s_into, next_into), stage_pairs(s_out_of, next_out_of);
        float state[GROUPS][4];
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            state[g][0] = next_states[g].x, state[g][1] = next_states[g].y;
            state[g][2] = next_states[g].z, state[g][3] = next_states[g].w;
        }
        __syncthreads();
        if (tile > p.first) fetch(tile - 1);
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
#pragma unroll 1
            for (int piece = 0; piece < PIECES; ++piece) {
                s_states[piece][g][threadIdx.x] = make_float4(state[g][0], state[g][1], state[g][2], state[g][3]);
                if (piece + 1 == PIECES) break;
#pragma unroll
                for (int k = 0; k < PIECE; ++k) {
                    const int row = piece * PIECE + k;
                    const float step = s_step[row][p.lane], drive = step * s_x[row][p.lane];
                    float b[4];
                    load4(b, s_into + row * SLOTS + state_of(p, g, 0));
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        state[g][i] = fmaf(exp2_fast(step * a[g][i]), state[g][i], drive * b[i]);
                }
            }
        }
#pragma unroll 1
        for (int piece = PIECES - 1; piece >= 0; --piece) {
            const int base = piece * PIECE;
#pragma unroll
            for (int g = 0; g < GROUPS; ++g) {
                const int slot = state_of(p, g, 0);
                float now[4];
                load4(now, reinterpret_cast<const float*>(&s_states[piece][g][threadIdx.x]));
                // Per position and state: the factor, later the gradient of B; the state, later the gradient of C.
                float factor[LANES], h[LANES];
#pragma unroll
                for (int k = 0; k < PIECE; ++k) {
                    const int row = base + k;
                    const float step = s_step[row][p.lane], drive = step * s_x[row][p.lane];
                    float b[4], c[4], sum = g ? s_y[p.warp][k][p.lane] : 0.0f;
                    load4(b, s_into + row * SLOTS + slot), load4(c, s_out_of + row * SLOTS + slot);
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        factor[4 * k + i] = exp2_fast(step * a[g][i]);
                        now[i] = fmaf(factor[4 * k + i], now[i], drive * b[i]);
                        h[4 * k + i] = now[i];
                        sum = fmaf(c[i], now[i], sum);
                    }
                    if (GATED) s_y[p.warp][k][p.lane] = sum;
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
                const float sum_into = sum_over_lanes<LANES / 2>(factor, p.lane);
                const float sum_out_of = sum_over_lanes<LANES / 2>(h, p.lane);
                const int position = start + base + p.lane / 4, n = slot + p.lane % 4;
                if (position < length && n < STATES) {
                    atomicAdd(grad_into + (u64)position * STATES + n, sum_into);
                    atomicAdd(grad_out_of + (u64)position * STATES + n, sum_out_of);
                }
            }
            __syncthreads();
            const int first = base + p.warp, left = p.inside ? length - start - first : 0;
            u64 at = dense + (u64)(start + first) * channels;
#pragma unroll
            for (int j = 0; j < PIECE_ROWS; ++j, at += WARPS * (u64)channels) {
                const int k = p.warp + j * WARPS, row = base + k;
                if (PIECE % WARPS && k >= PIECE) break;
                const bool there = j * WARPS < left;
                const float step = s_step[row][p.lane], now_x = s_x[row][p.lane], above = s_above[row][p.lane];
                float sum = direct * now_x, to_drive = 0.0f, to_step = 0.0f;
#pragma unroll
                for (int w = 0; w < WARPS; ++w) {
                    if (GATED) sum += s_y[w][k][p.lane];
                    to_drive += s_drive[w][k][p.lane], to_step += s_steps[w][k][p.lane];
                }
                to_step = fmaf(to_drive, now_x, LN2 * to_step);
                if (SOFTPLUS) to_step *= s_slope[row][p.lane];
                to_bias += there ? to_step : 0.0f;
                to_skip = fmaf(above, now_x, to_skip);
                store_if(there, grad_delta + at, to_step);
                store_if(there, grad_x + at, fmaf(to_drive, step, above * direct));
                if (GATED) store_if(there, grad_gate + at, s_to_gate[row][p.lane] * sum);
            }
            __syncthreads();
        }
    }
    const u64 row = ((u64)p.item * p.chunks + p.chunk) * channels + p.channel;
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
