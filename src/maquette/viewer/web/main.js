// Starts the page, and offers `window.maquetteViewer` to programs; <html data-state> becomes "ready" or "failed".

// Words behind # in the address go before the page's own options: #azimuth=90&background=transparent&controls=0
function optionsWithAddress(options) {
  const changed = { ...options };
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    if (["azimuth", "elevation", "radius", "fov", "splatScale"].includes(name)) {
      if (text !== "" && Number.isFinite(Number(text))) changed[name] = Number(text);
    } else if (["turntable", "controls"].includes(name)) {
      changed[name] = !["0", "false", ""].includes(text);
    } else if (name === "background") {
      const color = text.startsWith("#") || text === TRANSPARENT ? text : `#${text}`;
      if (color === TRANSPARENT || /^#[0-9a-f]{6}$/i.test(color)) changed.background = color.toLowerCase();
    } else if (name === "lighting" && ["studio", "unlit"].includes(text)) {
      changed.lighting = text;
    }
  }
  return changed;
}

function tell(text, isError) {
  const message = document.getElementById("message");
  message.textContent = text;
  message.hidden = !text;
  message.classList.toggle("error", isError);
}

function programInterface(stage, surface, facts) {
  return {
    ready: true,
    kind: facts.kind,
    count: facts.count,
    get camera() { return { ...stage.camera }; },
    setCamera: (change) => stage.jump(change),
    setBackground: (background) => surface.setBackground(background),
    setSplatScale: (scale) => surface.setSplatScale(scale),
    setLighting: (lighting) => surface.setLighting(lighting),
    setTurntable: (on) => surface.setTurntable(on),
    reset: () => stage.reset(),
    snapshot: async (size) => (await stage.snapshot(size)).toDataURL("image/png"),
  };
}

async function start() {
  window.maquetteViewer = { ready: false };
  const canvas = document.getElementById("canvas");
  const facts = JSON.parse(document.getElementById("facts").textContent);
  facts.options = optionsWithAddress(facts.options);
  document.body.style.background = facts.options.background === TRANSPARENT ? "#ffffff" : facts.options.background;
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
  if (!gl) throw new Error("this browser offers no WebGL 2: use a recent one, with hardware acceleration switched on");
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old for this page: update it");
  canvas.addEventListener("webglcontextlost", () => tell("The graphics card has dropped this page: reload it.", true));
  const element = document.getElementById("payload");
  const arrays = await readArrays(facts, element.textContent);
  element.remove();
  const stage = new Stage(canvas, gl, facts);
  const surface = new Surface(stage, facts);
  let scene;
  if (facts.kind === "gaussians") {
    scene = new SplatScene(gl, facts, arrays, () => stage.wake());
  } else {
    scene = new MeshScene(gl, facts, arrays);
    await scene.loadTextures(arrays);
  }
  stage.show(scene);
  surface.open();
  await stage.jump({});
  tell("", false);
  window.maquetteViewer = programInterface(stage, surface, facts);
  document.documentElement.dataset.state = "ready";
}

start().catch((error) => {
  console.error(error);
  tell(`The object cannot be shown: ${error.message}`, true);
  window.maquetteViewer = { ready: false, error: error.message };
  document.documentElement.dataset.state = "failed";
});
