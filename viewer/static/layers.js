// Layers of the slide: its pixels, outlines of nuclei, their density. Tiles of outlines hold a type, a value and a
// coverage at each px; they are coloured here, so that types, colours and the slider need no request.
"use strict";

window.Layers = (() => {
  const FADED = 0.12; // opacity of nuclei below the slider

  // A tile source of OpenSeadragon whose largest level is `zoom` steps beyond the slide's own px.
  function pyramid(info, zoom, lowest, url, extra = {}) {
    const factor = 2 ** zoom;
    const [width, height] = info.size.map((side) => side * factor);
    const maxLevel = Math.ceil(Math.log2(Math.max(width, height)));
    const zoomOf = (level) => level - maxLevel + zoom;
    return new OpenSeadragon.TileSource({
      width, height, tileSize: info.tile, tileOverlap: 0, maxLevel,
      minLevel: Math.max(maxLevel - zoom + lowest, 0),
      getTileUrl: (level, x, y) => url(zoomOf(level), x, y),
      ...extra,
    });
  }

  function slide(number, info) {
    return pyramid(info, 0, 1 - info.levels, (zoom, x, y) => Source.tile(number, info, `tile/${zoom}/${x}_${y}`));
  }

  // Tiles come at full size: the part beyond the slide's edge is cut off, and `paint` may colour the rest.
  function drawn(info, paint) {
    return {
      hasTransparency: () => true,
      downloadTileStart(job) {
        const image = new Image();
        job.userData.image = image;
        image.onload = () => {
          const { level, x, y } = job.tile;
          const scale = this.getLevelScale(level);
          const side = (whole, at) => Math.max(1, Math.min(info.tile, Math.ceil(whole * scale) - at * info.tile));
          const canvas = document.createElement("canvas");
          canvas.width = side(this.dimensions.x, x);
          canvas.height = side(this.dimensions.y, y);
          const context = canvas.getContext("2d", { willReadFrequently: true });
          context.drawImage(image, 0, 0);
          if (paint) paint(context, job.src);
          job.finish(context, null, "context2d");
        };
        image.onerror = () => job.fail("a tile could not be loaded", null);
        image.src = job.src;
      },
      downloadTileAbort(job) {
        job.userData.image.onload = job.userData.image.onerror = null;
        job.userData.image.src = "";
      },
    };
  }

  function density(number, info, which, mask) {
    const url = (zoom, x, y) => Source.tile(number, info, `density/${which}/${mask}/${zoom}/${x}_${y}`);
    return pyramid(info, 0, 1 - info.levels, url, drawn(info));
  }

  // The outlines of one result; `look` sets their colours.
  class Outlines {
    constructor(number, info, which) {
      Object.assign(this, { number, info, which });
      this.tiles = new Map(); // context and px of each loaded tile
      this.colours = new Uint32Array(256);
      this.alpha = new Uint8Array(256 * 256);
    }

    source(value) {
      const key = (zoom, x, y) => `nuclei/${this.which}/${value}/${zoom}/${x}_${y}`;
      const url = (zoom, x, y) => Source.tile(this.number, this.info, key(zoom, x, y));
      const paint = (context, src) => this.read(context, src);
      return pyramid(this.info, this.info.maxZoom, this.info.outlineZoom, url, drawn(this.info, paint));
    }

    // colours: [r, g, b] by code; shown: by code; step: of the slider, 1 to 64
    look(colours, shown, step) {
      colours.forEach(([red, green, blue], code) => {
        this.colours[code] = red | (green << 8) | (blue << 16);
        for (let value = 0; value < 256; value++) {
          const faded = value > 0 && value < step;
          this.alpha[(code << 8) | value] = shown[code] ? (faded ? Math.round(255 * FADED) : 255) : 0;
        }
      });
      for (const tile of this.tiles.values()) this.paint(tile);
    }

    read(context, src) {
      const { width, height } = context.canvas;
      const image = context.getImageData(0, 0, width, height);
      const at = [];
      for (let i = 0; i < width * height; i++) if (image.data[4 * i + 2]) at.push(i);
      const key = Uint16Array.from(at, (i) => (image.data[4 * i] << 8) | image.data[4 * i + 1]);
      const cover = Uint8Array.from(at, (i) => image.data[4 * i + 2]);
      image.data.fill(0);
      const tile = { context, image, at: Uint32Array.from(at), key, cover };
      this.tiles.set(src, tile);
      this.paint(tile);
    }

    paint({ context, image, at, key, cover }) {
      const pixels = new Uint32Array(image.data.buffer);
      for (let i = 0; i < at.length; i++) {
        const alpha = (this.alpha[key[i]] * cover[i] + 127) / 255;
        pixels[at[i]] = ((alpha << 24) | this.colours[key[i] >> 8]) >>> 0;
      }
      context.putImageData(image, 0, 0);
    }

    forget(src) {
      this.tiles.delete(src);
    }
  }

  // OpenSeadragon hides the seams between tiles by drawing each a px too large, which blurs and moves its content.
  // Here the edges of tiles lie on whole px of the screen instead, so there are no seams.
  class Drawer extends OpenSeadragon.CanvasDrawer {
    minimumOverlapRequired() {
      return false;
    }

    _drawTile(tile, ...rest) {
      const { position, size } = tile, ratio = OpenSeadragon.pixelDensityRatio;
      const snap = (point) => point.apply((px) => Math.round(px * ratio) / ratio);
      tile.position = snap(position);
      tile.size = snap(position.plus(size)).minus(tile.position);
      super._drawTile(tile, ...rest);
      Object.assign(tile, { position, size });
    }
  }

  return { slide, density, Outlines, Drawer };
})();
