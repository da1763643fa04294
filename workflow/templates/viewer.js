const element = id => document.getElementById(id);
// Two canvases lie on each other and move together: the upper one is cut or faded to compare its layer with the lower one.
const sides = ["left", "right"].map((name, number) => ({ name, canvas: number ? "over" : "under", select: element(name) }));
const limits = { grey: [...layers[0].window], signed: [...(layers.find(layer => layer.signed) || layers[0]).window] };
const contents = new Map();

function content(layer, view) {
  const id = `layer-${layer}-${view}`;
  if (!contents.has(id)) {
    contents.set(id, fetch("data:application/octet-stream;base64," + element(id).textContent)
      .then(answer => new Response(answer.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer()));
  }
  return contents.get(id);
}

const kindOf = side => layers[Number(side.select.value)].signed ? "signed" : "grey";

async function show(side) {
  const layer = Number(side.select.value), view = Number(element("view")?.value || 0);
  const wanted = side.wanted = `${layer}-${view}`;
  const [low, high] = limits[kindOf(side)];
  const buffer = (await content(layer, view)).slice(0);
  const image = await niivue.NVImage.loadFromUrl({
    url: buffer, name: "layer.nii", colormap: layers[layer].signed ? "difference" : "gray", cal_min: low, cal_max: high,
  });
  if (side.wanted !== wanted) return;
  const place = lead().volumes.length ? millimetres() : null;
  while (side.viewer.volumes.length) side.viewer.removeVolumeByIndex(0);
  // In mm, so that the crosshair leaves the voxel free.
  side.viewer.opts.crosshairGap = .04 * Math.max(...[1, 2, 3].map(axis => image.hdr.dims[axis] * image.hdr.pixDims[axis]));
  side.viewer.addVolume(image);
  moveTo(place || millimetres());
}

const lead = () => sides[1].viewer;
const millimetres = () => Array.from(lead().frac2mm(lead().scene.crosshairPos, 0, true)).slice(0, 3);

function moveTo(place) {
  for (const { viewer } of sides) {
    if (!viewer?.volumes.length) continue;
    const voxel = viewer.frac2vox(viewer.mm2frac(place, 0, true)), shape = viewer.volumes[0].dimsRAS;
    viewer.scene.crosshairPos = viewer.vox2frac(Array.from(voxel, (at, axis) => Math.min(Math.max(at, 0), shape[axis + 1] - 1)));
    viewer.drawScene();
  }
  report();
}

function value(side) {
  const image = side.viewer?.volumes[0];
  if (!image) return "";
  const [i, j, k] = image.mm2vox(millimetres());
  return Number(image.getValue(i, j, k)).toPrecision(4);
}

function report() {
  if (!lead()?.volumes.length) return;
  const place = millimetres();
  ["x", "y", "z"].forEach((name, axis) => { element(name).value = Number(place[axis].toFixed(3)); });
  const voxel = inverse.slice(0, 3).map(row => row[0] * place[0] + row[1] * place[1] + row[2] * place[2] + row[3]);
  element("voxel").value = voxel.map(at => Number(at.toFixed(1))).join(", ");
  for (const side of sides) {
    const [low, high] = limits[kindOf(side)];
    element(side.name + "-value").value = value(side);
    element(side.name + "-low").value = Number(low.toPrecision(4));
    element(side.name + "-high").value = Number(high.toPrecision(4));
    element(side.name + "-scale").className = kindOf(side);
  }
}

function compare() {
  const swipe = element("swipe").value + "%", over = element("over").parentElement;
  over.style.clipPath = `inset(0 0 0 ${swipe})`;
  over.style.opacity = element("opacity").value / 100;
  document.querySelector(".bar").style.left = swipe;
}

function zoom() {
  for (const { viewer } of sides) {
    const before = viewer.scene.pan2Dxyzmm, wanted = Number(element("zoom").value);
    const place = viewer.frac2mm(viewer.scene.crosshairPos), step = before[3] - wanted;
    viewer.setPan2Dxyzmm(wanted === 1 ? [0, 0, 0, 1] : [0, 1, 2].map(axis => before[axis] + step * place[axis]).concat(wanted));
  }
}

function setWindow() {
  limits.grey = [Number(element("low").value), Number(element("high").value)];
  const spread = Math.abs(Number(element("spread").value));
  limits.signed = [-spread, spread];
  for (const side of sides) {
    [side.viewer.volumes[0].cal_min, side.viewer.volumes[0].cal_max] = limits[kindOf(side)];
    side.viewer.updateGLVolume();
  }
  report();
}

// NiiVue computes gradients with every layer, for volume rendering, which the page does not offer: without a graphics card
// that is most of the time until it is open. The shader that blurs begins them, and refreshLayers draws nothing after them.
function skipGradients(viewer) {
  const { gl, blurShader, refreshLayers } = viewer, { use } = blurShader;
  blurShader.use = (...given) => { use.apply(blurShader, given); gl.enable(gl.RASTERIZER_DISCARD); };
  viewer.refreshLayers = (...given) => {
    try { return refreshLayers.apply(viewer, given); } finally { gl.disable(gl.RASTERIZER_DISCARD); }
  };
}

async function attach(side) {
  side.viewer = new niivue.Niivue({
    backColor: [0, 0, 0, 1], crosshairColor: [.94, .71, .16, 1], crosshairWidth: .3, crosshairWidthUnit: "percent",
    fontColor: [.94, .71, .16, 1], isForceMouseClickToVoxelCenters: true, multiplanarShowRender: 0, dragMode: 0, dragAndDropEnabled: false,
    // Modes of NiiVue: 8 moves the crosshair, 3 pans. The wheel goes from slice to slice unless the first mode is 3.
    mouseEventConfig: { leftButton: { primary: 8 }, centerButton: 3, rightButton: 3 }, loadingText: "", logLevel: "error",
  });
  element(side.canvas).parentElement.hidden = false;
  await side.viewer.attachTo(side.canvas, false);
  skipGradients(side.viewer);
  side.viewer.addColormap("difference", { R: [33, 247, 178], G: [102, 247, 24], B: [172, 247, 43], A: [255, 255, 255], I: [0, 128, 255] });
  side.viewer.onLocationChange = report;
}

async function open() {
  const state = document.querySelector(".state"), poster = document.querySelector(".poster");
  if (location.pathname.endsWith("_quality.html")) element("title").textContent += ": " + decodeURIComponent(location.pathname.split("/").pop());
  layers.forEach((layer, number) => sides.forEach((side, own) => side.select.add(new Option(layer.name, number, own === number, own === number))));
  if (!document.createElement("canvas").getContext("webgl2")) {
    state.textContent = "This browser has no WebGL 2: instead of the viewer, planes through the middle of the layer at the right.";
    element("right").addEventListener("change", () => { poster.firstChild.src = "data:image/png;base64," + layers[Number(element("right").value)].picture; });
    return;
  }
  const [under, over] = sides;
  await attach(over);
  await show(over);
  poster.hidden = true;
  await attach(under);
  await show(under);
  // The canvas that has the focus moves the other.
  under.viewer.broadcastTo([over.viewer], { "2d": true });
  over.viewer.broadcastTo([under.viewer], { "2d": true });
  state.hidden = true;
  document.querySelector(".bar").hidden = false;
  [element("low").value, element("high").value] = limits.grey.map(limit => Number(limit.toPrecision(6)));
  element("spread").value = Number(limits.signed[1].toPrecision(6));
  compare();
  for (const side of sides) side.select.addEventListener("change", () => show(side));
  element("view")?.addEventListener("change", () => sides.forEach(show));
  for (const id of ["swipe", "opacity"]) element(id).addEventListener("input", compare);
  element("zoom").addEventListener("input", zoom);
  for (const id of ["low", "high", "spread"]) element(id).addEventListener("change", setWindow);
  for (const id of ["x", "y", "z"]) element(id).addEventListener("change", () => moveTo(["x", "y", "z"].map(name => Number(element(name).value))));
  element("planes").addEventListener("change", event => sides.forEach(({ viewer }) => viewer.setSliceType(Number(event.target.value))));
  element("radiological").addEventListener("change", event => sides.forEach(({ viewer }) => viewer.setRadiologicalConvention(event.target.checked)));
  element("voxels").addEventListener("change", event => sides.forEach(({ viewer }) => viewer.setInterpolation(event.target.checked)));
}

const opened = open();
