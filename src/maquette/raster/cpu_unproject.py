"""CPU backend, last step of the backward pass: from sums over pixels to gradients of the 3D Gaussians.

Every Gaussian is one thread's, and its records are added in a fixed order in float64, so that results do not depend on
the number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from maquette.raster.cpu_jit import F32, Array, compiled
from maquette.raster.reference import DILATION_PX, FRUSTUM_MARGIN, MIN_AREA_RATIO

CHUNK = 512
"""Gaussians per task."""
GRADIENT_FIELDS = 11
"""Gradients of one Gaussian but for its colour: mean (3), quaternion (4), scale (3), opacity."""
_MOMENT_FIELDS = 10


@compiled()
def _rotation(quat: Array, rotation: Array) -> None:
    """Writes the 3x3 matrix of a quaternion (w, x, y, z) by the formula for unit ones."""
    w, x, y, z = quat[0], quat[1], quat[2], quat[3]
    rotation[0, 0], rotation[0, 1], rotation[0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    rotation[1, 0], rotation[1, 1], rotation[1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    rotation[2, 0], rotation[2, 1], rotation[2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)


@compiled()
def _add_quat_gradient(quat: Array, g: Array, gradient: Array) -> None:
    """Adds the gradient of a quaternion, given that (g) of its matrix."""
    w, x, y, z = quat[0], quat[1], quat[2], quat[3]
    gradient[0] += 2 * (x * (g[2, 1] - g[1, 2]) + y * (g[0, 2] - g[2, 0]) + z * (g[1, 0] - g[0, 1]))
    gradient[1] += 2 * (
        y * (g[0, 1] + g[1, 0]) + z * (g[0, 2] + g[2, 0]) + w * (g[2, 1] - g[1, 2]) - 2 * x * (g[1, 1] + g[2, 2])
    )
    gradient[2] += 2 * (
        x * (g[0, 1] + g[1, 0]) + z * (g[1, 2] + g[2, 1]) + w * (g[0, 2] - g[2, 0]) - 2 * y * (g[0, 0] + g[2, 2])
    )
    gradient[3] += 2 * (
        x * (g[0, 2] + g[2, 0]) + y * (g[1, 2] + g[2, 1]) + w * (g[1, 0] - g[0, 1]) - 2 * z * (g[0, 0] + g[1, 1])
    )


@compiled()
def _limited(coordinate: float, z: float, limit: float) -> tuple[float, float]:
    """The coordinate within +-limit * z, and the factor (0 or 1) on its gradient."""
    ratio = coordinate / z
    if ratio > limit:
        return limit * z, 0.0
    if ratio < -limit:
        return -limit * z, 0.0
    return coordinate, 1.0


@compiled()
def _gradients_in_the_image(axes: Array, moments: Array) -> tuple[float, float, float, float, float]:
    """Gradients of centre (u, v) and covariance (xx, xy, yy) from axes in pixels `[2, 3]` and sums over pixels."""
    var_x = axes[0, 0] ** 2 + axes[0, 1] ** 2 + axes[0, 2] ** 2 + DILATION_PX
    var_y = axes[1, 0] ** 2 + axes[1, 1] ** 2 + axes[1, 2] ** 2 + DILATION_PX
    cov_xy = axes[0, 0] * axes[1, 0] + axes[0, 1] * axes[1, 1] + axes[0, 2] * axes[1, 2]
    determinant = var_x * var_y - cov_xy * cov_xy
    conic_xx, conic_xy, conic_yy = var_y / determinant, -cov_xy / determinant, var_x / determinant

    # Centre: the exponent is -(xx dx^2 + yy dy^2) / 2 - xy dx dy.
    grad_u = -conic_xx * moments[1] - conic_xy * moments[2]
    grad_v = -conic_yy * moments[2] - conic_xy * moments[1]
    # Covariance S: the gradient is half of K M K, with M the second moments and K the inverse of S.
    left_x, left_xy = conic_xx * moments[3] + conic_xy * moments[4], conic_xx * moments[4] + conic_xy * moments[5]
    left_yx, left_y = conic_xy * moments[3] + conic_yy * moments[4], conic_xy * moments[4] + conic_yy * moments[5]
    grad_xx = 0.5 * (left_x * conic_xx + left_xy * conic_xy)
    grad_xy = 0.5 * (left_x * conic_xy + left_xy * conic_yy)
    grad_yy = 0.5 * (left_yx * conic_xy + left_y * conic_yy)
    return grad_u, grad_v, grad_xx, grad_xy, grad_yy


@compiled()
def _add_compensation_gradient(antialiased: bool, axes: Array, grad_log_opacity: float, grad_axes: Array) -> None:
    """In antialiased mode: adds the gradient that axes in pixels `[2, 3]` get by way of the factor on the opacity.

    Its logarithm is half of log(det S0) - log(det S), S0 = axes axes^T and S with the dilation; det S0 is the square
    of the cross product of the axes' rows.
    """
    if not antialiased:
        return
    normal_0 = axes[0, 1] * axes[1, 2] - axes[0, 2] * axes[1, 1]
    normal_1 = axes[0, 2] * axes[1, 0] - axes[0, 0] * axes[1, 2]
    normal_2 = axes[0, 0] * axes[1, 1] - axes[0, 1] * axes[1, 0]
    area = normal_0**2 + normal_1**2 + normal_2**2
    var_x = axes[0, 0] ** 2 + axes[0, 1] ** 2 + axes[0, 2] ** 2 + DILATION_PX
    var_y = axes[1, 0] ** 2 + axes[1, 1] ** 2 + axes[1, 2] ** 2 + DILATION_PX
    cov_xy = axes[0, 0] * axes[1, 0] + axes[0, 1] * axes[1, 1] + axes[0, 2] * axes[1, 2]
    determinant = area + DILATION_PX * (var_x + var_y - DILATION_PX)
    if not area > MIN_AREA_RATIO * determinant:
        return
    var_x0, var_y0 = var_x - DILATION_PX, var_y - DILATION_PX
    for k in range(3):
        x, y = axes[0, k], axes[1, k]
        grad_axes[0, k] += grad_log_opacity * (
            (var_y0 * x - cov_xy * y) / area - (var_y * x - cov_xy * y) / determinant
        )
        grad_axes[1, k] += grad_log_opacity * (
            (var_x0 * y - cov_xy * x) / area - (var_x * y - cov_xy * x) / determinant
        )


@compiled()
def _add_gradients(
    mean: Array,
    quat: Array,
    scale: Array,
    opacity: float,
    view: Array,
    camera: Array,
    height: int,
    width: int,
    antialiased: bool,
    moments: Array,
    work: Array,
    gradient: Array,
) -> None:
    """Adds the gradients of one Gaussian in one view.

    `moments` holds its sums over all pixels; `work` is scratch `[5, 3, 3]`; `gradient` holds mean (3), quaternion (4),
    modified scale (3), opacity. All float64.
    """
    fx, fy = camera[0, 0], camera[1, 1]
    x = view[0, 0] * mean[0] + view[0, 1] * mean[1] + view[0, 2] * mean[2] + view[0, 3]
    y = view[1, 0] * mean[0] + view[1, 1] * mean[1] + view[1, 2] * mean[2] + view[1, 3]
    z = view[2, 0] * mean[0] + view[2, 1] * mean[1] + view[2, 2] * mean[2] + view[2, 3]
    near_x, pass_x = _limited(x, z, FRUSTUM_MARGIN * width / (2 * fx))
    near_y, pass_y = _limited(y, z, FRUSTUM_MARGIN * height / (2 * fy))
    rotation, linear, axes, grad_axes, grad_linear = work[0], work[1], work[2], work[3], work[4]
    _rotation(quat, rotation)
    for k in range(3):  # rows 0 and 1: pixels per world unit; axes: the Gaussian's axes in pixels
        linear[0, k] = fx / z * view[0, k] - fx * near_x / (z * z) * view[2, k]
        linear[1, k] = fy / z * view[1, k] - fy * near_y / (z * z) * view[2, k]
    for row in range(2):
        for k in range(3):
            axes[row, k] = scale[k] * (
                linear[row, 0] * rotation[0, k] + linear[row, 1] * rotation[1, k] + linear[row, 2] * rotation[2, k]
            )
    grad_u, grad_v, grad_xx, grad_xy, grad_yy = _gradients_in_the_image(axes, moments)
    for k in range(3):  # S = axes axes^T
        grad_axes[0, k] = 2 * (grad_xx * axes[0, k] + grad_xy * axes[1, k])
        grad_axes[1, k] = 2 * (grad_xy * axes[0, k] + grad_yy * axes[1, k])
    _add_compensation_gradient(antialiased, axes, moments[0], grad_axes)
    for row in range(2):
        for i in range(3):
            grad_linear[row, i] = 0.0
            for k in range(3):
                grad_linear[row, i] += grad_axes[row, k] * rotation[i, k] * scale[k]
    # Jacobian of the projection, then the centre in view space.
    grad_j00, grad_j02, grad_j11, grad_j12 = 0.0, 0.0, 0.0, 0.0
    for k in range(3):
        grad_j00 += grad_linear[0, k] * view[0, k]
        grad_j02 += grad_linear[0, k] * view[2, k]
        grad_j11 += grad_linear[1, k] * view[1, k]
        grad_j12 += grad_linear[1, k] * view[2, k]
    inverse_w, inverse_z2 = 1 / (z + 1e-7), 1 / (z * z)
    grad_x = fx * inverse_w * grad_u - pass_x * fx * inverse_z2 * grad_j02
    grad_y = fy * inverse_w * grad_v - pass_y * fy * inverse_z2 * grad_j12
    grad_z = moments[9] - inverse_w * inverse_w * (fx * x * grad_u + fy * y * grad_v)
    grad_z += -inverse_z2 * (fx * grad_j00 + fy * grad_j11)
    grad_z += 2 * inverse_z2 / z * (fx * near_x * grad_j02 + fy * near_y * grad_j12)
    for k in range(3):
        gradient[k] += view[0, k] * grad_x + view[1, k] * grad_y + view[2, k] * grad_z
    # Rotation and scale: column k of (rotation * scale) has the gradient linear^T grad_axes.
    grad_rotation = grad_linear
    for k in range(3):
        along = 0.0
        for i in range(3):
            column = linear[0, i] * grad_axes[0, k] + linear[1, i] * grad_axes[1, k]
            along += column * rotation[i, k]
            grad_rotation[i, k] = column * scale[k]
        gradient[7 + k] += along
    _add_quat_gradient(quat, grad_rotation, gradient[3:7])
    gradient[10] += moments[0] / opacity


@compiled(parallel=True)
def unproject_views(
    means: Array,
    quats: Array,
    scales: Array,
    opacities: Array,
    items: Array,
    views: Array,
    cameras: Array,
    height: int,
    width: int,
    antialiased: bool,
    counts: Array,
    slots: Array,
    moments: Array,
    scale_modifier: float,
    gradients: Array,
    targets: Array,
    color_gradients: Array,
) -> None:
    """Adds the gradients of a group of S views, all of which lie one after another in the batch.

    Args:
        means, quats, scales, opacities, items, views, cameras, antialiased: as for `project_views`.
        height, width: size of the whole image in pixels.
        counts, slots: records of each Gaussian, `[S, N]`.
        moments: records, `[P, 10]` float32.
        scale_modifier: factor that `scales` contain.
        gradients: result, mean (3), quaternion (4), scale (3), opacity, `[B, N, GRADIENT_FIELDS]` float32, added to.
        targets: row of `color_gradients` for each view; views of one row lie one after another, `[S]`.
        color_gradients: result, `[G, N, 3]` float32, added to.
    """
    num_gaussians = means.shape[1]
    for task in prange((num_gaussians + CHUNK - 1) // CHUNK):
        work = np.zeros((5, 3, 3))
        total = np.zeros(_MOMENT_FIELDS)
        gradient = np.zeros(GRADIENT_FIELDS)
        inputs = np.zeros((3, 4))
        for n in range(task * CHUNK, min((task + 1) * CHUNK, num_gaussians)):
            for s in range(len(items)):
                if counts[s, n] == 0:
                    continue
                b = items[s]
                total[:] = 0.0
                for slot in range(slots[s, n], slots[s, n] + counts[s, n]):
                    for field in range(_MOMENT_FIELDS):
                        total[field] += moments[slot, field]
                for k in range(3):
                    inputs[0, k], inputs[2, k] = means[b, n, k], scales[b, n, k]
                for k in range(4):
                    inputs[1, k] = quats[b, n, k]
                gradient[:] = 0.0
                _add_gradients(
                    inputs[0],
                    inputs[1],
                    inputs[2],
                    float(opacities[b, n]),
                    views[s],
                    cameras[s],
                    height,
                    width,
                    antialiased,
                    total,
                    work,
                    gradient,
                )
                for field in range(GRADIENT_FIELDS):
                    factor = scale_modifier if 7 <= field < 10 else 1.0
                    gradients[b, n, field] += F32(gradient[field] * factor)
                for channel in range(3):
                    color_gradients[targets[s], n, channel] += F32(total[6 + channel])


@compiled(parallel=True)
def sum_channels(counts: Array, slots: Array, moments: Array, targets: Array, gradients: Array) -> None:
    """Adds the gradients of three features in a group of S views.

    Args:
        counts, slots, moments: as for `unproject_views`.
        targets, gradients: as `targets` and `color_gradients` there.
    """
    num_gaussians = counts.shape[1]
    for task in prange((num_gaussians + CHUNK - 1) // CHUNK):
        for n in range(task * CHUNK, min((task + 1) * CHUNK, num_gaussians)):
            for s in range(len(targets)):
                for channel in range(3):
                    total = 0.0
                    for slot in range(slots[s, n], slots[s, n] + counts[s, n]):
                        total += moments[slot, 6 + channel]
                    gradients[targets[s], n, channel] += F32(total)
