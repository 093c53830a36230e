// Backward pass of the projection: gradients of the records, over all views of an item, to gradients of its Gaussians.
#include "gaussian_common.cuh"

namespace {

// Gradients of one Gaussian, summed over views; `axes` is with respect to the rows of R(q) diag(s).
struct Sum {
    float3 mean, color;
    Axes axes;
    float log_opacity;
};

__device__ __forceinline__ void add_scaled(float3& target, float3 v, float factor) {
    target.x += factor * v.x;
    target.y += factor * v.y;
    target.z += factor * v.z;
}

__device__ __forceinline__ float3 scaled_sum(float a, float3 p, float b, float3 q) {
    return make_float3(a * p.x + b * q.x, a * p.y + b * q.y, a * p.z + b * q.z);
}

__device__ __forceinline__ float3 cross(float3 a, float3 b) {
    return make_float3(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x);
}

__device__ __forceinline__ float3 rotation_row(float4 row) { return make_float3(row.x, row.y, row.z); }

// Adds what the rows of m get by way of the factor on the opacity in antialiased mode. Its logarithm is half of
// log det(m m^T) - log det(m m^T + dilation), and det(m m^T) the square of n = m0 x m1.
__device__ __forceinline__ void add_compensation(const Splat& s, float det, float v_log_opacity, float3& v_m0,
                                                 float3& v_m1) {
    const float3 n = normal(s);
    const float area = dot(n, n);
    if (!(area > MIN_AREA_RATIO * det)) return;
    const float without = v_log_opacity / area, with = v_log_opacity / det;
    add_scaled(v_m0, cross(s.m1, n), without);
    add_scaled(v_m1, cross(n, s.m0), without);
    add_scaled(v_m0, scaled_sum(s.var_y, s.m0, -s.cov, s.m1), -with);
    add_scaled(v_m1, scaled_sum(s.var_x, s.m1, -s.cov, s.m0), -with);
}

// `centre` = dL/d(u, v, conic xx, conic xy), `shading` = dL/d(red, green, blue, z), `rest` = dL/d(conic yy, log opacity).
__device__ __forceinline__ void add_view(Sum& sum, const Camera& c, float3 mean, const Axes& axes, int width,
                                         int height, bool antialiased, float4 centre, float4 shading, float2 rest) {
    const Splat s = project(c, mean, axes, width, height);
    add_scaled(sum.color, make_float3(shading.x, shading.y, shading.z), 1.0f);
    sum.log_opacity += rest.y;

    // Conic = covariance^-1, so dL/dcovariance = -conic (dL/dconic) conic, with the mixed entry of dL/dconic halved.
    const float det = determinant(s), inv_det = 1.0f / det;
    const float xx = s.var_y * inv_det, xy = -s.cov * inv_det, yy = s.var_x * inv_det;
    const float g_xx = centre.z, g_xy = 0.5f * centre.w, g_yy = rest.x;
    const float t00 = xx * g_xx + xy * g_xy, t01 = xx * g_xy + xy * g_yy;
    const float t10 = xy * g_xx + yy * g_xy, t11 = xy * g_xy + yy * g_yy;
    const float v_xx = -(t00 * xx + t01 * xy), v_xy = -(t00 * xy + t01 * yy), v_yy = -(t10 * xy + t11 * yy);

    // Covariance = m m^T, m = k axes.
    float3 v_m0 = scaled_sum(2.0f * v_xx, s.m0, 2.0f * v_xy, s.m1);
    float3 v_m1 = scaled_sum(2.0f * v_xy, s.m0, 2.0f * v_yy, s.m1);
    if (antialiased) add_compensation(s, det, rest.y, v_m0, v_m1);
    add_scaled(sum.axes.x, scaled_sum(s.k0.x, v_m0, s.k1.x, v_m1), 1.0f);
    add_scaled(sum.axes.y, scaled_sum(s.k0.y, v_m0, s.k1.y, v_m1), 1.0f);
    add_scaled(sum.axes.z, scaled_sum(s.k0.z, v_m0, s.k1.z, v_m1), 1.0f);
    const float3 v_k0 = make_float3(dot(v_m0, axes.x), dot(v_m0, axes.y), dot(v_m0, axes.z));
    const float3 v_k1 = make_float3(dot(v_m1, axes.x), dot(v_m1, axes.y), dot(v_m1, axes.z));

    // k = Jacobian times rotation. The Jacobian's mixed entries are -f near / z^2, where `near` carries no gradient,
    // not even to z, once the margin limits it.
    const float v_j00 = dot(v_k0, rotation_row(c.x)), v_j02 = dot(v_k0, rotation_row(c.z));
    const float v_j11 = dot(v_k1, rotation_row(c.y)), v_j12 = dot(v_k1, rotation_row(c.z));
    const float inv_z = 1.0f / s.p.z, w = inverse_w(s.p.z);
    const float fx_zz = c.fx * inv_z * inv_z, fy_zz = c.fy * inv_z * inv_z;
    const float v_x = centre.x * c.fx * w - (s.free_x ? fx_zz * v_j02 : 0.0f);
    const float v_y = centre.y * c.fy * w - (s.free_y ? fy_zz * v_j12 : 0.0f);
    const float v_z = shading.w - (centre.x * c.fx * (s.p.x * w) + centre.y * c.fy * (s.p.y * w)) * w -
                      fx_zz * (v_j00 - 2.0f * s.near_x * inv_z * v_j02) -
                      fy_zz * (v_j11 - 2.0f * s.near_y * inv_z * v_j12);
    add_scaled(sum.mean, rotation_row(c.x), v_x);
    add_scaled(sum.mean, rotation_row(c.y), v_y);
    add_scaled(sum.mean, rotation_row(c.z), v_z);
}

// Gradient of R(q) given that of its entries.
__device__ __forceinline__ float4 quaternion_gradient(float4 q, const Axes& v) {
    const float w = q.x, x = q.y, y = q.z, z = q.w;
    float4 g;
    g.x = 2 * (z * (v.y.x - v.x.y) + y * (v.x.z - v.z.x) + x * (v.z.y - v.y.z));
    g.y = 2 * (y * (v.x.y + v.y.x) + z * (v.x.z + v.z.x) + w * (v.z.y - v.y.z)) - 4 * x * (v.y.y + v.z.z);
    g.z = 2 * (x * (v.x.y + v.y.x) + z * (v.y.z + v.z.y) + w * (v.x.z - v.z.x)) - 4 * y * (v.x.x + v.z.z);
    g.w = 2 * (x * (v.x.z + v.z.x) + y * (v.y.z + v.z.y) + w * (v.y.x - v.x.y)) - 4 * z * (v.x.x + v.y.y);
    return g;
}

__device__ __forceinline__ float3 times(float3 a, float3 b) { return make_float3(a.x * b.x, a.y * b.y, a.z * b.z); }

__device__ __forceinline__ void store3(float* target, size_t index, float3 v) {
    target[3 * index] = v.x;
    target[3 * index + 1] = v.y;
    target[3 * index + 2] = v.z;
}

}  // namespace

// `width` and `height` are those of the whole image. One thread a Gaussian of an item, from `first_item` on; it sums its
// views in order, so this pass is deterministic. `seen` has `warps_per_view` a view.
extern "C" __global__ void __launch_bounds__(128)
project_backward(const float* __restrict__ means, const float4* __restrict__ quats, const float* __restrict__ scales,
                 const float* __restrict__ opacities, const float4* __restrict__ world_to_camera,
                 const float* __restrict__ intrinsics, const Ranked* __restrict__ seen, const Ranked* __restrict__ rows,
                 const float4* __restrict__ eight, const float2* __restrict__ two, u32 row_limit,
                 float* grad_means, float4* grad_quats, float* grad_scales, float* grad_opacities, float* grad_colors,
                 int first_item, int count, int views, int warps_per_view, int blocks_per_item, int width, int height,
                 int antialiased, float scale_modifier) {
    const int item = blockIdx.x / blocks_per_item, b = first_item + item;
    const int n = (blockIdx.x - item * blocks_per_item) * 128 + threadIdx.x;
    if (n >= count) return;
    const size_t source = (size_t)b * count + n;
    const float3 zero = make_float3(0.0f, 0.0f, 0.0f);
    Sum sum = {zero, zero, {zero, zero, zero}, 0.0f};
    float3 v_scale = zero;
    float4 v_quat = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    bool reached = false;

    const float3 mean = load3(means, source), scale = load3(scales, source);
    const float3 factors = make_float3(scale.x * scale_modifier, scale.y * scale_modifier, scale.z * scale_modifier);
    const float4 q = __ldg(quats + source);
    const Axes axes = scaled_axes(q, factors);
    const u32 lane = threadIdx.x & 31;
    const Ranked* next = seen + (size_t)b * views * warps_per_view + (n >> 5);
    Ranked coming = *next;
    for (int view = 0; view < views; ++view) {
        const Ranked here = coming;
        next += warps_per_view;
        if (view + 1 < views) coming = *next;  // on its way while this view is worked on
        if (!here.has(lane)) continue;
        const u32 slot = here.number(lane);
        const Ranked near = rows[slot >> 5];
        if (!near.has(slot)) continue;
        const size_t row = near.number(slot);
        if (row >= row_limit) continue;
        reached = true;
        add_view(sum, load_camera(world_to_camera, intrinsics, b * views + view), mean, axes, width, height,
                 antialiased, __ldg(eight + 2 * row), __ldg(eight + 2 * row + 1), __ldg(two + row));
    }
    float v_opacity = 0.0f;
    if (reached) {  // a Gaussian with a value that is not finite never is
        const Axes r = scaled_axes(q, make_float3(1.0f, 1.0f, 1.0f));
        const Axes& v = sum.axes;
        v_scale = make_float3(scale_modifier * (v.x.x * r.x.x + v.y.x * r.y.x + v.z.x * r.z.x),
                              scale_modifier * (v.x.y * r.x.y + v.y.y * r.y.y + v.z.y * r.z.y),
                              scale_modifier * (v.x.z * r.x.z + v.y.z * r.y.z + v.z.z * r.z.z));
        v_quat = quaternion_gradient(q, {times(v.x, factors), times(v.y, factors), times(v.z, factors)});
        v_opacity = sum.log_opacity / __ldg(opacities + source);
    }
    store3(grad_means, source, sum.mean);
    store3(grad_scales, source, v_scale);
    store3(grad_colors, source, sum.color);
    grad_quats[source] = v_quat;
    grad_opacities[source] = v_opacity;
}
