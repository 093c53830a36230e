// Triangles under maquette's lights: distant ones, fixed in the world, in linear light. Both sides are lit, and normals
// face the camera whatever the winding of the file.

const MESH_VERTEX = `#version 300 es
precision highp float;
uniform mat4 view, projection;
in vec3 position;
in vec3 normal;
in vec2 uv;
in vec4 color;
out vec3 point, direction, tint;
out vec2 place;
void main() {
  point = position;
  direction = normal;
  place = uv;
  tint = mix(color.rgb / 12.92, pow((color.rgb + 0.055) / 1.055, vec3(2.4)), step(0.04045, color.rgb));
  gl_Position = projection * (view * vec4(position, 1.0));
}`;

const MESH_FRAGMENT = `#version 300 es
precision highp float;
uniform vec3 eye, base, sky, ground, keyColor, keyDirection, fillColor, fillDirection;
uniform bool smoothNormals, textured;
uniform sampler2D picture;
in vec3 point, direction, tint;
in vec2 place;
out vec4 result;
float soft(vec3 normal, vec3 light) { return max(0.0, (dot(normal, light) + 0.25) / 1.25); }
void main() {
  vec3 albedo = base * tint;
  vec4 texel = texture(picture, place);
  if (textured) {
    if (texel.a < 0.5) discard;
    albedo *= texel.rgb;
  }
  vec3 normal = normalize(cross(dFdx(point), dFdy(point)));
  normal = dot(normal, point - eye) > 0.0 ? -normal : normal;
  if (smoothNormals && dot(direction, direction) > 0.0) {
    vec3 given = normalize(direction);
    normal = dot(given, normal) < 0.0 ? -given : given;
  }
  vec3 light = mix(ground, sky, 0.5 * normal.y + 0.5);
  light += soft(normal, keyDirection) * keyColor + soft(normal, fillDirection) * fillColor;
  vec3 lit = clamp(albedo * light, 0.0, 1.0);
  result = vec4(mix(12.92 * lit, 1.055 * pow(lit, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, lit)), 1.0);
}`;

class MeshScene {
  constructor(gl, facts, arrays) {
    Object.assign(this, { gl, facts, lighting: facts.options.lighting });
    this.target = { format: gl.RGBA8, samples: Math.min(4, gl.getParameter(gl.MAX_SAMPLES)) };
    Object.assign(this, makeProgram(gl, MESH_VERTEX, MESH_FRAGMENT, ["position", "normal", "uv", "color"]));
    this.vertices = gl.createVertexArray();
    gl.bindVertexArray(this.vertices);
    const attributes = [
      ["vertices", 3, gl.FLOAT, false, 0],
      ["normals", 3, gl.BYTE, true, 4],
      ["uvs", 2, gl.FLOAT, false, 0],
      ["colors", 4, gl.UNSIGNED_BYTE, true, 0],
    ];
    attributes.forEach(([name, size, type, normalized, stride], place) => {
      if (!arrays[name]) return;
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, arrays[name], gl.STATIC_DRAW);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, size, type, normalized, stride, 0);
    });
    gl.vertexAttrib4f(3, 1, 1, 1, 1);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, arrays.faces, gl.STATIC_DRAW);
    gl.bindVertexArray(null);
    this.smooth = Boolean(arrays.normals);
  }

  // Pictures are decoded by the browser, which takes a moment.
  async loadTextures(arrays) {
    this.textures = [];
    for (let i = 0; arrays[`texture${i}`]; i++) this.textures.push(await this.makePicture(arrays[`texture${i}`]));
    this.white = await this.makePicture(null);
  }

  async makePicture(bytes) {
    const { gl } = this;
    const given = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
    const picture = bytes ? await createImageBitmap(new Blob([bytes]), given) : new ImageData(1, 1);
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.SRGB8_ALPHA8, gl.RGBA, gl.UNSIGNED_BYTE, picture);
    gl.generateMipmap(gl.TEXTURE_2D);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
    const sharper = gl.getExtension("EXT_texture_filter_anisotropic");
    if (sharper) gl.texParameterf(gl.TEXTURE_2D, sharper.TEXTURE_MAX_ANISOTROPY_EXT, 4);
    return texture;
  }

  prepare() {}

  settled() {
    return Promise.resolve();
  }

  draw(camera, width, height) {
    const { gl, uniforms, facts } = this;
    const { backward } = cameraAxes(camera);
    const eye = camera.target.map((value, i) => value + camera.radius * backward[i]);
    gl.useProgram(this.program);
    gl.bindVertexArray(this.vertices);
    gl.uniformMatrix4fv(uniforms.view, false, viewMatrix(camera));
    gl.uniformMatrix4fv(uniforms.projection, false, this.projection(camera, eye, width / height));
    gl.uniform3fv(uniforms.eye, eye);
    for (const [name, value] of Object.entries(facts.lights[this.lighting])) gl.uniform3fv(uniforms[name], value);
    gl.uniform1i(uniforms.smoothNormals, this.smooth ? 1 : 0);
    gl.uniform1i(uniforms.picture, 0);
    gl.activeTexture(gl.TEXTURE0);
    gl.enable(gl.DEPTH_TEST);
    for (const { material, first, count } of facts.groups) {
      const { color, texture } = facts.materials[material];
      gl.uniform3fv(uniforms.base, color.map(linearOfSrgb));
      gl.uniform1i(uniforms.textured, texture === null ? 0 : 1);
      gl.bindTexture(gl.TEXTURE_2D, texture === null ? this.white : this.textures[texture]);
      gl.drawElements(gl.TRIANGLES, count, gl.UNSIGNED_INT, 4 * first);
    }
    gl.disable(gl.DEPTH_TEST);
  }

  // From OpenCV's camera axes (y down, z forward).
  projection(camera, eye, aspect) {
    const { center, radius } = this.facts;
    const distance = Math.hypot(...eye.map((value, i) => value - center[i]));
    const near = Math.max(0.01 * radius, distance - 1.1 * radius);
    const far = distance + 1.1 * radius + near;
    const scale = 1 / Math.tan((camera.fov * degrees) / 2);
    const [depth, shift] = [(far + near) / (far - near), (-2 * far * near) / (far - near)];
    return new Float32Array([scale / aspect, 0, 0, 0, 0, -scale, 0, 0, 0, 0, depth, 1, 0, 0, shift, 0]);
  }
}

const linearOfSrgb = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
