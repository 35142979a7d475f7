// The page: list of slides, one slide, the link to a place, the keyboard.
"use strict";

(() => {
  const get = (id) => document.getElementById(id);
  let slides = [];
  let current = -1;

  // ------------------------------------------------------------------------------------------------ link

  // #slide&x&y&zoom: x and y of the centre of the view, level-0 px; zoom in screen px per level-0 px
  function link(number, x, y, zoom) {
    const place = x === undefined ? [] : [x.toFixed(1), y.toFixed(1), zoom.toPrecision(4)];
    return `#${[encodeURIComponent(slides[number].name), ...place].join("&")}`;
  }

  function follow(hash) {
    const [name, ...place] = hash.slice(1).split("&");
    const number = slides.findIndex((slide) => encodeURIComponent(slide.name) === name || slide.name === decode(name));
    if (number < 0) return showList();
    const [x, y, zoom] = place.map(Number);
    const where = [x, y, zoom].every(Number.isFinite) && zoom > 0 ? [x, y, zoom] : null;
    if (number === current) return where && Slide.goTo(...where);
    showSlide(number, where);
  }

  function decode(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text; // a stray percent sign
    }
  }

  // ------------------------------------------------------------------------------------------------ list

  function showList() {
    current = -1;
    Slide.close();
    Panel.showNucleus(null);
    document.body.dataset.view = "list";
    document.title = "Nuclei";
  }

  function card(slide, number) {
    const item = document.createElement("li");
    const box = document.createElement(slide.reason ? "div" : "a");
    const frame = document.createElement("span"), name = document.createElement("span");
    frame.className = "frame";
    name.className = "name";
    name.textContent = slide.name;
    if (slide.reason) {
      frame.textContent = slide.reason;
    } else {
      box.href = link(number);
      const image = document.createElement("img");
      Object.assign(image, { loading: "lazy", alt: "", src: Source.thumbnail(number) });
      image.onerror = () => { frame.textContent = "cannot be opened"; };
      frame.append(image);
    }
    box.append(frame, name);
    item.append(box);
    return item;
  }

  // ------------------------------------------------------------------------------------------------ slide

  async function showSlide(number, where) {
    current = number;
    Slide.close();
    Panel.showNucleus(null);
    document.title = slides[number].name;
    document.body.dataset.view = "slide";
    document.body.dataset.tiles = "loading";
    get("busy").hidden = false;
    try {
      const info = await Source.info(number);
      if (current !== number) return;
      await Slide.open(number, info, Panel.show(info));
      if (current === number && where) Slide.goTo(...where);
    } catch (error) {
      if (current !== number) return;
      history.replaceState(null, "", "#");
      showList();
      fail(error.message);
    } finally {
      if (current === number || current < 0) get("busy").hidden = true;
    }
  }

  function fail(text) {
    get("error").textContent = text;
    get("error").hidden = false;
  }

  function step(by) {
    const open = slides.map((slide, number) => number).filter((number) => !slides[number].reason);
    const at = open.indexOf(current);
    location.hash = link(open[(at + by + open.length) % open.length]);
  }

  // ------------------------------------------------------------------------------------------------ keyboard

  const onSlide = {
    "+": () => Slide.zoomBy(1), "=": () => Slide.zoomBy(1), "-": () => Slide.zoomBy(-1), 0: () => Slide.home(),
    ArrowLeft: () => Slide.pan(-1, 0), ArrowRight: () => Slide.pan(1, 0),
    ArrowUp: () => Slide.pan(0, -1), ArrowDown: () => Slide.pan(0, 1),
    n: () => Panel.nextPlace(), p: () => Panel.lastPlace(), N: () => step(1), P: () => step(-1),
    t: () => Panel.toggleNuclei(), f: fullScreen, s: () => Slide.screenshot(), l: togglePanel,
    Escape: () => Panel.showNucleus(null),
  };

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || get("help").open) return;
    const typing = event.target.matches?.("input[type=range], select");
    if (typing && event.key.startsWith("Arrow")) return;
    if (event.key === "?") get("help").showModal();
    else if (current >= 0 && onSlide[event.key]) onSlide[event.key]();
    else return;
    event.preventDefault();
  }

  function fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else document.documentElement.requestFullscreen();
  }

  function togglePanel() {
    document.body.classList.toggle("wide");
  }

  // ------------------------------------------------------------------------------------------------ start

  async function start() {
    Panel.wire();
    Slide.on("moved", (x, y, zoom) => {
      if (current >= 0) history.replaceState(null, "", link(current, x, y, zoom));
    });
    const tools = { in: () => Slide.zoomBy(1), out: () => Slide.zoomBy(-1), home: () => Slide.home(), full: fullScreen };
    Object.assign(tools, { shot: () => Slide.screenshot(), panel: togglePanel, help: () => get("help").showModal() });
    for (const [name, act] of Object.entries(tools)) get(`tool-${name}`).addEventListener("click", act);
    document.addEventListener("keydown", pressed);
    addEventListener("hashchange", (event) => {
      get("error").hidden = true;
      follow(new URL(event.newURL).hash); // not `location`: a moving view may have changed it since
    });
    get("error").addEventListener("click", () => { get("error").hidden = true; });
    try {
      slides = await Source.list();
    } catch (error) {
      return fail(`the server does not answer: ${error.message}`);
    }
    get("list-title").textContent = window.EXPORTED ? window.EXPORTED.title : "Slides";
    get("cards").replaceChildren(...slides.map(card));
    if (!location.hash && slides.length === 1 && !slides[0].reason) history.replaceState(null, "", link(0));
    follow(location.hash);
  }

  start();
})();
