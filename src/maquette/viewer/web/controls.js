// Pointers, wheel, keys, buttons.

const WHEEL_SPEED = 0.0013;
const KEY_STEP = 40; // pixels of a drag

function listenToPointers(stage, canvas, onTouched) {
  const pointers = new Map();
  const gesture = () => {
    const [a, b] = [...pointers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, length: Math.max(1, Math.hypot(a.x - b.x, a.y - b.y)) };
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    const panning = event.button === 2 || event.button === 1 || event.shiftKey;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, panning });
    canvas.classList.add("moving");
    canvas.focus({ preventScroll: true });
    onTouched();
  });
  canvas.addEventListener("pointermove", (event) => {
    const pointer = pointers.get(event.pointerId);
    if (!pointer) return;
    const before = pointers.size === 2 ? gesture() : null;
    const [dx, dy] = [event.clientX - pointer.x, event.clientY - pointer.y];
    Object.assign(pointer, { x: event.clientX, y: event.clientY });
    const height = canvas.clientHeight;
    if (before) {
      const after = gesture();
      stage.move((camera) => {
        const closer = zoomed(camera, before.length / after.length, stage.facts.radius);
        return panned(closer, after.x - before.x, after.y - before.y, height);
      });
    } else if (pointers.size === 1) {
      stage.move((camera) => (pointer.panning ? panned : orbited)(camera, dx, dy, height));
    }
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      pointers.delete(event.pointerId);
      if (!pointers.size) canvas.classList.remove("moving");
    });
  }
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("dblclick", () => stage.reset());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const pixels = event.deltaY * [1, 16, 400][event.deltaMode] * (event.ctrlKey ? 5 : 1);
    const factor = Math.exp(Math.max(-300, Math.min(300, pixels)) * WHEEL_SPEED);
    stage.move((camera) => zoomed(camera, factor, stage.facts.radius));
    onTouched();
  }, { passive: false });
}

function listenToKeys(stage, buttons) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const zooms = { "+": 0.9, "=": 0.9, "-": 1 / 0.9 };
  const names = { r: "reset", t: "turntable", s: "screenshot", f: "fullscreen" };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input")) return;
    if (steps[event.key]) {
      const [dx, dy] = steps[event.key].map((step) => step * KEY_STEP);
      stage.move((camera) => orbited(camera, dx, dy, stage.canvas.clientHeight));
      event.preventDefault();
    } else if (zooms[event.key]) {
      stage.move((camera) => zoomed(camera, zooms[event.key], stage.facts.radius));
    } else if (names[event.key.toLowerCase()]) {
      buttons[names[event.key.toLowerCase()]].click();
    }
  });
}

// The page's surface: what is shown around the canvas, and what its buttons do.
class Surface {
  constructor(stage, facts) {
    Object.assign(this, { stage, facts });
    const ids = ["bar", "panel", "header", "hint", "count", "backgrounds", "color", "splat-row", "splat-scale"];
    ids.push("splat-value", "light-row", "light", "reset", "turntable", "screenshot", "fullscreen", "settings");
    this.parts = Object.fromEntries(ids.map((id) => [id, document.getElementById(id)]));
    const number = facts.count.toLocaleString("en");
    const noun = facts.kind === "mesh" ? "triangle" : "Gaussian";
    this.parts.count.textContent = `${number} ${noun}${facts.count === 1 ? "" : "s"}`;
  }

  open() {
    const { parts, facts, stage } = this;
    const shown = facts.options.controls;
    parts.bar.hidden = parts.hint.hidden = !shown;
    parts.header.hidden = !shown;
    const wide = matchMedia("(min-width: 1021px)").matches;
    this.togglePanel(shown && wide);
    parts["splat-row"].hidden = facts.kind !== "gaussians";
    parts["light-row"].hidden = facts.kind !== "mesh";
    parts.fullscreen.hidden = !document.fullscreenEnabled;
    parts["splat-scale"].max = facts.options.maxSplatScale;
    this.setBackground(facts.options.background);
    if (facts.kind === "gaussians") this.setSplatScale(facts.options.splatScale);
    else this.setLighting(facts.options.lighting);
    this.setTurntable(facts.options.turntable);
    const touched = () => parts.hint.classList.add("gone");
    setTimeout(touched, 9000);
    listenToPointers(stage, stage.canvas, touched);
    listenToKeys(stage, parts);
    this.listen();
  }

  listen() {
    const { parts, stage } = this;
    parts.reset.onclick = () => stage.reset();
    parts.turntable.onclick = () => this.setTurntable(!stage.turntable);
    parts.settings.onclick = () => this.togglePanel(parts.panel.hidden);
    parts.screenshot.onclick = () => this.download();
    parts.fullscreen.onclick = () =>
      document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen();
    for (const swatch of parts.backgrounds.querySelectorAll("button")) {
      swatch.onclick = () => this.setBackground(swatch.dataset.background);
    }
    parts.color.oninput = () => this.setBackground(parts.color.value);
    parts["splat-scale"].oninput = () => this.setSplatScale(Number(parts["splat-scale"].value));
    parts.light.onchange = () => this.setLighting(parts.light.checked ? "studio" : "unlit");
  }

  togglePanel(open) {
    this.parts.panel.hidden = !open;
    if (open && !matchMedia("(min-width: 1021px)").matches) this.parts.hint.classList.add("gone");
    this.parts.settings.setAttribute("aria-pressed", open);
  }

  setBackground(background) {
    this.stage.background = background;
    const clear = background === TRANSPARENT;
    const [red, green, blue] = colorOfHex(clear ? "#ffffff" : background);
    document.documentElement.dataset.tone = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 ? "dark" : "light";
    document.body.style.background = clear ? "#ffffff" : background;
    const swatches = [...this.parts.backgrounds.querySelectorAll("button")];
    for (const swatch of swatches) swatch.setAttribute("aria-pressed", swatch.dataset.background === background);
    const own = swatches.every((swatch) => swatch.dataset.background !== background);
    this.parts.color.parentElement.classList.toggle("chosen", own);
    if (own) this.parts.color.value = background;
    this.stage.wake();
  }

  setSplatScale(scale) {
    this.stage.scene.splatScale = scale;
    this.parts["splat-scale"].value = scale;
    this.parts["splat-value"].textContent = `${Math.round(100 * scale)} %`;
    this.stage.wake();
  }

  setLighting(lighting) {
    this.stage.scene.lighting = lighting;
    this.parts.light.checked = lighting === "studio";
    this.stage.wake();
  }

  setTurntable(on) {
    this.stage.turntable = on;
    this.parts.turntable.setAttribute("aria-pressed", on);
    this.stage.wake();
  }

  async download() {
    const canvas = await this.stage.snapshot();
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    const name = document.title.replace(/[^\p{L}\p{N}._ -]+/gu, "_").replace(/^\.+/, "") || "maquette";
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `${name}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }
}
