// One slide: its layers, moving through it, and marks on it.
"use strict";

window.Slide = (() => {
  const ZOOM_STEP = 1.5;
  const PAN_SHARE = 0.2; // of the view, by an arrow key
  const PLACE_MARGIN = 0.15; // around a place that the view goes to, as a share of its longer side
  const BAR_PX = 150; // longest scale bar
  const UM_1X = 10; // µm per px at 1x
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const SVG = "http://www.w3.org/2000/svg";

  let viewer = null;
  let now = null; // { number, info, image, outlines: [], items: [], density, look }
  const listeners = {};

  function make() {
    // OpenSeadragon adds an inline style unless it finds one, but the page's policy allows only files. So it finds this
    // element, which has the name of the style and does nothing. The rule itself is in style.css.
    const nothing = document.createElementNS("", "style");
    nothing.setAttribute("data-openseadragon-mobile-css", "true");
    document.head.append(nothing);
    viewer = OpenSeadragon({
      element: document.getElementById("canvas"),
      drawer: Layers.Drawer,
      showNavigationControl: false,
      keyboardNavEnabled: false,
      showNavigator: false,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsPen: { clickToZoom: false, dblClickToZoom: true },
      animationTime: still.matches ? 0 : 0.4,
      blendTime: 0,
      maxZoomPixelRatio: 16,
      minZoomImageRatio: 0.7,
      visibilityRatio: 0.3,
      minPixelRatio: 0.6, // no level finer than the screen shows
      imageLoaderLimit: 6,
      maxImageCacheCount: 300,
      timeout: 120000,
    });
    viewer.addHandler("canvas-click", (event) => event.quick && click(event.position));
    viewer.addHandler("tile-unloaded", (event) => {
      if (now) for (const layer of now.outlines) layer.forget(event.tile.getUrl());
    });
    viewer.addHandler("animation-finish", moved);
    viewer.addHandler("update-viewport", () => {
      measure();
      settle();
    });
    viewer.addHandler("resize", () => requestAnimationFrame(measure));
  }

  // ------------------------------------------------------------------------------------------------ opening

  async function open(number, info, look) {
    if (!viewer) make();
    close();
    document.body.dataset.tiles = "loading";
    now = { number, info, look, outlines: [], items: [], density: null, marks: [] };
    const mine = now;
    now.image = await add(Layers.slide(number, info), 0);
    if (now !== mine) return;
    viewer.viewport.goHome(true);
    const mask = look.mask();
    if (info.density) now.density = await add(Layers.density(number, info, look.which(), mask), 1, { opacity: 0 });
    for (let which = 0; which < info.results.length; which++) {
      const layer = new Layers.Outlines(number, info, which);
      layer.look(...look.of(which));
      now.outlines.push(layer);
      now.items.push(await add(layer.source(look.value()), 2 + which, { opacity: 0 }));
    }
    if (now !== mine) return;
    drawPlaces();
    layersShown();
  }

  function add(source, index, options = {}) {
    return new Promise((done, fail) => viewer.addTiledImage({
      tileSource: source, index, width: 1, ...options,
      success: (event) => {
        event.item.addHandler("fully-loaded-change", () => viewer.forceRedraw());
        done(event.item);
      },
      error: (event) => fail(new Error(event.message)),
    }));
  }

  function close() {
    if (viewer) {
      viewer.clearOverlays();
      viewer.world.removeAll();
    }
    now = null;
  }

  // ------------------------------------------------------------------------------------------------ looks

  // Colours, types or the slider have changed: this needs no request.
  function recolour() {
    now.outlines.forEach((layer, which) => layer.look(...now.look.of(which)));
    redraw();
  }

  // Other types are shown: the density needs other tiles.
  async function recount() {
    if (!now.density) return;
    const { number, info, look } = now;
    const mine = now, old = now.density;
    const fresh = await add(Layers.density(number, info, look.which(), look.mask()), 1, { opacity: 0 });
    if (now !== mine || now.density !== old) return viewer.world.removeItem(fresh);
    now.density = fresh;
    viewer.world.removeItem(old);
    layersShown();
  }

  // The slider limits another value: outlines need other tiles.
  async function revalue() {
    const mine = now;
    for (let which = 0; which < mine.items.length; which++) {
      const old = mine.items[which];
      const fresh = await add(mine.outlines[which].source(mine.look.value()), 2 + which, { opacity: 0 });
      if (now !== mine) return;
      mine.items[which] = fresh;
      viewer.world.removeItem(old);
    }
    layersShown();
  }

  function layersShown() {
    if (!now || !viewer.world.getItemCount()) return;
    const near = isNear(), { on, opacity, results } = now.look.state;
    now.items.forEach((item, which) => item.setOpacity(near && on && results[which] ? opacity : 0));
    if (now.density) now.density.setOpacity(!near && on ? opacity : 0);
    document.body.dataset.far = String(!near);
    redraw();
  }

  // Whether nuclei are large enough for outlines; without density there is nothing else to show.
  function isNear() {
    return !now.info.density || zoom() >= 2 ** (now.info.outlineZoom - 0.5);
  }

  // Marks the screen as out of date until it is drawn again.
  function redraw() {
    document.body.dataset.tiles = "loading";
    viewer.forceRedraw();
  }

  // Called after the view was drawn: marks whether all its tiles were loaded.
  function settle() {
    if (!now || !viewer.world.getItemCount()) return;
    let loaded = now.outlines.length === now.info.results.length;
    for (let i = 0; i < viewer.world.getItemCount(); i++) {
      const item = viewer.world.getItemAt(i);
      if (item.getOpacity() > 0 && !item.getFullyLoaded()) loaded = false;
    }
    document.body.dataset.tiles = loaded ? "loaded" : "loading";
  }

  // ------------------------------------------------------------------------------------------------ moving

  // Screen px per level-0 px.
  function zoom() {
    return now.image.viewportToImageZoom(viewer.viewport.getZoom(true));
  }

  function centre() {
    return now.image.viewportToImageCoordinates(viewer.viewport.getCenter(true));
  }

  function goTo(x, y, to) {
    viewer.viewport.zoomTo(now.image.imageToViewportZoom(to), null, true);
    viewer.viewport.panTo(now.image.imageToViewportCoordinates(x, y), true);
    viewer.viewport.applyConstraints(true);
    moved();
  }

  function flyTo([x, y, width, height]) {
    const margin = PLACE_MARGIN * Math.max(width, height);
    const box = now.image.imageToViewportRectangle(x - margin, y - margin, width + 2 * margin, height + 2 * margin);
    viewer.viewport.fitBounds(box, still.matches);
    if (still.matches) moved();
  }

  function zoomBy(steps) {
    viewer.viewport.zoomBy(ZOOM_STEP ** steps);
    viewer.viewport.applyConstraints();
  }

  function pan(right, down) {
    const view = viewer.viewport.getBounds();
    const by = new OpenSeadragon.Point(right * PAN_SHARE * view.width, down * PAN_SHARE * view.height);
    viewer.viewport.panBy(by);
    viewer.viewport.applyConstraints();
  }

  function home() {
    viewer.viewport.goHome();
    if (still.matches) moved();
  }

  function moved() {
    if (!now || !now.image) return;
    layersShown();
    measure();
    const { x, y } = centre();
    listeners.moved?.(x, y, zoom());
  }

  // ------------------------------------------------------------------------------------------------ marks

  function measure() {
    if (!now || !now.image) return;
    const scale = zoom(), mpp = now.info.mpp?.[0];
    const most = (BAR_PX / scale) * (mpp || 1);
    const power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].find((digit) => digit * power <= most) * power;
    const text = mpp ? (length >= 1000 ? `${length / 1000} mm` : `${length} µm`) : `${length} px`;
    // magnification of the objective with such px; 40x is 0.25 µm/px by convention
    const mag = (now.info.mag || (mpp && UM_1X / mpp)) * scale;
    const times = mag ? `${mag.toFixed(mag >= 10 ? 0 : mag >= 1 ? 1 : 2)}×` : `${(100 * scale).toPrecision(3)} %`;
    listeners.scale?.({ px: (length / (mpp || 1)) * scale, text, times });
    const near = String(!isNear());
    if (document.body.dataset.far !== near) layersShown();
  }

  // Draws a ring, level-0 px, over the slide; its line has the same width at every zoom.
  function mark(points, className, label) {
    const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]);
    const [left, top] = [Math.min(...xs), Math.min(...ys)];
    const [width, height] = [Math.max(...xs) - left || 1, Math.max(...ys) - top || 1];
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("class", `mark ${className}`);
    svg.setAttribute("viewBox", `${left} ${top} ${width} ${height}`);
    svg.setAttribute("preserveAspectRatio", "none");
    for (const kind of ["halo", "line"]) {
      const ring = document.createElementNS(SVG, "polygon");
      ring.setAttribute("class", kind);
      ring.setAttribute("points", points.map((point) => point.join(",")).join(" "));
      svg.append(ring);
    }
    const element = document.createElement("div");
    element.className = "mark-box";
    element.append(svg);
    if (label) {
      const tag = document.createElement("span");
      tag.className = "tag";
      tag.textContent = label;
      element.append(tag);
    }
    const location = now.image.imageToViewportRectangle(left, top, width, height);
    viewer.addOverlay({ element, location });
    return element;
  }

  function drawPlaces() {
    now.info.places.forEach((place) => {
      const [x, y, width, height] = place.box;
      const box = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]];
      mark(place.ring || box, place.kind === "hot spot" ? "hot" : "region", place.name);
    });
  }

  let chosen = null;
  function choose(nucleus) {
    if (chosen && viewer) viewer.removeOverlay(chosen);
    // a contour runs through the centres of px
    chosen = nucleus && mark(nucleus.contour.map(([x, y]) => [x + 0.5, y + 0.5]), "chosen");
  }

  async function click(position) {
    const at = now.image.viewerElementToImageCoordinates(position);
    const mine = now, [x, y] = [at.x - 0.5, at.y - 0.5];
    for (let which = now.info.results.length - 1; which >= 0; which--) {
      if (!now.look.state.results[which]) continue;
      const found = (await Source.near(now.number, which, x, y)).filter((n) => now.look.shows(which, n.code));
      if (now !== mine) return;
      const inside = found.filter((nucleus) => holds(nucleus.contour, x, y));
      if (inside.length) return listeners.chosen?.(inside[0], which);
    }
    listeners.chosen?.(null);
  }

  // Even-odd rule; the border counts as inside, since a contour runs through the nucleus' own border px.
  function holds(ring, x, y) {
    let inside = false;
    for (let i = 0, j = ring.length - 1; i < ring.length; j = i++) {
      const [[xi, yi], [xj, yj]] = [ring[i], ring[j]];
      const length2 = (xj - xi) ** 2 + (yj - yi) ** 2 || 1;
      const share = Math.max(0, Math.min(1, ((x - xi) * (xj - xi) + (y - yi) * (yj - yi)) / length2));
      if ((xi + share * (xj - xi) - x) ** 2 + (yi + share * (yj - yi) - y) ** 2 <= 0.5) return true;
      if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
    }
    return inside;
  }

  // Saves the view as a picture with its scale bar.
  function screenshot() {
    const view = viewer.drawer.canvas;
    const picture = document.createElement("canvas");
    [picture.width, picture.height] = [view.width, view.height];
    const draw = picture.getContext("2d"), ratio = view.width / viewer.container.clientWidth;
    draw.fillStyle = "#fff";
    draw.fillRect(0, 0, picture.width, picture.height);
    draw.drawImage(view, 0, 0);
    const bar = document.getElementById("bar"), text = document.getElementById("scale").innerText.replace(/\s+/g, "  ");
    const [length, left, bottom] = [bar.clientWidth * ratio, 16 * ratio, picture.height - 16 * ratio];
    draw.font = `${13 * ratio}px system-ui`;
    const wide = Math.max(draw.measureText(text).width, length);
    draw.fillStyle = "rgba(255, 255, 255, 0.85)";
    draw.fillRect(left - 8 * ratio, bottom - 30 * ratio, wide + 16 * ratio, 38 * ratio);
    draw.fillStyle = "#111";
    draw.fillText(text, left, bottom - 10 * ratio);
    draw.fillRect(left, bottom - 3 * ratio, length, 3 * ratio);
    const link = document.createElement("a");
    const { x, y } = centre();
    link.download = `${now.info.name}_${Math.round(x)}_${Math.round(y)}.png`;
    picture.toBlob((blob) => {
      link.href = URL.createObjectURL(blob);
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  }

  return {
    open, close, recolour, recount, revalue, layersShown, goTo, flyTo, zoomBy, pan, home, choose, screenshot,
    on: (name, listener) => { listeners[name] = listener; },
  };
})();
