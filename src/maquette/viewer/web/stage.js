// The stage: canvas, camera, background, and when to draw. Scenes draw the object on nothing; the stage puts the
// background behind it, so that screenshots can leave it open.

const TURNTABLE_SPEED = 24; // degrees a second
const SMOOTHING = 16; // how fast the camera follows its goal, per second
const MAX_PIXEL_RATIO = 2;
const SLOW_FRAME = 45; // milliseconds; slower moving pictures are drawn with fewer pixels
const LEAST_QUALITY = 0.35;
const BAR_HEIGHT = 80; // pixels below the object that the buttons take
const TRANSPARENT = "transparent";

const BACK_VERTEX = `#version 300 es
out vec2 place;
void main() {
  place = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0;
  gl_Position = vec4(2.0 * place - 1.0, 0.0, 1.0);
}`;

const BACK_FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D picture;
uniform vec3 background;
uniform float checker;
uniform bool open;
in vec2 place;
out vec4 result;
void main() {
  vec4 object = texture(picture, place);
  vec2 cell = floor(gl_FragCoord.xy / max(checker, 1.0));
  vec3 behind = checker > 0.0 ? vec3(mod(cell.x + cell.y, 2.0) > 0.5 ? 0.88 : 1.0) : background;
  result = open ? object : vec4(object.rgb + (1.0 - object.a) * behind, 1.0);
}`;

class Stage {
  constructor(canvas, gl, facts) {
    Object.assign(this, { canvas, gl, facts, background: facts.options.background, turntable: false, quality: 1 });
    Object.assign(this, { moving: false, scheduled: false, last: 0, untouched: true });
    Object.assign(this, makeProgram(gl, BACK_VERTEX, BACK_FRAGMENT));
    this.nothing = gl.createVertexArray();
    this.home = { ...facts.options, target: facts.center };
    this.still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  // A scene has `target`, `prepare(camera)`, `settled()` and `draw(camera, width, height)`.
  show(scene) {
    this.scene = scene;
    this.picture = new Target(this.gl, scene.target.format, scene.target.samples);
    this.shot = new Target(this.gl, this.gl.RGBA8);
    this.resize();
    this.camera = this.goal = this.homeCamera();
    this.turntable = this.home.turntable;
    this.wake();
  }

  homeCamera() {
    const { azimuth, elevation, radius, fov, target } = this.home;
    const [width, height] = [this.canvas.clientWidth || 1, this.canvas.clientHeight || 1];
    const high = this.home.controls ? Math.max(0.6, 1 - (2 * BAR_HEIGHT) / height) : 1;
    const fitted = fittedRadius(this.facts.radius, fov, width / height, [0.94, high]);
    return { azimuth, elevation, fov, target: [...target], radius: radius ?? fitted };
  }

  reset() {
    const home = this.homeCamera();
    const turns = Math.round((this.camera.azimuth - home.azimuth) / 360);
    this.goal = { ...home, azimuth: home.azimuth + 360 * turns };
    this.untouched = true;
    this.wake();
  }

  // Moves at once and resolves when the picture of this camera is on the screen.
  async jump(change) {
    if (Object.keys(change).length) this.untouched = false;
    this.camera = this.goal = { ...this.goal, ...change };
    this.render();
    await this.scene.settled();
    this.render();
  }

  move(change) {
    this.untouched = false;
    this.goal = change(this.goal);
    if (this.still) this.camera = this.goal;
    this.wake();
  }

  resize() {
    const ratio = Math.min(devicePixelRatio || 1, MAX_PIXEL_RATIO);
    const width = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
    const height = Math.max(1, Math.round(this.canvas.clientHeight * ratio));
    if (width === this.canvas.width && height === this.canvas.height) return;
    Object.assign(this.canvas, { width, height });
    if (!this.camera) return;
    if (this.untouched) {
      this.goal = { ...this.goal, radius: this.homeCamera().radius };
      this.camera = { ...this.camera, radius: this.goal.radius };
    }
    this.render();
  }

  wake() {
    if (this.scheduled || !this.scene) return;
    this.scheduled = true;
    requestAnimationFrame((now) => this.frame(now));
  }

  frame(now) {
    this.scheduled = false;
    const passed = this.moving ? Math.min(now - this.last, 250) : 16;
    this.last = now;
    this.follow(passed / 1000);
    this.adapt(passed);
    this.render();
    if (this.moving) this.wake();
  }

  follow(seconds) {
    if (this.turntable) {
      const turned = TURNTABLE_SPEED * seconds;
      this.goal = { ...this.goal, azimuth: this.goal.azimuth + turned };
      this.camera = { ...this.camera, azimuth: this.camera.azimuth + turned };
    }
    const share = 1 - Math.exp(-SMOOTHING * seconds);
    const [from, to] = [this.camera, this.goal];
    const towards = (name) => from[name] + share * (to[name] - from[name]);
    const target = from.target.map((value, i) => value + share * (to.target[i] - value));
    const turn = Math.abs(to.azimuth - from.azimuth) + Math.abs(to.elevation - from.elevation);
    const shift = Math.abs(to.radius - from.radius) + Math.hypot(...target.map((value, i) => to.target[i] - value));
    const arrived = turn < 0.02 && shift < 2e-4 * from.radius;
    this.camera = arrived
      ? to
      : { ...to, azimuth: towards("azimuth"), elevation: towards("elevation"), radius: towards("radius"), target };
    this.moving = this.turntable || !arrived;
  }

  // Pictures that come too slowly while the camera moves get fewer pixels; the one that stays gets all.
  adapt(passed) {
    if (!this.moving) this.quality = 1;
    else if (passed > SLOW_FRAME) this.quality = Math.max(LEAST_QUALITY, 0.85 * this.quality);
    else if (passed < SLOW_FRAME / 2) this.quality = Math.min(1, 1.05 * this.quality);
  }

  render() {
    const { gl, canvas } = this;
    const quality = this.moving ? this.quality : 1;
    this.drawObject(Math.ceil(canvas.width * quality), Math.ceil(canvas.height * quality));
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    this.drawBackground(canvas.width, canvas.height, false);
  }

  drawObject(width, height) {
    this.scene.prepare(this.camera);
    this.picture.resize(width, height);
    this.picture.begin();
    this.scene.draw(this.camera, width, height);
    this.picture.end();
  }

  drawBackground(width, height, open) {
    const { gl, uniforms, background } = this;
    const checker = background === TRANSPARENT && !open;
    gl.viewport(0, 0, width, height);
    gl.useProgram(this.program);
    gl.bindVertexArray(this.nothing);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.picture.texture);
    gl.uniform1i(uniforms.picture, 0);
    gl.uniform3fv(uniforms.background, background === TRANSPARENT ? [1, 1, 1] : colorOfHex(background));
    gl.uniform1f(uniforms.checker, checker ? 12 * Math.min(devicePixelRatio || 1, MAX_PIXEL_RATIO) : 0);
    gl.uniform1i(uniforms.open, open ? 1 : 0);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  // The view as a canvas, of the window's size or another; without a background where that is transparent.
  async snapshot({ width = this.canvas.width, height = this.canvas.height } = {}) {
    const { gl } = this;
    this.scene.prepare(this.camera);
    await this.scene.settled();
    const open = this.background === TRANSPARENT;
    this.drawObject(width, height);
    this.shot.resize(width, height);
    this.shot.begin();
    this.drawBackground(width, height, open);
    const bytes = new Uint8Array(4 * width * height);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
    this.wake();
    const picture = new ImageData(width, height);
    for (let y = 0; y < height; y++) {
      picture.data.set(bytes.subarray(4 * width * (height - 1 - y), 4 * width * (height - y)), 4 * width * y);
    }
    if (open) makeStraight(picture.data);
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    canvas.getContext("2d").putImageData(picture, 0, 0);
    return canvas;
  }
}

const colorOfHex = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16) / 255);

// Premultiplied colours to straight ones, as PNG stores them.
function makeStraight(data) {
  for (let i = 0; i < data.length; i += 4) {
    const alpha = data[i + 3];
    for (let c = i; c < i + 3; c++) data[c] = alpha ? Math.min(255, Math.round((255 * data[c]) / alpha)) : 0;
  }
}
