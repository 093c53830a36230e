// Selective scan, ends of chunks: the first of two passes where the length is cut into chunks; see scan.cuh.
//
// Every chunk but one is walked from zero: forward for its last state, backward for the gradient that it hands to the
// chunk before. With the sum of its step sizes, whose product with A is the decay of the whole chunk, that is all the
// other chunks need to know of it.
// Macro beyond those of scan.cuh: BACKWARD = 0 or 1.

#include "scan.cuh"

#ifndef BACKWARD
#define BACKWARD 0
#endif

// ends [columns, chunks, GROUPS, THREADS, 4], spans [columns, chunks, LANES]. `values` is x, or backward the gradient of
// the result, which the gate multiplies; `states` is B, or backward C.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    scan_ends(const real* values, LAYOUT(values), const real* delta, LAYOUT(delta), const real* gate, LAYOUT(gate),
              const real* states, LAYOUT(states), const float* decay, const float* bias, float4* ends, float* spans,
              int channels, int length, int chunk_tiles) {
    __shared__ __align__(16) float s_step[TILE][LANES], s_value[TILE][LANES], s_states[TILE * SLOTS];
    const Place p = find_place(channels, length, chunk_tiles);
    if (p.chunk == (BACKWARD ? 0 : p.chunks - 1)) return;
    values += p.item * values_item + p.channel, delta += p.item * delta_item + p.channel;
    constexpr bool gated = BACKWARD && GATED;
    if (gated) gate += p.item * gate_item + p.channel;
    states += p.item * states_item;
    const float offset = bias && p.inside ? bias[p.channel] : 0.0f;
    float a[GROUPS][4], h[GROUPS][4] = {}, span = 0.0f;
    load_decay(a, decay, p);

    real next_value[ROWS], next_delta[ROWS], next_gate[ROWS], next_states[PAIRS];
    auto fetch = [&](int start) {
        fetch_rows(next_value, values, values_position, start, length, p);
        fetch_rows(next_delta, delta, delta_position, start, length, p);
        if (gated) fetch_rows(next_gate, gate, gate_position, start, length, p);
        fetch_pairs(next_states, states, states_position, start, length);
    };
    auto start_of = [&](int done) { return (BACKWARD ? p.last - 1 - done : p.first + done) * TILE; };
    fetch(start_of(0));
    const int count = p.last - p.first;
    for (int done = 0; done < count; ++done) {
        const int start = start_of(done);
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const int row = p.warp + i * WARPS;
            const float step = step_from(to_float(next_delta[i]) + offset);
            float value = to_float(next_value[i]);
            if (gated) {
                const float z = to_float(next_gate[i]);
                value *= z * sigmoid(z);
            }
            if (in_tile(i, p)) {
                s_step[row][p.lane] = start + row < length ? step : 0.0f;
                s_value[row][p.lane] = BACKWARD ? value : value * step;
            }
        }
        stage_pairs(s_states, next_states);
        __syncthreads();
        if (done + 1 < count) fetch(start_of(done + 1));
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
#pragma unroll 8
            for (int k = 0; k < TILE; ++k) {
                const int row = BACKWARD ? TILE - 1 - k : k;
                const float step = s_step[row][p.lane], value = s_value[row][p.lane];
                float s[4];
                load4(s, s_states + row * SLOTS + state_of(p, g, 0));
                if (g == 0) span += step;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float factor = exp2_fast(step * a[g][i]);
                    h[g][i] = BACKWARD ? fmaf(value, s[i], h[g][i]) * factor : fmaf(factor, h[g][i], value * s[i]);
                }
            }
        }
        __syncthreads();
    }
    const u64 row = (u64)p.column * p.chunks + p.chunk;
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) ends[kept_at(row, g)] = make_float4(h[g][0], h[g][1], h[g][2], h[g][3]);
    if (p.warp == 0) spans[row * LANES + p.lane] = span;
}
