// The panel: types, opacity, the slider, places; and the card with the values of a nucleus.
"use strict";

window.Panel = (() => {
  // After Okabe and Ito, those that differ most on pink and brown tissue first.
  const SAFE = [[0, 90, 220], [230, 159, 0], [0, 158, 115], [204, 60, 200], [86, 220, 233], [240, 228, 66], [230, 30, 30]];
  const OF_RESULTS = [[0, 90, 220], [230, 130, 0]];
  const STEPS = 64;
  const get = (id) => document.getElementById(id);
  const count = (number) => number.toLocaleString("en-US");
  const css = (rgb) => `rgb(${rgb.join(" ")})`;

  let info = null;
  let look = null;

  // How nuclei look; the layers ask for it.
  function makeLook() {
    const names = [...new Set(info.results.flatMap((result) => result.types.map((type) => type.name)))];
    const types = new Map(names.map((name) => [name, true]));
    const state = { on: true, opacity: 1, results: info.results.map(() => true), types, step: 1, safe: false };
    const colourOf = (which, type) => {
      if (info.results.length > 1) return OF_RESULTS[which];
      return state.safe ? SAFE[names.indexOf(type.name) % SAFE.length] : type.colour;
    };
    const shown = (which) => info.results[which].types.map((type) => types.get(type.name));
    const first = () => Math.max(state.results.indexOf(true), 0);
    return {
      state,
      colourOf,
      which: first,
      value: () => (info.values.length ? get("value").value : "none"),
      shows: (which, code) => shown(which)[code],
      of: (which) => [info.results[which].types.map((type) => colourOf(which, type)), shown(which), state.step],
      mask() {
        const bits = shown(first()).reduce((sum, on, code) => sum | (on ? 1n << BigInt(code) : 0n), 0n);
        return bits.toString(16);
      },
    };
  }

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function entry(name, number, rgb, checked, changed) {
    const item = element("li"), label = element("label", "row");
    const box = element("input");
    Object.assign(box, { type: "checkbox", checked });
    box.addEventListener("change", () => changed(box.checked));
    label.append(box);
    if (rgb) {
      const swatch = element("i", "swatch");
      swatch.style.backgroundColor = css(rgb);
      label.append(swatch);
    }
    label.append(element("span", "name", name), element("output", "count", count(number)));
    item.append(label);
    return item;
  }

  function show(fresh) {
    info = fresh;
    get("value").replaceChildren(...info.values.map((value) => new Option(value.name, value.key)));
    look = makeLook();
    get("name").textContent = info.name;
    const mpp = info.mpp ? `${Number(info.mpp[0].toPrecision(3))} µm/px` : "pixel size not known";
    const mag = info.mag ? `, ${Number(info.mag.toPrecision(3))}×` : "";
    get("facts").textContent = `${info.size.map(count).join(" × ")} px, ${mpp}${mag}`;
    get("facts").title = info.notes.join("\n");
    get("on").checked = true;
    get("opacity").value = 100;
    get("safe").checked = false;
    get("places-on").checked = true;
    setPlaces(true);
    get("fade").hidden = !info.values.length;
    get("safe-row").hidden = info.results.length > 1 || info.results[0].types.length < 2;
    legend();
    places();
    slider();
    return look;
  }

  function legend() {
    const { state } = look;
    const two = info.results.length > 1;
    get("total").textContent = two ? "" : count(info.results[0].total);
    get("results").replaceChildren(...(two ? info.results : []).map((result, which) =>
      entry(result.label, result.total, OF_RESULTS[which], state.results[which], (on) => {
        state.results[which] = on;
        legend();
        Slide.layersShown();
        Slide.recount();
      })));
    const peak = info.density && count(Number(info.density.peaks[look.which()].toPrecision(2)));
    get("density-high").textContent = info.density ? `${peak} ${info.density.unit}` : "";
    const names = [...look.state.types.keys()];
    const single = !two && names.length < 2;
    get("swatch").hidden = !single;
    if (single && names.length) get("swatch").style.backgroundColor = css(look.colourOf(0, info.results[0].types[0]));
    const one = (name) => info.results.flatMap((result, which) => (state.results[which] ? result.types.filter((type) => type.name === name) : []));
    get("types").replaceChildren(...(names.length > 1 ? names : []).map((name) => {
      const found = one(name);
      const total = found.reduce((sum, type) => sum + type.count, 0);
      const rgb = two ? null : look.colourOf(0, found[0]);
      return entry(name, total, rgb, state.types.get(name), (on) => {
        state.types.set(name, on);
        Slide.recolour();
        Slide.recount();
      });
    }));
  }

  function slider() {
    const value = info.values.find((one) => one.key === get("value").value);
    if (!value) return;
    look.state.step = Number(get("step").value);
    const [low, high] = value.ends;
    const limit = low + ((look.state.step - 1) / (STEPS - 1)) * (high - low);
    const text = look.state.step === 1 ? "off" : `${limit.toFixed(value.digits)} ${value.unit}`;
    get("limit").textContent = text;
    get("step").setAttribute("aria-valuetext", text);
  }

  // ------------------------------------------------------------------------------------------------ places

  let at = -1;
  function places() {
    at = -1;
    get("places-section").hidden = !info.places.length;
    get("places-count").textContent = info.places.length;
    get("places").replaceChildren(...info.places.map((place, i) => {
      const item = element("li"), button = element("button", "place");
      button.append(element("span", "name", place.name), element("span", "quiet", place.detail));
      button.addEventListener("click", () => goToPlace(i));
      item.append(button);
      return item;
    }));
  }

  function goToPlace(i) {
    if (!info || !info.places.length) return;
    at = (i + info.places.length) % info.places.length;
    [...get("places").children].forEach((item, j) => item.firstChild.toggleAttribute("aria-current", j === at));
    get("places").children[at].scrollIntoView({ block: "nearest" });
    Slide.flyTo(info.places[at].box);
  }

  function setPlaces(on) {
    document.body.dataset.places = String(on);
  }

  // ------------------------------------------------------------------------------------------------ a nucleus

  function values(nucleus, which) {
    const result = info.results[which];
    const number = (value, digits) => (value === null ? "not known" : value.toFixed(digits));
    const mpp = info.mpp && info.mpp[0] * result.scale;
    const rows = [["id", String(nucleus.id)]];
    if (nucleus.type !== null) rows.push(["type", `${nucleus.type} ${nucleus.name}`], ["probability", number(nucleus.prob, 4)]);
    nucleus.probs.forEach((prob, type) => type && rows.push([`p(${info.results[which].types.find((one) => one.id === type)?.name ?? type})`, number(prob, 4)]));
    rows.push(["centroid x, y", nucleus.centroid.map((value) => value.toFixed(2)).join(", ")]);
    rows.push(["box", `${nucleus.bbox[0].join(", ")} – ${nucleus.bbox[1].join(", ")}`]);
    rows.push(["area", `${count(nucleus.area)} px²${mpp ? `, ${(nucleus.area * mpp ** 2).toFixed(1)} µm²` : ""}`]);
    if (nucleus.dab !== null) rows.push(["DAB density", number(nucleus.dab, 4)]);
    if (info.results.length > 1) rows.push(["result", result.label]);
    return rows;
  }

  function showNucleus(nucleus, which) {
    get("card").hidden = !nucleus;
    Slide.choose(nucleus);
    if (!nucleus) return;
    get("card-title").textContent = nucleus.type === null ? "Nucleus" : nucleus.name;
    const type = info.results[which].types[nucleus.code];
    get("card").querySelector(".swatch").style.backgroundColor = css(look.colourOf(which, type));
    get("card-values").replaceChildren(...values(nucleus, which).flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]));
  }

  // ------------------------------------------------------------------------------------------------ wiring

  function toggleNuclei() {
    get("on").checked = !get("on").checked;
    get("on").dispatchEvent(new Event("change"));
  }

  function wire() {
    get("on").addEventListener("change", () => {
      look.state.on = get("on").checked;
      Slide.layersShown();
    });
    get("opacity").addEventListener("input", () => {
      look.state.opacity = get("opacity").value / 100;
      Slide.layersShown();
    });
    get("value").addEventListener("change", () => {
      get("step").value = 1;
      slider();
      Slide.recolour();
      Slide.revalue();
    });
    get("step").addEventListener("input", () => {
      slider();
      Slide.recolour();
    });
    get("safe").addEventListener("change", () => {
      look.state.safe = get("safe").checked;
      legend();
      Slide.recolour();
    });
    get("places-on").addEventListener("change", () => setPlaces(get("places-on").checked));
    get("card-close").addEventListener("click", () => showNucleus(null));
    Slide.on("chosen", showNucleus);
    Slide.on("scale", ({ px, text, times }) => {
      get("bar").style.width = `${px}px`;
      get("bar-text").textContent = text;
      get("times").textContent = times;
    });
  }

  return { show, wire, showNucleus, toggleNuclei, nextPlace: () => goToPlace(at + 1), lastPlace: () => goToPlace(at < 0 ? -1 : at - 1) };
})();
