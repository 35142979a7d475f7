// Source of the page's data: the server, or, in an exported folder, the scripts beside the page.
"use strict";

window.Source = (() => {
  const EMPTY = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";

  async function json(path) {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  }

  const server = {
    list: () => json("slides.json"),
    info: (number) => json(`slide/${number}/info.json`),
    near: (number, which, x, y) => json(`slide/${number}/near/${which}/${x.toFixed(2)}_${y.toFixed(2)}.json`),
    thumbnail: (number) => `slide/${number}/thumbnail.jpg`,
    tile: (number, info, key) => `slide/${number}/${key}.${key.startsWith("tile") ? "jpg" : "png"}?v=${info.stamp}`,
  };

  // A page on disk may load scripts; each calls `put` with its place. Two may load at once.
  const places = new Map();
  if (window.EXPORTED) window.EXPORTED.put = (content) => { document.currentScript.place = content; };
  function load(number) {
    if (!places.has(number)) {
      places.set(number, new Promise((done, fail) => {
        const script = document.createElement("script");
        script.onload = () => done(script.place);
        script.onerror = () => fail(new Error(`place_${number}.js is missing beside this page`));
        script.src = `place_${number}.js`;
        document.head.append(script);
      }));
    }
    return places.get(number);
  }

  const loaded = new Map();
  const disk = {
    list: async () => window.EXPORTED.slides,
    async info(number) {
      const place = await load(number);
      loaded.set(number, place);
      return place.info;
    },
    async near(number, which, x, y) {
      return loaded.get(number).nuclei[which].filter((nucleus) => {
        const xs = nucleus.contour.map((point) => point[0]);
        const ys = nucleus.contour.map((point) => point[1]);
        return x >= Math.min(...xs) && x <= Math.max(...xs) && y >= Math.min(...ys) && y <= Math.max(...ys);
      });
    },
    thumbnail: (number) => window.EXPORTED.slides[number].thumbnail,
    tile: (number, info, key) => loaded.get(number).tiles[key] || EMPTY,
  };

  return window.EXPORTED ? disk : server;
})();
