// EWA splatting with the semantics of maquette's rasterizer: 0.3 pixels of dilation, contributions below 1/255 are
// skipped, alpha is cut at 0.99; blended back to front with premultiplied colours.

const SPLAT_TEXTURE_WIDTH = 2048;
const SPLAT_NEAR = 0.2;

const SPLAT_VERTEX = `#version 300 es
precision highp float;
precision highp int;
precision highp usampler2D;
uniform usampler2D splats;
uniform mat4 view;
uniform vec2 focal, viewport, limit;
uniform float near, splatScale;
in uint splat;
out vec2 sigmas;
flat out vec4 color;

mat3 rotation(uint code) {
  vec3 others = (vec3(code >> 20 & 1023u, code >> 10 & 1023u, code & 1023u) - 511.0) / (511.0 * sqrt(2.0));
  float rest = sqrt(max(0.0, 1.0 - dot(others, others)));
  uint largest = code >> 30;
  vec4 q = largest == 0u ? vec4(rest, others)
    : largest == 1u ? vec4(others.x, rest, others.yz)
    : largest == 2u ? vec4(others.xy, rest, others.z) : vec4(others, rest);
  float w = q.x, x = q.y, y = q.z, z = q.w;
  return mat3(
    1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
    2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
    2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
}

vec4 bytes(uint word) {
  return vec4(word & 255u, word >> 8 & 255u, word >> 16 & 255u, word >> 24);
}

void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);
  int first = 2 * int(splat), width = ${SPLAT_TEXTURE_WIDTH};
  uvec4 a = texelFetch(splats, ivec2(first % width, first / width), 0);
  uvec4 b = texelFetch(splats, ivec2(first % width + 1, first / width), 0);
  vec3 center = (view * vec4(uintBitsToFloat(a.xyz), 1.0)).xyz;
  if (center.z <= near) return;
  vec4 size = bytes(b.y);
  color = bytes(a.w) / 255.0;
  color.rgb *= 1.0 + size.w / 64.0;
  vec3 scales = splatScale * exp(uintBitsToFloat(b.z) + uintBitsToFloat(b.w) * size.xyz);
  mat3 spread = mat3(view) * rotation(b.x);
  spread[0] *= scales.x;
  spread[1] *= scales.y;
  spread[2] *= scales.z;
  vec2 bent = clamp(center.xy / center.z, -limit, limit);
  mat3x2 jacobian = mat3x2(focal.x / center.z, 0.0, 0.0, focal.y / center.z, -focal * bent / center.z);
  mat3x2 axes = jacobian * spread;
  vec3 row0 = vec3(axes[0].x, axes[1].x, axes[2].x), row1 = vec3(axes[0].y, axes[1].y, axes[2].y);
  float xx = dot(row0, row0) + 0.3, xy = dot(row0, row1), yy = dot(row1, row1) + 0.3;
  float middle = 0.5 * (xx + yy), spreading = length(vec2(0.5 * (xx - yy), xy));
  float longer = middle + spreading, shorter = max(middle - spreading, 0.3);
  vec2 along = xx >= yy ? vec2(longer - yy, xy) : vec2(xy, longer - xx);
  along = spreading > 1e-6 * middle ? normalize(along) : vec2(1.0, 0.0);
  float reach = sqrt(2.0 * log(max(255.0 * color.a, 1.0)));
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0;
  sigmas = corner * reach;
  vec2 offset = sigmas.x * sqrt(longer) * along + sigmas.y * sqrt(shorter) * vec2(-along.y, along.x);
  vec2 pixels = focal * center.xy / center.z + offset;
  gl_Position = vec4(pixels * vec2(2.0, -2.0) / viewport, 0.0, 1.0);
}`;

const SPLAT_FRAGMENT = `#version 300 es
precision highp float;
in vec2 sigmas;
flat in vec4 color;
out vec4 result;
void main() {
  float alpha = min(0.99, color.a * exp(-0.5 * dot(sigmas, sigmas)));
  if (alpha < 1.0 / 255.0) discard;
  result = vec4(color.rgb * alpha, alpha);
}`;

class SplatScene {
  constructor(gl, facts, arrays, onChange) {
    this.gl = gl;
    this.near = Math.min(SPLAT_NEAR, 0.2 * facts.radius);
    this.splatScale = facts.options.splatScale;
    const { count, words, centers } = unpackGaussians(facts, arrays);
    const rows = Math.ceil((2 * count) / SPLAT_TEXTURE_WIDTH);
    if (rows > gl.getParameter(gl.MAX_TEXTURE_SIZE)) throw new Error("this graphics card cannot hold so many Gaussians");
    const padded = new Uint32Array(4 * SPLAT_TEXTURE_WIDTH * rows);
    padded.set(words);
    this.texture = makeTexture(gl, gl.RGBA32UI, SPLAT_TEXTURE_WIDTH, rows);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, SPLAT_TEXTURE_WIDTH, rows, gl.RGBA_INTEGER, gl.UNSIGNED_INT, padded);
    const floats = gl.getExtension("EXT_color_buffer_float") || gl.getExtension("EXT_color_buffer_half_float");
    this.target = { format: floats ? gl.RGBA16F : gl.RGBA8, samples: 0 };
    Object.assign(this, makeProgram(gl, SPLAT_VERTEX, SPLAT_FRAGMENT, ["splat"]));
    this.vertices = gl.createVertexArray();
    gl.bindVertexArray(this.vertices);
    this.buffer = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffer);
    gl.bufferData(gl.ARRAY_BUFFER, 4 * count, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribIPointer(0, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(0, 1);
    this.drawn = 0;
    this.order = new SplatOrder(centers, (order) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffer);
      gl.bufferSubData(gl.ARRAY_BUFFER, 0, order);
      this.drawn = order.length;
      onChange();
    });
  }

  prepare(camera) {
    this.order.ask(cameraAxes(camera).backward.map((value) => -value));
  }

  settled() {
    return this.order.settled();
  }

  draw(camera, width, height) {
    const { gl, uniforms } = this;
    const focal = (0.5 * height) / Math.tan((camera.fov * degrees) / 2);
    gl.useProgram(this.program);
    gl.bindVertexArray(this.vertices);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.uniform1i(uniforms.splats, 0);
    gl.uniformMatrix4fv(uniforms.view, false, viewMatrix(camera));
    gl.uniform2f(uniforms.focal, focal, focal);
    gl.uniform2f(uniforms.viewport, width, height);
    gl.uniform2f(uniforms.limit, (1.3 * width) / (2 * focal), (1.3 * height) / (2 * focal));
    gl.uniform1f(uniforms.near, this.near);
    gl.uniform1f(uniforms.splatScale, this.splatScale);
    gl.disable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.drawn);
    gl.disable(gl.BLEND);
  }
}
