// What the Gaussian kernels share: constants, records, cameras and the projection of one Gaussian.
//
// Index conventions: item b, view v, bv = b * views + v, Gaussian n of its item, slot of a record among all records.
// Tiles are 16 x 16 pixels; tile t = bv * tiles_per_view + row * tiles_x + column. Pixel centres lie at +0.5.
//
// A record holds one projected Gaussian in two float4:
//   (u, v, A, B)  (C, log2_opacity, z, bits of n)
// with centre (u, v) in pixels and log2(alpha) = log2_opacity + A dx^2 + B dx dy + C dy^2, (dx, dy) = (u, v) - pixel.
// z is the view-space depth. Culled Gaussians have no record. The others have one in any order, but the 32 Gaussians of
// a warp of `project_and_count` have theirs in a row, which is what a `Ranked` tells.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;

#define TILE 16
#define FULL_WARP 0xffffffffu

constexpr float NEAR_Z = 0.2f;
constexpr float DILATION_PX = 0.3f;
constexpr float FRUSTUM_MARGIN = 1.3f;
constexpr float MIN_ALPHA = 1.0f / 255.0f;
constexpr float MAX_ALPHA = 0.99f;
constexpr float MIN_TRANSMITTANCE = 1e-4f;
constexpr float MIN_AREA_RATIO = 1e-8f;
constexpr float LOG2_MIN_ALPHA = -7.99435344f;  // log2(1 / 255)
constexpr float HALF_LOG2E = 0.72134752f;       // log2(e) / 2
constexpr float LN2 = 0.69314718f;

// Some of 32 neighbours, numbered one after the other: a bit for each of them, and the number of the first.
// The visible ones of 32 Gaussians of a view have slots; of 32 slots, those that a pixel may see have rows of gradients.
struct __align__(8) Ranked {
    u32 first, bits;

    __device__ __forceinline__ bool has(u32 i) const { return bits >> (i & 31) & 1; }
    __device__ __forceinline__ u32 number(u32 i) const { return first + __popc(bits & ((1u << (i & 31)) - 1)); }
};

// Leaves numbers in memory of the host. It has whole ones when both ends show the ticket.
constexpr int LANDED = 8;  // as in cuda_landing.py

__device__ __forceinline__ void land(volatile u64* landing, u64 ticket, const volatile u64* numbers) {
    landing[0] = ticket;
    __threadfence_system();
    for (int i = 0; i < LANDED; ++i) landing[1 + i] = numbers[i];
    __threadfence_system();
    landing[1 + LANDED] = ticket;
}

// Pinhole camera: rows of the rotation with the translation in w, focal lengths and principal point in pixels.
struct Camera {
    float4 x, y, z;
    float fx, fy, cx, cy;
};

__device__ __forceinline__ Camera load_camera(const float4* world_to_camera, const float* intrinsics, int bv) {
    const float4* rows = world_to_camera + 4 * (size_t)bv;
    const float* k = intrinsics + 9 * (size_t)bv;
    return {__ldg(rows), __ldg(rows + 1), __ldg(rows + 2), __ldg(k), __ldg(k + 4), __ldg(k + 2), __ldg(k + 5)};
}

__device__ __forceinline__ float dot3(float4 row, float3 p) { return row.x * p.x + row.y * p.y + row.z * p.z; }

__device__ __forceinline__ float3 load3(const float* values, size_t index) {
    return make_float3(__ldg(values + 3 * index), __ldg(values + 3 * index + 1), __ldg(values + 3 * index + 2));
}

// Rows of R(q) diag(s), the standard deviations along the rotated axes; q = (w, x, y, z) is used as it is.
struct Axes {
    float3 x, y, z;
};

__device__ __forceinline__ Axes scaled_axes(float4 q, float3 s) {
    const float w = q.x, x = q.y, y = q.z, z = q.w;
    Axes a;
    a.x = make_float3((1 - 2 * (y * y + z * z)) * s.x, 2 * (x * y - w * z) * s.y, 2 * (x * z + w * y) * s.z);
    a.y = make_float3(2 * (x * y + w * z) * s.x, (1 - 2 * (x * x + z * z)) * s.y, 2 * (y * z - w * x) * s.z);
    a.z = make_float3(2 * (x * z - w * y) * s.x, 2 * (y * z + w * x) * s.y, (1 - 2 * (x * x + y * y)) * s.z);
    return a;
}

// One Gaussian in one view. `k0`, `k1` are the rows of the Jacobian times the camera's rotation, `m0`, `m1` the rows
// of that times the axes, so the 2D covariance is m m^T plus the dilation.
struct Splat {
    float3 p;                // centre in camera axes
    float near_x, near_y;    // x and y at which the projection is linearised
    bool free_x, free_y;     // whether those are the centre's own
    float3 k0, k1, m0, m1;
    float var_x, cov, var_y;
};

__device__ __forceinline__ float3 times_axes(float3 k, const Axes& a) {
    return make_float3(k.x * a.x.x + k.y * a.y.x + k.z * a.z.x, k.x * a.x.y + k.y * a.y.y + k.z * a.z.y,
                       k.x * a.x.z + k.y * a.y.z + k.z * a.z.z);
}

__device__ __forceinline__ float dot(float3 a, float3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }

__device__ __forceinline__ Splat project(const Camera& c, float3 mean, const Axes& axes, int width, int height) {
    Splat s;
    s.p = make_float3(dot3(c.x, mean) + c.x.w, dot3(c.y, mean) + c.y.w, dot3(c.z, mean) + c.z.w);
    const float limit_x = FRUSTUM_MARGIN * 0.5f * width / c.fx, limit_y = FRUSTUM_MARGIN * 0.5f * height / c.fy;
    const float inv_z = 1.0f / s.p.z;
    const float ratio_x = s.p.x * inv_z, ratio_y = s.p.y * inv_z;
    s.free_x = fabsf(ratio_x) <= limit_x;
    s.free_y = fabsf(ratio_y) <= limit_y;
    s.near_x = s.free_x ? s.p.x : copysignf(limit_x, ratio_x) * s.p.z;
    s.near_y = s.free_y ? s.p.y : copysignf(limit_y, ratio_y) * s.p.z;
    const float j00 = c.fx * inv_z, j02 = -j00 * s.near_x * inv_z;
    const float j11 = c.fy * inv_z, j12 = -j11 * s.near_y * inv_z;
    s.k0 = make_float3(j00 * c.x.x + j02 * c.z.x, j00 * c.x.y + j02 * c.z.y, j00 * c.x.z + j02 * c.z.z);
    s.k1 = make_float3(j11 * c.y.x + j12 * c.z.x, j11 * c.y.y + j12 * c.z.y, j11 * c.y.z + j12 * c.z.z);
    s.m0 = times_axes(s.k0, axes);
    s.m1 = times_axes(s.k1, axes);
    s.var_x = dot(s.m0, s.m0) + DILATION_PX;
    s.cov = dot(s.m0, s.m1);
    s.var_y = dot(s.m1, s.m1) + DILATION_PX;
    return s;
}

// m0 x m1; its square is det(m m^T).
__device__ __forceinline__ float3 normal(const Splat& s) {
    return make_float3(s.m0.y * s.m1.z - s.m0.z * s.m1.y, s.m0.z * s.m1.x - s.m0.x * s.m1.z,
                       s.m0.x * s.m1.y - s.m0.y * s.m1.x);
}

// det(m m^T + dilation), as a sum of positive terms: exact where var_x * var_y - cov^2 would cancel.
__device__ __forceinline__ float determinant(const Splat& s) {
    const float3 n = normal(s);
    return dot(n, n) + DILATION_PX * (s.var_x + s.var_y - DILATION_PX);
}

// Factor on the opacity in antialiased mode: root of the ratio of the determinants without and with the dilation.
__device__ __forceinline__ float compensation(const Splat& s, float det) {
    const float3 n = normal(s);
    return sqrtf(fmaxf(dot(n, n) / det, MIN_AREA_RATIO));
}

// A perspective divide with the guard of the original renderer against w = 0.
__device__ __forceinline__ float inverse_w(float z) { return 1.0f / (z + 1e-7f); }
