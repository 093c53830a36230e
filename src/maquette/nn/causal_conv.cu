// Causal depthwise convolution with four taps and SiLU, forward and backward.
//
// Sequences are [batch, length, channels] with dense channels. A thread owns one channel over a chunk of positions and
// keeps the last inputs in registers. It loads the next BATCH positions while it works on the present ones; they wait in
// the type of memory, because a conversion right after the load would wait for it. Macro: REAL = 0 (float), 1 (half) or
// 2 (bfloat16), the type of the sequences.

#include "real.cuh"

constexpr int TAPS = 4;
constexpr int BATCH = 8;
constexpr int FORWARD_CHUNK = 64;
constexpr int BACKWARD_CHUNK = 64 - (TAPS - 1);  // with the positions behind it that see its last ones: 64
constexpr int THREADS = 128;

// A thread's channel, and its first position.
struct Place {
    int item, start, channel;
};

__device__ __forceinline__ Place find_place(int channels, int length, int chunk) {
    const int across = (channels + THREADS - 1) / THREADS, chunks = (length + chunk - 1) / chunk;
    const int row = blockIdx.x / across;
    return {row / chunks, row % chunks * chunk, (int)(blockIdx.x % across) * THREADS + (int)threadIdx.x};
}

// A sequence of one channel from position `start` on; zero before the first position and after the last.
struct Source {
    const real* x;
    u64 stride;
    int length;

    __device__ __forceinline__ void fetch(real (&to)[BATCH], int start) const {
        const real* from = x + (u64)start * stride;
#pragma unroll
        for (int i = 0; i < BATCH; ++i, from += stride) to[i] = start + i < length ? *from : real(0);
    }

    // The inputs before `start`, in window[1...].
    __device__ __forceinline__ void look_back(float (&window)[TAPS], int start) const {
#pragma unroll
        for (int k = 1; k < TAPS; ++k) {
            const int t = start - TAPS + k;
            window[k] = t >= 0 ? to_float(x[(u64)t * stride]) : 0.0f;
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    conv_forward(const real* x, u64 x_item, u64 x_position, const float* weight, const float* bias, real* y,
                 int channels, int length) {
    const Place p = find_place(channels, length, FORWARD_CHUNK);
    if (p.channel >= channels) return;
    const Source source{x + p.item * x_item + p.channel, x_position, length};
    real* out = y + ((u64)p.item * length + p.start) * channels + p.channel;
    float w[TAPS], window[TAPS];
    real next[BATCH];
#pragma unroll
    for (int k = 0; k < TAPS; ++k) w[k] = weight[p.channel * TAPS + k];
    source.look_back(window, p.start);
    source.fetch(next, p.start);
    const float offset = bias[p.channel];
#pragma unroll 1
    for (int start = p.start; start < p.start + FORWARD_CHUNK; start += BATCH) {
        real now[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; ++i) now[i] = next[i];
        if (start + BATCH < p.start + FORWARD_CHUNK) source.fetch(next, start + BATCH);
#pragma unroll
        for (int i = 0; i < BATCH; ++i, out += channels) {
            float sum = offset;
#pragma unroll
            for (int k = 0; k + 1 < TAPS; ++k) window[k] = window[k + 1];
            window[TAPS - 1] = to_float(now[i]);
#pragma unroll
            for (int k = 0; k < TAPS; ++k) sum = fmaf(w[k], window[k], sum);
            store_if(start + i < length, out, sum * sigmoid(sum));
        }
    }
}

// The gradients of the weights and the bias are added to what is there.
extern "C" __global__ void __launch_bounds__(THREADS)
    conv_backward(const real* x, u64 x_item, u64 x_position, const float* weight, const float* bias,
                  const real* upstream, u64 upstream_item, u64 upstream_position, real* grad_x, float* grad_weight,
                  float* grad_bias, int channels, int length) {
    const Place p = find_place(channels, length, BACKWARD_CHUNK);
    if (p.channel >= channels) return;
    const Source source{x + p.item * x_item + p.channel, x_position, length};
    const Source above{upstream + p.item * upstream_item + p.channel, upstream_position, length};
    grad_x += (u64)p.item * length * channels + p.channel;
    float w[TAPS], window[TAPS], to_sum[TAPS] = {}, to_weight[TAPS] = {}, to_bias = 0.0f;
    real next_x[BATCH], next_above[BATCH];
#pragma unroll
    for (int k = 0; k < TAPS; ++k) w[k] = weight[p.channel * TAPS + k];
    source.look_back(window, p.start);
    source.fetch(next_x, p.start), above.fetch(next_above, p.start);
    const float offset = bias[p.channel];
    const int end = p.start + BACKWARD_CHUNK;
#pragma unroll 1
    for (int start = p.start; start < end; start += BATCH) {
        real now_x[BATCH], now_above[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; ++i) now_x[i] = next_x[i], now_above[i] = next_above[i];
        if (start + BATCH < end) source.fetch(next_x, start + BATCH), above.fetch(next_above, start + BATCH);
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            const int t = start + i, done = t - TAPS + 1;  // the position whose last use is this one
            float sum = offset, to_x = 0.0f;
#pragma unroll
            for (int k = 0; k + 1 < TAPS; ++k) window[k] = window[k + 1], to_sum[k] = to_sum[k + 1];
            window[TAPS - 1] = to_float(now_x[i]);
#pragma unroll
            for (int k = 0; k < TAPS; ++k) sum = fmaf(w[k], window[k], sum);
            const float s = sigmoid(sum), grad = to_float(now_above[i]) * s * fmaf(sum, 1.0f - s, 1.0f);
            to_sum[TAPS - 1] = grad;
            const float own = t < end ? grad : 0.0f;
#pragma unroll
            for (int k = 0; k < TAPS; ++k) {
                to_weight[k] = fmaf(own, window[k], to_weight[k]);
                to_x = fmaf(w[TAPS - 1 - k], to_sum[k], to_x);
            }
            to_bias += own;
            store_if(done >= p.start && done < length, grad_x + (u64)done * channels, to_x);
        }
    }
#pragma unroll
    for (int k = 0; k < TAPS; ++k) atomicAdd(grad_weight + p.channel * TAPS + k, to_weight[k]);
    atomicAdd(grad_bias + p.channel, to_bias);
}
