// Causal depthwise convolution with four taps and SiLU, forward and backward.
//
// Sequences are [batch, length, channels] with dense channels. A thread owns one channel over CHUNK positions and keeps
// the last inputs in registers. Macro: REAL = 0 (float), 1 (half) or 2 (bfloat16), the type of the sequences.

#include "real.cuh"

constexpr int TAPS = 4;
constexpr int CHUNK = 64;
constexpr int THREADS = 128;

// Inputs of one channel: zero before the first position and after the last.
struct Source {
    const real* x;
    u64 stride;
    int length;
    __device__ __forceinline__ float at(int t) const {
        return t >= 0 && t < length ? to_float(x[(u64)t * stride]) : 0.0f;
    }
};

// A thread's channel, and its first position.
struct Place {
    int item, start, channel;
};

__device__ __forceinline__ Place find_place(int channels, int length) {
    const int across = (channels + THREADS - 1) / THREADS, chunks = (length + CHUNK - 1) / CHUNK;
    const int row = blockIdx.x / across;
    return {row / chunks, row % chunks * CHUNK, (int)(blockIdx.x % across) * THREADS + (int)threadIdx.x};
}

extern "C" __global__ void __launch_bounds__(THREADS)
    conv_forward(const real* x, u64 x_item, u64 x_position, const float* weight, const float* bias, real* y,
                 int channels, int length) {
    const Place p = find_place(channels, length);
    if (p.channel >= channels) return;
    const Source source{x + p.item * x_item + p.channel, x_position, length};
    y += (u64)p.item * length * channels + p.channel;
    float w[TAPS], window[TAPS];
#pragma unroll
    for (int k = 0; k < TAPS; ++k) w[k] = weight[p.channel * TAPS + k];
#pragma unroll
    for (int k = 0; k + 1 < TAPS; ++k) window[k + 1] = source.at(p.start - TAPS + 1 + k);
    const float offset = bias[p.channel];
#pragma unroll 8
    for (int i = 0; i < CHUNK; ++i) {
        const int t = p.start + i;
        float sum = offset;
#pragma unroll
        for (int k = 0; k + 1 < TAPS; ++k) window[k] = window[k + 1];
        window[TAPS - 1] = source.at(t);
#pragma unroll
        for (int k = 0; k < TAPS; ++k) sum = fmaf(w[k], window[k], sum);
        if (t < length) store(y + (u64)t * channels, sum * sigmoid(sum));
    }
}

// The gradients of the weights and the bias are added to what is there.
extern "C" __global__ void __launch_bounds__(THREADS)
    conv_backward(const real* x, u64 x_item, u64 x_position, const float* weight, const float* bias,
                  const real* upstream, u64 upstream_item, u64 upstream_position, real* grad_x, float* grad_weight,
                  float* grad_bias, int channels, int length) {
    const Place p = find_place(channels, length);
    if (p.channel >= channels) return;
    const Source source{x + p.item * x_item + p.channel, x_position, length};
    const Source above{upstream + p.item * upstream_item + p.channel, upstream_position, length};
    grad_x += (u64)p.item * length * channels + p.channel;
    float w[TAPS], window[TAPS], to_sum[TAPS] = {}, to_weight[TAPS] = {}, to_bias = 0.0f;
#pragma unroll
    for (int k = 0; k < TAPS; ++k) w[k] = weight[p.channel * TAPS + k];
#pragma unroll
    for (int k = 0; k + 1 < TAPS; ++k) window[k + 1] = source.at(p.start - TAPS + 1 + k);
    const float offset = bias[p.channel];
#pragma unroll 4
    for (int i = 0; i < CHUNK + TAPS - 1; ++i) {
        const int t = p.start + i;
        float sum = offset;
#pragma unroll
        for (int k = 0; k + 1 < TAPS; ++k) window[k] = window[k + 1], to_sum[k] = to_sum[k + 1];
        window[TAPS - 1] = source.at(t);
#pragma unroll
        for (int k = 0; k < TAPS; ++k) sum = fmaf(w[k], window[k], sum);
        const float s = sigmoid(sum), grad = above.at(t) * s * fmaf(sum, 1.0f - s, 1.0f);
        to_sum[TAPS - 1] = grad;
        if (i < CHUNK) {
#pragma unroll
            for (int k = 0; k < TAPS; ++k) to_weight[k] = fmaf(grad, window[k], to_weight[k]);
            to_bias += grad;
        }
        const int done = t - TAPS + 1;  // the position whose last use was this one
        if (i >= TAPS - 1 && done < length) {
            float to_x = 0.0f;
#pragma unroll
            for (int k = 0; k < TAPS; ++k) to_x = fmaf(w[TAPS - 1 - k], to_sum[k], to_x);
            store(grad_x + (u64)done * channels, to_x);
        }
    }
#pragma unroll
    for (int k = 0; k < TAPS; ++k) atomicAdd(grad_weight + p.channel * TAPS + k, to_weight[k]);
    atomicAdd(grad_bias + p.channel, to_bias);
}
