// Selective scan, forward: softplus of the step sizes, recurrence, skip and gate in one pass; see scan.cuh.
//
// What each warp adds up over its states is summed through shared memory at the end of a tile. Where the length is cut
// into chunks, the states at their ends from zero (scan_ends.cu) give the state that each one starts from.

#include "scan.cuh"

// y and, unless `starts` is null, the states at the start of every tile, [columns, tiles, GROUPS, THREADS, 4]. `ends`
// and `spans` are those of scan_ends, unless there is one chunk.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    scan_forward(const real* x, LAYOUT(x), const real* delta, LAYOUT(delta), const real* gate, LAYOUT(gate),
                 const real* into, LAYOUT(into), const real* out_of, LAYOUT(out_of), const float* decay,
                 const float* skip, const float* bias, const float4* ends, const float* spans, real* y, float4* starts,
                 int channels, int length, int chunk_tiles) {
    __shared__ __align__(16) float s_step[TILE][LANES], s_drive[TILE][LANES], s_into[TILE * SLOTS];
    __shared__ __align__(16) float s_out_of[TILE * SLOTS], s_sum[WARPS][TILE][LANES];
    const Place p = find_place(channels, length, chunk_tiles);
    x += p.item * x_item + p.channel, delta += p.item * delta_item + p.channel;
    if (GATED) gate += p.item * gate_item + p.channel;
    into += p.item * into_item, out_of += p.item * out_of_item;
    y += (u64)p.item * length * channels + p.channel;
    const float offset = bias && p.inside ? bias[p.channel] : 0.0f, direct = skip && p.inside ? skip[p.channel] : 0.0f;
    float a[GROUPS][4], h[GROUPS][4] = {};
    load_decay(a, decay, p);
#pragma unroll 4
    for (int c = 0; c < p.chunk; ++c) pass_chunk(h, a, ends, spans, (u64)p.column * p.chunks + c, p);

    real next_x[ROWS], next_delta[ROWS], next_gate[ROWS], next_into[PAIRS], next_out_of[PAIRS];
    auto fetch = [&](int start) {
        fetch_rows(next_x, x, x_position, start, length, p);
        fetch_rows(next_delta, delta, delta_position, start, length, p);
        if (GATED) fetch_rows(next_gate, gate, gate_position, start, length, p);
        fetch_pairs(next_into, into, into_position, start, length);
        fetch_pairs(next_out_of, out_of, out_of_position, start, length);
    };
    fetch(p.first * TILE);
    for (int tile = p.first; tile < p.last; ++tile) {
        const int start = tile * TILE;
        real now_x[ROWS], now_gate[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const int row = p.warp + i * WARPS;
            const float step = step_from(to_float(next_delta[i]) + offset);
            now_x[i] = next_x[i], now_gate[i] = next_gate[i];
            if (in_tile(i, p)) {
                s_step[row][p.lane] = start + row < length ? step : 0.0f;
                s_drive[row][p.lane] = step * to_float(now_x[i]);
            }
        }
        stage_pairs(s_into, next_into), stage_pairs(s_out_of, next_out_of);
        __syncthreads();
        if (tile + 1 < p.last) fetch(start + TILE);
        if (starts) {
#pragma unroll
            for (int g = 0; g < GROUPS; ++g)
                starts[kept_at((u64)p.column * p.tiles + tile, g)] = make_float4(h[g][0], h[g][1], h[g][2], h[g][3]);
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
        const int left = p.inside ? length - start - p.warp : 0;
        real* out = y + (u64)(start + p.warp) * channels;
#pragma unroll
        for (int i = 0; i < ROWS; ++i, out += WARPS * (u64)channels) {
            if (!in_tile(i, p)) break;
            float sum = direct * to_float(now_x[i]);
#pragma unroll
            for (int w = 0; w < WARPS; ++w) sum += s_sum[w][p.warp + i * WARPS][p.lane];
            if (GATED) {
                const float z = to_float(now_gate[i]);
                sum *= z * sigmoid(z);
            }
            store_if(i * WARPS < left, out, sum);
        }
    }
}
